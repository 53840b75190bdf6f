# SPDX-License-Identifier: Apache-2.0
"""Compiled bookkeeping over page records, for the calls that stand between a load and its bytes.

Each does in 2 us what a handful of NumPy calls does in 10 to 25. ``rows`` are rows of ``pages``
(PAGE records); outputs are arrays of the caller's, as long as ``rows``.
"""

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.io.backend import TRANSFER
from bodocache.pages import KEY_NBYTES, NOWHERE, PAGE, Reason, Tier
from bodocache.plan import evict, fanout, reuse

Records = NDArray[np.void]
Rows = NDArray[np.int64]

_DEVICE, _HOST, _DISK = int(Tier.DEVICE), int(Tier.HOST), int(Tier.DISK)
_EVICTED, _NOT_ADMITTED, _IO_ERROR = (
    int(reason) for reason in (Reason.EVICTED, Reason.NOT_ADMITTED, Reason.IO_ERROR)
)
_PAGES, _ROWS, _BATCH = jit.array(PAGE), jit.array("i8"), jit.array(TRANSFER)


@jit.compiled(_PAGES, _ROWS)
def count_present(pages: Records, rows: Rows) -> int:
    """How many leading ``rows`` (or NOWHERE) lie in some tier."""
    for i in range(len(rows)):
        if rows[i] < 0 or pages[rows[i]]["tiers"] == 0:
            return i
    return len(rows)


@jit.compiled(_PAGES, _ROWS, _ROWS, _ROWS, _ROWS)
def device_targets(pages: Records, rows: Rows, slots: Rows, wanted: Rows, sources: Rows) -> int:
    """Device slot of each row, or NOWHERE; positions of those without, and their fastest tier.

    Returns how many are ``wanted``.
    """
    count = 0
    for i in range(len(rows)):
        page = pages[rows[i]]
        slots[i] = page["device_slot"]
        if slots[i] >= 0:
            continue
        tiers, tier = np.int64(page["tiers"]), 0
        while tiers != 0 and not (tiers >> tier) & 1:
            tier += 1
        wanted[count] = i
        sources[count] = tier
        count += 1
    return count


@jit.compiled(
    *(_PAGES, evict.QUEUES, fanout.PASSING, evict.POLICIES, _ROWS, jit.f8),
    *(_ROWS, _ROWS, _ROWS),
)
def begin_load(  # noqa: PLR0913, PLR0917 -- one call, not three, stands between a load and its bytes
    pages: Records,
    queues: evict.Queues,
    passing: fanout.Passing,
    policy: Records,
    found: Rows,
    now_s: float,
    slots: Rows,
    wanted: Rows,
    sources: Rows,
) -> tuple[int, int]:
    """Touch and pin the leading ``found`` that lie in some tier; look up :func:`device_targets`.

    Returns how many those are, and how many are wanted.
    """
    present = count_present(pages, found)
    rows = found[:present]
    evict.touch(pages, queues, policy, rows, now_s)
    fanout.count(passing, policy, 1, now_s)
    fanout.follow(passing, pages, policy, rows, now_s)
    evict.pin(pages, queues, policy, rows)
    return present, device_targets(pages, rows, slots, wanted, sources)


@jit.compiled(_PAGES, evict.QUEUES, _ROWS, jit.f8, reuse.ASKED)
def learn(
    pages: Records, queues: evict.Queues, rows: Rows, now_s: float, asked: reuse.Asked
) -> None:
    """Learn from a request that uses ``rows``, which are pinned: so they are in no queue."""
    reuse.observe(queues.model, queues.memories, rows, now_s, asked)
    for row in rows:
        evict.recount(pages, queues, row)


@jit.compiled(_PAGES, jit.readonly("u1", 2), jit.readonly("u8", 2), _ROWS, _ROWS, _BATCH)
def describe(
    pages: Records,
    keys: NDArray[np.uint8],
    digests: NDArray[np.uint64],
    rows: Rows,
    slots: Rows,
    batch: Records,
) -> None:
    """Fill ``batch`` (TRANSFER, of zeros) for a get of pages ``rows`` into host ``slots``."""
    for i in range(len(rows)):
        row, record = rows[i], batch[i]
        for k in range(KEY_NBYTES):
            record["key"][k] = keys[row, k]
        record["digest"][0], record["digest"][1] = digests[row, 0], digests[row, 1]
        record["frame"] = pages[row]["frame"]
        record["slot"] = slots[i]
        record["nbytes"] = pages[row]["nbytes"]


@jit.compiled(_PAGES, jit.i8, jit.i8)
def slot_of(pages: Records, row: int, tier: int) -> int:
    """Slot or frame of one row in ``tier``, or NOWHERE."""
    if tier == _DEVICE:
        return int(pages[row]["device_slot"])
    if tier == _HOST:
        return int(pages[row]["host_slot"])
    return int(pages[row]["frame"])


@jit.compiled(_PAGES, _ROWS, jit.i8, _ROWS)
def slots_of(pages: Records, rows: Rows, tier: int, slots: Rows) -> None:
    """Slot or frame of each row in ``tier``, or NOWHERE."""
    for i in range(len(rows)):
        slots[i] = slot_of(pages, rows[i], tier)


@jit.compiled(_PAGES, _ROWS, jit.i8, _ROWS)
def put(pages: Records, rows: Rows, tier: int, slots: Rows) -> None:
    """Write the slot or frame of each row in ``tier``."""
    for i in range(len(rows)):
        if tier == _DEVICE:
            pages[rows[i]]["device_slot"] = slots[i]
        elif tier == _HOST:
            pages[rows[i]]["host_slot"] = slots[i]
        else:
            pages[rows[i]]["frame"] = slots[i]


@jit.compiled(
    *(_PAGES, evict.QUEUES, evict.POLICIES, _ROWS, jit.i8, _ROWS, jit.f8, _ROWS),
)
def settle(
    pages: Records,
    queues: evict.Queues,
    policy: Records,
    rows: Rows,
    tier: int,
    slots: Rows,
    now_s: float,
    beaten: Rows,
) -> int:
    """Rows that do not lie in ``tier`` yet lie in their ``slots`` from now on.

    Returns how many lay there already, whose indices are ``beaten``.
    """
    count = 0
    for i in range(len(rows)):
        if (np.int64(pages[rows[i]]["tiers"]) >> tier) & 1:
            beaten[count] = i
            count += 1
            continue
        put(pages, rows[i : i + 1], tier, slots[i : i + 1])
        evict.arrive_one(pages, queues, policy, rows[i], tier, now_s)
    return count


@jit.compiled(_PAGES, _ROWS, jit.i8, jit.i8, _ROWS, _ROWS)
def vacate(pages: Records, rows: Rows, tier: int, reason: int, slots: Rows, gone: Rows) -> int:
    """Take ``rows`` out of their slots of ``tier``, for ``reason``; return how many are ``gone``.

    A page is gone when it lies in no tier and nobody holds it. One that a slower tier refused or
    failed to take before it was evicted stays NOT_ADMITTED or IO_ERROR.
    """
    count = 0
    for i in range(len(rows)):
        row = rows[i]
        slots[i] = slot_of(pages, row, tier)
        told = pages[row]["reason"]
        if not (reason == _EVICTED and told in (_NOT_ADMITTED, _IO_ERROR)):
            pages[row]["reason"] = reason
        if pages[row]["tiers"] == 0 and pages[row]["pins"] == 0:
            gone[count] = row
            count += 1
    for i in range(len(rows)):
        if tier == _DEVICE:
            pages[rows[i]]["device_slot"] = NOWHERE
        elif tier == _HOST:
            pages[rows[i]]["host_slot"] = NOWHERE
        else:
            pages[rows[i]]["frame"] = NOWHERE
    return count


@jit.compiled(_PAGES, evict.QUEUES, evict.POLICIES, _ROWS, _ROWS)
def unpin(pages: Records, queues: evict.Queues, policy: Records, rows: Rows, gone: Rows) -> int:
    """End one pin of each row; which lie in no tier and are held by nobody now, and how many."""
    evict.unpin(pages, queues, policy, rows)
    count = 0
    for row in rows:
        if pages[row]["tiers"] == 0 and pages[row]["pins"] == 0:
            gone[count] = row
            count += 1
    return count
