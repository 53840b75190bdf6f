# SPDX-License-Identifier: Apache-2.0
"""ARC (Megiddo, Modha, FAST'03, figure 4), leaf-safe.

Present pages are *recent* (T1: used once since they came) or *frequent* (T2), those that left are
remembered as ghosts in B1 and B2, each list in order of last use, deepest first within a request. A
miss that finds a ghost in B1 raises the share that T1 aims at by max(1, |B2| / |B1|), one in B2
lowers it by max(1, |B1| / |B2|), and the page enters T2. A page leaves the list that figure 4
names; its least recent leaf does, and where it has none, the other list's. Pages of one request
are served in turn, shallow to deep; of a request that does not fit, the rest is not looked at.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.records import Int
from bodocache.replay.policies import leaves as tree
from bodocache.replay.policies.model import TOUCHES, Floats, Ids, Setting, Simulation, Touches

_T1, _T2, _B1, _B2, _NONE = range(5)  # lists; the first four are lanes, too


class _Arc(NamedTuple):
    leaves: tree.Leaves  # the leaves of T1 and T2; all of B1 and B2
    where: NDArray[np.uint8]  # [D] the page's list
    last: NDArray[np.int32]  # [D] the request that used it last
    sizes: Ids  # [4] pages in each list
    aim: Floats  # [1] the size that T1 aims at: p
    counts: Ids  # [2] pages inserted, evicted


def arc(touches: Touches, capacity_pages: int, _: Setting) -> Simulation:
    """Serve ``touches``."""
    pages = len(touches.parents)
    cache = _Arc(
        tree.open_leaves(pages, 2 * capacity_pages, 4),
        np.full(pages, _NONE, np.uint8),
        np.zeros(pages, np.int32),
        np.zeros(4, np.int64),
        np.zeros(1),
        np.zeros(2, np.int64),
    )
    hits = np.zeros(len(touches.timestamps_s), np.int64)
    _replay(touches, capacity_pages, cache, hits)
    return Simulation(hits, int(cache.counts[0]), int(cache.counts[1]))


_IDS = jit.array("i8")
_ARC = jit.named(_Arc, tree.LEAVES, jit.array("u1"), jit.array("i4"), _IDS, jit.array("f8"), _IDS)


@jit.kernel(TOUCHES, jit.i8, _ARC, _IDS)
def _replay(touches: Touches, capacity_pages: Int, cache: _Arc, hits: Ids) -> None:
    leaves, where = cache.leaves, cache.where
    for request in range(len(hits)):
        begin = touches.offsets[request]
        at = tree.end_of_hits(leaves, touches, request)
        stop = min(touches.offsets[request + 1], begin + capacity_pages)
        hits[request] = at - begin
        held = touches.ids[at - 1] if at > begin else np.int64(-1)
        if held >= 0:
            tree.drop(leaves, where[held], held)
        for touch in range(begin, at):
            page = touches.ids[touch]
            cache.sizes[where[page]] -= 1
            cache.sizes[_T2] += 1
            where[page] = _T2
            cache.last[page] = request
        for touch in range(at, stop):
            page = touches.ids[touch]
            to = _make_room(touches, capacity_pages, cache, page, held)
            tree.arrive(leaves, touches, page)
            where[page] = to
            cache.sizes[to] += 1
            cache.last[page] = request
        cache.counts[0] += stop - at
        if stop > begin:
            _queue_leaf(touches, cache, touches.ids[stop - 1])


@jit.kernel(TOUCHES, jit.i8, _ARC, jit.i8, jit.i8)
def _make_room(touches: Touches, capacity_pages: Int, cache: _Arc, page: Int, held: Int) -> Int:
    """Make room for the page, which is absent, and return the list that it enters."""
    sizes, aim, ghost = cache.sizes, cache.aim, np.int64(cache.where[page])
    is_full = sizes[_T1] + sizes[_T2] == capacity_pages
    if ghost != _NONE:
        if ghost == _B1:
            aim[0] = min(aim[0] + max(1.0, sizes[_B2] / sizes[_B1]), np.float64(capacity_pages))
        else:
            aim[0] = max(aim[0] - max(1.0, sizes[_B1] / sizes[_B2]), 0.0)
        _forget(cache, page)
        if is_full:
            _replace(touches, cache, held, ghost)
        return _T2
    if sizes[_T1] + sizes[_B1] == capacity_pages:
        if sizes[_T1] == capacity_pages:
            _forget(cache, _evict_one(touches, cache, _T1, held))
            return _T1
        _forget(cache, tree.first(cache.leaves, _B1))
    elif sizes[_T1] + sizes[_T2] + sizes[_B1] + sizes[_B2] == 2 * capacity_pages:
        _forget(cache, tree.first(cache.leaves, _B2))
    if is_full:
        _replace(touches, cache, held, _NONE)
    return _T1


@jit.kernel(TOUCHES, _ARC, jit.i8, jit.i8)
def _replace(touches: Touches, cache: _Arc, held: Int, ghost: Int) -> None:
    """Evict for a page that was in the list ``ghost``, or in none."""
    sizes, counts = cache.sizes, cache.leaves.counts
    from_t1 = sizes[_T1] > 0 and (
        sizes[_T1] > cache.aim[0] or (ghost == _B2 and sizes[_T1] == cache.aim[0])
    )
    if (from_t1 and counts[_T1] > 0) or counts[_T2] == 0:
        _evict_one(touches, cache, _T1, held)
    else:
        _evict_one(touches, cache, _T2, held)


@jit.kernel(TOUCHES, _ARC, jit.i8, jit.i8)
def _evict_one(touches: Touches, cache: _Arc, lane: Int, held: Int) -> Int:
    """Make the least recent leaf of a list a ghost, and return it."""
    leaves = cache.leaves
    page = tree.first(leaves, lane)
    tree.drop(leaves, lane, page)
    parent = tree.depart(leaves, touches, page)
    if parent >= 0 and parent != held:
        _queue_leaf(touches, cache, parent)
    ghost = _B1 + lane
    cache.sizes[lane] -= 1
    cache.sizes[ghost] += 1
    cache.where[page] = ghost
    cache.counts[1] += 1
    tree.put(leaves, ghost, page, cache.last[page], touches.depths[page])
    return page


@jit.kernel(_ARC, jit.i8)
def _forget(cache: _Arc, page: Int) -> None:
    ghost = cache.where[page]
    tree.drop(cache.leaves, ghost, page)
    cache.sizes[ghost] -= 1
    cache.where[page] = _NONE


@jit.kernel(TOUCHES, _ARC, jit.i8)
def _queue_leaf(touches: Touches, cache: _Arc, page: Int) -> None:
    if cache.leaves.children[page] == 0:
        lane = np.int64(cache.where[page])
        tree.put(cache.leaves, lane, page, cache.last[page], touches.depths[page])
