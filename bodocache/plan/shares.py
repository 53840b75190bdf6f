# SPDX-License-Identifier: Apache-2.0
"""Shares: how much of a tier a tenant may take, and from whom.

A tenant may always use room that is free and replace pages of its own. Pages of others it may evict
only while it is below its share of the tier, and only of those above theirs. All shares together
are at most the tier, so a tenant below its share always finds as much as it lacks; and one that
floods the cache takes nothing from those within theirs.
"""

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.credits import TENANTS, Tenants
from bodocache.plan.records import Int

_NBYTES = jit.readonly("i8")


@jit.kernel(TENANTS, _NBYTES, jit.i8, jit.i8)
def excess_nbytes(
    tenants: Tenants, used_nbytes: NDArray[np.int64], capacity_nbytes: Int, row: Int
) -> Int:
    """What ``row`` uses of the tier above its share; below 0: what it lacks of it."""
    return np.int64(used_nbytes[row] - np.int64(tenants[row]["share"] * capacity_nbytes))


@jit.kernel(TENANTS, _NBYTES, jit.i8, jit.i8, jit.i8)
def may_evict(
    tenants: Tenants, used_nbytes: NDArray[np.int64], capacity_nbytes: Int, taker: Int, owner: Int
) -> bool:
    """Whether a page of ``owner`` may leave the tier for one of ``taker``."""
    if taker == owner:
        return True
    below = excess_nbytes(tenants, used_nbytes, capacity_nbytes, taker) < 0
    return bool(below and excess_nbytes(tenants, used_nbytes, capacity_nbytes, owner) > 0)


@jit.kernel(TENANTS, _NBYTES, jit.i8, jit.i8)
def takable_nbytes(
    tenants: Tenants, used_nbytes: NDArray[np.int64], capacity_nbytes: Int, taker: Int
) -> Int:
    """Bytes of the tier that new pages of ``taker`` may take in all, its own replaced among them.

    free + own + min(what it lacks of its share once those are used, what others have above theirs).
    """
    free, others = np.int64(capacity_nbytes), np.int64(0)
    for row in range(len(tenants)):
        free -= used_nbytes[row]
        if row != taker:
            excess = excess_nbytes(tenants, used_nbytes, capacity_nbytes, row)
            others += max(np.int64(0), excess)
    lacks = -excess_nbytes(tenants, used_nbytes, capacity_nbytes, taker) - free
    return np.int64(used_nbytes[taker] + free + max(np.int64(0), min(lacks, others)))
