# SPDX-License-Identifier: Apache-2.0
"""Writing the extents of one put.

Compiled code writes the payload whole, and only then the headers that make it findable (jobs.py).
``settle`` is called on the loop and writes the columns.
"""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache.io import header
from bodocache.io.backend import Status
from bodocache.io.extents import positions_in, slices
from bodocache.io.header import HEADER_NBYTES, SUPERBLOCK_NBYTES
from bodocache.io.jobs import LATE, rows_of
from bodocache.io.mac import FrameMac
from bodocache.io.medium import Buffers, Medium, PageRun
from bodocache.io.posix import DataFile
from bodocache.io.transfer import BatchTransfer, Outcome, Request, Written
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
    on_settled: Callable[[Written, Outcome], None],
) -> Sequence[Request]:
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
    found = [
        WriteExtent(medium, transfer, batch, chosen, i, addresses[i], on_settled)
        for i, chosen in enumerate(slices(bounds))
    ]
    transfer.on_whole = _settle_whole
    return found if medium.mac is None else [_Sealing(extent, medium.mac) for extent in found]


def _settle_whole(extents: Sequence["WriteExtent"]) -> None:
    extents[0].settle_whole(extents)


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
        on_settled: Callable[[Written, Outcome], None],
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

    @property
    def was_begun(self) -> bool:
        """Whether anything of it may have been written."""
        return bool(self._batch.jobs[0]["started_s"][self._index])

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
        _publish(self._medium, self._batch.headers[self._chosen][fresh])

    def settle_whole(self, extents: Sequence["WriteExtent"]) -> None:
        """Settle ``extents`` of the same put, which are whole, as one."""
        if self._medium.observer is not None:
            for one in extents:
                one.run()
        rows = positions_in([one._chosen for one in extents])  # noqa: SLF001 -- of its own kind
        written = _Written(self._medium, self._batch.run.positions[rows], self._batch.headers[rows])
        self._on_settled(written, Outcome.all(len(rows), Status.LANDED))

    def seal(self, mac: FrameMac) -> None:
        """Key the headers, in any thread; before the job is begun."""
        headers, slots = self._batch.headers[self._chosen], self._batch.run.records["slot"]
        mac.seal(headers, (self._batch.buffers.pages[slot] for slot in slots[self._chosen]))
        headers["checksum"] = header.checksums(headers)

    def _check(self, file: DataFile, job: np.void) -> None:
        """Raise unless ``job`` moved all its bytes."""
        error, moved = int(job["error"]), int(job["moved"])
        if error:
            raise OSError(error, os.strerror(error), file.path)
        wanted = int(job["count"] * (job["page_nbytes"] + job["padding_nbytes"]))
        if moved != wanted:
            raise OSError(f"{file.path}: {moved} of {wanted} bytes written at {job['offset']}")
        self._medium.observe(file, job, batch=self.transfer.number)


class _Written:
    """Extents of one put that are whole, as one."""

    __slots__ = ("_headers", "_medium", "positions")
    was_begun = True

    def __init__(
        self, medium: Medium, positions: NDArray[np.int64], headers: NDArray[np.void]
    ) -> None:
        self.positions = positions
        self._medium = medium
        self._headers = headers

    @property
    def frames(self) -> NDArray[np.int64]:
        return self._headers["frame"].astype(np.int64)

    def publish(self, fresh: NDArray[np.bool_]) -> None:
        _publish(self._medium, self._headers[fresh])


def _publish(medium: Medium, headers: NDArray[np.void]) -> None:
    frames = headers["frame"].astype(np.int64)
    medium.columns.fill(frames, headers, headers["generation"])


class _Sealing:
    """An extent whose headers a Python thread keys before it is written."""

    __slots__ = ("_extent", "_mac", "positions", "transfer")
    writes = True
    job = 0

    def __init__(self, extent: WriteExtent, mac: FrameMac) -> None:
        self.transfer = extent.transfer
        self.positions = extent.positions
        self._extent = extent
        self._mac = mac

    def run(self) -> Sequence[Request]:
        self._extent.seal(self._mac)
        return [self._extent]

    def settle(self, outcome: Outcome) -> None:
        """It was not begun."""
        self._extent.settle(outcome)
