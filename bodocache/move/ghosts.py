# SPDX-License-Identifier: Apache-2.0
"""Pages that lie nowhere any more but whose rows are kept a while: to say why they are missing.

A ring of rows: the oldest ghost makes room for the newest. A row that comes back is taken out, but
how it left the last time is remembered.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from bodocache.pages import NOWHERE

RowArray = NDArray[np.int64]

GHOSTS_KEPT = 262_144  # about 50 MB


class Activity(IntEnum):
    """What needed the room that a page left."""

    NOBODY = 0  # it left for another reason
    LOAD = 1
    STORE = 2
    WRITE = 3  # to disk
    ACQUIRE = 4  # an engine took slots to compute in
    HINT = 5  # a prefetch or a demotion that a caller asked for


# How a page left its last tier.
DEPARTURE = np.dtype(
    [
        ("left_s", "<f8"),  # on the cache's clock; NaN: never, that anybody remembers
        ("tenant", "<u4"),  # who needed the room
        ("tier", "i1"),  # NOWHERE: it was in use until its last copy was gone
        ("activity", "u1"),  # Activity
    ],
    align=True,
)


class Ghosts:
    """The rows of up to ``kept`` pages."""

    __slots__ = ("_departures", "_made", "_places", "_ring")

    def __init__(self, rows: int, kept: int = GHOSTS_KEPT) -> None:
        """``rows``: of the page table; see :meth:`grow_to`."""
        self._ring = np.full(kept, NOWHERE)
        self._places = np.full(rows, NOWHERE)  # in the ring, by row
        self._departures = _never(rows)  # by row
        self._made = 0

    def grow_to(self, rows: int) -> None:
        """The page table has ``rows`` rows now."""
        more = max(0, rows - len(self._places))
        self._places = np.concatenate((self._places, np.full(more, NOWHERE)))
        self._departures = np.concatenate((self._departures, _never(more)))

    def note(self, rows: RowArray, departure: tuple[float, int, int, int]) -> None:
        """``rows`` leave their last tier now: the fields of a DEPARTURE, in its order."""
        self._departures[rows] = departure

    def departures(self, rows: RowArray) -> NDArray[np.void]:
        """How each page left the last time (DEPARTURE), though it may have come back since."""
        return self._departures[rows]

    def are_ghosts(self, rows: RowArray) -> NDArray[np.bool_]:
        """Whether each of ``rows`` is a ghost now."""
        there: NDArray[np.bool_] = self._places[rows] != NOWHERE
        return there

    def forget(self, rows: RowArray) -> None:
        """The table gives ``rows`` to other pages."""
        self._departures[rows] = _never(1)

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


def _never(rows: int) -> NDArray[np.void]:
    departures = np.zeros(rows, DEPARTURE)
    departures["left_s"] = np.nan
    departures["tier"] = NOWHERE
    return departures
