# SPDX-License-Identifier: Apache-2.0
"""An indexed min-heap of rows: put, move and drop any row in O(log n), least first.

A heap is four things its caller owns: ``nodes`` (NODE[rows]), its ``lane`` of ``places``
(i4[rows, lanes], a row's places in all heaps lie together: 1 + its index in that lane's
nodes; 0: not queued, so that fresh zeroed memory is an empty heap) and its count.
The order is (key, tie, row), ascending and total: equal states pop in equal order.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.records import Int

NODE = np.dtype([("key", "<f8"), ("tie", "<i4"), ("row", "<i4")])
SHIFT = 2  # 4 children a node: their 64 bytes are one cache line; 2 children are 1.2x slower

NODES, PLACES = jit.array(NODE), jit.array("i4", 2)


@jit.kernel(NODES, PLACES, jit.i8, jit.i8, jit.i8, jit.f8, jit.i8)
def put(
    nodes: NDArray[np.void],
    places: NDArray[np.int32],
    lane: Int,
    count: Int,
    row: Int,
    key: float,
    tie: Int,
) -> Int:
    """Queue ``row`` under (key, tie), or move it there; return the new count."""
    at: Int = np.int64(places[row, lane]) - 1
    if at < 0:
        at = count
        count += 1
    nodes[at]["key"] = key
    nodes[at]["tie"] = tie
    nodes[at]["row"] = row
    _settle(nodes, places, lane, count, at)
    return count


@jit.kernel(NODES, PLACES, jit.i8, jit.i8, jit.i8)
def drop(
    nodes: NDArray[np.void], places: NDArray[np.int32], lane: Int, count: Int, row: Int
) -> Int:
    """Take ``row`` out if it is queued; return the new count."""
    at = np.int64(places[row, lane]) - 1
    if at < 0:
        return count
    count -= 1
    places[row, lane] = 0
    if at < count:
        nodes[at] = nodes[count]
        _settle(nodes, places, lane, count, at)
    return count


@jit.kernel(NODES, PLACES, jit.i8, jit.i8, jit.i8)
def _settle(
    nodes: NDArray[np.void], places: NDArray[np.int32], lane: Int, count: Int, at: Int
) -> None:
    """Move the node at ``at`` up or down to where it belongs, and note its place."""
    key, tie, row = nodes[at]["key"], nodes[at]["tie"], nodes[at]["row"]
    while at > 0:
        up = (at - 1) >> SHIFT
        if not _before(key, tie, row, nodes[up]):
            break
        nodes[at] = nodes[up]
        places[nodes[at]["row"], lane] = at + 1
        at = up
    while True:
        least = _least_child(nodes, count, at)
        if least < 0 or _before(key, tie, row, nodes[least]):
            break
        nodes[at] = nodes[least]
        places[nodes[at]["row"], lane] = at + 1
        at = least
    nodes[at]["key"] = key
    nodes[at]["tie"] = tie
    nodes[at]["row"] = row
    places[row, lane] = at + 1


@jit.kernel(NODES, jit.i8, jit.i8)
def _least_child(nodes: NDArray[np.void], count: Int, at: Int) -> Int:
    first = (at << SHIFT) + 1
    if first >= count:
        return -1
    least = first
    for child in range(first + 1, min(first + (1 << SHIFT), count)):
        if _before(nodes[child]["key"], nodes[child]["tie"], nodes[child]["row"], nodes[least]):
            least = child
    return least


@jit.kernel(jit.f8, jit.i4, jit.i4, jit.record(NODE))
def _before(key: float, tie: Int, row: Int, node: Any) -> bool:
    if key != node["key"]:
        return bool(key < node["key"])
    if tie != node["tie"]:
        return bool(tie < node["tie"])
    return bool(row < node["row"])
