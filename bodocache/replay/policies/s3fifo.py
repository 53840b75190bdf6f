# SPDX-License-Identifier: Apache-2.0
"""S3-FIFO (Yang et al., SOSP'23, algorithm 1), leaf-safe: a small queue, a main one and ghosts.

A page enters the small queue, or the main one if it is among the ghosts. A hit counts up to 3 and
moves nothing. When the tier is full: if the small queue has a tenth of it or more, its oldest leaf
goes to the main queue if it was hit twice or more since it came (its count starts anew), else it
leaves and is a ghost; otherwise the main queue's oldest leaf leaves if its count is 0, else it goes
to that queue's end, its count one less. A queue without a leaf lets the other one decide. There are
as many ghosts as the main queue has pages at most, the oldest is forgotten. The new pages of one
request enter deepest first.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.records import Int
from bodocache.replay.policies import leaves as tree
from bodocache.replay.policies.model import TOUCHES, Ids, Setting, Simulation, Touches

_SMALL, _MAIN, _GHOSTS = range(3)  # lanes
SMALL_SHARE = 0.1
MOST_USES = 3
USES_TO_STAY = 2


class _Queues(NamedTuple):
    leaves: tree.Leaves
    order: Ids  # [D] when the page entered its queue
    uses: NDArray[np.uint8]  # [D]
    where: NDArray[np.uint8]  # [D] _SMALL or _MAIN, of a page that is present
    clock: Ids  # [1]
    sizes: Ids  # [2] pages of the small and of the main queue
    counts: Ids  # [2] pages inserted, evicted


def s3_fifo(touches: Touches, capacity_pages: int, _: Setting) -> Simulation:
    """Serve ``touches``."""
    pages = len(touches.parents)
    cache = _Queues(
        tree.open_leaves(pages, capacity_pages, 3),
        np.zeros(pages, np.int64),
        np.zeros(pages, np.uint8),
        np.zeros(pages, np.uint8),
        np.zeros(1, np.int64),
        np.zeros(2, np.int64),
        np.zeros(2, np.int64),
    )
    hits = np.zeros(len(touches.timestamps_s), np.int64)
    _replay(touches, capacity_pages, max(1, int(SMALL_SHARE * capacity_pages)), cache, hits)
    return Simulation(hits, int(cache.counts[0]), int(cache.counts[1]))


_IDS, _BYTES = jit.array("i8"), jit.array("u1")
_QUEUES = jit.named(_Queues, tree.LEAVES, _IDS, _BYTES, _BYTES, _IDS, _IDS, _IDS)


@jit.kernel(TOUCHES, jit.i8, jit.i8, _QUEUES, _IDS)
def _replay(
    touches: Touches, capacity_pages: Int, small_pages: Int, cache: _Queues, hits: Ids
) -> None:
    leaves, where = cache.leaves, cache.where
    for request in range(len(hits)):
        begin = touches.offsets[request]
        at = tree.end_of_hits(leaves, touches, request)
        stop = min(touches.offsets[request + 1], begin + capacity_pages)
        hits[request] = at - begin
        for touch in range(begin, at):
            page = touches.ids[touch]
            cache.uses[page] = min(cache.uses[page] + 1, MOST_USES)
        held = touches.ids[at - 1] if at > begin else np.int64(-1)
        if held >= 0:
            tree.drop(leaves, where[held], held)
        for touch in range(at, stop):
            if cache.sizes[_SMALL] + cache.sizes[_MAIN] == capacity_pages:
                _evict_one(touches, capacity_pages - small_pages, cache, held, small_pages)
            _insert(touches, cache, touches.ids[touch])
        cache.clock[0] += 1
        for touch in range(at, stop):
            cache.order[touches.ids[touch]] = cache.clock[0]
        cache.counts[0] += stop - at
        if stop > begin:
            _queue_leaf(touches, cache, touches.ids[stop - 1])


@jit.kernel(TOUCHES, _QUEUES, jit.i8)
def _insert(touches: Touches, cache: _Queues, page: Int) -> None:
    is_ghost = cache.leaves.places[page, _GHOSTS] > 0
    tree.drop(cache.leaves, _GHOSTS, page)
    tree.arrive(cache.leaves, touches, page)
    cache.where[page] = _MAIN if is_ghost else _SMALL
    cache.sizes[cache.where[page]] += 1
    cache.uses[page] = 0


@jit.kernel(TOUCHES, jit.i8, _QUEUES, jit.i8, jit.i8)
def _evict_one(
    touches: Touches, most_ghosts: Int, cache: _Queues, held: Int, small_pages: Int
) -> None:
    leaves, sizes = cache.leaves, cache.sizes
    while True:
        from_small = sizes[_SMALL] >= small_pages and leaves.counts[_SMALL] > 0
        lane = _SMALL if from_small or leaves.counts[_MAIN] == 0 else _MAIN
        page = tree.first(leaves, lane)
        uses = np.int64(cache.uses[page])
        if uses < (USES_TO_STAY if lane == _SMALL else 1):
            break
        tree.drop(leaves, lane, page)
        sizes[lane] -= 1
        sizes[_MAIN] += 1
        cache.where[page] = _MAIN
        cache.uses[page] = 0 if lane == _SMALL else uses - 1
        cache.clock[0] += 1
        cache.order[page] = cache.clock[0]
        _queue_leaf(touches, cache, page)
    tree.drop(leaves, lane, page)
    sizes[lane] -= 1
    cache.counts[1] += 1
    parent = tree.depart(leaves, touches, page)
    if parent >= 0 and parent != held:
        _queue_leaf(touches, cache, parent)
    if lane == _SMALL and most_ghosts > 0:
        if leaves.counts[_GHOSTS] == most_ghosts:
            tree.drop(leaves, _GHOSTS, tree.first(leaves, _GHOSTS))
        cache.clock[0] += 1
        tree.put(leaves, _GHOSTS, page, cache.clock[0], touches.depths[page])


@jit.kernel(TOUCHES, _QUEUES, jit.i8)
def _queue_leaf(touches: Touches, cache: _Queues, page: Int) -> None:
    if cache.leaves.children[page] == 0:
        lane = np.int64(cache.where[page])
        tree.put(cache.leaves, lane, page, cache.order[page], touches.depths[page])
