# SPDX-License-Identifier: Apache-2.0
"""FIFO, LFU, LFUDA and GDSF, with what they remember: the leaf of the least rank leaves.

FIFO's rank is when the page was inserted. LFU's is the number of its uses, then its last use.
GDSF's (Cherkasova, HPL-98-69R1) is ``H = L + uses * recompute_s`` as of its last use, pages being
of equal size; L is the greatest rank evicted so far. LFUDA (Arlitt et al., PER 27(4), 2000) is the
same at equal costs. Uses are counted while the page is present, from 0 when it is inserted; perfect
policies (Breslau et al., INFOCOM'99) go on counting where its last stay ended. GDSF on second sight
is perfect, too, as it remembers pages anyway; what it admits: lru.py.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.records import Int
from bodocache.replay.policies import leaves as tree
from bodocache.replay.policies.lru import seen_before
from bodocache.replay.policies.model import TOUCHES, Floats, Ids, Setting, Simulation, Touches

_FIFO, _LFU, _GDSF = range(3)
_STATE = np.dtype([("rank", "<f8"), ("uses", "<i8")])


class _Ranked(NamedTuple):
    leaves: tree.Leaves
    pages: NDArray[np.void]  # _STATE[D]
    cost_s: Floats  # [D]
    floor: Floats  # [1] GDSF's L


class _Rule(NamedTuple):
    code: int
    remembers: bool = False  # uses of earlier stays
    second_sight: bool = False
    unit_cost: bool = False


def _serve(rule: _Rule, touches: Touches, capacity_pages: int, setting: Setting) -> Simulation:
    pages = len(touches.parents)
    cost_s = np.ones(pages) if rule.unit_cost else setting.recompute.seconds(touches.depths)
    leaves = tree.open_leaves(pages, capacity_pages, 1)
    cache = _Ranked(leaves, np.zeros(pages, _STATE), cost_s, np.zeros(1))
    admitted = seen_before(touches) if rule.second_sight else np.diff(touches.offsets)
    hits, counts = np.zeros(len(touches.timestamps_s), np.int64), np.zeros(2, np.int64)
    _replay(rule.code, int(rule.remembers), touches, admitted, capacity_pages, cache, hits, counts)
    return Simulation(hits, int(counts[0]), int(counts[1]))


fifo = partial(_serve, _Rule(_FIFO))
lfu = partial(_serve, _Rule(_LFU))
perfect_lfu = partial(_serve, _Rule(_LFU, remembers=True))
gdsf = partial(_serve, _Rule(_GDSF))
perfect_gdsf = partial(_serve, _Rule(_GDSF, remembers=True))
lfuda = partial(_serve, _Rule(_GDSF, unit_cost=True))
perfect_lfuda = partial(_serve, _Rule(_GDSF, remembers=True, unit_cost=True))
second_sight_gdsf = partial(_serve, _Rule(_GDSF, remembers=True, second_sight=True))

_IDS = jit.array("i8")
_RANKED = jit.named(_Ranked, tree.LEAVES, jit.array(_STATE), jit.array("f8"), jit.array("f8"))


@jit.kernel(jit.i8, jit.i8, TOUCHES, _IDS, jit.i8, _RANKED, _IDS, _IDS)
def _replay(
    code: Int,
    remembers: Int,
    touches: Touches,
    admitted: Ids,
    capacity_pages: Int,
    cache: _Ranked,
    hits: Ids,
    counts: Ids,
) -> None:
    """``admitted``: leading pages of each request that may be inserted."""
    leaves = cache.leaves
    used: Int = 0
    for request in range(len(hits)):
        begin = touches.offsets[request]
        at = tree.end_of_hits(leaves, touches, request)
        stop = begin + min(admitted[request], capacity_pages)
        hits[request] = at - begin
        held = touches.ids[at - 1] if at > begin else np.int64(-1)
        if held >= 0:  # of its own pages, only the deepest can be a leaf
            tree.drop(leaves, 0, held)
        gone = max(used + stop - at - capacity_pages, 0)
        for _ in range(gone):
            _evict_one(touches, cache, held)
        for touch in range(at, stop):
            tree.arrive(leaves, touches, touches.ids[touch])
            if not remembers:
                cache.pages[touches.ids[touch]]["uses"] = 0
        for touch in range(begin, stop):
            _use(code, cache, touches.ids[touch], request, len(hits))
        if stop > begin:
            _queue_leaf(touches, cache, touches.ids[stop - 1])
        used += stop - at - gone
        counts[0] += stop - at
        counts[1] += gone


@jit.kernel(jit.i8, _RANKED, jit.i8, jit.i8, jit.i8)
def _use(code: Int, cache: _Ranked, page: Int, request: Int, requests: Int) -> None:
    state = cache.pages[page]
    state["uses"] += 1
    if code == _GDSF:
        state["rank"] = cache.floor[0] + state["uses"] * cache.cost_s[page]
    elif code == _LFU:  # uses, then last use: exact below 2^53
        state["rank"] = np.float64(state["uses"]) * requests + request
    elif state["uses"] == 1:
        state["rank"] = np.float64(request)


@jit.kernel(TOUCHES, _RANKED, jit.i8)
def _evict_one(touches: Touches, cache: _Ranked, held: Int) -> None:
    """Evict the leaf of the least rank; ``held`` is the deepest page that is being served."""
    leaves = cache.leaves
    page = tree.first(leaves, 0)
    cache.floor[0] = max(cache.floor[0], cache.pages[page]["rank"])
    parent = tree.depart(leaves, touches, page)
    if parent < 0 or parent == held:
        tree.drop(leaves, 0, page)
    else:
        tree.hand_over(leaves, 0, page, parent)
        _queue_leaf(touches, cache, parent)


@jit.kernel(TOUCHES, _RANKED, jit.i8)
def _queue_leaf(touches: Touches, cache: _Ranked, page: Int) -> None:
    if cache.leaves.children[page] == 0:
        tree.put(cache.leaves, 0, page, cache.pages[page]["rank"], touches.depths[page])
