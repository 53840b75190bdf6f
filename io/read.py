# SPDX-License-Identifier: Apache-2.0
"""Reading one extent of a slab, every page checked.

``run`` is called in a worker thread and touches only the request's own arrays, the caller's
buffers and the files; ``settle`` is called on the loop and writes the columns.
"""

import logging

import numpy as np
from numpy.typing import NDArray

from bodocache.digest import digest_rows, seeded
from bodocache.io import extents
from bodocache.io.backend import Status
from bodocache.io.medium import Buffers, Medium, PageRun
from bodocache.io.transfer import BatchTransfer, Outcome
from bodocache.pages import Reason

_TRUNCATED = Outcome.all(1, Status.MISS, Reason.TRUNCATED)

_log = logging.getLogger(__name__)


class ReadExtent:
    """Adjacent frames, read at once and checked page by page."""

    __slots__ = ("_buffers", "_generations", "_medium", "_records", "positions", "transfer")
    writes = False

    def __init__(
        self, medium: Medium, transfer: BatchTransfer, pages: PageRun, buffers: Buffers
    ) -> None:
        """The records of ``pages`` say what the frames hold now, digests included."""
        self.transfer = transfer
        self.positions, self._records, self._generations = pages
        self._medium = medium
        self._buffers = buffers

    def run(self) -> Outcome:
        """Read, then compare every whole page with its digest."""
        records = self._records
        try:
            pages = self._read(records)
        except OSError:
            if len(records) == 1:
                raise
            return self._run_one_by_one()  # one bad sector must not cost its neighbours
        outcome = Outcome.all(len(records), Status.MISS, Reason.TRUNCATED)
        outcome.statuses[:pages], outcome.reasons[:pages] = self._check(records[:pages])
        return outcome

    def settle(self, outcome: Outcome) -> None:
        """Make the pages final; a frame that failed its check holds nothing from now on."""
        self.transfer.finish(self.positions, outcome)
        if not (outcome.statuses == Status.MISS).any():
            return
        columns, frames = self._medium.columns, self._records["frame"]
        unchanged = columns.generations[frames] == self._generations
        stored = columns.reasons[frames] == Reason.NONE
        failed = (outcome.statuses == Status.MISS) & unchanged & stored
        columns.invalidate(frames[failed], outcome.reasons[failed])

    def _read(self, records: NDArray[np.void]) -> int:
        """Read adjacent frames into their slots; return how many pages are whole."""
        medium, superblock = self._medium, self._medium.superblock
        page_nbytes, frame_nbytes = superblock.page_nbytes, superblock.frame_nbytes
        padding = memoryview(bytearray(frame_nbytes - page_nbytes))
        views = extents.buffers_of(self._buffers.memory, records["slot"], page_nbytes, padding)
        offset = int(records["frame"][0]) * frame_nbytes
        since_s = medium.clock.now_s()
        nbytes = medium.payload.read(views, offset, aligned=self._buffers.aligned)
        medium.observe(
            *(medium.payload, offset, nbytes),
            pages=len(records),
            since_s=since_s,
            writes=False,
            batch=self.transfer.number,
        )
        return min(len(records), (nbytes + frame_nbytes - page_nbytes) // frame_nbytes)

    def _check(self, records: NDArray[np.void]) -> Outcome:
        raw = digest_rows(self._buffers.pages, np.ascontiguousarray(records["slot"]))
        right = (seeded(raw, records["key"]) == records["digest"]).all(axis=1)
        outcome = Outcome.all(len(records), Status.LANDED)
        for i in np.flatnonzero(~right).tolist():
            outcome.statuses[i] = Status.MISS
            elsewhere = self._medium.columns.holds(raw[i])
            outcome.reasons[i] = Reason.FOREIGN if elsewhere else Reason.CORRUPT
        return outcome

    def _run_one_by_one(self) -> Outcome:
        outcome = Outcome.all(len(self._records), Status.FAILED, Reason.IO_ERROR)
        for i in range(len(self._records)):
            record = self._records[i : i + 1]
            try:
                whole = self._read(record)
            except OSError as error:
                _log.debug("%s: %s", self._medium.payload.path, error)
                continue
            one = self._check(record) if whole else _TRUNCATED
            outcome.statuses[i : i + 1], outcome.reasons[i : i + 1] = one
        return outcome
