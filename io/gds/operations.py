# SPDX-License-Identifier: Apache-2.0
"""One operation of cuFile: pages that are adjacent in the file and in memory.

Built and settled on the loop; between the two an operation belongs to the threads of queue.py.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from bodocache.io import header
from bodocache.io.backend import Extent, Status
from bodocache.io.extents import Merged, slices
from bodocache.io.gds.device_memory import Memory, Region
from bodocache.io.header import HEADER_NBYTES, SUPERBLOCK_NBYTES
from bodocache.io.medium import Medium, PageRun
from bodocache.io.posix import DataFile
from bodocache.io.transfer import BatchTransfer, Outcome
from bodocache.pages import Reason


class DigestPages(Protocol):
    """Digests pages where they are: :func:`bodocache.digest.digest_rows`, or a kernel."""

    def __call__(self, pages: Any, rows: NDArray[np.int64], /) -> NDArray[np.uint64]:
        """The digests of ``rows`` of ``pages``, before the key's seed: u64[len(rows), 2].

        ``pages`` is what the caller of a get passed as buffers. Called in a thread of the
        backend's, when the bytes are there; returns when it has read them.
        """
        ...


class Shared(NamedTuple):
    """What the operations of one get or put have in common."""

    medium: Medium
    transfer: BatchTransfer
    memory: Memory
    region: Region
    digest: DigestPages


def merge_adjacent(frames: NDArray[np.int64], slots: NDArray[np.int64], *, limit: int) -> Merged:
    """Sort by frame; cut where frames or slots are not adjacent, and at every ``limit`` pages."""
    order = np.argsort(frames, kind="stable")
    adjacent = (np.diff(frames[order]) == 1) & (np.diff(slots[order]) == 1)
    place = np.arange(len(order))
    starts = np.where(np.append([True], ~adjacent)[: len(order)], place, 0)
    within = place - np.maximum.accumulate(starts)
    return Merged(order, np.append(np.flatnonzero(within % limit == 0), len(order)))


class Operation(ABC):
    """Adjacent pages. ``moved`` of ``nbytes`` bytes are done; the rest is done by another call."""

    __slots__ = (
        *("finished_s", "moved", "nbytes", "offset", "positions", "run_of_pages"),
        *("shared", "started_s", "transfer"),
    )
    job = 0
    writes = False

    def __init__(self, shared: Shared, pages: PageRun) -> None:
        self.shared = shared
        self.transfer = shared.transfer
        self.run_of_pages = pages
        self.positions = pages.positions
        self.offset = int(pages.records["frame"][0]) * shared.medium.superblock.frame_nbytes
        self.nbytes = len(pages.positions) * shared.memory.row_nbytes
        self.moved = 0
        self.started_s = self.finished_s = 0.0

    @property
    def frames(self) -> NDArray[np.int64]:
        """The frames it reads or writes."""
        frames: NDArray[np.int64] = self.run_of_pages.records["frame"]
        return frames

    @property
    def slots(self) -> NDArray[np.int64]:
        """Rows of the buffers, one after the other."""
        slots: NDArray[np.int64] = self.run_of_pages.records["slot"]
        return slots

    @property
    def rest(self) -> int:
        """Bytes that are not moved yet."""
        return self.nbytes - self.moved

    @property
    def memory_offset(self) -> int:
        """Where its bytes lie behind the beginning of its region."""
        memory = self.shared.memory
        first = memory.address - self.shared.region.address
        return first + int(self.slots[0]) * memory.row_nbytes

    @abstractmethod
    def run(self) -> Outcome:
        """What is left to do once all bytes are moved, in a thread."""

    @abstractmethod
    def settle(self, outcome: Outcome) -> None:
        """Take note of ``outcome``, on the loop."""

    def observe(self, file: DataFile, offset: int, nbytes: int) -> None:
        """Tell the observer of bytes that were moved. On the loop."""
        if self.shared.medium.observer is not None:
            self.shared.medium.observer(
                Extent(
                    *(file.path, offset, nbytes, self.started_s, self.finished_s),
                    pages=len(self.positions),
                    writes=self.writes,
                    batch=self.transfer.number,
                )
            )


class GdsRead(Operation):
    """Reads pages and checks their digests before any of them has landed."""

    __slots__ = ("expected",)

    def __init__(self, shared: Shared, pages: PageRun, expected: NDArray[np.uint64]) -> None:
        """``expected``: u64[n, 2], without the seed."""
        super().__init__(shared, pages)
        self.expected = expected

    def run(self) -> Outcome:
        """Check what has been read."""
        return check([self])[0]

    def one_by_one(self) -> list["GdsRead"]:
        """A read of each page: one bad sector must not cost its neighbours."""
        pages = [slice(i, i + 1) for i in range(len(self.positions))]
        return [
            GdsRead(self.shared, self.run_of_pages.part(page), self.expected[page])
            for page in pages
        ]

    def settle(self, outcome: Outcome) -> None:
        """Make the pages final; a frame that failed its check holds nothing from now on."""
        medium = self.shared.medium
        if self.moved:
            self.observe(medium.payload, self.offset, self.moved)
        self.transfer.finish(self.positions, outcome)
        missed = outcome.statuses == Status.MISS
        if missed.any():
            generations = self.run_of_pages.generations[missed]
            medium.columns.fail(self.frames[missed], generations, outcome.reasons[missed])


def check(reads: Sequence[GdsRead]) -> list[Outcome]:
    """What became of the pages of ``reads``, all of one get, and who waits for them is told.

    One call digests all of them: on a GPU a launch costs more than a page.
    """
    shared = reads[0].shared
    wholes = [read.moved // shared.memory.row_nbytes for read in reads]
    slots = np.concatenate([read.slots[:n] for read, n in zip(reads, wholes, strict=True)])
    expected = np.concatenate([read.expected[:n] for read, n in zip(reads, wholes, strict=True)])
    found = shared.digest(shared.memory.array, slots) if len(slots) else expected
    right = (found == expected).all(axis=1)
    outcomes, landed = [], []
    for read, (first, end) in zip(reads, pairwise([0, *np.cumsum(wholes).tolist()]), strict=True):
        outcome = Outcome.all(len(read.positions), Status.MISS, Reason.TRUNCATED)
        outcome.statuses[: end - first] = np.where(right[first:end], Status.LANDED, Status.MISS)
        outcome.reasons[: end - first] = np.where(right[first:end], Reason.NONE, Reason.CORRUPT)
        wrong = np.flatnonzero(~right[first:end])
        foreign = wrong[shared.medium.columns.holds(found[first:end][wrong])]
        outcome.reasons[foreign] = Reason.FOREIGN
        outcomes.append(outcome)
        landed.append(read.positions[: end - first][right[first:end]])
    shared.transfer.tell(np.concatenate(landed))
    return outcomes


class GdsWrite(Operation):
    """Writes pages; once all are in the file, their headers, by the page cache."""

    __slots__ = ("_on_settled",)
    writes = True

    def __init__(
        self,
        shared: Shared,
        pages: PageRun,
        on_settled: "Callable[[GdsWrite, Outcome], None]",
    ) -> None:
        super().__init__(shared, pages)
        self._on_settled = on_settled

    @property
    def header_offset(self) -> int:
        """Where its first header lies."""
        return SUPERBLOCK_NBYTES + int(self.frames[0]) * HEADER_NBYTES

    @property
    def was_begun(self) -> bool:
        """Whether it was ever submitted."""
        return self.started_s > 0

    def run(self) -> Outcome:
        """Write the headers, which make the pages findable after a restart."""
        medium, pages = self.shared.medium, self.run_of_pages
        rows = header.encode(pages.records, pages.generations, medium.superblock)
        data, done = memoryview(rows.tobytes()), 0
        while done < len(data):
            done += os.pwrite(medium.headers.fd, data[done:], self.header_offset + done)
        return Outcome.all(len(self.positions), Status.LANDED)

    def settle(self, outcome: Outcome) -> None:
        """Hand the outcome to the put it is part of."""
        medium = self.shared.medium
        if self.moved:
            self.observe(medium.payload, self.offset, self.moved)
        if (outcome.statuses == Status.LANDED).all():
            self.observe(medium.headers, self.header_offset, len(self.positions) * HEADER_NBYTES)
        self._on_settled(self, outcome)

    def publish(self, fresh: NDArray[np.bool_]) -> None:
        """Let gets find the pages chosen by ``fresh``."""
        records = self.run_of_pages.records[fresh]
        generations = self.run_of_pages.generations[fresh]
        self.shared.medium.columns.fill(records["frame"], records, generations)


def reads_of(
    shared: Shared, pages: PageRun, expected: NDArray[np.uint64], *, limit: int
) -> list[GdsRead]:
    """Reads of at most ``limit`` pages; what the caller named first comes first."""
    order, bounds = merge_adjacent(pages.records["frame"], pages.records["slot"], limit=limit)
    reads = [
        GdsRead(shared, _chosen(pages, order[part]), expected[order[part]])
        for part in slices(bounds)
    ]
    return sorted(reads, key=lambda read: int(read.positions.min()))


def writes_of(
    shared: Shared,
    pages: PageRun,
    on_settled: Callable[[GdsWrite, Outcome], None],
    *,
    limit: int,
) -> list[GdsWrite]:
    """Writes of at most ``limit`` pages, in file order."""
    order, bounds = merge_adjacent(pages.records["frame"], pages.records["slot"], limit=limit)
    return [GdsWrite(shared, _chosen(pages, order[part]), on_settled) for part in slices(bounds)]


def _chosen(pages: PageRun, rows: NDArray[np.int64]) -> PageRun:
    return PageRun(pages.positions[rows], pages.records[rows], pages.generations[rows])
