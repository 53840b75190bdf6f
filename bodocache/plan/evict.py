# SPDX-License-Identifier: Apache-2.0
"""Who leaves a tier first: the leaf of least value density, and never a page others need.

A page's eviction key is the greatest density (value.py) in its subtree, deepest first on ties. The
least key is always a leaf's own density, so a tier queues only its leaves, and a parent enters when
its last child leaves. Leaves are queued by class of the reuse model (hazards.py), longest unused
first; what leaves is the first of some class, whose density is then taken at its true age: every
change is O(log n + classes). Without the model they are in one queue, by heat.
Pinned, held and under-age pages are not among the leaves that may go, so none of their ancestors
is. A page whose last copy anywhere lies here is a leaf only while no page right after it lies in
any tier: no page is ever orphaned. Where these lie elsewhere only, it is queued apart (kept.py).

The caller owns the pages and the queues, and says what happens: arrive, depart, touch, pin, unpin.
Each is a few microseconds plus O(log n) a row. ``rows`` go shallow to deep. A row outside the table
is an AssertionError.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.pages import PAGE
from bodocache.plan import hazards, heat, kin, pairing, reuse, shares, value
from bodocache.plan.records import POLICY, TIERS, Feature, Int

PageArray = NDArray[np.void]  # PAGE[rows]
PolicyArray = NDArray[np.void]  # POLICY[1]
Rows = NDArray[np.int64]

YOUNG = 0  # the lane of under-age leaves, by arrival
RIPE = 1  # from here on, of each account (shares.py) one a class; then of each one of those kept

_REUSE = int(Feature.REUSE)


class Queues(NamedTuple):
    """The eviction queues of every tier. Memory that no row has used yet is never touched."""

    nodes: NDArray[np.void]  # pairing.NODE[TIERS, rows]
    roots: NDArray[np.int32]  # [TIERS, lanes]
    churned: NDArray[np.float64]  # [TIERS, 2]: evictions not yet forgiven (churn guard), as of when
    since_s: NDArray[np.float64]  # [rows, TIERS]: when the page came to that tier
    clock_s: NDArray[np.float64]  # [1]: the latest time any call has told
    fronts: NDArray[np.float64]  # [lanes]: density of the first page, while some are evicted
    model: reuse.Model
    memories: NDArray[np.void]  # reuse.MEMORY[rows]: what the model knows of each page
    tally: shares.Tally
    unproven: NDArray[np.int64]  # [TIERS, reuse.TENANTS]: pages of each that were used once
    counted: NDArray[np.uint8]  # [rows]: bits of the tiers in which the page is one of these
    kin: NDArray[np.void]  # kin.KIN[rows]: present pages right behind each


PAGES, POLICIES, ROWS = jit.array(PAGE), jit.array(POLICY), jit.array("i8")
QUEUES = jit.named(
    Queues,
    jit.array(pairing.NODE, 2),
    jit.array("i4", 2),
    jit.array("f8", 2),
    jit.array("f8", 2),
    jit.array("f8"),
    jit.array("f8"),
    reuse.MODEL,
    reuse.MEMORIES,
    shares.TALLY,
    jit.array("i8", 2),
    jit.array("u1"),
    kin.KINS,
)


def open_queues(rows: int, tally: shares.Tally | None = None) -> Queues:
    """Empty queues for a page table of ``rows`` records; ``tally``: who has a share."""
    tally = shares.open_tally() if tally is None else tally
    lanes = RIPE + len(tally.parts) * (reuse.CLASSES + 1)
    return Queues(
        np.zeros((TIERS, rows), pairing.NODE),
        np.zeros((TIERS, lanes), np.int32),
        np.zeros((TIERS, 2)),
        np.zeros((rows, TIERS)),
        np.zeros(1),
        np.empty(lanes),
        reuse.open_model(),
        np.zeros(rows, reuse.MEMORY),
        tally,
        np.zeros((TIERS, reuse.TENANTS), np.int64),
        np.zeros(rows, np.uint8),
        np.zeros(rows, kin.KIN),
    )


def grown(queues: Queues, rows: int) -> Queues:
    """The same queues with room for ``rows`` records (the page table has grown)."""
    before = len(queues.since_s)
    larger = queues._replace(
        nodes=np.zeros((TIERS, rows), pairing.NODE),
        since_s=np.zeros((rows, TIERS)),
        memories=np.zeros(rows, reuse.MEMORY),
        counted=np.zeros(rows, np.uint8),
        kin=np.zeros(rows, kin.KIN),
    )
    larger.nodes[:, :before] = queues.nodes
    larger.since_s[:before] = queues.since_s
    larger.memories[:before] = queues.memories
    larger.counted[:before] = queues.counted
    larger.kin[:before] = queues.kin
    return larger


@jit.kernel(PAGES, QUEUES, POLICIES, ROWS, jit.i8, jit.f8)
def arrive(
    pages: PageArray, queues: Queues, policy: PolicyArray, rows: Rows, tier: Int, now_s: float
) -> None:
    """``rows`` now lie in ``tier``, verified. A row that lay there already is left alone."""
    for row in rows:
        arrive_one(pages, queues, policy, row, tier, now_s)


@jit.kernel(PAGES, QUEUES, POLICIES, ROWS, jit.i8)
def depart(pages: PageArray, queues: Queues, policy: PolicyArray, rows: Rows, tier: Int) -> None:
    """``rows`` no longer lie in ``tier``. A row that did not lie there is left alone.

    Use it where something else than ``victims.coldest`` decided: a frame lost, an engine that freed
    its pages. The caller keeps prefixes whole: it departs children before their parent.
    """
    for row in rows:
        depart_one(pages, queues, policy, row, tier)


@jit.kernel(PAGES, QUEUES, POLICIES, ROWS, jit.f8)
def touch(pages: PageArray, queues: Queues, policy: PolicyArray, rows: Rows, now_s: float) -> None:
    """One use of each of ``rows`` at ``now_s``; they are requeued wherever they lie."""
    for row in rows:
        touch_one(pages, queues, policy, row, now_s)


@jit.kernel(PAGES, QUEUES, POLICIES, ROWS)
def pin(pages: PageArray, queues: Queues, policy: PolicyArray, rows: Rows) -> None:
    """Hold ``rows``: until as many unpins, neither they nor their ancestors are evicted."""
    for row in rows:
        pin_one(pages, queues, policy, row)


@jit.kernel(PAGES, QUEUES, POLICIES, ROWS)
def unpin(pages: PageArray, queues: Queues, policy: PolicyArray, rows: Rows) -> None:
    """Let go of ``rows`` once. A row that is not pinned is an AssertionError."""
    for row in rows:
        unpin_one(pages, queues, policy, row)


@jit.kernel(PAGES, QUEUES, POLICIES, ROWS)
def requeue(pages: PageArray, queues: Queues, policy: PolicyArray, rows: Rows) -> None:
    """Weigh ``rows`` anew: after a field that eviction goes by, or the policy, changed."""
    for row in rows:
        assert 0 <= row < len(pages)
        recount(pages, queues, row)
        weigh_everywhere(pages, queues, policy, row)


@jit.kernel(QUEUES, ROWS)
def disown(queues: Queues, rows: Rows) -> None:
    """The pages behind ``rows`` are behind nobody from now on: their ``parent`` was changed."""
    for row in rows:
        kin.part(queues.kin, row)


@jit.kernel(POLICIES, inline=True)
def is_learned(policy: PolicyArray) -> bool:
    """Whether what is learned of the next use decides; else heat does."""
    return bool(np.int64(policy[0]["features_off"]) & _REUSE == 0)


@jit.kernel(PAGES, QUEUES, POLICIES, jit.i8, jit.i8, inline=True)
def log_density(
    pages: PageArray, queues: Queues, policy: PolicyArray, row: Int, tier: Int
) -> float:
    """log2 of the density of the page's copy, had or planned, in ``tier`` at the queues' clock.

    Learned, p_reuse is per second that the page is held (hazards.score).
    """
    now_s = queues.clock_s[0]
    if not is_learned(policy):
        half_life_s = policy[0]["half_life_s"]
        return float(value.log_density(pages, policy, row, tier) - now_s / half_life_s)
    memory = queues.memories[row]
    age_s = max(0.0, now_s - memory["stamp_s"])
    rate = hazards.score(queues.model.hazards, np.int64(memory["kind"]), age_s)
    return float(np.log2(rate) + value.log_gain(pages, policy, row, tier))


@jit.kernel(PAGES, QUEUES, POLICIES, jit.i8, jit.i8, jit.f8, inline=True)
def arrive_one(
    pages: PageArray, queues: Queues, policy: PolicyArray, row: Int, tier: Int, now_s: float
) -> None:
    """As :func:`arrive`, for one row, from compiled code."""
    assert 0 <= row < len(pages)
    page = pages[row]
    tiers = np.int64(page["tiers"])
    if (tiers >> tier) & 1:
        return
    queues.clock_s[0] = max(queues.clock_s[0], now_s)
    queues.since_s[row, tier] = now_s
    page["tiers"] = tiers | (1 << tier)
    if tiers & ((1 << tier) - 1) == 0:
        page["arrived_s"] = now_s
    queues.tally.used[tier, account_of(pages, queues, row)] += 1
    recount(pages, queues, row)
    _count_child(pages, queues, policy, row, tier, 1)
    _lift(pages, queues, policy, row)
    weigh_everywhere(pages, queues, policy, row)


@jit.kernel(PAGES, QUEUES, POLICIES, jit.i8, jit.i8, inline=True)
def depart_one(pages: PageArray, queues: Queues, policy: PolicyArray, row: Int, tier: Int) -> None:
    """As :func:`depart`, for one row, from compiled code."""
    assert 0 <= row < len(pages)
    page = pages[row]
    tiers = np.int64(page["tiers"])
    if not (tiers >> tier) & 1:
        return
    page["tiers"] = tiers & ~(1 << tier)
    queues.tally.used[tier, account_of(pages, queues, row)] -= 1
    recount(pages, queues, row)
    pairing.drop(queues.nodes[tier], queues.roots[tier], row)
    weigh_everywhere(pages, queues, policy, row)
    _count_child(pages, queues, policy, row, tier, -1)


@jit.kernel(PAGES, QUEUES, POLICIES, jit.i8, jit.i8)
def bring_back(pages: PageArray, queues: Queues, policy: PolicyArray, row: Int, tier: Int) -> None:
    """The row has not left ``tier`` after all: nothing of its stay there has changed."""
    pages[row]["tiers"] = np.int64(pages[row]["tiers"]) | (1 << tier)
    queues.tally.used[tier, account_of(pages, queues, row)] += 1
    recount(pages, queues, row)
    _count_child(pages, queues, policy, row, tier, 1)
    weigh_everywhere(pages, queues, policy, row)


@jit.kernel(PAGES, QUEUES, POLICIES, jit.i8, jit.f8, inline=True)
def touch_one(
    pages: PageArray, queues: Queues, policy: PolicyArray, row: Int, now_s: float
) -> None:
    """As :func:`touch`, for one row, from compiled code."""
    assert 0 <= row < len(pages)
    queues.clock_s[0] = max(queues.clock_s[0], now_s)
    heat.add_hit(pages, row, now_s, policy[0]["half_life_s"])
    pages[row]["forecast"] = 0.0  # of this use: it has come
    recount(pages, queues, row)
    _lift(pages, queues, policy, row)
    _rekey(pages, queues, policy, row)


@jit.kernel(PAGES, QUEUES, POLICIES, jit.i8, inline=True)
def pin_one(pages: PageArray, queues: Queues, policy: PolicyArray, row: Int) -> None:
    """As :func:`pin`, for one row, from compiled code."""
    assert 0 <= row < len(pages)
    pages[row]["pins"] += 1
    if pages[row]["pins"] == 1:
        weigh_everywhere(pages, queues, policy, row)


@jit.kernel(PAGES, QUEUES, POLICIES, jit.i8, inline=True)
def unpin_one(pages: PageArray, queues: Queues, policy: PolicyArray, row: Int) -> None:
    """As :func:`unpin`, for one row, from compiled code."""
    assert 0 <= row < len(pages)
    assert pages[row]["pins"] > 0
    pages[row]["pins"] -= 1
    if pages[row]["pins"] == 0:
        weigh_everywhere(pages, queues, policy, row)


@jit.kernel(PAGES, QUEUES, POLICIES, jit.i8, inline=True)
def weigh_everywhere(pages: PageArray, queues: Queues, policy: PolicyArray, row: Int) -> None:
    """As :func:`weigh`, in every tier that the row lies in."""
    for tier in range(TIERS):
        if (np.int64(pages[row]["tiers"]) >> tier) & 1:
            weigh(pages, queues, policy, row, tier)


@jit.kernel(PAGES, QUEUES, POLICIES, jit.i8, jit.i8, inline=True)
def weigh(pages: PageArray, queues: Queues, policy: PolicyArray, row: Int, tier: Int) -> None:
    """Put the row where it belongs in ``tier``: among the ripe, the young, the kept, or nowhere."""
    if _is_leaf(pages, row, tier):
        if is_young(queues, policy, row, tier):
            put(pages, queues, row, tier, YOUNG, queues.since_s[row, tier])
        else:
            _put_ripe(pages, queues, policy, row, tier)
    elif _is_kept(pages, row, tier):
        lane = kept_lane(queues, account_of(pages, queues, row))
        put(pages, queues, row, tier, lane, pages[row]["stamp_s"])
    else:
        pairing.drop(queues.nodes[tier], queues.roots[tier], row)


@jit.kernel(PAGES, QUEUES, POLICIES, jit.i8, jit.i8, inline=True)
def _put_ripe(pages: PageArray, queues: Queues, policy: PolicyArray, row: Int, tier: Int) -> None:
    """Queue the row by its class and its last use, or, without the model, by its heat."""
    if is_learned(policy):
        memory, page = queues.memories[row], pages[row]
        hinted = np.float64(page["forecast"]) + np.float64(page["rank"])  # as if used that later
        kind, key = np.int64(memory["kind"]), memory["stamp_s"] + hinted * policy[0]["half_life_s"]
    else:
        kind, key = np.int64(0), value.log_density(pages, policy, row, tier)
    lane = RIPE + account_of(pages, queues, row) * reuse.CLASSES + kind
    put(pages, queues, row, tier, lane, key)


@jit.kernel(PAGES, QUEUES, POLICIES, jit.i8, inline=True)
def _rekey(pages: PageArray, queues: Queues, policy: PolicyArray, row: Int) -> None:
    """Bring the row's keys up to date where it is queued; where it is queued stays."""
    for tier in range(TIERS):
        lane = np.int64(queues.nodes[tier, row]["lane"]) - 1
        if lane >= kept_lane(queues, 0):
            key = max(queues.nodes[tier, row]["key"], pages[row]["stamp_s"])
            put(pages, queues, row, tier, lane, key)
        elif lane >= RIPE:
            _put_ripe(pages, queues, policy, row, tier)


@jit.kernel(QUEUES, jit.i8, jit.i8, inline=True)
def is_ripe(queues: Queues, row: Int, tier: Int) -> bool:
    """Whether the row is queued there as one that may leave."""
    return bool(RIPE < queues.nodes[tier, row]["lane"] <= kept_lane(queues, 0))  # the lane + 1


@jit.kernel(QUEUES, jit.i8)
def kept_lane(queues: Queues, account: Int) -> Int:
    """The lane of the account's pages that pages behind them keep (kept.py)."""
    return RIPE + len(queues.tally.parts) * reuse.CLASSES + account


@jit.kernel(PAGES, QUEUES, jit.i8, inline=True)
def account_of(pages: PageArray, queues: Queues, row: Int) -> Int:
    """The account (shares.py) of the page's owner."""
    if len(queues.tally.parts) == 1:
        return 0
    return shares.account_of(queues.tally, np.int64(pages[row]["tenant"]))


@jit.kernel(PAGES, QUEUES, jit.i8, inline=True)
def recount(pages: PageArray, queues: Queues, row: Int) -> None:
    """Count the row among its owner's unproven pages (unproven.py) where it is one, else not.

    It is one in every tier it lies in while it has been used once. To be called when that changes.
    """
    tiers = np.int64(pages[row]["tiers"]) if queues.memories[row]["uses"] == 1 else 0
    changed, owner = tiers ^ np.int64(queues.counted[row]), np.int64(pages[row]["tenant"])
    if changed == 0:
        return
    for tier in range(TIERS):
        if (changed >> tier) & 1:
            queues.unproven[tier, owner % reuse.TENANTS] += 1 if (tiers >> tier) & 1 else -1
    queues.counted[row] = tiers


@jit.kernel(PAGES, jit.i8, inline=True)
def parent_of(pages: PageArray, row: Int) -> Int:
    """The row of the page before it, or -1: none, or what a bad record holds is no row."""
    parent = np.int64(pages[row]["parent"])
    return parent if 0 <= parent < len(pages) else np.int64(-1)


@jit.kernel(PAGES, jit.i8, jit.i8, inline=True)
def _is_leaf(pages: PageArray, row: Int, tier: Int) -> bool:
    """Whether the page's copy in ``tier`` can go without taking anything from anyone."""
    page = pages[row]
    tiers = np.int64(page["tiers"])
    if not (tiers >> tier) & 1 or page["pins"] > 0 or page["holds"][tier] > 0:
        return False
    if tiers == 1 << tier:
        return bool(page["descended"] == 0)
    return bool(page["children"][tier] == 0)


@jit.kernel(PAGES, jit.i8, jit.i8)
def _is_kept(pages: PageArray, row: Int, tier: Int) -> bool:
    """Whether its last copy, in ``tier``, could go but for pages behind it in other tiers."""
    page = pages[row]
    is_last = page["tiers"] == 1 << tier and page["children"][tier] == 0
    return bool(is_last and page["pins"] == 0 and page["holds"][tier] == 0)


@jit.kernel(QUEUES, POLICIES, jit.i8, jit.i8, inline=True)
def is_young(queues: Queues, policy: PolicyArray, row: Int, tier: Int) -> bool:
    """Whether the row came to ``tier`` less than min_residence_s ago."""
    ripe_s = queues.since_s[row, tier] + policy[0]["min_residence_s"]
    return bool(ripe_s > queues.clock_s[0])


@jit.kernel(PAGES, QUEUES, POLICIES, jit.i8, jit.f8)
def ripen(pages: PageArray, queues: Queues, policy: PolicyArray, tier: Int, now_s: float) -> None:
    """Move the young that have come of age among the ripe: each once in its stay, oldest first."""
    queues.clock_s[0] = max(queues.clock_s[0], now_s)
    while True:
        row = pairing.first(queues.roots[tier], YOUNG)
        if row < 0 or is_young(queues, policy, row, tier):
            return
        weigh(pages, queues, policy, row, tier)


@jit.kernel(PAGES, QUEUES, POLICIES, jit.i8, jit.i8, jit.i8, inline=True)
def _count_child(
    pages: PageArray, queues: Queues, policy: PolicyArray, row: Int, tier: Int, change: Int
) -> None:
    """Tell the row's parent that a child came to (+1) or left (-1) ``tier``."""
    parent, tiers = parent_of(pages, row), np.int64(pages[row]["tiers"])
    if tiers == 0:
        kin.unlink(queues.kin, row)
    if parent < 0:
        return
    pages[parent]["children"][tier] += change
    if change > 0 and tiers == 1 << tier:
        kin.link(queues.kin, row, parent)
    if tiers == 0 or (change > 0 and tiers == 1 << tier):  # its last copy left, its first came
        pages[parent]["descended"] += change
        weigh_everywhere(pages, queues, policy, parent)
    else:
        weigh(pages, queues, policy, parent, tier)


@jit.kernel(PAGES, QUEUES, POLICIES, jit.i8, inline=True)
def _lift(pages: PageArray, queues: Queues, policy: PolicyArray, row: Int) -> None:
    """Enforce p_reuse(parent) >= p_reuse(child): who uses a page uses the pages before it."""
    parent: Int = parent_of(pages, row)
    while parent >= 0 and _is_hotter(pages, row, parent, policy[0]["half_life_s"]):
        pages[parent]["heat"] = pages[row]["heat"]
        pages[parent]["stamp_s"] = pages[row]["stamp_s"]
        _rekey(pages, queues, policy, parent)
        row, parent = parent, parent_of(pages, parent)


@jit.kernel(PAGES, jit.i8, jit.i8, jit.f8)
def _is_hotter(pages: PageArray, row: Int, other: Int, half_life_s: float) -> bool:
    one, two = pages[row], pages[other]
    if one["stamp_s"] == two["stamp_s"]:
        return bool(one["heat"] > two["heat"])
    one_score = heat.score(np.float64(one["heat"]), one["stamp_s"], half_life_s)
    return bool(one_score > heat.score(np.float64(two["heat"]), two["stamp_s"], half_life_s))


@jit.kernel(PAGES, QUEUES, jit.i8, jit.i8, jit.i8, jit.f8, inline=True)
def put(pages: PageArray, queues: Queues, row: Int, tier: Int, lane: Int, key: float) -> None:
    """Queue the row in ``lane`` of ``tier`` under ``key``, or move it there."""
    tie = -np.int64(pages[row]["depth"])  # deepest first
    node = queues.nodes[tier, row]
    if node["lane"] == lane + 1 and node["key"] == key:
        return
    pairing.drop(queues.nodes[tier], queues.roots[tier], row)
    pairing.put(queues.nodes[tier], queues.roots[tier], lane, row, key, tie)
