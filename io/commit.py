# SPDX-License-Identifier: Apache-2.0
"""Group commit: one sync at a time, shared by all puts that were written before it began.

All of it is on the loop but the two fdatasync calls. A put that is written while a sync runs waits
for the next one; nothing is delayed to make a group larger.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bodocache.clock import Clock
from bodocache.io.backend import Status
from bodocache.io.medium import Medium
from bodocache.io.transfer import BatchTransfer, Outcome, Queue
from bodocache.pages import Reason


class Ticket(NamedTuple):
    """A put's place in line, taken before its first byte was written."""

    failures_before: int


class _Waiting(NamedTuple):
    ticket: Ticket
    on_synced: Callable[[Status, Reason], None]


class GroupCommit:
    """Makes what was written to one slab durable."""

    def __init__(self, medium: Medium, queue: Queue, clock: Clock) -> None:
        self._medium = medium
        self._queue = queue
        self._clock = clock
        self._failures = 0
        self._waiting: list[_Waiting] = []
        self._is_syncing = False

    def ticket(self) -> Ticket:
        """Take it before a put writes: a sync that fails from then on may have lost its bytes.

        The kernel tells of lost writes once, whoever asks first: a sync that succeeds after
        another's failure proves nothing for writes made before it, and none is retried.
        """
        return Ticket(self._failures)

    def join(self, ticket: Ticket, on_synced: Callable[[Status, Reason], None]) -> None:
        """Tell ``on_synced`` LANDED once all that was written until now survives a power cut.

        FAILED where a sync failed since ``ticket`` was taken.
        """
        self._waiting.append(_Waiting(ticket, on_synced))
        if not self._is_syncing:
            self._begin()

    def _begin(self) -> None:
        group, self._waiting = self._waiting, []
        self._is_syncing = True
        # No deadline: members have their own, and a sync serves all of them.
        transfer = BatchTransfer(1, float("inf"), self._clock, self._queue)
        transfer.submit([_Sync(self._medium, transfer, lambda outcome: self._end(group, outcome))])

    def _end(self, group: list[_Waiting], outcome: Outcome) -> None:
        status, reason = Status(outcome.statuses[0]), Reason(outcome.reasons[0])
        self._failures += status is Status.FAILED
        self._is_syncing = False
        for member in group:
            if status is Status.LANDED and member.ticket.failures_before != self._failures:
                member.on_synced(Status.FAILED, Reason.IO_ERROR)
            else:
                member.on_synced(status, reason)
        if self._waiting:
            self._begin()


class _Sync:
    """Fdatasync of both files, in a thread that runs Python."""

    __slots__ = ("_medium", "_on_settled", "positions", "transfer")
    writes = True
    job = 0

    def __init__(
        self, medium: Medium, transfer: BatchTransfer, on_settled: Callable[[Outcome], None]
    ) -> None:
        self.transfer = transfer
        self.positions = np.zeros(1, np.int64)
        self._medium = medium
        self._on_settled = on_settled

    def run(self) -> Outcome:
        self._medium.payload.sync()
        self._medium.headers.sync()
        return Outcome.all(1, Status.LANDED)

    def settle(self, outcome: Outcome) -> None:
        self.transfer.finish(self.positions, outcome)
        self._on_settled(outcome)
