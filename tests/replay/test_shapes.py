# SPDX-License-Identifier: Apache-2.0
from collections import Counter, defaultdict
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache.errors import ConfigError
from bodocache.replay.shapes import SCANNER, WORKLOADS, Scan, with_scan, workload
from bodocache.replay.trace import build_trace, load_trace
from bodocache.replay.workload import Turn, generate


def made(name, requests=400, **changes):
    return list(workload(name, requests=requests, **changes).requests())


@pytest.mark.parametrize("name", WORKLOADS)
def test_equal_seeds_give_equal_requests(name):
    assert made(name, seed=5) == made(name, seed=5)
    assert made(name, seed=5) != made(name, seed=6)


@pytest.mark.parametrize("name", WORKLOADS)
def test_fewer_requests_are_a_prefix_of_more(name):
    assert made(name, 300) == made(name, 700)[:300]


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from([*WORKLOADS]),
    seed=st.integers(0, 2**32),
    page_tokens=st.sampled_from([16, 512, 10**6]),
)
def test_every_shape_is_a_valid_trace_of_chained_pages(name, seed, page_tokens):
    chosen = workload(name, seed=seed, requests=150, page_tokens=page_tokens)
    trace = load_trace(chosen)  # refuses what is not chained
    assert trace.num_requests == 150
    longest = chosen.config.context_tokens
    scanned = chosen.scan.request_pages * page_tokens if chosen.scan else 0
    assert trace.input_lengths.max() <= max(longest, scanned)
    assert (np.diff(trace.timestamps_s) >= 0).all()


def test_chat_is_the_built_in_workload():
    assert made("chat", None) == list(generate(WORKLOADS["chat"].config))


def test_questions_share_the_document_and_not_each_other():
    sharing = defaultdict(set)  # page -> the requests it is in
    requests = made("documents", 3000)
    for number, request in enumerate(requests):
        for page in request.hash_ids:
            sharing[page].add(number)
    behind = [
        len(sharing[request.hash_ids[-1]]) == 1 for request in requests if len(request.hash_ids) > 2
    ]
    assert np.mean(behind) > 0.9  # the page of a question is nobody else's
    used = np.array([len(numbers) for numbers in sharing.values()])
    assert np.median(used[used > 1]) >= 4  # a document's pages are asked about again and again


def test_half_of_the_documents_are_never_asked_about_by_another_conversation():
    trace = load_trace(workload("documents", requests=4000))
    uses, last = np.bincount(trace.pages), np.zeros(trace.distinct)
    for request in range(trace.num_requests):
        last[trace.pages[trace.offsets[request] : trace.offsets[request + 1]]] = request
    old = last < 2000
    assert 0.3 < np.mean(old[uses > 1]) < 0.9  # gone for good, though used often
    assert uses.max() > 50  # a popular one is not


def test_agents_step_within_seconds():
    requests = made("agents", 3000)
    last, gaps = {}, []
    for request in requests:
        for page in request.hash_ids[25:]:  # behind the shared prompts
            if page in last:
                gaps.append(request.timestamp_ms - last[page])
            last[page] = request.timestamp_ms
    assert np.median(gaps) < 10_000


def test_sub_agents_go_on_from_one_context_at_the_same_time():
    followed = defaultdict(set)
    for request in made("agents", 3000):
        for page, behind in zip(request.hash_ids, request.hash_ids[1:], strict=False):
            followed[page].add(behind)
    deep = {page for request in made("agents", 3000) for page in request.hash_ids[40:]}
    branching = [len(followed[page]) for page in deep]
    assert max(branching) >= 4  # the agent and its three sub-agents


def test_forks_keep_the_context_and_go_their_own_way():
    def forking(config, rng):
        children = tuple(iter([Turn(1.0, 512, 0)]) for _ in range(2))
        yield Turn(0.0, 1024, 0, forks=children)
        yield Turn(2.0, 512, 0, dropped_tokens=512)

    config = workload("chat", requests=60, requests_per_s=0.001, mean_turns=1).config
    parent, one, other, main = islice(generate(config, forking), 4)
    whole = (parent.input_length - 512) // 512
    assert one.hash_ids[: whole + 1] == other.hash_ids[: whole + 1] == parent.hash_ids[: whole + 1]
    assert not set(one.hash_ids[whole + 1 :]) & set(other.hash_ids[whole + 1 :])
    assert main.hash_ids[:whole] == parent.hash_ids[:whole]
    assert main.hash_ids[whole] != parent.hash_ids[whole]
    assert main.input_length == parent.input_length


@pytest.mark.parametrize("name", ["documents", "agents"])
def test_requests_come_as_often_as_the_config_says(name):
    config = WORKLOADS[name].config
    runs = [made(name, 6000, seed=seed, burst_factor=1) for seed in range(4)]
    spans_ms = [run[-1].timestamp_ms - run[3000].timestamp_ms for run in runs]  # once it is busy
    assert 3e6 / np.mean(spans_ms) == pytest.approx(config.requests_per_s, rel=0.15)


def test_hundreds_of_tenants_share_unevenly():
    counts = Counter(request.tenant for request in made("tenants", 6000))
    assert len(counts) > 250
    (_, most), *_ = counts.most_common(1)
    assert 0.08 < most / 6000 < 0.3


def test_a_scan_streams_its_pages_once_and_in_time():
    scan = Scan(pages=150, begin_s=7.0, pages_per_s=50.0, request_pages=64)
    requests = list(scan.requests(512))
    pages = [page for request in requests for page in request.hash_ids]
    assert len(pages) == len(set(pages)) == 150
    assert [request.timestamp_ms for request in requests] == [7_000, 8_280, 9_560]
    assert [request.input_length for request in requests] == [64 * 512, 64 * 512, 22 * 512]


def test_a_periodic_scan_begins_again_with_other_pages():
    scan = Scan(pages=10, begin_s=1.0, pages_per_s=1e6, request_pages=10, period_s=60)
    first, second = islice(scan.requests(512), 2)
    assert second.timestamp_ms - first.timestamp_ms == 60_000
    assert not set(first.hash_ids) & set(second.hash_ids)


def test_the_others_requests_are_the_same_with_and_without_a_scan():
    scan = Scan(pages=1000, begin_s=20.0, pages_per_s=30.0)
    mixed = list(with_scan(iter(made("chat")), scan, 512))
    assert [request for request in mixed if request.tenant != SCANNER] == made("chat")
    assert build_trace("mixed", mixed).num_requests == 400 + 16


@pytest.mark.parametrize("changes", [{"pages": 0}, {"pages_per_s": 0.0}, {"begin_s": -1.0}])
def test_a_scan_out_of_range_is_refused(changes):
    with pytest.raises(ConfigError, match="Scan"):
        Scan(**{"pages": 1, "begin_s": 0.0, "pages_per_s": 1.0} | changes)


def test_an_unknown_workload_is_named_with_those_that_are_known():
    with pytest.raises(ConfigError, match="got 'chats', expected one of chat, documents"):
        workload("chats")
