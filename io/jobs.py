# SPDX-License-Identifier: Apache-2.0
"""One read or write of adjacent frames, done by compiled code: no step of it waits for Python.

A thread needs the interpreter's lock to wake up, after a system call and after every digest; beside
a busy loop that made 0.6 ms of reading 3.6 ms (2 MiB of 64 KiB pages in 2 extents). A job is a
record whose owner keeps alive all that it points to until it has ended.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from bodocache import jit
from bodocache.digest import WORD_NBYTES, raw_sums
from bodocache.io import libc
from bodocache.io.backend import Status
from bodocache.io.config import BLOCK_NBYTES
from bodocache.io.extents import IOV_MAX
from bodocache.pages import Reason

LATE = -1  # an error that no system call returns: the job was not begun by its deadline

# Addresses are of C-ordered arrays; 0 means that there is none.
JOB = np.dtype(
    [
        ("writes", "<i8"),
        ("direct_fd", "<i8"),  # -1: buffered only
        ("fd", "<i8"),
        ("offset", "<i8"),
        ("pages", "<i8"),  # int64[count], where each page lies
        ("count", "<i8"),
        ("page_nbytes", "<i8"),
        ("padding", "<i8"),  # what lies behind each page in the file; room for the longest hole
        ("padding_nbytes", "<i8"),
        ("holes", "<i8"),  # int64[count], bytes behind that to be read to the same place; 0: none
        ("begin_by_s", "<f8"),  # on the clock of time.monotonic
        ("next", "<i8"),  # the job that follows once this one has moved all its bytes
        ("expected", "<i8"),  # uint64[count, 2], without the seed; 0: nothing is checked
        ("found", "<i8"),  # uint64[count, 2], out
        ("statuses", "<i8"),  # uint8[count], out: of whole pages
        ("reasons", "<i8"),
        ("positions", "<i8"),  # int64[count], in the batch
        ("landed", "<i8"),  # int64[count], out: the positions of the pages that landed
        ("function", "<i8"),  # void (argument, landed, their number), told of them; or 0
        ("argument", "<i8"),
        ("moved", "<i8"),  # out: bytes
        ("error", "<i8"),  # out: an errno, LATE or 0
        ("failed", "<i8"),  # out: whole pages whose digest was another
        ("started_s", "<f8"),  # out
        ("finished_s", "<f8"),  # out
    ]
)
SCRATCH_WORDS = 2 + 2 * IOV_MAX  # of a thread: one timespec, and the buffers of one call

_LANDED, _MISS = int(Status.LANDED), int(Status.MISS)
_NONE, _CORRUPT = int(Reason.NONE), int(Reason.CORRUPT)
_job_at = jit.pointer_to(jit.record(JOB))
_int64_at = jit.pointer_to(jit.i8)
_uint64_at = jit.pointer_to(jit.u8)
_uint32_at = jit.pointer_to(jit.u4)
_uint8_at = jit.pointer_to(jit.u1)


def rows_of(array: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Addresses of ``rows`` of a C-ordered array."""
    return array.ctypes.data + array.strides[0] * rows


@jit.compiled(jit.i8, jit.i8, jit.array("i8"))
def perform(address: Any, calls: Any, scratch: Any) -> None:
    """Do the job at ``address`` and those that follow it; ``calls``: of libc.SystemCalls."""
    begin_by_s = carray(_job_at(address), 1)[0].begin_by_s
    if jit.now_s(scratch) >= begin_by_s:
        carray(_job_at(address), 1)[0].error = LATE
        return
    while address != 0:
        job = carray(_job_at(address), 1)[0]
        _transfer(job, carray(_int64_at(calls), 2), scratch)
        if job.error != 0:
            return
        if job.expected != 0:
            _check(job)
        address = job.next if job.moved == _file_nbytes(job) else 0


def are_whole(addresses: Sequence[int]) -> list[bool]:
    """Whether each job that has ended moved all its bytes, every page right, and those behind it.

    An address of 0 is none.
    """
    whole = np.empty(len(addresses), np.bool_)
    _are_whole(np.array(addresses, np.int64), whole)
    answers: list[bool] = whole.tolist()
    return answers


@jit.compiled(jit.array("i8"), jit.array("?"))
def _are_whole(addresses: Any, whole: Any) -> None:
    for i in range(len(addresses)):
        address, right = addresses[i], addresses[i] != 0
        while right and address != 0:
            job = carray(_job_at(address), 1)[0]
            right = job.error == 0 and job.failed == 0 and job.moved == _file_nbytes(job)
            address = job.next
        whole[i] = right


@jit.compiled(jit.record(JOB))
def _file_nbytes(job: Any) -> Any:
    return _pages_nbytes(job, job.count)


@jit.compiled(jit.record(JOB), jit.i8)
def _pages_nbytes(job: Any, count: Any) -> Any:
    """Bytes in the file of the first ``count`` pages with what lies behind each."""
    nbytes = count * (job.page_nbytes + job.padding_nbytes)
    if job.holes != 0:
        nbytes += carray(_int64_at(job.holes), job.count)[:count].sum()
    return nbytes


@jit.compiled(jit.record(JOB), jit.array("i8"), jit.array("i8"))
def _transfer(job: Any, calls: Any, scratch: Any) -> None:
    """Repeat the call until all is moved or nothing moves."""
    iov = scratch[2:]
    call = calls[libc.WRITE if job.writes else libc.READ]
    direct, wanted, done = job.direct_fd >= 0, _file_nbytes(job), 0
    job.started_s = jit.now_s(scratch)
    while done < wanted:
        count = _fill(job, done, iov)
        fd = job.direct_fd if direct else job.fd
        moved = libc.call_vectored(call, fd, iov.ctypes.data, count, job.offset + done)
        if moved > 0:
            done += moved
            direct = direct and done % BLOCK_NBYTES == 0  # O_DIRECT refuses a ragged rest
        elif moved == 0:
            break
        else:
            error = libc.errno()
            if error == libc.EINVAL and direct:
                direct = False  # refused for this transfer (alignment, file system): buffered
            elif error != libc.EINTR:
                job.error = error
                break
    job.moved = done
    job.finished_s = jit.now_s(scratch)


@jit.compiled(jit.record(JOB), jit.i8, jit.array("i8"))
def _fill(job: Any, done: Any, iov: Any) -> Any:
    """Write the buffers behind the first ``done`` bytes to ``iov``; return how many they are."""
    pages = carray(_int64_at(job.pages), job.count)
    count, skip = 0, done
    for i in range(2 * job.count):
        start = job.padding if i % 2 else pages[i // 2]
        nbytes = job.padding_nbytes if i % 2 else job.page_nbytes
        if i % 2 and job.holes != 0:
            nbytes += carray(_int64_at(job.holes), job.count)[i // 2]
        if skip >= nbytes:
            skip -= nbytes
            continue
        start, nbytes, skip = start + skip, nbytes - skip, 0
        if count > 0 and iov[2 * count - 2] + iov[2 * count - 1] == start:
            iov[2 * count - 1] += nbytes  # adjacent in memory: one buffer
        else:
            iov[2 * count], iov[2 * count + 1] = start, nbytes
            count += 1
    return count


@jit.compiled(jit.record(JOB))
def _check(job: Any) -> None:
    """Compare every whole page with its digest, and tell of those that are right."""
    whole = 0
    while whole < job.count and _pages_nbytes(job, whole) + job.page_nbytes <= job.moved:
        whole += 1
    words = job.page_nbytes // WORD_NBYTES
    pages = carray(_int64_at(job.pages), job.count)
    positions = carray(_int64_at(job.positions), job.count)
    landed = carray(_int64_at(job.landed), job.count)
    expected = carray(_uint64_at(job.expected), 2 * job.count)
    found = carray(_uint64_at(job.found), 2 * job.count)
    statuses = carray(_uint8_at(job.statuses), job.count)
    reasons = carray(_uint8_at(job.reasons), job.count)
    good = 0
    for i in range(whole):
        a, b = raw_sums(carray(_uint32_at(pages[i]), words))
        found[2 * i], found[2 * i + 1] = a + np.uint64(words), b + np.uint64(words)
        right = found[2 * i] == expected[2 * i] and found[2 * i + 1] == expected[2 * i + 1]
        statuses[i] = _LANDED if right else _MISS
        reasons[i] = _NONE if right else _CORRUPT
        if right:
            landed[good] = positions[i]
            good += 1
    job.failed = whole - good
    if good > 0 and job.function != 0:
        libc.call_back(job.function, job.argument, job.landed, good)
