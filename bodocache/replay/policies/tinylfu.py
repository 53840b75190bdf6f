# SPDX-License-Identifier: Apache-2.0
"""W-TinyLFU (Einziger, Friedman, Manes, ACM TOS 13(4), 2017), leaf-safe, as Caffeine has it.

New pages enter a window of 1 % of the tier; the rest is the main part, a segmented LRU: probation,
and up to 80 % protected, whither a hit brings a page of probation. Every touch, hit or miss, counts
up to 15, and all counts halve every 10 touches a page of capacity; Caffeine's sketch of 4-bit
counters, without its collisions. Until a page has to leave for the first time, the pages above the
window's share go to probation at the end of a request, least recent first. Later, if the window has
its share, its least recent leaf is the candidate, the main part's (probation's first) the victim:
the one counted less leaves (the candidate if they are equal), and a candidate that stays joins
probation. Where one has no leaf the other leaves: as the pages being served stay, the window grows
as large as requests are. Pages above the protected share go back to probation, least recent first,
and are recent there.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.records import Int
from bodocache.replay.policies import leaves as tree
from bodocache.replay.policies.model import TOUCHES, Ids, Setting, Simulation, Touches

_WINDOW, _PROBATION, _PROTECTED = range(3)  # lanes, of leaves
_ALL_PROTECTED, _ALL_WINDOW = 3, 4  # lanes of all pages; the second until one has left
WINDOW_SHARE, PROTECTED_SHARE = 0.01, 0.8
MOST_COUNTED = 15
TOUCHES_TO_HALVE = 10  # a page of capacity


class _Segments(NamedTuple):
    leaves: tree.Leaves
    where: NDArray[np.uint8]  # [D] the segment of a page that is present
    last: NDArray[np.int32]  # [D] the request that used it last, or moved it to probation
    counted: NDArray[np.uint8]  # [D] touches, as of its
    epoch: NDArray[np.int32]  # [D] times that all had been halved
    sizes: Ids  # [3] pages in each segment
    most: Ids  # [3] their shares; probation has none
    counts: Ids  # [2] pages inserted, evicted


def w_tinylfu(touches: Touches, capacity_pages: int, _: Setting) -> Simulation:
    """Serve ``touches``."""
    pages = len(touches.parents)
    window = max(1, int(WINDOW_SHARE * capacity_pages))
    main = max(0, capacity_pages - window)
    cache = _Segments(
        tree.open_leaves(pages, capacity_pages, 5),
        np.zeros(pages, np.uint8),
        np.zeros(pages, np.int32),
        np.zeros(pages, np.uint8),
        np.zeros(pages, np.int32),
        np.zeros(3, np.int64),
        np.array([window, 0, int(PROTECTED_SHARE * main)]),
        np.zeros(2, np.int64),
    )
    hits = np.zeros(len(touches.timestamps_s), np.int64)
    _replay(touches, capacity_pages, cache, hits)
    return Simulation(hits, int(cache.counts[0]), int(cache.counts[1]))


_IDS, _BYTES, _WORDS = jit.array("i8"), jit.array("u1"), jit.array("i4")
_SEGMENTS = jit.named(_Segments, tree.LEAVES, _BYTES, _WORDS, _BYTES, _WORDS, _IDS, _IDS, _IDS)


@jit.kernel(TOUCHES, jit.i8, _SEGMENTS, _IDS)
def _replay(touches: Touches, capacity_pages: Int, cache: _Segments, hits: Ids) -> None:
    leaves, where = cache.leaves, cache.where
    used: Int = 0
    for request in range(len(hits)):
        begin, end = touches.offsets[request], touches.offsets[request + 1]
        at = tree.end_of_hits(leaves, touches, request)
        stop = min(end, begin + capacity_pages)
        hits[request] = at - begin
        for touch in range(begin, end):
            _count(cache, touches.ids[touch], touch // max(TOUCHES_TO_HALVE * capacity_pages, 1))
        held = touches.ids[at - 1] if at > begin else np.int64(-1)
        if held >= 0:
            tree.drop(leaves, where[held], held)
        for touch in range(begin, at):
            _use(touches, cache, touches.ids[touch], request)
        _keep_the_share(touches, cache, held, request)
        epoch = (end - 1) // max(TOUCHES_TO_HALVE * capacity_pages, 1)
        for touch in range(at, stop):
            if used == capacity_pages:
                _evict_one(touches, cache, held, epoch)
            else:
                used += 1
            _insert(touches, cache, touches.ids[touch], request)
        cache.counts[0] += stop - at
        if stop > begin:
            _queue_leaf(touches, cache, touches.ids[stop - 1])
        while cache.counts[1] == 0 and cache.sizes[_WINDOW] > cache.most[_WINDOW]:
            _promote(touches, cache, tree.first(leaves, _ALL_WINDOW))


@jit.kernel(TOUCHES, _SEGMENTS, jit.i8, jit.i8)
def _insert(touches: Touches, cache: _Segments, page: Int, request: Int) -> None:
    tree.arrive(cache.leaves, touches, page)
    cache.where[page] = _WINDOW
    cache.last[page] = request
    cache.sizes[_WINDOW] += 1
    if cache.counts[1] == 0:
        tree.put(cache.leaves, _ALL_WINDOW, page, request, touches.depths[page])


@jit.kernel(_SEGMENTS, jit.i8, jit.i8)
def _count(cache: _Segments, page: Int, epoch: Int) -> None:
    cache.counted[page] = min(_frequency(cache, page, epoch) + 1, MOST_COUNTED)
    cache.epoch[page] = epoch


@jit.kernel(_SEGMENTS, jit.i8, jit.i8)
def _frequency(cache: _Segments, page: Int, epoch: Int) -> Int:
    halved = epoch - np.int64(cache.epoch[page])
    return np.int64(cache.counted[page]) >> halved if halved < 8 else np.int64(0)


@jit.kernel(TOUCHES, _SEGMENTS, jit.i8, jit.i8)
def _use(touches: Touches, cache: _Segments, page: Int, request: Int) -> None:
    cache.last[page] = request
    if cache.where[page] == _PROBATION:
        cache.where[page] = _PROTECTED
        cache.sizes[_PROBATION] -= 1
        cache.sizes[_PROTECTED] += 1
    if cache.where[page] == _PROTECTED:
        tree.put(cache.leaves, _ALL_PROTECTED, page, request, touches.depths[page])
    elif cache.counts[1] == 0:
        tree.put(cache.leaves, _ALL_WINDOW, page, request, touches.depths[page])


@jit.kernel(TOUCHES, _SEGMENTS, jit.i8, jit.i8)
def _keep_the_share(touches: Touches, cache: _Segments, held: Int, request: Int) -> None:
    """Send what protected has above its share back to probation."""
    while cache.sizes[_PROTECTED] > cache.most[_PROTECTED]:
        page = tree.first(cache.leaves, _ALL_PROTECTED)
        tree.drop(cache.leaves, _ALL_PROTECTED, page)
        tree.drop(cache.leaves, _PROTECTED, page)
        cache.sizes[_PROTECTED] -= 1
        cache.sizes[_PROBATION] += 1
        cache.where[page] = _PROBATION
        cache.last[page] = request
        if page != held:
            _queue_leaf(touches, cache, page)


@jit.kernel(TOUCHES, _SEGMENTS, jit.i8, jit.i8)
def _evict_one(touches: Touches, cache: _Segments, held: Int, epoch: Int) -> None:
    leaves, sizes = cache.leaves, cache.sizes
    lane = _PROBATION if leaves.counts[_PROBATION] > 0 else _PROTECTED
    has_victim = leaves.counts[lane] > 0
    has_candidate = leaves.counts[_WINDOW] > 0 and sizes[_WINDOW] >= cache.most[_WINDOW]
    page = tree.first(leaves, lane if has_victim else _WINDOW)
    if has_candidate and has_victim:
        candidate = tree.first(leaves, _WINDOW)
        if _frequency(cache, candidate, epoch) > _frequency(cache, page, epoch):
            _promote(touches, cache, candidate)
        else:
            page = candidate
    segment = cache.where[page]
    tree.drop(leaves, segment, page)
    tree.drop(leaves, _ALL_PROTECTED, page)
    sizes[segment] -= 1
    cache.counts[1] += 1
    parent = tree.depart(leaves, touches, page)
    if parent >= 0 and parent != held:
        _queue_leaf(touches, cache, parent)


@jit.kernel(TOUCHES, _SEGMENTS, jit.i8)
def _promote(touches: Touches, cache: _Segments, page: Int) -> None:
    """Let the page, of the window, join probation."""
    tree.drop(cache.leaves, _ALL_WINDOW, page)
    cache.sizes[_WINDOW] -= 1
    cache.sizes[_PROBATION] += 1
    cache.where[page] = _PROBATION
    if cache.leaves.places[page, _WINDOW] > 0:
        tree.drop(cache.leaves, _WINDOW, page)
        _queue_leaf(touches, cache, page)


@jit.kernel(TOUCHES, _SEGMENTS, jit.i8)
def _queue_leaf(touches: Touches, cache: _Segments, page: Int) -> None:
    if cache.leaves.children[page] == 0:
        lane = np.int64(cache.where[page])
        tree.put(cache.leaves, lane, page, cache.last[page], touches.depths[page])
