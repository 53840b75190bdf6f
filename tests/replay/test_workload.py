# SPDX-License-Identifier: Apache-2.0
from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache.errors import ConfigError
from bodocache.replay import workload
from bodocache.replay.requests import read_trace, write_trace
from bodocache.replay.trace import build_trace
from bodocache.replay.workload import Spread, Turn, WorkloadConfig, generate

SMALL = WorkloadConfig(requests=80)
configs = st.builds(
    WorkloadConfig,
    seed=st.integers(0, 2**64),
    requests=st.integers(1, 120),
    requests_per_s=st.floats(0.01, 1000),
    tenants=st.integers(1, 20),
    prompts_per_tenant=st.integers(1, 5),
    page_tokens=st.sampled_from([16, 100, 512, 10**6]),
    mean_turns=st.floats(1, 20),
    burst_factor=st.floats(1, 50),
)


@settings(max_examples=30, deadline=None)
@given(config=configs)
def test_every_workload_is_a_valid_trace(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("workload") / "trace.jsonl"
    write_trace(path, generate(config))
    trace = build_trace("read back", read_trace(path))
    assert trace.num_requests == config.requests
    assert len(trace.tenant_names) <= config.tenants


@settings(max_examples=30, deadline=None)
@given(config=configs)
def test_a_page_not_filled_has_an_id_of_its_own(config):
    for request in generate(config):
        assert len(request.hash_ids) == -(-request.input_length // config.page_tokens)


def test_equal_seeds_give_equal_requests():
    assert list(generate(SMALL)) == list(generate(SMALL))
    assert list(generate(SMALL)) != list(generate(replace(SMALL, seed=8)))


def test_fewer_requests_are_a_prefix_of_more():
    assert list(generate(SMALL)) == list(islice(generate(WorkloadConfig()), 80))


def test_default_workload_suits_a_replay_of_seconds():
    trace = build_trace("default", generate(WorkloadConfig()))
    assert trace.num_requests == 600
    assert 4000 <= trace.distinct <= 8000
    assert 0.4 <= 1 - trace.distinct / trace.touches <= 0.6
    assert len(trace.tenant_names) == 4


def test_page_ids_appear_in_order():
    ids = [page for request in generate(SMALL) for page in request.hash_ids]
    first_seen = list(dict.fromkeys(ids))
    assert first_seen == sorted(first_seen)


def scripted(config, rng):
    """Two turns of a page and a half each, a second apart."""
    yield Turn(0.0, 768, 256)
    yield Turn(1.0, 768, 256)


def test_next_turn_holds_the_earlier_pages_output_and_new_tokens():
    config = replace(SMALL, requests=40, requests_per_s=0.001, mean_turns=1, burst_factor=1)
    first, second = islice(generate(config, scripted), 2)
    assert second.input_length == first.input_length + 256 + 768
    whole = first.input_length // 512
    assert second.hash_ids[:whole] == first.hash_ids[:whole]
    assert not set(second.hash_ids[whole:]) & set(first.hash_ids)
    assert second.timestamp_ms - first.timestamp_ms in {999, 1000, 1001}


def test_conversation_ends_before_it_outgrows_the_context():
    long = Spread(20_000, 0.1, 10_000, 30_000)
    config = replace(SMALL, context_tokens=80_000, mean_turns=50, next_tokens=long)
    lengths = [request.input_length for request in generate(replace(config, requests=600))]
    assert 60_000 < max(lengths) <= 80_000


def test_tenants_share_no_page():
    owner = {}
    for request in generate(WorkloadConfig()):
        assert {owner.setdefault(page, request.tenant) for page in request.hash_ids} == {
            request.tenant
        }


def test_system_prompts_are_shared_between_conversations():
    config = replace(SMALL, requests=2000, mean_turns=1, tenants=1, prompt_zipf=1.0)
    firsts = Counter(request.hash_ids[0] for request in generate(config))
    assert len(firsts) == config.prompts_per_tenant
    (_, most), (_, second) = firsts.most_common(2)
    assert most / second == pytest.approx(2, rel=0.2)


def gaps_s(config):
    arrivals = workload._arrivals(config, np.random.Generator(np.random.PCG64(1)))
    return np.diff(np.fromiter(islice(arrivals, 20_000), np.float64))


def test_arrivals_keep_their_mean_rate_through_bursts():
    config = replace(SMALL, requests_per_s=5, mean_turns=2.5)
    assert gaps_s(config).mean() == pytest.approx(0.5, rel=0.05)


def test_bursts_make_arrivals_vary_more_than_poisson():
    steady, bursty = (gaps_s(replace(SMALL, burst_factor=factor)) for factor in (1, 20))
    assert steady.std() / steady.mean() == pytest.approx(1, abs=0.05)
    assert bursty.std() / bursty.mean() > 1.3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("requests", 0),
        ("requests", 1.5),
        ("seed", -1),
        ("tenants", 0),
        ("page_tokens", 0),
        ("mean_turns", 0.5),
        ("requests_per_s", 0),
        ("calm_s", float("nan")),
        ("burst_factor", float("inf")),
        ("prompt_zipf", -1),
        ("context_tokens", 1000),
    ],
)
def test_config_out_of_range_is_named(field, value):
    with pytest.raises(ConfigError, match=f"workload.{field}: got {value}"):
        WorkloadConfig(**{field: value})


def test_spread_out_of_order_is_refused():
    with pytest.raises(ConfigError, match="expected 0 < least"):
        Spread(median=5, sigma=1, least=10, most=20)
