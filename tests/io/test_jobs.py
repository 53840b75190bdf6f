# SPDX-License-Identifier: Apache-2.0
"""Jobs, done in this thread: short calls, errors, ragged ends, digests."""

import errno
import math
import mmap
import os

import numpy as np
import pytest

from bodocache.digest import digest_rows
from bodocache.io import jobs, libc
from bodocache.io.backend import Status
from bodocache.io.posix import DataFile
from bodocache.pages import Reason

NBYTES = 3 * 4096
CONTENT = bytes(range(256)) * (NBYTES // 256)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "data").write_bytes(CONTENT)
    folder = os.open(tmp_path, os.O_RDONLY)
    data = DataFile(str(tmp_path / "data"), folder, os.O_RDWR)
    os.close(folder)
    yield data
    data.close()


def aligned(nbytes=NBYTES):
    return np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)


def rows_at(memory, page_nbytes, rows):
    return memory.ctypes.data + page_nbytes * np.array(rows, np.int64)


def perform(file, pages, page_nbytes, offset=0, *, padding=b"", padding_place=0, **fields):
    """Do one job on ``file``; return its record."""
    job, behind = np.zeros(1, jobs.JOB), np.frombuffer(padding + b"\0", np.uint8).copy()
    job["fd"], job["direct_fd"] = file.fd, file.direct_fd
    job["pages"], job["count"] = pages.ctypes.data, len(pages)
    job["page_nbytes"], job["offset"] = page_nbytes, offset
    job["padding"], job["padding_nbytes"] = padding_place or behind.ctypes.data, len(padding)
    job["begin_by_s"] = math.inf
    for name, value in fields.items():
        job[name] = value
    jobs.perform(job.ctypes.data, libc.calls.address, np.empty(jobs.SCRATCH_WORDS, np.int64))
    return job[0]


def shortened(fake, name, limit):
    """Let a vectored call move ``limit`` bytes of its first buffer at most; note its buffers."""
    real, calls = getattr(os, name), []

    def call(fd, buffers, offset):
        calls.append([buffer.nbytes for buffer in buffers])
        return real(fd, [buffers[0][:limit]], offset)

    fake(name, call)
    return calls


@pytest.mark.parametrize("limit", [1000, 4096, NBYTES - 1])
def test_short_reads_are_completed(file, fake, limit):
    shortened(fake, "preadv", limit)
    memory = np.zeros(2 * NBYTES, np.uint8)
    job = perform(file, rows_at(memory, 4096, [4, 0, 2]), 4096)
    assert job["moved"] == NBYTES
    found = memory.reshape(-1, 4096)[[4, 0, 2]]
    assert found.tobytes() == CONTENT


@pytest.mark.parametrize("limit", [1000, 4096])
def test_short_writes_are_completed_with_the_padding_behind_each_page(file, fake, limit):
    shortened(fake, "pwritev", limit)
    memory = np.repeat(np.frombuffer(b"ab", np.uint8), 5000)
    pages = rows_at(memory, 5000, [0, 1])
    job = perform(file, pages, 5000, 100, padding=b"xyz", writes=1)
    assert (job["moved"], job["error"]) == (10006, 0)
    data = os.pread(file.fd, NBYTES, 0)
    assert data[100:10106] == b"a" * 5000 + b"xyz" + b"b" * 5000 + b"xyz"


def test_rows_adjacent_in_memory_are_one_buffer(file, fake):
    calls = shortened(fake, "preadv", NBYTES)
    memory = np.zeros(NBYTES, np.uint8)
    perform(file, rows_at(memory, 512, [3, 4, 5, 1, 0]), 512)
    assert calls[0] == [3 * 512, 512, 512]


def test_a_short_direct_read_goes_on_where_it_must_be_buffered(file, fake):
    file.try_direct(writable=True)
    memory = aligned()
    calls = shortened(fake, "preadv", 1000)
    assert perform(file, rows_at(memory, NBYTES, [0]), NBYTES)["moved"] == NBYTES
    assert memory.tobytes() == CONTENT
    assert len(calls) > 1


@pytest.mark.parametrize("direct", [False, True])
def test_a_read_beyond_the_end_moves_what_there_was(file, direct):
    if direct:
        file.try_direct(writable=True)
    os.truncate(file.fd, 5001)
    memory = aligned()
    assert perform(file, rows_at(memory, NBYTES, [0]), NBYTES)["moved"] == 5001
    assert perform(file, rows_at(memory, NBYTES, [0]), NBYTES, 8192)["moved"] == 0


def test_a_transfer_that_o_direct_refuses_is_buffered(file):
    file.try_direct(writable=True)
    assert file.is_direct
    odd = aligned(NBYTES)[16:4112]
    assert perform(file, rows_at(odd, 4096, [0]), 4096)["moved"] == 4096
    assert odd.tobytes() == CONTENT[:4096]


@pytest.mark.parametrize("direct", [False, True])
def test_an_error_other_than_alignment_is_kept(file, fake, direct):
    def fail(fd, buffers, offset):
        raise OSError(errno.EIO, "Input/output error")

    if direct:
        file.try_direct(writable=True)
    fake("preadv", fail)
    assert perform(file, rows_at(aligned(), NBYTES, [0]), NBYTES)["error"] == errno.EIO


def test_an_interrupted_call_is_repeated(file, fake):
    interrupts = [errno.EINTR, errno.EINTR]

    def interrupted(fd, buffers, offset):
        if interrupts:
            raise OSError(interrupts.pop(), "Interrupted system call")
        return os.preadv(fd, buffers, offset)

    fake("preadv", interrupted)
    memory = aligned()
    job = perform(file, rows_at(memory, NBYTES, [0]), NBYTES)
    assert (job["moved"], job["error"], interrupts) == (NBYTES, 0, [])


def test_a_job_past_its_time_is_not_begun(file):
    job = perform(file, rows_at(aligned(), NBYTES, [0]), NBYTES, begin_by_s=1e-9)
    assert (job["error"], job["moved"], job["started_s"]) == (jobs.LATE, 0, 0)


@pytest.mark.parametrize("first_moves", [4096, 0])
def test_a_job_follows_only_one_that_is_whole(file, fake, first_moves):
    moves = [first_moves, 0, 4096]
    fake("pwritev", lambda *_: moves.pop(0) if moves else 0)
    second, memory = np.zeros(1, jobs.JOB), aligned()
    pages = rows_at(memory, 4096, [0])
    second["pages"], second["count"], second["page_nbytes"] = pages.ctypes.data, 1, 4096
    second["writes"] = 1
    perform(file, pages, 4096, writes=1, next=second.ctypes.data)
    assert bool(second["started_s"][0]) == (first_moves == 4096)


@pytest.mark.parametrize("limit", [1000, 4096, NBYTES])
@pytest.mark.parametrize("padding", [0, 96])
def test_what_lies_in_holes_goes_to_scratch(file, fake, limit, padding):
    calls = shortened(fake, "preadv", limit)
    memory, page_nbytes = np.zeros(2 * NBYTES, np.uint8), 4096 - padding
    holes, scratch = np.array([4096, 0]), bytearray(4096 + padding)
    behind = np.frombuffer(scratch, np.uint8)
    job = perform(
        *(file, rows_at(memory, 4096, [4, 1]), page_nbytes),
        holes=holes.ctypes.data,
        padding=b"\0" * padding,
        padding_place=behind.ctypes.data,
    )
    assert (job["moved"], job["error"]) == (NBYTES, 0)
    found = memory.reshape(-1, 4096)
    assert found[4, :page_nbytes].tobytes() == CONTENT[:page_nbytes]
    assert found[1, :page_nbytes].tobytes() == CONTENT[8192:][:page_nbytes]
    assert not found[[0, 2, 3, 5]].any()
    assert calls[0] == [page_nbytes, 4096 + padding, page_nbytes, *[padding] * (padding > 0)]


def test_whole_pages_are_checked_and_those_that_are_right_are_told_of(file):
    os.truncate(file.fd, 11000)  # the third page is not whole
    memory = aligned()
    expected = digest_rows(np.frombuffer(CONTENT, np.uint8).reshape(3, -1).copy(), np.arange(3))
    expected[0] += np.uint64(1)
    found, told = np.zeros((3, 2), np.uint64), np.zeros(3, np.int64)
    statuses, reasons = np.full(3, Status.MISS, np.uint8), np.full(3, Reason.TRUNCATED, np.uint8)
    positions = np.array([7, 8, 9])
    arrays = {
        "expected": expected,
        "found": found,
        "landed": told,
        "positions": positions,
        "statuses": statuses,
        "reasons": reasons,
    }
    places = {name: array.ctypes.data for name, array in arrays.items()}
    job = perform(file, rows_at(memory, 4096, [0, 1, 2]), 4096, **places)
    assert job["failed"] == 1
    assert statuses.tolist() == [Status.MISS, Status.LANDED, Status.MISS]
    assert reasons.tolist() == [Reason.CORRUPT, Reason.NONE, Reason.TRUNCATED]
    assert told[0] == 8
