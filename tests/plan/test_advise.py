# SPDX-License-Identifier: Apache-2.0
"""The advised order of an engine's queue: what goes first and why, and that nobody starves."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache.errors import ConfigError
from bodocache.plan.advise import Advice, QueueRules, Waiting, Why, advise

seconds = st.floats(0, 2, allow_nan=False)
requests = st.builds(
    Waiting,
    arrival_s=st.floats(0, 10),
    compute_s=seconds,
    load_s=seconds,
    delayed_s=seconds,
    ready_s=seconds,
    prefix=st.sampled_from([None, "a", "b"]),
    deadline_s=st.one_of(st.just(math.inf), seconds),
    tenant=st.integers(0, 3),
    passed=st.integers(0, 5),
)
rules = st.builds(
    QueueRules,
    step_s=st.floats(0.01, 1),
    batch=st.integers(1, 5),
    steps=st.integers(1, 6),
    max_passed=st.integers(0, 4),
    decode_s=st.one_of(st.just(0.0), st.floats(1e-6, 0.1)),
    defers=st.booleans(),
    balances=st.booleans(),
    fills=st.booleans(),
    heeds_deadlines=st.booleans(),
    is_fair=st.booleans(),
)


def order(*queue, **said):
    return [one.request for one in advise(queue, QueueRules(**said))]


def whys(*queue, **said):
    return {one.request: one.why for one in advise(queue, QueueRules(**said))}


@settings(deadline=None)
@given(st.lists(requests, max_size=30), rules)
def test_each_request_stands_once_and_none_is_passed_over_too_often(queue, rules):
    found = [one.request for one in advise(queue, rules)]
    assert sorted(found) == list(range(len(queue)))
    came = sorted(range(len(queue)), key=lambda i: (queue[i].arrival_s, i))
    rank = {i: n for n, i in enumerate(came)}
    for place, i in enumerate(found):
        passed = sum(rank[j] > rank[i] for j in found[:place])
        assert passed <= max(0, rules.max_passed - queue[i].passed)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 4), st.integers(0, 1 << 30))
def test_no_flood_of_new_requests_starves_one(max_passed, seed):
    """An engine that takes one step at a time, while others come that would rather go first."""
    rng, rules = random.Random(seed), QueueRules(step_s=0.5, batch=2, max_passed=max_passed)
    queue, served = [], 0
    for now in range(30):
        queue += [some(rng, float(now)) for _ in range(3)]
        begun = {one.request for one in advise(queue, rules) if one.step == 0}
        for i in begun:
            served += 1
            for k, other in enumerate(queue):
                if k not in begun and other.arrival_s < queue[i].arrival_s:
                    queue[k] = other._replace(passed=other.passed + 1)
        queue = [one for k, one in enumerate(queue) if k not in begun]
        assert all(one.passed <= max_passed for one in queue)
    oldest = min(one.arrival_s for one in queue)
    assert served <= 3 * oldest + 2 + max_passed  # all that came before it were served


def some(rng, arrival_s):
    return Waiting(
        *(arrival_s, rng.random(), rng.random(), rng.random(), rng.choice([0.0, 1.0])),
        prefix=rng.choice([None, "a", "b"]),
        deadline_s=rng.choice([math.inf, 0.5, 2.0]),
        tenant=rng.randrange(3),
    )


def test_without_anything_else_to_go_by_it_is_the_order_of_arrival():
    assert order(Waiting(2.0, 1.0), Waiting(1.0, 1.0), Waiting(3.0, 1.0)) == [1, 0, 2]


def test_a_delay_hit_waits_for_the_step_that_brings_its_pages():
    queue = [Waiting(t, 0.01, delayed_s=1.0, prefix=p) for t, p in enumerate("aab")]
    steps = {one.request: one.step for one in advise(queue, QueueRules(step_s=10))}
    assert steps == {0: 0, 2: 0, 1: 1}
    assert whys(*queue, step_s=10)[1] is Why.DEFERRED
    assert {one.step for one in advise(queue, QueueRules(step_s=10, defers=False))} == {0}


def test_what_was_announced_is_waited_for_unless_it_is_computed_sooner():
    soon = Waiting(0, 0.01, delayed_s=1.0, ready_s=0.5)
    other = Waiting(1, 0.6)
    assert order(soon, other) == [1, 0]
    assert order(soon, other, defers=False) == [0, 1]
    assert advise([soon]) == (Advice(0, 0, Why.DEFERRED, start_s=0.5),)  # nothing else to do
    assert advise([soon._replace(delayed_s=0.4)]) == (Advice(0, 0, Why.TURN),)


def test_a_delay_hit_does_not_wait_past_its_deadline():
    queue = [Waiting(0, 0.01, delayed_s=0.2, ready_s=0.5, deadline_s=0.4), Waiting(1, 0.1)]
    assert advise(queue)[0] == Advice(0, 0, Why.DUE)


def test_a_step_that_loads_takes_what_computes_and_no_more_that_loads():
    loads, computes = [Waiting(t, 0.01, load_s=0.2) for t in range(3)], Waiting(9, 0.18)
    advice = advise([*loads, computes])
    assert advice[:2] == (Advice(0, 0, Why.TURN), Advice(3, 0, Why.BALANCE))
    assert [one.step for one in advice] == [0, 0, 1, 2]
    assert order(*loads, computes, balances=False) == [0, 1, 2, 3]


def test_decode_steps_fill_what_bubble_is_left():
    queue = [Waiting(0, 0.05, load_s=0.2)]
    assert advise(queue, QueueRules(decode_s=0.04))[0].decode_steps == 3
    assert advise(queue, QueueRules(decode_s=0.04, fills=False))[0].decode_steps == 0
    assert advise([Waiting(0, 0.2, load_s=0.05)], QueueRules(decode_s=0.04))[0].decode_steps == 0


def test_near_deadlines_go_first_and_those_that_are_missed_anyway_last():
    queue = [
        Waiting(0, 0.2),
        Waiting(1, 0.2, deadline_s=0.1),
        Waiting(2, 0.2, deadline_s=0.45),
        Waiting(3, 0.2, deadline_s=0.3),
    ]
    assert order(*queue) == [3, 2, 0, 1]
    assert whys(*queue) == {3: Why.DUE, 2: Why.DUE, 0: Why.TURN, 1: Why.LATE}
    assert order(*queue, heeds_deadlines=False) == [0, 1, 2, 3]


def test_tenants_take_turns():
    queue = [Waiting(t, 0.2, tenant=tenant) for t, tenant in enumerate((7, 7, 7, 8))]
    assert order(*queue) == [0, 3, 1, 2]
    assert order(*queue, is_fair=False) == [0, 1, 2, 3]


def test_who_was_passed_over_often_enough_goes_before_all_that_came_later():
    queue = [Waiting(0, 0.2, deadline_s=0.1, passed=3), Waiting(1, 0.2, deadline_s=0.3)]
    assert whys(*queue, max_passed=3)[0] is Why.PASSED
    assert order(*queue, max_passed=3) == [0, 1]
    assert order(*queue, max_passed=4) == [1, 0]


@pytest.mark.parametrize(
    "wrong", [Waiting(0, -1.0), Waiting(math.nan, 1), Waiting(0, 1, deadline_s=math.nan)]
)
def test_times_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError, match="advise: "):
        advise([wrong])


@pytest.mark.parametrize(
    "said", [{"step_s": 0}, {"batch": 0}, {"max_passed": -1}, {"decode_s": -1}]
)
def test_rules_that_cannot_be_are_refused(said):
    with pytest.raises(ConfigError, match="advise: "):
        QueueRules(**said)
