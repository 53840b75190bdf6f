# SPDX-License-Identifier: Apache-2.0
"""Who may open a slab, and what that leaves on disk."""

import asyncio
import errno
import gc
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from bodocache.clock import RealClock
from bodocache.errors import BackendError, BackendLocked, ConfigError
from bodocache.io import engine, slab
from bodocache.io.config import OpenMode, SlabConfig
from bodocache.io.slab import SlabBackend
from bodocache.pages import Reason

READER = {"mode": OpenMode.READER}


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def open_slab(config):
    return SlabBackend.open(config, clock=RealClock())


def test_a_second_writer_is_refused_and_told_whom_by(bench):
    async def scenario(backend):
        with pytest.raises(BackendLocked, match=f"process {os.getpid()} writes to it"):
            await open_slab(bench.config)

    bench.run(scenario)
    bench.run(lambda _: asyncio.sleep(0))  # and free again


def test_a_writer_in_another_process_is_refused(bench):
    code = (
        "import asyncio, sys; from pathlib import Path\n"
        "from bodocache.clock import RealClock; from bodocache.io.config import SlabConfig\n"
        "from bodocache.io.slab import SlabBackend\n"
        f"config = SlabConfig(Path(sys.argv[1]), {bench.config.capacity_nbytes}, 8192, b'f' * 32)\n"
        "asyncio.run(SlabBackend.open(config, clock=RealClock()))\n"
    )

    async def scenario(backend):
        command = [sys.executable, "-c", code, str(bench.config.directory)]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, check=False
        )
        assert done.returncode
        assert "BackendLocked" in done.stderr

    bench.run(scenario)


def test_readers_may_open_beside_a_writer(bench):
    async def scenario(backend):
        batch, _ = await bench.put(backend, [1, 2])
        readers = [await open_slab(replace(bench.config, **READER)) for _ in range(2)]
        for reader in readers:
            assert (await bench.get(reader, batch))[1] == [Reason.NONE] * 2
            with pytest.raises(BackendError, match="for reading only"):
                reader.reserve(1, after=-1)
            with pytest.raises(BackendError, match="for reading only"):
                reader.release(batch["frame"])
            await reader.close()

    bench.run(scenario)


def test_what_is_overwritten_under_a_reader_is_a_miss(bench):
    async def scenario(backend):
        old, _ = await bench.put(backend, [1, 2])
        reader = await open_slab(replace(bench.config, **READER))
        backend.release(old["frame"])
        await bench.put(backend, [3])
        assert (await bench.get(reader, old))[1] == [Reason.CORRUPT, Reason.NONE]
        await reader.close()

    bench.run(scenario)


def test_a_reader_of_another_form_finds_nothing_and_harms_nothing(bench):
    batch = bench.stored([1])
    assert bench.reasons(batch, form=b"g" * 32, **READER) == [Reason.OLD_FORMAT]
    assert bench.reasons(batch) == [Reason.NONE]


def test_a_reader_of_nothing_is_an_error(bench):
    with pytest.raises(BackendError, match="cannot be opened"):
        bench.run(lambda _: None, **READER)
    assert not bench.config.directory.exists()


def test_only_the_owner_may_read_the_files(bench):
    bench.stored([1])
    assert bench.config.directory.stat().st_mode & 0o777 == 0o700
    for path in bench.config.directory.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["payload.slab", "headers.slab", "writer.lock"])
def test_a_link_in_a_files_place_is_refused(bench, tmp_path, name):
    target = tmp_path / "precious"
    target.write_bytes(b"keep me")
    bench.config.directory.mkdir()
    (bench.config.directory / name).symlink_to(target)
    with pytest.raises(BackendError, match="cannot be opened"):
        bench.stored([1])
    assert target.read_bytes() == b"keep me"


def test_a_refused_open_leaves_no_descriptor_and_no_lock(bench):
    bench.config.directory.mkdir()
    os.mkfifo(bench.config.directory / "headers.slab")
    before = descriptors()
    with pytest.raises(BackendError, match="not a regular file"):
        bench.stored([1])
    assert descriptors() == before
    (bench.config.directory / "headers.slab").unlink()
    bench.stored([1])


def refuse_descriptors(patched):
    def refuse(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    patched.setattr(os, "eventfd", refuse)


def refuse_threads(patched):
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == "bodocache-io-python-3":
            raise RuntimeError("can't start new thread")
        start(thread)

    patched.setattr(threading.Thread, "start", refuse)


def refuse_scratch(patched):
    def refuse(_):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    patched.setattr(slab, "scratch", refuse)


def refuse_memory(patched):
    def refuse(*_):
        raise MemoryError("no memory")

    patched.setattr(engine, "Reservations", refuse)


REFUSALS = [refuse_descriptors, refuse_threads, refuse_scratch, refuse_memory]


@pytest.mark.parametrize("refuse", REFUSALS)
def test_an_opening_whose_threads_cannot_begin_leaves_no_descriptor_thread_or_lock(bench, refuse):
    async def open_in_vain():
        gc.collect()
        before = descriptors(), threading.active_count()
        with pytest.MonkeyPatch.context() as patched:
            refuse(patched)
            with pytest.raises(BackendError, match=r"Too many|can't start|memory"):
                await open_slab(bench.config)
        gc.collect()
        assert (descriptors(), threading.active_count()) == before

    async def scenario():
        await asyncio.to_thread(len, "a thread")
        await open_in_vain()

    asyncio.run(scenario())
    bench.run(lambda _: asyncio.sleep(0))


def test_a_disk_without_room_for_the_writers_number_is_not_left_locked(bench, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = descriptors()
    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(BackendError, match="No space left"):
        bench.stored([1])
    monkeypatch.undo()
    assert descriptors() == before
    bench.stored([1])


def test_a_cancelled_open_leaves_no_lock(bench):
    async def scenario():
        opening = asyncio.ensure_future(open_slab(bench.config))
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening

    asyncio.run(scenario())  # joins the thread that opens
    bench.stored([1])


def test_closing_gives_back_every_descriptor_and_thread(bench):
    bench.stored([1])
    before = descriptors()
    bench.stored([2])
    assert descriptors() == before


def test_both_files_together_stay_below_the_cap(open_config):
    for frames, page_nbytes in [(1, 16), (7, 4096), (9, 5008)]:
        config = open_config(frames, page_nbytes=page_nbytes)
        config = replace(config, capacity_nbytes=config.capacity_nbytes + 4000)

        async def scenario(config=config):
            backend = await open_slab(config)
            usage = backend.usage
            await backend.close()
            return usage

        usage = asyncio.run(scenario())
        assert usage.total_frames == frames
        files = [config.directory / name for name in ("payload.slab", "headers.slab")]
        assert sum(path.stat().st_size for path in files) == usage.nbytes_on_disk
        assert usage.nbytes_on_disk <= config.capacity_nbytes


def test_where_nothing_can_be_preallocated_files_are_sparse(bench, monkeypatch, caplog):
    def refuse(fd, offset, nbytes):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    batch = bench.stored([1])
    assert "not preallocated" in caplog.text
    assert bench.reasons(batch) == [Reason.NONE]


def test_a_disk_without_room_is_an_error_that_says_so(bench, monkeypatch):
    def refuse(fd, offset, nbytes):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(BackendError, match="No space left"):
        bench.stored([1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"page_nbytes": 0}, "page_nbytes=0"),
        ({"page_nbytes": 100}, "multiple of 16"),
        ({"form": b"short"}, "form: 5 bytes"),
        ({"queue_depth": 0}, "queue_depth=0"),
        ({"chunk_nbytes": 1}, "chunk_nbytes=1"),
        ({"capacity_nbytes": 8192}, "no room for one frame"),
    ],
)
def test_a_wrong_field_is_named_and_nothing_is_created(tmp_path, changes, message):
    fields = {
        "directory": tmp_path / "slab",
        "capacity_nbytes": 1 << 20,
        "page_nbytes": 4096,
        "form": bytes(32),
    }
    with pytest.raises(ConfigError, match=message):
        SlabConfig(**fields | changes)
    assert not (tmp_path / "slab").exists()
