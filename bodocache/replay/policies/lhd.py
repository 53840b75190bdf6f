# SPDX-License-Identifier: Apache-2.0
"""LHD (Beckmann, Chen, Cidon, NSDI'18), leaf-safe: the leaf of least hit density leaves.

A page's hit density is, given its age and class, the hits it will get by the time it will take:
``sum of hits(b) / sum of (events(b) * touches from here to age b)`` over the ages b it may yet
reach, where events are hits and evictions; pages are of equal size. Age is in page touches since
the last use. As in the paper, both are counted as they happen, the counts keep 0.9 of their weight
at each revision, and the least dense of 64 leaves drawn at random leaves.

Not as in the paper: ages lie in logarithmic bins, four an octave, where it has equal ones of
adaptive width; a page's class is its number of hits since it was inserted, up to 7, instead of its
last two ages; densities are revised every ``capacity`` touches, 1,024 at least, instead of a
million; there are no explorers. Until the first revision the density is (class + 1) / (age + 1).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.records import Int
from bodocache.replay.policies import leaves as tree
from bodocache.replay.policies.model import TOUCHES, Floats, Ids, Setting, Simulation, Touches

DRAWN = 64
CLASSES = 8
BINS = 160  # to an age of 2^40 touches
DECAY = 0.9
LEAST_TOUCHES = 1024  # between revisions
_SEED = 88172645463325252


class _Dense(NamedTuple):
    children: NDArray[np.int32]  # [D] as Leaves has it
    last: Ids  # [D] the touch that used it last
    uses: NDArray[np.uint8]  # [D] its class
    queue: Ids  # [capacity + 1] the leaves that may leave, in no order
    place: NDArray[np.int32]  # [D] 1 + the page's index there, 0: not there
    hit: NDArray[np.float64]  # [CLASSES, BINS] hits at that age
    gone: NDArray[np.float64]  # [CLASSES, BINS] evictions at that age
    density: NDArray[np.float64]  # [CLASSES, BINS]
    edges: Floats  # [BINS + 1] least age of each bin, in touches
    random: NDArray[np.uint64]  # [1]
    counts: Ids  # [3] as below


_QUEUED, _INSERTED, _EVICTED = range(3)


def lhd(touches: Touches, capacity_pages: int, _: Setting) -> Simulation:
    """Serve ``touches``; equal traces, equal hits."""
    pages = len(touches.parents)
    edges = bin_edges()
    classes = np.arange(1, CLASSES + 1, dtype=np.float64)
    cache = _Dense(
        np.full(pages, tree.ABSENT, np.int32),
        np.zeros(pages, np.int64),
        np.zeros(pages, np.uint8),
        np.zeros(capacity_pages + 1, np.int64),
        np.zeros(pages, np.int32),
        np.zeros((CLASSES, BINS)),
        np.zeros((CLASSES, BINS)),
        classes[:, None] / (edges[:-1] + 1.0),
        edges,
        np.array([_SEED], np.uint64),
        np.zeros(3, np.int64),
    )
    hits = np.zeros(len(touches.timestamps_s), np.int64)
    every = max(capacity_pages, LEAST_TOUCHES)
    _replay(touches, capacity_pages, every, DRAWN, cache, hits)
    return Simulation(hits, int(cache.counts[_INSERTED]), int(cache.counts[_EVICTED]))


def bin_edges() -> Floats:
    """Least age of each bin, in touches, and the end of the last one."""
    return np.array([(4.0 + b % 4) * 2.0 ** (b // 4) - 4.0 for b in range(BINS + 1)])


_IDS, _GRID = jit.array("i8"), jit.array("f8", 2)
_DENSE = jit.named(
    _Dense,
    *(jit.array("i4"), _IDS, jit.array("u1"), _IDS, jit.array("i4")),
    *(_GRID, _GRID, _GRID, jit.array("f8"), jit.array("u8"), _IDS),
)


@jit.kernel(TOUCHES, jit.i8, jit.i8, jit.i8, _DENSE, _IDS)
def _replay(
    touches: Touches, capacity_pages: Int, every: Int, drawn: Int, cache: _Dense, hits: Ids
) -> None:
    """Densities are revised ``every`` so many touches."""
    used: Int = 0
    revised: Int = 0
    for request in range(len(hits)):
        begin = touches.offsets[request]
        at, end = begin, touches.offsets[request + 1]
        while at < end and cache.children[touches.ids[at]] != tree.ABSENT:
            _hit(cache, touches.ids[at], at)
            at += 1
        stop = min(end, begin + capacity_pages)
        hits[request] = at - begin
        held = touches.ids[at - 1] if at > begin else np.int64(-1)
        if held >= 0:
            _unqueue(cache, held)
        gone = max(used + stop - at - capacity_pages, 0)
        for _ in range(gone):
            _evict_one(touches, cache, held, begin, drawn)
        for touch in range(at, stop):
            page = touches.ids[touch]
            cache.children[page] = 0
            if touches.parents[page] >= 0:
                cache.children[touches.parents[page]] += 1
            cache.last[page] = touch
            cache.uses[page] = 0
        if stop > begin and cache.children[touches.ids[stop - 1]] == 0:
            _queue(cache, touches.ids[stop - 1])
        used += stop - at - gone
        cache.counts[_INSERTED] += stop - at
        cache.counts[_EVICTED] += gone
        if end - revised >= every:
            _revise(cache)
            revised = end


@jit.kernel(jit.i8)
def _bin_of(age: Int) -> Int:
    """The bin of an age in touches: its octave, and the quarter of it, of age + 4."""
    octave: Int = 0
    rest = age + 4
    while rest >= 8:
        rest >>= 1
        octave += 1
    return min(4 * octave + rest - 4, BINS - 1)


@jit.kernel(_DENSE, jit.i8, jit.i8)
def _hit(cache: _Dense, page: Int, now: Int) -> None:
    cache.hit[cache.uses[page], _bin_of(now - cache.last[page])] += 1.0
    cache.uses[page] = min(cache.uses[page] + 1, CLASSES - 1)
    cache.last[page] = now


@jit.kernel(TOUCHES, _DENSE, jit.i8, jit.i8, jit.i8)
def _evict_one(touches: Touches, cache: _Dense, held: Int, now: Int, drawn: Int) -> None:
    """Evict the least dense of ``drawn`` leaves; of equal ones the first drawn."""
    least = np.inf
    page: Int = -1
    count = cache.counts[_QUEUED]
    for i in range(min(count, drawn)):
        at = i if count <= drawn else _random(cache, count)
        one = cache.queue[at]
        density = cache.density[cache.uses[one], _bin_of(now - cache.last[one])]
        if density < least:
            least, page = density, one
    cache.gone[cache.uses[page], _bin_of(now - cache.last[page])] += 1.0
    _unqueue(cache, page)
    cache.children[page] = tree.ABSENT
    parent = touches.parents[page]
    if parent >= 0:
        cache.children[parent] -= 1
        if cache.children[parent] == 0 and parent != held:
            _queue(cache, parent)


@jit.kernel(_DENSE, jit.i8)
def _random(cache: _Dense, below: Int) -> Int:
    """Marsaglia's xorshift64, by its upper half."""
    state = cache.random[0]
    state ^= state << np.uint64(13)
    state ^= state >> np.uint64(7)
    state ^= state << np.uint64(17)
    cache.random[0] = state
    return np.int64(((state >> np.uint64(32)) * np.uint64(below)) >> np.uint64(32))


@jit.kernel(_DENSE)
def _revise(cache: _Dense) -> None:
    """Densities by all that was counted; older counts weigh less. Never seen that old: 0."""
    for used in range(CLASSES):
        hits = events = lasting = 0.0
        for b in range(BINS - 1, -1, -1):
            hits += cache.hit[used, b]
            events += cache.hit[used, b] + cache.gone[used, b]
            lasting += events * (cache.edges[b + 1] - cache.edges[b])
            cache.density[used, b] = hits / lasting if lasting > 0.0 else 0.0
            cache.hit[used, b] *= DECAY
            cache.gone[used, b] *= DECAY


@jit.kernel(_DENSE, jit.i8)
def _queue(cache: _Dense, page: Int) -> None:
    count = cache.counts[_QUEUED]
    cache.queue[count] = page
    cache.place[page] = count + 1
    cache.counts[_QUEUED] = count + 1


@jit.kernel(_DENSE, jit.i8)
def _unqueue(cache: _Dense, page: Int) -> None:
    """Take the page out if it is there; the last leaf takes its place."""
    at = np.int64(cache.place[page]) - 1
    if at < 0:
        return
    count = cache.counts[_QUEUED] - 1
    other = cache.queue[count]
    cache.queue[at] = other
    cache.place[other] = at + 1
    cache.place[page] = 0
    cache.counts[_QUEUED] = count
