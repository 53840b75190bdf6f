# SPDX-License-Identifier: Apache-2.0
import hashlib
import json

import pytest
from typer.testing import CliRunner

from bodocache.errors import ConfigError, TraceError
from bodocache.replay import commands, fetch
from bodocache.replay.commands import trace_app
from bodocache.replay.requests import read_trace
from bodocache.replay.shapes import workload as named_workload
from bodocache.replay.trace import load_trace
from bodocache.replay.workload import WorkloadConfig, generate


def run(*arguments):
    result = CliRunner().invoke(trace_app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def error_of(*arguments):
    return CliRunner().invoke(trace_app, [str(argument) for argument in arguments]).exception


@pytest.mark.parametrize("name", ["chats.jsonl", "chats.jsonl.gz"])
def test_generate_writes_the_workload_replay_takes(tmp_path, name):
    run("generate", tmp_path / name)
    assert list(read_trace(tmp_path / name)) == list(generate(WorkloadConfig()))


def test_generate_takes_what_it_is_told(tmp_path):
    path = tmp_path / "chats.jsonl"
    options = ["--requests", 30, "--seed", 3, "--tenants", 1, "--page-tokens", 64]
    run("generate", path, *options, "--mean-turns", 2, "--burst-factor", 1, "--requests-per-s", 9)
    expected = WorkloadConfig(3, 30, 9.0, 1, page_tokens=64, mean_turns=2, burst_factor=1)
    assert list(read_trace(path)) == list(generate(expected))


def test_generate_to_standard_output_writes_lines():
    lines = run("generate", "-", "--requests", 3).splitlines()
    assert [sorted(json.loads(line)) for line in lines] == [
        ["hash_ids", "input_length", "output_length", "tenant", "timestamp"]
    ] * 3


def test_generate_out_of_range_is_a_config_error(tmp_path):
    assert isinstance(error_of("generate", tmp_path / "x", "--mean-turns", 0), ConfigError)


def test_describe_without_a_trace_describes_the_built_in_workload():
    text = run("describe")
    assert "built-in workload" in text
    assert "infinite-cache hits" in text


def test_describe_writes_json(tmp_path):
    run("describe", "--json", tmp_path / "described.json")
    found = json.loads((tmp_path / "described.json").read_text())
    assert found == json.loads(run("describe", "--json", "-"))
    assert found["distinct_pages"] == load_trace().distinct
    assert found["reuse_gap_s"]["p50"] > 0
    assert sum(found["reuse_gap_buckets"].values()) == found["repeated_touches"]


def test_describe_reads_no_further_than_told(tmp_path):
    path = tmp_path / "chats.jsonl"
    run("generate", path, "--requests", 10)
    path.write_text(path.read_text() + "nonsense\n")
    assert json.loads(run("describe", path, "--max-requests", 10, "--json", "-"))["requests"] == 10
    assert f"{path}:11: not JSON" in str(error_of("describe", path))


def test_single_request_has_null_gaps_in_json():
    found = json.loads(run("describe", "--max-requests", 1, "--json", "-"))
    assert found["reuse_gap_s"] is None


def test_fetch_says_whose_the_trace_is(tmp_path, monkeypatch):
    (tmp_path / "small.jsonl").write_bytes(b"x")
    checksum = hashlib.sha256(b"x").hexdigest()
    trace = fetch.NamedTrace("https://example.org/x", checksum, 1, "MIT", "a small one")
    monkeypatch.setitem(fetch.NAMED, "small", trace)
    text = run("fetch", "small", "--to", tmp_path)
    for part in ("already there", "MIT", "https://example.org/x", checksum, "a small one"):
        assert part in text


def test_fetch_hands_on_the_mirror_and_the_progress(tmp_path, monkeypatch):
    def fake(name, folder, *, url, progress):
        progress(5, 10)
        raise TraceError(f"{name} {folder} {url}")

    monkeypatch.setattr(commands.fetching, "fetch", fake)
    error = error_of("fetch", "small", "--to", tmp_path, "--url", "http://mirror/x")
    assert str(error) == f"small {tmp_path} http://mirror/x"


@pytest.mark.parametrize("command", ["generate", "describe", "fetch"])
def test_help_teaches_by_example(command):
    assert f"bodocache trace {command}" in " ".join(run(command, "--help").split())


def test_generate_writes_the_workload_it_is_named(tmp_path):
    run("generate", tmp_path / "a.jsonl", "--workload", "agents", "--seed", 2, "--requests", 40)
    expected = named_workload("agents", seed=2, requests=40)
    assert list(read_trace(tmp_path / "a.jsonl")) == list(expected.requests())
    assert isinstance(error_of("generate", tmp_path / "b", "--workload", "chats"), ConfigError)
