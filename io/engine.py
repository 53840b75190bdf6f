# SPDX-License-Identifier: Apache-2.0
"""What every backend over a slab's directory shares: its frames, its columns, its budget.

How payloads travel is each one's own: slab.py by system calls, gds/backend.py by cuFile.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bodocache.errors import BackendError, CacheClosed
from bodocache.io import directory
from bodocache.io.backend import Entries, Extent, Usage
from bodocache.io.config import OpenMode, SlabConfig
from bodocache.io.medium import Medium
from bodocache.io.puts import FrameBudget
from bodocache.io.reservations import Reservations


class SlabEngine:
    """The part of :class:`bodocache.io.backend.Backend` that moves no payload."""

    def __init__(
        self, name: str, config: SlabConfig, slab: directory.OpenSlab, medium: Medium
    ) -> None:
        """``medium`` is over the files of ``slab``; whoever closes the engine closes them."""
        self._name = name
        self._config = config
        self._slab = slab
        self._medium = medium
        self._columns = slab.columns
        self._reservations = Reservations(slab.columns)
        self._budget = FrameBudget(slab.budget, config.written_nbytes)
        self._is_closed = False

    @property
    def name(self) -> str:
        """Its name in metrics and messages."""
        return self._name

    @property
    def page_nbytes(self) -> int:
        """Bytes of one page."""
        return self._config.page_nbytes

    @property
    def usage(self) -> Usage:
        """How full it is now."""
        total = self._slab.superblock.frame_count
        nbytes = 0 if self._is_closed else self._slab.payload.nbytes + self._slab.headers.nbytes
        return Usage(total - self._reservations.free, total, nbytes, self._budget.left)

    @property
    def observer(self) -> Callable[[Extent], None] | None:
        """Told of every completed extent, on the loop; it must be quick and not raise."""
        return self._medium.observer

    @observer.setter
    def observer(self, observer: Callable[[Extent], None] | None) -> None:
        self._medium.observer = observer

    def entries(self) -> Entries:
        """Every page that a get would find, each key once."""
        return self._columns.entries()

    def reserve(self, count: int, *, after: int) -> NDArray[np.int64]:
        """Take ``count`` free frames in as few runs as there are (frames.py)."""
        self._check_writer()
        return self._reservations.reserve(count, after=after)

    def check_reserved(self, frames: NDArray[np.int64], *, idle: bool = False) -> None:
        """See :meth:`bodocache.io.backend.Backend.check_reserved`."""
        self._check_writer()
        self._reservations.check(frames, idle=idle)

    def release(self, frames: NDArray[np.int64]) -> None:
        """Give frames back; a get of them is a miss from now on.

        Nothing is written: after a restart an old header whose payload is still whole brings its
        page back, which is harmless, since the bytes are right. A frame that is still being
        written becomes free when that has ended.
        """
        self._check_writer()
        self._reservations.release(frames)

    def _check_open(self) -> None:
        if self._is_closed:
            raise CacheClosed(f"{self._name} {self._config.directory} is closed")

    def _check_writer(self) -> None:
        self._check_open()
        if self._config.mode is not OpenMode.WRITER:
            raise BackendError(f"{self._name} {self._config.directory} is open for reading only")
