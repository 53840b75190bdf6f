# SPDX-License-Identifier: Apache-2.0
"""Nine of ten finishes come before F: on links that are steady, that drift and that have bursts."""

import asyncio

import numpy as np
import pytest

from bodocache import jit
from bodocache.clock import VirtualClock
from bodocache.move.calibration import Calibration, Prediction
from bodocache.move.link import Link

jit.warm()  # here, not in a test: a cold compile is not part of any test's time

RATE, CHUNK = 2e9, 4_000_000


def steady(rng, _):
    """Chunks take as long as they should, but for a tenth."""
    return 1.0 + 0.1 * rng.standard_normal()


def drifting(rng, now_s):
    """The rate swings by a third every 20 seconds."""
    return 1.0 + 0.33 * np.sin(now_s / 3.2) + 0.05 * rng.standard_normal()


class Bursty:
    """A neighbour takes four fifths of the link, for 50 ms at a time, a fifth of the time."""

    def __init__(self):
        self.is_slow = False

    def __call__(self, rng, _):
        if rng.random() < (0.2 if self.is_slow else 0.02):
            self.is_slow = not self.is_slow
        return (5.0 if self.is_slow else 1.0) * (1.0 + 0.1 * abs(rng.standard_normal()))


def judged(slower, seed, loads=1500):
    """The accuracy of a link whose chunks take ``slower`` times as long as at RATE."""

    async def scenario():
        rng, clock = np.random.default_rng(seed), VirtualClock()
        link = Link("disk->device", now_s=clock.now_s)
        link.begin(clock.now_s())
        for _ in range(loads):
            chunks = int(rng.integers(1, 60))
            prediction = link.predict(chunks * CHUNK)
            for _ in range(chunks):
                clock.advance(CHUNK / RATE * max(0.1, slower(rng, clock.now_s())))
                link.moved(clock.now_s(), CHUNK)
            if prediction is not None:
                link.calibration.judge(prediction, clock.now_s())
        return link.calibration.accuracy

    return asyncio.run(scenario())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("slower", [steady, drifting, Bursty()])
def test_nine_of_ten_finish_before_they_are_predicted_to(slower, seed):
    accuracy = judged(slower, seed)
    assert accuracy.made > 1400
    assert 0.85 <= accuracy.share <= 0.95


def test_without_learning_from_it_a_steady_link_would_be_misjudged(monkeypatch):
    monkeypatch.setattr("bodocache.move.calibration.STEP", 0.0)
    assert not 0.85 <= judged(steady, 0).share <= 0.95


def test_doubt_stays_within_bounds():
    calibration = Calibration()
    for finished_s in [0.0] * 500 + [2.0] * 500:
        calibration.judge(Prediction(0.0, 0.5, 1.0), finished_s)
        assert 0.05 <= calibration.doubt <= 50.0
    assert calibration.doubt == 50.0
    assert calibration.accuracy.share == 0.5


def test_a_link_that_stands_still_is_believed_to_stand_still_for_as_long_again():
    async def scenario():
        clock = VirtualClock()
        link = Link("disk->device", now_s=clock.now_s)
        link.begin(0.0)
        for _ in range(320):
            clock.advance(CHUNK / RATE)
            link.moved(clock.now_s(), CHUNK)
        soon = link.predict(CHUNK)
        assert soon.mean_s - clock.now_s() == pytest.approx(CHUNK / RATE)
        clock.advance(1.0)
        assert link.predict(CHUNK).mean_s - clock.now_s() == pytest.approx(1.0, rel=0.01)
        link.end(clock.now_s(), begun_s=0.0, pages=1, nbytes=CHUNK)  # it has nothing to do
        assert link.predict(CHUNK).mean_s - clock.now_s() == pytest.approx(CHUNK / RATE)

    asyncio.run(scenario())
