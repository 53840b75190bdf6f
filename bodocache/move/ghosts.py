# SPDX-License-Identifier: Apache-2.0
"""Pages that lie nowhere any more but whose rows are kept a while: to say why they are missing.

A ring of rows: the oldest ghost makes room for the newest. A row that comes back is taken out.
"""

import numpy as np
from numpy.typing import NDArray

from bodocache.pages import NOWHERE

RowArray = NDArray[np.int64]

GHOSTS_KEPT = 262_144  # about 50 MB


class Ghosts:
    """The rows of up to ``kept`` pages."""

    __slots__ = ("_made", "_places", "_ring")

    def __init__(self, rows: int, kept: int = GHOSTS_KEPT) -> None:
        """``rows``: of the page table; see :meth:`grow_to`."""
        self._ring = np.full(kept, NOWHERE)
        self._places = np.full(rows, NOWHERE)  # in the ring, by row
        self._made = 0

    def grow_to(self, rows: int) -> None:
        """The page table has ``rows`` rows now."""
        more = np.full(max(0, rows - len(self._places)), NOWHERE)
        self._places = np.concatenate((self._places, more))

    def add(self, rows: RowArray) -> RowArray:
        """``rows`` are ghosts from now on; return those that are none any more to make room."""
        places = (self._made + np.arange(len(rows))) % len(self._ring)
        self._made += len(rows)
        oldest: RowArray = self._ring[places]
        oldest = oldest[(oldest != NOWHERE) & (self._places[oldest] == places)]
        self._ring[places] = rows
        self._places[rows] = places
        return oldest

    def remove(self, rows: RowArray) -> None:
        """``rows`` lie somewhere again, or will."""
        self._places[rows] = NOWHERE
