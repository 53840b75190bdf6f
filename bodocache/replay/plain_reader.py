# SPDX-License-Identifier: Apache-2.0
"""The yardstick of disk loads: plain O_DIRECT preads, nothing else, in the same run.

It reads the very extents that the cache read: each load's again, all at once as the load had them
in flight, right after it, with no write begun beside it (a disk that has been written to reads
slower for seconds, so that a later time is another disk); and, when the replay has ended, all of
them at a steady depth, and whole 2 MiB blocks of the same file. It reads into as much memory as it
is given, each read into the next part of it: into one buffer again and again, which stays in the
processor's cache, the same reads go a quarter faster where a hypervisor copies.
"""

import mmap
import os
import select
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.io import table
from bodocache.io.backend import Extent
from bodocache.io.jobs import JOB, rows_of
from bodocache.io.table import Table

BLOCK_NBYTES = 2 << 20
READ_AT_MOST_NBYTES = 2 << 30  # of the extents: enough for a rate, seconds on any disk


class Read(NamedTuple):
    """One contiguous read."""

    path: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Rate:
    """What a plain reader reached."""

    nbytes: int
    seconds: float
    queue_depth: float  # mean number of reads in flight

    @property
    def bytes_per_s(self) -> float:
        """Bytes over wall time."""
        return self.nbytes / self.seconds if self.seconds > 0 else 0.0


class PlainReader:
    """Threads that do nothing but ``preadv``, in compiled code, and what they read into."""

    def __init__(
        self, threads: int, *, memory_nbytes: int = 0, largest: int = BLOCK_NBYTES
    ) -> None:
        """``memory_nbytes``: of what is read into, ``largest`` bytes a thread at least."""
        jit.warm()  # compiled now, not while it is measured
        self._largest = largest
        self._parts = max(threads, memory_nbytes // largest)
        self._memory = _memory(self._parts * largest)
        self._next_part = 0
        self._table = Table(1)
        self._count = threads
        self._threads = [
            threading.Thread(target=table.work, args=(self._table,), daemon=True)
            for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()
        self._files: dict[str, int] = {}
        self._nbytes, self._seconds, self._in_flight_s = 0, 0.0, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._table.stop(self._count)
        for thread in self._threads:
            thread.join()
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    @property
    def rate(self) -> Rate:
        """Of all that was read so far, from each call to its last byte."""
        depth = self._in_flight_s / self._seconds if self._seconds else 0.0
        return Rate(self._nbytes, self._seconds, depth)

    def read(self, reads: Sequence[Read]) -> None:
        """Read all of ``reads``, as many at once as there are threads. Blocks.

        Raises:
            OSError: a file cannot be opened, or not be read to the end.
            ValueError: a read is larger than ``largest``.
        """
        if any(read.nbytes > self._largest for read in reads):
            raise ValueError(f"plain reader: a read of more than {self._largest} bytes")
        for path in {read.path for read in reads} - self._files.keys():
            self._files[path] = _open(path)
        jobs, starts = np.zeros(len(reads), JOB), np.empty(len(reads), np.int64)
        for i, read in enumerate(reads):
            starts[i] = self._memory.ctypes.data + self._next_part * self._largest
            self._next_part = (self._next_part + 1) % self._parts
            jobs[i]["fd"] = jobs[i]["direct_fd"] = self._files[read.path]
            jobs[i]["offset"], jobs[i]["page_nbytes"] = read.offset, read.nbytes
        jobs["count"], jobs["begin_by_s"] = 1, np.inf
        jobs["pages"] = rows_of(starts, np.arange(len(reads)))
        self._note(reads, jobs, self._do(rows_of(jobs, np.arange(len(reads))).tolist()))

    def _do(self, addresses: list[int]) -> float:
        """Do the jobs; returns when they were begun, once all have ended."""
        ids = self._table.ids(len(addresses))
        entries = [
            (table.WAITING, id_, 0, address, table.NATIVE, 0, np.inf, 0.0)
            for id_, address in zip(ids, addresses, strict=True)
        ]
        begun_s, ended = time.monotonic(), 0
        self._table.push(np.array(entries, table.ENTRY))
        while ended < len(addresses):
            select.select([self._table.event_fd], [], [])
            ended += len(self._table.collect())
        return begun_s

    def _note(self, reads: Sequence[Read], jobs: NDArray[np.void], begun_s: float) -> None:
        for read, job in zip(reads, jobs, strict=True):
            if job["error"]:
                raise OSError(int(job["error"]), os.strerror(int(job["error"])), read.path)
            if job["moved"] != read.nbytes:
                raise OSError(f"{read.path}: ends before {read.offset + read.nbytes}")
        if len(reads):
            self._nbytes += sum(read.nbytes for read in reads)
            self._seconds += float(jobs["finished_s"].max()) - begun_s
            self._in_flight_s += float((jobs["finished_s"] - jobs["started_s"]).sum())


def queue_depth_of(extents: Sequence[Extent], busy_s: float) -> float:
    """Mean number of extents in flight while a load was."""
    in_flight_s = sum(extent.finished_s - extent.started_s for extent in extents)
    return in_flight_s / busy_s if busy_s > 0 else 0.0


def read_same_extents(extents: Sequence[Extent], *, threads: int, memory_nbytes: int = 0) -> Rate:
    """Read ``extents`` in order, ``threads`` at once without a pause."""
    total, chosen = 0, []
    for extent in sorted(extents, key=lambda extent: extent.batch):
        if total >= READ_AT_MOST_NBYTES:
            break
        chosen.append(Read(extent.path, extent.offset, extent.nbytes))
        total += extent.nbytes
    largest = max((read.nbytes for read in chosen), default=BLOCK_NBYTES)
    with PlainReader(threads, memory_nbytes=memory_nbytes, largest=largest) as reader:
        reader.read(chosen)
        return reader.rate


def read_blocks(path: Path, *, threads: int, count: int = 256, seed: int = 7) -> Rate:
    """Read up to ``count`` 2 MiB blocks of ``path`` in random order, ``threads`` at once."""
    blocks = path.stat().st_size // BLOCK_NBYTES
    order = np.random.default_rng(seed).permutation(blocks)[:count]
    with PlainReader(threads) as reader:
        reader.read([Read(str(path), int(i) * BLOCK_NBYTES, BLOCK_NBYTES) for i in order])
        return reader.rate


def _memory(nbytes: int) -> NDArray[np.uint8]:
    """Memory like that of a host pool in use: huge pages where there are any, all of it there."""
    mapping = mmap.mmap(-1, nbytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    memory = np.frombuffer(mapping, np.uint8)
    memory[:: mmap.PAGESIZE] = 1
    return memory


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:  # a file system without O_DIRECT, where the cache read through buffers too
        return os.open(path, os.O_RDONLY)
