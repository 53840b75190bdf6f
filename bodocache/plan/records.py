# SPDX-License-Identifier: Apache-2.0
"""The dtypes of every record that enters or leaves the planner: the contract of this room.

Pages are :data:`bodocache.pages.PAGE`. Times are seconds on the cache's clock, sizes are bytes.
A table that a caller leaves empty switches nothing on: no requests, nothing is cut; no tenants, no
credits; no links, no finish is predicted.
"""

from enum import IntEnum, IntFlag
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache.pages import PAGE

__all__ = [
    "ABOVE",
    "BUCKETS",
    "DEMAND",
    "IO",
    "LINK",
    "OP",
    "PAGE",
    "POLICY",
    "REQUEST",
    "TENANT",
    "TIERS",
    "Fate",
    "Feature",
    "Int",
    "OpKind",
    "Plan",
    "Purpose",
    "Unit",
]

TIERS = 4  # len(Tier)
BUCKETS = 6  # of credits: bucket = 2 * Purpose + Unit
ABOVE = -2  # in PAGE.cluster: above every cluster; -1: no request passed yet
IO = 1 << 20  # credits of one I/O: one that several share can be parted exactly

Int = int | np.int64  # a row, tier or count: compiled code passes on what it read


class OpKind(IntEnum):
    """What an op does with its run of pages."""

    LOAD = 0  # to the device, for a request
    WRITE = 1  # write-through to disk
    PREFETCH = 2  # to the host, for a request that is expected
    EVICT = 3  # out of its source; no bytes move
    PREWARM = 4  # to the host of a node that nobody has asked yet
    ABORT = 5  # of a load under way: nothing more of these pages is submitted


class Purpose(IntEnum):
    """What credits are for."""

    READ = 0  # LOAD
    PREFETCH = 1  # PREFETCH and PREWARM
    WRITE = 2  # WRITE


class Unit(IntEnum):
    """What credits count."""

    NBYTES = 0
    IOS = 1  # in parts of 1 / IO


class Feature(IntFlag):
    """Stages of the planner, as bits of POLICY.features_off: what is set is switched off.

    Heat has none: with a half-life without end it is a plain count.
    """

    FANOUT = 1  # off: every request moves its own pages, in ops of its own
    CREDITS = 2  # off: nobody waits for credits
    ADMIT = 4  # off: every page is written through
    TARDINESS = 8  # off: no load is cut or dropped, no finish predicted
    OVERLAP = 16  # off: a step starts when all its layers are there
    COALESCE = 32  # off: an op is one page
    REUSE = 64  # off: heat stands for what is learned of the next use


# One page somebody wants moved. Rows of one request stand together, shallow to deep.
DEMAND = np.dtype(
    [
        ("page", "<i8"),  # row of the page table
        ("request", "<i8"),
        ("deadline_s", "<f8"),  # inf: none
        ("arrival_s", "<f8"),
        ("tenant", "<u4"),  # row of the tenants' table, where there is one
        ("node", "<u2"),  # whose tiers it is moved in
        ("kind", "u1"),  # OpKind: LOAD, WRITE, PREFETCH or PREWARM
        ("under_way", "u1"),  # 1: an op of an earlier window moves it already
    ],
    align=True,
)

# What is known of a request whose loads may be cut; one without a record is served whole or late.
REQUEST = np.dtype(
    [
        ("request", "<i8"),
        ("first", "<i8"),  # its demands: demands[first : first + count], one of kind LOAD each
        ("count", "<i8"),
        ("wait_s", "<f8"),  # until its engine is free
        ("new_compute_s", "<f8"),  # of the tokens that are computed in any case
        ("token_s", "<f8"),  # recompute of one token at position 0
        ("slope_s", "<f8"),  # what each position adds
        ("n_waiting", "<f8"),  # requests that wait at its engine behind it
        ("page_tokens", "<u4"),
        ("layers", "<u4"),  # of a load that is streamed by layer; 0: it is not
        ("cut_at", "<i8"),  # tokens at which the last window would have cut it; -1: nowhere
    ],
    align=True,
)

# One who pays for ops with credits (credits.py), and whose pages have a share of every tier
# (shares.py): the queues know it too.
TENANT = np.dtype(
    [
        ("domain", "<u4"),  # it demands pages of this domain only
        ("lend", "<f4"),  # of each cap, what others may borrow while it is unused: 0 to 1
        ("share", "<f8"),  # of each tier's capacity, in EVICT ops; all sum to at most 1
        ("refilled_s", "<f8"),  # the clock of its buckets
        ("rate", "<f8", (BUCKETS,)),  # credits/s; a weight where the link cannot give them all
        ("cap", "<i8", (BUCKETS,)),  # the most it can hold; at least one page, one I/O
        ("borrow", "<i8", (BUCKETS,)),  # the most it can owe
        ("held", "<i8", (BUCKETS,)),  # >= 0
        ("fraction", "<f8", (BUCKETS,)),  # of a credit: earned, not yet held
        ("owed", "<i8", (BUCKETS,)),  # to the others; paid back before anything is held
        ("lent", "<i8", (BUCKETS,)),  # what the others owe it
        ("earned", "<i8", (BUCKETS,)),  # since ever: sum earned = sum spent + held + wasted
        ("spent", "<i8", (BUCKETS,)),
        ("wasted", "<i8", (BUCKETS,)),  # earned while full
    ],
    align=True,
)

# A path that bytes travel on one node.
LINK = np.dtype(
    [
        ("rate", "<f8"),  # bytes/s
        ("spread", "<f8"),  # s/sqrt(byte)
        ("drift", "<f8"),  # relative error of the rate
        ("queued_nbytes", "<i8"),  # ahead of whatever is added, demands under way not counted
        ("node", "<u4"),
        ("source", "<u2"),  # Tier
        ("destination", "<u2"),  # Tier
    ],
    align=True,
)

# One planned operation on rows[first : first + count] of the plan.
OP = np.dtype(
    [
        ("kind", "<u4"),
        ("node", "<u4"),
        ("source", "<u4"),  # Tier
        ("destination", "<u4"),  # Tier
        ("stream", "<u4"),  # copy stream of the node: source * TIERS + destination
        ("order", "<u4"),  # its place in that stream
        ("count", "<u4"),  # pages
        ("cluster", "<i4"),  # row of the cluster's node; -1: of none. On the wire: that page's key
        ("first", "<i8"),
        ("request", "<i8"),  # the most urgent of those it serves
        ("nbytes", "<i8"),  # moved on the link, holes included
        ("deadline_s", "<f8"),  # the earliest of its pages'
        ("predicted_finish_s", "<f8"),  # 90 % of such ops finish sooner; inf: no link was given
        ("keep_until_s", "<f8"),  # how long the destination should keep it; inf: nobody said
        ("first_layer", "<u2"),
        ("num_layers", "<u2"),  # 0: all, page by page
        ("head_layers", "<u2"),  # N: whole before the step starts; 0: all
        ("layers_ahead", "<u2"),  # N+: copies run no further ahead; 0: no limit
    ],
    align=True,
)

# What the operator, the links and the tiers say: one record, read by every stage.
POLICY = np.dtype(
    [
        ("half_life_s", "<f8"),  # of heat
        ("min_residence_s", "<f8"),  # a page younger than this in its tier is not evicted
        ("capacity_pages", "<i8", (TIERS,)),
        (
            "churn_share",
            "<f8",
        ),  # of a tier, that may leave it every churn_s; 0: no limit
        ("churn_s", "<f8"),
        ("load_s_per_byte", "<f8", (TIERS,)),  # to the device from each tier; 0 for the device
        ("load_latency_s", "<f8", (TIERS,)),  # per op
        ("write_s_per_byte", "<f8", (TIERS,)),  # to each tier
        ("chunk_nbytes", "<i8"),  # no op is larger
        ("hole_nbytes", "<i8"),  # a hole up to this is read through
        ("credits_per_s", "<f8", (BUCKETS,)),  # of all tenants together; 0: no limit
        ("patience_s", "<f8"),  # the longest a tenant's oldest demand waits for credits; 0: no end
        ("switch_s", "<f8"),  # what cutting a load costs: a cut gains more, or is not made
        ("features_off", "<u4"),  # Feature bits
    ],
    align=True,
)


class Fate(IntEnum):
    """What a window decided about one demand."""

    PLANNED = 0  # an op moves the page
    IDLE = 1  # nothing to move: the page is there, or nowhere
    JOINED = 2  # an op of an earlier window moves it
    REFUSED = 3  # a write that is not worth its room
    DEFERRED = 4  # its tenant has no credits now
    CUT = 5  # it would be late, or the engine computes it sooner


class Plan(NamedTuple):
    """What one window decided: ops in the order they should start, and what they move, op by op.

    ``demands[answers[k] : answers[k + 1]]`` are the demands that moving ``rows[k]`` answers, at
    least one, the most urgent first; none where the op is an EVICT.
    """

    ops: NDArray[np.void]  # OP
    rows: NDArray[np.int64]  # of pages
    demands: NDArray[np.int64]  # indices into the window's demands
    answers: NDArray[np.int64]  # [len(rows) + 1]
    fates: NDArray[np.uint8]  # [number of demands]: Fate
    ready_s: NDArray[np.float64]  # [the same]: when one that is DEFERRED will have its credits
    decisions: NDArray[np.void]  # late.DECISION[requests]; cut_at is for their next REQUEST
