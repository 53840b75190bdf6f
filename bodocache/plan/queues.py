# SPDX-License-Identifier: Apache-2.0
"""Many small min-heaps of rows in one array of nodes: put, move and drop any row, least first.

A row is in at most one heap (a *lane*) of the array, so a tier's leaves can be queued by class at
32 bytes a row, however many classes there are. Each lane is a pairing heap (Fredman, Sedgewick,
Sleator and Tarjan, Algorithmica 1, 1986): put is O(1), drop O(log n) amortised.
The caller owns ``nodes`` (NODE[rows]) and ``heads`` (i4[lanes]); zeroed memory is empty heaps.
The order is (key, tie, row), ascending and total: equal states pop in equal order.
"""

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.records import Int

# Links are 1 + a row; 0: none.
NODE = np.dtype(
    [
        ("key", "<f8"),
        ("tie", "<i4"),
        ("child", "<i4"),
        ("next", "<i4"),  # sibling
        ("before", "<i4"),  # the sibling before it, or the parent of a first child
        ("lane", "<i4"),  # 1 + the lane it is in; 0: it is not queued
    ],
    align=True,
)

Nodes = NDArray[np.void]
Heads = NDArray[np.int32]

NODES, HEADS = jit.array(NODE), jit.array("i4")


@jit.kernel(HEADS, jit.i8)
def first(heads: Heads, lane: Int) -> Int:
    """The row of the least key in ``lane``, or -1: it is empty."""
    return np.int64(heads[lane]) - 1


@jit.kernel(NODES, HEADS, jit.i8, jit.i8, jit.f8, jit.i8)
def put(nodes: Nodes, heads: Heads, lane: Int, row: Int, key: float, tie: Int) -> None:
    """Queue ``row`` in ``lane`` under (key, tie), or move it there."""
    node = nodes[row]
    if node["lane"] == lane + 1 and node["key"] == key and node["tie"] == tie:
        return
    drop(nodes, heads, row)
    node["key"], node["tie"], node["lane"] = key, tie, lane + 1
    heads[lane] = _merge(nodes, np.int64(heads[lane]), row + 1)


@jit.kernel(NODES, HEADS, jit.i8)
def drop(nodes: Nodes, heads: Heads, row: Int) -> None:
    """Take ``row`` out of the lane that it is in, if any."""
    node = nodes[row]
    lane = np.int64(node["lane"]) - 1
    if lane < 0:
        return
    below = _merge_siblings(nodes, np.int64(node["child"]))
    if np.int64(heads[lane]) == row + 1:
        heads[lane] = below
    else:
        _unlink(nodes, row + 1)
        heads[lane] = _merge(nodes, np.int64(heads[lane]), below)
    node["lane"] = node["child"] = 0


@jit.kernel(NODES, jit.i8)
def _unlink(nodes: Nodes, link: Int) -> None:
    """Take a node that is no root, with all below it, from its siblings."""
    node = nodes[link - 1]
    before, after = np.int64(node["before"]), np.int64(node["next"])
    if np.int64(nodes[before - 1]["child"]) == link:
        nodes[before - 1]["child"] = after
    else:
        nodes[before - 1]["next"] = after
    if after:
        nodes[after - 1]["before"] = before
    node["next"] = node["before"] = 0


@jit.kernel(NODES, jit.i8, jit.i8)
def _merge(nodes: Nodes, one: Int, two: Int) -> Int:
    """Make two roots one; return it. Either may be 0."""
    if one == 0 or two == 0:
        return max(one, two)
    if _is_before(nodes, two, one):
        one, two = two, one
    child = np.int64(nodes[one - 1]["child"])
    nodes[two - 1]["next"] = child
    nodes[two - 1]["before"] = one
    if child:
        nodes[child - 1]["before"] = two
    nodes[one - 1]["child"] = two
    return one


@jit.kernel(NODES, jit.i8)
def _merge_siblings(nodes: Nodes, link: Int) -> Int:
    """Make siblings one root: in pairs from the left, then those from the right."""
    pairs = np.int64(0)  # a list through "next", last pair first
    while link:
        other = np.int64(nodes[link - 1]["next"])
        after = np.int64(nodes[other - 1]["next"]) if other else np.int64(0)
        _free(nodes, link)
        if other:
            _free(nodes, other)
        pair = _merge(nodes, link, other)
        nodes[pair - 1]["next"] = pairs
        pairs, link = pair, after
    root = np.int64(0)
    while pairs:
        after = np.int64(nodes[pairs - 1]["next"])
        nodes[pairs - 1]["next"] = 0
        root, pairs = _merge(nodes, root, pairs), after
    return root


@jit.kernel(NODES, jit.i8)
def _free(nodes: Nodes, link: Int) -> None:
    nodes[link - 1]["next"] = nodes[link - 1]["before"] = 0


@jit.kernel(NODES, jit.i8, jit.i8)
def _is_before(nodes: Nodes, one: Int, two: Int) -> bool:
    left, right = nodes[one - 1], nodes[two - 1]
    if left["key"] != right["key"]:
        return bool(left["key"] < right["key"])
    if left["tie"] != right["tie"]:
        return bool(left["tie"] < right["tie"])
    return bool(one < two)
