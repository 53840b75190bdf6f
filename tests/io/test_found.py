# SPDX-License-Identifier: Apache-2.0
"""What is said of a directory that is to be looked after."""

import asyncio
import os
import shutil
from contextlib import suppress
from dataclasses import replace

import pytest

from bodocache.errors import BackendError, BackendLocked
from bodocache.io import found
from bodocache.io.check import check
from bodocache.io.config import OpenMode
from bodocache.io.figures import measure
from bodocache.io.found import open_found
from bodocache.io.header import Superblock
from bodocache.io.trim import Trim
from bodocache.pages import Reason


def empty(bench):
    for path in bench.config.directory.iterdir():
        path.unlink()


def foreign(bench):
    empty(bench)
    (bench.config.directory / "notes.txt").write_text("mine")


def grouped(bench):
    foreign(bench)
    for name in ("window", "full"):
        (bench.config.directory / name).mkdir()
        (bench.config.directory / name / "headers.slab").touch()


def linked(bench):
    bench.headers.rename(bench.headers.with_name("elsewhere"))
    bench.headers.symlink_to("elsewhere")


def a_folder(bench):
    bench.headers.unlink()
    bench.headers.mkdir()


def damaged(bench):
    with bench.headers.open("r+b") as file:
        file.seek(50)
        file.write(b"\xff")


def of_another_version(bench):
    superblock = Superblock.decode(bench.headers.read_bytes())
    with bench.headers.open("r+b") as file:
        file.write(replace(superblock, version=7).encode())


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda bench: shutil.rmtree(bench.config.directory), "No such file or directory"),
        (empty, "there is no slab here: it is empty"),
        (foreign, "there is no slab here: its 1 files are something else's"),
        (grouped, "there is no slab here: name one of the groups below it: full, window"),
        (lambda bench: os.truncate(bench.headers, 0), "headers.slab is empty"),
        (lambda bench: bench.headers.write_bytes(b"x" * 9000), "something else's file"),
        (lambda bench: os.truncate(bench.headers, 100), "superblock is damaged"),
        (damaged, "superblock is damaged"),
        (of_another_version, "format version 7; this build reads 1"),
        (linked, "cannot be opened"),
        (a_folder, "not a regular file"),
        (lambda bench: bench.payload.unlink(), "cannot be opened"),
    ],
)
@pytest.mark.parametrize("mode", [OpenMode.READER, OpenMode.KEEPER])
def test_what_is_no_slab_is_told_from_one_and_left_as_it_is(bench, spoil, says, mode):
    bench.stored([1])
    spoil(bench)
    folder = bench.config.directory
    before = sorted(folder.iterdir()) if folder.exists() else None
    with pytest.raises(BackendError, match=says):
        open_found(bench.config.directory, mode)
    assert before == (sorted(folder.iterdir()) if folder.exists() else None)


@pytest.mark.parametrize("page_nbytes", [8192, 5008])
def test_the_superblock_says_all_that_a_reader_needs(bench, page_nbytes):
    bench.config = replace(bench.config, page_nbytes=page_nbytes)
    bench.pages.page_nbytes = page_nbytes
    bench.stored([])
    config, slab = open_found(bench.config.directory)
    slab.close()
    assert (config.page_nbytes, config.form) == (page_nbytes, bench.config.form)
    assert config.frame_count == bench.config.frame_count == len(slab.columns.reasons)
    assert config.mode is OpenMode.READER


def test_a_slab_that_is_made_anew_while_it_is_opened_is_an_error(bench, monkeypatch):
    bench.stored([1])
    before = found.read_superblock(bench.config.directory)
    monkeypatch.setattr(found, "read_superblock", lambda _: replace(before, slab=b"o" * 16))
    with pytest.raises(BackendError, match="made anew just now"):
        open_found(bench.config.directory, OpenMode.KEEPER)
    monkeypatch.undo()
    open_found(bench.config.directory, OpenMode.KEEPER)[1].close()  # the lock was let go


def test_a_keeper_takes_the_writers_place_and_allocates_nothing(bench):
    bench.stored([1])
    os.truncate(bench.payload, 8192)
    _, slab = open_found(bench.config.directory, OpenMode.KEEPER)
    with pytest.raises(BackendLocked, match=f"process {os.getpid()} writes to it"):
        open_found(bench.config.directory, OpenMode.KEEPER)
    slab.close()
    assert bench.payload.stat().st_size == 8192
    assert slab.columns.reasons.tolist() == [Reason.NONE] + [Reason.NEVER_STORED] * 15


def test_a_keeper_does_not_put_pages(bench):
    async def scenario(backend):
        with pytest.raises(BackendError, match="reading only"):
            backend.reserve(1, after=-1)

    bench.stored([1])
    bench.run(scenario, mode=OpenMode.KEEPER)


FORGERIES = [
    {"frame_count": 2**45},
    {"frame_count": 2**63},
    {"frame_count": 10**9},
    {"frame_count": 0},
    {"page_nbytes": 0},
    {"page_nbytes": 2**63},
    {"page_nbytes": 2**32 - 4096, "frame_nbytes": 2**32 - 4096},
    {"frame_nbytes": 0},
    {"frame_nbytes": 2**63},
]


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_superblock_is_an_error_or_believed_as_far_as_the_files_go(bench, forgery):
    batch = bench.stored([1, 2])
    superblock = Superblock.decode(bench.headers.read_bytes())
    with bench.headers.open("r+b") as file:
        file.write(replace(superblock, **forgery).encode())

    async def scenario(backend):
        assert backend.usage.total_frames in (0, bench.config.frame_count)
        reasons = (await bench.get(backend, batch))[1]
        return reasons == [0, 0] if "frame_count" in forgery else all(reasons)

    with suppress(BackendError):
        assert bench.run(scenario, mode=OpenMode.READER) or forgery["frame_count"] == 0
    for look in (
        lambda: asyncio.run(check(bench.config.directory, lambda *_: None)),
        lambda: measure(bench.config.directory),
        lambda: Trim(bench.config.directory, to_nbytes=None, mode=OpenMode.KEEPER).__exit__(),
    ):
        with suppress(BackendError):
            look()
