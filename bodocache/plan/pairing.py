# SPDX-License-Identifier: Apache-2.0
"""Pairing heaps of rows (Fredman et al., Algorithmica 1, 1986): many heaps, three links a row.

A row is in one heap at most, so that 256 heaps of any sizes take 28 bytes a row, where arrays would
take 256 times the rows. The caller owns ``nodes`` (NODE[rows]) and ``roots`` (i4[lanes]); fresh
zeroed memory is empty heaps, as links are rows + 1. Putting is O(1), dropping any row O(log n)
amortised. The order is (key, tie, row), ascending and total.
"""

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.records import Int

NODE = np.dtype(
    [
        ("key", "<f8"),
        ("tie", "<i4"),
        ("lane", "<i4"),  # 1 + the heap it is in; 0: in none
        ("child", "<i4"),
        ("next", "<i4"),
        ("before", "<i4"),  # its left sibling, or its parent where it is the first child
    ],
    align=True,
)

NODES, ROOTS = jit.array(NODE), jit.array("i4")

Nodes = NDArray[np.void]
Roots = NDArray[np.int32]


@jit.kernel(NODES, jit.i8, jit.i8)
def _is_before(nodes: Nodes, one: Int, other: Int) -> bool:
    first, second = nodes[one - 1], nodes[other - 1]
    if first["key"] != second["key"]:
        return bool(first["key"] < second["key"])
    if first["tie"] != second["tie"]:
        return bool(first["tie"] < second["tie"])
    return bool(one < other)


@jit.kernel(NODES, jit.i8, jit.i8)
def _meld(nodes: Nodes, one: Int, other: Int) -> Int:
    """Make the later of two roots the first child of the earlier, which is returned."""
    if one == 0 or other == 0:
        return one + other
    if _is_before(nodes, other, one):
        one, other = other, one
    first = np.int64(nodes[one - 1]["child"])
    nodes[other - 1]["next"] = first
    nodes[other - 1]["before"] = one
    if first > 0:
        nodes[first - 1]["before"] = other
    nodes[one - 1]["child"] = other
    return one


@jit.kernel(NODES, jit.i8)
def _meld_siblings(nodes: Nodes, first: Int) -> Int:
    """One heap of ``first`` and its right siblings: in pairs from the left, then from the right."""
    pairs: Int = 0
    while first > 0:
        second = np.int64(nodes[first - 1]["next"])
        rest = np.int64(nodes[second - 1]["next"]) if second > 0 else np.int64(0)
        pair = _meld(nodes, first, second)
        nodes[pair - 1]["next"] = pairs
        pairs, first = pair, rest
    root: Int = 0
    while pairs > 0:
        rest = np.int64(nodes[pairs - 1]["next"])
        root = _meld(nodes, root, pairs)
        pairs = rest
    if root > 0:
        nodes[root - 1]["next"] = 0
        nodes[root - 1]["before"] = 0
    return root


@jit.kernel(NODES, ROOTS, jit.i8, jit.i8, jit.f8, jit.i8)
def put(nodes: Nodes, roots: Roots, lane: Int, row: Int, key: float, tie: Int) -> None:
    """Queue ``row``, which is in no heap, in ``lane`` under (key, tie)."""
    node = nodes[row]
    node["key"] = key
    node["tie"] = tie
    node["lane"] = lane + 1
    node["child"] = 0
    node["next"] = 0
    node["before"] = 0
    root = _meld(nodes, np.int64(roots[lane]), row + 1)
    nodes[root - 1]["next"] = 0
    roots[lane] = root


@jit.kernel(NODES, ROOTS, jit.i8)
def drop(nodes: Nodes, roots: Roots, row: Int) -> None:
    """Take ``row`` out of the heap it is in, if any."""
    node = nodes[row]
    lane = np.int64(node["lane"]) - 1
    if lane < 0:
        return
    below = _meld_siblings(nodes, np.int64(node["child"]))
    before, after = np.int64(node["before"]), np.int64(node["next"])
    node["lane"] = 0
    if before == 0:
        roots[lane] = below
        return
    if nodes[before - 1]["child"] == row + 1:
        nodes[before - 1]["child"] = after
    else:
        nodes[before - 1]["next"] = after
    if after > 0:
        nodes[after - 1]["before"] = before
    roots[lane] = _meld(nodes, np.int64(roots[lane]), below)


@jit.kernel(ROOTS, jit.i8)
def first(roots: Roots, lane: Int) -> Int:
    """The row of the least (key, tie, row) of ``lane``, or -1."""
    return np.int64(roots[lane]) - 1
