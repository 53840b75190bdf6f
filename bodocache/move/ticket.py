# SPDX-License-Identifier: Apache-2.0
"""What waits in a link's queue (queue.py): work, how urgent it is, and who pays for it."""

import heapq
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from bodocache.plain import plain
from bodocache.plan.records import Purpose


@plain
class Priority(IntEnum):
    """What work is for, most urgent first."""

    LOAD = 0  # a forward pass waits for it, or will
    PREFETCH = 1  # for a request that is expected
    PREWARM = 2
    WRITE = 3  # write-through
    STORE = 4  # a layer that leaves the device, where it is in the way of what comes to it


PATIENCE_S = (1.0, 0.25, 0.5, 0.25, 0.025)  # by Priority; a layer's turn takes a ms: 4 % of loads'
PURPOSE = (Purpose.READ, Purpose.PREFETCH, Purpose.PREFETCH, Purpose.WRITE, Purpose.WRITE)


class Work(Protocol):
    """What moves over a link, chunk by chunk."""

    @property
    def left_nbytes(self) -> int:
        """What has not arrived: begun or not."""
        ...

    def begin(self, nbytes: int) -> int:
        """Begin a chunk of up to ``nbytes``, at least a page; its bytes, or 0 if none waits.

        Each chunk is told to :meth:`LinkQueue.done` when it has ended.
        """
        ...

    def withdraw(self) -> None:
        """Take back what was begun and has not reached the device; it waits again."""
        ...


@dataclass(slots=True, eq=False)
class Ticket:
    """One piece of work in a queue."""

    work: Work
    priority: Priority
    due_s: float
    number: int  # in order of arrival
    since_s: float  # since when it waits for a turn
    payers: list[int] = field(default_factory=list)  # tenants, each for an equal part
    paid_nbytes: int = 0  # of the next chunk
    in_flight: int = 0  # bytes
    is_open: bool = True
    is_queued: bool = False
    was_overtaken: bool = False  # something more urgent came, or went first: no fault of the link

    def __lt__(self, other: "Ticket") -> bool:
        return (self.priority, self.due_s, self.number) < (
            other.priority,
            other.due_s,
            other.number,
        )


@dataclass(slots=True)
class Lane:
    """The work of one priority that waits, by deadline; what is over is dropped on the way."""

    heap: list[tuple[float, int, Ticket]] = field(default_factory=list)

    def push(self, ticket: Ticket) -> None:
        """Let ``ticket`` wait, by the deadline that it has now."""
        heapq.heappush(self.heap, (ticket.due_s, ticket.number, ticket))

    def head(self) -> Ticket | None:
        """The first that waits."""
        while self.heap:
            due_s, _, ticket = self.heap[0]
            if ticket.is_open and ticket.is_queued and due_s == ticket.due_s:
                return ticket
            heapq.heappop(self.heap)  # over, or pushed again with another deadline
        return None
