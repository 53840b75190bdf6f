# SPDX-License-Identifier: Apache-2.0
import json
import sys

import pytest
from typer.testing import CliRunner

import bodocache.kernels.cpu
import bodocache.replay.curve_report
import bodocache.replay.live
import bodocache.replay.policy_report
import bodocache.replay.tiers  # noqa: F401 -- all register what a replay compiles
from bodocache import cli, jit
from bodocache.replay.policy import Policy
from bodocache.replay.shapes import workload
from bodocache.replay.trace import load_trace
from bodocache.replay.workload import WorkloadConfig
from bodocache.replay.writes import Rule

jit.warm()  # here, not in a test: a cold compile is not part of any test's time

REPLAY = ("replay", "--policy-only", "--capacity-pages")
CURVE = ("replay", "--policy-only", "--curve")
POLICY_JSON = {
    *("trace", "requests", "pages_touched", "policy", "capacity_pages", "page_hits", "hit_ratio"),
    *("optimum_hits", "regret", "infinite_hits", "saved_s", "bound_saved_s", "touches_per_s"),
}
CURVE_JSON = {
    *("trace", "requests", "pages_touched", "distinct_pages", "infinite_hits", "curves"),
}
WRITES_JSON = {
    *("trace", "requests", "pages_touched", "host_pages", "host_hits", "curves"),
    *("write_through_pages", "write_through_hits"),
}


def run(*arguments, status=0):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result


def figures(*arguments):
    return json.loads(run(*arguments, "--json", "-").stdout)


def end_of_main(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["bodocache", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("policy", "capacity", "hits", "optimum"),
    [
        ("lru", 3_000, 18_850, 84_953),
        ("lru", 10_000, 61_046, 105_710),
        ("min", 3_000, 84_953, 84_953),
        ("min", 10_000, 105_710, 105_710),
    ],
)
def test_policy_only_gives_the_known_figures(conversation_trace, policy, capacity, hits, optimum):
    found = figures(*REPLAY, capacity, "--policy", policy, conversation_trace)
    assert found["requests"] == 12_031
    assert found["pages_touched"] == 288_500
    assert found["infinite_hits"] == 105_710
    assert (found["page_hits"], found["optimum_hits"]) == (hits, optimum)
    assert found["hit_ratio"] == hits / 288_500
    assert found["regret"] == pytest.approx(1 - hits / optimum)


@pytest.mark.parametrize("policy", Policy)
def test_policy_only_takes_every_policy_and_the_names_are_stable(policy):
    found = figures(*REPLAY, 300, "--policy", policy.value)
    assert set(found) == POLICY_JSON
    assert found["policy"] == policy.value
    assert found["requests"] == WorkloadConfig().requests
    assert 0 < found["page_hits"] <= found["optimum_hits"] <= found["infinite_hits"]


def test_a_workload_is_replayed_by_its_name():
    found = figures(*REPLAY, 300, "--workload", "agents", "--seed", 3, "--max-requests", 700)
    trace = load_trace(workload("agents", seed=3, requests=700))
    assert (found["trace"], found["requests"]) == ("workload agents", 700)
    assert found["pages_touched"] == trace.touches
    assert figures(*REPLAY, 300, "--seed", 7)["page_hits"] == figures(*REPLAY, 300)["page_hits"]


def test_policy_only_prints_a_table():
    text = run(*REPLAY, 300, "--policy", "min").stdout
    for part in ("min on built-in workload", "300 pages", "optimum", "0.0%", "touches/s"):
        assert part in text


def test_the_bound_stands_beside_the_seconds_saved():
    pytest.importorskip("scipy")
    small = (*REPLAY, 100, "--max-requests", 300, "--policy", "lru")
    assert figures(*small)["bound_saved_s"] is None
    found = figures(*small, "--bound")
    assert 0 < found["saved_s"] < found["bound_saved_s"]
    assert " of at most " in run(*small, "--bound").stdout


def test_a_curve_has_the_hits_that_one_capacity_has():
    found = figures(*CURVE, "--policies", "lru,arc")
    assert set(found) == CURVE_JSON
    assert list(found["curves"]) == ["lru", "arc", "min"]
    assert [curve["one_pass"] for curve in found["curves"].values()] == [True, False, True]
    for policy, curve in found["curves"].items():
        hits = dict(zip(curve["capacity_pages"], curve["page_hits"], strict=True))
        for capacity in (10, 300, found["distinct_pages"]):
            one = figures(*REPLAY, capacity, "--policy", policy)
            assert hits[capacity] == one["page_hits"]
    assert hits[found["distinct_pages"]] == found["infinite_hits"]


def test_a_curve_is_printed_and_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    page = tmp_path / "curve.html"
    text = run(*CURVE, "--policies", "fifo,second-sight-gdsf", "--report", page).stdout
    assert all(part in text for part in ("second-sight-gdsf", "1,000", "simulating"))
    assert "\N{HORIZONTAL ELLIPSIS}" not in text, "the table is wider than 80 columns"
    html = page.read_text()
    assert all(part in html for part in ("<svg", "min (optimum)", "fifo", "capacity, pages"))


WRITES = (*REPLAY, 300, "--writes", "--max-requests", 300)


def test_writes_have_every_rule_and_the_names_are_stable():
    found = figures(*WRITES)
    assert set(found) == WRITES_JSON
    assert set(found["curves"]) == set(Rule)
    for curves in found["curves"].values():
        assert set(curves) == {"store", "leave"}
        for curve in curves.values():
            assert (curve["written_pages"][0], curve["page_hits"][0]) == (0, found["host_hits"])
            assert curve["page_hits"][-1] == found["write_through_hits"]


def test_writes_are_printed_and_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    page = tmp_path / "writes.html"
    text = run(*WRITES, "--report", page).stdout
    assert all(part in text for part in ("second-sight", "foresight", "leave", "50%", "for 95%"))
    assert "\N{HORIZONTAL ELLIPSIS}" not in text, "the table is wider than 80 columns"
    html = page.read_text()
    assert all(part in html for part in ("<svg", "chance, store", "hits kept", "second-sight"))


def test_without_a_choice_a_curve_has_every_policy():
    assert set(figures(*CURVE, "--max-requests", 20)["curves"]) == set(Policy)


def test_json_goes_to_a_file_and_the_table_to_standard_output(tmp_path):
    text = run(*REPLAY, 300, "--json", tmp_path / "figures.json").stdout
    assert "hit ratio" in text
    assert set(json.loads((tmp_path / "figures.json").read_text())) == POLICY_JSON


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("replay", "--policy-only"), "--capacity-pages"),
        (("replay", "--live", *REPLAY[1:], "5"), "choose one"),
        (("replay", "--policy", "lru"), "only with --policy-only"),
        (("replay", "--capacity-pages", "5"), "only with --policy-only"),
        ((*REPLAY, "5", "--dir", "x"), "--dir: not with --policy-only"),
        ((*REPLAY, "5", "--report", "x"), "--report: not with --policy-only"),
        ((*REPLAY, "5", "--curve"), "--capacity-pages: not with --curve"),
        ((*REPLAY, "5", "--policies", "lru"), "--policies: only with --curve"),
        ((*CURVE, "--policy", "lru"), "--policy: not with --curve"),
        ((*CURVE, "--policies", "lru,belady"), "'belady' not known; known are lru, fifo"),
        (("replay", "--curve"), "--curve: only with --policy-only"),
        (("replay", "--bound"), "--bound: only with --policy-only"),
        ((*CURVE, "--bound"), "--bound: not with --curve"),
        (("replay", "--writes"), "--writes: only with --policy-only"),
        ((*CURVE, "--writes"), "--writes: not with --curve"),
        ((*REPLAY, "5", "--writes", "--policy", "lru"), "--policy: not with --writes"),
        (("replay", "x.jsonl", "--seed", "3"), "--seed: not with a trace"),
        (("replay", "x.jsonl", "--workload", "chat"), "--workload: not with a trace"),
        ((*REPLAY, "0"), "--capacity-pages"),
        ((*REPLAY, "5", "--policy", "belady"), "belady"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments, says):
    assert says in run(*arguments, status=2).output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("replay", "no such file"), "no such file: cannot be read"),
        (("replay", "--page-bytes", 4095), "expected a multiple of 4096"),
        (("replay", "--host-pages", 10**9, "--max-requests", 1), "this machine's memory"),
        ((*REPLAY, 5, "--json", "no/such/folder/x"), "No such file"),
        ((*REPLAY, 5, "--workload", "chats"), "workload: got 'chats', expected one of chat, "),
    ],
)
def test_an_error_is_one_line_and_status_2(monkeypatch, capsys, tmp_path, arguments, says):
    monkeypatch.chdir(tmp_path)
    status, text = end_of_main(monkeypatch, capsys, *arguments)
    assert status == 2
    assert says in text
    assert text.startswith("error: ")
    assert text.count("\n") == 1


def test_brackets_in_an_error_are_shown(monkeypatch, capsys, tmp_path):
    trace = tmp_path / "[bold]trace.jsonl"
    trace.write_text("nonsense\n")
    assert f"{trace}:1: not JSON" in end_of_main(monkeypatch, capsys, "replay", trace)[1]


def test_help_teaches_by_example():
    text = " ".join(run("replay", "--help").stdout.split())
    assert "bodocache replay trace.jsonl --max-requests 2000" in text
    assert "--policy-only --policy lru --capacity-pages" in text
    assert "--policy-only --curve --policies lru,arc,heat" in text


def test_a_live_replay_hits_and_finds_no_wrong_byte(tmp_path):
    small = ("--max-requests", 40, "--page-bytes", 4096, "--dir", tmp_path / "disk")
    found = figures("replay", *small, "--write-through")
    assert found["requests"] == 40
    assert found["page_hits"] > 0
    assert found["wrong_bytes"] == 0
    assert sum(tier["hits"] for tier in found["tiers"].values()) == found["page_hits"]
    assert sum(found["misses"].values()) == found["pages_touched"] - found["page_hits"]


KERNEL_JSON = {
    *("kernel", "specialisation", "target", "registers", "spills", "scalar_spills"),
    *("shared_nbytes", "vector_nbytes", "widest_nbytes", "code_nbytes", "proven"),
}


def test_kernels_are_compiled_for_the_targets_and_the_names_are_stable(tmp_path):
    small = ("kernels", "--only", "digest", "--targets", "sm_80, gfx942")
    text = run(*small, "--json", tmp_path / "kernels.json").stdout
    found = json.loads((tmp_path / "kernels.json").read_text())
    assert set(found) == {"environment", "rows", "faults", "skipped"}
    assert all(set(row) == KERNEL_JSON for row in found["rows"])
    assert [(row["kernel"], row["target"]) for row in found["rows"]] == [
        ("digest", "sm_80"),
        ("digest", "gfx942"),
    ]
    assert found["faults"] == []
    for row in found["rows"]:
        assert row["target"] in text
        assert f"{row['code_nbytes']:,}" in text
    assert "unproven" in text


def test_a_faulty_kernel_is_named_and_is_status_1(monkeypatch):
    from bodocache.kernels import report

    fault = "gather_page on sm_90 spills 8 bytes of a thread; expected 0"
    wrong = report.Report([], [fault], ["bulk_copy: NVRTC cannot be loaded"])
    monkeypatch.setattr(report, "compile_all", lambda *_: wrong)
    found = run("kernels", "--targets", "sm_90", "--json", "-", status=1)
    assert json.loads(found.stdout)["faults"] == [fault]
    assert f"fault: {fault}" in found.stderr
    assert "not compiled: bulk_copy: NVRTC cannot be loaded" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--targets", "sm_90,sm_91"), ["sm_91", "known are", "sm_80", "gfx942"]),
        (("--targets", ""), ["known are"]),
        (("--only", "gathers"), ["gathers", "known are", "gather", "digest"]),
    ],
)
def test_targets_and_kernels_that_are_not_known_are_refused(arguments, says):
    output = run("kernels", *arguments, status=2).output
    assert all(part in output for part in says)


def test_kernels_are_not_compiled_in_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "TRITON_INTERPRET=1 is set" in run("kernels", status=2).output


def test_the_help_of_kernels_says_what_the_figures_mean():
    text = " ".join(run("kernels", "--help").stdout.split())
    for part in ("sm_90 (H100", "bodocache kernels --only digest", "unproven until"):
        assert part in text


def test_calibrating_without_success_keeps_nothing_and_exits_1(monkeypatch):
    from bodocache.kernels import calibrate, select

    failure = calibrate.Failure("sm", "its process ended with 1")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr(calibrate, "calibrate", lambda *_, **__: (select.Table("x", ()), [failure]))
    monkeypatch.setattr(select, "save_table", None)
    output = run("calibrate", status=1).output
    assert "unproven: sm: its process ended with 1" in output
    assert "nothing was proven: no table is kept" in output


def test_calibrating_names_the_devices_there_are():
    output = run("calibrate", "--device", "64", status=2).output
    assert "--device: 64; this machine has" in output
    assert "stays unproven" in run("calibrate", "--help").stdout
