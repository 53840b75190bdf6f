# SPDX-License-Identifier: Apache-2.0
"""Hit ratios of eviction policies over a trace, compiled: pages of equal size, one tier.

A request hits its leading pages that are present. Then all its pages are inserted, shallow to deep;
its own pages are not evicted while it is served. When full, a *leaf* (no page after it is present)
is evicted by the policy; if there is none, insertion stops. A page's count starts anew when it is
inserted. Requests are served in trace order. Ties go deepest first, then to the lower page id.
"""

from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.pages import PAGE, Tier
from bodocache.plan import evict, heap, optimum
from bodocache.plan.records import POLICY, Int

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


HALF_LIFE_S = 120.0  # best of 10 to 3,600 for 3,000 pages of the conversation trace


class Policy(StrEnum):
    """Which leaf goes: the one of least ..."""

    LRU = "lru"  # last use (a request uses deepest first: an ancestor is the more recent)
    LFU = "lfu"  # uses since it was inserted, then last use
    GDSF = "gdsf"  # H = L + uses * recompute_s at its last use; L = greatest H evicted so far
    HEAT = "heat"  # value density: plan/evict.py itself
    MIN = "min"  # the optimum: plan/optimum.py; may bypass


class Recompute(NamedTuple):
    """Seconds to compute a page: ``page_tokens * (token_s + slope_s * position)`` (DESIGN.md).

    The defaults are an 8B model's at 10,000 tokens/s, half of that at position 32,768, in the pages
    of 512 tokens of Mooncake's traces.
    """

    page_tokens: int = 512
    token_s: float = 1e-4
    slope_s: float = 1e-4 / 32768

    def seconds(self, depths: Ids) -> Floats:
        """Seconds of each page, by depth."""
        position = depths.astype(np.float64) * self.page_tokens
        return self.page_tokens * (self.token_s + self.slope_s * position)


class Touches(NamedTuple):
    """A trace's columns (``replay.trace.Trace`` holds them): R requests, T touches, D pages."""

    ids: Ids  # [T] page of each touch: a request's own together, shallow to deep
    offsets: Ids  # [R + 1] request r touches ids[offsets[r]:offsets[r + 1]]
    parents: Ids  # [D] the page before it, -1 for a first page
    depths: Ids  # [D] pages before it
    timestamps_s: Floats  # [R]


class Simulation(NamedTuple):
    """What a policy did with a trace."""

    hits: Ids  # leading pages present, per request
    inserted: int  # pages, MIN's without those it let pass
    evicted: int


def simulate(
    policy: Policy,
    touches: Touches,
    capacity_pages: int,
    *,
    recompute: Recompute | None = None,
    half_life_s: float = HALF_LIFE_S,
) -> Simulation:
    """Serve a trace's requests from ``capacity_pages``.

    ``recompute`` weighs pages for gdsf and heat, ``half_life_s`` is heat's.

    Raises:
        ValueError: the columns do not fit together, or a parameter is out of range.
    """
    touches = _checked(touches)
    if capacity_pages < 0 or not half_life_s > 0:
        raise ValueError(f"capacity_pages={capacity_pages}, half_life_s={half_life_s}: too small")
    distinct = len(touches.parents)
    if policy is Policy.MIN:
        found = optimum.min_hits(touches.ids, touches.offsets, distinct, capacity_pages)
        return Simulation(found.hits, found.inserted, found.evicted)
    capacity_pages = min(capacity_pages, distinct)
    cost_s = (recompute or Recompute()).seconds(touches.depths)
    hits, counts = np.zeros(len(touches.timestamps_s), np.int64), np.zeros(4, np.int64)
    if policy is Policy.HEAT:
        pages = _pages_of(touches, cost_s)
        victims = np.empty(capacity_pages, np.int64)
        queues, weights = evict.open_queues(distinct), np.zeros(1, POLICY)
        weights["half_life_s"] = half_life_s
        cache = _Tier(pages, queues, weights, victims, counts)
        _replay_heat(touches, capacity_pages, cache, hits)
    else:
        ranked = _Ranked(
            np.zeros(distinct, _STATE),
            np.zeros(capacity_pages + 1, heap.NODE),
            np.zeros((distinct, 1), np.int32),
            cost_s,
            np.zeros(1),
            counts,
        )
        _replay_ranked(_CODES[policy], touches, capacity_pages, ranked, hits)
    return Simulation(hits, int(counts[_INSERTED]), int(counts[_EVICTED]))


def _checked(touches: Touches) -> Touches:
    ids, offsets, parents, depths = (_read_only(column, np.int64) for column in touches[:4])
    timestamps_s = _read_only(touches.timestamps_s, np.float64)
    touches = Touches(ids, offsets, parents, depths, timestamps_s)
    lengths = np.diff(offsets)
    if len(lengths) == 0 or offsets[0] != 0 or offsets[-1] != len(ids) or lengths.min() < 0:
        raise ValueError(f"offsets: must rise from 0 to {len(ids)}, the number of touches")
    if len(timestamps_s) != len(lengths) or len(depths) != len(parents):
        raise ValueError("timestamps_s: one a request; depths: one a page, as parents")
    if len(ids) and not (ids.min() >= 0 and ids.max() < len(parents)):
        raise ValueError(f"ids: must be in [0, {len(parents)})")
    wrong = _first_broken_chain(touches)
    if wrong >= 0:
        raise ValueError(f"ids: request {wrong} does not follow parents and depths")
    return touches


def _read_only(column: NDArray[Any], dtype: type) -> NDArray[Any]:
    view: NDArray[Any] = np.ascontiguousarray(column, dtype).view()
    view.flags.writeable = False  # compiled code takes a tuple of such only
    return view


def _pages_of(touches: Touches, cost_s: Floats) -> NDArray[np.void]:
    pages = np.zeros(len(cost_s), PAGE)
    pages["parent"], pages["depth"] = touches.parents, touches.depths
    pages["recompute_s"] = cost_s
    pages["nbytes"] = 1  # all are equal
    return pages


class _Ranked(NamedTuple):
    """lru, lfu and gdsf: a heap of the leaves, and nothing for the pages inside."""

    pages: NDArray[np.void]  # _STATE[D]
    nodes: NDArray[np.void]
    places: NDArray[np.int32]
    cost_s: Floats  # [D]
    floor: Floats  # [1] greatest rank evicted so far
    counts: Ids  # [4] as below


class _Tier(NamedTuple):
    """heat: one tier of the planner."""

    pages: NDArray[np.void]  # PAGE[D]
    queues: evict.Queues
    policy: NDArray[np.void]
    victims: Ids
    counts: Ids  # [4] as below


_STATE = np.dtype(
    [
        ("rank", "<f8"),  # at its last use; the least goes
        ("last", "<i4"),  # 1 + the request that used it last
        ("children", "<i4"),  # present
        ("uses", "<i4"),  # since it was inserted
        ("present", "<i4"),
    ]
)
_USED, _QUEUED, _INSERTED, _EVICTED = range(4)
_CODES = {policy: code for code, policy in enumerate(Policy)}
_LFU, _GDSF = _CODES[Policy.LFU], _CODES[Policy.GDSF]
_HOST = int(Tier.HOST)

_READ = jit.readonly("i8")
_TOUCHES = jit.named(Touches, *[_READ] * 4, jit.readonly("f8"))
_RANKED = jit.named(
    _Ranked,
    *(jit.array(_STATE), heap.NODES, heap.PLACES),
    *(jit.array("f8"), jit.array("f8"), jit.array("i8")),
)
_TIER = jit.named(
    _Tier, evict.PAGES, evict.QUEUES, evict.POLICIES, jit.array("i8"), jit.array("i8")
)


@jit.kernel(_TOUCHES)
def _first_broken_chain(touches: Touches) -> int:
    """The first request that does not go from a first page to its child, and so on; or -1."""
    for request in range(len(touches.timestamps_s)):
        begin = touches.offsets[request]
        before = np.int64(-1)
        for touch in range(begin, touches.offsets[request + 1]):
            page = touches.ids[touch]
            if touches.parents[page] != before or touches.depths[page] != touch - begin:
                return request
            before = page
    return -1


@jit.kernel(jit.i8, _TOUCHES, jit.i8, _RANKED, jit.array("i8"))
def _replay_ranked(
    code: Int, touches: Touches, capacity_pages: Int, cache: _Ranked, hits: Ids
) -> None:
    for request in range(len(hits)):
        begin, end = touches.offsets[request], touches.offsets[request + 1]
        at = begin
        while at < end and cache.pages[touches.ids[at]]["present"]:
            cache.pages[touches.ids[at]]["last"] = request + 1
            at += 1
        hits[request] = at - begin
        if at > begin:  # of its own pages, only the deepest can be a leaf
            _unqueue(cache, touches.ids[at - 1])
        while at < end:
            if cache.counts[_USED] == capacity_pages and not _evict_leaf(touches, cache, request):
                break
            _insert(touches, cache, touches.ids[at], request)
            at += 1
        for touch in range(begin, at):
            _rank(code, cache, touches.ids[touch], request, len(hits))
        if at > begin:
            _queue_if_leaf(touches, cache, touches.ids[at - 1])


@jit.kernel(jit.i8, _RANKED, jit.i8, jit.i8, jit.i8)
def _rank(code: Int, cache: _Ranked, row: Int, request: Int, requests: Int) -> None:
    """Count a use and rank the page by it; all of one request are used at once."""
    page = cache.pages[row]
    page["uses"] += 1
    if code == _GDSF:
        page["rank"] = cache.floor[0] + page["uses"] * cache.cost_s[row]
    elif code == _LFU:  # uses, then last use: exact below 2^53
        page["rank"] = np.float64(page["uses"]) * requests + request
    else:
        page["rank"] = np.float64(request)


@jit.kernel(_TOUCHES, _RANKED, jit.i8, jit.i8)
def _insert(touches: Touches, cache: _Ranked, row: Int, request: Int) -> None:
    cache.pages[row]["present"] = 1
    cache.pages[row]["last"] = request + 1
    cache.counts[_USED] += 1
    cache.counts[_INSERTED] += 1
    if touches.parents[row] >= 0:
        cache.pages[touches.parents[row]]["children"] += 1


@jit.kernel(_TOUCHES, _RANKED, jit.i8)
def _evict_leaf(touches: Touches, cache: _Ranked, request: Int) -> bool:
    """Evict the least of the leaves, none of which is the request's own; False: there is none."""
    if cache.counts[_QUEUED] == 0:
        return False
    victim = np.int64(cache.nodes[0]["row"])
    cache.floor[0] = max(cache.floor[0], cache.nodes[0]["key"])
    _unqueue(cache, victim)
    cache.pages[victim]["present"] = 0
    cache.pages[victim]["uses"] = 0
    cache.counts[_USED] -= 1
    cache.counts[_EVICTED] += 1
    parent = touches.parents[victim]
    if parent >= 0:
        cache.pages[parent]["children"] -= 1
        if cache.pages[parent]["last"] != request + 1:
            _queue_if_leaf(touches, cache, parent)
    return True


@jit.kernel(_TOUCHES, _RANKED, jit.i8)
def _queue_if_leaf(touches: Touches, cache: _Ranked, row: Int) -> None:
    if cache.pages[row]["children"] == 0:
        rank, count = cache.pages[row]["rank"], cache.counts[_QUEUED]
        tie = -touches.depths[row]
        cache.counts[_QUEUED] = heap.put(cache.nodes, cache.places, 0, count, row, rank, tie)


@jit.kernel(_RANKED, jit.i8)
def _unqueue(cache: _Ranked, row: Int) -> None:
    count = cache.counts[_QUEUED]
    cache.counts[_QUEUED] = heap.drop(cache.nodes, cache.places, 0, count, row)


@jit.kernel(_TOUCHES, jit.i8, _TIER, jit.array("i8"))
def _replay_heat(touches: Touches, capacity_pages: Int, cache: _Tier, hits: Ids) -> None:
    ids = touches.ids
    pages, queues, policy, victims, counts = cache
    for request in range(len(hits)):
        now_s = touches.timestamps_s[request]
        begin, end = touches.offsets[request], touches.offsets[request + 1]
        at = begin
        while at < end and pages[ids[at]]["tiers"] != 0:
            evict.touch_one(pages, queues, policy, ids[at], now_s)
            at += 1
        hits[request] = at - begin
        if at > begin:  # and so its ancestors are held
            evict.pin_one(pages, queues, policy, ids[at - 1])
        needed = min(counts[_USED] + end - at - capacity_pages, counts[_USED])
        if needed > 0:
            gone = evict.coldest(pages, queues, policy, _HOST, needed, now_s, victims)
            counts[_USED] -= gone
            counts[_EVICTED] += gone
        last = min(end, at + capacity_pages - counts[_USED])
        for touch in range(at, last):
            pages[ids[touch]]["heat"] = 0.0  # its record was freed when it was evicted
            evict.touch_one(pages, queues, policy, ids[touch], now_s)
        for touch in range(last - 1, at - 1, -1):  # deepest first: no parent is queued in between
            evict.arrive_one(pages, queues, policy, ids[touch], _HOST, now_s)
        counts[_USED] += last - at
        counts[_INSERTED] += last - at
        if at > begin:
            evict.unpin_one(pages, queues, policy, ids[at - 1])
