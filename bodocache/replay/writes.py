# SPDX-License-Identifier: Apache-2.0
"""Which pages to write to disk: hits kept against pages written, for several admission rules.

A rule orders touches by worth; a threshold on it writes as much as one likes (tiers.py). Its curve
has a point for each threshold tried. Between two points lies what a coin between them would do.
A rule with coins in it is the mean of ``COINS`` tries: a lucky one can seem a better rule.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.random import PCG64, Generator
from numpy.typing import NDArray

from bodocache.replay import hints
from bodocache.replay.policies.model import Floats, Ids, Touches, checked
from bodocache.replay.predict import reuse_chances
from bodocache.replay.tiers import When, keep
from bodocache.replay.trace import Trace

POINTS = 64  # thresholds tried: quantiles of the worths
COINS = 8


class Rule(StrEnum):
    """An admission rule's name, in JSON and tables."""

    CHANCE = "chance"
    SHALLOW = "shallow"
    SECOND_SIGHT = "second-sight"
    PREDICTED = "predicted"
    PERFECT_HINT = "perfect-hint"
    FORESIGHT = "foresight"


def _flags_of_last(touches: Touches) -> NDArray[np.bool_]:
    """Whether each touch is its request's last, of a page that is rarely filled."""
    last = np.zeros(len(touches.ids), np.bool_)
    last[touches.offsets[1:][np.diff(touches.offsets) > 0] - 1] = True
    return last


def a_touch(touches: Touches, of_requests: Floats) -> Floats:
    """The value of its request for each touch, and -1 for a request's last page."""
    values = np.repeat(of_requests, np.diff(touches.offsets))
    return np.where(_flags_of_last(touches), -1.0, values)


def chance(touches: Touches, seed: int) -> Floats:
    """A coin a request, in [0, 1)."""
    return a_touch(touches, Generator(PCG64(seed)).random(len(touches.timestamps_s)))


def shallow(touches: Touches) -> Floats:
    """The first pages of prompts first."""
    return -touches.depths[touches.ids].astype(np.float64)


def second_sight(touches: Touches, seed: int) -> Floats:
    """The number of touches so far; among pages touched once, :func:`chance`."""
    uses = uses_so_far(touches)
    return np.where(uses > 1, uses, chance(touches, seed))


def perfect_hint(touches: Touches) -> Floats:
    """1 where the request will be continued."""
    return a_touch(touches, hints.perfect(touches))


def foresight(touches: Touches) -> Floats:
    """1 where the page will be touched again. When.LEAVE: nobody keeps all hits with less."""
    last_touch = np.zeros(len(touches.parents), np.int64)
    numbers = np.arange(len(touches.ids))
    np.maximum.at(last_touch, touches.ids, numbers)
    return (last_touch[touches.ids] > numbers).astype(np.float64)


def uses_so_far(touches: Touches) -> Ids:
    """The touches of its page up to each touch, from 1."""
    order = np.argsort(touches.ids, kind="stable")
    sorted_ids = touches.ids[order]
    begins = np.flatnonzero(np.diff(sorted_ids, prepend=-1))
    lengths = np.diff(begins, append=len(order))
    uses = np.empty(len(order), np.int64)
    uses[order] = np.arange(len(order)) - np.repeat(begins, lengths) + 1
    return uses


WORTH: dict[Rule, Callable[[Touches], Floats]] = {
    Rule.SHALLOW: shallow,
    Rule.PREDICTED: reuse_chances,
    Rule.PERFECT_HINT: perfect_hint,
    Rule.FORESIGHT: foresight,
}
WITH_COINS: dict[Rule, Callable[[Touches, int], Floats]] = {
    Rule.CHANCE: chance,
    Rule.SECOND_SIGHT: second_sight,
}


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Points of one rule, by pages written, rising."""

    written: Ids
    hits: Ids  # in host or disk

    def at(self, written: float) -> float:
        """Hits with so many pages written."""
        return float(np.interp(written, self.written, self.hits))

    def least_for(self, hits: float) -> float:
        """Pages written for so many hits, of the points tried; inf: none has as many."""
        return float(min(self.written[self.hits >= hits], default=np.inf))


@dataclass(frozen=True, slots=True)
class Writes:
    """What every rule keeps on one trace."""

    trace: str
    requests: int
    touches: int
    host_pages: int
    through_pages: int  # written by write-through
    through_hits: int
    host_hits: int  # of the host alone, nothing written
    of: dict[tuple[Rule, When], Curve]


def measure(trace: Trace, host_pages: int, rules: Iterable[Rule] = Rule) -> Writes:
    """Serve ``trace`` from a host of ``host_pages`` over a disk, under each rule."""
    columns = trace.pages, trace.offsets, trace.parent, trace.depth, trace.timestamps_s
    touches = checked(Touches(*columns, trace.tenants))
    everything = np.zeros(trace.touches)
    through = keep(touches, host_pages, everything, -np.inf, When.STORE)
    return Writes(
        trace=trace.name,
        requests=trace.num_requests,
        touches=trace.touches,
        host_pages=host_pages,
        through_pages=through.written,
        through_hits=through.hits,
        host_hits=int(through.host_hits.sum()),
        of={
            (rule, when): mean([curve(touches, host_pages, worth, when) for worth in worths])
            for rule in rules
            for worths in [_worths(rule, touches)]
            for when in When
        },
    )


def curve(touches: Touches, host_pages: int, worth: Floats, when: When) -> Curve:
    """The points of a rule, from nothing written to everything."""
    levels = np.unique(np.quantile(worth, np.linspace(0, 1, POINTS), method="nearest"))
    done = [keep(touches, host_pages, worth, level, when) for level in (*levels, np.inf)]
    most: dict[int, int] = {}
    for kept in done:
        most[kept.written] = max(kept.hits, most.get(kept.written, 0))
    written, hits = np.array(sorted(most.items()), np.int64).T.copy()
    return Curve(written, hits)


def _worths(rule: Rule, touches: Touches) -> list[Floats]:
    if rule in WITH_COINS:
        return [WITH_COINS[rule](touches, seed) for seed in range(COINS)]
    return [WORTH[rule](touches)]


def mean(curves: Sequence[Curve]) -> Curve:
    """The mean hits of curves with equal ends, at POINTS numbers of pages; one stays as it is."""
    if len(curves) == 1:
        return curves[0]
    written = np.unique(np.linspace(0, curves[0].written[-1], POINTS).astype(np.int64))
    hits = np.mean([np.interp(written, each.written, each.hits) for each in curves], axis=0)
    return Curve(written, hits.round().astype(np.int64))
