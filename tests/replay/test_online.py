# SPDX-License-Identifier: Apache-2.0
"""What every policy that does not know the future must do, whatever it does."""

from functools import cache

import numpy as np
import pytest

from bodocache import jit
from bodocache.replay.policies.model import Touches
from bodocache.replay.policy import Policy, simulate
from bodocache.replay.requests import TraceRequest
from bodocache.replay.shapes import WORKLOADS, Scan, with_scan, workload
from bodocache.replay.trace import build_trace

jit.warm()  # here, not in a test: a cold compile is not part of any test's time

ONLINE = [policy for policy in Policy if policy is not Policy.MIN]
CAPACITIES = (0, 1, 300, 2_000)


@cache
def requests(name, number=1200):
    return tuple(workload(name, seed=77, requests=number).requests())


def touches_of(found):
    trace = build_trace("made", found)
    return Touches(trace.pages, trace.offsets, trace.parent, trace.depth, trace.timestamps_s)


def hits(policy, found, capacity):
    return simulate(policy, touches_of(found), capacity).hits


@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("policy", ONLINE)
def test_what_comes_later_changes_nothing_before(policy, capacity):
    begun = requests("chat")[:700]
    later = tuple(
        TraceRequest(r.timestamp_ms + 10**7, 512, 1, tuple(10**9 + page for page in r.hash_ids))
        for r in requests("agents")[:300]
    )
    alone = hits(policy, begun, capacity)
    assert (hits(policy, requests("chat"), capacity)[:700] == alone).all()
    assert (hits(policy, begun + later, capacity)[:700] == alone).all()


@pytest.mark.parametrize("policy", ONLINE)
def test_equal_traces_give_equal_hits(policy):
    first, second = (hits(policy, requests("tenants"), 500) for _ in range(2))
    assert (first == second).all()


@pytest.mark.parametrize("policy", ONLINE)
def test_when_the_clock_began_does_not_matter(policy):
    shift_ms = 2**30  # exact in seconds as a float, so that ages are equal to the bit
    later = tuple(
        TraceRequest(r.timestamp_ms + shift_ms * 1000, r.input_length, 1, r.hash_ids, r.tenant)
        for r in requests("chat")
    )
    difference = hits(policy, later, 500) - hits(policy, requests("chat"), 500)
    assert abs(difference.sum()) <= 0.002 * hits(policy, requests("chat"), 500).sum()


@pytest.mark.parametrize("policy", ONLINE)
def test_a_clock_that_stands_still_is_served(policy):
    still = tuple(TraceRequest(5, r.input_length, 1, r.hash_ids) for r in requests("chat"))
    found = hits(policy, still, 500)
    assert 0 < found.sum() < hits(Policy.MIN, still, 500).sum()


@pytest.mark.parametrize("policy", ONLINE)
def test_where_all_fits_everything_hits_but_what_a_policy_will_not_insert(policy):
    found = touches_of(requests("chat"))
    done = simulate(policy, found, len(found.parents))
    assert done.evicted == 0
    if not policy.startswith("second-sight"):
        assert done.hits.sum() == simulate(Policy.MIN, found, len(found.parents)).hits.sum()


@pytest.mark.parametrize("policy", ONLINE)
def test_no_policy_breaks_where_the_load_changes(policy):
    """Every shape after the other, and a scan amid them: no more hits than the optimum's."""
    mixed, begin_ms = [], 0
    for number, name in enumerate(WORKLOADS):
        for r in requests(name, 300):
            pages = tuple(page + number * 10**15 for page in r.hash_ids)
            mixed.append(TraceRequest(begin_ms + r.timestamp_ms, 1, 1, pages, r.tenant))
        begin_ms = mixed[-1].timestamp_ms
    found = list(with_scan(iter(mixed), Scan(3000, begin_ms / 2000, 50), 512))
    served = hits(policy, found, 700)
    assert 0 < served.sum() <= hits(Policy.MIN, found, 700).sum()
    assert (served <= np.array([len(r.hash_ids) for r in found])).all()
