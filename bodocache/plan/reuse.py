# SPDX-License-Identifier: Apache-2.0
"""What is likely to be used again, learned from the requests themselves (plan/hazards.py counts).

A page's class is what was known when it was touched last:

* the last page of a request, filled or not, is one class, as it is hardly ever used again;
* a page used ``POPULAR_USES`` times is one of its mean gap's octave (log2, weight 1/4 a gap);
* any other of whether its request *continues* one before (the deepest page known was the last
  whole one of the request that touched it last), of how many pages were new (up to 2, 4, 16 or
  more), and whether it is used for the first time or at what gap (3 octaves each).

Each class is there ``LEVELS`` times, for what a caller's hint is worth. Of each tenant and tenth of
the said probability it is counted how often the request was continued, that is, its last whole
page touched again; the ratio to the tenant's mean picks the level. So a hint without worth has
ratio 1, the level of nothing said, and changes nothing.

What is remembered of a page is 32 bytes (MEMORY), also while it is away, until it is forgotten.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan import hazards as counted
from bodocache.plan import unproven
from bodocache.plan.records import Int

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

NEW_PAGES = (2, 4, 16)
POPULAR_USES = 4
OCTAVES = 10  # of mean gaps, from 1 s on
GAP_WEIGHT = 0.25
LEVELS = 5  # of hints; AS_USUAL: nothing said, or nothing worth saying
AS_USUAL = 2
LEVEL_RATIOS = (0.3, 0.75, 1.3, 1.75)
TENANTS = 256  # told apart by their hints and shares; more share a row
HINT_PAGES = 50.0  # weight of the tenant's mean in a bucket
_BUCKETS = 10
_TAIL, _POPULAR, _OTHERS = 0, 1, 1 + OCTAVES
_PER_SHAPE = 5
_SHAPES = 2 * (len(NEW_PAGES) + 1)
_CLASSES_A_LEVEL = _OTHERS + _SHAPES * _PER_SHAPE
WORTHLESS = LEVELS * _CLASSES_A_LEVEL  # the class of pages that are never used again: 255
CLASSES = WORTHLESS + 1
_FAMILIES = _SHAPES + 2
_SAID, _CONTINUED = range(2)

# What is believed before anything is counted: the first half of the conversation trace.
_GAP_S, _GAP_SIGMA = 140.0, 0.9  # log-normal, median and sigma of its logarithm
_NEW_CHANCE = (0.42, 0.39, 0.38, 0.32)  # of reuse, by new pages
_CONTINUED_CHANCE = (0.60, 0.45, 0.12, 0.08)
_USED_FACTOR = 0.75  # of the chance that a page used before is not used again
_TAIL_CHANCE = 0.01
_POPULAR_CHANCE, _POPULAR_SIGMA = 0.9, 2.0
_LEAST_HAZARD = 1e-6  # at ages of days, where nothing is left of a log-normal gap
_LEVEL_ODDS = (0.03, 0.4, 1.0, 4.0, 30.0)

MEMORY = np.dtype(
    [
        ("stamp_s", "<f8"),  # of the last touch
        ("group", "<i8"),
        ("mean_gap", "<f4"),  # log2(1 + s)
        ("hint", "<i4"),  # 1 + row of the tenant's bucket, if it is a request's last whole page
        ("kind", "<i2"),  # class
        ("uses", "u1"),  # up to 255; 0: nothing is known of it
        ("tenant", "u1"),  # who used it first, modulo TENANTS
        ("from_end", "u1"),  # pages behind it in the last request, up to 255
        ("continues", "u1"),  # 1: the last request continued one before
    ],
    align=True,
)


class Model(NamedTuple):
    """What is learned, and what callers' hints were worth."""

    hazards: counted.Hazards
    hints: Floats  # [2, TENANTS, _BUCKETS] requests for which it was said, those continued
    reused: Floats  # [TENANTS] pages each used again (unproven.py)
    counts: Ids  # [1] requests


def open_model() -> Model:
    """A model that has seen nothing."""
    prior, family = _beliefs()
    hazards = counted.open_hazards(prior, family)
    hints = np.zeros((2, TENANTS, _BUCKETS))
    return Model(hazards, hints, np.zeros(TENANTS), np.zeros(1, np.int64))


def _beliefs() -> tuple[Floats, Ids]:
    """The prior hazards and the family of each class."""
    prior, family = np.zeros((CLASSES, counted.BINS)), np.zeros(CLASSES, np.int64)
    family[WORTHLESS] = LEVELS * _FAMILIES
    for kind in range(WORTHLESS):
        level, base = divmod(kind, _CLASSES_A_LEVEL)
        shape, used = divmod(base - _OTHERS, _PER_SHAPE)
        family[kind] = level * _FAMILIES + (2 + shape if base >= _OTHERS else min(base, 1))
        chance, sigma = _TAIL_CHANCE if base == _TAIL else _POPULAR_CHANCE, _POPULAR_SIGMA
        if base >= _OTHERS:
            chance = (*_NEW_CHANCE, *_CONTINUED_CHANCE)[shape]
            chance, sigma = 1 - (1 - chance) * _USED_FACTOR ** min(used, 1), _GAP_SIGMA
        odds = chance / (1 - chance) * _LEVEL_ODDS[level]
        prior[kind] = _log_normal_hazards(odds / (1 + odds), _GAP_S, sigma)
    return prior, family


def _log_normal_hazards(chance: float, median_s: float, sigma: float) -> Floats:
    """Hazards of a use that comes with ``chance``, and then after a log-normal gap."""
    edges = counted.bin_edges()[1:]
    before = [0.5 * (1 + math.erf(math.log(edge / median_s) / sigma / 2**0.5)) for edge in edges]
    reached = 1 - chance * np.array([0.0, *before])
    return np.maximum(-np.diff(reached) / reached[:-1], _LEAST_HAZARD)


MODEL = jit.named(Model, counted.HAZARDS, jit.array("f8", 3), jit.array("f8"), jit.array("i8"))
MEMORIES = jit.array(MEMORY)
Memories = NDArray[np.void]


class Asked(NamedTuple):
    """Where the pages stand in the request that touches them, and who asks."""

    before: Int  # the row before them, touched by the same request already; -1: they are its first
    behind: Int  # pages of the prompt behind them, which nobody has given a row yet
    tenant: Int
    hint: float  # the caller's probability that the request will be continued; NaN: nothing said


ASKED = jit.named(Asked, jit.i8, jit.i8, jit.i8, jit.f8)


@jit.kernel(MODEL, MEMORIES, jit.readonly("i8"), jit.f8, ASKED)
def observe(model: Model, memories: Memories, rows: Ids, now_s: float, asked: Asked) -> None:
    """A request touches ``rows``, in the order of its prompt: learn from it, class them anew.

    One request may come in two calls: the pages that were found, later those that were stored.
    """
    counted.advance(model.hazards, now_s)
    model.counts[0] += 1
    known = _known(memories, rows)
    _count_reused(model, asked.tenant, known)
    continues = _continues(memories, rows, known, asked.before)
    for at in range(len(rows)):
        if at < known:
            _use(model, memories, rows[at], now_s)
        else:
            forget(model, memories, rows[at])
    bucket = _bucket(asked.tenant, asked.hint)
    shape = _shape(len(rows) - known + asked.behind) + int(continues) * (len(NEW_PAGES) + 1)
    level = _level(model.hints, bucket)
    for at in range(len(rows)):
        memory = memories[rows[at]]
        behind = len(rows) - 1 - at + asked.behind
        if memory["uses"] == 0:
            memory["tenant"] = asked.tenant % TENANTS
        memory["uses"] = min(memory["uses"] + 1, 255)
        memory["from_end"], memory["continues"] = min(behind, 255), continues
        base: Int = _TAIL
        if behind > 0:
            base = _base(shape, np.int64(memory["uses"]), np.float64(memory["mean_gap"]))
        _class(model, memories, rows[at], level * _CLASSES_A_LEVEL + base, now_s)
        memory["hint"] = 0
    if asked.behind <= 1:
        _say(model, memories, rows, len(rows) + asked.behind - 2, bucket)


@jit.kernel(MEMORIES, jit.readonly("i8"), jit.i8, jit.i8)
def _continues(memories: Memories, rows: Ids, known: Int, before: Int) -> bool:
    """Whether the deepest page known was the last whole one of the request that touched it last."""
    if before >= 0:
        return bool(memories[before]["continues"])
    return bool(known > 0 and memories[rows[known - 1]]["from_end"] <= 1)


@jit.kernel(MODEL, MEMORIES, jit.i8, jit.i8, jit.f8)
def _class(model: Model, memories: Memories, row: Int, kind: Int, now_s: float) -> None:
    memory = memories[row]
    memory["stamp_s"], memory["kind"] = now_s, kind
    memory["group"] = counted.join(model.hazards, kind, model.counts[0], now_s)


@jit.kernel(MODEL, MEMORIES, jit.readonly("i8"), jit.f8)
def adopt(model: Model, memories: Memories, rows: Ids, now_s: float) -> None:
    """Take up ``rows`` that an earlier process left behind: used once, nobody knows by whom."""
    model.counts[0] += 1
    kind = AS_USUAL * _CLASSES_A_LEVEL + _base(len(NEW_PAGES), 1, 0.0)
    for row in rows:
        forget(model, memories, row)
        memory = memories[row]
        memory["uses"], memory["from_end"], memory["tenant"] = 1, 255, 0
        _class(model, memories, row, kind, now_s)


@jit.kernel(MODEL, MEMORIES, jit.readonly("i8"))
def write_off(model: Model, memories: Memories, rows: Ids) -> None:
    """``rows`` will not be used again: they are worth nothing until somebody touches them."""
    for row in rows:
        forget(model, memories, row)
        memories[row]["kind"] = WORTHLESS


@jit.kernel(MODEL, jit.i8, jit.i8)
def _count_reused(model: Model, tenant: Int, pages: Int) -> None:
    if model.counts[0] % counted.FIT_REQUESTS == 0:
        unproven.fade(model.reused)
    model.reused[tenant % TENANTS] += pages


@jit.kernel(MEMORIES, jit.readonly("i8"))
def _known(memories: Memories, rows: Ids) -> Int:
    """Leading pages of which something is remembered."""
    known: Int = 0
    while known < len(rows) and memories[rows[known]]["uses"] > 0:
        known += 1
    return known


@jit.kernel(MODEL, MEMORIES, jit.i8, jit.f8)
def _use(model: Model, memories: Memories, row: Int, now_s: float) -> None:
    """A known page is touched again: it leaves its group, and its gap is averaged in."""
    memory = memories[row]
    counted.reuse(model.hazards, np.int64(memory["group"]), now_s)
    if memory["hint"] > 0:
        tenant, bucket = divmod(np.int64(memory["hint"]) - 1, _BUCKETS)
        model.hints[_CONTINUED, tenant, bucket] += 1
    gap = np.log2(1 + max(0.0, now_s - memory["stamp_s"]))
    weight = 1.0 if memory["uses"] == 1 else GAP_WEIGHT
    memory["mean_gap"] += weight * (gap - memory["mean_gap"])


@jit.kernel(MODEL, MEMORIES, jit.i8)
def forget(model: Model, memories: Memories, row: Int) -> None:
    """Remember nothing of the page any more, which is as if it had never been touched."""
    memory = memories[row]
    if memory["uses"] > 0:
        counted.leave(model.hazards, np.int64(memory["group"]))
    memory["uses"] = 0
    memory["mean_gap"] = 0


@jit.kernel(jit.i8)
def _shape(new_pages: Int) -> Int:
    shape: Int = 0
    while shape < len(NEW_PAGES) and new_pages > NEW_PAGES[shape]:
        shape += 1
    return shape


@jit.kernel(jit.i8, jit.i8, jit.f8)
def _base(shape: Int, uses: Int, mean_gap: float) -> Int:
    """The class at level 0 of a page that is not its request's last, used ``uses`` times now."""
    if uses > POPULAR_USES:
        return _POPULAR + min(int(mean_gap), OCTAVES - 1)
    used = 1 + min(int(mean_gap) // 3, 3) if uses > 1 else 0
    return _OTHERS + shape * _PER_SHAPE + used


@jit.kernel(jit.i8, jit.f8)
def _bucket(tenant: Int, hint: float) -> Int:
    """1 + the row of what was said, by whom; 0: nothing was said."""
    if np.isnan(hint):
        return 0
    tenth = min(max(int(hint * _BUCKETS), 0), _BUCKETS - 1)
    return 1 + (tenant % TENANTS) * _BUCKETS + tenth


@jit.kernel(jit.array("f8", 3), jit.i8)
def _level(hints: Floats, bucket: Int) -> Int:
    """How much more often than the tenant's mean requests of the bucket were continued."""
    if bucket == 0:
        return AS_USUAL
    tenant, tenth = divmod(bucket - 1, _BUCKETS)
    said = hints[_SAID, tenant].sum()
    mean = (hints[_CONTINUED, tenant].sum() + 1) / (said + 2)
    here = hints[_CONTINUED, tenant, tenth] + HINT_PAGES * mean
    ratio = here / (hints[_SAID, tenant, tenth] + HINT_PAGES) / mean
    level: Int = 0
    while level < len(LEVEL_RATIOS) and ratio > LEVEL_RATIOS[level]:
        level += 1
    return level


@jit.kernel(MODEL, MEMORIES, jit.readonly("i8"), jit.i8, jit.i8)
def _say(model: Model, memories: Memories, rows: Ids, at: Int, bucket: Int) -> None:
    """Watch the request's last whole page, to learn what was said about it."""
    if bucket > 0 and at >= 0:
        tenant, tenth = divmod(bucket - 1, _BUCKETS)
        model.hints[_SAID, tenant, tenth] += 1
        memories[rows[at]]["hint"] = bucket
