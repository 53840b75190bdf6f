# SPDX-License-Identifier: Apache-2.0
"""Whose frames are whose, from ``reserve`` to ``release``: what every backend of a slab shares.

All of it on the loop. A frame that is released while it is being written is free only once that
has ended, so that nobody else's page is written over.
"""

import numpy as np
from numpy.typing import NDArray

from bodocache.errors import LeaseError
from bodocache.io.columns import Columns
from bodocache.io.frames import FrameAllocator
from bodocache.pages import Reason


class Reservations:
    """Frames that are reserved, being written, or released meanwhile; and their generations."""

    __slots__ = ("_columns", "_frames", "_generation", "_released", "_writing")

    def __init__(self, columns: Columns) -> None:
        """Frames that hold a page are reserved from the start."""
        self._columns = columns
        self._frames = FrameAllocator(columns.reasons == Reason.NONE)
        self._generation = int(columns.generations.max(initial=0))
        self._writing = np.zeros(len(columns.reasons), bool)
        self._released = np.zeros(len(columns.reasons), bool)  # while still being written

    @property
    def free(self) -> int:
        """Frames nobody has reserved."""
        return self._frames.free

    def reserve(self, count: int, *, after: int) -> NDArray[np.int64]:
        """Take ``count`` free frames in as few runs as there are (frames.py)."""
        return self._frames.reserve(count, after=after)

    def release(self, frames: NDArray[np.int64]) -> None:
        """Give frames back; they hold nothing from now on.

        Raises:
            LeaseError: one is not reserved, or named twice; none is released.
        """
        self.check(frames, idle=False)
        self._columns.evict(frames)
        busy = self._writing[frames]
        self._frames.release(frames[~busy])
        self._released[frames[busy]] = True

    def check(self, frames: NDArray[np.int64], *, idle: bool) -> None:
        """Raise LeaseError unless each of ``frames`` is reserved, named once, and ``idle``."""
        self._frames.check_reserved(frames)
        if self._released[frames].any():
            raise LeaseError("slab: a frame was released while it was being written")
        if idle and self._writing[frames].any():
            raise LeaseError("slab: put to a frame that is still being written; await drained()")

    def begin_writing(self, frames: NDArray[np.int64]) -> None:
        """``frames`` are written to from now on, and no get may see half of it."""
        self._columns.invalidate(frames, Reason.NEVER_STORED)
        self._writing[frames] = True

    def end_writing(self, frames: NDArray[np.int64]) -> None:
        """Nothing writes to ``frames`` any more."""
        self._writing[frames] = False
        unwanted = frames[self._released[frames]]
        if len(unwanted):
            self._released[unwanted] = False
            self._columns.evict(unwanted)
            self._frames.release(unwanted)

    def next_generations(self, count: int) -> NDArray[np.uint64]:
        """Generations for ``count`` pages, above all before."""
        first = self._generation + 1
        self._generation += count
        return np.arange(first, first + count, dtype=np.uint64)
