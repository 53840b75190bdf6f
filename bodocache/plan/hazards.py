# SPDX-License-Identifier: Apache-2.0
"""Counted hazards: how likely a page of a class is to be used again, by the age it has reached.

Pages that one request touched and that are of one class are a *group*; a page leaves its group when
it is used again (a reuse) or is forgotten. ``h(b)``, the hazard of an age bin, is the pages reused
in b by the pages that reached b (a life table: what has not happened yet is not counted as never).
The pages of a group live and die together, so it counts as the square root of its pages. Counts
lose 2 % every 100 requests. Those of a class are smoothed over neighbouring bins and drawn to those
of its family by a count of ``CLASS_WEIGHT``, and these to the prior by ``PRIOR_WEIGHT``.

The score of an age is the Gittins index of the page's future, the hits a page-second brings while
it pays to wait: ``max over t of P(reuse before t) / E[seconds until reuse or t]``, both from h, as
LHD's hit density (Beckmann et al., NSDI'18) but with the best horizon instead of the eviction's.
Fixed memory, 3.1 MB, which the caller owns; nothing is checked here. What each part brings:
bench/learned.py; without the best horizon 21 % fewer hits at 10,000 pages.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.records import Int

FAMILIES = 64  # at most
BINS = 52  # ages: two an octave from 1/32 s on; the last one is 12 days and more
GROUPS = 1 << 16  # remembered; older ones are not counted
FIT_REQUESTS = 100
DECAY = 0.98  # at each fit
NEIGHBOUR = 0.5  # weight of the bins beside one; without: 3 % fewer hits at 3,000 pages
CLASS_WEIGHT = 64.0  # without: 2 % fewer hits at 3,000 pages
PRIOR_WEIGHT = 256.0  # without beliefs: 7 % fewer hits at 3,000 pages
_LEAST_AGE_S = 1 / 32
_MOST_HAZARD = 0.98

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

_GROUP = np.dtype(
    [
        ("stamp_s", "<f8"),
        ("request", "<i8"),
        ("joined", "<i4"),  # pages touched
        ("pages", "<i4"),  # of them neither used again nor forgotten
        ("kind", "<i8"),  # class
    ],
    align=True,
)
_OPENED, _UNFITTED = range(2)


class Hazards(NamedTuple):
    """C classes, B age bins, F families."""

    reuses: Floats  # [C, B] count of pages used again at that age
    at_risk: Floats  # [C, B] count of pages that reached that age unused
    score: Floats  # [C, B] hits a page-second
    prior: Floats  # [C, B] hazard of a class of which nothing is known
    family: Ids  # [C]
    kin: Floats  # [2, F, B] reuses and at_risk of each family, at the last fit
    hazard: Floats  # [B] of the class that is being fitted
    edges: Floats  # [B + 1] least age of each bin, in seconds
    groups: NDArray[np.void]  # _GROUP[GROUPS], a ring
    latest: Ids  # [C] the group of the class opened last
    swept: Ids  # [B] groups before this one have reached that age
    counts: Ids  # [2] groups opened, requests since the last fit


def bin_edges() -> Floats:
    """The least age of each bin, in seconds, and an end for the last one."""
    return np.concatenate(([0.0], _LEAST_AGE_S * np.exp2(np.arange(BINS) / 2)))


def open_hazards(prior: Floats, family: Ids) -> Hazards:
    """Nothing counted yet; ``prior`` [classes, BINS] and ``family`` [classes] fix the classes."""
    classes = len(family)
    hazards = Hazards(
        np.zeros((classes, BINS)),
        np.zeros((classes, BINS)),
        np.zeros((classes, BINS)),
        np.ascontiguousarray(prior),
        family,
        np.zeros((2, FAMILIES, BINS)),
        np.zeros(BINS),
        bin_edges(),
        np.zeros(GROUPS, _GROUP),
        np.full(classes, -1),
        np.zeros(BINS, np.int64),
        np.zeros(2, np.int64),
    )
    fit(hazards)
    return hazards


_TABLE, _IDS, _FLOATS = jit.array("f8", 2), jit.array("i8"), jit.array("f8")
HAZARDS = jit.named(
    Hazards,
    *[_TABLE] * 4,
    _IDS,
    jit.array("f8", 3),
    _FLOATS,
    _FLOATS,
    jit.array(_GROUP),
    *[_IDS] * 3,
)


@jit.kernel(HAZARDS, jit.f8)
def bin_of(hazards: Hazards, age_s: float) -> Int:
    """The bin of an age."""
    if age_s < _LEAST_AGE_S:
        return 0
    found = min(int(2 * np.log2(age_s / _LEAST_AGE_S)) + 1, BINS - 1)
    return found - 1 if age_s < hazards.edges[found] else found  # log2 may round up


@jit.kernel(HAZARDS, jit.f8)
def advance(hazards: Hazards, now_s: float) -> None:
    """A request arrives: count the pages that reached another age, fit when it is time."""
    opened = hazards.counts[_OPENED]
    for at in range(BINS):
        group = max(hazards.swept[at], opened - GROUPS)
        while group < opened:
            entry = hazards.groups[group % GROUPS]
            if now_s - entry["stamp_s"] < hazards.edges[at]:
                break
            hazards.at_risk[entry["kind"], at] += entry["pages"] / np.sqrt(entry["joined"])
            group += 1
        hazards.swept[at] = group
    hazards.counts[_UNFITTED] += 1
    if hazards.counts[_UNFITTED] >= FIT_REQUESTS:
        fit(hazards)


@jit.kernel(HAZARDS, jit.i8, jit.i8, jit.f8)
def join(hazards: Hazards, kind: Int, request: Int, now_s: float) -> Int:
    """A page of class ``kind`` was touched by ``request``; return the group it is in now."""
    group: Int = hazards.latest[kind]
    if group < 0 or not _is_of(hazards.groups[group % GROUPS], kind, request):
        group = hazards.counts[_OPENED]
        hazards.counts[_OPENED] = group + 1
        hazards.latest[kind] = group
        entry = hazards.groups[group % GROUPS]
        entry["stamp_s"] = now_s
        entry["request"] = request
        entry["joined"] = 0
        entry["pages"] = 0
        entry["kind"] = kind
    hazards.groups[group % GROUPS]["joined"] += 1
    hazards.groups[group % GROUPS]["pages"] += 1
    return group


@jit.kernel(jit.record(_GROUP), jit.i8, jit.i8)
def _is_of(group: Any, kind: Int, request: Int) -> bool:
    return bool(group["request"] == request and group["kind"] == kind)


@jit.kernel(HAZARDS, jit.i8)
def leave(hazards: Hazards, group: Int) -> None:
    """A page of ``group`` was forgotten."""
    if group >= hazards.counts[_OPENED] - GROUPS:
        hazards.groups[group % GROUPS]["pages"] -= 1


@jit.kernel(HAZARDS, jit.i8, jit.f8)
def reuse(hazards: Hazards, group: Int, now_s: float) -> None:
    """A page of ``group`` is used again; the clock has advanced to ``now_s``."""
    if group < hazards.counts[_OPENED] - GROUPS:
        return
    entry = hazards.groups[group % GROUPS]
    entry["pages"] -= 1
    at = bin_of(hazards, now_s - entry["stamp_s"])
    hazards.reuses[entry["kind"], at] += 1 / np.sqrt(entry["joined"])


@jit.kernel(HAZARDS)
def fit(hazards: Hazards) -> None:
    """Score every class at every age from what is counted, and let the counts fade."""
    hazards.counts[_UNFITTED] = 0
    hazards.kin[:] = 0.0
    for kind in range(len(hazards.family)):
        for at in range(BINS):
            hazards.kin[0, hazards.family[kind], at] += _smooth(hazards.reuses, kind, at)
            hazards.kin[1, hazards.family[kind], at] += _smooth(hazards.at_risk, kind, at)
    for kind in range(len(hazards.family)):
        _fit_hazard(hazards, kind)
        for at in range(BINS):
            hazards.score[kind, at] = _index(hazards, at)
    for kind in range(len(hazards.family)):
        for at in range(BINS):
            hazards.reuses[kind, at] *= DECAY
            hazards.at_risk[kind, at] *= DECAY


@jit.kernel(_TABLE, jit.i8, jit.i8)
def _smooth(table: Floats, kind: Int, at: Int) -> float:
    total, weight = table[kind, at], 1.0
    if at > 0:
        total += NEIGHBOUR * table[kind, at - 1]
        weight += NEIGHBOUR
    if at + 1 < BINS:
        total += NEIGHBOUR * table[kind, at + 1]
        weight += NEIGHBOUR
    return float(total / weight)


@jit.kernel(HAZARDS, jit.i8)
def _fit_hazard(hazards: Hazards, kind: Int) -> None:
    family = hazards.family[kind]
    for at in range(BINS):
        reused = hazards.kin[0, family, at] + PRIOR_WEIGHT * hazards.prior[kind, at]
        kin = reused / (hazards.kin[1, family, at] + PRIOR_WEIGHT)
        own = _smooth(hazards.reuses, kind, at) + CLASS_WEIGHT * kin
        own /= _smooth(hazards.at_risk, kind, at) + CLASS_WEIGHT
        hazards.hazard[at] = min(own, _MOST_HAZARD)


@jit.kernel(HAZARDS, jit.i8)
def _index(hazards: Hazards, start: Int) -> float:
    """Gittins' index from bin ``start`` on; a reuse falls in the middle of its bin."""
    unused, reused, seconds, best = 1.0, 0.0, 0.0, 0.0
    for at in range(start, BINS):
        width_s = hazards.edges[at + 1] - hazards.edges[at]
        here = unused * hazards.hazard[at]
        reused += here
        unused -= here
        seconds += (unused + 0.5 * here) * width_s
        best = max(best, reused / seconds)
    return best


@jit.kernel(HAZARDS, jit.i8, jit.f8)
def score(hazards: Hazards, kind: Int, age_s: float) -> float:
    """Hits a page-second of a page of class ``kind`` that was used ``age_s`` ago."""
    return float(hazards.score[kind, bin_of(hazards, age_s)])


@jit.kernel(HAZARDS, jit.i8)
def chance(hazards: Hazards, kind: Int) -> float:
    """The probability that a page of class ``kind``, used just now, is used again."""
    _fit_hazard(hazards, kind)
    unused = 1.0
    for at in range(BINS):
        unused *= 1.0 - hazards.hazard[at]
    return 1.0 - unused
