# SPDX-License-Identifier: Apache-2.0
"""The most hits any eviction policy can get: Belady's MIN with bypass, exactly.

For pages of equal size and worth. A request hits its leading pages that are present; afterwards the
cache keeps, of those pages and its own, the ones used again soonest, deepest leaving first on ties
(DESIGN.md, "The optimum"). As next_use(parent) <= next_use(child), what is kept is closed under
prefixes. A page that is not used again is never kept.

So no page needs a record: those whose next use is request m are a run of m's chain, from which
pages leave at the deep end only. One count a request says all: at m, it is the hits of m.

All take dense page ids (``ids`` i8[touches], a request's own at ``offsets[r]:offsets[r + 1]``,
shallow to deep, each after the same page every time) and ``resident`` (bool[distinct]): pages
present at the start, each with its ancestors.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.records import Int

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]

NEVER = np.iinfo(np.int64).max


class Optimum(NamedTuple):
    """What MIN did."""

    hits: Ids  # pages, per request
    inserted: int
    evicted: int


class _State(NamedTuple):
    next_use: Ids  # [touches] the request that uses that page next
    first_use: Ids  # [distinct] the first request that uses it
    held: Ids  # [requests] pages present whose next use is that request
    fresh: Ids  # [requests] of them, those the request being served brought
    heap: Ids  # [requests] that hold pages, the latest first
    in_heap: Ids  # [requests]
    counts: Ids  # [4] as below


_USED, _QUEUED, _INSERTED, _EVICTED = range(4)


def min_hits(
    ids: Ids, offsets: Ids, distinct: int, capacity_pages: int, resident: Flags | None = None
) -> Optimum:
    """Hits of MIN with room for ``capacity_pages``; residents beyond it leave before the start."""
    requests = len(offsets) - 1
    present = no_pages(distinct) if resident is None else resident
    held, fresh, heap, in_heap = np.zeros((4, requests), np.int64)
    uses = np.empty(len(ids), np.int64), np.full(distinct, NEVER)
    state = _State(*uses, held, fresh, heap, in_heap, np.zeros(4, np.int64))
    hits = np.zeros(requests, np.int64)
    _min_hits(ids, offsets, present, capacity_pages, state, hits)
    return Optimum(hits, int(state.counts[_INSERTED]), int(state.counts[_EVICTED]))


def infinite_hits(ids: Ids, offsets: Ids, distinct: int, resident: Flags | None = None) -> Ids:
    """Hits per request where nothing is ever evicted."""
    seen = no_pages(distinct) if resident is None else resident.copy()
    hits = np.zeros(len(offsets) - 1, np.int64)
    _infinite_hits(ids, offsets, seen, hits)
    return hits


def no_pages(distinct: int) -> Flags:
    """Flags of an empty cache."""
    return np.zeros(distinct, np.bool_)


_IDS = jit.readonly("i8")
_MUTABLE = jit.array("i8")
_STATE = jit.named(_State, *[_MUTABLE] * 7)


@jit.kernel(_IDS, _IDS, jit.readonly("?"), jit.i8, _STATE, _MUTABLE)
def _min_hits(
    ids: Ids, offsets: Ids, resident: Flags, capacity_pages: Int, state: _State, hits: Ids
) -> None:
    _link_uses(ids, offsets, state)
    for page in range(len(resident)):
        if resident[page] and state.first_use[page] != NEVER:
            _hold(state, state.first_use[page])
        elif resident[page]:
            state.counts[_EVICTED] += 1
    _trim(state, capacity_pages)
    for request in range(len(hits)):
        begin, end = offsets[request], offsets[request + 1]
        hits[request] = state.held[request]
        state.counts[_USED] -= state.held[request]
        state.held[request] = 0
        for touch in range(begin, end):
            use = state.next_use[touch]
            new = touch - begin >= hits[request]
            if use != NEVER:
                _hold(state, use)
                state.fresh[use] += new
                state.counts[_INSERTED] += new
            elif not new:
                state.counts[_EVICTED] += 1
        _trim(state, capacity_pages)
        for touch in range(begin, end):
            if state.next_use[touch] != NEVER:
                state.fresh[state.next_use[touch]] = 0


@jit.kernel(_IDS, _IDS, _STATE)
def _link_uses(ids: Ids, offsets: Ids, state: _State) -> None:
    """Note the request that uses each touched page next, and each page first."""
    for request in range(len(offsets) - 2, -1, -1):
        for touch in range(offsets[request], offsets[request + 1]):
            state.next_use[touch] = state.first_use[ids[touch]]
            state.first_use[ids[touch]] = request


@jit.kernel(_STATE, jit.i8)
def _trim(state: _State, capacity_pages: Int) -> None:
    """Let go of pages used last, deepest first, until the rest fit."""
    while state.counts[_USED] > capacity_pages:
        use = state.heap[0]
        gone = min(state.held[use], state.counts[_USED] - capacity_pages)
        bypassed = min(gone, state.fresh[use])  # a run's new pages are its deepest
        state.held[use] -= gone
        state.fresh[use] -= bypassed
        state.counts[_USED] -= gone
        state.counts[_INSERTED] -= bypassed
        state.counts[_EVICTED] += gone - bypassed
        if state.held[use] == 0:
            _pop(state)


@jit.kernel(_STATE, jit.i8)
def _hold(state: _State, use: Int) -> None:
    """One more page whose next use is ``use``; requests already served stay in the heap, empty."""
    state.counts[_USED] += 1
    state.held[use] += 1
    if state.in_heap[use]:
        return
    state.in_heap[use] = 1
    heap, at = state.heap, state.counts[_QUEUED]
    state.counts[_QUEUED] += 1
    while at > 0 and heap[(at - 1) >> 1] < use:
        heap[at] = heap[(at - 1) >> 1]
        at = (at - 1) >> 1
    heap[at] = use


@jit.kernel(_STATE)
def _pop(state: _State) -> None:
    heap = state.heap
    state.in_heap[heap[0]] = 0
    state.counts[_QUEUED] -= 1
    count = state.counts[_QUEUED]
    last, at = heap[count], 0
    while 2 * at + 1 < count:
        child = 2 * at + 1
        if child + 1 < count and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= last:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = last


@jit.kernel(_IDS, _IDS, jit.array("?"), _MUTABLE)
def _infinite_hits(ids: Ids, offsets: Ids, seen: Flags, hits: Ids) -> None:
    for request in range(len(offsets) - 1):
        first, last = offsets[request], offsets[request + 1]
        while first + hits[request] < last and seen[ids[first + hits[request]]]:
            hits[request] += 1
        for touch in range(first, last):
            seen[ids[touch]] = True
