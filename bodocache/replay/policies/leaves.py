# SPDX-License-Identifier: Apache-2.0
"""The present pages of a tier, and heaps of those of them that may leave: its leaves.

A policy has one heap (a *lane*) for each of its queues, keyed by the order in which that queue is
left; ties go deepest first, then to the lower page id. Lanes may hold other sets, too, such as
pages that have left and are remembered. Nothing is checked here: model.py has checked the trace.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan import heap
from bodocache.plan.records import Int
from bodocache.replay.policies.model import TOUCHES, Touches

ABSENT = -1


class Leaves(NamedTuple):
    """D pages, L lanes."""

    children: NDArray[np.int32]  # [D] of the page, present; ABSENT: the page is not
    nodes: NDArray[np.void]  # heap.NODE[L, as many as a lane may hold]
    places: NDArray[np.int32]  # [D, L]
    counts: NDArray[np.int64]  # [L]


LEAVES = jit.named(
    Leaves, jit.array("i4"), jit.array(heap.NODE, 2), jit.array("i4", 2), jit.array("i8")
)


def open_leaves(pages: int, capacity_pages: int, lanes: int) -> Leaves:
    """An empty tier; a lane holds up to ``capacity_pages + 1`` pages."""
    return Leaves(
        np.full(pages, ABSENT, np.int32),
        np.zeros((lanes, capacity_pages + 1), heap.NODE),
        np.zeros((pages, lanes), np.int32),
        np.zeros(lanes, np.int64),
    )


@jit.kernel(LEAVES, TOUCHES, jit.i8)
def end_of_hits(leaves: Leaves, touches: Touches, request: Int) -> Int:
    """The first touch of the request that does not hit, or the end of its touches."""
    at: Int = touches.offsets[request]
    while at < touches.offsets[request + 1] and leaves.children[touches.ids[at]] != ABSENT:
        at += 1
    return at


@jit.kernel(LEAVES, jit.i8, jit.i8, jit.f8, jit.i8)
def put(leaves: Leaves, lane: Int, page: Int, key: float | Int, depth: Int) -> None:
    """Queue the page in ``lane`` under ``key``, or move it there."""
    count = leaves.counts[lane]
    nodes = leaves.nodes[lane]
    leaves.counts[lane] = heap.put(nodes, leaves.places, lane, count, page, np.float64(key), -depth)


@jit.kernel(LEAVES, jit.i8, jit.i8)
def drop(leaves: Leaves, lane: Int, page: Int) -> None:
    """Take the page out of ``lane`` if it is there."""
    if leaves.places[page, lane] > 0:
        count = leaves.counts[lane]
        leaves.counts[lane] = heap.drop(leaves.nodes[lane], leaves.places, lane, count, page)


@jit.kernel(LEAVES, jit.i8)
def first(leaves: Leaves, lane: Int) -> Int:
    """The page of the least key of ``lane``, which is not empty."""
    return np.int64(leaves.nodes[lane, 0]["row"])


@jit.kernel(LEAVES, TOUCHES, jit.i8)
def arrive(leaves: Leaves, touches: Touches, page: Int) -> None:
    """The page is present from now on. It is in no lane yet."""
    leaves.children[page] = 0
    parent = touches.parents[page]
    if parent >= 0:
        leaves.children[parent] += 1


@jit.kernel(LEAVES, TOUCHES, jit.i8)
def depart(leaves: Leaves, touches: Touches, page: Int) -> Int:
    """The page, a leaf, is present no more; return its parent if that is now a leaf, else -1.

    The caller takes the page from its lane, before or after.
    """
    leaves.children[page] = ABSENT
    parent = touches.parents[page]
    if parent < 0:
        return -1
    leaves.children[parent] -= 1
    return parent if leaves.children[parent] == 0 else -1


@jit.kernel(LEAVES, jit.i8, jit.i8, jit.i8)
def hand_over(leaves: Leaves, lane: Int, page: Int, other: Int) -> None:
    """``other`` takes the place of ``page`` in ``lane``; put() it right after.

    A parent that follows its last child out needs one step down the heap, not two ways through it.
    """
    leaves.places[other, lane] = leaves.places[page, lane]
    leaves.places[page, lane] = 0
