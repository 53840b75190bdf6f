# SPDX-License-Identifier: Apache-2.0
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bodocache.errors import TraceError
from bodocache.replay import requests as requests_module
from bodocache.replay.requests import (
    TraceRequest,
    read_trace,
    write_trace,
)
from bodocache.replay.trace import build_trace, load_trace

CONVERSATIONS = Path(__file__).parents[3] / "shared" / "traces" / "conversation_trace.jsonl"
GOOD = {"timestamp": 0, "input_length": 1024, "output_length": 5, "hash_ids": [0, 1]}


def write_lines(folder, *lines):
    path = folder / "trace.jsonl"
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(texts) + "\n")
    return path


def error_of(path):
    with pytest.raises(TraceError) as caught:
        load_trace(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "place", "found"),
    [
        ({"timestamp": -1}, "field timestamp: ", "got -1, expected an integer >= 0"),
        ({"timestamp": 1.5}, "field timestamp: ", "got 1.5, expected an integer"),
        ({"timestamp": float("nan")}, "field timestamp: ", "got nan"),
        ({"timestamp": True}, "field timestamp: ", "got True"),
        ({"input_length": 0}, "field input_length: ", "got 0, expected an integer >= 1"),
        ({"input_length": 2**60}, "field input_length: ", f"got {2**60}"),
        ({"output_length": None}, "field output_length: ", "got None"),
        ({"output_length": "secret"}, "field output_length: ", "got text of 6 characters"),
        ({"hash_ids": []}, "field hash_ids: ", "got an empty list"),
        ({"hash_ids": {"a": 1}}, "field hash_ids: ", "got an object"),
        ({"hash_ids": [0, 1, 2, "x"]}, "field hash_ids[3]: ", "got text of 1 characters"),
        ({"hash_ids": [0, -7]}, "field hash_ids[1]: ", "got -7, expected an integer >= 0"),
        ({"hash_ids": [0, 0]}, "field hash_ids[1]: ", "id 0 stood behind another page"),
        ({"tenant": 3}, "field tenant: ", "got 3, expected a name"),
    ],
)
def test_bad_field_is_named_with_file_and_line(tmp_path, change, place, found):
    path = write_lines(tmp_path, GOOD, GOOD | change)
    message = error_of(path)
    assert message.startswith(f"{path}:2: {place}")
    assert found in message
    assert "secret" not in message


@pytest.mark.parametrize("name", list(GOOD))
def test_missing_field_is_named(tmp_path, name):
    path = write_lines(tmp_path, {key: value for key, value in GOOD.items() if key != name})
    assert error_of(path).startswith(f"{path}:1: field {name}: it is missing, expected")


@pytest.mark.parametrize("line", ['{"timestamp": 1,', "nonsense", '{"timestamp": "\\ud800"}'])
def test_line_that_is_not_json_says_where_it_breaks(tmp_path, line):
    message = error_of(write_lines(tmp_path, GOOD, line))
    assert "trace.jsonl:2: not JSON: " in message
    assert " at column " in message


def test_line_that_is_not_an_object_is_refused(tmp_path):
    assert "trace.jsonl:1: got a list, expected an object" in error_of(write_lines(tmp_path, "[1]"))


def test_time_that_runs_backwards_is_refused(tmp_path):
    path = write_lines(tmp_path, GOOD | {"timestamp": 7}, GOOD | {"timestamp": 6})
    assert error_of(path).startswith(f"{path}:2: field timestamp: got 6, expected at least 7")


def test_id_behind_two_different_pages_is_refused(tmp_path):
    path = write_lines(tmp_path, GOOD, GOOD | {"hash_ids": [5, 1]})
    assert error_of(path).startswith(f"{path}:2: field hash_ids[1]: id 1 stood behind another")


def test_unknown_fields_and_blank_lines_are_passed_over(tmp_path):
    path = write_lines(tmp_path, GOOD | {"type": "chat"}, "", GOOD)
    assert load_trace(path).num_requests == 2


def test_empty_file_is_not_a_trace(tmp_path):
    assert "no requests" in error_of(write_lines(tmp_path))


def test_file_that_is_not_there_is_a_trace_error(tmp_path):
    assert error_of(tmp_path / "absent.jsonl").startswith(
        f"{tmp_path}/absent.jsonl: cannot be read"
    )


def test_torn_gzip_file_is_a_trace_error(tmp_path):
    whole = gzip.compress("\n".join(json.dumps(GOOD) for _ in range(5000)).encode())
    path = tmp_path / "torn.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    assert "torn.jsonl.gz" in error_of(path)


def test_endless_line_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(requests_module, "LINE_LIMIT_BYTES", 40)
    assert "trace.jsonl:1: not JSON" in error_of(write_lines(tmp_path, GOOD))


def test_reading_streams(tmp_path):
    path = write_lines(tmp_path, GOOD, "nonsense")
    assert next(read_trace(path)).hash_ids == (0, 1)
    assert load_trace(path, max_requests=1).num_requests == 1


def test_columns_number_pages_by_first_appearance():
    requests = [TraceRequest(0, 9, 1, (70, 71), "b"), TraceRequest(2500, 9, 2, (70, 50, 51), "a")]
    trace = build_trace("two", requests)
    np.testing.assert_array_equal(trace.pages, [0, 1, 0, 2, 3])
    np.testing.assert_array_equal(trace.offsets, [0, 2, 5])
    np.testing.assert_array_equal(trace.parent, [-1, 0, 0, 2])
    np.testing.assert_array_equal(trace.depth, [0, 1, 1, 2])
    np.testing.assert_array_equal(trace.timestamps_s, [0.0, 2.5])
    assert (trace.tenant_names, trace.tenants.tolist()) == (("b", "a"), [0, 1])
    assert not trace.pages.flags.writeable


@st.composite
def chained_requests(draw):
    """Requests over a random tree of pages, in order of time."""
    parents = draw(st.lists(st.integers(0, 30), min_size=1, max_size=30))
    chains = [(0,)]
    for page, parent in enumerate(parents, 1):
        chains.append((*chains[parent % page], page))
    rows = draw(st.lists(st.tuples(st.sampled_from(chains), st.integers(0, 9)), min_size=1))
    now_ms, requests = 0, []
    for chain, gap in rows:
        now_ms += gap
        requests.append(TraceRequest(now_ms, 8, gap, chain, draw(st.sampled_from([None, "t"]))))
    return requests


@given(requests=chained_requests(), suffix=st.sampled_from(["jsonl", "jsonl.gz"]))
def test_written_trace_reads_back_equal(tmp_path_factory, requests, suffix):
    path = tmp_path_factory.mktemp("round") / f"trace.{suffix}"
    assert write_trace(path, requests) == len(requests)
    assert list(read_trace(path)) == requests


@given(requests=chained_requests())
def test_parents_come_before_their_pages(requests):
    trace = build_trace("random", requests)
    assert (trace.parent < np.arange(trace.distinct)).all()
    inner = trace.parent >= 0
    np.testing.assert_array_equal(trace.depth[inner], trace.depth[trace.parent[inner]] + 1)


@given(content=st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_trace_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("noise") / "noise.jsonl"
    path.write_bytes(content)
    with pytest.raises(TraceError):
        load_trace(path)


def test_compressed_file_holds_neither_its_name_nor_the_time(tmp_path):
    path = tmp_path / "trace.jsonl.gz"
    write_trace(path, [TraceRequest(0, 9, 1, (1, 2))])
    flags, modified = path.read_bytes()[3], path.read_bytes()[4:8]
    assert (flags, modified) == (0, bytes(4))


def test_without_a_path_the_built_in_workload_is_loaded():
    assert load_trace(max_requests=5).num_requests == 5


@pytest.mark.skipif(not CONVERSATIONS.exists(), reason="needs ../shared/traces beside the project")
def test_conversation_trace_loads_whole():
    trace = load_trace(CONVERSATIONS)
    assert (trace.num_requests, trace.touches, trace.distinct) == (12_031, 288_500, 182_790)
