# SPDX-License-Identifier: Apache-2.0
"""``bodocache replay`` with real bytes; the simulator's command line is tests/test_cli.py."""

import json
import sys

import pytest
from typer.testing import CliRunner

from bodocache import cli, jit
from bodocache.kernels.host import compiled as host_path
from bodocache.replay import live

host_path()
jit.warm()

PAGES = ("--max-requests", "60", "--page-bytes", "4096", "--write-through")
NAMES = {
    *("requests", "pages_touched", "page_hits", "hit_ratio", "optimum_hits", "regret"),
    *("wrong_bytes", "bytes_loaded", "bytes_stored", "misses", "tiers", "links"),
}


@pytest.fixture
def replay(tmp_path):
    def run(*arguments):
        return CliRunner().invoke(
            cli.app, ["replay", *PAGES, "--dir", str(tmp_path / "cache"), *map(str, arguments)]
        )

    return run


@pytest.fixture
def error_of(monkeypatch, capsys):
    def ended(*arguments):
        monkeypatch.setattr(sys, "argv", ["bodocache", "replay", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 2
        return capsys.readouterr().err

    return ended


def test_json_to_standard_output_is_nothing_but_the_figures(replay):
    figures = json.loads(replay("--json", "-").stdout)
    assert set(figures) >= NAMES
    assert figures["wrong_bytes"] == 0
    assert figures["page_hits"] + sum(figures["misses"].values()) == figures["pages_touched"]
    assert figures["page_hits"] == sum(tier["hits"] for tier in figures["tiers"].values())
    assert figures["hit_ratio"] == figures["page_hits"] / figures["pages_touched"]
    assert set(figures["tiers"]) == {"device", "host", "disk"}
    assert figures["links"]["device->host"]["bytes"] == figures["bytes_stored"]


def test_a_second_replay_starts_warm(replay):
    cold, warm = (json.loads(replay("--json", "-").stdout) for _ in range(2))
    assert (cold["recovered_pages"], cold["wrong_bytes"], warm["wrong_bytes"]) == (0, 0, 0)
    assert warm["recovered_pages"] > 0
    assert warm["page_hits"] > cold["page_hits"]
    assert warm["tiers"]["disk"]["hits"] > 0
    assert warm["disk_reads"] is not None
    assert warm["optimum_hits"] >= warm["page_hits"]


def test_a_report_is_written(replay, tmp_path):
    pytest.importorskip("matplotlib")
    result = replay("--report", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert "<html" in (tmp_path / "page.html").read_text()


def test_wrong_bytes_end_with_status_1(replay, monkeypatch):
    monkeypatch.setattr(live.payload, "count_wrong_bytes", lambda *_: 3)
    result = replay()
    assert result.exit_code == 1
    assert "wrong bytes" in result.output


def test_a_bad_page_size_is_one_line(error_of):
    error = error_of("--page-bytes", 5000)
    assert error.count("\n") == 1
    assert "5000" in error


def test_a_missing_trace_is_one_line(error_of, tmp_path):
    error = error_of(tmp_path / "none.jsonl")
    assert error.count("\n") == 1
    assert "none.jsonl" in error


def test_a_malformed_line_is_named(error_of, tmp_path):
    (tmp_path / "bad.jsonl").write_text("nonsense\n")
    error = error_of(tmp_path / "bad.jsonl")
    assert error.count("\n") == 1
    assert "bad.jsonl:1" in error
