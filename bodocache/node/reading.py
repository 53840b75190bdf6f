# SPDX-License-Identifier: Apache-2.0
"""What one load of an engine holds in host memory, and what it reads from disk, chunk by chunk."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from bodocache.move.residency import Residency, RowArray, SlotArray
from bodocache.move.timeline import Event, Note
from bodocache.node.ledger import Entry
from bodocache.node.messages import Arrived
from bodocache.pages import Tier

if TYPE_CHECKING:
    from bodocache.io.backend import Transfer
    from bodocache.move.ticket import Ticket

Tell = Callable[[Arrived], None]

_NONE = np.empty(0, np.int64)
_LANDED = int(Event.LANDED)


@dataclass(slots=True, eq=False)
class Fetch:
    """What one load of an engine holds in host memory."""

    number: int
    rows: RowArray  # pinned
    tell: Tell
    entry: Entry
    due_s: float  # when it is needed
    deadline_s: float  # and is worth nothing any more
    slots: SlotArray  # by position; -1 where none is leased
    note: Note
    spare: list[int] = field(default_factory=list)  # leased slots that hold no page of the cache
    readings: list["Reading"] = field(default_factory=list)  # under way
    ended: bool = False
    is_over: asyncio.Event = field(default_factory=asyncio.Event)  # it holds nothing any more

    @property
    def tenant(self) -> int:
        """Who loads."""
        return self.entry.request.tenant

    def arrived(self, residency: Residency, positions: RowArray, tier: Tier) -> Arrived:
        """The message that pages at ``positions`` lie in their slots."""
        if len(positions):
            self.note(_LANDED, tier, len(positions))
        digests = residency.table.digests[self.rows[positions]]
        tiers = np.full(len(positions), int(tier), np.uint8)
        none = np.empty(0, np.uint8)
        return Arrived(self.number, positions, self.slots[positions], tiers, digests, _NONE, none)

    def lost(self, positions: RowArray, reasons: RowArray) -> Arrived:
        """The message that pages at ``positions`` will not come."""
        none = np.empty(0, np.uint8)
        return Arrived(
            *(self.number, _NONE, _NONE, none, np.empty((0, 2), np.uint64)),
            *(positions, reasons.astype(np.uint8)),
        )


class Reader(Protocol):
    """Who begins chunks and hears how they end."""

    @property
    def page_nbytes(self) -> int:
        """Bytes of one page."""
        ...

    @property
    def chunk_nbytes(self) -> int:
        """What the disk moves before it looks for something more urgent."""
        ...

    def read_chunk(self, reading: "Reading", positions: RowArray) -> bool:
        """Begin to read ``positions``; whether it was begun."""
        ...

    def hand_over(self, reading: "Reading", positions: RowArray) -> None:
        """``reading`` will not read ``positions``."""
        ...

    def end_if_over(self, reading: "Reading") -> None:
        """Nothing of it is under way, or will be."""
        ...


class Reading:
    """Reads for one fetch. Implements ``queue.Work`` and ``known.Waiting``."""

    terms = None  # its engine decides it

    def __init__(
        self, reader: Reader, fetch: Fetch, positions: RowArray, *, begun_s: float
    ) -> None:
        self.fetch = fetch
        self.begun_s = begun_s
        self.before_first: Callable[[], None] | None = None  # has it planned
        self.left = positions  # not begun, in the order in which they should start
        self.transfers: list[Transfer] = []
        self.under_way = self.landed = 0  # pages
        self.ticket: Ticket | None = None
        self._reader = reader

    @property
    def left_nbytes(self) -> int:
        """What has not arrived."""
        return (len(self.left) + self.under_way) * self._reader.page_nbytes

    def begin(self, nbytes: int) -> int:
        """Begin to read a chunk: no more than one, so that something more urgent never waits."""
        if self.before_first is not None:
            self.before_first()
        nbytes = min(nbytes, self._reader.chunk_nbytes)
        pages = max(1, nbytes // self._reader.page_nbytes)
        while len(self.left):
            chunk, self.left = self.left[:pages], self.left[pages:]
            if self._reader.read_chunk(self, chunk):
                return len(chunk) * self._reader.page_nbytes
        self._reader.end_if_over(self)
        return 0

    def withdraw(self) -> None:
        """What has begun is one chunk: it goes on."""

    def stop(self) -> None:
        """Begin nothing more."""
        dropped, self.left = self.left, self.left[:0]
        self._reader.hand_over(self, dropped)
        for transfer in self.transfers:
            transfer.abandon()
        self._reader.end_if_over(self)

    # As a window sees it (move/known.py)

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is wanted any more."""
        return self.fetch.ended

    @property
    def rows(self) -> RowArray:
        """Its pages."""
        return self.fetch.rows[self.left]

    @property
    def tenant(self) -> int:
        """Who pays."""
        return self.fetch.tenant

    @property
    def due_s(self) -> float:
        """When the first who wants it needs it."""
        return self.fetch.due_s if self.ticket is None else self.ticket.due_s

    def arrange(self, order: NDArray[np.int64]) -> None:
        """Let page ``order[i]`` be the i-th; nothing has begun."""
        self.left = self.left[order]

    def keep(self, pages: int) -> None:
        """Its engine decides: it hears of what others have queued with its matches."""
