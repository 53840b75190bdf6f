# SPDX-License-Identifier: Apache-2.0
"""The yardstick of disk loads: plain O_DIRECT preads, nothing else, in the same run.

It reads the extents that the cache read, at the queue depth the cache had, and, as the disk's
own rate, whole 2 MiB blocks of the same file.
"""

import mmap
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bodocache.io.backend import Extent

BLOCK_NBYTES = 2 << 20
READ_AT_MOST_NBYTES = 2 << 30  # of the extents: enough for a rate, seconds on any disk


@dataclass(frozen=True, slots=True)
class Rate:
    """What a plain reader reached."""

    nbytes: int
    seconds: float
    queue_depth: int

    @property
    def bytes_per_s(self) -> float:
        """Bytes over wall time."""
        return self.nbytes / self.seconds if self.seconds > 0 else 0.0


def queue_depth_of(extents: Sequence[Extent], busy_s: float) -> int:
    """Mean number of extents in flight while a load was: what the yardstick keeps in flight."""
    in_flight_s = sum(extent.finished_s - extent.started_s for extent in extents)
    return max(1, round(in_flight_s / busy_s)) if busy_s > 0 else 1


def read_same_extents(extents: Sequence[Extent], queue_depth: int) -> Rate:
    """Read ``extents`` in their order, ``queue_depth`` at a time."""
    chosen, nbytes = [], 0
    for extent in extents:
        chosen.append((extent.path, extent.offset, extent.nbytes))
        nbytes += extent.nbytes
        if nbytes >= READ_AT_MOST_NBYTES:
            break
    return _read(chosen, queue_depth)


def read_blocks(path: Path, queue_depth: int, *, count: int = 256, seed: int = 7) -> Rate:
    """Read up to ``count`` 2 MiB blocks of ``path`` in random order."""
    blocks = path.stat().st_size // BLOCK_NBYTES
    order = np.random.default_rng(seed).permutation(blocks)[:count]
    return _read([(str(path), int(b) * BLOCK_NBYTES, BLOCK_NBYTES) for b in order], queue_depth)


def _read(reads: Sequence[tuple[str, int, int]], queue_depth: int) -> Rate:
    if not reads:
        return Rate(0, 0.0, queue_depth)
    files = {path: _open(path) for path in {path for path, _, _ in reads}}
    waiting = iter(reads)
    lock = threading.Lock()

    def work() -> None:
        buffer = mmap.mmap(-1, max(nbytes for _, _, nbytes in reads))
        while True:
            with lock:
                read = next(waiting, None)
            if read is None:
                return
            path, offset, nbytes = read
            os.preadv(files[path], [memoryview(buffer)[:nbytes]], offset)

    threads = [threading.Thread(target=work) for _ in range(queue_depth)]
    started_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started_s
    for file in files.values():
        os.close(file)
    return Rate(sum(nbytes for _, _, nbytes in reads), seconds, queue_depth)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:  # a file system without O_DIRECT, where the cache read through buffers too
        return os.open(path, os.O_RDONLY)
