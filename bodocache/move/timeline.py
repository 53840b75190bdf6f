# SPDX-License-Identifier: Apache-2.0
"""What happened to loads, stores and links lately: a bounded ring of small tuples.

The oldest makes room for the newest; a full ring takes about 6 MB. bench/watch.py measures what a
record costs: that is why they are tuples, given by position (packed into 48 bytes each they cost
twice the time).
"""

from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

EVENTS_KEPT = 32_768

Fields = tuple[float, int, int, int, int, float, float, float]  # those of a Record


class Event(IntEnum):
    """What happened. In brackets: the columns of a record that say more."""

    LOAD = 0  # a load was asked for [pages of the prompt; value: its deadline, on the clock]
    PLANNED = 1  # pages are to come over a link [link, pages, nbytes]
    PREDICTED = 2  # when they will be there [link, value: finish; nbytes queued ahead, rate]
    LANDED = 3  # pages are in their slots and verified [detail: Tier they lay in, pages]
    COMMITTED = 4  # what the engine computes is fixed [pages that come]
    CUT = 5  # the rest of a load will not come [detail: Cut; pages that do]
    SETTLED = 6  # a load's result is final [pages delivered]
    RELEASED = 7  # nothing can write to a load's slots any more
    STORE = 8  # a store was asked for [pages]
    VISIBLE = 9  # its pages can be found [pages that are new]
    WRITTEN = 10  # each of them is on disk or refused there [pages on disk]
    MOVED = 11  # an op of a link is over [link, pages, value: when it began, nbytes]


class Cut(IntEnum):
    """Why the rest of a load does not come."""

    DEADLINE = 0  # it had not landed by the deadline
    CANCELLED = 1  # the engine cancelled or closed the load
    PREDICTED = 2  # it would have come later than the engine computes it
    FAILED = 3  # a page was lost on the way or found no room: those behind it are worth nothing


class Record(NamedTuple):
    """One event, as it is read back."""

    at_s: float  # on the cache's clock
    request: int  # number of the match; 0: nobody's
    event: int
    detail: int  # index of the link, a Tier or a Cut
    pages: int
    value: float
    nbytes: float
    rate: float  # of the link, bytes/s, as it was known then


class Note(Protocol):
    """Notes an event of one request: :meth:`Timeline.add` without the request."""

    def __call__(
        self,
        event: int,
        detail: int = 0,
        pages: int = 0,
        value: float = 0.0,
        nbytes: float = 0.0,
        rate: float = 0.0,
        /,
    ) -> None:
        """``event`` happened now."""
        ...


def no_note(*_: float) -> None:
    """Notes nothing."""


class Timeline:
    """The newest events, and how many of each kind there ever were. Any thread may add."""

    __slots__ = ("_append", "_now_s", "_ring", "counts", "links")

    def __init__(
        self, now_s: Callable[[], float], links: Sequence[str], kept: int = EVENTS_KEPT
    ) -> None:
        """``links``: their names; records name them by index."""
        self.links = tuple(links)
        self.counts = [0] * len(Event)
        self._now_s = now_s
        self._ring: deque[Fields] = deque(maxlen=kept)
        self._append = self._ring.append

    def add(  # by position: names would cost as much as all else
        self,
        request: int,
        event: int,
        detail: int = 0,
        pages: int = 0,
        value: float = 0.0,
        nbytes: float = 0.0,
        rate: float = 0.0,
    ) -> None:
        """``event`` (a plain int: looking up an enum's member costs a third more) happened now."""
        self._append((self._now_s(), request, event, detail, pages, value, nbytes, rate))
        self.counts[event] += 1

    @property
    def lost(self) -> int:
        """Records that made room for newer ones."""
        return sum(self.counts) - len(self._ring)

    def copied(self) -> deque[Fields]:
        """What is kept, oldest first, as it is kept."""
        return self._ring.copy()

    def records(self) -> list[Record]:
        """What is kept, oldest first."""
        return [Record(*fields) for fields in self._ring]
