# SPDX-License-Identifier: Apache-2.0
"""SIEVE (Zhang et al., NSDI'24), leaf-safe: a hand goes from the oldest page to the newest.

Pages lie in the order of insertion, those of one request deepest first; a hit marks the page and
moves nothing. The hand passes over pages that are not leaves as if they were not there, clears the
mark of a marked leaf, and evicts the first leaf without one. From the newest it goes to the oldest.

Leaves before and behind the hand lie in two lanes, which change roles when the hand wraps: a step
is O(log n), and no page that is not a leaf is ever looked at.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.records import Int
from bodocache.replay.policies import leaves as tree
from bodocache.replay.policies.model import TOUCHES, Ids, Setting, Simulation, Touches


class _Sieve(NamedTuple):
    leaves: tree.Leaves  # lane hand[2] lies before the hand, the other one behind
    inserted: NDArray[np.int32]  # [D] the request that inserted the page
    marked: NDArray[np.uint8]  # [D]
    hand: Ids  # [3] inserted and depth of the page it points to, and the lane before it


_INSERTED, _DEPTH, _LANE = range(3)


def sieve(touches: Touches, capacity_pages: int, _: Setting) -> Simulation:
    """Serve ``touches``."""
    pages = len(touches.parents)
    cache = _Sieve(
        tree.open_leaves(pages, capacity_pages, 2),
        np.zeros(pages, np.int32),
        np.zeros(pages, np.uint8),
        np.array([-1, 0, 0]),
    )
    hits, counts = np.zeros(len(touches.timestamps_s), np.int64), np.zeros(2, np.int64)
    _replay(touches, capacity_pages, cache, hits, counts)
    return Simulation(hits, int(counts[0]), int(counts[1]))


_IDS = jit.array("i8")
_SIEVE = jit.named(_Sieve, tree.LEAVES, jit.array("i4"), jit.array("u1"), _IDS)


@jit.kernel(TOUCHES, jit.i8, _SIEVE, _IDS, _IDS)
def _replay(touches: Touches, capacity_pages: Int, cache: _Sieve, hits: Ids, counts: Ids) -> None:
    leaves = cache.leaves
    used: Int = 0
    for request in range(len(hits)):
        begin = touches.offsets[request]
        at = tree.end_of_hits(leaves, touches, request)
        stop = min(touches.offsets[request + 1], begin + capacity_pages)
        hits[request] = at - begin
        for touch in range(begin, at):
            cache.marked[touches.ids[touch]] = 1
        held = touches.ids[at - 1] if at > begin else np.int64(-1)
        if held >= 0:
            tree.drop(leaves, 0, held)
            tree.drop(leaves, 1, held)
        gone = max(used + stop - at - capacity_pages, 0)
        for _ in range(gone):
            _evict_one(touches, cache, held)
        for touch in range(at, stop):
            page = touches.ids[touch]
            tree.arrive(leaves, touches, page)
            cache.inserted[page] = request
            cache.marked[page] = 0
        if stop > begin:
            _queue_leaf(touches, cache, touches.ids[stop - 1])
        used += stop - at - gone
        counts[0] += stop - at
        counts[1] += gone


@jit.kernel(TOUCHES, _SIEVE, jit.i8)
def _evict_one(touches: Touches, cache: _Sieve, held: Int) -> None:
    leaves, hand = cache.leaves, cache.hand
    while True:
        if leaves.counts[hand[_LANE]] == 0:
            hand[_LANE] = 1 - hand[_LANE]
            hand[_INSERTED] = -1
        lane = hand[_LANE]
        page = tree.first(leaves, lane)
        tree.drop(leaves, lane, page)
        hand[_INSERTED], hand[_DEPTH] = cache.inserted[page], touches.depths[page]
        if cache.marked[page] == 0:
            break
        cache.marked[page] = 0
        tree.put(leaves, 1 - lane, page, cache.inserted[page], touches.depths[page])
    parent = tree.depart(leaves, touches, page)
    if parent >= 0 and parent != held:
        _queue_leaf(touches, cache, parent)


@jit.kernel(TOUCHES, _SIEVE, jit.i8)
def _queue_leaf(touches: Touches, cache: _Sieve, page: Int) -> None:
    if cache.leaves.children[page] != 0:
        return
    inserted, depth = np.int64(cache.inserted[page]), touches.depths[page]
    hand = cache.hand
    is_behind = inserted < hand[_INSERTED] or (
        inserted == hand[_INSERTED] and depth >= hand[_DEPTH]
    )
    lane = 1 - hand[_LANE] if is_behind else hand[_LANE]
    tree.put(cache.leaves, lane, page, inserted, depth)
