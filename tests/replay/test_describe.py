# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bodocache.replay.describe import describe, render
from bodocache.replay.requests import TraceRequest
from bodocache.replay.trace import build_trace, load_trace

CONVERSATIONS = Path(__file__).parents[3] / "shared" / "traces" / "conversation_trace.jsonl"
THREE = [
    TraceRequest(0, 1000, 10, (0, 1)),
    TraceRequest(500, 400, 20, (5,)),
    TraceRequest(20_500, 1500, 30, (0, 1, 2)),
]


def printed(trace):
    console = Console(width=100)
    with console.capture() as capture:
        console.print(render(describe(trace)))
    return capture.get()


def test_three_requests_are_counted():
    found = describe(build_trace("three", THREE))
    assert (found.requests, found.tenants, found.duration_s) == (3, 1, 20.5)
    assert (found.touches, found.distinct_pages, found.repeated_touches) == (6, 4, 2)
    assert found.infinite_hit_ratio == pytest.approx(2 / 6)
    assert (found.pages_used_once, found.request_pages.p50, found.request_pages_max) == (2, 2, 3)
    assert (found.input_tokens, found.output_tokens) == (2900, 60)


def test_reuse_gaps_are_from_the_last_use_to_the_next():
    found = describe(build_trace("three", THREE))
    assert set(found.reuse_gap_s) == {20.5}
    assert set(found.reuse_gap_requests) == {2.0}
    assert {name: count for name, count in found.reuse_gap_buckets if count} == {"10-60 s": 2}


def test_trace_without_reuse_has_no_gaps():
    trace = build_trace("one", THREE[:1])
    assert describe(trace).reuse_gap_s is None
    assert "reuse gap" not in printed(trace)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 10**7)), min_size=1))
def test_buckets_hold_every_repeated_touch(rows):
    now_ms, requests = 0, []
    for pages, gap_ms in rows:
        now_ms += gap_ms
        requests.append(TraceRequest(now_ms, 1, 0, tuple(range(pages))))
    found = describe(build_trace("random", requests))
    assert sum(count for _, count in found.reuse_gap_buckets) == found.repeated_touches
    assert found.repeated_touches + found.distinct_pages == found.touches


def test_tables_print_the_figures():
    text = printed(build_trace("three [red]", THREE))
    assert "three [red]" in text
    assert "2 (33.33%)" in text
    assert "█" in text


@pytest.mark.skipif(not CONVERSATIONS.exists(), reason="needs ../shared/traces beside the project")
def test_conversation_trace_has_its_known_hits():
    found = describe(load_trace(CONVERSATIONS))
    assert (found.repeated_touches, found.touches) == (105_710, 288_500)
    assert (found.requests, found.distinct_pages) == (12_031, 182_790)
    assert found.duration_s == pytest.approx(3537, abs=0.5)
