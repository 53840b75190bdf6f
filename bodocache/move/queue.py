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
import itertools
import math
from collections.abc import AsyncIterator, Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager

from bodocache.move.credits import Credits
from bodocache.move.ticket import PATIENCE_S, Lane, Priority, Ticket, Work
from bodocache.move.unpaid import Unpaid
from bodocache.plan.records import Purpose

CHUNK_S = 2e-3  # of the link: how long a more urgent load waits at most
DEPTH = 2  # chunks in flight: one that the device moves, and the next
UNMEASURED_CHUNK_NBYTES = 4 << 20  # 2 ms of a disk of 2 GB/s
ALL = 1 << 62
MAX_OPEN = 4096
LONG_BEGIN_S = 2e-4  # of the loop: else loads that come together begin all in one turn of it


class LinkQueue:
    """The queue of one link. ``runs_here``: chunks have moved when ``begin`` returns, on the loop.

    Such a chunk is followed by a turn of the loop, and one that takes long to begin.
    """

    def __init__(
        self,
        *,
        now_s: Callable[[], float],
        rate: Callable[[], float | None],
        runs_here: bool = False,
        max_open: int = MAX_OPEN,
    ) -> None:
        self.on_resume: list[Callable[[float], None]] = []  # told when it moves again, with credits
        self._unpaid = Unpaid(now_s, self._ask_again)
        self._now_s = now_s
        self._rate = rate
        self._runs_here = runs_here
        self._max_open = max_open
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count()
        self._open: set[Ticket] = set()
        self._lanes = tuple(Lane() for _ in Priority)
        self._in_flight = self._loading = 0  # bytes; of them, for loads
        self._is_pumping = self._will_pump = False
        self._timer: asyncio.TimerHandle | None = None
        self._wants_room: list[asyncio.Future[None]] = []

    @property
    def credits(self) -> Credits | None:
        """What tenants pay with; None: nobody pays."""
        return self._unpaid.credits

    @credits.setter  # noqa: A003 -- tenants' credits; the site module's are not shadowed
    def credits(self, purse: Credits | None) -> None:
        self._unpaid.credits = purse

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or moves."""
        return not self._open

    @property
    def waits_for_credits(self) -> bool:
        """Whether all that is in it does: nothing moves, and the device is not to blame."""
        return self._unpaid.waits and not self._in_flight

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
                ahead += self._unpaid.payable_nbytes(other)
            else:
                ahead += min(other.in_flight, other.work.left_nbytes)
        return ahead

    def ahead_of(self, due_s: float, *, without: AbstractSet[Ticket | None] = frozenset()) -> int:
        """What moves before a load that comes now and is due at ``due_s``, but for some."""
        ahead = 0
        for other in self._open - without:
            if other.priority is Priority.LOAD and other.due_s <= due_s:
                ahead += self._unpaid.payable_nbytes(other)
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
        self._unpaid.end_wait()

    def _ask_again(self, unpaid: Sequence[Ticket]) -> None:
        """Somebody has earned something: all that waited for credits wait for their turn."""
        for ticket in unpaid:
            if ticket.is_open and not ticket.is_queued:
                ticket.is_queued = True
                self._lanes[ticket.priority].push(ticket)
        self._pump()

    def _stop_timers(self) -> None:
        """Nothing waits: nothing is to be looked at again."""
        self._unpaid.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

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
            begun_s = self._now_s()
            while (ticket := self._next()) is not None:
                if self._begin(ticket) and (
                    self._runs_here or self._now_s() - begun_s >= LONG_BEGIN_S
                ):
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
        purse = self.credits
        if purse is not None and not self._in_flight:
            for resume in self.on_resume:
                resume(self._now_s())
        if purse is not None and purse.is_limited(ticket.payers):
            nbytes = self._begin_paid(ticket, purse)
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
        left = ticket.work.left_nbytes - ticket.in_flight
        chunk = left if isinstance(ticket.work, _Turn) else min(self.chunk_nbytes, left)
        nbytes = max(purse.page_nbytes, chunk) if left else 0  # all of it has begun
        if not self._unpaid.has_paid(ticket, nbytes):
            return None
        begun = ticket.work.begin(max(1, nbytes))
        ticket.paid_nbytes -= begun  # what is left goes towards its next chunk
        return begun

    def _next(self) -> Ticket | None:
        heads = self._heads(self._lanes)
        if not heads:
            return None
        first, now_s = heads[0], self._now_s()
        for head in reversed(heads):
            is_load = head.priority is Priority.LOAD
            if not is_load and head.since_s + PATIENCE_S[head.priority] <= now_s:
                self._note_overtaken(head)
                return head
        if first.priority is Priority.LOAD:
            return first if self._loading <= (DEPTH - 1) * self.chunk_nbytes else None
        return None if self._in_flight else first

    @staticmethod
    def _heads(lanes: Sequence[Lane]) -> list[Ticket]:
        """The first of each of ``lanes`` in which anything waits."""
        heads = [lane.head() for lane in lanes if lane.heap]
        return [head for head in heads if head is not None]

    def _note_overtaken(self, ticket: Ticket) -> None:
        for other in self._open:
            other.was_overtaken |= other < ticket

    def _watch_patience(self) -> None:
        """Look again when what waits for loads to end has waited long enough."""
        if self._timer is not None:
            return
        heads = self._heads(self._lanes[1:])
        ends_s = [head.since_s + PATIENCE_S[head.priority] for head in heads]
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
