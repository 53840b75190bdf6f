# SPDX-License-Identifier: Apache-2.0
"""What the requests of a slab work on: its open files, its columns, the caller's buffers."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache.clock import Clock
from bodocache.io.backend import Extent
from bodocache.io.columns import Columns
from bodocache.io.header import Superblock
from bodocache.io.posix import DataFile


@dataclass(slots=True)
class SyncLog:
    """Counts failed syncs: the kernel tells of lost writes once, whoever asks first.

    A sync that succeeds right after another's failure proves nothing for writes made before it.
    """

    failures: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(slots=True)
class Medium:
    """The open files of a slab and what is known of their frames."""

    payload: DataFile
    headers: DataFile
    superblock: Superblock
    columns: Columns
    clock: Clock
    syncs: SyncLog = field(default_factory=SyncLog)
    observer: Callable[[Extent], None] | None = None

    def observe(
        self,
        file: DataFile,
        offset: int,
        nbytes: int,
        *,
        pages: int,
        since_s: float,
        writes: bool,
        batch: int,
    ) -> None:
        """Tell the observer of one completed extent."""
        if self.observer is not None:
            now_s = self.clock.now_s()
            self.observer(Extent(file.path, offset, nbytes, since_s, now_s, pages, writes, batch))


@dataclass(slots=True)
class Buffers:
    """The caller's memory, as workers address it."""

    pages: NDArray[np.uint8]  # [slots, page_nbytes]
    memory: memoryview  # the same, flat
    aligned: bool  # fit for O_DIRECT


class PageRun(NamedTuple):
    """Pages of a batch whose frames are adjacent, by frame; read-only from here on."""

    positions: NDArray[np.int64]  # in the batch
    records: NDArray[np.void]  # TRANSFER
    generations: NDArray[np.uint64]
