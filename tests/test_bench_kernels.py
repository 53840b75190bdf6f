# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the kernels, without a GPU: all but its clock, and that it finds what is wrong.

Our kernels run in Triton's interpreter, peers against a driver that copies at once, the peers'
CUDA kernel as C++, and the timer on a device that computes in no time.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bodocache.kernels import direct, gpu, nvrtc
from bodocache.kernels.reference.copy import copy_pages as twin
from bodocache.layout import LayoutKind

BENCH = Path(__file__).parents[1] / "bench"
LIE = """
import sys
sys.path.insert(0, {bench!r})
from bodocache.kernels import move
honest = move.launch
def wrong(source, target, slots, *rest, **options):
    return honest(source, target, (slots[0], slots[1].flip(0).contiguous()), *rest, **options)
move.launch = wrong
again = move.again
def wrong_again(made, slots, grid):
    return again(made, (slots[0], slots[1].flip(0).contiguous()), grid)
move.again = wrong_again
import kernels
sys.exit(kernels.main())
"""


@pytest.fixture
def modules(monkeypatch):
    """The scripts' folder, from which they import each other."""
    monkeypatch.syspath_prepend(str(BENCH))


def run(*arguments, script=None):
    command = ["-c", script] if script else [str(BENCH / "kernels.py")]
    return subprocess.run(
        [sys.executable, *command, *arguments],
        env={**os.environ, "TRITON_INTERPRET": "1", "XDG_CACHE_HOME": os.devnull},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(120)  # an interpreter: 6 s alone, 20 beside busy neighbours
def test_every_section_reports_and_what_cannot_run_says_why(tmp_path):
    file = tmp_path / "kernels.json"
    ran = run("--device", "cpu", "--json", str(file))
    assert ran.returncode == 0, ran.stderr
    said = json.loads(file.read_text())
    assert said["environment"]["notes"] == ["no GPU: every time is a stand-in"]
    timed = {row["section"] for row in said["rows"] if "failed" not in row}
    assert timed == {
        *("within_device", "link", "submission", "layerwise", "beside", "scoring", "checks")
    }
    assert {row["pages"] for row in said["rows"] if row["section"] == "scoring"} == {600, 200}
    failed = {row["what"]: row["failed"] for row in said["rows"] if "failed" in row}
    assert {"bulk", "copy_engine", "memcpy_batch", "uva_8byte"} <= failed.keys()
    assert not [why for why in failed.values() if "wrong" in why or "bound" in why]
    assert len(said["claims"]) == 14
    assert set(said["claims"][0]) == {"name", "measured", "target", "met"}
    assert "host_to_device index_select" in ran.stdout


@pytest.mark.timeout(120)
def test_a_kernel_that_moves_the_wrong_pages_is_a_row_and_no_figure(tmp_path):
    file = tmp_path / "kernels.json"
    options = ("--device", "cpu", "--json", str(file), "--sections", "within_device")
    ran = run(*options, script=LIE.format(bench=str(BENCH)))
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(file.read_text())["rows"]
    wrong = {row["what"] for row in rows if "wrong" in row.get("failed", "")}
    timed = {row["what"] for row in rows if "failed" not in row}
    assert wrong >= {"gather_pages", "gather, plain", "scatter_pages", "copy_pages sm"}
    assert timed == {"copy", "copy_pages torch"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_exits_2():
    ran = run()
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "no CUDA device: nothing to measure here\n"


class Driver:
    """Copies at once."""

    class CUmemcpyAttributes:
        pass

    class CUmemcpySrcAccessOrder:
        CU_MEMCPY_SRC_ACCESS_ORDER_STREAM = 1

    class Success:
        value = 0

    CUdeviceptr = int

    def cuMemcpyAsync(self, target, source, nbytes, _stream):  # noqa: N802 -- the driver's name
        ctypes.memmove(target, source, nbytes)
        return (self.Success,)

    def cuMemcpyBatchAsync(self, targets, sources, sizes, count, *rest):  # noqa: N802 -- idem
        assert (count, rest[1:]) == (len(sizes), ([0], 1, 3))
        for target, source, nbytes in zip(targets, sources, sizes, strict=True):
            ctypes.memmove(target, source, nbytes)
        return (self.Success,)


class Stream:
    cuda_stream = 3


def case(kinds, piece=4096, layers=2):
    """Two pools, the bytes of the second, and two sets of slots."""
    import _gpu_bench

    nbytes = 6 * 2 * layers * piece
    memories = [torch.randint(0, 256, (nbytes,), dtype=torch.uint8) for _ in kinds]
    pools = [_gpu_bench.paged(k, m, layers, piece) for k, m in zip(kinds, memories, strict=True)]
    sets = [(torch.tensor([4, 0, 1]), torch.tensor([2, 5, 0]))] * 2
    return *pools, memories[1], sets


def expected(source, destination, memory, sets):
    before = memory.clone()
    twin(source, destination, *sets[0])
    after = memory.clone()
    memory.copy_(before)
    return after


DIRECTIONS = pytest.mark.parametrize(
    "kinds",
    [(LayoutKind.PAGE, LayoutKind.LAYER_FIRST), (LayoutKind.LAYER_FIRST, LayoutKind.PAGE)],
)


@DIRECTIONS
@pytest.mark.parametrize("name", ["index_select", "memcpy_per_run", "memcpy_batch"])
@pytest.mark.usefixtures("modules")
def test_peers_copy_what_the_twin_copies(name, kinds, monkeypatch):
    import _gpu_peers

    monkeypatch.setattr(gpu, "bindings", lambda _: Driver())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream)
    source, destination, memory, sets = case(kinds)
    wanted = expected(source, destination, memory, sets)
    _gpu_peers.PEERS[name](source, destination, sets)(1)
    assert torch.equal(memory, wanted)


ON_HOST = """
#define __device__
#define __global__
#define __launch_bounds__(n)
struct Index {{ unsigned x; }};
static Index threadIdx, blockIdx, blockDim, gridDim;
struct Word {{ unsigned char bytes[{word}]; }};
void load(Word& word, unsigned long long from) {{ word = *reinterpret_cast<Word*>(from); }}
void store(unsigned long long to, const Word& word) {{ *reinterpret_cast<Word*>(to) = word; }}
{source}
extern "C" void all(const Arguments* a, unsigned blocks, unsigned threads) {{
    gridDim.x = blocks, blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++) uva_copy(*a);
}}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@DIRECTIONS
@pytest.mark.parametrize(("word", "piece"), [(8, 512), (16, 4096 + 2048)])
@pytest.mark.usefixtures("modules")
def test_the_peers_kernel_copies_what_the_twin_copies(kinds, word, piece, tmp_path):
    import _gpu_peers

    source, destination, memory, sets = case(kinds, piece)
    wanted = expected(source, destination, memory, sets)
    code = ON_HOST.format(word=word, source=_gpu_peers.UVA_SOURCE.decode())
    (tmp_path / "uva.cpp").write_text(code)
    options = ("-shared", "-fPIC", "-O1", "-o", "uva.so", "uva.cpp")
    subprocess.run(["g++", *options], cwd=tmp_path, check=True)
    tables = [torch.from_numpy(m.bases.ravel().copy()) for m in (source, destination)]
    arguments = _gpu_peers.uva_arguments(source, destination, sets[0], tables)
    ctypes.CDLL(str(tmp_path / "uva.so")).all(ctypes.c_char_p(arguments), 2, 1024)
    assert torch.equal(memory, wanted)


@pytest.mark.parametrize("missing", ["", "uva_8byte", "all", "sm"])
@pytest.mark.usefixtures("modules")
def test_no_best_of_the_published_is_claimed_where_one_was_not_measured(missing):
    import _gpu_bench
    import _gpu_link
    import _gpu_peers
    from _gpu_timing import StandInTimer

    rows = [
        {
            "section": "link",
            "direction": str(direction),
            "piece_nbytes": piece,
            "what": name,
            "gb_per_s": 9.0 if name == "sm" else 5.0,
            "share_of_large_copy": 1.0,
        }
        for direction in _gpu_link.DIRECTIONS
        for piece in _gpu_bench.FULL.link_pieces
        for name in ("sm", *_gpu_peers.PEERS)
        if (name, piece) != (missing, 4096) and (missing != "all" or name == "sm")
    ]
    report = _gpu_bench.Report(rows)
    device = torch.device("cpu")
    _gpu_link._claim(_gpu_bench.Bench(device, StandInTimer(), _gpu_bench.FULL, report, {}))
    claims = [claim for claim in report.claims if "best published" in claim.name]
    assert [claim.met for claim in claims] == [not missing] * 2
    first = {"all": min(_gpu_peers.PEERS), "sm": "ours"}.get(missing, missing)
    assert all((f"not measured: {first}" in c.name) == bool(missing) for c in claims)


@pytest.mark.parametrize(("chosen", "met"), [("sm", True), ("bulk", False), (None, False)])
@pytest.mark.usefixtures("modules")
def test_a_choice_that_was_not_measured_is_no_good_choice(chosen, met):
    import _gpu_bench
    import _gpu_link
    from _gpu_timing import StandInTimer

    from bodocache.kernels.select import CopyPath, Measured, Table

    point = {"piece_nbytes": 4096, "nbytes": 1 << 20}
    rows = [
        {"section": "link", "what": what, "direction": str(direction), "median_s": 1.0, **point}
        for direction in _gpu_link.DIRECTIONS
        for what in ("sm", "sm (host indices)")
    ]
    report = _gpu_bench.Report(rows)
    cpu = torch.device("cpu")
    bench = _gpu_bench.Bench(cpu, StandInTimer(), _gpu_bench.TINY, report, {})
    if chosen:  # else the table could not be had
        path = CopyPath(chosen)
        points = [Measured(d, path, *point.values(), 1e9, 4) for d in _gpu_link.DIRECTIONS]
        _gpu_link._judge_select(bench, Table("gpu", tuple(points)))
    _gpu_link._claim(bench)
    (claim,) = [claim for claim in report.claims if claim.name.startswith("select's path")]
    assert claim.met is met
    assert ("not measured everywhere" in claim.name) is not met


@pytest.mark.usefixtures("modules")
def test_what_a_load_ahead_brings_by_the_copy_engine_can_be_held(monkeypatch):
    import dataclasses

    import _gpu_bench
    import _gpu_overlap
    from _gpu_timing import StandInTimer

    from bodocache.kernels import PageCopy, layerwise

    monkeypatch.setattr(gpu, "bindings", lambda _: None)
    layers = _gpu_bench.FULL.overlap_layers
    scale = dataclasses.replace(_gpu_bench.TINY, overlap_layers=layers, overlap_pages=12)
    report, cpu = _gpu_bench.Report(), torch.device("cpu")
    bench = _gpu_bench.Bench(cpu, StandInTimer(), scale, report, {})
    (_, ahead), model = _gpu_overlap.AHEAD, _gpu_overlap._Model.of(bench)

    def held(model):
        copy = PageCopy(model.host, model.engine, layers=range(1))
        return (layers - ahead) * copy.most_runs(*model.slots, enough=10**6)

    assert held(model) > layerwise.MAX_HELD_RUNS
    assert held(model.that_fits("copy_engine", ahead)) <= layerwise.MAX_HELD_RUNS
    assert model.that_fits("copy_engine", None) is model
    assert model.that_fits("sm", ahead) is model


@pytest.mark.timeout(60)
def test_compute_has_run_once_before_a_load_waits_for_it():
    script = """
import sys
sys.path.insert(0, {bench!r})
import torch
import kernels
from bodocache.kernels import LayerwiseCopy
commit, mm, log = LayerwiseCopy.commit, torch.mm, []
LayerwiseCopy.commit = lambda self: log.append("commit") or commit(self)
torch.mm = lambda *a, **k: log.append("mm") or mm(*a, **k)
code = kernels.main()
print(code, log[0], log[log.index("commit")])
"""
    ran = run(
        "--device", "cpu", "--prove", "layerwise, ahead", script=script.format(bench=str(BENCH))
    )
    assert ran.stdout.split() == ["0", "mm", "commit"], ran.stderr


@pytest.mark.usefixtures("modules")
def test_the_peers_kernel_is_launched_with_bytes(monkeypatch):
    import _gpu_peers

    given = []

    def launch_at(_device, _function, _shape, parameters, _stream):
        at = ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))[0]
        given.append(ctypes.string_at(at, _gpu_peers.UVA_ARGUMENTS.itemsize))

    monkeypatch.setattr(direct, "launch_at", launch_at)
    monkeypatch.setattr(direct, "current_stream", lambda _: 5)
    function = nvrtc.Function("uva_copy", 1, torch.device("cpu"))
    monkeypatch.setattr(_gpu_peers, "_uva_function", lambda *_: function)
    source, destination, _, sets = case((LayoutKind.PAGE, LayoutKind.LAYER_FIRST))
    _gpu_peers.uva(source, destination, sets)(1)
    said = np.frombuffer(given[0], _gpu_peers.UVA_ARGUMENTS)[0]
    assert (said["num_pages"], said["num_bases"]) == (3, source.bases.size)


@pytest.mark.parametrize("word", [8, 16])
@pytest.mark.usefixtures("modules")
def test_the_peers_kernel_compiles(word):
    pytest.importorskip("cuda.bindings.nvrtc")
    import _gpu_peers

    assert _gpu_peers.uva_cubin("sm_90", word).startswith(b"\x7fELF")


class Clock:
    """A device whose work takes as long as the calls say; a spin takes none."""

    def __init__(self):
        self.now_s, self.spins = 0.0, []

    def event(self, **_):
        return Event(self)


class Event:
    def __init__(self, clock):
        self.clock = clock

    def record(self, _stream=None):
        self.at_s = self.clock.now_s

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return (end.at_s - self.at_s) * 1e3


class Side:
    def wait_event(self, _event):
        pass


@pytest.fixture
def clock(monkeypatch, modules):
    clock = Clock()
    monkeypatch.setattr(torch.cuda, "Event", clock.event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream)
    monkeypatch.setattr(torch.cuda, "_sleep", clock.spins.append)
    return clock


def takes(clock, seconds):
    def call(index):
        clock.now_s += seconds * (1 + index % 3)

    return call


@pytest.mark.parametrize("hidden", [True, False])
def test_the_timer_takes_the_median_and_drops_what_raises(clock, hidden):
    from _gpu_timing import EventTimer

    def raises(_):
        raise ValueError("no such path\nand more")

    timer = EventTimer(torch.device("cpu"), Side(), 1.0, (3, 9))
    calls = {"short": takes(clock, 1e-3), "long": takes(clock, 2e-3), "broken": raises}
    timed = timer.interleaved(calls, hidden=hidden)
    assert timed.failures == {"broken": "ValueError: no such path"}
    assert {n: round(t.median_s, 9) for n, t in timed.timings.items()} == {
        "short": 2e-3,
        "long": 4e-3,
    }
    assert timed.timings["long"].runs == 9
    assert bool(clock.spins) is hidden


def test_the_timer_says_whether_a_load_lasted_as_long_as_the_compute(clock):
    from _gpu_timing import EventTimer

    timer = EventTimer(torch.device("cpu"), Side(), 1.0, (3, 9))
    compute = lambda: takes(clock, 1e-3)(0)  # noqa: E731
    assert timer.beside(None, compute) == (pytest.approx(1e-3), True)
    _, lasted = timer.beside(lambda _: None, compute)
    assert not lasted


@pytest.mark.usefixtures("modules")
def test_what_crashes_or_hangs_alone_is_left_out(monkeypatch):
    import kernels

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "bulk: " not in (why := kernels._why_not("bulk", "cpu"))
    assert why.startswith("alone, in a process of its own: exit code 1: RuntimeError")

    def hangs(command, **_):
        raise subprocess.TimeoutExpired(command, 60)

    assert kernels._why_not("layerwise, ahead", "cpu") is None
    monkeypatch.setattr(subprocess, "run", hangs)
    assert kernels._why_not("bulk", "cpu").endswith("did not end within 60 s")


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("is_exclusive", [True, False])
def test_a_gpu_for_one_process_is_left_to_the_proofs_one_by_one(monkeypatch, is_exclusive):
    import kernels

    running, beside, order = [], [], []

    def why_not(name, *_):
        running.append(name)
        beside.append(len(running))
        time.sleep(0.1)
        running.remove(name)

    def context(_):
        order.append("context")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "is_exclusive", lambda _: is_exclusive)
    monkeypatch.setattr(kernels, "_why_not", why_not)
    assert kernels.prove_all("cuda") == {}
    assert (max(beside) == 1) is is_exclusive
    monkeypatch.setattr(kernels, "prove_all", lambda _: order.append("proofs") or {})
    monkeypatch.setattr(kernels, "_bench", context)
    monkeypatch.setattr(sys, "argv", ["kernels.py"])
    with pytest.raises(KeyboardInterrupt):
        kernels.main()
    assert order == ["proofs", "context"]


@pytest.mark.usefixtures("modules")
def test_proofs_that_do_not_get_their_turn_in_time_fail():
    import kernels

    assert kernels._why_not("bulk", "cpu", 0.0).endswith("no time was left for it")


@pytest.mark.usefixtures("modules")
def test_a_run_that_hangs_leaves_what_it_has(tmp_path, monkeypatch):
    import _gpu_bench
    from _gpu_timing import StandInTimer

    import kernels

    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    report = _gpu_bench.Report([{"section": "link", "what": "sm", "median_s": 1.0}])
    device = torch.device("cpu")
    bench = _gpu_bench.Bench(device, StandInTimer(), _gpu_bench.TINY, report, {})
    kernels._give_up(str(tmp_path / "kernels.json"), bench)
    said = json.loads((tmp_path / "kernels.json").read_text())
    assert codes == [1]
    assert [row["what"] for row in said["rows"]] == ["sm", "all"]
    assert said["environment"]["notes"][0] == "stopped before its end"
