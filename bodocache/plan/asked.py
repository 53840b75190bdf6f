# SPDX-License-Identifier: Apache-2.0
"""What a window asks of its tenants' credits, what came of it, and the memory in between."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.records import BUCKETS, DEMAND, Int, OpKind

_WRITE, _LOAD = int(OpKind.WRITE), int(OpKind.LOAD)
LANES = 3  # len(Purpose); lane = 3 * tenant + purpose

Indices = NDArray[np.int64]


class Asked(NamedTuple):
    """What a window asks for; nothing of it is written."""

    demands: NDArray[np.void]  # DEMAND[n], a read-only array
    nbytes: Indices  # [n], of the page
    order: Indices  # [n]: a permutation of the demands, earliest deadline first
    leaders: Indices  # [n]: the demand whose copy this one shares; its own index where none
    wanted: NDArray[np.bool_]  # [n]: the others are neither paid for nor answered


class Scratch(NamedTuple):
    """Memory for one window; what was paid stays in it for :func:`give_back`."""

    heads: Indices  # [n]: by leader, the first demand of its group; -1: none
    nexts: Indices  # [n]: the next demand of the group, or -1
    sizes: Indices  # [n]: by leader
    served: NDArray[np.bool_]  # [n]: by leader
    paid: Indices  # [n, 2]: bytes, I/Os
    loaned: Indices  # [n, 2]: of it
    oldest: Indices  # [lanes]: the demand that came first, or -1
    short: Indices  # [lanes]: the leader of the last group it could not pay for
    blocked: NDArray[np.bool_]  # [lanes]
    backlog: Indices  # [BUCKETS * tenants]: credits that waiting demands need
    offers: Indices  # [BUCKETS * tenants]
    pools: Indices  # [BUCKETS]: what may still be borrowed
    drawn: Indices  # [BUCKETS]
    scales: NDArray[np.float64]  # [BUCKETS]: of the rates, to the link's


class Answer(NamedTuple):
    """What came of the wanted demands."""

    granted: NDArray[np.bool_]  # [n]
    ready_s: NDArray[np.float64]  # [n]: now, or when the tenant's credits suffice; inf: never


_I, _B = jit.array("i8"), jit.array("?")
ASKED = jit.named(Asked, jit.readonly(DEMAND), _I, _I, _I, _B)  # numba converts none in a tuple
_PAIRS, _F = jit.array("i8", 2), jit.array("f8")
SCRATCH = jit.named(
    Scratch, *(_I, _I, _I, _B, _PAIRS, _PAIRS), *(_I, _I, _B), *(_I, _I, _I, _I, _F)
)
ANSWER = jit.named(Answer, _B, _F)


def scratch_for(demands: int, tenants: int) -> Scratch:
    """Scratch of :func:`grant`."""
    lanes, buckets = LANES * tenants, BUCKETS * tenants
    return Scratch(
        np.empty(demands, np.int64),
        np.empty(demands, np.int64),
        np.empty(demands, np.int64),
        np.empty(demands, np.bool_),
        np.empty((demands, 2), np.int64),
        np.empty((demands, 2), np.int64),
        np.empty(lanes, np.int64),
        np.empty(lanes, np.int64),
        np.empty(lanes, np.bool_),
        np.empty(buckets, np.int64),
        np.empty(buckets, np.int64),
        np.empty(BUCKETS, np.int64),
        np.empty(BUCKETS, np.int64),
        np.empty(BUCKETS),
    )


@jit.kernel(jit.i8)
def purpose(kind: Int) -> Int:
    """The Purpose of an OpKind."""
    if kind == _LOAD:
        return 0
    return 2 if kind == _WRITE else 1


@jit.kernel(jit.readonly(DEMAND), jit.i8)
def lane_of(demands: NDArray[np.void], i: Int) -> Int:
    """The tenant and purpose of a demand, in one number."""
    demand = demands[i]
    return LANES * np.int64(demand["tenant"]) + purpose(np.int64(demand["kind"]))


@jit.kernel(jit.readonly(DEMAND), jit.i8, jit.i8)
def bucket_of(demands: NDArray[np.void], i: Int, unit: Int) -> Int:
    """Which of its tenant's buckets a demand draws on."""
    return 2 * purpose(np.int64(demands[i]["kind"])) + unit
