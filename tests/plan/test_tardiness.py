# SPDX-License-Identifier: Apache-2.0
"""Predicted finishes, cuts and drops, each against brute force or a simulated pipeline."""

from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bodocache import jit
from bodocache.plan import heap
from bodocache.plan.tardiness import (
    CUT,
    LINK,
    Z90,
    best_cut,
    finish_s,
    keep_on_time,
    meeting_point,
    predicted_finish_s,
    recompute_s,
    tardiness,
)

jit.warm()  # here, not in a test: a cold compile is not part of any test's time


def cut(**fields):
    load = np.zeros(1, CUT)
    defaults = {"tokens": 1000, "bytes_per_token": 1e5, "rate": 1e9, "token_s": 1e-4}
    for name, value in {**defaults, **fields}.items():
        load[name] = value
    return load


LOADS = st.builds(
    cut,
    tokens=st.integers(1, 4000),
    landed_tokens=st.just(0),
    rate=st.floats(1e8, 1e10),
    queue_s=st.floats(0, 1),
    wait_s=st.floats(0, 1),
    new_compute_s=st.floats(0, 0.2),
    token_s=st.floats(1e-6, 1e-3),
    slope_s=st.floats(0, 1e-7),
    layers=st.sampled_from([0, 1, 2, 32]),
    n_waiting=st.floats(0, 5),
)


def simulate(load, boundary, extra_nbytes):
    """The step's end on a link and an engine: the load in one piece, or in equal layers."""
    one = load[0]
    left = (boundary - one["landed_tokens"]) * one["bytes_per_token"] + extra_nbytes
    layers = max(1, int(one["layers"]))
    link_s = one["queue_s"] if left > 0 else 0.0
    compute_s = recompute_s(load, float(boundary)) + one["new_compute_s"]
    engine_s = one["wait_s"]
    for _ in range(layers):
        link_s += left / one["rate"] / layers
        engine_s = max(engine_s, link_s) + compute_s / layers
    return engine_s


@given(LOADS, st.integers(0, 4000), st.integers(0, 1 << 30))
def test_the_finish_is_that_of_a_simulated_pipeline(load, boundary, extra_nbytes):
    boundary = min(boundary, int(load["tokens"][0]))
    simulated_s = simulate(load, boundary, extra_nbytes)
    assert finish_s(load, boundary, extra_nbytes) == pytest.approx(simulated_s, rel=1e-9)


@given(LOADS, st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 1 << 28)), min_size=1))
def test_the_best_cut_is_the_best_of_all(load, pairs):
    tokens = int(load["tokens"][0])
    pairs = sorted({(min(boundary, tokens), extra) for boundary, extra in pairs})
    boundaries = np.array([boundary for boundary, _ in pairs])
    extra = np.array([extra for _, extra in pairs])
    found = best_cut(load, boundaries, extra)
    costs = [
        simulate(load, boundary, more) + load["n_waiting"][0] * recompute_s(load, boundary)
        for boundary, more in pairs
    ]
    assert costs[found.boundary] <= min(costs) * (1 + 1e-9)
    assert found.recompute_s == recompute_s(load, float(boundaries[found.boundary]))
    assert found.finish_s == finish_s(load, boundaries[found.boundary], extra[found.boundary])


def test_a_streamed_load_is_best_cut_in_its_middle_where_neither_end_is():
    load = cut(token_s=1e-4, bytes_per_token=1e5, rate=1e9, layers=32)
    boundaries = np.arange(0, 1001, 50)
    found = best_cut(load, boundaries, np.zeros(len(boundaries), np.int64))
    assert 0 < boundaries[found.boundary] < 1000
    whole_s, none_s = finish_s(load, 1000.0, 0.0), finish_s(load, 0.0, 0.0)
    assert min(whole_s, none_s) / found.finish_s > 1.2


def test_requests_that_wait_move_the_cut_towards_loading_more():
    boundaries = np.arange(0, 1001, 50)
    nothing = np.zeros(len(boundaries), np.int64)
    alone = best_cut(cut(layers=32), boundaries, nothing).boundary
    crowded = best_cut(cut(layers=32, n_waiting=4), boundaries, nothing).boundary
    assert crowded > alone


def test_a_cut_at_what_has_landed_waits_for_no_queue():
    load = cut(landed_tokens=500, queue_s=10.0)
    found = best_cut(load, np.array([500, 600, 1000]), np.zeros(3, np.int64))
    assert found.boundary == 0
    assert found.finish_s == pytest.approx(recompute_s(load, 500.0))


@given(LOADS, st.integers(0, 4000))
def test_loading_and_computing_meet_at_the_same_time(load, landed):
    load["landed_tokens"] = landed = min(landed, int(load["tokens"][0]))
    one, at = load[0], meeting_point(load)
    assert landed - 1e-6 <= at <= one["tokens"] + 1e-6
    computed_s = one["token_s"] * (at - landed) + one["slope_s"] * (at**2 - landed**2) / 2
    loaded_s = (one["tokens"] - at) * one["bytes_per_token"] / one["rate"]
    assert computed_s == pytest.approx(loaded_s, rel=1e-6, abs=1e-9)


def test_a_finish_counts_what_is_queued_and_doubts_what_it_does_not_know():
    link = np.array([(1e9, 0.0, 0.0, 10**9, 0, 0, 0)], LINK)
    assert predicted_finish_s(link, 1e9, 5.0, Z90) == 7.0
    link["spread"], link["drift"] = 1e-6, 0.1
    doubt_s = Z90 * np.hypot(1e-6 * np.sqrt(2e9), 0.2)
    assert predicted_finish_s(link, 1e9, 5.0, Z90) == pytest.approx(7.0 + doubt_s)


def test_each_load_is_late_by_what_lies_ahead_of_it():
    link = np.array([(1e9, 0.0, 0.0, 0, 0, 0, 0)], LINK)
    finishes_s, late_s = np.empty(3), np.empty(3)
    nbytes, deadlines_s = np.full(3, 10**9), np.array([1.5, 1.5, np.inf])
    tardiness(link, nbytes, deadlines_s, 0.0, finishes_s, late_s)
    assert finishes_s.tolist() == [1.0, 2.0, 3.0]
    assert late_s.tolist() == [0.0, 0.5, 0.0]


JOBS = st.lists(
    st.tuples(st.integers(1, 9), st.integers(0, 25), st.integers(1, 5)), min_size=1, max_size=9
)


def keep(jobs):
    link_s, deadlines_s, caused_s = (np.array(column, float) for column in zip(*jobs, strict=True))
    nodes, places = np.zeros(len(jobs), heap.NODE), np.zeros((len(jobs), 1), np.int32)
    kept = np.empty(len(jobs), np.bool_)
    assert keep_on_time(link_s, deadlines_s, caused_s, nodes, places, kept) == kept.sum()
    return kept


def in_time(jobs):
    ends = np.cumsum([job[0] for job in jobs])
    return all(end <= job[1] for end, job in zip(ends, jobs, strict=True))


@given(JOBS)
def test_what_is_kept_is_in_time_and_as_much_as_can_be_where_all_are_worth_the_same(jobs):
    jobs = sorted(((link, deadline, 1) for link, deadline, _ in jobs), key=lambda job: job[1])
    kept = keep(jobs)
    assert in_time([job for job, keeps in zip(jobs, kept, strict=True) if keeps])
    subsets = chain.from_iterable(combinations(jobs, n) for n in range(len(jobs) + 1))
    assert kept.sum() == max(len(subset) for subset in subsets if in_time(subset))


@given(JOBS)
def test_what_is_kept_is_in_time_whatever_it_is_worth(jobs):
    jobs = sorted(jobs, key=lambda job: job[1])
    kept = keep(jobs)
    assert in_time([job for job, keeps in zip(jobs, kept, strict=True) if keeps])


def test_a_short_load_that_saves_much_is_kept_before_a_long_one_that_saves_little():
    assert keep([(1.0, 10.0, 9.0), (10.0, 10.5, 1.0)]).tolist() == [True, False]
    assert keep([(5.0, 9.0, 1.0), (5.0, 9.0, 50.0)]).tolist() == [False, True]
