# SPDX-License-Identifier: Apache-2.0
"""Our slab as an engine, the same jobs with and without digests, and what Python costs a page."""

import asyncio
import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from _listio_point import Numbers, Pages, Point, in_threads
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from bodocache import jit
from bodocache.clock import RealClock
from bodocache.digest import seeded
from bodocache.io import extents, jobs, libc
from bodocache.io.backend import TRANSFER, Status
from bodocache.io.config import CHUNK_NBYTES, QUEUE_DEPTH, SlabConfig
from bodocache.io.slab import SlabBackend

BATCH = 1024  # pages of one get or put

_int64_at = jit.pointer_to(jit.i8)
_NEXT, _WORDS = 8, 10  # a mutex lies before
_JOB_NBYTES = jobs.JOB.itemsize


class Slab:
    """The slab backend as it is: every page that was read had its digest."""

    name = "bodocache slab"

    def __init__(self, point: Point, folder: Path) -> None:
        self.count = point.count
        self.path = folder / "payload.slab"
        self._point = point
        self._runner = asyncio.Runner()
        capacity_nbytes = 4096 + point.frame_count * (point.page_nbytes + 512)
        config = SlabConfig(folder, capacity_nbytes, point.page_nbytes, b"b" * 32)
        self.backend = self._runner.run(SlabBackend.open(config, clock=RealClock()))
        if not self.backend.is_direct:
            raise RuntimeError(f"{folder}: no O_DIRECT here; choose another --dir")
        self.backend.reserve(point.frame_count, after=-1)
        self._parts = _batches(point)

    def clear(self) -> None:
        """Nothing: it overwrites."""

    def write(self) -> None:
        """All batches at once."""
        self._runner.run(self._transfer(writes=True))

    def read(self) -> None:
        """All batches at once."""
        self._runner.run(self._transfer(writes=False))

    def landed(self) -> tuple[Pages, Numbers]:
        """In its slots."""
        return self._point.target, self._point.slots

    def close(self) -> None:
        """Close the backend and its loop."""
        self._runner.run(self.backend.close())
        self._runner.close()

    async def _transfer(self, *, writes: bool) -> None:
        move = self.backend.put if writes else self.backend.get
        pages = self._point.source if writes else self._point.target
        transfers = [move(part, pages, deadline_s=math.inf) for part in self._parts]
        for transfer in transfers:
            await transfer.drained()
            if not (transfer.statuses == Status.LANDED).all():
                raise RuntimeError(f"{self.name}: {np.bincount(transfer.statuses)} by status")

    def loop_us_per_page(self, *, writes: bool, rounds: int) -> list[float]:
        """CPU microseconds of the loop's thread a page, of one batch from its call to its end."""
        return self._runner.run(self._loop_us_per_page(rounds, writes=writes))

    async def _loop_us_per_page(self, rounds: int, *, writes: bool) -> list[float]:
        move = self.backend.put if writes else self.backend.get
        pages = self._point.source if writes else self._point.target
        taken = []
        for i in range(rounds + 1):
            part = self._parts[i % len(self._parts)]
            since_s = time.thread_time()
            await move(part, pages, deadline_s=math.inf).drained()
            taken.append((time.thread_time() - since_s) / len(part) * 1e6)
        return taken[1:]


def _batches(point: Point) -> list[NDArray[np.void]]:
    batch = np.zeros(point.count, TRANSFER)
    chance = np.random.default_rng(1)
    batch["key"] = chance.integers(256, size=(point.count, 32))
    batch["digest"] = seeded(point.digests, np.ascontiguousarray(batch["key"]))
    batch["depth"] = np.arange(point.count)
    batch["frame"], batch["slot"] = point.frames, point.slots
    batch["nbytes"] = point.page_nbytes
    return [batch[first : first + BATCH].copy() for first in range(0, point.count, BATCH)]


@jit.compiled(jit.i8, jit.i8, jit.array(jobs.JOB))
def _perform(at: Any, calls: Any, todo: Any) -> None:
    words, scratch = carray(_int64_at(at), _WORDS), np.empty(jobs.SCRATCH_WORDS, np.int64)
    while True:
        libc.mutex_lock(at)
        i = words[_NEXT]
        words[_NEXT] += 1
        libc.mutex_unlock(at)
        if i >= len(todo):
            return
        jobs.perform(todo.ctypes.data + i * _JOB_NBYTES, calls, scratch)


class Jobs:
    """What the slab's threads do for these pages, without its loop: with digests, or without.

    The same compiled code on the same records; a job without expected digests checks none.
    """

    def __init__(self, point: Point, fd: int, *, checks: bool) -> None:
        self.name = f"slab's threads alone, {'with' if checks else 'without'} digests"
        self.count = point.count
        self._point = point
        self._checks = checks
        addresses = point.target.ctypes.data + point.slots * point.page_nbytes
        limits = extents.Limits(point.page_nbytes, point.page_nbytes, CHUNK_NBYTES)
        order, bounds = extents.merge(point.frames, addresses, limits)
        self._columns = {
            "pages": addresses[order],
            "positions": order,
            "landed": np.empty(point.count, np.int64),
            "expected": np.ascontiguousarray(point.digests[order]),
            "found": np.empty((point.count, 2), np.uint64),
            "statuses": np.zeros(point.count, np.uint8),
            "reasons": np.zeros(point.count, np.uint8),
        }
        todo = np.zeros(len(bounds) - 1, jobs.JOB)
        for name, column in self._columns.items():
            todo[name] = column.ctypes.data + column.strides[0] * bounds[:-1]
        todo["direct_fd"] = todo["fd"] = fd
        todo["offset"] = point.frames[order][bounds[:-1]] * point.page_nbytes
        todo["count"] = np.diff(bounds)
        todo["page_nbytes"], todo["begin_by_s"] = point.page_nbytes, math.inf
        if not checks:
            todo["expected"] = 0
        self._todo = todo

    def clear(self) -> None:
        """Nothing: it only reads."""

    def write(self) -> None:
        """Never."""
        raise NotImplementedError

    def read(self) -> None:
        """Every job once, by as many threads as the slab has."""
        self._columns["statuses"][:] = 0
        words = np.zeros(_WORDS, np.int64)
        in_threads(QUEUE_DEPTH, _perform, words.ctypes.data, libc.calls.address, self._todo)
        if (self._todo["moved"] != self._todo["count"] * self._point.page_nbytes).any():
            raise RuntimeError(f"{self.name}: a short read")
        if self._checks and not (self._columns["statuses"] == Status.LANDED).all():
            raise RuntimeError(f"{self.name}: a page with another digest")

    def landed(self) -> tuple[Pages, Numbers]:
        """In its slots."""
        return self._point.target, self._point.slots

    def close(self) -> None:
        """Nothing: the file is the caller's."""


def overhead_row(slab: Slab, point: Point, *, writes: bool, rounds: int) -> dict[str, Any]:
    """Microseconds of Python on the loop a page."""
    taken = slab.loop_us_per_page(writes=writes, rounds=rounds)
    return {
        "what": "overhead above the syscalls",
        "direction": "write" if writes else "read",
        "page_nbytes": point.page_nbytes,
        "layout": point.layout,
        "batch_pages": min(BATCH, point.count),
        "loop_cpu_us_per_page": round(statistics.median(taken), 3),
        "interval": [round(min(taken), 3), round(max(taken), 3)],
        "repetitions": len(taken),
    }
