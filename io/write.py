# SPDX-License-Identifier: Apache-2.0
"""Writing one extent of a slab, and making written extents durable.

``run`` is called in a worker thread and touches only the request's own arrays, the caller's
buffers and the files; ``settle`` is called on the loop and writes the columns.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bodocache.io import extents, header
from bodocache.io.backend import Status
from bodocache.io.header import HEADER_NBYTES, SUPERBLOCK_NBYTES
from bodocache.io.medium import Buffers, Medium, PageRun
from bodocache.io.posix import DataFile
from bodocache.io.transfer import BatchTransfer, Outcome


class WriteExtent:
    """Adjacent frames, written at once: payload, then headers."""

    __slots__ = (
        *("_buffers", "_generations", "_medium", "_on_settled", "_records"),
        *("positions", "transfer"),
    )
    writes = True

    def __init__(
        self,
        medium: Medium,
        transfer: BatchTransfer,
        pages: PageRun,
        buffers: Buffers,
        on_settled: Callable[["WriteExtent", Outcome], None],
    ) -> None:
        self.transfer = transfer
        self.positions, self._records, self._generations = pages
        self._medium = medium
        self._buffers = buffers
        self._on_settled = on_settled

    @property
    def frames(self) -> NDArray[np.int64]:
        """The frames it writes."""
        frames: NDArray[np.int64] = self._records["frame"]
        return frames

    def run(self) -> Outcome:
        """Write the payload whole, and only then the headers that make it findable."""
        self._write_payload()
        self._write_headers()
        return Outcome.all(len(self._records), Status.LANDED)

    def settle(self, outcome: Outcome) -> None:
        """Hand the outcome to the put it is part of."""
        self._on_settled(self, outcome)

    def publish(self, fresh: NDArray[np.bool_]) -> None:
        """Let gets find the pages chosen by ``fresh``."""
        records = self._records[fresh]
        self._medium.columns.fill(records["frame"], records, self._generations[fresh])

    def _write_payload(self) -> None:
        medium, superblock = self._medium, self._medium.superblock
        padding = memoryview(bytes(superblock.frame_nbytes - superblock.page_nbytes))
        slots = self._records["slot"]
        views = extents.buffers_of(self._buffers.memory, slots, superblock.page_nbytes, padding)
        offset = int(self._records["frame"][0]) * superblock.frame_nbytes
        self._write(medium.payload, views, offset, aligned=self._buffers.aligned)

    def _write_headers(self) -> None:
        # Buffered: a sector is written without reading its block, and the kernel writes the whole
        # 4 KiB block back, so that a device of 4 KiB sectors never tears a neighbour's header.
        rows = header.encode(self._records, self._generations, self._medium.superblock)
        offset = SUPERBLOCK_NBYTES + int(self._records["frame"][0]) * HEADER_NBYTES
        self._write(self._medium.headers, [memoryview(rows.tobytes())], offset, aligned=False)

    def _write(
        self, file: DataFile, views: list[memoryview], offset: int, *, aligned: bool
    ) -> None:
        since_s = self._medium.clock.now_s()
        wanted = sum(view.nbytes for view in views)
        written = file.write(views, offset, aligned=aligned)
        if written != wanted:
            raise OSError(f"{file.path}: {written} of {wanted} bytes written at {offset}")
        self._medium.observe(
            *(file, offset, written),
            pages=len(self._records),
            since_s=since_s,
            writes=True,
            batch=self.transfer.number,
        )


class Sync:
    """Makes written extents durable, once; a failure is final for all of them."""

    __slots__ = ("_extents", "_failures_before", "_medium", "positions", "transfer")
    writes = True

    def __init__(
        self,
        medium: Medium,
        transfer: BatchTransfer,
        written: list[WriteExtent],
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
