# SPDX-License-Identifier: Apache-2.0
"""One planning round: what is demanded, as records, to ops in the order they should start.

The stages, in order: check, fan-out, admit (for writes), credits, tardiness (cuts), coalesce,
streams (predicted finishes), overlap, room (who leaves). Heat comes before: it is in the pages'
records. All inputs are checked before anything is decided, but for the pages that are to leave:
they are looked at then, and what was charged is given back if one is bad, so a plan is never half
made. Changed are only the tenants' buckets, the queues' clock and their notice of pages that have
come of age.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan import (
    asked,
    charges,
    check,
    coalesce,
    cuts,
    evict,
    facts,
    fanout,
    fates,
    room,
    shares,
    victims,
)
from bodocache.plan import streams as ways
from bodocache.plan.check import DEMANDS, LINKS, PAGES, POLICIES, REQUESTS, TENANTS
from bodocache.plan.credits import check as check_credits
from bodocache.plan.loads import DECISION
from bodocache.plan.records import (
    LINK,
    REQUEST,
    TENANT,
    Feature,
    Int,
    Plan,
)

Records = NDArray[np.void]

UNLIMITED = 1 << 62
NO_TENANTS, NO_LINKS, NO_REQUESTS = np.zeros(0, TENANT), np.zeros(0, LINK), np.zeros(0, REQUEST)
LEAST_DEMANDS = 1024  # that memory is made for

_FANOUT, _ADMIT, _CREDITS = int(Feature.FANOUT), int(Feature.ADMIT), int(Feature.CREDITS)
_TARDINESS, _OVERLAP = int(Feature.TARDINESS), int(Feature.OVERLAP)


class Inputs(NamedTuple):
    """The records of one window. Nobody changes them but tenants' buckets."""

    demands: Records  # DEMAND[n]
    pages: Records  # PAGE[rows]
    policy: Records  # POLICY[1]
    tenants: Records = NO_TENANTS  # TENANT[t]
    links: Records = NO_LINKS  # LINK[k]
    requests: Records = NO_REQUESTS  # REQUEST[m]


class _Sizes(NamedTuple):
    """What there is memory for."""

    demands: int
    requests: int
    links: int
    tenants: int


class _Space(NamedTuple):
    """Memory for n demands, t tenants, k links and m requests; kept from window to window."""

    facts: Records  # FACT[n]
    leads: NDArray[np.int32]  # [n]
    fates: NDArray[np.uint8]  # [n]
    ready_s: NDArray[np.float64]  # [n]
    writes: fates.Writes
    payments: fates.Payments
    book: cuts.Book
    work: coalesce.Work
    room: coalesce.Room
    streams: ways.Streams


class Planner:
    """Plans windows, one after the other, in memory of its own that it keeps.

    It grows by doubling, so windows of one size allocate nothing but what NumPy's views take.
    """

    __slots__ = ("_marks", "_now_s", "_sizes", "_space")

    def __init__(self) -> None:
        self._now_s = -np.inf
        self._sizes = _Sizes(LEAST_DEMANDS, 1, 1, 0)
        self._space = _space_for(self._sizes)
        self._marks = victims.NOBODY

    def plan(
        self,
        inputs: Inputs,
        queues: evict.Queues,
        *,
        now_s: float | None = None,
        free_frames: int = UNLIMITED,
        evicts: bool = False,
    ) -> Plan:
        """Plan one window; the arrays of the result are written over by the next.

        ``free_frames``: places on disk that cost nothing, for writes. ``now_s``: the queues' clock,
        if it is None. ``evicts``: EVICT ops say who is to leave (room.py), for who executes the
        plan elsewhere; else they have room already, or make it as pages come, as a Cache does.

        Raises:
            ValueError: an array's dtype or shape is wrong, a field is out of range (the message
                names both the field and the row), or time runs backwards. Nothing has changed.
        """
        check.arrays(inputs._asdict(), len(queues.since_s))
        now_s = float(queues.clock_s[0]) if now_s is None else now_s
        self._check_numbers(queues, now_s, free_frames)
        self._fit(inputs)
        space, n = self._space, len(inputs.demands)
        before = inputs.tenants.copy() if evicts else inputs.tenants
        told_s = float(queues.clock_s[0])
        if len(inputs.requests):
            space.book.of_request[: len(inputs.requests)] = _UNDECIDED
        if len(inputs.tenants):
            self._check(inputs, now_s)
        if evicts:
            _check_shares(inputs, queues)
        if len(inputs.tenants):
            _decide(*inputs, queues, now_s, free_frames, space)
        else:  # one call: unpacking what it is handed costs more than a small window
            wrong = _intake_and_decide(*inputs, queues, now_s, free_frames, space)
            self._complain(inputs, wrong)
        if evicts:
            self._make_room(inputs, queues, free_frames, before, told_s)
        self._now_s = now_s
        num_ops, num_rows, num_demands = space.room.counts.tolist()
        return Plan(
            space.room.ops[:num_ops],
            space.room.rows[:num_rows],
            space.room.demands[:num_demands],
            space.room.answers[: num_rows + 1],
            space.fates[:n],
            space.ready_s[:n],
            space.book.of_request[: len(inputs.requests)],
        )

    def _make_room(
        self,
        inputs: Inputs,
        queues: evict.Queues,
        free_frames: int,
        before: Records,
        told_s: float,
    ) -> None:
        """Add EVICT ops; if a page is bad, tenants are as ``before``, the clock at ``told_s``."""
        if len(self._marks) < len(inputs.pages):
            self._marks = np.zeros(_enough(len(inputs.pages), len(self._marks)), np.uint8)
        made, accounts = self._space.room, len(queues.tally.parts)
        leaving = room.leaving_for(int(made.counts[1]), accounts)
        tables = inputs.demands, inputs.pages, queues, inputs.policy
        wrong = room.make(*tables, made, free_frames, self._marks, leaving)
        if wrong >= 0:
            inputs.tenants[:] = before
            queues.clock_s[0] = told_s
            self._complain(inputs, wrong)

    def _check_numbers(self, queues: evict.Queues, now_s: float, free_frames: int) -> None:
        if not isinstance(now_s, _NUMBERS) or not self._now_s <= now_s <= _LATEST_S:
            raise ValueError(f"now_s: {now_s!r}; the last window was at {self._now_s}")
        if now_s < queues.clock_s[0]:
            raise ValueError(f"now_s: {now_s}; the queues were told of {queues.clock_s[0]}")
        if not isinstance(free_frames, _INTEGERS) or not 0 <= free_frames <= UNLIMITED:
            raise ValueError(f"free_frames: {free_frames!r}; expected an integer from 0 to 2^62")

    def _fit(self, inputs: Inputs) -> None:
        """Make memory larger if the inputs need it; the tenants' fits exactly."""
        had = self._sizes
        sizes = _Sizes(
            _enough(len(inputs.demands), had.demands),
            _enough(len(inputs.requests), had.requests),
            _enough(len(inputs.links), had.links),
            len(inputs.tenants),
        )
        if sizes != had:
            self._sizes, self._space = sizes, _space_for(sizes)

    def _check(self, inputs: Inputs, now_s: float) -> None:
        self._complain(inputs, _intake(*inputs, self._space))
        check_credits(inputs.tenants, inputs.policy, now_s)
        charges.check(inputs.tenants, self._bill(inputs.demands))

    @staticmethod
    def _complain(inputs: Inputs, wrong: Int) -> None:
        if wrong >= 0:
            raise check.complaint(int(wrong), inputs._asdict())

    def _bill(self, demands: Records) -> asked.Asked:
        """What the tenants would be asked to pay for, as it stands before anything is decided."""
        payments, n = self._space.payments, len(demands)
        unwritten = demands[:]
        unwritten.flags.writeable = False
        return asked.Asked(
            unwritten,
            payments.nbytes[:n],
            payments.order[:n],
            payments.leaders[:n],
            payments.wanted[:n],
        )


def plan_window(  # noqa: PLR0913 -- each is a table, or a number, of one window
    demands: Records,
    pages: Records,
    queues: evict.Queues,
    policy: Records,
    *,
    tenants: Records = NO_TENANTS,
    links: Records = NO_LINKS,
    requests: Records = NO_REQUESTS,
    now_s: float | None = None,
    free_frames: int = UNLIMITED,
    evicts: bool = False,
) -> Plan:
    """One window by itself: :meth:`Planner.plan` in memory that the plan keeps."""
    inputs = Inputs(demands, pages, policy, tenants, links, requests)
    return Planner().plan(inputs, queues, now_s=now_s, free_frames=free_frames, evicts=evicts)


def _enough(need: int, had: int) -> int:
    return had if need <= had else max(need, 2 * had)


def _space_for(sizes: _Sizes) -> _Space:
    demands = sizes.demands
    return _Space(
        np.empty(demands, facts.FACT),
        np.empty(demands, np.int32),
        np.empty(demands, np.uint8),
        np.zeros(demands),
        fates.writes_for(demands),
        fates.payments_for(demands, sizes.tenants),
        cuts.book_for(demands, sizes.requests, sizes.links),
        coalesce.work_for(demands),
        coalesce.room_for(demands),
        ways.streams(),
    )


def _check_shares(inputs: Inputs, queues: evict.Queues) -> None:
    row = shares.other_than(queues.tally, inputs.tenants)
    if row >= 0:
        share = inputs.tenants["share"][row] if row < len(inputs.tenants) else "no such row"
        raise ValueError(
            f"tenants.share: row {row}: {share} is not what the queues were opened with "
            "(shares.of_tenants)"
        )


_UNDECIDED = np.zeros((), DECISION)
_UNDECIDED["cut_at"] = -1

_NUMBERS, _INTEGERS = (float, int, np.floating, np.integer), (int, np.integer)
_LATEST_S = float(np.finfo(np.float64).max)  # of an int, too, which may be any
_INPUTS = (DEMANDS, PAGES, POLICIES, TENANTS, LINKS, REQUESTS)
_SPACE = jit.named(
    _Space,
    *(facts.FACTS, jit.array("i4"), jit.array("u1"), jit.array("f8")),
    *(fates.WRITES, fates.PAYMENTS, cuts.BOOK, coalesce.WORK, coalesce.ROOM, ways.STREAMS),
)


@jit.kernel(*_INPUTS, _SPACE)
def _intake(
    demands: Records,
    pages: Records,
    policy: Records,
    tenants: Records,
    links: Records,
    requests: Records,
    space: _Space,
) -> Int:
    """Check everything; note the facts of each demand, and who wants the same. -1, or a code."""
    wrong: Int = check.in_policy(policy)
    if wrong < 0:
        wrong = check.in_links(links)
    if wrong < 0:
        wrong = facts.gather(demands, pages, tenants, space.facts)
    if wrong < 0:
        wrong = check.in_requests(requests, demands, pages)
    if wrong >= 0:
        return wrong
    wants = facts.Wants(demands, space.facts, space.leads, space.fates)
    if np.int64(policy[0]["features_off"]) & _FANOUT:
        for i in range(len(demands)):
            space.leads[i] = i
    else:
        fanout.join(space.facts[: len(demands)], space.work.table, space.leads)
    fates.begin(wants)
    if len(tenants) > 0:
        fates.bill(wants, space.payments)
    return -1


@jit.kernel(*_INPUTS, evict.QUEUES, jit.f8, jit.i8, _SPACE)
def _decide(  # noqa: PLR0913, PLR0917 -- numba makes no array in a tuple read-only
    demands: Records,
    pages: Records,
    policy: Records,
    tenants: Records,
    links: Records,
    requests: Records,
    queues: evict.Queues,
    now_s: float,
    free_frames: Int,
    space: _Space,
) -> None:
    """All stages behind the checks."""
    queues.clock_s[0] = now_s  # pages are weighed, and are of age, as of now
    on = ~np.int64(policy[0]["features_off"])
    wants = facts.Wants(demands, space.facts, space.leads, space.fates)
    made, payments, book, work = space.room, space.payments, space.book, space.work
    made.counts[:] = 0
    ways.begin(space.streams, links)
    if on & _ADMIT:
        fates.admit_writes(wants, pages, queues, policy, free_frames, space.writes)
    pays = len(tenants) > 0 and (on & _CREDITS) != 0
    if pays:
        fates.charge(wants, tenants, policy, now_s, payments, work.pairs, space.ready_s)
    else:
        space.ready_s[: len(demands)] = 0.0
    decides = len(requests) > 0 and (on & (_TARDINESS | _OVERLAP)) != 0
    if decides:
        cuts.decide(wants, requests, links, policy, now_s, space.streams, book)
        cuts.abort(wants, book, made)
    coalesce.coalesce(wants, policy, work, made)
    if pays:
        fates.settle(wants, tenants, payments, work, made)
    ways.assign(space.streams, made.ops[: made.counts[0]], links, policy, now_s)
    if decides and (on & _OVERLAP) != 0:
        cuts.stream_by_layer(requests, book, made)


@jit.kernel(*_INPUTS, evict.QUEUES, jit.f8, jit.i8, _SPACE)
def _intake_and_decide(  # noqa: PLR0913, PLR0917 -- as for _decide
    demands: Records,
    pages: Records,
    policy: Records,
    tenants: Records,
    links: Records,
    requests: Records,
    queues: evict.Queues,
    now_s: float,
    free_frames: Int,
    space: _Space,
) -> Int:
    """Both, if all is well; -1, or the code of what is wrong."""
    wrong = _intake(demands, pages, policy, tenants, links, requests, space)
    if wrong < 0:
        _decide(
            *(demands, pages, policy, tenants, links, requests),
            *(queues, now_s, free_frames, space),
        )
    return wrong
