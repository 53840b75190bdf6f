# SPDX-License-Identifier: Apache-2.0
"""Which pages leave a tier now, and what the next one is worth: the least of evict.py's queues.

Of each class the leaf that was not used for longest is looked at, and the least dense of these
goes; without the model there is one queue, by heat. A round that takes n pages costs O(classes +
n (classes + log n)), the classes in a row of 2 KB; so much for each account, where tenants have
shares (shares.py).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan import evict, pairing, reuse, shares, unproven
from bodocache.plan.evict import PageArray, PolicyArray, Queues, Rows
from bodocache.plan.records import Int

Marks = NDArray[np.uint8]

SPARED, SET_ASIDE = 1, 2  # the latter: out of the queues, as it was met there
NOBODY: Marks = np.zeros(0, np.uint8)
MARKS = jit.array("u1")
_PAGES, _QUEUES, _POLICIES, _ROWS = evict.PAGES, evict.QUEUES, evict.POLICIES, evict.ROWS


class Taker(NamedTuple):
    """For whom room is made."""

    account: Int  # shares.py; ANYBODY: pages of every account may go
    tenant: Int
    promised: Int  # pages for which it has room already: free places, and what is on its way
    marks: Marks = NOBODY  # [rows]: SPARED ones stay; who marks them queues the SET_ASIDE again


TAKER = jit.named(Taker, jit.i8, jit.i8, jit.i8, MARKS)
ALL_WENT, WORTH_LESS, NONE_LEFT = range(3)  # why a round has ended


@jit.kernel(_PAGES, _QUEUES, _POLICIES, jit.i8, jit.i8, jit.f8, _ROWS)
def coldest(
    pages: PageArray,
    queues: Queues,
    policy: PolicyArray,
    tier: Int,
    count: Int,
    now_s: float,
    out: Rows,
) -> int:
    """As :func:`coldest_for`, whosever the pages are."""
    nobody = queues.counted[:0]
    taker = Taker(np.int64(shares.ANYBODY), np.int64(0), np.int64(0), nobody)
    return coldest_for(pages, queues, policy, tier, count, now_s, taker, out)


@jit.kernel(_PAGES, _QUEUES, _POLICIES, jit.i8, jit.i8, jit.f8, TAKER, _ROWS)
def coldest_for(
    pages: PageArray,
    queues: Queues,
    policy: PolicyArray,
    tier: Int,
    count: Int,
    now_s: float,
    taker: Taker,
    out: Rows,
) -> int:
    """Evict up to ``count`` pages from ``tier``, least key first; return how many.

    Victims stand in ``out[:n]``, each before its parent, and have departed; the caller frees their
    slots and writes their reason. Fewer than ``count``: all others are pinned, under age, needed,
    of those whose pages the taker may not have (shares.py), or the churn guard (:func:`allowance`)
    lets no more go.
    """
    count = min(count, begin(pages, queues, policy, tier, now_s))
    taken, floor = 0, -np.inf
    while taken < count:
        lane = next_lane(pages, queues, policy, tier, taker, taker.promised + taken)
        if lane < 0:
            break
        floor = max(floor, queues.fronts[lane])
        out[taken] = evict_first(pages, queues, policy, tier, lane, floor)
        taken += 1
    _end(pages, queues, policy, tier, out[:taken])
    return taken


@jit.kernel(
    *(_PAGES, _QUEUES, _POLICIES, jit.readonly("i8"), jit.i8, jit.i8, jit.f8, jit.f8, TAKER),
    *(jit.array("f8"), _ROWS),
)
def coldest_below(  # noqa: PLR0913, PLR0917 -- one call a store
    pages: PageArray,
    queues: Queues,
    policy: PolicyArray,
    rows: Rows,
    tier: Int,
    free_pages: Int,
    favour: float,
    now_s: float,
    taker: Taker,
    worth: NDArray[np.float64],
    out: Rows,
) -> tuple[int, int]:
    """Make room for the leading ``rows`` that are worth more than what would leave for them.

    ``rows`` (a chain, shallow to deep) were just used and are not there yet. Each is worth the
    density of the densest page of it and of those behind it, by 2^``favour`` (hints) more. In a
    full tier a page that was used once needs its owner's allowance besides (unproven.py). Returns
    how many have room, and why no more; of them all beyond ``free_pages`` have one victim each in
    ``out``, as for :func:`coldest_for`. ``worth`` [len(rows)] is scratch.
    """
    count = begin(pages, queues, policy, tier, now_s)
    best, floor = -np.inf, -np.inf
    for at in range(len(rows) - 1, -1, -1):
        best = max(best, evict.log_density(pages, queues, policy, rows[at], tier) + favour)
        worth[at] = best
    owner, capacity = taker.tenant % reuse.TENANTS, policy[0]["capacity_pages"][tier]
    allowed = unproven.allowance(queues.model.reused, owner, capacity)
    new, kept, taken, why = queues.unproven[tier, owner], 0, 0, ALL_WENT
    while kept < len(rows):
        once = queues.memories[rows[kept]]["uses"] == 1
        if kept >= free_pages:
            lane: Int = -1
            if taken < count:
                lane = next_lane(pages, queues, policy, tier, taker, taker.promised + taken)
            if lane < 0:
                why = NONE_LEFT
                break
            if worth[kept] < queues.fronts[lane] or (once and new >= allowed):
                why = WORTH_LESS
                break
            floor = max(floor, queues.fronts[lane])
            out[taken] = evict_first(pages, queues, policy, tier, lane, floor)
            new -= _counts(pages, queues, out[taken], owner)
            taken += 1
        new += 1 if once else 0
        kept += 1
    _end(pages, queues, policy, tier, out[:taken])
    return kept, why


@jit.kernel(_PAGES, _QUEUES, jit.i8, jit.i8, inline=True)
def _counts(pages: PageArray, queues: Queues, row: Int, owner: Int) -> Int:
    """1 if the row, which has left, was one of the owner's unproven pages."""
    is_owners = np.int64(pages[row]["tenant"]) % reuse.TENANTS == owner
    return 1 if is_owners and queues.memories[row]["uses"] == 1 else 0


@jit.kernel(_PAGES, _QUEUES, _POLICIES, jit.i8, jit.f8)
def begin(pages: PageArray, queues: Queues, policy: PolicyArray, tier: Int, now_s: float) -> Int:
    """Look at every lane; return how many pages may leave."""
    evict.ripen(pages, queues, policy, tier, now_s)
    _look_at_fronts(pages, queues, policy, tier)
    return allowance(queues, policy, tier, now_s)


@jit.kernel(_PAGES, _QUEUES, _POLICIES, jit.i8, _ROWS, inline=True)
def _end(pages: PageArray, queues: Queues, policy: PolicyArray, tier: Int, gone: Rows) -> None:
    for row in gone:  # parents that stay go back to their own density
        parent = evict.parent_of(pages, row)
        if parent >= 0:
            evict.weigh(pages, queues, policy, parent, tier)
    queues.churned[tier, 0] += len(gone)


@jit.kernel(_PAGES, _QUEUES, _POLICIES, jit.i8, TAKER, jit.i8, inline=True)
def next_lane(
    pages: PageArray, queues: Queues, policy: PolicyArray, tier: Int, taker: Taker, promised: Int
) -> Int:
    """The lane whose first page leaves next, or -1."""
    while True:
        lane = _coldest_lane(pages, queues, policy, tier, taker.account, promised)
        if lane < 0:
            return lane
        row = pairing.first(queues.roots[tier], lane)
        if len(taker.marks) > 0 and taker.marks[row] > 0:
            taker.marks[row] = SET_ASIDE
            pairing.drop(queues.nodes[tier], queues.roots[tier], row)
        elif not evict.is_young(queues, policy, row, tier):
            return lane
        else:
            evict.weigh(pages, queues, policy, row, tier)  # the residence was raised
        _look_at_front(pages, queues, policy, tier, lane)


@jit.kernel(_PAGES, _QUEUES, _POLICIES, jit.i8, jit.i8, jit.f8, inline=True)
def evict_first(
    pages: PageArray, queues: Queues, policy: PolicyArray, tier: Int, lane: Int, floor: float
) -> Int:
    """Let the first page of ``lane`` leave; return its row. ``floor``: the round's densest."""
    row = pairing.first(queues.roots[tier], lane)
    evict.depart_one(pages, queues, policy, row, tier)
    _raise_to(pages, queues, policy, evict.parent_of(pages, row), tier, floor)
    _look_at_front(pages, queues, policy, tier, lane)
    return row


@jit.kernel(_QUEUES, _POLICIES, jit.i8, jit.f8)
def allowance(queues: Queues, policy: PolicyArray, tier: Int, now_s: float) -> Int:
    """How many pages may leave ``tier`` now.

    The churn guard: a bucket of ``churn_share`` of the tier, one page at least, that fills in
    ``churn_s``, so that no flood turns a tier over faster. What finds no room waits or is not kept.
    """
    share, churned = policy[0]["churn_share"], queues.churned[tier]
    if share <= 0.0:
        return np.int64(1) << 62
    most = max(1.0, share * policy[0]["capacity_pages"][tier])
    passed_s = max(0.0, now_s - churned[1])
    churned[0] = max(0.0, churned[0] - passed_s * most / policy[0]["churn_s"])
    churned[1] = max(churned[1], now_s)
    return np.int64(max(0.0, most - churned[0]))


@jit.kernel(_PAGES, _QUEUES, _POLICIES, jit.i8, jit.f8)
def price(pages: PageArray, queues: Queues, policy: PolicyArray, tier: Int, now_s: float) -> float:
    """Density (value.py) at ``now_s`` of the page that would leave ``tier`` next; inf: none can."""
    evict.ripen(pages, queues, policy, tier, now_s)
    _look_at_fronts(pages, queues, policy, tier)
    lane = _coldest_lane(pages, queues, policy, tier, shares.ANYBODY, 0)
    if lane < 0:
        return np.inf
    row = pairing.first(queues.roots[tier], lane)
    return float(np.exp2(evict.log_density(pages, queues, policy, row, tier)))


@jit.kernel(_PAGES, _QUEUES, _POLICIES, jit.i8, inline=True)
def _look_at_fronts(pages: PageArray, queues: Queues, policy: PolicyArray, tier: Int) -> None:
    """Take the density of each lane's first page."""
    kinds = reuse.CLASSES if evict.is_learned(policy) else 1
    for account in range(len(queues.tally.parts)):
        first = evict.RIPE + account * reuse.CLASSES
        for lane in range(first, first + kinds):
            _look_at_front(pages, queues, policy, tier, lane)


@jit.kernel(_PAGES, _QUEUES, _POLICIES, jit.i8, jit.i8, inline=True)
def _look_at_front(
    pages: PageArray, queues: Queues, policy: PolicyArray, tier: Int, lane: Int
) -> None:
    row = pairing.first(queues.roots[tier], lane)
    if row < 0:
        queues.fronts[lane] = np.inf
    elif evict.is_learned(policy):
        queues.fronts[lane] = evict.log_density(pages, queues, policy, row, tier)
    else:
        queues.fronts[lane] = queues.nodes[tier, row]["key"]


@jit.kernel(_PAGES, _QUEUES, _POLICIES, jit.i8, jit.i8, jit.i8, inline=True)
def _coldest_lane(
    pages: PageArray, queues: Queues, policy: PolicyArray, tier: Int, taker: Int, promised: Int
) -> Int:
    """The lane whose first page leaves first, or -1: none can; ties go deepest first."""
    kinds = reuse.CLASSES if evict.is_learned(policy) else 1
    capacity_pages = np.int64(policy[0]["capacity_pages"][tier])
    best: Int = -1
    best_row: Int = -1
    for account in range(len(queues.tally.parts)):
        if not shares.may_evict(queues.tally, tier, capacity_pages, taker, promised, account):
            continue
        for lane in range(
            evict.RIPE + account * reuse.CLASSES, evict.RIPE + account * reuse.CLASSES + kinds
        ):
            row = pairing.first(queues.roots[tier], lane)
            if row < 0 or (best >= 0 and queues.fronts[lane] > queues.fronts[best]):
                continue
            if (
                best < 0
                or queues.fronts[lane] < queues.fronts[best]
                or _is_deeper(pages, row, best_row)
            ):
                best, best_row = lane, row
    return best


@jit.kernel(_PAGES, jit.i8, jit.i8)
def _is_deeper(pages: PageArray, row: Int, other: Int) -> bool:
    depth, other_depth = np.int64(pages[row]["depth"]), np.int64(pages[other]["depth"])
    return bool(depth > other_depth or (depth == other_depth and row < other))


@jit.kernel(_PAGES, _QUEUES, _POLICIES, jit.i8, jit.i8, jit.f8, inline=True)
def _raise_to(
    pages: PageArray,
    queues: Queues,
    policy: PolicyArray,
    row: Int,
    tier: Int,
    floor: float,
) -> None:
    """A parent that the last child of a round has left counts as much as that child did, if more.

    Among classes it needs no help: colder than all others, it is the next to leave.
    """
    if row < 0 or not evict.is_ripe(queues, row, tier):
        return
    lane = np.int64(queues.nodes[tier, row]["lane"]) - 1
    if not evict.is_learned(policy) and queues.nodes[tier, row]["key"] < floor:
        evict.put(pages, queues, row, tier, lane, floor)
    _look_at_front(pages, queues, policy, tier, lane)
