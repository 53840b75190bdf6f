# SPDX-License-Identifier: Apache-2.0
"""LRU that believes what it is told: the yardstick for policies that weigh hints.

A request said to be continued keeps its pages but the last; of any other nothing is inserted, and
what it hit leaves before all else. Nothing is learned or doubted, so it has the gain of a perfect
hint and the loss of a useless one.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.replay.policies import leaves as tree
from bodocache.replay.policies.model import TOUCHES, Floats, Ids, Simulation, Touches

_GOING, _STAYING = range(2)  # lanes


class _Classed(NamedTuple):
    leaves: tree.Leaves
    last: Ids  # [D] the request that used the page last
    lanes: NDArray[np.int64]  # [D]


def two_class_lru(touches: Touches, capacity_pages: int, hints: Floats) -> Simulation:
    """Serve ``touches`` (checked); a hint below 0.5 says no, and one that is NaN says yes."""
    pages = len(touches.parents)
    leaves = tree.open_leaves(pages, min(capacity_pages, pages), 2)
    cache = _Classed(leaves, *np.zeros((2, pages), np.int64))
    staying = np.where(hints < 0.5, 0, np.diff(touches.offsets) - 1)
    hits, counts = np.zeros(len(hints), np.int64), np.zeros(2, np.int64)
    _replay(touches, staying, capacity_pages, cache, hits, counts)
    return Simulation(hits, int(counts[0]), int(counts[1]))


_IDS = jit.array("i8")
_CLASSED = jit.named(_Classed, tree.LEAVES, _IDS, _IDS)


@jit.kernel(TOUCHES, _IDS, jit.i8, _CLASSED, _IDS, _IDS)
def _replay(
    touches: Touches, staying: Ids, capacity_pages: int, cache: _Classed, hits: Ids, counts: Ids
) -> None:
    """``staying``: leading pages of each request that are used again, it is said."""
    leaves = cache.leaves
    used = np.int64(0)
    for request in range(len(hits)):
        begin = touches.offsets[request]
        at = tree.end_of_hits(leaves, touches, request)
        hits[request] = at - begin
        stop = max(at, begin + min(staying[request], capacity_pages))
        held = touches.ids[at - 1] if at > begin else np.int64(-1)
        if held >= 0:
            for lane in (_GOING, _STAYING):
                tree.drop(leaves, lane, held)
        gone = max(used + stop - at - capacity_pages, 0)
        for _ in range(gone):
            _evict_one(touches, cache, held)
        for touch in range(at, stop):
            tree.arrive(leaves, touches, touches.ids[touch])
        for touch in range(begin, stop):
            cache.last[touches.ids[touch]] = request
            stays = touch - begin < staying[request]
            cache.lanes[touches.ids[touch]] = _STAYING if stays else _GOING
        if stop > begin:
            _queue_leaf(touches, cache, touches.ids[stop - 1])
        used += stop - at - gone
        counts[0] += stop - at
        counts[1] += gone


@jit.kernel(TOUCHES, _CLASSED, jit.i8)
def _evict_one(touches: Touches, cache: _Classed, held: int) -> None:
    leaves = cache.leaves
    lane = _GOING if leaves.counts[_GOING] > 0 else _STAYING
    page = tree.first(leaves, lane)
    tree.drop(leaves, lane, page)
    parent = tree.depart(leaves, touches, page)
    if parent >= 0 and parent != held:
        _queue_leaf(touches, cache, parent)


@jit.kernel(TOUCHES, _CLASSED, jit.i8)
def _queue_leaf(touches: Touches, cache: _Classed, page: int) -> None:
    if cache.leaves.children[page] == 0:
        tree.put(cache.leaves, cache.lanes[page], page, cache.last[page], touches.depths[page])
