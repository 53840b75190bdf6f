# SPDX-License-Identifier: Apache-2.0
"""Which loads give way where a link cannot serve all in time: Moore-Hodgson's scheme, link by link.

Loads stand in EDF order; whenever one would be late, the one so far is demoted that frees the most
link seconds for each second of recompute that loading nothing more of it would cause, for all who
wait at its engine. Where all cause the same and each uses one link, as few as possible are demoted.
Where that brings no more of them in time than serving all in EDF order does, nobody is demoted.
First links go first, and leave time to cross the second; what waits for the first is not known to
the second, so a load that crosses both may be late though it is not demoted.
"""

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.loads import DECISIONS, LINKS, LOADS, SCRATCH, Loads, Scratch
from bodocache.plan.records import Int
from bodocache.plan.tardiness import Z90, keep_on_time, recompute_s


@jit.kernel(LOADS, LINKS, jit.f8, SCRATCH, DECISIONS)
def demote(
    loads: Loads,
    links: NDArray[np.void],
    now_s: float,
    scratch: Scratch,
    decisions: NDArray[np.void],
) -> Int:
    """Mark the loads that links cannot serve in time; return how many. First links go first."""
    count = np.int64(0)
    for hop in range(2):
        _sort_by_link(loads, hop, scratch, decisions)
        for k in range(len(links)):
            count += _demote_on(loads, links, k, hop, now_s, scratch, decisions)
    return count


@jit.kernel(LOADS, jit.i8, jit.i8, DECISIONS)
def _nbytes(loads: Loads, hop: Int, i: Int, decisions: NDArray[np.void]) -> Int:
    """Bytes that the load, as decided, moves over its first (0) or second (1) link."""
    decision = decisions[i]
    at = loads.records[i]["first"] + decision["cut"]
    if hop == 1:
        return np.int64(loads.second_nbytes[at])
    copy = np.int64(decision["copy"])
    crosses = loads.records[i]["links"][copy] >= 0
    return np.int64(loads.first_nbytes[at, copy] if crosses else 0)


@jit.kernel(LOADS, jit.i8, jit.i8, DECISIONS)
def _link(loads: Loads, hop: Int, i: Int, decisions: NDArray[np.void]) -> Int:
    load = loads.records[i]
    return np.int64(load["second"] if hop == 1 else load["links"][np.int64(decisions[i]["copy"])])


@jit.kernel(LOADS, jit.i8, SCRATCH, DECISIONS)
def _sort_by_link(loads: Loads, hop: Int, scratch: Scratch, decisions: NDArray[np.void]) -> None:
    """List the loads of each link, in EDF order, by a counting sort.

    Those of link k become members[starts[k + 1] : starts[k + 2]].
    """
    starts = scratch.starts
    starts[:] = 0
    for i in range(len(loads.records)):
        if _uses(loads, hop, i, decisions):
            starts[_link(loads, hop, i, decisions) + 1] += 1
    for k in range(1, len(starts)):
        starts[k] += starts[k - 1]
    for i in range(len(loads.records) - 1, -1, -1):
        if _uses(loads, hop, i, decisions):
            slot = _link(loads, hop, i, decisions) + 1
            starts[slot] -= 1  # from the end of its loads to their start
            scratch.members[starts[slot]] = i


@jit.kernel(LOADS, jit.i8, jit.i8, DECISIONS)
def _uses(loads: Loads, hop: Int, i: Int, decisions: NDArray[np.void]) -> bool:
    return bool(_nbytes(loads, hop, i, decisions) > 0 and decisions[i]["demoted"] == 0)


@jit.kernel(LOADS, LINKS, jit.i8, jit.i8, jit.f8, SCRATCH, DECISIONS)
def _demote_on(
    loads: Loads,
    links: NDArray[np.void],
    k: Int,
    hop: Int,
    now_s: float,
    scratch: Scratch,
    decisions: NDArray[np.void],
) -> Int:
    """Demote on one link; return how many."""
    begin, end = scratch.starts[k + 1], scratch.starts[k + 2]
    in_time = _list_jobs(loads, links, k, hop, now_s, scratch, decisions)
    m = end - begin
    if in_time == m:
        return 0
    kept = keep_on_time(
        *(scratch.link_s[:m], scratch.due_s[:m], scratch.caused_s[:m]),
        *(scratch.nodes[:m], scratch.places[:m], scratch.kept[:m]),
    )
    if kept <= in_time:
        return 0
    for at in range(begin, end):
        if not scratch.kept[at - begin]:
            decisions[scratch.members[at]]["demoted"] = 1
    return np.int64(m - kept)


@jit.kernel(LOADS, LINKS, jit.i8, jit.i8, jit.f8, SCRATCH, DECISIONS)
def _list_jobs(
    loads: Loads,
    links: NDArray[np.void],
    k: Int,
    hop: Int,
    now_s: float,
    scratch: Scratch,
    decisions: NDArray[np.void],
) -> Int:
    """What keep_on_time needs, at 90 %, a little on the safe side; return how many are in time."""
    begin, link = scratch.starts[k + 1], links[k]
    slower = (1.0 + Z90 * link["drift"]) / link["rate"]
    ahead = np.float64(link["queued_nbytes"])
    queued_s, busy_s, in_time = ahead * slower, 0.0, np.int64(0)
    for at in range(begin, scratch.starts[k + 2]):
        i, job = scratch.members[at], at - begin
        nbytes = np.float64(_nbytes(loads, hop, i, decisions))
        ahead += nbytes
        doubt_s = Z90 * link["spread"] * np.sqrt(ahead)
        due_s = _due_s(loads, links, i, hop, scratch, decisions) - now_s - queued_s - doubt_s
        scratch.link_s[job], scratch.due_s[job] = nbytes * slower, due_s
        scratch.caused_s[job] = _caused_s(loads, i, scratch, decisions)
        scratch.places[job, 0] = 0
        busy_s += nbytes * slower
        in_time += busy_s <= due_s
    return in_time


@jit.kernel(LOADS, LINKS, jit.i8, jit.i8, SCRATCH, DECISIONS)
def _due_s(
    loads: Loads,
    links: NDArray[np.void],
    i: Int,
    hop: Int,
    scratch: Scratch,
    decisions: NDArray[np.void],
) -> float:
    """When the load has to have crossed the link.

    The recompute behind its cut, or its last layer where it is streamed, follows its last byte; and
    after its first link it has yet to cross the second.
    """
    load, one = loads.records[i], scratch.cut[0]
    bounds, last = loads.boundaries, load["first"] + load["count"] - 1
    one["tokens"], one["token_s"], one["slope_s"] = bounds[last], load["token_s"], load["slope_s"]
    again_s = recompute_s(scratch.cut, np.float64(bounds[load["first"] + decisions[i]["cut"]]))
    due_s = load["deadline_s"] - again_s / max(1, load["layers"])
    if hop == 1:
        return float(due_s)
    return float(due_s - _nbytes(loads, 1, i, decisions) / links[load["second"]]["rate"])


@jit.kernel(LOADS, jit.i8, SCRATCH, DECISIONS)
def _caused_s(loads: Loads, i: Int, scratch: Scratch, decisions: NDArray[np.void]) -> float:
    """Seconds of recompute, for all who wait for them, if no more of the load were loaded."""
    load, one = loads.records[i], scratch.cut[0]
    if load["count"] == 1:
        return np.inf  # it has to be loaded
    first = load["first"]
    one["tokens"] = loads.boundaries[first + decisions[i]["cut"]]
    one["token_s"], one["slope_s"] = load["token_s"], load["slope_s"]
    again_s = recompute_s(scratch.cut, np.float64(loads.boundaries[first]))
    return float(again_s * (1.0 + load["n_waiting"]))
