# SPDX-License-Identifier: Apache-2.0
"""The policy that learns: the leaf of the least score leaves (plan/reuse.py, plan/hazards.py).

Leaves of a class are in order of their last use, so the least score is that of one of at most 256
candidates, one a class. A page is inserted while its own score, or that of a page behind it in its
request, is at least the victim's; else it and those behind it are turned away (if all were let in,
5 % fewer hits at 1,000 and 3,000 pages: bench/learned.py). What has left or was turned away is
remembered: as many pages as the tier holds, and ``GHOSTS`` more. Ties go to the lower class.
A tenant's pages that were used once have a limit where others share the tier (plan/unproven.py).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan import hazards as counted
from bodocache.plan import pairing, reuse, unproven
from bodocache.plan.records import Int
from bodocache.replay.policies import leaves as tree
from bodocache.replay.policies.model import TOUCHES, Floats, Ids, Setting, Simulation, Touches

GHOSTS = 1 << 16  # none: 17 % fewer hits at 3,000 pages, as many at 30,000 (bench/learned.py)


class _Learned(NamedTuple):
    model: reuse.Model
    memories: NDArray[np.void]  # reuse.MEMORY[D]
    leaves: tree.Leaves
    queue: NDArray[np.void]  # pairing.NODE[D]
    roots: NDArray[np.int32]  # [classes]
    least: Floats  # [classes] score of the first leaf of each, inf: there is none
    wanted: Floats  # [longest request] greatest score of a page and those behind it
    ghosts: Ids  # [GHOSTS + capacity] pages that are not present, a ring; -1: came back
    ghost: NDArray[np.int32]  # [D] 1 + its place there, 0: not there
    unproven: Ids  # [reuse.TENANTS] pages of each that are present and were used once
    counts: Ids  # [3] as below


_USED, _INSERTED, _HAUNTED = range(3)


def learned(touches: Touches, capacity_pages: int, setting: Setting) -> Simulation:
    """Serve ``touches``."""
    pages, requests = len(touches.parents), len(touches.timestamps_s)
    cache = _Learned(
        reuse.open_model(),
        np.zeros(pages, reuse.MEMORY),
        tree.open_leaves(pages, capacity_pages, 0),
        np.zeros(pages, pairing.NODE),
        np.zeros(reuse.CLASSES, np.int32),
        np.full(reuse.CLASSES, np.inf),
        np.zeros(int(np.diff(touches.offsets).max(initial=0))),
        np.full(GHOSTS + capacity_pages, -1),
        np.zeros(pages, np.int32),
        np.zeros(reuse.TENANTS, np.int64),
        np.zeros(3, np.int64),
    )
    hints = np.full(requests, np.nan) if setting.hints is None else setting.hints
    hits = np.zeros(requests, np.int64)
    _replay(touches, np.ascontiguousarray(hints, np.float64), capacity_pages, cache, hits)
    return Simulation(
        hits, int(cache.counts[_INSERTED]), int(cache.counts[_INSERTED] - cache.counts[_USED])
    )


_IDS, _FLOATS = jit.array("i8"), jit.array("f8")
_LEARNED = jit.named(
    _Learned,
    reuse.MODEL,
    reuse.MEMORIES,
    tree.LEAVES,
    pairing.NODES,
    pairing.ROOTS,
    _FLOATS,
    _FLOATS,
    _IDS,
    jit.array("i4"),
    _IDS,
    _IDS,
)


@jit.kernel(TOUCHES, _FLOATS, jit.i8, _LEARNED, _IDS)
def _replay(
    touches: Touches, hints: Floats, capacity_pages: Int, cache: _Learned, hits: Ids
) -> None:
    for request in range(len(hits)):
        rows = touches.ids[touches.offsets[request] : touches.offsets[request + 1]]
        at = np.int64(tree.end_of_hits(cache.leaves, touches, request)) - touches.offsets[request]
        hits[request] = at
        _take_back(cache, rows)
        if at > 0:  # of its own pages, only the deepest can be a leaf
            pairing.drop(cache.queue, cache.roots, rows[at - 1])
        for row in rows[:at]:
            _count_unproven(cache, row, -1)
        now_s = touches.timestamps_s[request]
        asked = reuse.Asked(-1, 0, touches.tenants[request], hints[request])
        reuse.observe(cache.model, cache.memories, rows, now_s, asked)
        _weigh(cache, rows, now_s)
        stop = _insert(touches, cache, rows, at, request, capacity_pages)
        if stop > 0:
            _queue_leaf(touches, cache, rows[stop - 1])
        for touch in range(len(rows) - 1, stop - 1, -1):  # the first to be forgotten first
            _remember(cache, rows[touch])


@jit.kernel(_LEARNED, jit.readonly("i8"), jit.f8)
def _weigh(cache: _Learned, rows: Ids, now_s: float) -> None:
    """What the request's pages are worth, and each class's first leaf by now."""
    worth = 0.0
    for at in range(len(rows) - 1, -1, -1):
        memory = cache.memories[rows[at]]
        worth = max(worth, counted.score(cache.model.hazards, np.int64(memory["kind"]), 0.0))
        cache.wanted[at] = worth
    for kind in range(len(cache.roots)):
        _find_least(cache, kind, now_s)


@jit.kernel(_LEARNED, jit.i8, jit.f8)
def _find_least(cache: _Learned, kind: Int, now_s: float) -> None:
    page = pairing.first(cache.roots, kind)
    if page < 0:
        cache.least[kind] = np.inf
    else:
        age_s = now_s - cache.memories[page]["stamp_s"]
        cache.least[kind] = counted.score(cache.model.hazards, kind, age_s)


@jit.kernel(TOUCHES, _LEARNED, jit.readonly("i8"), jit.i8, jit.i8, jit.i8)
def _insert(
    touches: Touches, cache: _Learned, rows: Ids, at: Int, request: Int, capacity_pages: Int
) -> Int:
    """Insert the pages from ``at`` on while they are worth it; return where that ended."""
    tenant = touches.tenants[request] % reuse.TENANTS
    most = unproven.allowance(cache.model.reused, tenant, capacity_pages)
    while at < len(rows):
        if cache.counts[_USED] == capacity_pages:
            kind = np.argmin(cache.least)
            if cache.wanted[at] < cache.least[kind] or np.isinf(cache.least[kind]):
                break
            if cache.memories[rows[at]]["uses"] == 1 and cache.unproven[tenant] >= most:
                break
            held = rows[at - 1] if at > 0 else np.int64(-1)
            _evict(touches, cache, kind, held, touches.timestamps_s[request])
        tree.arrive(cache.leaves, touches, rows[at])
        cache.counts[_USED] += 1
        cache.counts[_INSERTED] += 1
        _count_unproven(cache, rows[at], 1)
        at += 1
    return at


@jit.kernel(TOUCHES, _LEARNED, jit.i8, jit.i8, jit.f8)
def _evict(touches: Touches, cache: _Learned, kind: Int, held: Int, now_s: float) -> None:
    """Evict the first leaf of class ``kind``; ``held`` is the deepest page being served."""
    page = pairing.first(cache.roots, kind)
    pairing.drop(cache.queue, cache.roots, page)
    cache.counts[_USED] -= 1
    _count_unproven(cache, page, -1)
    _remember(cache, page)
    parent = tree.depart(cache.leaves, touches, page)
    if parent >= 0 and parent != held:
        _queue_leaf(touches, cache, parent)
        _find_least(cache, np.int64(cache.memories[parent]["kind"]), now_s)
    _find_least(cache, kind, now_s)


@jit.kernel(_LEARNED, jit.i8, jit.i8)
def _count_unproven(cache: _Learned, page: Int, change: Int) -> None:
    """The page comes (1), or leaves or is used again (-1): if it was used once, it counts."""
    memory = cache.memories[page]
    if memory["uses"] == 1:
        cache.unproven[memory["tenant"]] += change


@jit.kernel(TOUCHES, _LEARNED, jit.i8)
def _queue_leaf(touches: Touches, cache: _Learned, page: Int) -> None:
    if cache.leaves.children[page] == 0:
        memory = cache.memories[page]
        kind, key = np.int64(memory["kind"]), np.float64(memory["group"])
        pairing.put(cache.queue, cache.roots, kind, page, key, -touches.depths[page])


@jit.kernel(_LEARNED, jit.readonly("i8"))
def _take_back(cache: _Learned, rows: Ids) -> None:
    """Pages that are touched are no ghosts."""
    for row in rows:
        if cache.ghost[row] > 0:
            cache.ghosts[cache.ghost[row] - 1] = -1
            cache.ghost[row] = 0


@jit.kernel(_LEARNED, jit.i8)
def _remember(cache: _Learned, page: Int) -> None:
    """The page is not present; it takes the place of the ghost that is oldest, forgotten now."""
    place = cache.counts[_HAUNTED] % len(cache.ghosts)
    cache.counts[_HAUNTED] += 1
    oldest = cache.ghosts[place]
    if oldest >= 0:
        cache.ghost[oldest] = 0
        reuse.forget(cache.model, cache.memories, oldest)
    cache.ghosts[place] = page
    cache.ghost[page] = place + 1
