# SPDX-License-Identifier: Apache-2.0
"""Disk loads against plain preadv: the slab's get, digests included, beside eight plain threads.

Both read the same extents through O_DIRECT, as many batches at once, in turns; once with a loop
that does nothing else, and once beside 0.2 ms slices of Python that keep it 80 % busy. The plain
threads are compiled and never touch Python. ``verified`` counts from the call to the moment when
the last page of a batch is checked, in the thread that read it; ``wall`` goes through the loop.
"""

import asyncio
import math
import os
import statistics
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from _common import Claim, parser, write
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from bodocache import jit
from bodocache.clock import RealClock
from bodocache.io import libc
from bodocache.io.backend import NativeCall, Status
from bodocache.io.config import SlabConfig
from bodocache.io.slab import SlabBackend
from bodocache.testing import NumberedPages

PAGE_NBYTES = 65536
FRAMES = 8192  # 512 MiB
BATCH = 30  # pages: 2 MiB
RUNS = (1, 5, 15, 30)  # adjacent pages
THREADS = 8
ROUNDS, BATCHES = 6, 64
BUSY_S, FREE_S = 0.0002, 0.00005

_int64_at, _float64_at = jit.pointer_to(jit.i8), jit.pointer_to(jit.f8)
# Words of the plain reader: a mutex, a semaphore of extents that may be read, and its places.
_MUTEX, _MAY_READ, _NEXT, _FDS = 0, 8, 16, 17


@jit.c_function(jit.i8, jit.i8, jit.i8)
def _stamp(argument: Any, _: Any, __: Any) -> None:
    """Note the time; ``argument`` is the address of one float64."""
    carray(_float64_at(argument), 1)[0] = jit.now_s(np.empty(2, np.int64))


class Stamp:
    """An OnLanded that notes when pages were verified."""

    def __init__(self) -> None:
        self.place = np.zeros(1)
        self.native = NativeCall(_stamp.address, self.place.ctypes.data)

    def __call__(self, positions: NDArray[np.int64]) -> None:
        """Never: the slab makes the native call."""
        raise NotImplementedError


@jit.compiled(
    *(jit.i8, jit.i8, jit.i8, jit.i8),
    *(jit.array("u1"), jit.array("i8", 2), jit.array("i8"), jit.array("f8", 2)),
)
def _read_plainly(
    at: Any, fd: Any, preadv: Any, ahead: Any, target: Any, offsets: Any, left: Any, times: Any
) -> None:
    """One of the plain threads: extents in order, as far as the semaphore lets it."""
    words = carray(_int64_at(at), 18)
    iov, clock = np.empty(2, np.int64), np.empty(2, np.int64)
    iov[0], iov[1] = target.ctypes.data, len(target)
    per_batch = offsets.shape[1]
    while True:
        libc.sem_wait(at + 8 * _MAY_READ)
        libc.mutex_lock(at)
        i = words[_NEXT]
        words[_NEXT] += 1
        libc.mutex_unlock(at)
        batch = i // per_batch
        if batch >= len(left):
            return
        libc.call_vectored(preadv, fd, iov.ctypes.data, 1, offsets[batch, i % per_batch])
        libc.mutex_lock(at)
        left[batch] -= 1
        ended = left[batch] == 0
        libc.mutex_unlock(at)
        if ended:
            times[batch, 1] = jit.now_s(clock)
            if batch + ahead < len(left):
                times[batch + ahead, 0] = times[batch, 1]
            for _ in range(per_batch):
                libc.sem_post(at + 8 * _MAY_READ)
            if batch == len(left) - 1:
                for _ in range(THREADS):
                    libc.sem_post(at + 8 * _MAY_READ)


@jit.compiled(jit.i8, jit.i8)
def _permit(at: Any, count: Any) -> None:
    libc.sem_init(at + 8 * _MAY_READ, 0, count)


class Bench:
    """A full slab, and the same file open for plain reads."""

    def __init__(self, backend: SlabBackend, path: Path, batch: NDArray[np.void]) -> None:
        self.backend = backend
        self.batch = batch
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        self.buffers = [NumberedPages(PAGE_NBYTES).buffers(BATCH) for _ in range(4)]
        self.targets = [NumberedPages(PAGE_NBYTES).buffers(BATCH) for _ in range(THREADS)]
        for buffer in self.buffers + self.targets:
            buffer[:] = 1  # mapped now

    async def ours(self, firsts: NDArray[np.int64], run: int, in_flight: int) -> dict[str, float]:
        """Read the batches of runs that begin at ``firsts`` (one row a batch)."""
        waiting, times = iter(firsts), []

        async def one_after_another(buffers: NDArray[np.uint8]) -> None:
            for row in waiting:
                pages = self.batch[(row[:, None] + np.arange(run)).ravel()]
                pages["slot"] = np.arange(BATCH)
                stamp = Stamp()
                since_s = time.monotonic()
                transfer = self.backend.get(pages, buffers, deadline_s=math.inf, on_landed=stamp)
                await transfer.drained()
                times.append(stamp.place[0] - since_s)
                assert (transfer.statuses == Status.LANDED).all()

        since_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for i in range(in_flight):
                group.create_task(one_after_another(self.buffers[i]))
        wall_s = (time.monotonic() - since_s) / len(firsts)
        return {"wall": wall_s, "verified": statistics.median(times)}

    async def plain(self, firsts: NDArray[np.int64], run: int, in_flight: int) -> dict[str, float]:
        """Read the same extents with plain threads."""
        words, count = np.zeros(18, np.int64), BATCH // run
        left = np.full(len(firsts), count)
        times = np.zeros((len(firsts), 2))
        _permit(words.ctypes.data, in_flight * count)
        times[:in_flight, 0] = time.monotonic()
        shared = (words.ctypes.data, self.fd, libc.calls.preadv, in_flight)
        offsets = firsts * PAGE_NBYTES
        threads = [
            threading.Thread(
                target=_read_plainly,
                args=(
                    *shared,
                    self.targets[i].reshape(-1)[: run * PAGE_NBYTES],
                    offsets,
                    left,
                    times,
                ),
            )
            for i in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        while not times[:, 1].all():  # noqa: ASYNC110
            await asyncio.sleep(0.005)  # compiled threads set no event
        for thread in threads:
            await asyncio.to_thread(thread.join)
        wall_s = (times[:, 1].max() - times[:, 0].min()) / len(firsts)
        return {"wall": wall_s, "verified": float(np.median(times[:, 1] - times[:, 0]))}


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Bench]:
    """A slab of FRAMES pages below ``folder``."""
    capacity_nbytes = 4096 + FRAMES * (PAGE_NBYTES + 512)
    config = SlabConfig(folder / "slab", capacity_nbytes, PAGE_NBYTES, b"b" * 32)
    backend = await SlabBackend.open(config, clock=RealClock())
    pages = NumberedPages(PAGE_NBYTES)
    batch = pages.batch(list(range(FRAMES)), backend.reserve(FRAMES, after=-1))
    buffers = pages.buffers(256)
    for first in range(0, FRAMES, 256):
        part = batch[first : first + 256]
        pages.fill(buffers, list(range(first, first + 256)))
        part["slot"] = np.arange(256)
        await backend.put(part, buffers, deadline_s=math.inf).drained()
    os.sync()
    try:
        yield Bench(backend, config.directory / "payload.slab", batch)
    finally:
        await backend.close()


@asynccontextmanager
async def busy(*, is_busy: bool) -> AsyncIterator[None]:
    """Keep the loop busy with Python meanwhile, four fifths of the time."""
    loop, running = asyncio.get_running_loop(), is_busy

    def spin() -> None:
        end_s = time.perf_counter() + BUSY_S
        while time.perf_counter() < end_s:
            pass
        time.sleep(FREE_S)
        if running:
            loop.call_soon(spin)

    if running:
        loop.call_soon(spin)
    try:
        yield
    finally:
        running = False


async def measure(bench: Bench, run: int, in_flight: int, *, is_busy: bool) -> dict[str, Any]:
    """Both readers in turns; seconds a batch, and ours as a share of plain speed."""
    chance = np.random.default_rng(run)
    samples: dict[str, dict[str, list[float]]] = {}
    async with busy(is_busy=is_busy):
        for turn in range(ROUNDS + 1):
            starts = [chance.permutation(FRAMES // run)[: BATCH // run] for _ in range(BATCHES)]
            firsts = np.array([np.sort(row) for row in starts]) * run
            # Whoever reads second finds the extents in a virtual disk's cache: 1.4 times faster.
            await bench.plain(firsts, run, in_flight)
            for reader in (bench.ours, bench.plain)[:: 1 if turn % 2 else -1]:
                taken = await reader(firsts, run, in_flight)
                if turn:  # the first is a warm-up
                    for name, seconds in taken.items():
                        samples.setdefault(name, {}).setdefault(reader.__name__, []).append(seconds)
    row: dict[str, Any] = {"run_pages": run, "in_flight": in_flight, "busy": is_busy}
    for name, readers in samples.items():
        middle = {reader: statistics.median(values) for reader, values in readers.items()}
        row |= {f"{name}_{reader}_us": round(1e6 * float(s), 1) for reader, s in middle.items()}
        row[f"{name}_ratio"] = round(float(middle["plain"] / middle["ours"]), 3)
    return row


async def main_async() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        async with opened(Path(folder)) as bench:
            return [
                await measure(bench, run, in_flight, is_busy=is_busy)
                for run in RUNS
                for in_flight in (1, 4)
                for is_busy in (False, True)
            ]


def main() -> None:
    arguments = parser(__doc__).parse_args()
    jit.warm()
    rows = asyncio.run(main_async())
    claims = []
    for is_busy in (False, True):
        for least_run in (15, 1):
            ratios = [
                row["verified_ratio"]
                for row in rows
                if row["busy"] is is_busy and row["run_pages"] >= least_run
            ]
            title = f"{'busy' if is_busy else 'idle'} loop, runs of {least_run} pages and more"
            claims.append(Claim.at_least(f"{title}, worst case", min(ratios), 0.85, "of plain"))
    write(arguments.json, rows, claims, threads=THREADS, batch_pages=BATCH)


if __name__ == "__main__":
    main()
