# SPDX-License-Identifier: Apache-2.0
"""Reading the extents of one get, every page checked.

Compiled code finds the pages, cuts them into extents, reads and checks (jobs.py): a load waits for
all of it, and NumPy calls would take longer than the disk takes for the first page. Python sees an
extent when it is done, on the loop, and in a thread only where something went wrong or where the
caller must be told in Python.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.io import columns, extents
from bodocache.io.backend import TRANSFER, Status
from bodocache.io.extents import Limits
from bodocache.io.jobs import JOB, LATE
from bodocache.io.mac import FrameMac
from bodocache.io.medium import Buffers, Medium
from bodocache.io.transfer import BatchTransfer, Outcome, Request
from bodocache.pages import Reason


class Reading(NamedTuple):
    """The pages of one get that are there, in file order, at the head of arrays for all of them.

    Jobs point into all of it.
    """

    positions: NDArray[np.int64]  # in the batch
    frames: NDArray[np.int64]
    generations: NDArray[np.uint64]  # of the frames, when the get was called
    pages: NDArray[np.int64]  # addresses
    expected: NDArray[np.uint64]  # [n, 2], without the seed
    found: NDArray[np.uint64]  # [n, 2]
    landed: NDArray[np.int64]
    holes: NDArray[np.int64]  # bytes between each page's frame and the next page of its extent
    statuses: NDArray[np.uint8]
    reasons: NDArray[np.uint8]

    @classmethod
    def of(cls, count: int) -> "Reading":
        """Room for ``count`` pages."""
        numbers, words = np.empty((5, count), np.int64), np.empty((2, count, 2), np.uint64)
        flags = np.empty((2, count), np.uint8)
        return cls(
            *(numbers[0], numbers[1], np.empty(count, np.uint64), numbers[2]),
            *(words[0], words[1], numbers[3], numbers[4], flags[0], flags[1]),
        )


class _Get(NamedTuple):
    """What the extents of one get share: all that its jobs point into is kept alive by them."""

    medium: Medium
    transfer: BatchTransfer
    buffers: Buffers
    reading: Reading

    def settle_whole(self, requests: Sequence["ReadExtent"]) -> None:
        """Make the pages of ``requests`` final: all have landed."""
        if self.medium.observer is not None:
            for one in requests:
                self.medium.observe(self.medium.payload, one.record, batch=self.transfer.number)
        positions = np.concatenate([one.positions for one in requests])
        self.transfer.finish(positions, Outcome.all(len(positions), Status.LANDED))


def read_extents(
    medium: Medium,
    transfer: BatchTransfer,
    batch: NDArray[np.void],
    buffers: Buffers,
    limits: Limits,
) -> list["ReadExtent"]:
    """The requests of a get of ``batch``; pages that are not there are final at once.

    The caller's order, not the file's: what it named first is worth most if the rest is late.
    """
    reading, reasons = Reading.of(len(batch)), np.empty(len(batch), np.uint8)
    jobs, firsts = np.empty(len(batch), JOB), np.empty(len(batch), np.int64)
    there, count, address = _prepare(
        medium.columns.known,
        np.ascontiguousarray(batch),
        *(buffers.address, limits, _pattern(medium, transfer, buffers)),
        *(reading, reasons, jobs, firsts),
    )
    if there < len(batch):
        misses = np.flatnonzero(reasons != Reason.NONE)
        statuses = np.full(len(misses), Status.MISS, np.uint8)
        transfer.finish(misses, Outcome(statuses, reasons[misses]))
    get = _Get(medium, transfer, buffers, reading)
    if medium.mac is None and (transfer.on_landed is None or transfer.on_landed.native is not None):
        transfer.on_whole = get.settle_whole
    return _extents(get, jobs[:count], address, firsts[:count].tolist())


def _extents(
    get: _Get, jobs: NDArray[np.void], address: int, firsts: list[int]
) -> list["ReadExtent"]:
    """The requests of ``jobs``, which lie at ``address``."""
    counts = jobs["count"].tolist()
    return [
        ReadExtent(get, jobs, i, slice(first, first + count), address + i * JOB.itemsize)
        for i, (first, count) in enumerate(zip(firsts, counts, strict=True))
    ]


def _pattern(medium: Medium, transfer: BatchTransfer, buffers: Buffers) -> NDArray[np.void]:
    """What all jobs of a get have in common."""
    pattern, block = (
        medium.job_pattern(transfer, medium.payload, aligned=buffers.aligned),
        medium.superblock,
    )
    pattern["page_nbytes"] = block.page_nbytes
    pattern["padding"] = medium.spill.ctypes.data
    pattern["padding_nbytes"] = block.frame_nbytes - block.page_nbytes
    native = transfer.on_landed.native if transfer.on_landed is not None else None
    if native is not None and medium.mac is None:
        pattern["function"], pattern["argument"] = native
    return pattern


_ROWS, _JOBS = jit.array("i8"), jit.array(JOB)
_READING = jit.named(
    Reading,
    *(_ROWS, _ROWS, jit.array("u8"), _ROWS, jit.array("u8", 2), jit.array("u8", 2), _ROWS, _ROWS),
    *(jit.array("u1"), jit.array("u1")),
)
_NONE, _TRUNCATED, _MISS = int(Reason.NONE), int(Reason.TRUNCATED), int(Status.MISS)


@jit.compiled(
    *(columns.KNOWN, jit.readonly(TRANSFER), jit.i8, extents.LIMITS, _JOBS),
    *(_READING, jit.array("u1"), _JOBS, _ROWS),
)
def _prepare(  # noqa: PLR0913, PLR0917 -- the columns of a batch, and room for what is made of them
    known: Any,
    batch: Any,
    address: Any,
    limits: Any,
    pattern: Any,
    reading: Any,
    reasons: Any,
    jobs: Any,
    firsts: Any,
) -> Any:
    """Fill in everything from ``reading`` on; return how many pages are there, and jobs; and where.

    Job i reads from element ``firsts[i]`` of ``reading`` on. The buffer of slot s lies s pages
    behind ``address``.
    """
    positions, frames = np.empty(len(batch), np.int64), np.empty(len(batch), np.int64)
    pages, there = np.empty(len(batch), np.int64), 0
    for i in range(len(batch)):
        reasons[i] = columns.reason_of(known, batch[i].frame, batch[i].key)
        if reasons[i] == _NONE:
            positions[there], frames[there] = i, batch[i].frame
            pages[there] = address + batch[i].slot * limits.page_nbytes
            there += 1
    order, bounds = np.empty(there, np.int64), np.empty(there + 1, np.int64)
    count = extents.cut(frames[:there], pages[:there], np.empty(0), limits, order, bounds)
    for k in range(there):
        i = positions[order[k]]
        frame = batch[i].frame
        reading.positions[k] = i
        reading.frames[k] = frame
        reading.generations[k] = known.generations[frame]
        reading.pages[k] = pages[order[k]]
        reading.holes[k] = 0
        for word in range(2):  # the key's first words are the seed
            reading.expected[k, word] = known.digests[frame, word] - known.words[frame, word]
        reading.statuses[k], reading.reasons[k] = _MISS, _TRUNCATED  # what is not reached
    named_first = np.empty(count, np.int64)
    for j in range(count):
        named_first[j] = reading.positions[bounds[j] : bounds[j + 1]].min()
    turns = np.argsort(named_first)
    for k in range(count):
        first, end = bounds[turns[k]], bounds[turns[k] + 1]
        jobs[k] = pattern[0]
        _point(jobs[k], reading, first, end - first)
        for i in range(first, end - 1):
            hole = reading.frames[i + 1] - reading.frames[i] - 1
            reading.holes[i] = hole * limits.frame_nbytes
            if hole > 0:
                jobs[k].holes = reading.holes.ctypes.data + 8 * first
        firsts[k] = first
    return there, count, jobs.ctypes.data


@jit.compiled(jit.record(JOB), _READING, jit.i8, jit.i8)
def _point(job: Any, reading: Any, first: Any, count: Any) -> None:
    """Let ``job`` read ``count`` pages of ``reading`` from ``first`` on."""
    job.offset = reading.frames[first] * (job.page_nbytes + job.padding_nbytes)
    job.count = count
    job.holes = 0
    job.pages = reading.pages.ctypes.data + 8 * first
    job.expected = reading.expected.ctypes.data + 16 * first
    job.found = reading.found.ctypes.data + 16 * first
    job.statuses = reading.statuses.ctypes.data + first
    job.reasons = reading.reasons.ctypes.data + first
    job.positions = reading.positions.ctypes.data + 8 * first
    job.landed = reading.landed.ctypes.data + 8 * first


@jit.compiled(_JOBS, jit.i8, jit.i8, _READING, _JOBS)
def _split(jobs: Any, index: Any, first: Any, reading: Any, out: Any) -> None:
    """One job for each page of job ``index``."""
    for i in range(len(out)):
        out[i] = jobs[index]
        out[i].moved = out[i].error = 0
        _point(out[i], reading, first + i, 1)


class ReadExtent:
    """Adjacent frames, read at once and checked page by page."""

    __slots__ = ("_chosen", "_get", "_index", "_jobs", "job", "positions", "transfer")
    writes = False

    def __init__(
        self, get: _Get, jobs: NDArray[np.void], index: int, chosen: slice, address: int
    ) -> None:
        """Job ``index`` of ``jobs`` lies at ``address``; it reads ``chosen`` of the get's pages."""
        self.transfer = get.transfer
        self.job = address
        self._chosen = chosen
        self.positions = get.reading.positions[self._chosen]
        self._get = get
        self._jobs = jobs
        self._index = index

    def run(self) -> Outcome | Sequence[Request]:
        """What became of the pages, or who finds out."""
        job, count = self._jobs[self._index], len(self.positions)
        error = int(job["error"])
        if error == LATE:
            return Outcome.all(count, Status.LATE, Reason.LATE)
        if error and count == 1:
            raise OSError(error, os.strerror(error), self._get.medium.payload.path)
        if error:  # one bad sector must not cost its neighbours
            return self._page_by_page()
        self._get.medium.observe(self._get.medium.payload, job, batch=self.transfer.number)
        told = self.transfer.on_landed is None or job["function"]
        if job["failed"] or not told or self._get.medium.mac is not None:
            return [_Explained(self)]
        return self.outcome

    def _page_by_page(self) -> list["ReadExtent"]:
        first, count = self._chosen.start, len(self.positions)
        jobs = np.empty(count, JOB)
        _split(self._jobs, self._index, first, self._get.reading, jobs)
        return _extents(self._get, jobs, jobs.ctypes.data, list(range(first, first + count)))

    @property
    def outcome(self) -> Outcome:
        """What compiled code found; a digest that is wrong is CORRUPT."""
        reading = self._get.reading
        return Outcome(reading.statuses[self._chosen], reading.reasons[self._chosen])

    def explain(self) -> Outcome:
        """Tell pages of another frame from damaged ones, and tell the caller. In a thread."""
        outcome = self.outcome
        found = self._get.reading.found[self._chosen]
        wrong = np.flatnonzero(outcome.reasons == Reason.CORRUPT)
        outcome.reasons[wrong[self._get.medium.columns.holds(found[wrong])]] = Reason.FOREIGN
        if self._get.medium.mac is not None:
            self._refuse_forged(self._get.medium.mac, outcome)
        if not self._jobs[self._index]["function"]:
            self.transfer.tell(self.positions[outcome.statuses == Status.LANDED])
        return outcome

    def _refuse_forged(self, mac: FrameMac, outcome: Outcome) -> None:
        landed = np.flatnonzero(outcome.statuses == Status.LANDED)
        reading, buffers = self._get.reading, self._get.buffers
        chosen = landed + self._chosen.start
        slots = (reading.pages[chosen] - buffers.address) // buffers.pages.shape[1]
        outcome.reasons[landed] = mac.refusals(
            *(self._get.medium.columns, reading.frames[chosen], reading.generations[chosen]),
            (buffers.pages[slot] for slot in slots.tolist()),
        )
        outcome.statuses[outcome.reasons != Reason.NONE] = Status.MISS

    def settle(self, outcome: Outcome) -> None:
        """Make the pages final; a frame that failed its check holds nothing from now on."""
        self.transfer.finish(self.positions, outcome)
        missed = outcome.statuses == Status.MISS
        if missed.any():
            reading = self._get.reading
            frames, generations = (
                column[self._chosen][missed] for column in (reading.frames, reading.generations)
            )
            self._get.medium.columns.fail(frames, generations, outcome.reasons[missed])

    @property
    def record(self) -> np.void:
        """Its JOB."""
        record: np.void = self._jobs[self._index]
        return record


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
