# SPDX-License-Identifier: Apache-2.0
"""Wanted pages to ops: few and large, earliest deadline first.

Pages of one node, kind, source tier and cluster form ops of at most ``chunk_nbytes``; those of no
cluster go with the request that asks first. From disk they are taken by frame: file-adjacent frames
merge, and a hole of up to ``hole_nbytes`` between two is read through: its bytes count towards the
limit and ``nbytes``, and nobody is offered them. From other tiers they go as they were demanded,
shallow to deep: where they lie in memory does not matter.
Ops are ordered by deadline, arrival, request, kind, then their shallowest page.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.pages import Tier
from bodocache.plan import order, urgency
from bodocache.plan.facts import FACT, WANTS, Wants
from bodocache.plan.records import DEMAND, OP, POLICY, TIERS, Fate, Feature, Int, OpKind
from bodocache.plan.urgency import FOUND, RUN

Records = NDArray[np.void]
Indices = NDArray[np.int32]

# A page that is moved once, for all who want it: one cache line.
ITEM = np.dtype(
    [
        ("deadline_s", "<f8"),  # of its most urgent asker, like the next two
        ("arrival_s", "<f8"),
        ("request", "<i8"),
        ("place", "<i8"),  # its frame, where it is read by frame; else -1
        ("nbytes", "<u4"),
        ("depth", "<u4"),
        ("cluster", "<i4"),  # -1: none
        ("lane", "<u4"),  # kind * TIERS + source, and the node above
        ("page", "<i4"),
        ("first", "<i4"),  # its most urgent asker: a demand
        ("last", "<i4"),  # the end of the chain of askers
        ("group", "<i4"),
    ]
)


class Work(NamedTuple):
    """Memory for n demands."""

    items: Records  # ITEM[n]
    item_of: Indices  # [n]: of a lead; -1: none yet
    next_asker: Indices  # [n]: -1: the last
    order: Indices  # [n]: items, group by group
    starts: Indices  # [n + 1] of groups
    found: Records  # FOUND[n]
    runs: Records  # RUN[n]
    table: Indices  # a power of two, at least 2 n
    pairs: order.Pairs


class Room(NamedTuple):
    """The plan that is being made: arrays of 2 n, ``demands`` of n.

    Each of n demands moves a page at most, and has one leave for it (room.py).
    """

    ops: Records  # OP
    rows: NDArray[np.int64]
    demands: NDArray[np.int64]
    answers: NDArray[np.int64]
    counts: NDArray[np.int64]  # [3]: ops, rows, demands


_I4 = jit.array("i4")
WORK = jit.named(
    Work,
    *(jit.array(ITEM), _I4, _I4, _I4, _I4, jit.array(FOUND), jit.array(RUN), _I4, order.PAIRS),
)
ROOM = jit.named(Room, jit.array(OP), *[jit.array("i8")] * 4)
_POLICIES = jit.array(POLICY)
_LOAD, _WRITE = int(OpKind.LOAD), int(OpKind.WRITE)
_DEVICE, _HOST, _DISK = int(Tier.DEVICE), int(Tier.HOST), int(Tier.DISK)
_PLANNED = int(Fate.PLANNED)
_AHEAD = 8  # items or ops whose cache lines are asked for early
_LANE_BITS, _LANES = 5, 32  # 6 kinds, 4 tiers
_FANOUT, _COALESCE = int(Feature.FANOUT), int(Feature.COALESCE)
_MIX = np.uint64(0x9E3779B97F4A7C15)


def work_for(demands: int) -> Work:
    """Memory for ``demands``."""
    return Work(
        np.empty(demands, ITEM),
        np.empty(demands, np.int32),
        np.empty(demands, np.int32),
        np.empty(demands, np.int32),
        np.empty(demands + 1, np.int32),
        np.empty(demands, FOUND),
        np.empty(demands, RUN),
        np.empty(1 << order.table_bits(demands), np.int32),
        order.pairs_for(demands),
    )


def room_for(demands: int) -> Room:
    """A plan of nothing, with room for ``demands``."""
    return Room(
        np.empty(2 * demands, OP),
        np.empty(2 * demands, np.int64),
        np.empty(demands, np.int64),
        np.empty(2 * demands + 1, np.int64),
        np.zeros(3, np.int64),
    )


@jit.kernel(WANTS, _POLICIES, WORK, ROOM)
def coalesce(wants: Wants, policy: Records, work: Work, room: Room) -> None:
    """Add the ops of the PLANNED demands, and what they move and answer, to ``room``.

    Such a demand has a lane. Order in a stream and prediction are left to later stages.
    """
    num_items = _list_items(wants, policy, work)
    num_groups = _group(num_items, work)
    num_ops = _form(num_groups, policy, work)
    urgency.rank(work.found, num_ops, work.runs, work.pairs)
    _write(num_ops, work, room)


@jit.kernel(WANTS, _POLICIES, WORK)
def _list_items(wants: Wants, policy: Records, work: Work) -> int:
    """One item a page, its askers chained, the most urgent first; return how many."""
    demands, facts, leads, fates = wants
    items, item_of, next_asker = work.items, work.item_of, work.next_asker
    clusters = (np.int64(policy[0]["features_off"]) & _FANOUT) == 0
    count = 0
    for i in range(len(demands)):
        lead = np.int64(leads[i])
        if lead == i:
            item_of[i] = -1
        if fates[i] != _PLANNED:
            continue
        next_asker[i] = -1
        at = np.int64(item_of[lead])
        if at < 0:
            item_of[lead] = count
            cluster = max(np.int64(facts[lead]["cluster"]), -1) if clusters else -1
            _open(items[count], facts[lead], demands[i], facts[i]["due_s"], i)
            items[count]["cluster"] = cluster
            count += 1
        elif _is_before(demands[i], facts[i]["due_s"], items[at]):
            next_asker[i] = items[at]["first"]
            items[at]["first"] = i
            _adopt(items[at], demands[i], facts[i]["due_s"])
        else:
            next_asker[items[at]["last"]] = i
            items[at]["last"] = i
    return count


@jit.kernel(jit.record(ITEM), jit.record(FACT), jit.record(DEMAND), jit.f8, jit.i8)
def _open(item: Any, fact: Any, demand: Any, due_s: float, index: Int) -> None:
    _adopt(item, demand, due_s)
    item["place"], item["nbytes"], item["depth"] = fact["place"], fact["nbytes"], fact["depth"]
    item["lane"] = np.int64(fact["lane"]) | np.int64(demand["node"]) << _LANE_BITS
    item["page"] = demand["page"]
    item["first"], item["last"] = index, index


@jit.kernel(jit.record(ITEM), jit.record(DEMAND), jit.f8)
def _adopt(one: Any, demand: Any, due_s: float) -> None:
    one["deadline_s"], one["arrival_s"] = due_s, demand["arrival_s"]
    one["request"] = demand["request"]


@jit.kernel(jit.record(DEMAND), jit.f8, jit.record(ITEM))
def _is_before(one: Any, due_s: float, two: Any) -> bool:
    if due_s != two["deadline_s"]:
        return bool(due_s < two["deadline_s"])
    if one["arrival_s"] != two["arrival_s"]:
        return bool(one["arrival_s"] < two["arrival_s"])
    return bool(one["request"] < two["request"])


@jit.kernel(jit.i8, WORK)
def _group(count: Int, work: Work) -> int:
    """Number the groups as they come and list the items group by group; return how many."""
    items, table, starts = work.items, work.table, work.starts
    bits = order.table_bits(count)
    table[: 1 << bits] = 0
    num_groups = 0
    starts[0] = 0
    for i in range(count):
        group = np.int64(items[i - 1]["group"]) if i > 0 else 0
        if i == 0 or not _is_same(items[i], items[i - 1]):
            at = _find(items, i, table, bits)
            if table[at] == 0:
                table[at] = i + 1
                group = num_groups
                num_groups += 1
                starts[num_groups] = 0
            else:
                group = np.int64(items[table[at] - 1]["group"])
        items[i]["group"] = group
        starts[group + 1] += 1
    for group in range(num_groups):
        starts[group + 1] += starts[group]
        table[group] = starts[group]  # the table has served
    for i in range(count):
        group = np.int64(items[i]["group"])
        work.order[table[group]] = i
        table[group] += 1
    return num_groups


@jit.kernel(jit.record(ITEM), jit.record(ITEM))
def _is_same(one: Any, two: Any) -> bool:
    """Whether two items are of one group."""
    if one["lane"] != two["lane"] or one["cluster"] != two["cluster"]:
        return False
    return bool(one["cluster"] >= 0 or one["request"] == two["request"])


@jit.kernel(jit.array(ITEM), jit.i8, _I4, jit.i8)
def _find(items: Records, i: Int, table: Indices, bits: Int) -> Int:
    """Where the table holds the first item (1 + its index) of the group of item i, or 0 for it."""
    one = items[i]
    name: Int = np.int64(one["cluster"]) if one["cluster"] >= 0 else -1 - one["request"]
    mixed = (np.uint64(name) * _MIX ^ np.uint64(one["lane"])) * _MIX
    mask = (1 << bits) - 1
    at = np.int64(mixed >> np.uint64(32)) & mask
    while table[at] > 0 and not _is_same(one, items[table[at] - 1]):
        at = (at + 1) & mask
    return at


@jit.kernel(jit.i8, _POLICIES, WORK)
def _form(num_groups: Int, policy: Records, work: Work) -> int:
    """Cut each group into ops; return how many."""
    items, members, found = work.items, work.order, work.found
    num_ops, last = 0, int(work.starts[num_groups]) - 1
    for group in range(num_groups):
        begin, end = np.int64(work.starts[group]), np.int64(work.starts[group + 1])
        if end - begin > 1 and items[members[begin]]["place"] >= 0:
            _sort_by_frame(items, begin, end, members, work.pairs)
        for i in range(begin, end):
            ahead: Int = i + _AHEAD
            jit.prefetch(items, members[min(ahead, last)])
            item = items[members[i]]
            if i > begin and _join(found[num_ops - 1], items[members[i - 1]], item, policy):
                _note(found[num_ops - 1], item)
            else:
                _begin(found[num_ops], item, members[i], i)
                num_ops += 1
    return num_ops


@jit.kernel(jit.array(ITEM), jit.i8, jit.i8, _I4, order.PAIRS)
def _sort_by_frame(
    items: Records, begin: Int, end: Int, members: Indices, pairs: order.Pairs
) -> None:
    for i in range(begin, end):
        pairs.keys[0, i], pairs.carried[0, i] = items[members[i]]["place"], members[i]
    order.sort(pairs, begin, end)
    for i in range(begin, end):
        members[i] = pairs.carried[0, i]


@jit.kernel(jit.record(FOUND), jit.record(ITEM), jit.record(ITEM), _POLICIES)
def _join(op: Any, before: Any, item: Any, policy: Records) -> bool:
    """Add the page to the op of the page before it, if that is allowed."""
    said = policy[0]
    if np.int64(said["features_off"]) & _COALESCE:
        return False
    nbytes, hole_nbytes = np.int64(item["nbytes"]), np.int64(0)
    if item["place"] >= 0:
        hole = item["place"] - before["place"] - 1  # frames are pages
        if not 0 <= hole <= said["hole_nbytes"] // nbytes:
            return False
        hole_nbytes = hole * nbytes
    grown_nbytes = op["nbytes"] + hole_nbytes + nbytes
    if grown_nbytes > said["chunk_nbytes"]:
        return False
    op["nbytes"] = grown_nbytes
    return True


@jit.kernel(jit.record(FOUND), jit.record(ITEM), jit.i8, jit.i8)
def _begin(op: Any, item: Any, index: Int, first: Int) -> None:
    op["deadline_s"], op["arrival_s"] = item["deadline_s"], item["arrival_s"]
    op["request"] = item["request"]
    op["nbytes"], op["count"] = item["nbytes"], 1
    op["kind_depth"] = _kind_depth(item)
    op["item"], op["first"] = index, first


@jit.kernel(jit.record(ITEM))
def _kind_depth(item: Any) -> np.uint64:
    kind = (np.uint64(item["lane"]) & np.uint64(_LANES - 1)) >> np.uint64(2)
    return kind << np.uint64(32) | np.uint64(item["depth"])


@jit.kernel(jit.record(FOUND), jit.record(ITEM))
def _note(op: Any, item: Any) -> None:
    """An op is as urgent as its most urgent page, and as deep as its shallowest."""
    op["count"] += 1
    op["kind_depth"] = min(op["kind_depth"], _kind_depth(item))
    if _is_more_urgent(item, op):
        op["deadline_s"], op["arrival_s"] = item["deadline_s"], item["arrival_s"]
        op["request"] = item["request"]


@jit.kernel(jit.record(ITEM), jit.record(FOUND))
def _is_more_urgent(one: Any, two: Any) -> bool:
    if one["deadline_s"] != two["deadline_s"]:
        return bool(one["deadline_s"] < two["deadline_s"])
    if one["arrival_s"] != two["arrival_s"]:
        return bool(one["arrival_s"] < two["arrival_s"])
    return bool(one["request"] < two["request"])


@jit.kernel(jit.i8, WORK, ROOM)
def _write(num_ops: Int, work: Work, room: Room) -> None:
    items, found, next_asker = work.items, work.found, work.next_asker
    num_before, place, answered = room.counts[0], room.counts[1], room.counts[2]
    ranked = work.pairs.carried
    for i in range(num_ops):
        jit.prefetch(found, ranked[0, min(i + 2 * _AHEAD, num_ops - 1)])
        jit.prefetch(items, found[ranked[0, min(i + _AHEAD, num_ops - 1)]]["item"])
        op = found[ranked[0, i]]
        _describe(room.ops[num_before + i], op, items[op["item"]], place)
        for k in range(op["first"], op["first"] + op["count"]):
            item = items[work.order[k]]
            room.rows[place] = item["page"]
            room.answers[place] = answered
            asker = np.int64(item["first"])
            while asker >= 0:
                room.demands[answered] = asker
                answered += 1
                asker = np.int64(next_asker[asker])
            place += 1
    room.answers[place] = answered
    room.counts[0], room.counts[1], room.counts[2] = num_before + num_ops, place, answered


@jit.kernel(jit.record(OP), jit.record(FOUND), jit.record(ITEM), jit.i8)
def _describe(op: Any, found: Any, item: Any, first: Int) -> None:
    lane = np.int64(item["lane"])
    source, kind = lane % TIERS, (lane & (_LANES - 1)) // TIERS
    goal = _DEVICE if kind == _LOAD else _DISK if kind == _WRITE else _HOST
    op["kind"], op["node"] = kind, lane >> _LANE_BITS
    op["source"], op["destination"], op["stream"] = source, goal, source * TIERS + goal
    op["order"] = 0
    op["count"], op["first"] = found["count"], first
    op["cluster"], op["request"], op["nbytes"] = item["cluster"], found["request"], found["nbytes"]
    op["deadline_s"] = found["deadline_s"]
    op["predicted_finish_s"] = op["keep_until_s"] = np.inf
    op["first_layer"] = op["num_layers"] = op["head_layers"] = op["layers_ahead"] = 0
