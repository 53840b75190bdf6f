# SPDX-License-Identifier: Apache-2.0
"""Faults that the kernel makes: a full tmpfs, a disk with its end cut off, system calls that strace
lets fail in this very process.
"""

import ctypes
import itertools
import math
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from bodocache.errors import BackendError
from bodocache.io.backend import Durability, Status
from bodocache.io.config import Access
from bodocache.pages import Reason

NUMBERS = [1, 2, 3, 4, 5]
PUNCH_HOLE_KEEP_SIZE = 3
TMPFS_NBYTES = 1 << 20


@pytest.fixture
def campaigns(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    import _kills
    import _power_cuts

    return _kills, _power_cuts


@pytest.fixture
def tmpfs(tmp_path):
    point = tmp_path / "small"
    point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_NBYTES}", "tmpfs", point]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted: {done.stderr.strip()}")
    yield point
    subprocess.run(["umount", "--lazy", point], check=True)  # a failed test may hold a file


def fill(path, *, blocks_left=0):
    """Take all the room there is, but for some blocks of 4 KiB."""
    with path.open("wb") as file:
        while os.statvfs(path.parent).f_bavail > blocks_left:
            file.write(bytes(4096))
            file.flush()


def punch(path):
    """Give the blocks of a file back; its length stays."""
    with path.open("r+b") as file:
        libc = ctypes.CDLL(None, use_errno=True)
        nbytes = ctypes.c_longlong(path.stat().st_size)
        assert not libc.fallocate(
            file.fileno(), PUNCH_HOLE_KEEP_SIZE, ctypes.c_longlong(0), nbytes
        ), os.strerror(ctypes.get_errno())


def right(bench, numbers, transfer, buffers):
    """Whether every page that landed has its bytes."""
    landed = np.flatnonzero(transfer.statuses == Status.LANDED).tolist()
    return all((buffers[i] == bench.pages.payload(numbers[i])).all() for i in landed)


async def read(bench, backend, batch, numbers):
    """The transfer of a get, every byte that landed compared."""
    buffers = bench.pages.buffers(len(batch))
    buffers[:] = 0xA5
    transfer = backend.get(batch, buffers, deadline_s=math.inf)
    await transfer.drained()
    assert right(bench, numbers, transfer, buffers)
    return transfer


@pytest.mark.root
@pytest.mark.parametrize("blocks_left", [0, 1, 2, 10])
def test_a_slab_that_does_not_fit_its_disk_is_an_error_and_fits_when_there_is_room(
    bench, tmpfs, blocks_left
):
    small = type(bench)(tmpfs)
    full = tmpfs / "filler"
    fill(full, blocks_left=blocks_left)
    with pytest.raises(BackendError, match="No space left on device"):
        small.stored(NUMBERS)
    full.unlink()
    batch = small.stored(NUMBERS)
    assert small.reasons(batch) == [Reason.NONE] * 5


@pytest.mark.root
@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("access", Access)
def test_a_disk_that_is_full_fails_the_pages_it_has_no_room_for(
    bench, tmpfs, durability, access, caplog
):
    small, numbers = type(bench)(tmpfs), list(range(12))

    async def scenario(backend):
        first, _ = await small.put(backend, NUMBERS)
        punch(small.payload)  # what was preallocated is lost, as on a sparse file
        fill(tmpfs / "filler")
        with (tmpfs / "filler").open("r+b") as file:  # room for three pages and a half
            file.truncate(file.seek(0, 2) - 7 * 4096)
        for _ in range(3):
            batch, transfer = await small.put(backend, numbers[: 16 - 5], durability)
            landed = transfer.statuses == Status.LANDED
            assert not landed.all()
            assert (transfer.reasons[~landed] == Reason.IO_ERROR).all()
            found = await read(small, backend, batch, numbers)
            assert ((found.statuses == Status.LANDED) == landed).all()
            backend.release(batch["frame"])
            punch(small.payload)
        assert not (await read(small, backend, first, NUMBERS)).statuses.tolist().count(1)
        (tmpfs / "filler").unlink()
        batch, transfer = await small.put(backend, numbers[:11], durability)
        assert (transfer.statuses == Status.LANDED).all()
        assert (await read(small, backend, batch, numbers)).statuses.all()

    small.run(scenario, chunk_nbytes=2 * 8192, access=access)
    assert "No space left on device" in caplog.text


@pytest.mark.root
@pytest.mark.timeout(60)
def test_a_disk_whose_end_is_lost_fails_the_pages_that_lay_there(
    bench, campaigns, tmp_path, caplog
):
    _, power_cuts = campaigns
    numbers = list(range(64))
    nbytes = 65536

    async def scenario(backend, image):
        pages = type(bench.pages)(nbytes)
        buffers = pages.buffers(len(numbers))
        pages.fill(buffers, numbers)
        batch = pages.batch(numbers, backend.reserve(len(numbers), after=-1))
        put = backend.put(batch, buffers, deadline_s=math.inf, durability=Durability.SYNC)
        await put.drained()
        assert (put.statuses == Status.LANDED).all()
        for end in range(image.stat().st_size, 0, -(1 << 20)):
            os.truncate(image, end)
            buffers[:] = 0xA5
            transfer = backend.get(batch, buffers, deadline_s=math.inf)
            await transfer.drained()
            landed = np.flatnonzero(transfer.statuses == Status.LANDED).tolist()
            assert all((buffers[i] == pages.payload(i)).all() for i in landed)
            lost = transfer.statuses == Status.FAILED
            assert (transfer.reasons[lost] == Reason.IO_ERROR).all()
            assert (lost | (transfer.statuses == Status.LANDED)).all()
            if lost.any():
                assert len(landed), "all of it lay in one MiB?"
                return
        pytest.fail("a disk without an end reads well")

    try:
        with power_cuts.ext4(tmp_path) as disk:
            there = type(bench)(disk.point)
            capacity_nbytes = 4096 + 64 * (nbytes + 512)
            there.run(
                lambda backend: scenario(backend, disk.image),
                page_nbytes=nbytes,
                capacity_nbytes=capacity_nbytes,
            )
    except power_cuts.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def injected(campaigns):
    """``with injected("pwritev:error=EIO:when=2")``: as strace's -e inject, in this process."""
    kills, _ = campaigns

    @contextmanager
    def inject(what):
        try:
            with kills.traced(os.getpid(), what):
                yield
        except kills.Unavailable as reason:
            pytest.skip(str(reason))

    return inject


@pytest.mark.root
@pytest.mark.timeout(60)
@pytest.mark.parametrize("error", ["EIO", "EINTR"])
def test_a_read_that_the_kernel_fails_at_the_nth_call_costs_pages_never_bytes(
    bench, injected, error, caplog
):
    async def scenario(backend):
        batch, _ = await bench.put(backend, NUMBERS)
        for n in range(1, 5):  # three extents, of two pages, two and one
            with injected(f"preadv:error={error}:when={n}"):
                transfer = await read(bench, backend, batch, NUMBERS)
            failed = transfer.statuses == Status.FAILED
            assert (failed | (transfer.statuses == Status.LANDED)).all()
            # An extent of several pages is read again, page by page.
            assert failed.sum() == (error == "EIO" and n == 3)
        if error == "EIO":
            with injected(f"preadv:error={error}"):
                transfer = await read(bench, backend, batch, NUMBERS)
            assert (transfer.statuses == Status.FAILED).all()
        transfer = await read(bench, backend, batch, NUMBERS)
        assert (transfer.statuses == Status.LANDED).all()

    bench.run(scenario, queue_depth=1, chunk_nbytes=2 * 8192)


@pytest.mark.root
@pytest.mark.timeout(60)
@pytest.mark.parametrize("call", ["pwritev", "fdatasync"])
@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EINTR"])
def test_a_write_or_sync_that_the_kernel_fails_at_the_nth_call_is_not_found(
    bench, injected, call, error, caplog
):
    async def scenario(backend):
        for n in itertools.count(1):
            with injected(f"{call}:error={error}:when={n}"):
                batch, transfer = await bench.put(backend, NUMBERS, Durability.SYNC)
            landed = transfer.statuses == Status.LANDED
            found = await read(bench, backend, batch, NUMBERS)
            assert ((found.statuses == Status.LANDED) == landed).all()
            backend.release(batch["frame"])
            if landed.all():
                break
        assert (n == 1) == (error == "EINTR")  # which is tried again

    bench.run(scenario, queue_depth=1)


@pytest.mark.root
@pytest.mark.timeout(60)
def test_a_kernel_that_says_it_moved_what_it_did_not_serves_no_byte(bench, injected):
    whole = len(NUMBERS) * bench.pages.page_nbytes

    async def scenario(backend):
        batch, _ = await bench.put(backend, NUMBERS)
        with injected(f"preadv:retval={whole}:when=1"):
            transfer = await read(bench, backend, batch, NUMBERS)
        assert transfer.reasons.tolist() == [Reason.CORRUPT] * 5
        backend.release(batch["frame"])
        with injected(f"pwritev:retval={whole}:when=1"):
            batch, transfer = await bench.put(backend, [11, 12, 13, 14, 15], Durability.SYNC)
        assert (transfer.statuses == Status.LANDED).all()  # nobody could know
        transfer = await read(bench, backend, batch, [11, 12, 13, 14, 15])
        assert (transfer.statuses == Status.MISS).all()

    bench.run(scenario, queue_depth=1)
