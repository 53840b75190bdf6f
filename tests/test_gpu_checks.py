# SPDX-License-Identifier: Apache-2.0
"""The GPU's checks, run in Triton's interpreter: they pass here, and find a kernel that lies."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"
SCRIPT = """
import sys
sys.path.insert(0, {bench!r})
import torch
import _gpu_checks_pages as paged
import gpu_checks
from bodocache.kernels import check, move
from bodocache.kernels.digest import digest_pages
from bodocache.kernels.reference.views import page_views
check.on_gpu = lambda device: True
launch = move.launch
def flipped(source, target, slots, *rest, **options):
    return launch(source, target, (slots[0], slots[1].flip(0).contiguous()), *rest, **options)
scatters = paged.scatter_pages, paged.scatter_plain
def wild(real):
    def call(pages, pool, slots, **options):
        done = real(pages, pool, slots, **options)
        free = next(i for i in range(pool.num_pages) if i not in slots.tolist())
        page_views(pool)[0][free] ^= 1
        return done
    return call
def beside(pages, pool, slots, **options):
    done = scatters[0](pages, pool, slots, **options)
    tensor, = pool.tensors()
    tensor.new_empty(0).set_(tensor.untyped_storage())[5] ^= 1  # in front of the pool
    return done
def nothing(pages, pool, slots, **options):
    return digest_pages(pages)
def zeros(pages, pool, slots, **options):
    for view in page_views(pool):
        view[slots.long()] = 0
    return digest_pages(pages)
lie = {lie!r}
if lie == "other pages":
    move.launch = flipped
elif lie in ("an unnamed page", "an unnamed page, plain"):
    paged.scatter_pages = wild(scatters[0]) if "plain" not in lie else scatters[0]
    paged.scatter_plain = wild(scatters[1]) if "plain" in lie else scatters[1]
elif lie == "a canary":
    paged.scatter_pages = beside
elif lie:
    gpu_checks.scatter_quantised = {{"no restoring": nothing, "zeros": zeros}}[lie]
torch.manual_seed(7)
machine = gpu_checks.Machine(torch.device("cpu"), groups=gpu_checks.GROUPS[1:2])
checks = gpu_checks.checks_of(machine.groups)
only = {only!r}
rows = list(gpu_checks.run(machine, {{n: c for n, c in checks.items() if n.startswith(only)}}))
import json
print("RESULT", json.dumps([rows, gpu_checks.proven(rows, "sm_90")]))
"""


def outcomes(lie, *only):
    script = SCRIPT.format(bench=str(BENCH), lie=lie, only=only or ("",))
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    rows, proven = json.loads(ran.stdout.rsplit("RESULT", 1)[1])
    return {row["check"]: row["outcome"] for row in rows}, proven, ran.stderr


@pytest.mark.timeout(400)  # a cache's code may have to be compiled first
def test_checks_pass_and_what_was_skipped_proves_nothing():
    found, proven, said = outcomes(None)
    passed = {name for name, outcome in found.items() if outcome == "passed"}
    assert passed == {
        *("gather_and_scatter narrow", "copies_within_the_device narrow", "sums_by_layer"),
        *("host_copies torch", "host_copies sm", "scores_and_the_coldest", "quantised_pages"),
        *("cache_layers", "cache_cancel"),
    }, said
    assert "FAILED" not in found.values()
    assert proven.keys() == {"digest", "score", "subtree", "coldest", "quantise"}


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("lie", "check"),
    [
        ("other pages", "sums_by_layer"),
        ("an unnamed page", "gather_and_scatter narrow"),
        ("an unnamed page, plain", "gather_and_scatter narrow"),
        ("a canary", "gather_and_scatter narrow"),
        ("no restoring", "quantised_pages"),
        ("zeros", "quantised_pages"),
    ],
)
def test_a_kernel_that_lies_is_found(lie, check):
    found, proven, _ = outcomes(lie, check)
    assert found == {check: "FAILED"}
    assert not proven


MUTATED = """
import importlib.util, json, sys
from pathlib import Path
sys.path.insert(0, {bench!r})
import torch
import gpu_checks
from bodocache.kernels import check, codes, quantise, score, subtree
check.on_gpu = lambda device: True
machine = gpu_checks.Machine(torch.device("cpu"), groups=gpu_checks.GROUPS[1:2])
checks = gpu_checks.checks_of(machine.groups)
into = dict(codes=quantise, score=score, subtree=subtree)
modules = dict(codes=codes, score=score, subtree=subtree)
outcomes = []
for number, (name, old, new) in enumerate([("score", "", ""), *{mutations!r}]):
    source, user = Path(modules[name].__file__).read_text(), into[name]
    assert not old or source.count(old) == 1, (name, old, source.count(old))
    file = Path({folder!r}, f"mutated_{{number}}.py")
    file.write_text(source.replace(old, new) if old else source)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    mutated = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutated)
    kernels = [n for n, v in vars(mutated).items() if type(v).__name__ == "InterpretedFunction"]
    kept = {{n: getattr(user, n) for n in kernels if hasattr(user, n)}}
    for n in kept:
        setattr(user, n, getattr(mutated, n))
    torch.manual_seed(7)
    only = "quantised_pages" if name == "codes" else "scores_and_the_coldest"
    (row,) = gpu_checks.run(machine, {{only: checks[only]}})
    outcomes.append(row["outcome"])
    for n, kernel in kept.items():
        setattr(user, n, kernel)
print("RESULT", json.dumps(outcomes))
"""
MUTATIONS = {
    "a last copy is not held": ("subtree", "mask=holds)", "mask=holds & (parent < 0))"),
    "one round less": (
        "subtree",
        "tl.load(links_ptr + link, mask=linked, other=-1)",
        "tl.load(links_ptr + link, mask=linked & (link > 1), other=-1)",
    ),
    "pages of other tiers count": ("subtree", "((tiers & here) != 0) & ", ""),
    "slower tiers are ignored": ("score", "state & -(2 << tier)", "state & 0"),
    "under-age pages go": ("score", "held = young |", "held ="),
    "pinned pages go": ("score", "((state & _HELD) != 0) |", ""),
    "pages of other tiers go": ("score", " | (((state >> tier) & 1) == 0)", ""),
    "pages never used have a score": (
        "score",
        'tl.where(used, score, float("-inf"))',
        "score",
    ),
    "infinities raise the scale": (
        "codes",
        "bitcast=True) < _INFINITE, size",
        "bitcast=True) < _INFINITE + 1, size",
    ),
    "the least scale is none": (
        "codes",
        "scale = tl.maximum(peak * _INVERSE_127, _LEAST_SCALE)",
        "scale = peak * _INVERSE_127",
    ),
    "NaN is a number": ("codes", "code = tl.where(finite, code, 0x80)", "code = code"),
    "NaN of FP8 is a number": (
        "codes",
        "((bits >> 24) & 0x80), 0x7F)",
        "((bits >> 24) & 0x80), 0)",
    ),
    "zero loses its sign": ("codes", "code | ((bits >> 24) & 0x80)", "code | (0 & bits)"),
    "the greatest value becomes infinite": (
        "codes",
        "size = tl.where(size > most, most, size)",
        "size = size",
    ),
}


@pytest.mark.timeout(120)
def test_a_kernel_with_a_line_broken_is_found(tmp_path):
    """Each in a rule that a page table or values of one kind alone would not show."""
    mutations = list(MUTATIONS.values())
    script = MUTATED.format(bench=str(BENCH), folder=str(tmp_path), mutations=mutations)
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not ran.returncode, ran.stderr
    unbroken, *found = json.loads(ran.stdout.rsplit("RESULT", 1)[1])
    assert unbroken == "passed", ran.stderr
    assert dict(zip(MUTATIONS, found, strict=True)) == dict.fromkeys(MUTATIONS, "FAILED")


@pytest.fixture
def checks(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import gpu_checks

    return gpu_checks


def test_checks_are_chosen_by_name_or_by_how_names_begin(checks):
    names = checks.checks_of(checks.GROUPS)
    assert checks.named(names, ["cache", "gds direct"]) == [
        *("cache_layers", "cache_cancel", "gds direct")
    ]
    with pytest.raises(SystemExit, match="no check is called nothing"):
        checks.named(names, ["nothing"])


def test_a_kernel_is_proven_by_all_of_its_checks(checks):
    names = checks.checks_of(checks.GROUPS)
    rows = [checks.row_of(name, "passed", "", 1.0) for name in names]
    assert checks.proven(rows, "sm_90").keys() == checks.PROVES.keys()
    needed = {name: kernels_without(checks, names, name) for name in names}
    assert needed["offsets_beyond_2_31"] == {"gather", "scatter", "copy", "bulk_copy"}
    assert needed["host_copies bulk"] == {"bulk_copy"}
    assert needed["layerwise_copies sm"] == {"copy"}
    assert needed["gather_and_scatter mla"] == {"gather", "scatter", "digest"}
    assert needed["host_copies copy_engine"] == set()
    assert not checks.proven(rows[:1], "sm_90")


def kernels_without(checks, names, failed):
    """What is no longer proven where one check was skipped."""
    rows = [checks.row_of(n, "skipped" if n == failed else "passed", "", 1.0) for n in names]
    return checks.PROVES.keys() - checks.proven(rows, "sm_90").keys()


def command(code):
    return [sys.executable, "-c", f"import os, sys, time\n{code}"]


def test_a_check_that_crashes_or_hangs_costs_only_itself(checks, monkeypatch):
    monkeypatch.setattr(checks, "CHECK_LIMIT_S", 2)
    good = json.dumps(checks.row_of("good", "passed", "", 1.0))
    rows = checks.run_apart(
        {
            "hangs": command("time.sleep(60)"),
            "crashes": command("print('something'); sys.stdout.flush(); os.abort()"),
            "good": command(f"print('a warning'); print('{good}')"),
        }
    )
    found = {row["check"]: (row["outcome"], row["why"]) for row in rows}
    assert found == {
        "hangs": ("FAILED", "it did not end within 2 s"),
        "crashes": ("FAILED", "its process ended with -6: "),
        "good": ("passed", ""),
    }


@pytest.mark.parametrize(("is_exclusive", "at_once"), [(True, 1), (False, None)])
def test_a_gpu_for_one_process_is_left_to_the_checks_one_by_one(
    checks, monkeypatch, is_exclusive, at_once
):
    import torch

    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for makes_a_context in ("set_device", "current_device", "get_device_capability"):
        monkeypatch.setattr(torch.cuda, makes_a_context, None)
    monkeypatch.setattr(checks.gpu, "is_exclusive", lambda _: is_exclusive)
    monkeypatch.setattr(checks, "run_apart", lambda _, at_once: asked.append(at_once) or [])
    monkeypatch.setattr(sys, "argv", ["gpu_checks.py"])
    assert checks.main() == 0
    assert asked == [at_once or checks.AT_ONCE]


def test_storage_is_not_checked_by_a_second_process_where_one_is_served(checks, monkeypatch):
    import torch

    monkeypatch.setattr(checks.gpu, "is_exclusive", lambda _: True)
    with pytest.raises(checks.Skipped, match="EXCLUSIVE_PROCESS"):
        checks.check_gds(checks.Machine(torch.device("cuda", 0)), "direct")


def test_checks_that_do_not_get_their_turn_in_time_fail(checks):
    (row,) = checks.run_apart({"late": command("print(1)")}, limit_s=0)
    assert (row["outcome"], row["why"]) == ("FAILED", "no time was left for it")


def test_rows_are_written_after_each_check(checks, monkeypatch, tmp_path, capsys):
    import torch

    file, seen = tmp_path / "checks.json", []

    def came(_):
        for name in ("sums_by_layer", "quantised_pages"):
            seen.append(json.loads(file.read_text())["rows"] if file.exists() else [])
            yield checks.row_of(name, "FAILED" if "sums" in name else "passed", "", 1.0)

    for name, value in {
        "is_available": True,
        "current_device": 0,
        "get_device_capability": (9, 0),
        "set_device": None,
        "get_device_name": "NVIDIA H100",
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(checks, "run_apart", lambda commands, **_: came(commands))
    monkeypatch.setattr(sys, "argv", ["gpu_checks.py", "--json", str(file)])
    assert checks.main() == 1
    assert [len(rows) for rows in seen] == [0, 1]
    said = json.loads(file.read_text())
    assert said["proven"] == {"quantise": ["sm_90"]}
    assert {"gpu", "driver", "cuda", "cuda_python", "torch", "triton"} <= said["environment"].keys()
    assert "FAILED   sums by layer" in capsys.readouterr().out


def make_gpu(tmp_path, fails, *, sanitizer):
    """Run the stages with stand-ins that say what they were asked, and fail where told."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("python", *(["compute-sanitizer"] if sanitizer else [])):
        file = tools / name
        file.write_text(
            f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/log\n'
            f'case "$*" in *{fails}*) exit 3;; esac\nexit 0\n'
        )
        file.chmod(0o755)
    ran = subprocess.run(
        ["make", "-s", "gpu", f"GPU_PYTHON={tools}/python", f"RESULTS={tmp_path}"],
        cwd=BENCH.parent,
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    return ran, (tmp_path / "log").read_text().splitlines()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("fails", ["gpu_checks.py", "calibrate", "kernels.py", "no-stage"])
@pytest.mark.parametrize("sanitizer", [True, False])
def test_every_stage_runs_and_a_failure_is_the_exit_status(tmp_path, fails, sanitizer):
    ran, asked = make_gpu(tmp_path, fails, sanitizer=sanitizer)
    assert [line.split()[0] for line in asked] == [
        *("python", *(["compute-sanitizer"] if sanitizer else []), "python", "python")
    ]
    assert "bench/kernels.py" in asked[-1]
    assert "-m bodocache.kernels.calibrate" in asked[-2]
    assert (ran.returncode == 0) == (fails == "no-stage"), ran.stderr
    assert ("failed (3)" in ran.stdout) == (fails != "no-stage")


def test_the_stages_take_less_than_nine_minutes(checks, monkeypatch):
    import _gpu_bench

    limits = re.findall(r"timeout -k (\d+) (\d+)", (BENCH.parent / "Makefile").read_text())
    assert len(limits) == 4
    assert sum(int(limit) + int(more) for more, limit in limits) < 540
    assert int(limits[0][1]) > checks.LIMIT_S
    assert _gpu_bench.FULL.limit_s < int(limits[3][1])
