# SPDX-License-Identifier: Apache-2.0
"""Heat: what plan/evict.py does with one tier, on dense columns; a test compares them bit for bit.

A page's heat is its uses, each halving its weight every ``half_life_s`` (plan/heat.py), its density
heat times recompute_s (plan/value.py). The greatest density in a page's subtree is its key; the
least key leaves. The victims of one request are chosen together, before its pages are inserted. A
page of the planner is 128 bytes; here are no pins, ages and other tiers, so 24 do.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan import heat as decay
from bodocache.plan.records import Int
from bodocache.plan.value import SAVED_FLOOR_S
from bodocache.replay.policies import leaves as tree
from bodocache.replay.policies.model import TOUCHES, Ids, Setting, Simulation, Touches

_STATE = np.dtype([("stamp_s", "<f8"), ("log_cost", "<f8"), ("heat", "<f4")], align=True)


class _Warm(NamedTuple):
    leaves: tree.Leaves
    pages: NDArray[np.void]  # _STATE[D]
    raised: Ids  # [D] parents queued by a child's key in the round of evictions under way


def heat(touches: Touches, capacity_pages: int, setting: Setting) -> Simulation:
    """Serve ``touches``."""
    pages = len(touches.parents)
    cache = _Warm(
        tree.open_leaves(pages, capacity_pages, 1),
        np.zeros(pages, _STATE),
        np.empty(capacity_pages, np.int64),
    )
    costs_s = setting.recompute.seconds(touches.depths).astype(np.float32)  # as PAGE has it
    hits, counts = np.zeros(len(touches.timestamps_s), np.int64), np.zeros(2, np.int64)
    _replay(touches, costs_s, setting.half_life_s, capacity_pages, cache, hits, counts)
    return Simulation(hits, int(counts[0]), int(counts[1]))


_IDS = jit.array("i8")
_WARM = jit.named(_Warm, tree.LEAVES, jit.array(_STATE), _IDS)


@jit.kernel(TOUCHES, jit.array("f4"), jit.f8, jit.i8, _WARM, _IDS, _IDS)
def _replay(
    touches: Touches,
    costs_s: NDArray[np.float32],
    half_life_s: float,
    capacity_pages: Int,
    cache: _Warm,
    hits: Ids,
    counts: Ids,
) -> None:
    leaves, pages = cache.leaves, cache.pages
    for page in range(len(costs_s)):
        pages[page]["log_cost"] = np.log2(max(np.float64(costs_s[page]), SAVED_FLOOR_S))
    used: Int = 0
    for request in range(len(hits)):
        now_s = touches.timestamps_s[request]
        begin, end = touches.offsets[request], touches.offsets[request + 1]
        at = begin
        while at < end and leaves.children[touches.ids[at]] != tree.ABSENT:
            _touch(touches, cache, touches.ids[at], now_s, half_life_s)
            at += 1
        stop = min(end, begin + capacity_pages)
        hits[request] = at - begin
        held = touches.ids[at - 1] if at > begin else np.int64(-1)
        if held >= 0:
            tree.drop(leaves, 0, held)
        gone = min(max(used + end - at - capacity_pages, 0), used - (at - begin))
        _evict(touches, cache, gone, held, half_life_s)
        for touch in range(at, stop):
            tree.arrive(leaves, touches, touches.ids[touch])
            pages[touches.ids[touch]]["heat"] = 1.0
            pages[touches.ids[touch]]["stamp_s"] = now_s
        if stop > begin:
            page = touches.ids[stop - 1]
            if leaves.children[page] == 0:
                tree.put(leaves, 0, page, _key(cache, page, half_life_s), touches.depths[page])
        used += stop - at - gone
        counts[0] += stop - at
        counts[1] += gone


@jit.kernel(TOUCHES, _WARM, jit.i8, jit.f8, jit.f8)
def _touch(touches: Touches, cache: _Warm, page: Int, now_s: float, half_life_s: float) -> None:
    """Count a use. No page is colder than the one behind it, which rounding could bring about."""
    pages = cache.pages
    state = pages[page]
    before = decay.decayed(np.float64(state["heat"]), state["stamp_s"], now_s, half_life_s)
    state["heat"] = before + 1.0
    state["stamp_s"] = now_s
    parent = touches.parents[page]  # was touched just now, as all before it
    while parent >= 0 and pages[page]["heat"] > pages[parent]["heat"]:
        pages[parent]["heat"] = pages[page]["heat"]
        page, parent = parent, touches.parents[parent]


@jit.kernel(_WARM, jit.i8, jit.f8)
def _key(cache: _Warm, page: Int, half_life_s: float) -> float:
    state = cache.pages[page]
    warmth = decay.score(np.float64(state["heat"]), state["stamp_s"], half_life_s)
    return float(warmth + state["log_cost"])


@jit.kernel(TOUCHES, _WARM, jit.i8, jit.i8, jit.f8)
def _evict(touches: Touches, cache: _Warm, count: Int, held: Int, half_life_s: float) -> None:
    """Evict ``count`` pages, least key first; a parent keeps its child's key, if greater."""
    leaves, raised = cache.leaves, 0
    floor = -np.inf
    for _ in range(count):
        page = tree.first(leaves, 0)
        floor = max(floor, leaves.nodes[0, 0]["key"])
        parent = tree.depart(leaves, touches, page)
        if parent < 0 or parent == held:
            tree.drop(leaves, 0, page)
            continue
        key = _key(cache, parent, half_life_s)
        if key < floor:
            cache.raised[raised] = parent
            raised += 1
        tree.hand_over(leaves, 0, page, parent)
        tree.put(leaves, 0, parent, max(key, floor), touches.depths[parent])
    for i in range(raised):  # those that stay go back to their own density
        page = cache.raised[i]
        if leaves.places[page, 0] > 0:
            tree.put(leaves, 0, page, _key(cache, page, half_life_s), touches.depths[page])
