# SPDX-License-Identifier: Apache-2.0
"""Demanded pages to ops: few and large, earliest deadline first.

Pages of one request, kind and source tier form ops of at most ``chunk_nbytes``. From disk they are
taken by frame: file-adjacent frames merge, and a hole of up to ``hole_nbytes`` between two is read
through: its bytes count towards the limit and ``nbytes``, and nobody is offered them. From other
tiers, and for writes, they go shallow to deep: where they lie in memory does not matter.
Ops are ordered by deadline, arrival, request, then their shallowest page.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.pages import PAGE, Tier
from bodocache.plan.records import DEMAND, OP, POLICY, TIERS, Int, OpKind

Records = NDArray[np.void]

# One page, later one op, while it is sorted: by all but the last field, in this order.
ITEM = np.dtype(
    [
        ("deadline_s", "<f8"),
        ("arrival_s", "<f8"),
        ("request", "<i8"),
        ("lane", "<i8"),  # kind * TIERS + source
        ("place", "<i8"),  # frame or depth
        ("index", "<i8"),  # of the demand, or of the op
    ]
)


class Scratch(NamedTuple):
    """Memory for one call over n demands."""

    items: Records  # ITEM[n], of pages
    op_items: Records  # ITEM[n], of ops
    order: NDArray[np.int64]  # [2, n]
    ops: Records  # OP[n]
    demands: NDArray[np.int64]  # [n], of each page, op by op as they were found


class Room(NamedTuple):
    """What :func:`coalesce` writes: arrays of [n]."""

    ops: Records  # OP
    rows: NDArray[np.int64]
    demands: NDArray[np.int64]  # of each row


SCRATCH = jit.named(
    Scratch, *(jit.array(ITEM), jit.array(ITEM), jit.array("i8", 2), jit.array(OP), jit.array("i8"))
)
ROOM = jit.named(Room, jit.array(OP), jit.array("i8"), jit.array("i8"))
_LOAD, _WRITE = int(OpKind.LOAD), int(OpKind.WRITE)
_DEVICE, _DISK = int(Tier.DEVICE), int(Tier.DISK)
_PAGES, _DEMANDS, _POLICIES = jit.array(PAGE), jit.readonly(DEMAND), jit.array(POLICY)


def scratch_for(demands: int) -> Scratch:
    """Scratch of :func:`coalesce`."""
    return Scratch(
        np.empty(demands, ITEM),
        np.empty(demands, ITEM),
        np.empty((2, demands), np.int64),
        np.empty(demands, OP),
        np.empty(demands, np.int64),
    )


@jit.kernel(
    *(_DEMANDS, jit.readonly("?"), _PAGES, _POLICIES, SCRATCH),
    *(ROOM, jit.array("i8")),
)
def coalesce(
    demands: Records,
    wanted: NDArray[np.bool_],
    pages: Records,
    policy: Records,
    scratch: Scratch,
    plan: Room,
    counts: NDArray[np.int64],
) -> None:
    """Write the ops of the wanted demands, and what they move, to ``plan`` (arrays of [n]).

    ``counts`` becomes (ops, rows). Left out: a page to load that lies on the device or nowhere,
    and one to write that lies on disk, or in neither device nor host memory.
    """
    num_pages = _list_pages(demands, wanted, pages, scratch.items)
    order = scratch.order[_sort(scratch.items, scratch.order, num_pages)]
    num_ops = 0
    for i in range(num_pages):
        item = scratch.items[order[i]]
        demand = demands[item["index"]]
        page = pages[demand["page"]]
        scratch.demands[i] = item["index"]
        if num_ops > 0 and _join(
            scratch.ops[num_ops - 1], scratch.items[order[i - 1]], item, page, policy
        ):
            _note(scratch.op_items[num_ops - 1], demand, page)
        else:
            _begin(scratch.ops[num_ops], item, demand, page, i)
            _list_op(scratch.op_items[num_ops], demand, page, num_ops)
            num_ops += 1
    order = scratch.order[_sort(scratch.op_items, scratch.order, num_ops)]
    place = 0
    for i in range(num_ops):
        op = plan.ops[i]
        plan.ops[i] = scratch.ops[order[i]]
        op["deadline_s"] = scratch.op_items[order[i]]["deadline_s"]
        first, op["first"] = op["first"], place
        for k in range(op["count"]):
            plan.demands[place] = scratch.demands[first + k]
            plan.rows[place] = demands[plan.demands[place]]["page"]
            place += 1
    counts[0], counts[1] = num_ops, num_pages


@jit.kernel(_DEMANDS, jit.readonly("?"), _PAGES, jit.array(ITEM))
def _list_pages(demands: Records, wanted: NDArray[np.bool_], pages: Records, items: Records) -> int:
    """One item a page to move: by request, lane and place; return how many."""
    count = 0
    for i in range(len(demands)):
        demand = demands[i]
        page = pages[demand["page"]]
        kind = np.int64(demand["kind"])
        source = _source(np.int64(page["tiers"]), kind)
        if source < 0 or not wanted[i]:
            continue
        item = items[count]
        item["deadline_s"] = item["arrival_s"] = 0.0
        item["request"] = demand["request"]
        item["lane"] = kind * TIERS + source
        by_frame = kind == _LOAD and source == _DISK
        item["place"] = page["frame"] if by_frame else np.int64(page["depth"])
        item["index"] = i
        count += 1
    return count


@jit.kernel(jit.i8, jit.i8)
def _source(tiers: Int, kind: Int) -> int:
    """The fastest tier to copy from, or -1: nothing to copy, or nowhere to copy from."""
    done, end = (_DISK, _DISK) if kind == _WRITE else (_DEVICE, TIERS)
    if (tiers >> done) & 1:
        return -1
    for tier in range(end):
        if (tiers >> tier) & 1:
            return tier
    return -1


@jit.kernel(*(jit.record(OP), jit.record(ITEM), jit.record(ITEM), jit.record(PAGE), _POLICIES))
def _join(op: Any, before: Any, item: Any, page: Any, policy: Records) -> bool:
    """Add the page to the op of the page before it, if that is allowed."""
    if item["request"] != before["request"] or item["lane"] != before["lane"]:
        return False
    nbytes = np.int64(page["nbytes"])
    hole_nbytes = np.int64(0)
    if item["lane"] == _LOAD * TIERS + _DISK:
        hole_nbytes = (item["place"] - before["place"] - 1) * nbytes  # frames are pages
    grown_nbytes = op["nbytes"] + hole_nbytes + nbytes
    if not 0 <= hole_nbytes <= policy[0]["hole_nbytes"]:
        return False
    if grown_nbytes > policy[0]["chunk_nbytes"]:
        return False
    op["count"] += 1
    op["nbytes"] = grown_nbytes
    return True


@jit.kernel(jit.record(OP), jit.record(ITEM), jit.record(DEMAND), jit.record(PAGE), jit.i8)
def _begin(op: Any, item: Any, demand: Any, page: Any, first: Int) -> None:
    op["kind"] = demand["kind"]
    op["source"] = item["lane"] % TIERS
    op["destination"] = _DISK if demand["kind"] == _WRITE else _DEVICE
    op["count"] = 1
    op["first"] = first
    op["request"] = demand["request"]
    op["nbytes"] = page["nbytes"]


@jit.kernel(jit.record(ITEM), jit.record(DEMAND), jit.record(PAGE), jit.i8)
def _list_op(listed: Any, demand: Any, page: Any, index: Int) -> None:
    listed["deadline_s"] = demand["deadline_s"]
    listed["arrival_s"] = demand["arrival_s"]
    listed["request"] = demand["request"]
    listed["lane"] = np.int64(demand["kind"]) * TIERS  # whatever the source, shallow first
    listed["place"] = page["depth"]
    listed["index"] = index


@jit.kernel(jit.record(ITEM), jit.record(DEMAND), jit.record(PAGE))
def _note(listed: Any, demand: Any, page: Any) -> None:
    """An op is as urgent as its most urgent page, and as deep as its shallowest."""
    listed["deadline_s"] = min(listed["deadline_s"], demand["deadline_s"])
    listed["arrival_s"] = min(listed["arrival_s"], demand["arrival_s"])
    listed["place"] = min(listed["place"], np.int64(page["depth"]))


@jit.kernel(jit.array(ITEM), jit.array("i8", 2), jit.i8)
def _sort(items: Records, order: NDArray[np.int64], count: Int) -> int:
    """Merge sort between the two rows of ``order``; return which of them orders the items."""
    which = 0
    for i in range(count):
        order[which, i] = i
    width = 1
    while width < count:
        here, there = order[which], order[1 - which]
        for begin in range(0, count, 2 * width):
            middle, end = min(begin + width, count), min(begin + 2 * width, count)
            left, right = begin, middle
            for at in range(begin, end):
                if right < end and (
                    left == middle or _is_before(items[here[right]], items[here[left]])
                ):
                    there[at] = here[right]
                    right += 1
                else:
                    there[at] = here[left]
                    left += 1
        which = 1 - which
        width *= 2
    return which


@jit.kernel(jit.record(ITEM), jit.record(ITEM))
def _is_before(one: Any, two: Any) -> bool:
    if one["deadline_s"] != two["deadline_s"]:
        return bool(one["deadline_s"] < two["deadline_s"])
    if one["arrival_s"] != two["arrival_s"]:
        return bool(one["arrival_s"] < two["arrival_s"])
    if one["request"] != two["request"]:
        return bool(one["request"] < two["request"])
    if one["lane"] != two["lane"]:
        return bool(one["lane"] < two["lane"])
    return bool(one["place"] < two["place"])
