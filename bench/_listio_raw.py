# SPDX-License-Identifier: Apache-2.0
"""The disk itself: preadv and pwritev with O_DIRECT, of single pages or of large extents.

The compiled threads never touch Python: nothing but the system calls and a counter. They move
extents to and from contiguous memory, which a cache whose pages are scattered cannot ask for.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _listio_point import Numbers, Pages, Point, in_threads
from numba.np.numpy_support import carray

from bodocache import jit
from bodocache.io import libc

THREADS = 8
PER_PAGE_MAX = 4096
CANDIDATE_THREADS = (1, 2, 4, 8, 16)
CANDIDATE_NBYTES = (256 << 10, 1 << 20, 2 << 20, 4 << 20)

_int64_at = jit.pointer_to(jit.i8)
_MUTEX, _NEXT, _FAILED, _WORDS = 0, 8, 9, 10


@jit.compiled(jit.i8, jit.i8, jit.i8, jit.array("i8", 2))
def _move(at: Any, fd: Any, call: Any, extents: Any) -> None:
    """Move extents (offset, address and number of the buffers, bytes) until none is left."""
    words = carray(_int64_at(at), _WORDS)
    while True:
        libc.mutex_lock(at)
        i = words[_NEXT]
        words[_NEXT] += 1
        libc.mutex_unlock(at)
        if i >= len(extents):
            return
        moved = libc.call_vectored(call, fd, extents[i, 1], extents[i, 2], extents[i, 0])
        if moved != extents[i, 3]:
            words[_FAILED] += 1


def open_direct(path: Path) -> int:
    """A descriptor that bypasses the page cache."""
    return os.open(path, os.O_RDWR | os.O_DIRECT)


class Extents:
    """Large extents by compiled threads: the best that the disk gives, if they are well chosen."""

    def __init__(
        self,
        point: Point,
        fd: int,
        *,
        threads: int,
        extent_nbytes: int,
    ) -> None:
        """``fd`` is open for direct reads and writes."""
        self.name = f"raw, {threads} threads x {extent_nbytes >> 10} KiB"
        self.count = point.count
        self._fd = fd
        self._threads = threads
        self._point = point
        self._rows = np.argsort(np.argsort(point.frames))
        self._reads, self._writes = (
            _moves(*contiguous(point, extent_nbytes, writes=writes)) for writes in (False, True)
        )

    def clear(self) -> None:
        """Nothing: it overwrites."""

    def write(self) -> None:
        """Write the source as it lies."""
        _run(self._threads, self._fd, libc.calls.pwritev, self._writes)

    def read(self) -> None:
        """Read the extents in file order."""
        _run(self._threads, self._fd, libc.calls.preadv, self._reads)

    def landed(self) -> tuple[Pages, Numbers]:
        """In file order."""
        return self._point.target, self._rows

    def close(self) -> None:
        """Nothing: the file is the caller's."""


class PerPage:
    """One preadv or pwritev a page, in 8 threads that run Python or compiled code."""

    def __init__(self, point: Point, fd: int, *, compiled: bool) -> None:
        kind = "compiled" if compiled else "Python"
        self.name = f"per page, {THREADS} {kind} threads"
        self.count = min(point.count, PER_PAGE_MAX)
        self._compiled = compiled
        self._point = point
        self._fd = fd
        self._offsets = (point.frames[: self.count] * point.page_nbytes).tolist()
        self._moves = {
            writes: _scattered(point, point.source if writes else point.target, self.count)
            for writes in (False, True)
        }
        self._views = {
            writes: [memoryview(pages[slot]) for slot in point.slots[: self.count]]
            for writes, pages in ((False, point.target), (True, point.source))
        }

    def clear(self) -> None:
        """Nothing: it overwrites."""

    def write(self) -> None:
        """Every page to its frame."""
        self._move(writes=True)

    def read(self) -> None:
        """Every page to its slot."""
        self._move(writes=False)

    def landed(self) -> tuple[Pages, Numbers]:
        """In its slots."""
        return self._point.target, self._point.slots[: self.count]

    def close(self) -> None:
        """Nothing: the file is the caller's."""

    def _move(self, *, writes: bool) -> None:
        if self._compiled:
            call = libc.calls.pwritev if writes else libc.calls.preadv
            _run(THREADS, self._fd, call, self._moves[writes])
            return
        waiting = zip(self._views[writes], self._offsets, strict=True)
        call = os.pwritev if writes else os.preadv
        in_threads(THREADS, self._one_after_another, waiting, call, self._fd)

    def _one_after_another(self, waiting: Any, call: Callable[..., int], fd: int) -> None:
        nbytes = self._point.page_nbytes
        for view, offset in waiting:  # a zip over lists is taken from under Python's lock
            if call(fd, [view], offset) != nbytes:
                raise RuntimeError(f"{self.name}: a short transfer at {offset}")


def _run(threads: int, fd: int, call: int, moves: tuple[Numbers, Numbers]) -> None:
    words = np.zeros(_WORDS, np.int64)
    in_threads(threads, _move, words.ctypes.data, fd, call, moves[0])
    if words[_FAILED]:
        raise RuntimeError(f"{words[_FAILED]} of {len(moves[0])} transfers were not whole")


def contiguous(
    point: Point, extent_nbytes: int, *, writes: bool
) -> tuple[Numbers, Numbers, Numbers]:
    """Offsets, addresses and lengths of the extents between file and memory, in order.

    Reads take the runs of the point, cut at ``extent_nbytes``. Writes put all bytes one behind the
    other from the start of the file, as whoever may choose the place would.
    """
    scratch = point.source if writes else point.target
    if writes:
        offsets = np.arange(0, scratch.size, extent_nbytes, dtype=np.int64)
        firsts = offsets
    else:
        pages = max(1, min(extent_nbytes, point.run_nbytes) // point.page_nbytes)
        extent_nbytes = pages * point.page_nbytes
        offsets = np.sort(point.frames)[::pages] * point.page_nbytes
        firsts = np.arange(len(offsets)) * extent_nbytes
    lengths = np.minimum(extent_nbytes, scratch.size - firsts)
    return offsets, scratch.ctypes.data + firsts, lengths


def _scattered(point: Point, pages: Pages, count: int) -> tuple[Numbers, Numbers]:
    addresses = pages.ctypes.data + point.slots[:count] * point.page_nbytes
    lengths = np.full(count, point.page_nbytes)
    return _moves(point.frames[:count] * point.page_nbytes, addresses, lengths)


def _moves(offsets: Numbers, addresses: Numbers, lengths: Numbers) -> tuple[Numbers, Numbers]:
    iovs = np.ascontiguousarray(np.stack([addresses, lengths], axis=1))
    moves = np.empty((len(offsets), 4), np.int64)
    moves[:, 0], moves[:, 3], moves[:, 2] = offsets, lengths, 1
    moves[:, 1] = iovs.ctypes.data + 16 * np.arange(len(iovs))
    return moves, iovs


def candidates(point: Point, fd: int, *, writes: bool) -> list[Extents]:
    """Every choice of threads and extent that differs at this point."""
    if writes:
        sizes = [nbytes for nbytes in CANDIDATE_NBYTES if nbytes >= 1 << 20]
    else:
        least, most = point.page_nbytes, point.run_nbytes
        sizes = [nbytes for nbytes in CANDIDATE_NBYTES if least <= nbytes <= most] or [most]
    return [
        Extents(point, fd, threads=threads, extent_nbytes=nbytes)
        for threads in CANDIDATE_THREADS
        for nbytes in sizes
    ]
