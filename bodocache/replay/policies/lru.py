# SPDX-License-Identifier: Apache-2.0
"""LRU, and LRU that admits a page on its second sight: no heap, and every capacity in one pass.

The leaf of the oldest last use leaves, deepest first on ties: a request uses its deepest page
first. Pages last used by one request are a *run* of its chain, [shallow, deep). Whoever uses a page
uses the pages before it, so the deep end of the oldest run that is not empty is a leaf, and the
victim. All is as if pages lay on one stack, the last used on top, each request's with the
shallowest on top: a tier of C pages holds the upper C (Mattson et al., IBM Systems Journal 9(2),
1970), so a larger one holds all that a smaller one does.

Second sight (vLLM's store_threshold = 2, HiCache's write-through-selective): a page is inserted
only if an earlier request touched it. Touches are remembered for ever.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.optimum import infinite_hits
from bodocache.plan.records import Int
from bodocache.replay.policies.model import TOUCHES, Ids, Setting, Simulation, Touches


class _Runs(NamedTuple):
    """Requests count from 1 here: run 0 is no request's."""

    last: NDArray[np.int32]  # [D] the run of the page; 0: not seen
    shallow: NDArray[np.int32]  # [R + 1] depth of its shallowest page
    deep: NDArray[np.int32]  # [R + 1] 1 + the depth of its deepest present page


def lru(touches: Touches, capacity_pages: int, _: Setting) -> Simulation:
    """Serve ``touches``."""
    return _serve(touches, capacity_pages, np.diff(touches.offsets))


def second_sight(touches: Touches, capacity_pages: int, _: Setting) -> Simulation:
    """Serve ``touches``, admitting pages that were seen before."""
    return _serve(touches, capacity_pages, seen_before(touches))


def lru_curve(touches: Touches) -> Ids:
    """Hits at every capacity: element c is those of c pages, c = 0 .. D."""
    return _curve(touches, np.diff(touches.offsets))


def second_sight_curve(touches: Touches) -> Ids:
    """As :func:`lru_curve`, admitting pages that were seen before."""
    return _curve(touches, seen_before(touches))


def seen_before(touches: Touches) -> Ids:
    """Leading pages of each request that an earlier one touched: what nobody evicted would hit."""
    return infinite_hits(touches.ids, touches.offsets, len(touches.parents))


def _serve(touches: Touches, capacity_pages: int, admitted: Ids) -> Simulation:
    hits, counts = np.zeros(len(touches.timestamps_s), np.int64), np.zeros(2, np.int64)
    _replay(touches, admitted, capacity_pages, _open(touches), hits, counts)
    return Simulation(hits, int(counts[0]), int(counts[1]))


def _curve(touches: Touches, admitted: Ids) -> Ids:
    at_place = np.zeros(len(touches.parents) + 1, np.int64)
    sums = np.zeros(len(touches.timestamps_s) + 2, np.int64)
    _count_places(touches, admitted, _open(touches), sums, at_place)
    return np.cumsum(at_place)


def _open(touches: Touches) -> _Runs:
    shallow, deep = np.zeros((2, len(touches.timestamps_s) + 1), np.int32)
    return _Runs(np.zeros(len(touches.parents), np.int32), shallow, deep)


_RUNS = jit.named(_Runs, *[jit.array("i4")] * 3)
_IDS = jit.array("i8")


@jit.kernel(TOUCHES, _IDS, jit.i8, _RUNS, _IDS, _IDS)
def _replay(
    touches: Touches, admitted: Ids, capacity_pages: Int, runs: _Runs, hits: Ids, counts: Ids
) -> None:
    """``admitted``: leading pages of each request that may be inserted."""
    last, shallow, deep = runs
    used: Int = 0
    inserted: Int = 0
    oldest: Int = 1
    for request in range(len(hits)):
        begin, end = touches.offsets[request], touches.offsets[request + 1]
        depth = 0
        while begin + depth < end:
            page = touches.ids[begin + depth]
            run = last[page]
            if depth >= deep[run]:
                break
            shallow[run] = depth + 1
            last[page] = request + 1
            depth += 1
        hits[request] = depth
        stop = min(admitted[request], capacity_pages)
        for touch in range(begin + depth, begin + stop):
            last[touches.ids[touch]] = request + 1
        deep[request + 1] = stop
        inserted += stop - depth
        used += stop - depth
        while used > capacity_pages:
            gone = min(used - capacity_pages, np.int64(deep[oldest] - shallow[oldest]))
            deep[oldest] -= gone
            used -= gone
            if used > capacity_pages:
                oldest += 1
    counts[0] = inserted
    counts[1] = inserted - used


@jit.kernel(TOUCHES, _IDS, _RUNS, _IDS, _IDS)
def _count_places(touches: Touches, admitted: Ids, runs: _Runs, sums: Ids, at_place: Ids) -> None:
    """Count touches by the capacity from which on they hit: their place on the stack, from 1.

    ``sums`` is a Fenwick tree of the lengths of the runs. Pages of the same request lie above, as
    do all younger runs.
    """
    last, shallow = runs.last, runs.shallow
    total: Int = 0
    for request in range(len(admitted)):
        begin, end = touches.offsets[request], touches.offsets[request + 1]
        depth: Int = 0
        while begin + depth < end and last[touches.ids[begin + depth]] != 0:
            run = np.int64(last[touches.ids[begin + depth]])
            above = total - _sum_up_to(sums, run)  # without this request's: they are taken out
            before = depth
            while begin + depth < end and last[touches.ids[begin + depth]] == run:
                last[touches.ids[begin + depth]] = request + 1
                depth += 1
                at_place[above + depth] += 1
            shallow[run] = depth
            _add(sums, run, before - depth)
            total -= depth - before
        for touch in range(begin + depth, begin + admitted[request]):
            last[touches.ids[touch]] = request + 1
        _add(sums, request + 1, admitted[request])
        total += admitted[request]


@jit.kernel(_IDS, jit.i8, jit.i8)
def _add(sums: Ids, at: Int, change: Int) -> None:
    while at < len(sums):
        sums[at] += change
        at += at & -at


@jit.kernel(_IDS, jit.i8)
def _sum_up_to(sums: Ids, at: Int) -> Int:
    total: Int = 0
    while at > 0:
        total += sums[at]
        at -= at & -at
    return total
