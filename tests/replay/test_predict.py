# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from bodocache import jit
from bodocache.replay import hints, writes
from bodocache.replay.policies.model import Touches, checked
from bodocache.replay.predict import reuse_chances
from bodocache.replay.shapes import workload
from bodocache.replay.trace import build_trace

jit.warm()  # here, not in a test: a cold compile is not part of any test's time


def touches_of(requests):
    trace = build_trace("made", requests)
    columns = trace.pages, trace.offsets, trace.parent, trace.depth, trace.timestamps_s
    return checked(Touches(*columns, trace.tenants))


@pytest.fixture(scope="module")
def requests():
    return list(workload("documents", seed=21, requests=4000).requests())


@pytest.fixture(scope="module")
def touches(requests):
    return touches_of(requests)


def test_chances_are_probabilities_and_know_more_than_a_coin(touches):
    chances = reuse_chances(touches)
    assert ((chances >= 0) & (chances <= 1)).all()
    again = writes.foresight(touches) > 0
    assert hints.measured_auc(again, chances) > 0.7


def test_what_is_likely_comes_true_and_what_is_not_does_not(touches):
    middle = slice(len(touches.ids) // 4, len(touches.ids) // 2)  # learned, and time enough to see
    chances, again = reuse_chances(touches)[middle], writes.foresight(touches)[middle]
    assert again[chances >= 0.5].mean() > 0.8
    assert again[chances < 0.5].mean() < 0.2
    assert again.mean() == pytest.approx(chances.mean(), abs=0.05)


def test_a_chance_is_known_when_the_page_is_touched(requests, touches):
    begun = touches_of(requests[:2500])
    assert (reuse_chances(touches)[: len(begun.ids)] == reuse_chances(begun)).all()


def test_a_perfect_hint_makes_chances_better_and_a_useless_one_does_not(touches):
    truth, again = hints.continued(touches), writes.foresight(touches) > 0
    said = (None, hints.perfect(touches), hints.useless(truth, 0.9, 1))
    none, perfect, useless = (
        hints.measured_auc(again, reuse_chances(touches, column)) for column in said
    )
    assert perfect > none + 0.02
    assert useless == pytest.approx(none, abs=0.01)


def test_nobody_saying_anything_is_saying_nan(touches):
    silent = np.full(len(touches.timestamps_s), np.nan)
    assert (reuse_chances(touches, silent) == reuse_chances(touches)).all()
