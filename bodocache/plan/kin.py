# SPDX-License-Identifier: Apache-2.0
"""Which pages lie right behind which: the present children of each page, in a list.

The caller owns ``kin`` (KIN[rows]). Links are rows + 1, so fresh zeroed memory is nobody's child,
and never go by ``PAGE.parent``, which may have changed since. All is O(1).
"""

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.records import Int

KIN = np.dtype([("parent", "<i4"), ("child", "<i4"), ("before", "<i4"), ("next", "<i4")])
KINS = jit.array(KIN)

Kin = NDArray[np.void]


@jit.kernel(KINS, jit.i8, jit.i8)
def link(kin: Kin, row: Int, parent: Int) -> None:
    """``row`` is a child of ``parent`` now, and of nobody else."""
    unlink(kin, row)
    after = np.int64(kin[parent]["child"])
    if after > 0:
        kin[after - 1]["before"] = row + 1
    kin[parent]["child"] = row + 1
    kin[row]["parent"] = parent + 1
    kin[row]["next"] = after


@jit.kernel(KINS, jit.i8)
def unlink(kin: Kin, row: Int) -> None:
    """``row`` is nobody's child; it keeps its own."""
    one = kin[row]
    parent, before, after = np.int64(one["parent"]), np.int64(one["before"]), np.int64(one["next"])
    if parent == 0:
        return
    if before > 0:
        kin[before - 1]["next"] = after
    else:
        kin[parent - 1]["child"] = after
    if after > 0:
        kin[after - 1]["before"] = before
    one["parent"] = one["before"] = one["next"] = 0


@jit.kernel(KINS, jit.i8)
def part(kin: Kin, parent: Int) -> None:
    """Its children are nobody's."""
    while kin[parent]["child"] > 0:
        unlink(kin, np.int64(kin[parent]["child"]) - 1)


@jit.kernel(KINS, jit.i8, jit.i8)
def following(kin: Kin, row: Int, top: Int) -> Int:
    """The row after ``row`` of those behind ``top``, each before those behind it; -1: no more."""
    child = np.int64(kin[row]["child"])
    if child > 0:
        return child - 1
    while row != top:
        after = np.int64(kin[row]["next"])
        if after > 0:
            return after - 1
        row = np.int64(kin[row]["parent"]) - 1
    return np.int64(-1)
