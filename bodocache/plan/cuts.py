# SPDX-License-Identifier: Apache-2.0
"""Cutting loads: what late.py decides about a window's, as fates of their demands.

A request with a record is one load. Its boundaries are its pages, from what has landed (the pages
before its first demand) to the last that somebody may move. Bytes of a page that several load are
counted with the first of them. What is cut is not planned unless another load still wants it; of
what is under way an ABORT says so. A load that is late in any case goes after all others.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.pages import Tier
from bodocache.plan import late, loads, order
from bodocache.plan.check import DEMANDS, LINKS, POLICIES, REQUESTS
from bodocache.plan.coalesce import ROOM, Room
from bodocache.plan.facts import FACT, WANTS, Wants
from bodocache.plan.fates import CUT, JOINED, PLANNED, Indices
from bodocache.plan.records import DEMAND, OP, REQUEST, TIERS, Feature, Int, OpKind
from bodocache.plan.streams import STREAMS, Streams, link_of

Records = NDArray[np.void]

_LOAD, _ABORT = int(OpKind.LOAD), int(OpKind.ABORT)
_DEVICE, _HOST = int(Tier.DEVICE), int(Tier.HOST)
_TARDINESS, _OVERLAP = int(Feature.TARDINESS), int(Feature.OVERLAP)


class Book(NamedTuple):
    """Memory for n demands of m requests over some links."""

    listed: loads.Loads  # [m], boundaries [n + m]
    decisions: Records  # loads.DECISION[m]: of the loads
    of_request: Records  # loads.DECISION[m]: of the requests
    requests: NDArray[np.int64]  # [m]: the request of each load
    owners: Indices  # [n]: the load of each demand; -1: of none
    counted: NDArray[np.bool_]  # [n]: by lead
    pairs: order.Pairs  # [m]
    scratch: loads.Scratch


BOOK = jit.named(
    Book,
    *(loads.LOADS, loads.DECISIONS, loads.DECISIONS),
    *(jit.array("i8"), jit.array("i4"), jit.array("?"), order.PAIRS, loads.SCRATCH),
)


def book_for(demands: int, requests: int, links: int) -> Book:
    """Memory for as many."""
    boundaries = demands + requests
    return Book(
        loads.Loads(
            np.empty(requests, loads.LOAD),
            np.empty(boundaries, np.int64),
            np.empty((boundaries, loads.COPIES), np.int64),
            np.empty(boundaries, np.int64),
        ),
        np.zeros(requests, loads.DECISION),
        np.zeros(requests, loads.DECISION),
        np.empty(requests, np.int64),
        np.empty(demands, np.int32),
        np.empty(demands, np.bool_),
        order.pairs_for(requests),
        loads.scratch_for(requests, links),
    )


@jit.kernel(WANTS, REQUESTS, LINKS, POLICIES, jit.f8, STREAMS, BOOK)
def decide(
    wants: Wants,
    requests: Records,
    links: Records,
    policy: Records,
    now_s: float,
    streams: Streams,
    book: Book,
) -> None:
    """Cut loads, and send back those that will be late in any case."""
    book.owners[: len(wants.demands)] = -1
    book.counted[: len(wants.demands)] = False
    _sort(wants.demands, requests, book)
    count: Int = 0
    end: Int = 0
    for at in range(len(requests)):
        row = np.int64(book.pairs.carried[0, at])
        book.requests[count] = row
        end_after = _list(wants, requests[row], streams, book, count, end)
        if end_after > end:
            count, end = count + 1, end_after
    listed = book.listed
    some = loads.Loads(
        listed.records[:count], listed.boundaries, listed.first_nbytes, listed.second_nbytes
    )
    late.decide(some, links, policy[0]["switch_s"], now_s, book.scratch, book.decisions)
    for k in range(count):
        book.of_request[book.requests[k]] = book.decisions[k]
    if not np.int64(policy[0]["features_off"]) & _TARDINESS:
        for k in range(count):
            _apply(wants, requests[book.requests[k]], book, k)


@jit.kernel(DEMANDS, REQUESTS, BOOK)
def _sort(demands: Records, requests: Records, book: Book) -> None:
    """Requests by the earliest deadline of their demands."""
    pairs = book.pairs
    for row in range(len(requests)):
        first, deadline_s = requests[row]["first"], np.inf
        for i in range(first, first + requests[row]["count"]):
            deadline_s = min(deadline_s, demands[i]["deadline_s"])
        pairs.keys[0, row], pairs.carried[0, row] = order.sortable(deadline_s), row
    order.sort(pairs, 0, len(requests))


@jit.kernel(WANTS, jit.record(REQUEST), STREAMS, BOOK, jit.i8, jit.i8)
def _list(wants: Wants, request: Any, streams: Streams, book: Book, k: Int, end: Int) -> Int:
    """Write load k of a request; return where its boundaries end, ``end`` if it has none."""
    demands, facts, leads, fates = wants
    load, listed = book.listed.records[k], book.listed
    node = np.int64(demands[request["first"]]["node"])
    load["second"] = link_of(streams, node, _HOST, _DEVICE)
    if load["second"] < 0:
        return end
    _copy(load, request)
    load["first"], at = end, end
    first_nbytes = second_nbytes = np.int64(0)
    for i in range(request["first"], request["first"] + request["count"]):
        if fates[i] != PLANNED and fates[i] != JOINED:
            continue
        if at == end:
            landed = np.int64(facts[i]["depth"]) * np.int64(request["page_tokens"])
            _bound(listed, at, landed, 0, 0)
            at += 1
        if not book.counted[leads[i]]:
            book.counted[leads[i]] = True
            first_nbytes += _hop_nbytes(load, facts[i], streams, node)
            second_nbytes += facts[i]["nbytes"]
        tokens = (np.int64(facts[i]["depth"]) + 1) * np.int64(request["page_tokens"])
        _bound(listed, at, tokens, first_nbytes, second_nbytes)
        at += 1
        book.owners[i] = k
        load["deadline_s"] = min(load["deadline_s"], demands[i]["deadline_s"])
        if demands[i]["under_way"]:
            load["copy"] = 0
    load["count"] = at - end
    return at


@jit.kernel(jit.record(loads.LOAD), jit.record(REQUEST))
def _copy(load: Any, request: Any) -> None:
    """What the request says; the rest as of a load that has not begun and moves nothing."""
    load["wait_s"], load["new_compute_s"] = request["wait_s"], request["new_compute_s"]
    load["token_s"], load["slope_s"] = request["token_s"], request["slope_s"]
    load["n_waiting"], load["layers"] = request["n_waiting"], request["layers"]
    load["cut_at"] = request["cut_at"]
    load["deadline_s"] = np.inf
    load["copies"], load["copy"] = 1, -1
    load["links"][0] = load["links"][1] = -1


@jit.kernel(loads.LOADS, jit.i8, jit.i8, jit.i8, jit.i8)
def _bound(listed: loads.Loads, at: Int, tokens: Int, first_nbytes: Int, nbytes: Int) -> None:
    listed.boundaries[at], listed.second_nbytes[at] = tokens, nbytes
    listed.first_nbytes[at, 0] = listed.first_nbytes[at, 1] = first_nbytes


@jit.kernel(jit.record(loads.LOAD), jit.record(FACT), STREAMS, jit.i8)
def _hop_nbytes(load: Any, fact: Any, streams: Streams, node: Int) -> Int:
    """Bytes of the page that cross a link to the host first; the load's first such link counts."""
    source = np.int64(fact["lane"]) % TIERS
    if source <= _HOST:
        return 0
    if load["links"][0] < 0:
        load["links"][0] = link_of(streams, node, source, _HOST)
    return np.int64(fact["nbytes"]) if load["links"][0] >= 0 else np.int64(0)


@jit.kernel(WANTS, jit.record(REQUEST), BOOK, jit.i8)
def _apply(wants: Wants, request: Any, book: Book, k: Int) -> None:
    """Give the demands of load k behind its cut up; if it is late in any case, it goes last."""
    decision, kept = book.decisions[k], 0
    for i in range(request["first"], request["first"] + request["count"]):
        if book.owners[i] != k:
            continue
        if kept >= decision["cut"]:
            wants.fates[i] = CUT
        elif decision["demoted"]:
            wants.facts[i]["due_s"] = np.inf
        kept += 1


@jit.kernel(WANTS, BOOK, ROOM)
def abort(wants: Wants, book: Book, room: Room) -> None:
    """An op for each load whose pages under way are given up by all who want them."""
    demands, facts, leads, fates = wants
    for i in range(len(demands)):
        if fates[i] == PLANNED or fates[i] == JOINED:
            book.counted[leads[i]] = False  # somebody wants it; the others have been counted
    num_ops, place = 0, 0
    before: Int = -1
    for i in range(len(demands)):
        if not (demands[i]["under_way"] and fates[i] == CUT and book.counted[leads[i]]):
            continue
        if book.owners[i] != before:
            before = np.int64(book.owners[i])
            _open_abort(room.ops[num_ops], demands[i], facts[i], place)
            num_ops += 1
        op = room.ops[num_ops - 1]
        op["count"] += 1
        op["nbytes"] += facts[i]["nbytes"]
        room.rows[place], room.demands[place], room.answers[place] = demands[i]["page"], i, place
        place += 1
    room.counts[0], room.counts[1], room.counts[2] = num_ops, place, place


@jit.kernel(jit.record(OP), jit.record(DEMAND), jit.record(FACT), jit.i8)
def _open_abort(op: Any, demand: Any, fact: Any, first: Int) -> None:
    source = np.int64(fact["lane"]) % TIERS
    op["kind"], op["node"], op["source"], op["destination"] = _ABORT, demand["node"], source, 0
    op["stream"], op["order"], op["count"], op["cluster"] = source * TIERS, 0, 0, -1
    op["first"], op["request"], op["nbytes"] = first, demand["request"], 0
    op["deadline_s"], op["predicted_finish_s"] = demand["deadline_s"], np.inf
    op["first_layer"] = op["num_layers"] = op["head_layers"] = op["layers_ahead"] = 0


@jit.kernel(REQUESTS, BOOK, ROOM)
def stream_by_layer(requests: Records, book: Book, room: Room) -> None:
    """Tell each load's ops how many layers must be whole first, and how far ahead copies run."""
    for k in range(room.counts[0]):
        op = room.ops[k]
        owner = np.int64(book.owners[room.demands[room.answers[op["first"]]]])
        if op["kind"] != _LOAD or owner < 0:
            continue
        op["num_layers"] = requests[book.requests[owner]]["layers"]
        op["head_layers"] = book.decisions[owner]["head_layers"]
        op["layers_ahead"] = book.decisions[owner]["layers_ahead"]
