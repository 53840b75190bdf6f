# SPDX-License-Identifier: Apache-2.0
"""What the stages need of each demanded page, copied side by side while the demands are checked.

A page's record is two cache lines at a place that nobody foresees: they are asked for AHEAD demands
early. Where nothing is to be moved there is no lane.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.pages import PAGE, Tier
from bodocache.plan import check
from bodocache.plan.check import DEMANDS, PAGES, TENANTS
from bodocache.plan.records import DEMAND, TIERS, Int, OpKind

Records = NDArray[np.void]

AHEAD = 64  # demands: what memory is slow for, not more than its caches hold
NO_LANE = -1

# Of the page of one demand.
FACT = np.dtype(
    [
        ("key", "<u8"),  # page, node and kind: demands of one key want the same thing
        ("due_s", "<f8"),  # the earliest deadline of it and of what its request wants behind it;
        # inf: it will be late in any case, and goes last
        ("place", "<i8"),  # its frame, where it is read by frame; else -1
        ("nbytes", "<u4"),
        ("depth", "<u4"),
        ("cluster", "<i4"),
        ("lane", "<i4"),  # kind * TIERS + source, or NO_LANE
    ],
    align=True,
)


class Wants(NamedTuple):
    """The demands of a window and what is known and decided of each: arrays of [n]."""

    demands: Records  # DEMAND, never written
    facts: Records  # FACT
    leads: NDArray[np.int32]  # the first demand that wants the same; itself where it is alone
    fates: NDArray[np.uint8]  # Fate


FACTS = jit.array(FACT)
WANTS = jit.named(Wants, DEMANDS, FACTS, jit.array("i4"), jit.array("u1"))
_LOAD, _WRITE, _DISK = int(OpKind.LOAD), int(OpKind.WRITE), int(Tier.DISK)
_ON_DEVICE, _ON_DISK = Tier.DEVICE.bit, Tier.DISK.bit
_ABOVE_DISK = Tier.DEVICE.bit | Tier.HOST.bit


@jit.kernel(DEMANDS, PAGES, TENANTS, FACTS)
def gather(demands: Records, pages: Records, tenants: Records, facts: Records) -> Int:
    """Set ``facts`` of all demands; return -1, or the code of what is wrong first (check.py)."""
    for i in range(min(AHEAD, len(demands))):
        jit.prefetch(pages, demands[i]["page"])
    for i in range(len(demands)):
        if i + AHEAD < len(demands):
            jit.prefetch(pages, demands[i + AHEAD]["page"])
        wrong = check.in_demand(i, demands[i], pages, tenants)
        if wrong >= 0:
            return wrong
        _note(facts[i], demands[i], pages[demands[i]["page"]])
    for i in range(len(demands) - 2, -1, -1):
        if facts[i + 1]["due_s"] < facts[i]["due_s"] and _leads_to(demands[i], demands[i + 1]):
            facts[i]["due_s"] = facts[i + 1]["due_s"]
    return -1


@jit.kernel(jit.record(DEMAND), jit.record(DEMAND))
def _leads_to(one: Any, next_one: Any) -> bool:
    """Whether they are of one request, which needs the shallower page to use the deeper one."""
    same = one["request"] == next_one["request"] and one["kind"] == next_one["kind"]
    return bool(same and one["node"] == next_one["node"])


@jit.kernel(jit.record(FACT), jit.record(DEMAND), jit.record(PAGE))
def _note(fact: Any, demand: Any, page: Any) -> None:
    kind = np.int64(demand["kind"])
    source = _source(np.int64(page["tiers"]), kind)
    place = np.uint64(demand["page"]) << np.uint64(24)
    fact["key"] = place | np.uint64(demand["node"]) << np.uint64(8) | np.uint64(kind)
    fact["due_s"] = demand["deadline_s"]
    fact["place"] = page["frame"] if source == _DISK else -1
    fact["nbytes"] = page["nbytes"]
    fact["depth"] = page["depth"]
    fact["cluster"] = page["cluster"]
    fact["lane"] = NO_LANE if source < 0 else kind * TIERS + source


@jit.kernel(jit.i8, jit.i8)
def _source(tiers: Int, kind: Int) -> int:
    """The fastest tier to copy from, or -1: nothing to copy, or nowhere to copy from."""
    if kind == _LOAD:
        able, done = tiers, tiers & _ON_DEVICE
    elif kind == _WRITE:
        able, done = tiers & _ABOVE_DISK, tiers & _ON_DISK
    else:
        able, done = tiers & ~_ABOVE_DISK, tiers & _ABOVE_DISK
    if done != 0 or able == 0:
        return -1
    tier = 0
    while not (able >> tier) & 1:
        tier += 1
    return tier
