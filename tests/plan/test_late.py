# SPDX-License-Identifier: Apache-2.0
"""Loads of a window, against a simulated pipeline of two links and an engine."""

from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache import jit
from bodocache.plan.late import decide
from bodocache.plan.loads import COPIES, DECISION, LOAD, Loads, Verdict, scratch_for
from bodocache.plan.records import LINK
from bodocache.plan.tardiness import Z90, predicted_finish_s

jit.warm()  # here, not in a test: a cold compile is not part of any test's time

TOKENS, TOKEN_NBYTES = 1000, 1e5
DEVICE, DISK, REMOTE = 0, 1, 2  # links, by where they come from: the host, the disk, elsewhere
RATES = (1e9, 1e8, 5e7)


def load(tokens=TOKENS, step=100, on_host=TOKENS, landed=0, links=(-1, -1), **fields):
    """A load of ``tokens`` with a boundary every ``step``; the rest of it is on the links' side."""
    record = np.zeros(1, LOAD)
    known = {"deadline_s": np.inf, "copies": 1, "copy": -1, "cut_at": -1, "token_s": 1e-3}
    for name, value in {**known, "links": links, **fields}.items():
        record[name] = value
    return record, np.arange(landed, tokens + 1, step), on_host


def window(*cases):
    """The loads of a window."""
    records, bounds, hosts = zip(*cases, strict=True)
    made = np.concatenate(records)
    made["count"] = [len(bound) for bound in bounds]
    made["first"] = np.cumsum(made["count"]) - made["count"]
    above = [np.maximum(0, b - max(h, b[0])) for b, h in zip(bounds, hosts, strict=True)]
    first = (np.concatenate(above) * TOKEN_NBYTES).astype(np.int64)
    second = np.concatenate([(b - b[0]) * TOKEN_NBYTES for b in bounds]).astype(np.int64)
    return Loads(made, np.concatenate(bounds), np.repeat(first[:, None], COPIES, axis=1), second)


def paths(queued=(0, 0, 0), rates=RATES, **fields):
    links = np.zeros(len(rates), LINK)
    links["rate"], links["queued_nbytes"] = rates, queued
    for name, value in fields.items():
        links[name] = value
    return links


def decided(loads, links=None, switch_s=0.0, now_s=0.0):
    links = paths() if links is None else links
    decisions = np.zeros(len(loads.records), DECISION)
    scratch = scratch_for(len(loads.records), len(links))
    decide(loads, links, switch_s, now_s, scratch, decisions)
    return decisions


ANYWHERE = [(DISK, REMOTE), (REMOTE, DISK), (-1, DISK), (DISK, -1)]
FOREVER, HURRIED = st.just(np.inf), st.floats(0.01, 3)


class Pipeline:
    """Links that serve one load after the other, the second layer by layer to an engine."""

    def __init__(self, loads, links):
        self.loads, self.rates = loads, links["rate"]
        self.free_s = links["queued_nbytes"] / links["rate"]

    def run(self, i, copy, cut):
        """Serve a load; when its last byte lands and its step has computed, and its recompute."""
        one, bounds = self.loads.records[i], self.bounds(i)
        first, second, at = one["links"][copy], one["second"], one["first"] + cut
        landed_s = 0.0
        if first >= 0 and self.loads.first_nbytes[at, copy]:
            self.free_s[first] += self.loads.first_nbytes[at, copy] / self.rates[first]
            landed_s = self.free_s[first]
        square_s = one["slope_s"] * (bounds[-1] ** 2 - bounds[cut] ** 2) / 2
        again_s = one["token_s"] * (bounds[-1] - bounds[cut]) + square_s
        layers = max(1, one["layers"])
        layer_s = self.loads.second_nbytes[at] / self.rates[second] / layers
        engine_s = one["wait_s"]
        if layer_s > 0:
            landed_s = max(landed_s, self.free_s[second])
        for _ in range(layers):
            landed_s += layer_s
            engine_s = max(engine_s, landed_s) + (again_s + one["new_compute_s"]) / layers
        if layer_s > 0:
            self.free_s[second] = landed_s
        return landed_s, engine_s, again_s

    def bounds(self, i):
        one = self.loads.records[i]
        return self.loads.boundaries[one["first"] : one["first"] + one["count"]]

    def best(self, i):
        """Try every copy and cut; the least cost of all."""
        one, before, costs = self.loads.records[i], self.free_s.copy(), []
        for copy in range(one["copies"]):
            for cut in range(one["count"]):
                self.free_s = before.copy()
                _, step_s, again_s = self.run(i, copy, cut)
                costs.append(step_s + one["n_waiting"] * again_s)
        self.free_s = before
        return min(costs)


@st.composite
def loads_of(draw, most=5, deadlines=FOREVER, links=ANYWHERE):
    cases = [
        load(
            tokens=draw(st.integers(1, 10)) * 100,
            on_host=draw(st.integers(0, 10)) * 100,
            links=draw(st.sampled_from(links)),
            copies=draw(st.integers(1, COPIES)),
            layers=draw(st.sampled_from([0, 1, 2, 32])),
            deadline_s=draw(deadlines),
            wait_s=draw(st.floats(0, 1)),
            new_compute_s=draw(st.floats(0, 0.2)),
            token_s=draw(st.floats(1e-5, 1e-2)),
            slope_s=draw(st.floats(0, 1e-6)),
            n_waiting=draw(st.floats(0, 3)),
        )
        for _ in range(draw(st.integers(1, most)))
    ]
    return window(*sorted(cases, key=lambda case: case[0]["deadline_s"][0]))


QUEUED = st.tuples(*(st.integers(0, 10**8),) * 3)


@given(loads_of(deadlines=HURRIED), QUEUED)
@settings(max_examples=100, deadline=None)
def test_what_is_predicted_is_what_a_simulated_pipeline_does(loads, queued):
    links = paths(queued)
    decisions = decided(loads, links, now_s=0.0)
    pipeline = Pipeline(loads, links)
    for i in np.argsort(decisions["demoted"], kind="stable"):
        decision = decisions[i]
        landed_s, step_s, _ = pipeline.run(i, decision["copy"], decision["cut"])
        assert decision["finish_s"] == pytest.approx(landed_s, rel=1e-9, abs=1e-12)
        assert decision["step_s"] == pytest.approx(step_s, rel=1e-9)
        late_s = max(0.0, landed_s - loads.records[i]["deadline_s"])
        assert decision["late_s"] == pytest.approx(late_s, rel=1e-6, abs=1e-9)


@given(loads_of(), QUEUED)
@settings(max_examples=100, deadline=None)
def test_every_load_is_cut_and_taken_where_brute_force_cuts_and_takes_it(loads, queued):
    links = paths(queued)
    decisions, pipeline = decided(loads, links), Pipeline(loads, links)
    for i, decision in enumerate(decisions):
        least = pipeline.best(i)
        _, step_s, again_s = pipeline.run(i, decision["copy"], decision["cut"])
        cost = step_s + loads.records[i]["n_waiting"] * again_s
        assert cost <= least * (1 + 1e-9)


@given(loads_of(most=6, deadlines=HURRIED, links=[(-1, -1)]), st.floats(0, 0.3))
@settings(max_examples=100, deadline=None)
def test_where_some_are_demoted_the_others_are_in_time(loads, drift):
    decisions = decided(loads, paths(drift=drift, spread=1e-6))
    kept = decisions["demoted"] == 0
    assert (decisions["late_s"][kept] <= 1e-9).all() or kept.all()


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 25)), min_size=1, max_size=7))
def test_as_many_as_can_be_are_in_time_where_all_cause_the_same(jobs):
    jobs = sorted(jobs, key=lambda job: job[1])
    slow = {"token_s": 1e9, "new_compute_s": 0.0}  # a recompute is out of the question
    cases = [load(tokens=t * 100, deadline_s=d / 100 + 1e-6, step=t * 100, **slow) for t, d in jobs]
    for (record, *_), (tokens, _) in zip(cases, jobs, strict=True):
        record["token_s"] /= tokens  # the same for each
    decisions = decided(window(*cases))
    subsets = chain.from_iterable(combinations(jobs, n) for n in range(len(jobs) + 1))
    most = max(len(subset) for subset in subsets if in_time(subset))
    assert (decisions["late_s"] <= 0).sum() == most


def in_time(jobs):
    return all(
        end <= job[1] for end, job in zip(np.cumsum([job[0] for job in jobs]), jobs, strict=True)
    )


def test_a_load_is_cut_where_the_recompute_of_its_tail_ends_with_its_transfer():
    decision = decided(window(load(layers=32, token_s=1e-4)))[0]
    assert decision["verdict"] == Verdict.CUT
    assert 0 < decision["cut"] < 10


def test_a_load_that_is_slower_than_its_recompute_is_dropped():
    decision = decided(window(load(on_host=0, links=(DISK, -1), token_s=1e-5)))[0]
    assert (decision["verdict"], decision["cut"], decision["finish_s"]) == (Verdict.DROPPED, 0, 0.0)


def test_a_cut_keeps_what_has_landed():
    loads = window(load(on_host=0, links=(DISK, -1), token_s=1e-5, landed=300))
    decision = decided(loads)[0]
    assert loads.boundaries[decision["cut"]] == 300


def test_requests_that_wait_for_the_engine_make_a_load_worth_more():
    alone, crowded = (
        decided(window(load(layers=32, token_s=1e-4, n_waiting=n)))[0]["cut"] for n in (0, 4)
    )
    assert crowded > alone


def test_what_the_first_link_takes_longer_for_makes_the_cut_shallower():
    near = decided(window(load(layers=32, token_s=5e-4)))[0]["cut"]
    far = decided(window(load(layers=32, token_s=5e-4, on_host=500, links=(DISK, -1))))[0]["cut"]
    assert (near, far) == (9, 5)


def test_a_second_load_waits_for_the_first_on_both_links():
    decisions = decided(window(*(load(on_host=0, links=(DISK, -1), token_s=1.0),) * 2))
    assert decisions["finish_s"] == pytest.approx([1.1, 2.1])


@pytest.mark.parametrize(("cut_at", "verdict"), [(-1, Verdict.WHOLE), (100, Verdict.CUT)])
def test_a_load_under_way_is_cut_when_two_windows_running_would_cut_it(cut_at, verdict):
    decision = decided(window(load(layers=32, token_s=1e-4, copy=0, cut_at=cut_at)))[0]
    assert decision["verdict"] == verdict
    assert decision["cut_at"] > 0  # what the next window is told
    assert decided(window(load(copy=0, cut_at=100)))[0]["cut_at"] == -1


@pytest.mark.parametrize(("switch_s", "verdict"), [(0.01, Verdict.CUT), (1.0, Verdict.WHOLE)])
def test_a_load_under_way_is_cut_only_if_that_gains_more_than_switching_costs(switch_s, verdict):
    loads = window(load(layers=32, token_s=1e-4, copy=0, cut_at=100))
    assert decided(loads, switch_s=switch_s)[0]["verdict"] == verdict


def test_a_load_is_taken_from_the_copy_that_lands_first():
    case = window(load(on_host=0, links=(DISK, REMOTE), copies=2, token_s=1.0))
    assert decided(case)[0]["copy"] == 0
    assert decided(case, paths(queued=(0, 2 * 10**8, 0)))[0]["copy"] == 1


@pytest.mark.parametrize(("switch_s", "copy"), [(0.5, 1), (2.0, 0)])
def test_a_load_under_way_that_turns_late_is_asked_of_a_second_source_if_that_pays(switch_s, copy):
    case = window(load(on_host=0, links=(DISK, REMOTE), copies=2, token_s=1.0, copy=0))
    links = paths(queued=(0, 2 * 10**8, 0))  # 3.1 s from disk, 2.1 s from elsewhere
    assert decided(case, links, switch_s=switch_s)[0]["copy"] == copy


def test_what_may_not_be_cut_is_loaded_whole():
    case = load(on_host=0, links=(DISK, -1), token_s=1e-5, deadline_s=0.1)
    decision = decided(window((case[0], case[1][-1:], 0)))[0]
    assert decision["verdict"] == Verdict.WHOLE


def crowd(*costs, tokens=(1000, 1000, 500)):
    """Three loads of 0.1, 0.1 and 0.05 s, all due after 0.16 s: two can be in time."""
    return window(
        *(
            load(tokens=t, step=t, token_s=cost / t, deadline_s=0.16)
            for t, cost in zip(tokens, costs, strict=True)
        )
    )


@pytest.mark.parametrize(("costs", "demoted"), [((9, 99, 99), [1, 0, 0]), ((99, 9, 99), [0, 1, 0])])
def test_a_link_that_cannot_serve_all_serves_those_whose_recompute_costs_most(costs, demoted):
    decisions = decided(crowd(*costs))
    assert decisions["demoted"].tolist() == demoted
    assert decisions["late_s"] == pytest.approx(np.where(demoted, 0.09, 0.0))


def test_nobody_is_demoted_where_that_brings_no_more_in_time():
    decisions = decided(crowd(9, 99, 99, tokens=(1000, 1000, 1000)))
    assert decisions["demoted"].tolist() == [0, 0, 0]


def test_a_demoted_load_is_loaded_after_the_others_only_where_that_beats_its_recompute():
    decisions = decided(crowd(0.2, 99, 99))
    assert decisions["demoted"].tolist() == [1, 0, 0]
    assert decisions["verdict"].tolist() == [Verdict.DROPPED, Verdict.WHOLE, Verdict.WHOLE]
    assert decided(crowd(0.3, 99, 99))["verdict"][0] == Verdict.WHOLE


def test_the_first_link_leaves_time_for_the_second():
    disk = {"on_host": 0, "links": (DISK, -1), "token_s": 1.0}
    due_s = {1000: 1.05, 100: 1.06}  # 1.0 s from disk are in time, with 0.1 s to the device not
    cases = (load(tokens=t, step=t, deadline_s=at_s, **disk) for t, at_s in due_s.items())
    assert decided(window(*cases))["demoted"].tolist() == [1, 0]


def test_a_cut_load_has_to_land_early_enough_for_its_recompute():
    cut = load(wait_s=0.05, token_s=5e-5, deadline_s=0.06)  # half of it, then 0.025 s of compute
    small = {"tokens": 100, "step": 100, "token_s": 1.0, "deadline_s": 0.0605}
    decisions = decided(window(cut, load(**small), load(**small)))
    assert decisions["demoted"].tolist() == [1, 0, 0]


def test_a_finish_on_one_link_is_that_of_tardiness():
    links = paths(queued=(10**8, 0, 0), spread=1e-6, drift=0.1)
    decision = decided(window(load(token_s=1.0, deadline_s=1.0)), links, now_s=0.75)[0]
    expected_s = predicted_finish_s(links[:1], 1e8, 0.75, Z90)
    assert decision["finish_s"] == pytest.approx(expected_s)
    assert decision["late_s"] == pytest.approx(max(0.0, expected_s - 1.0))


def test_a_streamed_load_is_told_how_many_layers_are_to_be_whole_and_how_far_to_run_ahead():
    decision = decided(window(load(layers=10, token_s=1.0, new_compute_s=0.05)), paths(drift=0.2))
    assert decision["verdict"][0] == Verdict.WHOLE
    assert decision["head_layers"][0] == 5  # floor(10 - 9 * 5 / 10)
    assert decision["layers_ahead"][0] == 7  # ceil(10 - 8 * 5 / (10 * 1.256))
    assert decided(window(load(token_s=1.0)))["head_layers"][0] == 0
