# SPDX-License-Identifier: Apache-2.0
"""Which path is chosen, from what table, and how one comes about."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain

import pytest
import torch

from bodocache import env
from bodocache.errors import BodoCacheError
from bodocache.kernels import calibrate, calibrate_scoring, check, gpu, select
from bodocache.kernels.calibrate import Failure, Grid, measure, measured_apart, tabled
from bodocache.kernels.copy import PageCopy
from bodocache.kernels.launch import MAX_PROGRAMS
from bodocache.kernels.select import CopyPath, Direction, Measured, Place, Scored, Table, Work
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory

DOWN = Direction.HOST_TO_DEVICE


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(env, "user_cache", lambda: tmp_path)
    load = select.load_table
    load.cache_clear()
    yield tmp_path
    load.cache_clear()


def table(*points, blocks=0):
    return Table("gpu", tuple(Measured(DOWN, *point, blocks) for point in points))


def best(made, piece_nbytes, nbytes, *, indices_on_device=False, blocks=None):
    return made.best(
        DOWN,
        piece_nbytes=piece_nbytes,
        nbytes=nbytes,
        indices_on_device=indices_on_device,
        blocks=blocks,
    )


def test_the_fastest_path_at_the_nearest_smaller_point_is_chosen():
    made = table(
        (CopyPath.SM, 1024, 1 << 20, 5e9),
        (CopyPath.COPY_ENGINE, 1024, 1 << 20, 1e9),
        (CopyPath.SM, 65536, 1 << 20, 20e9),
        (CopyPath.COPY_ENGINE, 65536, 1 << 20, 25e9),
    )
    assert best(made, 4096, 2 << 20) is CopyPath.SM
    assert best(made, 65536, 2 << 20) is CopyPath.COPY_ENGINE
    assert best(made, 4096, 4096) is CopyPath.SM  # below every total: the smallest


def test_nothing_is_chosen_for_pieces_smaller_than_it_was_measured_with():
    made = table((CopyPath.SM, 1024, 1 << 20, 9e9))
    assert best(made, 1024, 1 << 20) is CopyPath.SM
    assert best(made, 1008, 1 << 20) is CopyPath.TORCH


def test_the_count_of_pieces_decides_too():
    made = table(
        (CopyPath.SM, 1024, 1 << 20, 9e9),
        (CopyPath.COPY_ENGINE, 1024, 1 << 20, 1e9),
        (CopyPath.SM, 1024, 1 << 26, 9e9),
        (CopyPath.COPY_ENGINE, 1024, 1 << 26, 20e9),
    )
    assert best(made, 1024, (1 << 26) - 1) is CopyPath.SM
    assert best(made, 1024, 1 << 26) is CopyPath.COPY_ENGINE


def test_a_path_is_no_choice_for_fewer_blocks_than_it_was_measured_with():
    fast = table((CopyPath.SM, 1024, 1 << 20, 9e9), blocks=4)
    slow = table((CopyPath.COPY_ENGINE, 1024, 1 << 20, 1e9))
    made = Table("gpu", fast.points + slow.points)
    assert best(made, 1024, 1 << 20) is CopyPath.SM
    assert best(made, 1024, 1 << 20, blocks=4) is CopyPath.SM
    assert best(made, 1024, 1 << 20, blocks=3) is CopyPath.COPY_ENGINE


def test_a_copy_asks_with_its_pieces_total_and_blocks(monkeypatch):
    asked = {}

    def choose(direction, **question):
        asked.update(question)
        return CopyPath.TORCH

    monkeypatch.setattr(select, "choose", choose)
    layout = Layout(LayoutKind.LAYER_FIRST, Group("g", 2, 1, 64, 2), 4, 4)
    memory = torch.zeros(layout.pool_nbytes, dtype=torch.uint8)
    pages = PagedMemory.of_layout(memory, layout)
    PageCopy(pages, pages, blocks=3).path_for(torch.arange(3))
    assert (asked["piece_nbytes"], asked["nbytes"]) == (512, 3 * layout.page_nbytes)
    assert (asked["blocks"], asked["indices_on_device"]) == (3, False)


def test_a_link_brings_what_its_best_path_did_in_large_copies(monkeypatch):
    made = table((CopyPath.SM, 1024, 1 << 20, 90e9), (CopyPath.TORCH, 1024, 1 << 26, 20e9))
    monkeypatch.setattr(select, "load_table", lambda _: made)
    gpu = torch.device("cpu")
    assert select.bytes_per_s(DOWN, piece_nbytes=4096, device=gpu) == 20e9
    assert select.bytes_per_s(DOWN, piece_nbytes=16, device=gpu) == 10e9


def test_pages_are_scored_where_it_takes_less_and_on_the_host_unless_proven(monkeypatch):
    made = Table(
        "gpu",
        (),
        (
            *(Scored(Work.SCORE, Place.HOST, 100, 1.0), Scored(Work.SCORE, Place.DEVICE, 100, 2.0)),
            *(Scored(Work.SCORE, Place.HOST, 1000, 9.0), Scored(Work.SCORE, Place.DEVICE, 1000, 3)),
            Scored(Work.COLDEST, Place.HOST, 100, 9.0),
        ),
    )
    places = {count: made.place(Work.SCORE, count) for count in (99, 100, 999, 10**6)}
    assert places == {99: "host", 100: "host", 999: "host", 10**6: "device"}
    assert made.place(Work.COLDEST, 10**6) is Place.HOST
    assert select.place_of(Work.SCORE, 10**6, torch.device("cpu")) is Place.HOST
    monkeypatch.setattr(select, "load_table", lambda _: made)
    assert select.place_of(Work.SCORE, 10**6, torch.device("cpu")) is Place.DEVICE


def test_the_copy_engine_is_no_choice_for_indices_on_the_device():
    made = table((CopyPath.SM, 1024, 1, 5e9), (CopyPath.COPY_ENGINE, 1024, 1, 9e9))
    assert best(made, 1024, 1, indices_on_device=True) is CopyPath.SM


def test_nothing_unproven_is_chosen():
    assert best(table(), 1024, 1) is CopyPath.TORCH
    chosen = select.choose(
        *(DOWN,),
        piece_nbytes=1024,
        nbytes=1 << 20,
        indices_on_device=False,
        blocks=None,
        device=torch.device("cuda:0"),
    )
    assert chosen is CopyPath.TORCH


def test_a_table_is_kept_and_found_again():
    points = table((CopyPath.BULK, 1024, 1 << 20, 5e9)).points
    made = Table("gpu", points, (Scored(Work.SCORE, Place.HOST, 100, 1.0),))
    assert select.load_table("gpu") is None
    select.save_table(made)
    assert select.load_table("gpu") == made


POINT = {"direction": "host_to_device", "path": "bulk", "piece_nbytes": 1024, "nbytes": 1024}


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", '{"points": [{}], "scored": []}', '{"points": 3}', "[" * 10**5, "[]"),
        '{"points": [], "scored": [{"work": "score_pages", "place": "host", "num_pages": 1e999}]}',
        *(
            json.dumps({"points": [{**POINT, "blocks": 0, "bytes_per_s": rate}], "scored": []})
            for rate in (float("nan"), float("inf"), 0, -1)
        ),
    ],
)
def test_a_broken_table_is_none_and_said_once(text, caplog):
    file = select.table_file("gpu")
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert select.load_table("gpu") is None
    assert select.load_table("gpu") is None
    (said,) = caplog.messages
    assert said.startswith("calibration of gpu cannot be read (")


def test_no_table_is_nothing_to_say(caplog):
    assert select.load_table("gpu") is None
    assert not caplog.messages


def test_calibrating_needs_a_gpu():
    with pytest.raises(BodoCacheError, match="cpu is no CUDA device"):
        calibrate.calibrate(torch.device("cpu"))


def test_paths_that_move_bytes_wrong_or_raise_stay_unproven(monkeypatch):
    """On CPU pools everything runs but the clock: a path that lies is found out."""
    real = PageCopy.run

    def run(self, *slots, **options):
        if self._path is CopyPath.BULK:
            raise BodoCacheError("no such GPU")
        if self._path is CopyPath.COPY_ENGINE:
            slots = (slots[0].flip(0), slots[1])
        self._path = None
        real(self, *slots, **options)

    monkeypatch.setattr(PageCopy, "run", run)
    monkeypatch.setattr(check, "is_pinned", lambda _: True)
    cpu, grid = torch.device("cpu"), Grid((1024, 128), (1 << 16,))
    found = [list(measure(path, cpu, grid, lambda *_: 0.5)) for path in CopyPath]
    made, failures = tabled("gpu", chain.from_iterable(found))
    assert {point.path for point in made.points} == {CopyPath.TORCH, CopyPath.SM}
    assert {point.bytes_per_s for point in made.points} == {131072.0}
    assert {p.blocks for p in made.points if p.path is CopyPath.SM} == {
        select.LINK_BLOCKS,
        MAX_PROGRAMS,
    }
    lines = calibrate.report(made, failures)
    assert any("unproven: within_device by bulk: 1024 B pieces: Bodo" in line for line in lines)
    assert any("1024 B pieces" in line and "0.0 GB/s" in line for line in lines)
    whys = {failure.what: failure.why for failure in failures}
    assert whys["host_to_device by bulk"] == "1024 B pieces: BodoCacheError: no such GPU"
    assert "wrong bytes" in whys["device_to_host by copy_engine"]


def test_a_byte_outside_the_named_slots_is_wrong_too(monkeypatch):
    real = PageCopy.run

    def run(self, *slots, **options):
        self._path = None
        real(self, *slots, **options)
        self.destination.tensors()[0][-1] ^= 1

    monkeypatch.setattr(PageCopy, "run", run)
    cpu, grid = torch.device("cpu"), Grid((1024,), (1 << 16,))
    found = list(measure(CopyPath.SM, cpu, grid, lambda *_: 0.5))
    assert [failure.why for failure in found] == ["1024 B pieces: 1 wrong bytes"] * 3


def test_what_a_path_has_no_time_for_stays_unmeasured(monkeypatch):
    monkeypatch.setattr(calibrate, "BUDGET_S", -1.0)
    cpu, grid = torch.device("cpu"), Grid((1024,), (1 << 16,))
    assert list(measure(CopyPath.TORCH, cpu, grid, lambda *_: 0.5)) == []


SAYS = """
import json, os, sys, time
print(json.dumps({point}), flush=True)
{end}
"""


@pytest.mark.parametrize(
    ("end", "why"),
    [("os.abort()", "ended with -6"), ("time.sleep(60)", "did not end within 1 s")],
)
def test_a_path_that_crashes_or_hangs_costs_only_itself(monkeypatch, end, why):
    monkeypatch.setattr(calibrate, "LIMIT_S", 1)
    point = {**POINT, "blocks": 4, "bytes_per_s": 5e9}
    command = lambda end: [sys.executable, "-c", SAYS.format(point=point, end=end)]  # noqa: E731
    notes = []
    bad = measured_apart("bulk", command(end), note=notes.append)
    good = measured_apart("sm", command("").copy(), note=notes.append)
    good[0] = Measured(DOWN, CopyPath.SM, 1024, 1024, 5e9, 4)
    made, failures = tabled("gpu", [*bad, *good])
    assert [point.path for point in made.points] == [CopyPath.SM]
    assert [failure.what for failure in failures] == ["bulk"]
    assert why in failures[0].why
    assert len(notes) == 2


TURNS = """
import fcntl, json, time
from pathlib import Path
from bodocache.kernels.calibrate import turned
turn, hangs = Path({turn!r}), {hangs!r}
with turned(turn, fcntl.LOCK_SH, 1):
    time.sleep(60 if hangs == "checking" else 0.2)
with turned(turn, fcntl.LOCK_EX, 1):
    time.sleep(60 if hangs == "timing" else 0)
    print(json.dumps({point}), flush=True)
"""


@pytest.mark.timeout(60)  # three processes that import torch
@pytest.mark.parametrize("hangs", ["checking", "timing"])
def test_what_hangs_with_the_lock_ends_and_all_others_get_their_turn(tmp_path, hangs):
    turn = tmp_path / "turn"
    turn.touch()
    paths = [CopyPath.BULK, CopyPath.SM, CopyPath.TORCH]
    commands = []
    for path in paths:
        point = {**POINT, "path": str(path), "blocks": 4, "bytes_per_s": 5e9}
        hung = hangs if path is CopyPath.BULK else ""
        code = TURNS.format(turn=str(turn), hangs=hung, point=point)
        commands.append([sys.executable, "-c", code])
    with ThreadPoolExecutor(3) as threads:
        said = threads.map(partial(measured_apart, note=lambda _: None), paths, commands)
        made, (failure,) = tabled("gpu", chain.from_iterable(said))
    assert {point.path for point in made.points} == {CopyPath.SM, CopyPath.TORCH}
    assert failure.what == "bulk"
    assert "did not end its checks within 20 s, or its turn in 10" in failure.why


BUSY = "import sys; sys.exit('CUDA error: all CUDA-capable devices are busy or unavailable')"


@pytest.fixture
def busy_gpu(monkeypatch):
    """A GPU on which every process fails, and the table of an earlier day."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(calibrate, "describe", lambda _: "gpu")
    monkeypatch.setattr(calibrate, "_command", lambda *_: [sys.executable, "-c", BUSY])
    monkeypatch.setattr(sys, "argv", ["calibrate"])
    good = table((CopyPath.SM, 1024, 1 << 20, 5e9))
    select.save_table(good)
    return good


def test_where_nothing_was_proven_the_earlier_table_stays(busy_gpu, capsys):
    assert calibrate.main() == 1
    assert select.load_table("gpu") == busy_gpu
    said = capsys.readouterr().out
    assert "unproven: sm: its process ended with 1: CUDA error: all CUDA-capable devices" in said
    assert said.endswith(
        "nothing was proven: no table is kept, and an earlier one stays as it is\n"
    )


@pytest.mark.usefixtures("busy_gpu")
@pytest.mark.parametrize("is_exclusive", [True, False])
def test_a_gpu_for_one_process_gets_one_at_a_time(monkeypatch, is_exclusive):
    made, beside = [], []

    def apart(name, _command, note):
        made.append(name)
        beside.append(len(made))
        time.sleep(0.2)
        made.remove(name)
        return []

    monkeypatch.setattr(gpu, "is_exclusive", lambda _: is_exclusive)
    monkeypatch.setattr(calibrate, "measured_apart", apart)
    notes = []
    calibrate.calibrate(torch.device("cuda", 0), note=notes.append)
    assert len(beside) == 5
    assert max(beside) == (1 if is_exclusive else 5)
    assert any("EXCLUSIVE_PROCESS" in note for note in notes) is is_exclusive


@pytest.mark.usefixtures("busy_gpu")
def test_a_process_that_holds_a_gpu_for_one_cannot_calibrate_it(monkeypatch):
    monkeypatch.setattr(gpu, "is_exclusive", lambda _: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(BodoCacheError, match=r"EXCLUSIVE_PROCESS.*run `bodocache calibrate` by"):
        calibrate.calibrate(torch.device("cuda", 0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_process_of_its_own_runs_this_module():
    command = calibrate._command("sm", torch.device("cuda", 0), "none")
    (failure,) = measured_apart("sm", command, note=lambda _: None)
    assert failure == Failure("sm", "its process ended with 2: calibrate: no CUDA device")


def test_what_a_process_says_is_what_was_found(monkeypatch):
    point = {**POINT, "blocks": 4, "bytes_per_s": 5e9}
    score = {"work": "score_pages", "place": "device", "num_pages": 10, "seconds": 1.0}
    fail = {"what": "device_to_host by bulk", "why": "3 wrong bytes"}
    end = f"print(json.dumps({score})); print('a warning'); print(json.dumps({fail}))"
    command = [sys.executable, "-c", SAYS.format(point=point, end=end)]
    assert measured_apart("bulk", command, note=lambda _: None) == [
        Measured(DOWN, CopyPath.BULK, 1024, 1024, 5e9, 4),
        Scored(Work.SCORE, Place.DEVICE, 10, 1.0),
        Failure("device_to_host by bulk", "3 wrong bytes"),
    ]


def test_scoring_is_timed_where_it_is_right(monkeypatch):
    cpu = torch.device("cpu")
    found = list(calibrate_scoring.measure(cpu, lambda call, _: call() is not None or 2.0, (300,)))
    assert {(point.work, point.place) for point in found} == {
        (work, place) for work in Work for place in Place
    }
    real = calibrate_scoring.coldest_pages
    calls = []

    def wrong(pages, keys, count):
        calls.append(1)
        return real(pages, keys, count - len(calls) % 2)

    monkeypatch.setattr(calibrate_scoring, "coldest_pages", wrong)
    found = list(calibrate_scoring.measure(cpu, lambda *_: 1.0, (300,)))
    assert found == ["300 pages: other pages are the coldest"]


def test_a_table_is_of_one_driver_and_one_version_of_our_kernels(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    names = set()
    for build, digest in (("570.86.15", "a"), ("570.124", "a"), ("570.124", "b")):
        monkeypatch.setattr(select, "driver_build", lambda build=build: build)
        monkeypatch.setattr(select, "_kernels_digest", lambda digest=digest: digest)
        select.describe.cache_clear()
        names.add(select.describe(torch.device("cuda:0")))
    select.describe.cache_clear()
    assert len(names) == 3
    assert all(name.startswith("NVIDIA_H100-driver570.") for name in names)
