# SPDX-License-Identifier: Apache-2.0
"""The dtypes of every record that enters or leaves the planner: the contract of this room.

Pages are :data:`bodocache.pages.PAGE`. Times are seconds on the cache's clock, sizes are bytes.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache.pages import PAGE

__all__ = ["DEMAND", "OP", "PAGE", "POLICY", "TIERS", "Int", "OpKind", "Plan"]

TIERS = 4  # len(Tier)

Int = int | np.int64  # a row, tier or count: compiled code passes on what it read

# One page somebody wants moved. Rows of one request stand together, shallow to deep.
DEMAND = np.dtype(
    [
        ("page", "<i8"),  # row of the page table
        ("request", "<i8"),
        ("tenant", "<u4"),
        ("kind", "<u4"),  # OpKind: LOAD or WRITE
        ("deadline_s", "<f8"),  # inf: none
        ("arrival_s", "<f8"),
    ],
    align=True,
)


class OpKind(IntEnum):
    """What an op does with its run of pages."""

    LOAD = 0  # to the device, for a request
    WRITE = 1  # write-through to a slower tier


# One planned operation on rows[first : first + count] of the plan.
OP = np.dtype(
    [
        ("kind", "<u4"),
        ("source", "<u4"),  # Tier
        ("destination", "<u4"),  # Tier
        ("count", "<u4"),  # pages
        ("first", "<i8"),
        ("request", "<i8"),
        ("nbytes", "<i8"),  # moved on the link, holes included
        ("deadline_s", "<f8"),  # the earliest of its pages'
    ],
    align=True,
)

# What the operator, the links and the tiers say: one record, read by every stage.
POLICY = np.dtype(
    [
        ("half_life_s", "<f8"),  # of heat
        ("min_residence_s", "<f8"),  # a page younger than this in its tier is not evicted
        ("load_s_per_byte", "<f8", (TIERS,)),  # to the device from each tier; 0 for the device
        ("load_latency_s", "<f8", (TIERS,)),  # per op
        ("write_s_per_byte", "<f8", (TIERS,)),  # to each tier
        ("chunk_nbytes", "<i8"),  # no op is larger
        ("hole_nbytes", "<i8"),  # a hole up to this is read through
    ],
    align=True,
)


class Plan(NamedTuple):
    """What one window decided: ops in the order they should start, and what they move, op by op."""

    ops: NDArray[np.void]  # OP
    rows: NDArray[np.int64]  # of pages
    demands: NDArray[np.int64]  # index of the demand that each row is moved for
