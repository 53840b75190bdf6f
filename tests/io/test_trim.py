# SPDX-License-Identifier: Apache-2.0
"""A trimmed slab is smaller, holds what it held, and works; so it does after a kill on the way."""

import asyncio
import os

import numpy as np
import pytest

from bodocache.errors import BackendError, BackendLocked, ConfigError
from bodocache.io.config import OpenMode
from bodocache.io.posix import DataFile
from bodocache.io.trim import Trim
from bodocache.pages import Reason

FRAME = 8192 + 512
CALLS = (("pwrite", os), ("ftruncate", os), ("fdatasync", os), ("punch", DataFile))


def trim(bench, to_frames=None, mode=OpenMode.KEEPER):
    to_nbytes = None if to_frames is None else 4096 + to_frames * FRAME
    return Trim(bench.config.directory, to_nbytes=to_nbytes, mode=mode)


def trimmed(bench, to_frames=None):
    with trim(bench, to_frames) as it:
        return it.run()


def blocks(bench):
    return sum(path.stat().st_blocks * 512 for path in (bench.payload, bench.headers))


def moved_page(bench):
    """Page 1 in frames 0 and 1, the latter newer; page 2 in frame 2."""

    async def scenario(backend):
        old, _ = await bench.put(backend, [1])
        backend.release(old["frame"])
        backend.reserve(1, after=-1)
        return (await bench.put(backend, [1, 2]))[0]

    return bench.run(scenario)


def test_empty_frames_give_their_blocks_back_and_pages_stay(bench):
    batch = bench.stored(list(range(4)))
    before = blocks(bench)
    freed = trimmed(bench)
    assert freed == before - blocks(bench) >= 12 * 8192 - 4096
    assert bench.payload.stat().st_size == 16 * 8192
    assert bench.reasons(batch) == [Reason.NONE] * 4


def test_opening_does_not_take_the_space_back_and_writing_does(bench):
    batch = bench.stored(list(range(4)))
    trimmed(bench)
    before = blocks(bench)
    assert bench.reasons(batch) == [Reason.NONE] * 4
    assert blocks(bench) == before
    more = bench.stored(list(range(4, 10)))
    assert blocks(bench) - before >= 6 * 8192
    assert bench.reasons(np.concatenate([batch, more])[4:]) == [Reason.NONE] * 6


def test_a_slab_that_grows_is_allocated_only_what_it_gains(bench, caplog):
    bench.stored([1])
    trimmed(bench)
    before = blocks(bench)
    bench.reasons(bench.stored([]), capacity_nbytes=4096 + 20 * FRAME)
    assert bench.payload.stat().st_size == 20 * 8192
    assert 4 * 8192 <= blocks(bench) - before < 8 * 8192
    assert not caplog.text


def test_headers_of_empty_frames_are_erased_so_that_a_restart_finds_nothing(bench):
    batch = moved_page(bench)
    with trim(bench) as it:
        assert (it.plan.empty, it.plan.erased, it.plan.lost) == (14, 1, 0)
        it.run()
    assert not any(bench.headers.read_bytes()[4096 : 4096 + 512])
    assert not any(bench.payload.read_bytes()[:8192])
    assert bench.reasons(batch) == [Reason.NONE] * 2


@pytest.mark.parametrize("to_frames", [None, 4, 2])
def test_a_kill_at_any_moment_loses_no_page_that_is_to_stay(bench, monkeypatch, to_frames):
    batch = moved_page(bench)
    kept = batch[batch["frame"] < (to_frames or 16)]
    files = {path: path.read_bytes() for path in (bench.payload, bench.headers)}
    left, ended = 0, False
    while not ended:
        for path, data in files.items():
            path.write_bytes(data)
        with trim(bench, to_frames) as it, monkeypatch.context() as patch:
            calls = killed_after(patch, left)
            try:
                it.run()
                ended = True
            except KeyboardInterrupt:
                left += 1
        assert bench.reasons(kept) == [Reason.NONE] * len(kept), calls
        assert trimmed(bench, to_frames) is not None  # and it goes on from there
        assert bench.reasons(kept) == [Reason.NONE] * len(kept), calls
    assert left >= 4


def killed_after(patch, left):
    """Let the process end at the call after ``left`` that change something; note them."""
    made = []

    def killing(name, real):
        def call(*arguments):
            if len(made) == left:
                raise KeyboardInterrupt
            made.append(name)
            return real(*arguments)

        return call

    for name, owner in CALLS:
        patch.setattr(owner, name, killing(name, getattr(owner, name)))
    return made


def test_headers_are_erased_and_synced_before_a_payload_goes(bench, monkeypatch):
    moved_page(bench)
    with trim(bench) as it, monkeypatch.context() as patch:
        calls = killed_after(patch, -1)
        it.run()
    assert calls.count("punch") == 2
    first = calls.index("punch")
    assert "pwrite" not in calls[first:]
    assert calls[first - 1] == "fdatasync"
    assert "pwrite" in calls[: first - 1]


@pytest.mark.parametrize("to_frames", [1, 3, 16])
def test_a_smaller_capacity_loses_what_lies_beyond_and_says_how_much(bench, to_frames):
    batch = bench.stored(list(range(8)))
    kept = min(8, to_frames)
    with trim(bench, to_frames) as it:
        assert (it.plan.lost, it.plan.new_frames) == (8 - kept, to_frames)
        assert it.plan.new_capacity_nbytes == 4096 + to_frames * FRAME
        it.run()
    assert bench.payload.stat().st_size == to_frames * 8192
    assert bench.headers.stat().st_size == 4096 + to_frames * 512
    small = {"capacity_nbytes": 4096 + to_frames * FRAME}
    expected = [Reason.NONE] * kept + [Reason.NEVER_STORED] * (8 - kept)
    assert bench.reasons(batch, **small) == expected
    assert bench.reasons(batch) == expected  # grown again by a writer with more room
    assert bench.payload.stat().st_size == 16 * 8192


def test_the_plan_is_near_what_is_freed(bench):
    bench.stored(list(range(4)))
    with trim(bench, 10) as it:
        said = it.plan.nbytes_on_disk - it.plan.kept_nbytes
        assert abs(it.run() - said) <= 3 * 4096


def test_beside_a_writer_there_is_only_a_plan(bench):
    async def scenario(backend):
        await bench.put(backend, [1])
        with pytest.raises(BackendLocked, match="writes to it"):
            trim(bench)
        with trim(bench, mode=OpenMode.READER) as it:
            assert (it.plan.empty, it.plan.lost) == (15, 0)

    bench.run(scenario)


@pytest.mark.parametrize(("to_frames", "error"), [(17, BackendError), (0, ConfigError)])
def test_a_capacity_that_cannot_be_is_refused_and_the_lock_let_go(bench, to_frames, error):
    batch = bench.stored([1])
    with pytest.raises(error):
        trim(bench, to_frames)
    assert bench.reasons(batch) == [Reason.NONE]


def test_a_file_system_without_holes_is_an_error_that_loses_nothing(bench, monkeypatch):
    batch = bench.stored([1, 2])

    def refuse(*_):
        raise OSError(95, "Operation not supported", str(bench.payload))

    monkeypatch.setattr(DataFile, "punch", refuse)
    with pytest.raises(OSError, match="not supported"):
        trimmed(bench)
    assert bench.reasons(batch) == [Reason.NONE] * 2


def test_readers_that_are_open_go_on(bench):
    batch = bench.stored(list(range(4)))

    async def scenario(backend):
        await asyncio.to_thread(trimmed, bench, 2)
        return (await bench.get(backend, batch))[1]

    reasons = bench.run(scenario, mode=OpenMode.READER)
    assert reasons == [Reason.NONE] * 2 + [Reason.TRUNCATED] * 2
