# SPDX-License-Identifier: Apache-2.0
"""Writing the extents of one put, and making written extents durable.

Compiled code writes the payload whole, and only then the headers that make it findable (jobs.py);
syncs run in a Python thread. ``settle`` is called on the loop and writes the columns.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache.io import header
from bodocache.io.backend import Status
from bodocache.io.extents import slices
from bodocache.io.header import HEADER_NBYTES, SUPERBLOCK_NBYTES
from bodocache.io.jobs import LATE, rows_of
from bodocache.io.medium import Buffers, Medium, PageRun
from bodocache.io.posix import DataFile
from bodocache.io.transfer import BatchTransfer, Outcome, WriteRequest
from bodocache.pages import Reason


class _Batch(NamedTuple):
    """What the extents of one put share, in file order. The jobs point into all of it."""

    run: PageRun
    buffers: Buffers
    pages: NDArray[np.int64]
    headers: NDArray[np.void]
    header_rows: NDArray[np.int64]  # where each header lies
    jobs: tuple[NDArray[np.void], NDArray[np.void]]  # payloads, and the headers that follow them


def write_extents(
    medium: Medium,
    transfer: BatchTransfer,
    run: PageRun,
    bounds: NDArray[np.int64],
    buffers: Buffers,
    on_settled: Callable[["WriteExtent", Outcome], None],
) -> list["WriteExtent"]:
    """The requests of a put of ``run``, cut at ``bounds``."""
    headers = header.encode(run.records, run.generations, medium.superblock)
    header_rows = rows_of(headers, np.arange(len(headers)))
    pages = buffers.addresses(run.records["slot"])
    payload_jobs = medium.jobs(transfer, medium.payload, pages, bounds, aligned=buffers.aligned)
    # Buffered: a sector is written without reading its block, and the kernel writes the whole
    # 4 KiB block back, so that a device of 4 KiB sectors never tears a neighbour's header.
    header_jobs = medium.jobs(transfer, medium.headers, header_rows, bounds, aligned=False)
    batch = _Batch(run, buffers, pages, headers, header_rows, (payload_jobs, header_jobs))
    _place(medium, batch, bounds)
    addresses = rows_of(payload_jobs, np.arange(len(payload_jobs))).tolist()
    return [
        WriteExtent(medium, transfer, batch, chosen, i, addresses[i], on_settled)
        for i, chosen in enumerate(slices(bounds))
    ]


def _place(medium: Medium, batch: _Batch, bounds: NDArray[np.int64]) -> None:
    """Fill in where the jobs of ``batch`` write."""
    block, (payloads, headers) = medium.superblock, batch.jobs
    frames = batch.run.records["frame"][bounds[:-1]]
    payloads["offset"] = frames * block.frame_nbytes
    payloads["page_nbytes"] = block.page_nbytes
    payloads["padding"] = medium.zeros.ctypes.data
    payloads["padding_nbytes"] = block.frame_nbytes - block.page_nbytes
    payloads["next"] = rows_of(headers, np.arange(len(headers)))
    headers["offset"] = SUPERBLOCK_NBYTES + frames * HEADER_NBYTES
    headers["page_nbytes"] = HEADER_NBYTES
    payloads["writes"] = headers["writes"] = 1


class WriteExtent:
    """Adjacent frames, written at once: payload, then headers."""

    __slots__ = (
        *("_batch", "_chosen", "_index", "_medium", "_on_settled"),
        *("job", "positions", "transfer"),
    )
    writes = True

    def __init__(
        self,
        medium: Medium,
        transfer: BatchTransfer,
        batch: _Batch,
        chosen: slice,
        index: int,
        address: int,
        on_settled: Callable[["WriteExtent", Outcome], None],
    ) -> None:
        """``chosen`` of the batch, written by its jobs ``index``."""
        self.transfer = transfer
        self.positions = batch.run.positions[chosen]
        self.job = address
        self._medium = medium
        self._batch = batch
        self._chosen = chosen
        self._index = index
        self._on_settled = on_settled

    @property
    def frames(self) -> NDArray[np.int64]:
        """The frames it writes."""
        frames: NDArray[np.int64] = self._batch.run.records["frame"][self._chosen]
        return frames

    def run(self) -> Outcome:
        """What became of both writes: the pages have landed only if both are whole."""
        payload, headers = (jobs[self._index] for jobs in self._batch.jobs)
        if payload["error"] == LATE:
            return Outcome.all(len(self.positions), Status.LATE, Reason.LATE)
        self._check(self._medium.payload, payload)
        self._check(self._medium.headers, headers)
        return Outcome.all(len(self.positions), Status.LANDED)

    def settle(self, outcome: Outcome) -> None:
        """Hand the outcome to the put it is part of."""
        self._on_settled(self, outcome)

    def publish(self, fresh: NDArray[np.bool_]) -> None:
        """Let gets find the pages chosen by ``fresh``."""
        run = self._batch.run.part(self._chosen)
        records = run.records[fresh]
        self._medium.columns.fill(records["frame"], records, run.generations[fresh])

    def _check(self, file: DataFile, job: np.void) -> None:
        """Raise unless ``job`` moved all its bytes."""
        error, moved = int(job["error"]), int(job["moved"])
        if error:
            raise OSError(error, os.strerror(error), file.path)
        wanted = int(job["count"] * (job["page_nbytes"] + job["padding_nbytes"]))
        if moved != wanted:
            raise OSError(f"{file.path}: {moved} of {wanted} bytes written at {job['offset']}")
        self._medium.observe(file, job, batch=self.transfer.number)


class Sync:
    """Makes written extents durable, once; a failure is final for all of them."""

    __slots__ = ("_extents", "_failures_before", "_medium", "positions", "transfer")
    writes = True
    job = 0

    def __init__(
        self,
        medium: Medium,
        transfer: BatchTransfer,
        written: list[WriteRequest],
        failures_before: int,
    ) -> None:
        self.transfer = transfer
        self.positions = np.concatenate([extent.positions for extent in written])
        self._medium = medium
        self._extents = written
        self._failures_before = failures_before

    def run(self) -> Outcome:
        """Fdatasync of both files. Never retried: the kernel may have dropped what it could not
        write, and the next sync would succeed.
        """
        syncs = self._medium.syncs
        with syncs.lock:
            try:
                self._medium.payload.sync()
                self._medium.headers.sync()
            except OSError:
                syncs.failures += 1
                raise
            if syncs.failures != self._failures_before:
                raise OSError("another put's sync failed meanwhile: these pages may be lost")
        return Outcome.all(len(self.positions), Status.LANDED)

    def settle(self, outcome: Outcome) -> None:
        """Make the pages final, and findable where they landed."""
        fresh = self.transfer.finish(self.positions, outcome)
        landed = fresh & (outcome.statuses == Status.LANDED)
        ends = np.cumsum([len(extent.positions) for extent in self._extents])
        for extent, chosen in zip(self._extents, np.split(landed, ends[:-1]), strict=True):
            extent.publish(chosen)
