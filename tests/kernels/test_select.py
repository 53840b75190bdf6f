# SPDX-License-Identifier: Apache-2.0
"""Which path is chosen, from what table, and how one comes about."""

import pytest
import torch

from bodocache import env
from bodocache.errors import BodoCacheError
from bodocache.kernels import calibrate, check, select
from bodocache.kernels.calibrate import Grid, measure_grid
from bodocache.kernels.copy import PageCopy
from bodocache.kernels.select import CopyPath, Direction, Measured, Table

DOWN = Direction.HOST_TO_DEVICE


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(env, "user_cache", lambda: tmp_path)
    select.load_table.cache_clear()
    yield tmp_path
    select.load_table.cache_clear()


def table(*points):
    return Table("gpu", tuple(Measured(DOWN, *point) for point in points))


def best(made, piece_nbytes, nbytes, *, indices_on_device=False):
    return made.best(
        DOWN, piece_nbytes=piece_nbytes, nbytes=nbytes, indices_on_device=indices_on_device
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
    assert best(made, 512, 4096) is CopyPath.SM  # below every point: the smallest


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
        device=torch.device("cuda:0"),
    )
    assert chosen is CopyPath.TORCH


def test_a_table_is_kept_and_found_again():
    made = table((CopyPath.BULK, 1024, 1 << 20, 5e9))
    assert select.load_table("gpu") is None
    select.save_table(made)
    assert select.load_table("gpu") == made


@pytest.mark.parametrize("text", ["", "{", '{"points": [{}]}', '{"points": 3}'])
def test_a_broken_table_is_none(text):
    file = select.table_file("gpu")
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert select.load_table("gpu") is None


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
    grid = Grid((1024,), (1 << 16,))
    points, failures = measure_grid(torch.device("cpu"), grid, lambda _: None, lambda *_: 0.5)
    assert {point.path for point in points} == {CopyPath.TORCH, CopyPath.SM}
    assert {point.bytes_per_s for point in points} == {131072.0}
    lines = calibrate.report(Table("gpu", tuple(points)), failures)
    assert any("unproven: within_device by bulk, 1024 B: BodoCacheError" in line for line in lines)
    assert any("1024 B pieces" in line and "0.0 GB/s" in line for line in lines)
    whys = {failure.path: failure.why for failure in failures}
    assert whys[CopyPath.BULK] == "BodoCacheError: no such GPU"
    assert "wrong bytes" in whys[CopyPath.COPY_ENGINE]
