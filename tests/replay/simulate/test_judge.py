# SPDX-License-Identifier: Apache-2.0
import pytest

from bodocache.cache import warm
from bodocache.replay.requests import TraceRequest
from bodocache.replay.simulate.judge import judge
from bodocache.replay.simulate.policies import POLICIES
from bodocache.replay.simulate.profile import load_profile
from bodocache.replay.simulate.run import Scenario, simulate
from bodocache.replay.trace import build_trace

warm()

SCENARIO = Scenario(load=0.05, first=20, wrong_by=0.0)


@pytest.fixture(scope="module")
def trace():
    """Twenty prompts, then the same ones again, a page longer."""
    requests = []
    for number in range(40):
        one, pages = number % 20, 6 + number // 20
        ids = tuple(1000 * one + page for page in range(pages))
        requests.append(TraceRequest(3000 * number, 512 * pages, 5, ids))
    return build_trace("twice", requests)


def verdict(trace, policy, read_bytes_per_s):
    profile = load_profile("h100-llama-3.1-8b").with_storage(read_bytes_per_s=read_bytes_per_s)
    run = simulate(trace, profile, POLICIES[policy](), SCENARIO)
    return judge(trace, profile, policy, SCENARIO, run, sample=3)


def test_a_cut_before_a_fast_disk_was_false(trace):
    found = verdict(trace, "best_effort", 5e10)
    assert (found.cuts_judged, found.false_cuts) == (3, 3)


def test_a_wait_for_a_crawling_disk_missed_a_cut(trace):
    found = verdict(trace, "wait_complete", 1e8)
    assert (found.non_cuts_judged, found.missed_cuts) == (3, 3)


def test_what_was_right_is_not_blamed(trace):
    right = verdict(trace, "best_effort", 1e8)
    assert (right.cuts_judged, right.false_cuts) == (3, 0)
    right = verdict(trace, "wait_complete", 5e10)
    assert (right.non_cuts_judged, right.missed_cuts) == (3, 0)
