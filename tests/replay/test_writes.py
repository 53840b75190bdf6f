# SPDX-License-Identifier: Apache-2.0
import math
from collections import Counter

import numpy as np
import pytest

from bodocache import jit
from bodocache.replay import hints, writes
from bodocache.replay.policies.model import Touches, checked
from bodocache.replay.shapes import workload
from bodocache.replay.tiers import When
from bodocache.replay.trace import load_trace
from bodocache.replay.writes import WORTH, Curve, Rule

jit.warm()  # here, not in a test: a cold compile is not part of any test's time


@pytest.fixture(scope="module")
def trace():
    return load_trace(workload("chat", seed=9, requests=1500))


@pytest.fixture(scope="module")
def touches(trace):
    columns = trace.pages, trace.offsets, trace.parent, trace.depth, trace.timestamps_s
    return checked(Touches(*columns))


@pytest.fixture(scope="module")
def measured(trace):
    return writes.measure(trace, 600)


def requests_of(touches, column):
    return np.split(column, touches.offsets[1:-1])


def test_uses_are_counted_up_to_each_touch(touches):
    seen, expected = Counter(), []
    for page in touches.ids.tolist():
        seen[page] += 1
        expected.append(seen[page])
    assert writes.uses_so_far(touches).tolist() == expected


def test_foresight_knows_whether_a_page_is_touched_again(touches):
    ids = touches.ids.tolist()
    last = {page: at for at, page in enumerate(ids)}
    assert writes.foresight(touches).tolist() == [at < last[p] for at, p in enumerate(ids)]


def test_a_perfect_hint_speaks_of_all_pages_of_a_request_but_the_last(touches):
    continued = hints.continued(touches)
    for values, goes_on in zip(
        requests_of(touches, writes.perfect_hint(touches)), continued, strict=True
    ):
        assert values.tolist() == [float(goes_on)] * (len(values) - 1) + [-1.0]


def test_chance_is_one_coin_a_request(touches):
    coins = requests_of(touches, writes.chance(touches, 1))
    assert all(len(set(values[:-1])) <= 1 for values in coins)
    firsts = np.array([values[0] for values in coins if len(values) > 1])
    assert firsts.mean() == pytest.approx(0.5, abs=0.05)
    assert len(set(firsts)) == len(firsts)


def test_second_sight_ranks_by_uses_and_leaves_the_rest_to_chance(touches):
    worth, uses = writes.second_sight(touches, 1), writes.uses_so_far(touches)
    assert (worth[uses > 1] == uses[uses > 1]).all()
    assert (worth[uses == 1] < 1).all()


@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize("when", When)
def test_every_curve_rises_from_the_host_alone_to_all_hits(measured, rule, when):
    curve = measured.of[rule, when]
    assert (curve.written[0], curve.hits[0]) == (0, measured.host_hits)
    assert curve.hits[-1] == measured.through_hits
    assert (np.diff(curve.written) > 0).all()
    assert (np.diff(curve.hits) >= 0).all()


def test_nobody_keeps_all_hits_with_fewer_writes_than_foresight(measured):
    least = measured.of[Rule.FORESIGHT, When.LEAVE].least_for(measured.through_hits)
    for curve in measured.of.values():
        assert curve.least_for(measured.through_hits) >= least


@pytest.mark.parametrize("when", When)
@pytest.mark.parametrize("rule", [Rule.CHANCE, Rule.SHALLOW, Rule.SECOND_SIGHT])
def test_a_perfect_hint_keeps_more_than_those_who_know_nothing(measured, rule, when):
    for share in (0.2, 0.4, 0.6):
        budget = share * measured.through_pages
        assert measured.of[Rule.PERFECT_HINT, when].at(budget) > measured.of[rule, when].at(budget)


def test_between_two_points_a_coin_decides():
    curve = Curve(np.array([0, 10, 20]), np.array([100, 180, 200]))
    assert [curve.at(written) for written in (0, 5, 10, 15, 20)] == [100, 140, 180, 190, 200]
    assert [curve.least_for(hits) for hits in (100, 101, 180, 181, 201)] == [
        0,
        10,
        10,
        20,
        math.inf,
    ]


def test_a_rule_with_coins_is_the_mean_of_several_tries(touches, measured):
    tries = [
        writes.curve(touches, 600, writes.chance(touches, seed), When.STORE)
        for seed in range(writes.COINS)
    ]
    for written in (1000, 4000, 7000):
        hits = [curve.at(written) for curve in tries]
        assert len(set(hits)) > 1
        mean = measured.of[Rule.CHANCE, When.STORE].at(written)
        assert mean == pytest.approx(np.mean(hits), rel=0.005)


def test_every_rule_has_a_worth(touches):
    assert set(Rule) == set(WORTH) | set(writes.WITH_COINS)
    assert {len(worth(touches)) for worth in WORTH.values()} == {len(touches.ids)}
