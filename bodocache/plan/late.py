# SPDX-License-Identifier: Apache-2.0
"""Late loads of one window: which copy each is loaded from, where it is cut, which others go first.

A load goes over a link to the host, whole pages in series, unless they lie there; then over a link
to the device, streamed by layer. Loads are served in EDF order on both, so the first link is done
with a load ``x1 / rate1`` from now (x: its bytes and all ahead of it), which enters the queue of
the second: ``queue = max(first, second is free)``. T(c) and R(c) are those of tardiness.py; of all
copies and boundaries the one of least

    T(c) + n_waiting * R(c) + switching

is taken. A load that has begun is switched (cut, or taken from another copy) only if that gains
more than ``switch_s``, and cut only if the last window would have cut it too.

Where a link cannot serve all in time, some are demoted (demote.py). They are late in any case: they
go after all others and are decided again from there, mostly to be cut shorter or not loaded.

A load lands at ``F = now + its end on the last link + z * sqrt(sum over links of spread^2 x +
(drift x / rate)^2)``, and is late by ``max(0, F - deadline)``. All of it takes O(n log n) for loads
and O(m) for their boundaries, in the caller's memory.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.demote import demote
from bodocache.plan.loads import DECISIONS, LINKS, LOADS, SCRATCH, Loads, Scratch, Verdict
from bodocache.plan.overlap import equal_layers_ahead, equal_whole_layers
from bodocache.plan.records import Int
from bodocache.plan.tardiness import Z90, finish_s, recompute_s

_WHOLE, _CUT, _DROPPED = int(Verdict.WHOLE), int(Verdict.CUT), int(Verdict.DROPPED)


class Choice(NamedTuple):
    """One way to serve a load, and what it costs."""

    copy: Int
    cut: Int
    cost_s: float


class Way(NamedTuple):
    """When a load is served, in seconds from now."""

    first_s: float  # it has left the first link
    second_s: float  # and the second
    step_s: float  # T


@jit.kernel(LOADS, LINKS, jit.f8, jit.f8, SCRATCH, DECISIONS)
def decide(
    loads: Loads,
    links: NDArray[np.void],
    switch_s: float,
    now_s: float,
    scratch: Scratch,
    decisions: NDArray[np.void],
) -> None:
    """Decide every load of a window; deadlines and ``now_s`` are on one clock."""
    _open(links, scratch)
    for i in range(len(loads.records)):
        decisions[i]["demoted"] = 0
        _decide_one(loads, links, i, switch_s, scratch, decisions)
        _serve(loads, links, i, now_s, scratch, decisions)
    if demote(loads, links, now_s, scratch, decisions) == 0:
        return
    _open(links, scratch)
    for demoted in range(2):
        for i in range(len(loads.records)):
            if decisions[i]["demoted"] != demoted:
                continue
            if demoted == 1:
                _decide_one(loads, links, i, switch_s, scratch, decisions)
            _serve(loads, links, i, now_s, scratch, decisions)


@jit.kernel(LINKS, SCRATCH)
def _open(links: NDArray[np.void], scratch: Scratch) -> None:
    for k in range(len(links)):
        scratch.ahead[k] = links[k]["queued_nbytes"]
        scratch.free_s[k] = scratch.ahead[k] / links[k]["rate"]


@jit.kernel(LOADS, LINKS, jit.i8, jit.f8, SCRATCH, DECISIONS)
def _decide_one(
    loads: Loads,
    links: NDArray[np.void],
    i: Int,
    switch_s: float,
    scratch: Scratch,
    decisions: NDArray[np.void],
) -> None:
    """Choose the load's copy and cut behind what is decided already; note what it would like."""
    load, decision = loads.records[i], decisions[i]
    last = np.int64(load["count"]) - 1
    best = _best(loads, links, i, 0, switch_s, scratch)
    decision["cut_at"] = loads.boundaries[load["first"] + best.cut] if best.cut < last else -1
    if best.cut < last and load["copy"] >= 0 and load["cut_at"] < 0:
        best = _best(loads, links, i, last, switch_s, scratch)  # once more, and it is cut
    decision["copy"], decision["cut"] = best.copy, best.cut
    decision["verdict"] = _WHOLE
    if best.cut < last:
        decision["verdict"] = _CUT if best.cut > 0 else _DROPPED


@jit.kernel(LOADS, LINKS, jit.i8, jit.i8, jit.f8, SCRATCH)
def _best(
    loads: Loads,
    links: NDArray[np.void],
    i: Int,
    shallowest: Int,
    switch_s: float,
    scratch: Scratch,
) -> Choice:
    """The cheapest copy and boundary; of equals the deepest, then the nearest."""
    load = loads.records[i]
    best, begun = Choice(0, 0, np.inf), load["copy"] >= 0
    for copy in range(np.int64(load["copies"])):
        for cut in range(shallowest, np.int64(load["count"])):
            at = loads.boundaries[load["first"] + cut]
            way = _way(loads, links, i, copy, cut, scratch)
            cost_s = way.step_s + load["n_waiting"] * recompute_s(scratch.cut, np.float64(at))
            if begun and (copy != load["copy"] or cut < load["count"] - 1):
                cost_s += switch_s
            if cost_s < best.cost_s or (cost_s == best.cost_s and cut > best.cut):
                best = Choice(copy, cut, cost_s)
    return best


@jit.kernel(LOADS, LINKS, jit.i8, jit.i8, jit.i8, SCRATCH)
def _way(
    loads: Loads, links: NDArray[np.void], i: Int, copy: Int, cut: Int, scratch: Scratch
) -> Way:
    """How the load would be served; leaves it in ``scratch.cut``, for recompute_s."""
    load, one = loads.records[i], scratch.cut[0]
    at = load["first"] + cut
    first, second = np.int64(load["links"][copy]), np.int64(load["second"])
    first_nbytes = np.float64(loads.first_nbytes[at, copy]) if first >= 0 else 0.0
    nbytes = np.float64(loads.second_nbytes[at])
    first_s = 0.0
    if first_nbytes > 0:
        first_s = scratch.free_s[first] + first_nbytes / links[first]["rate"]
    queue_s = max(first_s, scratch.free_s[second])
    one["tokens"] = loads.boundaries[load["first"] + load["count"] - 1]
    one["rate"], one["queue_s"] = links[second]["rate"], queue_s
    one["wait_s"], one["new_compute_s"] = load["wait_s"], load["new_compute_s"]
    one["token_s"], one["slope_s"] = load["token_s"], load["slope_s"]
    one["layers"] = load["layers"]
    step_s = finish_s(scratch.cut, np.float64(loads.boundaries[at]), nbytes)
    second_s = queue_s + nbytes / links[second]["rate"] if nbytes > 0 else first_s
    return Way(first_s, second_s, step_s)


@jit.kernel(LOADS, LINKS, jit.i8, jit.f8, SCRATCH, DECISIONS)
def _serve(
    loads: Loads,
    links: NDArray[np.void],
    i: Int,
    now_s: float,
    scratch: Scratch,
    decisions: NDArray[np.void],
) -> None:
    """Put the load on its links as it is decided, and predict it."""
    load, decision = loads.records[i], decisions[i]
    copy, cut = np.int64(decision["copy"]), np.int64(decision["cut"])
    way = _way(loads, links, i, copy, cut, scratch)
    first, second = np.int64(load["links"][copy]), np.int64(load["second"])
    at = load["first"] + cut
    variance = 0.0
    if first >= 0 and loads.first_nbytes[at, copy] > 0:
        scratch.ahead[first] += loads.first_nbytes[at, copy]
        scratch.free_s[first] = way.first_s
        variance += _variance(links, first, scratch)
    if loads.second_nbytes[at] > 0:
        scratch.ahead[second] += loads.second_nbytes[at]
        scratch.free_s[second] = way.second_s
        variance += _variance(links, second, scratch)
    decision["finish_s"] = now_s + way.second_s + Z90 * np.sqrt(variance)
    decision["late_s"] = max(0.0, decision["finish_s"] - load["deadline_s"])
    decision["step_s"] = way.step_s
    _note_layers(loads, links, i, scratch, decisions)


@jit.kernel(LINKS, jit.i8, SCRATCH)
def _variance(links: NDArray[np.void], k: Int, scratch: Scratch) -> float:
    """Of when the link has moved all that is ahead, in s^2."""
    link, x = links[k], scratch.ahead[k]
    return float(link["spread"] ** 2 * x + (link["drift"] * x / link["rate"]) ** 2)


@jit.kernel(LOADS, LINKS, jit.i8, SCRATCH, DECISIONS)
def _note_layers(
    loads: Loads,
    links: NDArray[np.void],
    i: Int,
    scratch: Scratch,
    decisions: NDArray[np.void],
) -> None:
    """N and N+ of a load that is streamed; 0 where it is not, or nothing of it moves."""
    load, decision = loads.records[i], decisions[i]
    at, link = load["first"] + decision["cut"], links[load["second"]]
    decision["head_layers"] = decision["layers_ahead"] = 0
    if load["layers"] == 0 or loads.second_nbytes[at] == 0:
        return
    layers = np.float64(load["layers"])
    load_s = loads.second_nbytes[at] / link["rate"] / layers
    compute_s = recompute_s(scratch.cut, np.float64(loads.boundaries[at]))
    compute_s = (compute_s + load["new_compute_s"]) / layers
    low_s = load_s * (1.0 + Z90 * link["drift"])
    decision["head_layers"] = equal_whole_layers(load_s, compute_s, layers)
    decision["layers_ahead"] = equal_layers_ahead(low_s, compute_s, layers)
