# SPDX-License-Identifier: Apache-2.0
"""The yardstick of disk loads: plain O_DIRECT preads, nothing else, in the same run.

It reads the very extents that the cache read, in their order, as many at once as the cache had in
flight; and, as the disk's own rate, whole 2 MiB blocks of the same file.
"""

import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from bodocache.io.backend import Extent

BLOCK_NBYTES = 2 << 20
READ_AT_MOST_NBYTES = 2 << 30  # of the extents: enough for a rate, seconds on any disk

_Read = tuple[str, int, int]  # path, offset, bytes


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


def queue_depth_of(extents: Sequence[Extent], busy_s: float) -> float:
    """Mean number of extents in flight while a load was."""
    in_flight_s = sum(extent.finished_s - extent.started_s for extent in extents)
    return in_flight_s / busy_s if busy_s > 0 else 0.0


def read_same_extents(extents: Sequence[Extent], *, loads: int, threads: int) -> Rate:
    """Read ``extents`` batch by batch, in order: ``loads`` batches at once, on ``threads``."""
    by_batch = sorted(extents, key=lambda extent: extent.batch)
    batches, total = [], 0
    for _, group in groupby(by_batch, key=lambda extent: extent.batch):
        if total >= READ_AT_MOST_NBYTES:
            break
        batches.append([(extent.path, extent.offset, extent.nbytes) for extent in group])
        total += sum(nbytes for _, _, nbytes in batches[-1])
    return _read(batches, loads=loads, threads=threads)


def read_blocks(path: Path, *, threads: int, count: int = 256, seed: int = 7) -> Rate:
    """Read up to ``count`` 2 MiB blocks of ``path`` in random order, ``threads`` at once."""
    blocks = path.stat().st_size // BLOCK_NBYTES
    order = np.random.default_rng(seed).permutation(blocks)[:count]
    batches = [[(str(path), int(block) * BLOCK_NBYTES, BLOCK_NBYTES)] for block in order]
    return _read(batches, loads=threads, threads=threads)


def _read(batches: Sequence[Sequence[_Read]], *, loads: int, threads: int) -> Rate:
    paths = {path for batch in batches for path, _, _ in batch}
    largest = max((nbytes for batch in batches for _, _, nbytes in batch), default=1)
    in_flight_s: list[float] = []
    local = threading.local()
    with ExitStack() as stack:
        files = {path: _open(path) for path in paths}
        for file in files.values():
            stack.callback(os.close, file)

        def read(one: _Read) -> None:
            if not hasattr(local, "buffer"):
                local.buffer = memoryview(mmap.mmap(-1, largest))
            path, offset, nbytes = one
            since_s = time.perf_counter()
            os.preadv(files[path], [local.buffer[:nbytes]], offset)
            in_flight_s.append(time.perf_counter() - since_s)

        pool = stack.enter_context(ThreadPoolExecutor(threads))
        starters = stack.enter_context(ThreadPoolExecutor(loads))
        waiting, lock = iter(batches), threading.Lock()
        started_s = time.perf_counter()
        done = [starters.submit(_serve, waiting, lock, pool, read) for _ in range(loads)]
        for future in done:
            future.result()
        seconds = time.perf_counter() - started_s
    nbytes = sum(nbytes for batch in batches for _, _, nbytes in batch)
    return Rate(nbytes, seconds, sum(in_flight_s) / seconds)


def _serve(
    waiting: Iterator[Sequence[_Read]],
    lock: threading.Lock,
    pool: ThreadPoolExecutor,
    read: Callable[[_Read], None],
) -> None:
    """Read batch after batch, the reads of one batch at once."""
    while True:
        with lock:
            batch = next(waiting, None)
        if batch is None:
            return
        list(pool.map(read, batch))


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:  # a file system without O_DIRECT, where the cache read through buffers too
        return os.open(path, os.O_RDONLY)
