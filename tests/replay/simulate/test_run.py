# SPDX-License-Identifier: Apache-2.0
"""The simulator as a whole: the same code as with real bytes, on another clock."""

from dataclasses import replace

import numpy as np
import pytest

from bodocache.cache import warm
from bodocache.errors import ConfigError
from bodocache.replay.requests import TraceRequest
from bodocache.replay.simulate.baselines import on_device, sglang_timeout_s
from bodocache.replay.simulate.names import BASELINES, ORACLE, OURS
from bodocache.replay.simulate.outcome import figures
from bodocache.replay.simulate.policies import POLICIES
from bodocache.replay.simulate.profile import load_profile
from bodocache.replay.simulate.run import Scenario, arrivals_s, simulate
from bodocache.replay.trace import build_trace
from bodocache.testing.pace import Weather

warm()

PROFILE = load_profile("h100-llama-3.1-8b")
QUIET = Scenario(load=0.05, wrong_by=0.0)


def conversations(count=30, turns=4, pages=6):
    """Turns of conversations, one after the other, each a page longer than the one before."""
    requests = []
    for turn in range(turns):
        for one in range(count):
            ids = tuple(1000 * one + page for page in range(pages + turn))
            tokens = 512 * len(ids)
            stamp = 3000 * (turn * count + one)
            requests.append(TraceRequest(stamp, tokens, 20, ids))
    return build_trace("conversations", requests)


TRACE = conversations()


def run(policy, scenario=QUIET, profile=PROFILE, trace=TRACE):
    return simulate(trace, profile, POLICIES[policy](), scenario)


def fingerprint(result):
    return [(job.number, job.arrived_s, job.first_token_s, job.have) for job in result.jobs]


def test_one_seed_is_one_run_bit_for_bit():
    scenario = Scenario(load=0.7, seed=3)
    profile = PROFILE.with_storage(weather=Weather.BURSTY)
    once, twice = (run(OURS, scenario, profile) for _ in range(2))
    assert fingerprint(once) == fingerprint(twice)
    assert fingerprint(run(OURS, replace(scenario, seed=4), profile)) != fingerprint(once)


@pytest.mark.parametrize("policy", [OURS, *BASELINES, ORACLE])
def test_every_request_gets_its_first_token_and_no_page_is_wrong(policy):
    result = run(policy, Scenario(load=0.8, seed=1), PROFILE.with_storage(weather=Weather.FAILING))
    assert result.wrong_pages == 0
    assert all(job.first_token_s > job.arrived_s for job in result.jobs)
    assert all(job.have <= len(job.keys) * 512 for job in result.jobs)


def test_a_page_that_the_engine_computed_wrongly_is_seen(monkeypatch):
    from bodocache.replay.simulate import world

    def spoiled(self, job):
        missing = job.match.keys[len(job.match.keys) - len(job.slots) :]
        self.device.words[job.slots] = world.contents(missing) + np.uint64(1)

    monkeypatch.setattr(world.World, "fill", spoiled)
    assert run("wait_complete").wrong_pages > 0


def test_an_idle_engine_takes_as_long_as_the_formula_says():
    """The first request finds nothing: its steps are prefill alone."""
    result = run("recompute_always")
    job = result.jobs[0]
    expected_s = job.cold_s + PROFILE.engine.step_overhead_s * -(-job.tokens // 8192)
    assert job.ttft_s == pytest.approx(expected_s, rel=1e-6)


def test_loading_beats_computing_where_the_disk_is_fast_and_the_engine_is_idle():
    warmed = replace(QUIET, first=60)
    loads, computes = (figures(run(name, warmed)) for name in ("wait_complete", "recompute_always"))
    assert loads.brought_share > 0.5
    assert computes.brought_share < loads.brought_share
    assert loads.ttft_mean_s < computes.ttft_mean_s
    assert computes.recompute_s > loads.recompute_s


def test_a_slow_disk_makes_waiting_worse_than_computing():
    slow = PROFILE.with_storage(read_bytes_per_s=2e8)
    warmed = replace(QUIET, first=60)
    assert (
        figures(run("wait_complete", warmed, slow)).ttft_mean_s
        > figures(run("recompute_always", warmed, slow)).ttft_mean_s
    )


def test_the_oracle_is_no_worse_than_either():
    """Where one of them is right for every request: it does not see what a load leaves behind."""
    warmed = replace(QUIET, first=60)
    for rate in (2e8, 2e10):
        profile = PROFILE.with_storage(read_bytes_per_s=rate)
        means = {
            name: figures(run(name, warmed, profile)).ttft_mean_s
            for name in (ORACLE, "wait_complete", "recompute_always")
        }
        assert means[ORACLE] <= 1.02 * min(means.values())


def test_a_timeout_ends_a_wait():
    crawling = PROFILE.with_storage(read_bytes_per_s=1e7)  # 7 s a page
    result = run("static_timeout", replace(QUIET, first=60), crawling)
    cut = [job for job in result.jobs if job.cut]
    assert cut
    waited_s = [job.admitted_s - job.begun_s for job in cut]
    assert min(waited_s) == pytest.approx(1.0, abs=0.1)
    assert max(waited_s) < 2.0


def test_sglangs_timeout_is_its_formula():
    assert sglang_timeout_s(pages=4, page_tokens=512) == 1.5
    assert sglang_timeout_s(pages=0, page_tokens=512) == 1.0


def test_arrivals_are_spread_inside_their_bucket_and_stretched_to_the_load():
    scenario = Scenario(load=0.5, seed=1)
    at_s = arrivals_s(TRACE, PROFILE, scenario)
    assert (np.diff(at_s) >= 0).all()
    assert len(set(at_s.tolist())) == len(at_s)
    twice = arrivals_s(TRACE, PROFILE, replace(scenario, load=1.0))
    np.testing.assert_allclose(at_s, 2 * twice)


def test_a_run_that_stops_early_is_the_same_as_far_as_it_goes():
    scenario = Scenario(load=0.6, seed=2)
    whole, part = run(OURS, scenario), run(OURS, replace(scenario, stop_after=40))
    early = [job for job in part.jobs if job.first_token_s < part.jobs[-1].arrived_s]
    assert len(early) > 10
    assert fingerprint(whole)[: len(early)] == fingerprint(part)[: len(early)]


def test_a_slice_finds_what_the_requests_before_it_left_on_disk():
    result = run("wait_complete", replace(QUIET, first=60))
    assert result.jobs[0].matched > 0
    assert run("wait_complete", replace(QUIET, requests=5)).jobs[0].matched == 0


@pytest.mark.parametrize(
    ("scenario", "match"),
    [
        (lambda: Scenario(load=0.0), "load = 0.0"),
        (lambda: Scenario(wrong_by=1.0), "wrong_by = 1.0"),
        (lambda: run(OURS, Scenario(first=10_000)), "first = 10000"),
    ],
)
def test_a_scenario_that_cannot_be_says_so(scenario, match):
    with pytest.raises(ConfigError, match=match):
        scenario()


@pytest.mark.parametrize("policy", [OURS, "load_always", ORACLE])
def test_several_engines_share_one_cache_and_one_seed_is_one_run(policy):
    profile = PROFILE.with_engines(3).with_storage(weather=Weather.FAILING)
    scenario = Scenario(load=0.8, seed=1)
    once, twice = (run(policy, scenario, profile) for _ in range(2))
    assert fingerprint(once) == fingerprint(twice)
    assert once.wrong_pages == 0
    assert all(job.first_token_s > job.arrived_s for job in once.jobs)


def test_what_one_engine_stored_is_a_hit_for_the_others():
    """Turns of one conversation reach whichever engine is free; each finds the turn before."""
    shared = run("wait_complete", QUIET, PROFILE.with_engines(3))
    alone = run("wait_complete", QUIET)
    assert sum(job.matched for job in shared.jobs) == sum(job.matched for job in alone.jobs)
    assert figures(shared).brought_share > 0.5


def test_the_load_is_each_engines():
    """Twice the engines get twice the requests a second, and are as busy."""
    scenario = Scenario(load=0.4, seed=1)
    np.testing.assert_allclose(
        arrivals_s(TRACE, PROFILE.with_engines(2), scenario),
        arrivals_s(TRACE, PROFILE, scenario) / 2,
    )
    one, two = (figures(run("wait_complete", scenario, PROFILE.with_engines(n))) for n in (1, 2))
    assert two.busy_share == pytest.approx(one.busy_share, rel=0.2)
    assert two.ttft_mean_s < 1.1 * one.ttft_mean_s


def test_more_devices_and_hosts_hold_more_pages_over_one_storage():
    four = PROFILE.with_engines(4)
    assert four.host_pages == 4 * PROFILE.host_pages
    assert four.device_pages == PROFILE.device_pages
    assert four.storage_pages == PROFILE.storage_pages


def test_a_prompt_that_no_device_holds_is_refused():
    """However many engines there are: it does not lie on two."""
    huge = build_trace("huge", [TraceRequest(0, 512 * 2000, 1, tuple(range(2000)))])
    for profile in (PROFILE, PROFILE.with_engines(4)):
        with pytest.raises(ConfigError, match="the device has"):
            run(OURS, profile=profile, trace=huge)


def test_of_a_match_the_pages_on_the_device_are_the_leading_ones():
    from bodocache.match import Match

    keys, tiers = np.zeros((5, 32), np.uint8), np.array([0, 0, 1, 0, 2], np.uint8)
    short = on_device(Match(0, keys, 5, tiers, np.zeros(0, np.uint8)))
    assert (short.pages, short.tiers.tolist()) == (2, [0, 0])
