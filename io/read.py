# SPDX-License-Identifier: Apache-2.0
"""Reading the extents of one get, every page checked.

Compiled code reads and checks (jobs.py); Python sees an extent when it is done, on the loop, and
in a thread only where something went wrong or where the caller must be told in Python.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache.digest import seeded
from bodocache.io.backend import Status
from bodocache.io.extents import slices
from bodocache.io.jobs import LATE, rows_of
from bodocache.io.medium import Buffers, Medium, PageRun
from bodocache.io.transfer import BatchTransfer, Outcome, Request
from bodocache.pages import Reason


class _Batch(NamedTuple):
    """What the extents of one get share, in file order. The jobs point into all of it."""

    run: PageRun
    buffers: Buffers
    pages: NDArray[np.int64]
    expected: NDArray[np.uint64]
    found: NDArray[np.uint64]
    landed: NDArray[np.int64]
    outcome: Outcome


def read_extents(
    medium: Medium,
    transfer: BatchTransfer,
    run: PageRun,
    bounds: NDArray[np.int64],
    buffers: Buffers,
) -> list["ReadExtent"]:
    """The requests of a get of ``run``, cut at ``bounds``: 60 us for 32 pages, however many."""
    count = len(run.positions)
    unsought = Outcome.all(count, Status.MISS, Reason.TRUNCATED)  # what is not reached
    expected = run.records["digest"] - seeded(np.zeros((count, 2), np.uint64), run.records["key"])
    batch = _Batch(
        *(run, buffers, buffers.addresses(run.records["slot"]), expected),
        *(np.zeros((count, 2), np.uint64), np.empty(count, np.int64), unsought),
    )
    jobs = _jobs(medium, transfer, batch, bounds)
    addresses = rows_of(jobs, np.arange(len(jobs))).tolist()
    return [
        ReadExtent(medium, transfer, batch, chosen, jobs[i], addresses[i])
        for i, chosen in enumerate(slices(bounds))
    ]


def _jobs(
    medium: Medium, transfer: BatchTransfer, batch: _Batch, bounds: NDArray[np.int64]
) -> NDArray[np.void]:
    block, firsts = medium.superblock, bounds[:-1]
    jobs = medium.jobs(
        *(transfer, medium.payload, batch.pages, bounds), aligned=batch.buffers.aligned
    )
    jobs["offset"] = batch.run.records["frame"][firsts] * block.frame_nbytes
    jobs["page_nbytes"] = block.page_nbytes
    jobs["padding"] = medium.spill.ctypes.data
    jobs["padding_nbytes"] = block.frame_nbytes - block.page_nbytes
    jobs["expected"] = rows_of(batch.expected, firsts)
    jobs["found"] = rows_of(batch.found, firsts)
    jobs["statuses"] = rows_of(batch.outcome.statuses, firsts)
    jobs["reasons"] = rows_of(batch.outcome.reasons, firsts)
    jobs["positions"] = rows_of(batch.run.positions, firsts)
    jobs["landed"] = rows_of(batch.landed, firsts)
    native = transfer.on_landed.native if transfer.on_landed is not None else None
    if native is not None:
        jobs["function"], jobs["argument"] = native
    return jobs


class ReadExtent:
    """Adjacent frames, read at once and checked page by page."""

    __slots__ = ("_batch", "_chosen", "_job", "_medium", "job", "positions", "transfer")
    writes = False

    def __init__(
        self,
        medium: Medium,
        transfer: BatchTransfer,
        batch: _Batch,
        chosen: slice,
        job: np.void,
        address: int,
    ) -> None:
        """``chosen`` of the batch; ``job`` is a view that keeps its array alive."""
        self.transfer = transfer
        self.positions = batch.run.positions[chosen]
        self.job = address
        self._medium = medium
        self._batch = batch
        self._chosen = chosen
        self._job = job

    def run(self) -> Outcome | Sequence[Request]:
        """What became of the pages, or who finds out."""
        job, count = self._job, len(self.positions)
        error = int(job["error"])
        if error == LATE:
            return Outcome.all(count, Status.LATE, Reason.LATE)
        if error and count == 1:
            raise OSError(error, os.strerror(error), self._medium.payload.path)
        if error:  # one bad sector must not cost its neighbours
            run = self._batch.run.part(self._chosen)
            bounds = np.arange(count + 1)
            return read_extents(self._medium, self.transfer, run, bounds, self._batch.buffers)
        self._medium.observe(self._medium.payload, job, batch=self.transfer.number)
        if job["failed"] or (self.transfer.on_landed is not None and not job["function"]):
            return [_Explained(self)]
        return self.outcome

    @property
    def outcome(self) -> Outcome:
        """What compiled code found; a digest that is wrong is CORRUPT."""
        statuses, reasons = self._batch.outcome
        return Outcome(statuses[self._chosen], reasons[self._chosen])

    def explain(self) -> Outcome:
        """Tell pages of another frame from damaged ones, and tell the caller. In a thread."""
        outcome = self.outcome
        found = self._batch.found[self._chosen]
        for i in np.flatnonzero(outcome.reasons == Reason.CORRUPT).tolist():
            if self._medium.columns.holds(found[i]):
                outcome.reasons[i] = Reason.FOREIGN
        if not self._job["function"]:
            self.transfer.tell(self.positions[outcome.statuses == Status.LANDED])
        return outcome

    def settle(self, outcome: Outcome) -> None:
        """Make the pages final; a frame that failed its check holds nothing from now on."""
        self.transfer.finish(self.positions, outcome)
        if not (outcome.statuses == Status.MISS).any():
            return
        records, generations = self._batch.run.records, self._batch.run.generations[self._chosen]
        columns, frames = self._medium.columns, records["frame"][self._chosen]
        unchanged = columns.generations[frames] == generations
        stored = columns.reasons[frames] == Reason.NONE
        failed = (outcome.statuses == Status.MISS) & unchanged & stored
        columns.invalidate(frames[failed], outcome.reasons[failed])


class _Explained:
    """An extent that was read, on its way through a thread that runs Python."""

    __slots__ = ("_extent", "positions", "transfer")
    writes = False
    job = 0

    def __init__(self, extent: ReadExtent) -> None:
        self.transfer = extent.transfer
        self.positions = extent.positions
        self._extent = extent

    def run(self) -> Outcome:
        return self._extent.explain()

    def settle(self, outcome: Outcome) -> None:
        self._extent.settle(outcome)
