# SPDX-License-Identifier: Apache-2.0
"""What the requests of a slab work on: its open files, its columns, the caller's buffers."""

import mmap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.clock import Clock, RealClock
from bodocache.io.backend import TRANSFER, Extent
from bodocache.io.columns import Columns
from bodocache.io.config import BLOCK_NBYTES
from bodocache.io.header import Superblock
from bodocache.io.jobs import JOB, rows_of
from bodocache.io.mac import FrameMac
from bodocache.io.posix import DataFile
from bodocache.io.transfer import BatchTransfer


@dataclass(slots=True)
class Medium:
    """The open files of a slab and what is known of their frames.

    ``zeros`` are written behind pages that end inside a block; what is read there, and in holes, is
    ``spill``.
    """

    payload: DataFile
    headers: DataFile
    superblock: Superblock
    columns: Columns
    clock: Clock
    mac: FrameMac | None = None
    observer: Callable[[Extent], None] | None = None
    zeros: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(BLOCK_NBYTES, np.uint8))
    spill: NDArray[np.uint8] = field(default_factory=lambda: scratch(BLOCK_NBYTES))

    def jobs(
        self,
        transfer: BatchTransfer,
        file: DataFile,
        pages: NDArray[np.int64],
        bounds: NDArray[np.int64],
        *,
        aligned: bool,
    ) -> NDArray[np.void]:
        """One JOB per extent over ``pages`` (addresses, in file order), cut at ``bounds``.

        The caller keeps ``pages`` and fills in what the job does in the file.
        """
        jobs = np.repeat(self.job_pattern(transfer, file, aligned=aligned), len(bounds) - 1)
        jobs["pages"] = rows_of(pages, bounds[:-1])
        jobs["count"] = np.diff(bounds)
        return jobs

    def job_pattern(
        self, transfer: BatchTransfer, file: DataFile, *, aligned: bool
    ) -> NDArray[np.void]:
        """JOB[1]: what every job of ``transfer`` on ``file`` has in common."""
        pattern = np.zeros(1, JOB)
        pattern["direct_fd"] = file.direct_fd if aligned else -1
        pattern["fd"] = file.fd
        # A job that waited too long finds out by itself where its clock is ours: the loop may lag.
        real = isinstance(self.clock, RealClock)
        pattern["begin_by_s"] = transfer.deadline_s if real else np.inf
        return pattern

    def observe(self, file: DataFile, job: np.void, *, batch: int) -> None:
        """Tell the observer of the extent that ``job`` (JOB) moved. On the loop."""
        if self.observer is None:
            return
        self.observer(
            Extent(
                *(file.path, int(job["offset"]), int(job["moved"])),
                *(float(job["started_s"]), float(job["finished_s"])),
                pages=int(job["count"]),
                writes=bool(job["writes"]),
                batch=batch,
            )
        )


def scratch(nbytes: int) -> NDArray[np.uint8]:
    """Memory as O_DIRECT wants it: mappings begin at a page."""
    return np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)


class Buffers(NamedTuple):
    """The caller's memory, as workers address it."""

    pages: NDArray[np.uint8]  # [slots, page_nbytes], C-ordered
    address: int  # of slot 0
    aligned: bool  # fit for O_DIRECT

    def addresses(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the pages of ``slots`` lie."""
        return np.ascontiguousarray(rows_of(self.pages, slots))


@jit.compiled(jit.readonly(TRANSFER), jit.i8, jit.i8)
def fits(batch: Any, slots: Any, page_nbytes: Any) -> Any:
    """Whether every page of ``batch`` (TRANSFER) has that size, and one of ``slots`` buffers."""
    for i in range(len(batch)):
        if batch[i].nbytes != page_nbytes or not 0 <= batch[i].slot < slots:
            return False
    return True


class PageRun(NamedTuple):
    """Pages of a batch in file order; read-only from here on."""

    positions: NDArray[np.int64]  # in the batch
    records: NDArray[np.void]  # TRANSFER
    generations: NDArray[np.uint64]

    def part(self, chosen: slice) -> "PageRun":
        """Some of them."""
        return PageRun(self.positions[chosen], self.records[chosen], self.generations[chosen])
