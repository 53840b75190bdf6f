# SPDX-License-Identifier: Apache-2.0
"""A check finds what is damaged, and does not take a running writer's work for damage."""

import asyncio
import errno
import math
import os
import threading
from dataclasses import replace

import numpy as np
import pytest

from bodocache.errors import BackendError
from bodocache.io import check as checking
from bodocache.io.header import SUPERBLOCK_NBYTES
from bodocache.pages import Reason


def check(bench, on_progress=lambda *_: None):
    return asyncio.run(checking.check(bench.config.directory, on_progress))


def overwrite(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_a_sound_slab_is_whole_and_no_byte_of_it_changes(bench):
    bench.stored(list(range(5)))
    before = [path.read_bytes() for path in (bench.payload, bench.headers)]
    found, told = None, []
    found = check(bench, lambda *progress: told.append(progress))
    assert (found.frames, found.whole, found.duplicates, found.changed) == (16, 5, 0, 0)
    assert found.reasons == {Reason.NEVER_STORED: 11}
    assert (found.damaged, found.nbytes) == ([], 5 * 8192)
    assert (told[0], told[-1]) == ((0, 5), (5, 5))
    assert before == [path.read_bytes() for path in (bench.payload, bench.headers)]


def test_memory_is_bounded_and_every_page_is_read_once(bench, monkeypatch):
    monkeypatch.setattr(checking, "BATCH_NBYTES", 3 * 8192)
    bench.stored(list(range(16)))
    told = []
    found = check(bench, lambda done, _: told.append(done))
    assert found.whole == 16
    assert sorted(np.diff(told)) == [1, 3, 3, 3, 3, 3]


def test_damage_is_named_by_frame_reason_and_key(bench):
    batch = bench.stored(list(range(8)))
    assert batch["frame"].tolist() == list(range(8))
    overwrite(bench.payload, 1 * 8192 + 77, b"\x55\xaa")
    overwrite(bench.payload, 2 * 8192, bench.payload.read_bytes()[3 * 8192 : 4 * 8192])
    bench.change_header(4, lambda row: row["depth"].__iadd__(1), sealed=False)
    bench.change_header(5, lambda row: row["slab"].__iadd__(1))
    os.truncate(bench.payload, 7 * 8192 + 100)
    found = check(bench)
    assert [(it.frame, it.reason) for it in found.damaged] == [
        (1, Reason.CORRUPT),
        (2, Reason.FOREIGN),
        (4, Reason.CORRUPT),
        (5, Reason.FOREIGN),
        (7, Reason.TRUNCATED),
    ]
    assert all(it.key == batch["key"][it.frame].tobytes() for it in found.damaged)
    assert (found.whole, found.changed) == (3, 0)
    assert found.whole + sum(found.reasons.values()) == found.frames


def test_keyed_frames_are_checked_without_their_key(bench):
    bench.config = replace(bench.config, mac_key=b"k" * 16)
    bench.stored([1, 2])
    overwrite(bench.payload, 8192, b"\x01")
    found = check(bench)
    assert found.whole == 1
    assert [(it.frame, it.reason) for it in found.damaged] == [(1, Reason.CORRUPT)]


def test_a_header_of_another_format_is_no_damage(bench):
    bench.stored([1, 2])
    bench.change_header(0, lambda row: row["version"].__iadd__(1))
    found = check(bench)
    assert (found.whole, found.damaged) == (1, [])
    assert found.reasons == {Reason.OLD_FORMAT: 1, Reason.NEVER_STORED: 14}


def test_a_frame_that_cannot_be_read_is_damage_even_if_it_can_be_later(bench, fake):
    bench.stored([1, 2, 3])

    def bad_second(fd, buffers, offset):
        nbytes = sum(buffer.nbytes for buffer in buffers)
        if offset < 2 * 8192 and offset + nbytes > 8192:
            raise OSError(errno.EIO, "bad sector")
        return os.preadv(fd, buffers, offset)

    fake("preadv", bad_second)
    found = check(bench)
    assert [(it.frame, it.reason) for it in found.damaged] == [(1, Reason.IO_ERROR)]
    assert found.whole == 2


@pytest.mark.parametrize("is_damaged", [False, True])
def test_an_older_copy_of_a_page_is_a_duplicate_and_checked_too(bench, is_damaged):
    async def scenario(backend):
        old, _ = await bench.put(backend, [1])
        backend.release(old["frame"])
        backend.reserve(1, after=-1)  # so that the page goes elsewhere
        await bench.put(backend, [1])

    bench.run(scenario)
    if is_damaged:
        overwrite(bench.payload, 5, b"\x01")
    found = check(bench)
    assert (found.whole, found.duplicates) == (1, 1 - is_damaged)
    assert [it.frame for it in found.damaged] == [0] * is_damaged


def test_a_page_that_is_overwritten_before_it_is_read_has_changed(bench, fake):
    async def scenario(backend):
        old, _ = await bench.put(backend, [1, 2])
        entered, gate = threading.Event(), threading.Event()

        def wait(*arguments):
            entered.set()
            assert gate.wait(10)
            return os.preadv(*arguments)

        fake("preadv", wait)
        running = asyncio.create_task(checking.check(bench.config.directory, lambda *_: None))
        assert await asyncio.to_thread(entered.wait, 10)
        backend.release(old["frame"][:1])
        new, _ = await bench.put(backend, [3])
        assert new["frame"] == old["frame"][0]
        gate.set()
        return await running

    found = bench.run(scenario)
    assert (found.whole, found.changed, found.damaged) == (1, 1, [])
    assert found.reasons == {Reason.NEVER_STORED: 14}


def test_a_page_between_its_payload_and_its_header_has_changed(bench, fake, monkeypatch):
    async def scenario(backend):
        old, _ = await bench.put(backend, [1])
        backend.release(old["frame"])
        reached, gate, calls = threading.Event(), threading.Event(), []

        def stop_at_the_header(*arguments):
            calls.append(arguments)
            if len(calls) == 2:
                reached.set()
                assert gate.wait(10)
            return os.pwritev(*arguments)

        fake("pwritev", stop_at_the_header)
        buffers = bench.pages.buffers(1)
        bench.pages.fill(buffers, [2])
        batch = bench.pages.batch([2], backend.reserve(1, after=-1))
        transfer = backend.put(batch, buffers, deadline_s=math.inf)
        assert await asyncio.to_thread(reached.wait, 10)
        real, looks = checking._has_changed, []

        def look(*arguments):
            looks.append(real(*arguments))
            gate.set()
            return looks[-1]

        monkeypatch.setattr(checking, "_has_changed", look)
        found = await checking.check(bench.config.directory, lambda *_: None)
        await transfer.drained()
        return found, looks

    found, looks = bench.run(scenario)
    assert (looks[0], looks[-1]) == (False, True)
    assert (found.whole, found.changed, found.damaged) == (0, 1, [])


def test_a_frame_that_is_emptied_meanwhile_has_changed(bench):
    bench.stored([1])

    def empty(done, _):
        if not done:
            overwrite(bench.payload, 0, bytes(8192))
            overwrite(bench.headers, SUPERBLOCK_NBYTES, bytes(512))

    found = check(bench, empty)
    assert (found.changed, found.damaged) == (1, [])


def test_a_slab_that_is_made_anew_meanwhile_is_an_error(bench):
    bench.stored([1])

    def make_anew(*_):
        bench.headers.unlink()
        bench.stored([2])

    def once(*progress):
        if progress == (1, 1):
            thread = threading.Thread(target=make_anew)
            thread.start()
            thread.join()

    with pytest.raises(BackendError, match="made anew while it was checked"):
        check(bench, once)


def test_what_is_damaged_for_good_is_read_once_more_and_no_more(bench, monkeypatch):
    bench.stored(list(range(16)))
    for frame in range(16):
        overwrite(bench.payload, frame * 8192, b"\x55\xaa")
    real, looks = checking._has_changed, []

    def look(slab, frame, generation):
        looks.append(frame)
        return real(slab, frame, generation)

    monkeypatch.setattr(checking, "_has_changed", look)
    assert len(check(bench).damaged) == 16
    assert sorted(looks) == list(range(16))


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_headers_are_looked_at_wherever_they_lie(bench, monkeypatch, rows):
    monkeypatch.setattr(checking, "SCAN_ROWS", rows)
    bench.stored(list(range(16)))
    for frame in (0, 5, 15):
        overwrite(bench.payload, frame * 8192, b"\x55\xaa")
    real, looks = checking._has_changed, []

    def look(slab, frame, generation):
        looks.append(frame)
        if len(looks) == 3:  # from now on these are other pages
            for it in (5, 15):
                bench.change_header(it, lambda row: row["generation"].__iadd__(100))
        return real(slab, frame, generation)

    monkeypatch.setattr(checking, "_has_changed", look)
    found = check(bench)
    assert [it.frame for it in found.damaged] == [0]
    assert found.changed == 2
