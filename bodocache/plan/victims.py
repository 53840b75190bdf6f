# SPDX-License-Identifier: Apache-2.0
"""Which pages leave a tier now, and what the next one is worth: the least of evict.py's queues.

Of each class the leaf that was not used for longest is looked at, and the least dense of these
goes; without the model there is one queue, by heat. A round that takes n pages costs O(classes +
n (classes + log n)), the classes in a row of 2 KB.
"""

import numpy as np

from bodocache import jit
from bodocache.plan import evict, pairing, reuse
from bodocache.plan.evict import PageArray, PolicyArray, Queues, Rows
from bodocache.plan.records import Int

_PAGES, _QUEUES, _POLICIES, _ROWS = evict.PAGES, evict.QUEUES, evict.POLICIES, evict.ROWS


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
    """Evict up to ``count`` pages from ``tier``, least key first; return how many.

    Victims stand in ``out[:n]``, each before its parent, and have departed; the caller frees their
    slots and writes their reason. Fewer than ``count``: all others are pinned, under age or needed,
    or the churn guard (:func:`allowance`) lets no more go.
    """
    evict.ripen(pages, queues, policy, tier, now_s)
    count = min(count, allowance(queues, policy, tier, now_s))
    num_lanes = _look_at_fronts(pages, queues, policy, tier)
    taken = 0
    floor = -np.inf
    while taken < count:
        lane = _coldest_lane(pages, queues, tier, num_lanes)
        if lane < 0:
            break
        row = pairing.first(queues.roots[tier], lane)
        if evict.is_young(queues, policy, row, tier):  # the residence was raised since
            evict.weigh(pages, queues, policy, row, tier)
        else:
            floor = max(floor, queues.fronts[lane])
            evict.depart_one(pages, queues, policy, row, tier)
            out[taken] = row
            taken += 1
            _raise_to(pages, queues, policy, np.int64(pages[row]["parent"]), tier, floor)
        _look_at_front(pages, queues, policy, tier, lane)
    for i in range(taken):  # parents that stay go back to their own density
        parent = np.int64(pages[out[i]]["parent"])
        if parent >= 0:
            evict.weigh(pages, queues, policy, parent, tier)
    queues.churned[tier, 0] += taken
    return taken


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
    num_lanes = _look_at_fronts(pages, queues, policy, tier)
    lane = _coldest_lane(pages, queues, tier, num_lanes)
    if lane < 0:
        return np.inf
    row = pairing.first(queues.roots[tier], lane)
    return float(np.exp2(evict.log_density(pages, queues, policy, row, tier)))


@jit.kernel(_PAGES, _QUEUES, _POLICIES, jit.i8)
def _look_at_fronts(pages: PageArray, queues: Queues, policy: PolicyArray, tier: Int) -> int:
    """Take the density of each lane's first page; return how many lanes are in use."""
    num_lanes = reuse.CLASSES if evict.is_learned(policy) else 1
    for lane in range(num_lanes):
        _look_at_front(pages, queues, policy, tier, lane)
    return num_lanes


@jit.kernel(_PAGES, _QUEUES, _POLICIES, jit.i8, jit.i8)
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


@jit.kernel(_PAGES, _QUEUES, jit.i8, jit.i8)
def _coldest_lane(pages: PageArray, queues: Queues, tier: Int, num_lanes: Int) -> Int:
    """The lane whose first page leaves first, or -1: none can; ties go deepest first."""
    best: Int = -1
    best_row: Int = -1
    for lane in range(num_lanes):
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


@jit.kernel(_PAGES, _QUEUES, _POLICIES, jit.i8, jit.i8, jit.f8)
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
    if row < 0 or not 0 < queues.nodes[tier, row]["lane"] <= evict.YOUNG:
        return
    if not evict.is_learned(policy) and queues.nodes[tier, row]["key"] < floor:
        evict.put(pages, queues, row, tier, 0, floor)
    _look_at_front(pages, queues, policy, tier, np.int64(queues.nodes[tier, row]["lane"]) - 1)
