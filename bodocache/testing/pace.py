# SPDX-License-Identifier: Apache-2.0
"""How fast a simulated link is, moment by moment: steady, bursty, drifting, failing or hung.

A pace is a seeded step function of time: the share of the nominal rate that the link gives. Its
steps are drawn as far as somebody looks, always in the same order, so that one seed is one pace
whoever asks first. Whoever holds it may look ahead: that is what an oracle does.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from enum import StrEnum

import numpy as np


class Weather(StrEnum):
    """The kinds of pace."""

    STEADY = "steady"  # 5 % of noise, every 0.1 s
    BURSTY = "bursty"  # bursts of others' work leave a tenth to a half, for 0.75 s every 3 s
    DRIFTING = "drifting"  # a walk between a quarter and one and a half
    FAILING = "failing"  # now and then nothing moves for seconds, and what was asked for fails
    HUNG = "hung"  # at some time it stops, and fails an hour later


CALM_S, BURST_S = 2.25, 0.75  # on average; drawn exponentially
OUTAGE_EVERY_S, OUTAGE_S = 20.0, 1.5
HANGS_AFTER_S, HANGS_S = 30.0, 3600.0
NOISE, NOISE_S = 0.05, 0.1
WALK, WALK_S = 0.15, 0.5

Step = tuple[float, float, bool]  # seconds, share of the rate, whether what it meets fails


class Pace:
    """The share of its rate that a link gives at each moment."""

    def __init__(
        self, weather: Weather = Weather.STEADY, seed: int = 0, *, haste: float = 1.0
    ) -> None:
        """``haste``: so many times as fast the weather changes, for worlds that last seconds."""
        self.weather = weather
        self._haste = haste
        self._steps = _STEPS[weather](np.random.default_rng([seed, 0x9ACE]))
        self._begins_s = [0.0]
        self._shares: list[float] = []
        self._fails: list[bool] = []
        self._done = [0.0]  # full-rate seconds given when each step begins

    def share(self, at_s: float) -> float:
        """What the link gives at ``at_s``, of its rate."""
        return self._shares[self._step(at_s)]

    def fails(self, start_s: float, end_s: float) -> bool:
        """Whether an operation that is under way meanwhile fails."""
        last = self._step(end_s)
        return any(self._fails[self._step(start_s) : last + 1])

    def finish_s(self, start_s: float, work_s: float) -> float:
        """When ``work_s`` seconds of the full rate, begun at ``start_s``, are done."""
        if work_s <= 0.0:
            return start_s
        at = self._step(start_s)
        goal = self._done[at] + (start_s - self._begins_s[at]) * self._shares[at] + work_s
        while self._done[-1] < goal:
            self._draw()
        at = bisect_left(self._done, goal) - 1  # the step in which the goal is reached
        return self._begins_s[at] + (goal - self._done[at]) / self._shares[at]

    def _step(self, at_s: float) -> int:
        while self._begins_s[-1] <= at_s:
            self._draw()
        return bisect_right(self._begins_s, at_s) - 1

    def _draw(self) -> None:
        seconds, share, fails = next(self._steps)
        seconds /= self._haste
        self._shares.append(share)
        self._fails.append(fails)
        self._done.append(self._done[-1] + seconds * share)
        self._begins_s.append(self._begins_s[-1] + seconds)


def _steady(random: np.random.Generator) -> Iterator[Step]:
    while True:
        for share in (1.0 + NOISE * random.uniform(-1.0, 1.0, 256)).tolist():
            yield NOISE_S, share, False


def _bursty(random: np.random.Generator) -> Iterator[Step]:
    while True:
        yield float(random.exponential(CALM_S)) + 1e-3, 1.0, False
        yield float(random.exponential(BURST_S)) + 1e-3, float(random.uniform(0.1, 0.5)), False


def _drifting(random: np.random.Generator) -> Iterator[Step]:
    place = 0.0
    while True:
        place = 0.98 * place + WALK * float(random.standard_normal())
        yield WALK_S, min(1.5, max(0.25, math.exp(place))), False


def _failing(random: np.random.Generator) -> Iterator[Step]:
    while True:
        yield float(random.exponential(OUTAGE_EVERY_S)) + 1e-3, 1.0, False
        yield float(random.exponential(OUTAGE_S)) + 1e-3, 0.0, True


def _hung(random: np.random.Generator) -> Iterator[Step]:
    yield float(random.exponential(HANGS_AFTER_S)) + 1e-3, 1.0, False
    yield HANGS_S, 0.0, True
    while True:
        yield HANGS_S, 1.0, False


_STEPS = {
    Weather.STEADY: _steady,
    Weather.BURSTY: _bursty,
    Weather.DRIFTING: _drifting,
    Weather.FAILING: _failing,
    Weather.HUNG: _hung,
}
