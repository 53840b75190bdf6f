# SPDX-License-Identifier: Apache-2.0
"""Whose chunk a link moves next: the most urgent one's, and nobody waits for ever.

Work enters with a priority and a deadline, and is asked for a chunk when it is its turn. By
priority, then by deadline (EDF). What is not a load begins while no load is under way, or when it
has waited for its patience: then one chunk of it goes beside the loads. A load without a deadline
is as urgent as one due in its patience, so later ones with deadlines cannot starve it.

A load without others is asked for all it has; if a more urgent one comes, what storage has not
begun is withdrawn and goes on in chunks. What is no load is in no load's way: storage does reads
first, and may hold writes. Nothing here runs unless work enters, ends, or is out of patience.

Where tenants have credits (credits.py), a chunk begins when its tenant can pay for it. One that
cannot is set aside until it has earned enough, with what its tenant asks for after it, and is in
nobody's way meanwhile. Used from the orchestrator's loop only.
"""

import asyncio
import heapq
import itertools
import math
from collections.abc import AsyncIterator, Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

from bodocache.move.credits import Credits
from bodocache.plan.records import Purpose

CHUNK_S = 2e-3  # of the link: how long a more urgent load waits at most
DEPTH = 2  # chunks in flight: one that the device moves, and the next
UNMEASURED_CHUNK_NBYTES = 4 << 20  # 2 ms of a disk of 2 GB/s
ALL = 1 << 62
MAX_OPEN = 4096


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
class _Lane:
    """The work of one priority that waits, by deadline; what is over is dropped on the way."""

    heap: list[tuple[float, int, Ticket]] = field(default_factory=list)

    def push(self, ticket: Ticket) -> None:
        heapq.heappush(self.heap, (ticket.due_s, ticket.number, ticket))

    def head(self) -> Ticket | None:
        while self.heap:
            due_s, _, ticket = self.heap[0]
            if ticket.is_open and ticket.is_queued and due_s == ticket.due_s:
                return ticket
            heapq.heappop(self.heap)  # over, or pushed again with another deadline
        return None


class LinkQueue:
    """The queue of one link. ``runs_here``: chunks have moved when ``begin`` returns, on the loop.

    Such a chunk is followed by a turn of the loop.
    """

    def __init__(
        self,
        *,
        now_s: Callable[[], float],
        rate: Callable[[], float | None],
        runs_here: bool = False,
        max_open: int = MAX_OPEN,
    ) -> None:
        self.credits: Credits | None = None
        self.on_resume: list[Callable[[float], None]] = []  # told when it moves again, with credits
        self._unpaid: dict[Ticket, None] = {}  # set aside, in order
        self._blocked: set[tuple[Priority, tuple[int, ...]]] = set()  # whose turn none is
        self._payday: asyncio.TimerHandle | None = None
        self._now_s = now_s
        self._rate = rate
        self._runs_here = runs_here
        self._max_open = max_open
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count()
        self._open: set[Ticket] = set()
        self._lanes = tuple(_Lane() for _ in Priority)
        self._in_flight = self._loading = 0  # bytes; of them, for loads
        self._is_pumping = self._will_pump = False
        self._timer: asyncio.TimerHandle | None = None
        self._wants_room: list[asyncio.Future[None]] = []

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or moves."""
        return not self._open

    @property
    def waits_for_credits(self) -> bool:
        """Whether all that is in it does: nothing moves, and the device is not to blame."""
        return bool(self._unpaid) and not self._in_flight

    @property
    def queued_nbytes(self) -> int:
        """What waits or moves."""
        return sum(ticket.work.left_nbytes for ticket in self._open)

    @property
    def chunk_nbytes(self) -> int:
        """What the link moves in CHUNK_S."""
        rate = self._rate()
        return UNMEASURED_CHUNK_NBYTES if rate is None else max(1, int(rate * CHUNK_S))

    def has_room(self, payers: Sequence[int] = ()) -> bool:
        """Whether :meth:`enter` would take work; if not, whoever asks does without, or waits.

        Tenants with rates leave room for the others, however much of theirs waits for credits.
        """
        if self.credits is not None and self.credits.is_limited(payers):
            mine = sum(ticket.payers == [*payers] for ticket in self._open)
            return mine < max(1, self._max_open // (1 + self.credits.limited))
        return len(self._open) < self._max_open

    def is_sole_load(self, ticket: Ticket) -> bool:
        """Whether no load but ``ticket`` waits or moves."""
        return all(other is ticket or other.priority is not Priority.LOAD for other in self._open)

    def enter(
        self, work: Work, priority: Priority, *, deadline_s: float, payers: Sequence[int] = ()
    ) -> Ticket | None:
        """Take ``work``, and begin it if it is its turn; None where the queue is full.

        ``payers``: the tenants whose credits pay for it; more may be added to the ticket's. Call
        :meth:`start` for it to begin.
        """
        if not self.has_room(payers):
            return None
        now_s = self._now_s()
        due_s = deadline_s if math.isfinite(deadline_s) else now_s + PATIENCE_S[priority]
        ticket = Ticket(work, priority, due_s, next(self._numbers), now_s, list(payers))
        self._open.add(ticket)
        for other in self._open:
            other.was_overtaken |= ticket < other
        return ticket

    def start(self, ticket: Ticket, due_s: float | None = None) -> None:
        """Something of ``ticket`` waits: for the first time, again, or with another deadline."""
        if not ticket.is_open:
            return
        is_new = due_s is not None and due_s != ticket.due_s
        if due_s is not None:
            ticket.due_s = due_s
        if not ticket.is_queued:
            ticket.is_queued, ticket.since_s, is_new = True, self._now_s(), True
        if is_new:
            self._lanes[ticket.priority].push(ticket)
        self._make_way(ticket)
        self._pump()

    def reschedule(self, ticket: Ticket, due_s: float) -> None:
        """Others want ``ticket`` too, or no longer: it is due at ``due_s`` from now on."""
        if ticket.is_open and due_s != ticket.due_s:
            ticket.was_overtaken |= due_s > ticket.due_s
            self.start(ticket, due_s)
            for other in self._open:
                other.was_overtaken |= ticket < other

    def done(self, ticket: Ticket, nbytes: int) -> None:
        """A chunk of ``nbytes`` has ended, or no longer counts as in flight: it was given up."""
        self._count(ticket, -nbytes)
        self._pump()

    def leave(self, ticket: Ticket) -> None:
        """Nothing of ``ticket`` waits or will."""
        ticket.is_open = False
        self._open.discard(ticket)
        if not self._open:
            self._stop_timers()
        for waiter in self._wants_room:
            if not waiter.done():
                waiter.set_result(None)
        self._pump()

    @asynccontextmanager
    async def turn(
        self, priority: Priority, nbytes: int, *, payers: Sequence[int] = ()
    ) -> AsyncIterator[None]:
        """``async with``: wait for a turn; inside, ``nbytes`` are in flight. Where the queue is
        full, wait for room first.
        """
        turn = _Turn(nbytes)
        while (ticket := self.enter(turn, priority, deadline_s=math.inf, payers=payers)) is None:
            await self._room()
        try:
            self.start(ticket)
            await turn.granted
            yield
        finally:
            if ticket.in_flight:
                self.done(ticket, nbytes)
            self.leave(ticket)

    async def _room(self) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._wants_room.append(waiter)
        try:
            await waiter
        finally:
            self._wants_room.remove(waiter)

    def ahead_nbytes(self, ticket: Ticket) -> int:
        """What moves before the last byte of ``ticket``, its own included."""
        ahead = 0
        for other in self._open:
            if other is ticket:
                ahead += other.work.left_nbytes
            elif other < ticket:
                ahead += self._payable(other)
            else:
                ahead += min(other.in_flight, other.work.left_nbytes)
        return ahead

    def ahead_of(self, due_s: float, *, without: AbstractSet[Ticket | None] = frozenset()) -> int:
        """What moves before a load that comes now and is due at ``due_s``, but for some."""
        ahead = 0
        for other in self._open - without:
            if other.priority is Priority.LOAD and other.due_s <= due_s:
                ahead += self._payable(other)
            else:
                ahead += min(other.in_flight, other.work.left_nbytes)
        return ahead

    def payable_nbytes(self, tenant: int, until_s: float) -> float:
        """What ``tenant`` can have loaded by then, beyond what it waits for; inf: no limit."""
        purse = self.credits
        if purse is None or not purse.is_limited((tenant,)):
            return math.inf
        held = purse.held_nbytes((tenant,), Purpose.READ, until_s=until_s)
        return held - sum(
            ticket.work.left_nbytes // len(ticket.payers) - ticket.in_flight
            for ticket in self._open
            if ticket.priority is Priority.LOAD and tenant in ticket.payers
        )

    def room_nbytes(self, payers: Sequence[int], memory_nbytes: int) -> float:
        """Of the memory that reads pass through, what these tenants may take more of; inf: any.

        Who has a rate may wait in its part of it, not in all.
        """
        if self.credits is None or not self.credits.is_limited(payers):
            return math.inf
        mine = sum(it.work.left_nbytes for it in self._open if it.payers == [*payers])
        return max(0, memory_nbytes // (1 + self.credits.limited) - mine)

    def stop_charging(self) -> None:
        """From now on nothing waits for credits: the cache closes."""
        self.credits = None
        self._end_wait()

    def _payable(self, ticket: Ticket) -> int:
        """What of it can move now, as far as its tenants' credits go."""
        left = ticket.work.left_nbytes
        if self.credits is None or not self.credits.is_limited(ticket.payers):
            return left
        purpose, now_s = PURPOSE[ticket.priority], self._now_s()
        held = self.credits.held_nbytes(ticket.payers, purpose, until_s=now_s)
        return min(left, ticket.in_flight + held)

    def _set_aside(self, ticket: Ticket, until_s: float) -> None:
        """It waits for credits, and what its tenants ask for after it."""
        ticket.is_queued, ticket.was_overtaken = False, True
        self._unpaid[ticket] = None
        self._blocked.add((ticket.priority, tuple(ticket.payers)))
        if math.isfinite(until_s):
            at_s = self._loop.time() + max(0.0, until_s - self._now_s())
            if self._payday is not None:
                if self._payday.when() <= at_s:
                    return
                self._payday.cancel()
            self._payday = self._loop.call_at(at_s, self._end_wait)

    def _end_wait(self) -> None:
        """Somebody has earned something: all that wait for credits ask again."""
        if self._payday is not None:
            self._payday.cancel()
            self._payday = None
        self._blocked.clear()
        unpaid, self._unpaid = self._unpaid, {}
        for ticket in unpaid:
            if ticket.is_open and not ticket.is_queued:
                ticket.is_queued = True
                self._lanes[ticket.priority].push(ticket)
        self._pump()

    def _stop_timers(self) -> None:
        """Nothing waits: nothing is to be looked at again."""
        self._unpaid.clear()
        self._blocked.clear()
        for timer in (self._timer, self._payday):
            if timer is not None:
                timer.cancel()
        self._timer = self._payday = None

    def _make_way(self, ticket: Ticket) -> None:
        """Withdraw what less urgent work has begun at once because it was alone."""
        limit = DEPTH * self.chunk_nbytes
        if self._loading > limit:
            for other in [one for one in self._open if one.in_flight > limit and ticket < one]:
                other.work.withdraw()

    def _pump(self) -> None:
        if self._is_pumping or self._will_pump:
            return
        self._is_pumping = True
        try:
            while (ticket := self._next()) is not None:
                if self._begin(ticket) and self._runs_here:
                    self._will_pump = True
                    self._loop.call_soon(self._pump_again)
                    return
        finally:
            self._is_pumping = False
        self._watch_patience()

    def _pump_again(self) -> None:
        self._will_pump = False
        self._pump()

    def _begin(self, ticket: Ticket) -> bool:
        """Whether a chunk of ``ticket`` was begun; if not, nothing of it waits any more."""
        if self.credits is not None and not self._in_flight:
            for resume in self.on_resume:
                resume(self._now_s())
        if self.credits is not None and self.credits.is_limited(ticket.payers):
            nbytes = self._begin_paid(ticket, self.credits)
            if nbytes is None:
                return False
        else:
            loads = sum(other.priority is Priority.LOAD for other in self._open)
            is_alone = loads <= 1 and not self._loading
            nbytes = ticket.work.begin(ALL if is_alone else self.chunk_nbytes)
        if nbytes == 0:
            ticket.is_queued = False
            return False
        ticket.since_s = self._now_s()
        if not self._runs_here:
            self._count(ticket, nbytes)
        return True

    def _count(self, ticket: Ticket, nbytes: int) -> None:
        ticket.in_flight += nbytes
        self._in_flight += nbytes
        if ticket.priority is Priority.LOAD:
            self._loading += nbytes

    def _begin_paid(self, ticket: Ticket, purse: Credits) -> int | None:
        """Bytes of the chunk that was begun; None: nobody can pay for it now."""
        who = (ticket.priority, tuple(ticket.payers))
        if who in self._blocked:
            self._set_aside(ticket, math.inf)
            return None
        purpose, left = PURPOSE[ticket.priority], ticket.work.left_nbytes - ticket.in_flight
        chunk = left if isinstance(ticket.work, _Turn) else min(self.chunk_nbytes, left)
        nbytes = max(purse.page_nbytes, chunk) if left else 0  # all of it has begun
        ticket.paid_nbytes, ready_s = purse.save_up(
            ticket.payers, purpose, nbytes, ticket.paid_nbytes
        )
        if ready_s is not None:
            self._set_aside(ticket, ready_s)
            return None
        begun = ticket.work.begin(max(1, nbytes))
        ticket.paid_nbytes -= begun  # what is left goes towards its next chunk
        return begun

    def _next(self) -> Ticket | None:
        now_s = self._now_s()
        heads = [lane.head() for lane in self._lanes]
        for head in heads[:0:-1]:
            if head is not None and head.since_s + PATIENCE_S[head.priority] <= now_s:
                self._note_overtaken(head)
                return head
        if heads[Priority.LOAD] is not None:
            chunk_nbytes = self.chunk_nbytes
            return heads[Priority.LOAD] if self._loading <= (DEPTH - 1) * chunk_nbytes else None
        if self._in_flight:
            return None
        return next((head for head in heads if head is not None), None)

    def _note_overtaken(self, ticket: Ticket) -> None:
        for other in self._open:
            other.was_overtaken |= other < ticket

    def _watch_patience(self) -> None:
        """Look again when what waits for loads to end has waited long enough."""
        if self._timer is not None:
            return
        heads = [lane.head() for lane in self._lanes[1:]]
        ends_s = [head.since_s + PATIENCE_S[head.priority] for head in heads if head is not None]
        if ends_s:
            delay_s = max(0.0, min(ends_s) - self._now_s())
            self._timer = self._loop.call_later(delay_s, self._out_of_patience)

    def _out_of_patience(self) -> None:
        self._timer = None
        self._pump()


class _Turn:
    """A coroutine that waits for one chunk."""

    def __init__(self, nbytes: int) -> None:
        self.left_nbytes = nbytes
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def begin(self, nbytes: int) -> int:  # noqa: ARG002 -- it goes whole
        if self.granted.done():
            return 0
        self.granted.set_result(None)
        return self.left_nbytes

    def withdraw(self) -> None:
        """It has begun."""
