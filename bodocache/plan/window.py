# SPDX-License-Identifier: Apache-2.0
"""One planning round: what is demanded, as records, to ops in the order they should start.

The stages, in order: check, admit (for writes), coalesce. Nothing is planned unless every input
holds; nothing is changed but the queues' notice of pages that have come of age.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.pages import PAGE, Tier
from bodocache.plan import admit, coalesce, evict
from bodocache.plan.records import DEMAND, OP, POLICY, TIERS, Fate, Int, OpKind, Plan

Records = NDArray[np.void]

UNLIMITED = 1 << 62
_WRITE, _DISK = int(OpKind.WRITE), int(Tier.DISK)

_COMPLAINTS = (
    "demands.page: row {row}: {page} is outside the table of {rows} pages",
    "demands.kind: row {row}: {kind} is not an OpKind",
    "demands.request: row {row}: {request} is negative",
    "demands.deadline_s: row {row}: not a number",
    "demands.arrival_s: row {row}: not a finite number",
    "pages.nbytes: row {page}: 0, of a demanded page",
    "policy.half_life_s: row 0: must be a finite number > 0",
    "policy.chunk_nbytes: row 0: must be > 0",
    "policy.hole_nbytes: row 0: must be >= 0",
    "policy: row 0: a rate, latency or residence is negative or not a number",
)


class _Scratch(NamedTuple):
    coalesce: coalesce.Scratch
    wanted: NDArray[np.bool_]  # [n]
    writes: NDArray[np.int64]  # [2, n]: page rows, their demands
    densities: NDArray[np.float64]  # [n]
    admitted: NDArray[np.bool_]  # [n]
    counts: NDArray[np.int64]  # [2]: ops, rows


def plan_window(
    demands: Records,
    pages: Records,
    queues: evict.Queues,
    policy: Records,
    *,
    free_frames: int = UNLIMITED,
) -> Plan:
    """Plan ``demands`` (DEMAND[n]) over ``pages`` (PAGE[rows]).

    ``free_frames``: places on disk that cost nothing, for writes. A demanded page is missing from
    the plan where there is nothing to move (see :func:`bodocache.plan.coalesce.coalesce`), or a
    write is not admitted.

    Raises:
        ValueError: an array's dtype or shape is wrong, or a field is out of range; names both the
            field and the row.
    """
    _check_arrays(demands, pages, queues, policy)
    n = len(demands)
    scratch = _Scratch(
        coalesce.scratch_for(n),
        np.empty(n, np.bool_),
        np.empty((2, n), np.int64),
        np.empty(n),
        np.empty(n, np.bool_),
        np.empty(2, np.int64),
    )
    room = coalesce.Room(np.empty(n, OP), np.empty(n, np.int64), np.empty(n, np.int64))
    wrong = _plan(demands, pages, queues, policy, free_frames, scratch, room)
    if wrong >= 0:
        raise _complaint(wrong, demands, len(pages))
    num_ops, num_rows = scratch.counts
    planned = room.demands[:num_rows]
    fates = np.full(n, Fate.IDLE, np.uint8)
    fates[planned] = Fate.PLANNED
    answers = np.arange(num_rows + 1)
    return Plan(room.ops[:num_ops], room.rows[:num_rows], planned, answers, fates, np.zeros(0))


def _check_arrays(demands: Records, pages: Records, queues: evict.Queues, policy: Records) -> None:
    for name, array, dtype in (
        ("demands", demands, DEMAND),
        ("pages", pages, PAGE),
        ("policy", policy, POLICY),
    ):
        if array.dtype is not dtype and array.dtype != dtype:
            raise ValueError(f"{name}: expected the dtype of records.py, got {array.dtype}")
        if array.ndim != 1 or not array.flags.c_contiguous:
            raise ValueError(f"{name}: expected one contiguous dimension, got {array.shape}")
    if len(policy) != 1 or len(queues.since_s) < len(pages):
        raise ValueError(
            f"policy: expected 1 record, got {len(policy)}; queues: {len(queues.since_s)} rows for "
            f"{len(pages)} pages (evict.grown)"
        )


def _complaint(wrong: int, demands: Records, num_pages: int) -> ValueError:
    """The error of a code of :func:`_first_wrong`."""
    row, which = divmod(wrong, len(_COMPLAINTS))
    said = {name: demands[name][row] for name in DEMAND.names or ()} if len(demands) else {}
    return ValueError(_COMPLAINTS[which].format(row=row, rows=num_pages, **said))


_SCRATCH = jit.named(
    _Scratch,
    coalesce.SCRATCH,
    *(jit.array("?"), jit.array("i8", 2), jit.array("f8"), jit.array("?"), jit.array("i8")),
)
_DEMANDS = jit.readonly(DEMAND)


@jit.kernel(_DEMANDS, evict.PAGES, evict.QUEUES, evict.POLICIES, jit.i8, _SCRATCH, coalesce.ROOM)
def _plan(
    demands: Records,
    pages: Records,
    queues: evict.Queues,
    policy: Records,
    free_frames: Int,
    scratch: _Scratch,
    room: coalesce.Room,
) -> int:
    """-1, or the code of what is wrong first: which complaint + complaints * row."""
    wrong = _first_wrong(demands, pages, policy)
    if wrong >= 0:
        return wrong
    num_writes = 0
    for i in range(len(demands)):
        scratch.wanted[i] = demands[i]["kind"] != _WRITE
        if demands[i]["kind"] == _WRITE:
            scratch.writes[0, num_writes] = demands[i]["page"]
            scratch.writes[1, num_writes] = i
            num_writes += 1
    if num_writes > 0:
        writes, admitted = scratch.writes[0, :num_writes], scratch.admitted
        weights = scratch.densities
        admit.admit(pages, queues, policy, writes, _DISK, free_frames, weights, admitted)
        for i in range(num_writes):
            scratch.wanted[scratch.writes[1, i]] = admitted[i]
    coalesce.coalesce(
        demands, scratch.wanted, pages, policy, scratch.coalesce, room, scratch.counts
    )
    return -1


@jit.kernel(_DEMANDS, evict.PAGES, evict.POLICIES)
def _first_wrong(demands: Records, pages: Records, policy: Records) -> int:
    which = _wrong_in_policy(policy)
    if which >= 0:
        return which
    for i in range(len(demands)):
        which = _wrong_in_demand(demands, pages, i)
        if which >= 0:
            return which + len(_COMPLAINTS) * i
    return -1


@jit.kernel(_DEMANDS, evict.PAGES, jit.i8)
def _wrong_in_demand(demands: Records, pages: Records, i: Int) -> int:
    demand = demands[i]
    if not 0 <= demand["page"] < len(pages):
        return 0
    if demand["kind"] > _WRITE:
        return 1
    if demand["request"] < 0:
        return 2
    if np.isnan(demand["deadline_s"]):
        return 3
    if not np.isfinite(demand["arrival_s"]):
        return 4
    return 5 if pages[demand["page"]]["nbytes"] == 0 else -1


@jit.kernel(evict.POLICIES)
def _wrong_in_policy(policy: Records) -> int:
    said = policy[0]
    if not 0.0 < said["half_life_s"] < np.inf:
        return 6
    if said["chunk_nbytes"] <= 0:
        return 7
    if said["hole_nbytes"] < 0:
        return 8
    good = said["min_residence_s"] >= 0.0
    for tier in range(TIERS):
        good &= said["load_s_per_byte"][tier] >= 0.0
        good &= said["load_latency_s"][tier] >= 0.0
        good &= said["write_s_per_byte"][tier] >= 0.0
    return -1 if good else 9
