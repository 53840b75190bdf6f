# SPDX-License-Identifier: Apache-2.0
"""Brings pages to host slots for an engine's load, and keeps them there until it has copied them.

A fetch pins its pages and leases their host slots until it is ended and its reads have drained.
Reads wait for their turn in the disk's queue, by deadline, whatever engine they are for.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from bodocache import digest
from bodocache.errors import BodoCacheError
from bodocache.io.backend import Status, Transfer
from bodocache.move.link import Link
from bodocache.move.queue import Priority, Ticket
from bodocache.move.residency import KeyArray, Residency, RowArray, SlotArray
from bodocache.move.tasks import Nursery
from bodocache.node.messages import Arrived
from bodocache.pages import Reason, Tier
from bodocache.plan.records import DEMAND, OpKind

_log = logging.getLogger(__name__)

Tell = Callable[[Arrived], None]

_NONE = np.empty(0, np.int64)


@dataclass(slots=True, eq=False)
class Fetch:
    """What one load of an engine holds in host memory."""

    number: int
    rows: RowArray  # pinned
    tell: Tell
    slots: SlotArray  # by position; -1 where none is leased
    spare: list[int] = field(default_factory=list)  # leased slots that hold no page of the cache
    reading: "_Reading | None" = None
    ended: bool = False

    def arrived(self, residency: Residency, positions: RowArray, tier: Tier) -> Arrived:
        """The message that pages at ``positions`` lie in their slots."""
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


class Fetcher:
    """Begins fetches and ends them."""

    def __init__(
        self, residency: Residency, *, link: Link, nursery: Nursery, now_s: Callable[[], float]
    ) -> None:
        self._residency = residency
        self._link = link
        self._nursery = nursery
        self._now_s = now_s

    def begin(
        self, number: int, keys: KeyArray, first: int, deadline_s: float, tell: Tell
    ) -> Fetch:
        """Begin to bring pages ``first`` and after of the chain ``keys`` to the host.

        What is there is told before this returns, the rest as it lands.
        """
        residency = self._residency
        rows, *_ = residency.begin_load(keys)
        fetch = Fetch(number, rows, tell, np.full(len(rows), -1))
        wanted = np.arange(min(first, len(rows)), len(rows))
        here = residency.lies_in(rows[wanted], Tier.HOST)
        self._lease(fetch, wanted[here], residency.slots(rows[wanted[here]], Tier.HOST))
        tell(fetch.arrived(residency, wanted[here], Tier.HOST))
        vanished = np.arange(max(first, len(rows)), len(keys))
        if len(vanished):
            tell(fetch.lost(vanished, np.full(len(vanished), Reason.EVICTED)))
        if not here.all():
            self._read(fetch, wanted[~here], self._now_s() + deadline_s)
        return fetch

    def end(self, fetch: Fetch, bad: RowArray = _NONE) -> None:
        """The engine needs its slots no more; pages ``bad`` had other bytes than were stored.

        What it says is not believed: the bytes are looked at here before a page is dropped.
        """
        if fetch.ended:
            return
        fetch.ended = True
        self._drop_corrupt(fetch, bad[(bad >= 0) & (bad < len(fetch.rows))])
        if fetch.reading is not None:
            fetch.reading.stop()
        if fetch.reading is None:
            self._let_go(fetch)

    def _lease(self, fetch: Fetch, positions: RowArray, slots: SlotArray) -> None:
        self._residency.host.hold(slots)
        fetch.slots[positions] = slots

    def _let_go(self, fetch: Fetch) -> None:
        residency = self._residency
        residency.host.drop(fetch.slots[fetch.slots >= 0])
        residency.give_back(np.array(fetch.spare, np.int64), Tier.HOST)
        residency.unpin(fetch.rows)

    def _drop_corrupt(self, fetch: Fetch, bad: RowArray) -> None:
        residency = self._residency
        bad = bad[fetch.slots[bad] >= 0]
        rows, slots = fetch.rows[bad], fetch.slots[bad]
        found = digest.seeded(
            digest.digest_rows(residency.host.rows, slots), _keys(residency, rows)
        )
        wrong = (found != residency.table.digests[rows]).any(axis=1)
        there = residency.slots(rows, Tier.HOST) == slots
        if (wrong & there).any():
            residency.drop(rows[wrong & there], Tier.HOST, Reason.CORRUPT)

    # Disk to host

    def _read(self, fetch: Fetch, positions: RowArray, deadline_s: float) -> None:
        residency, backend = self._residency, self._residency.backend
        assert backend is not None, "a page lies on disk only where there is a disk tier"
        slots = residency.take_most(Tier.HOST, len(positions))
        without = positions[len(slots) :]
        if len(without):
            fetch.tell(fetch.lost(without, np.full(len(without), Reason.NO_ROOM)))
        if not len(slots):
            return
        positions = self._in_order(fetch, positions[: len(slots)], deadline_s)
        self._lease(fetch, positions, slots)
        fetch.spare = slots.tolist()
        reading = _Reading(self, fetch, positions, deadline_s)
        ticket = self._link.queue.enter(reading, Priority.LOAD, deadline_s=deadline_s)
        if ticket is None:
            fetch.tell(fetch.lost(positions, np.full(len(positions), Reason.NO_ROOM)))
            return
        fetch.reading, reading.ticket = reading, ticket
        self._link.begin(reading.begun_s)
        self._link.queue.start(ticket)

    def read_chunk(self, reading: "_Reading", positions: RowArray) -> bool:
        """Begin to read ``positions``; whether it was begun."""
        residency, backend, fetch = self._residency, self._residency.backend, reading.fetch
        assert backend is not None, "a page lies on disk only where there is a disk tier"
        try:
            batch = residency.describe(fetch.rows[positions], fetch.slots[positions])
            transfer = backend.get(batch, residency.host.rows, deadline_s=reading.deadline_s)
        except Exception as error:  # noqa: BLE001 -- what cannot be read is a miss
            expected = isinstance(error, BodoCacheError | OSError)
            _log.warning("disk tier: %s", error, exc_info=None if expected else error)
            fetch.tell(fetch.lost(positions, np.full(len(positions), Reason.IO_ERROR)))
            return False
        reading.transfers.append(transfer)
        self._nursery.spawn(self._follow(reading, positions, transfer))
        return True

    @property
    def page_nbytes(self) -> int:
        """Bytes of one page."""
        return self._residency.host.layout.page_nbytes

    @property
    def chunk_nbytes(self) -> int:
        """What the disk moves before it looks for something more urgent."""
        return self._link.queue.chunk_nbytes

    def _in_order(self, fetch: Fetch, positions: RowArray, deadline_s: float) -> RowArray:
        """The positions in the order in which the planner would have them read."""
        demands = np.zeros(len(positions), DEMAND)
        demands["page"] = fetch.rows[positions]
        demands["kind"] = OpKind.LOAD
        demands["deadline_s"] = deadline_s
        demands["arrival_s"] = self._now_s()
        return positions[self._residency.plan_load(demands).demands]

    async def _follow(self, reading: "_Reading", positions: RowArray, transfer: Transfer) -> None:
        """Tell of pages as they become final, until nothing can touch the slots any more."""
        fetch, seen, more, landed = reading.fetch, np.zeros(len(positions), np.bool_), True, 0
        try:
            while more:
                more = await transfer.progress()
                fresh = np.flatnonzero((transfer.statuses != Status.PENDING) & ~seen)
                seen[fresh] = True
                good = transfer.statuses[fresh] == Status.LANDED
                self._keep(fetch, positions[fresh[good]])
                landed += int(good.sum())
                if not good.all():
                    bad = fresh[~good]
                    is_late = transfer.statuses[bad] == Status.LATE
                    self._lose(fetch, positions[bad], transfer.reasons[bad], is_late)
        finally:
            transfer.abandon()
            await transfer.drained()
            reading.transfers.remove(transfer)
            reading.landed += landed
            self._link.moved(self._now_s(), landed * self.page_nbytes)
            assert reading.ticket is not None, "it has one before it begins"
            self._link.queue.done(reading.ticket, len(positions) * self.page_nbytes)
            self.end_if_over(reading)

    def end_if_over(self, reading: "_Reading") -> None:
        """Nothing of it is under way, or will be."""
        fetch = reading.fetch
        if reading.transfers or len(reading.left) or fetch.reading is not reading:
            return
        fetch.reading = None
        assert reading.ticket is not None, "it has one before it begins"
        self._link.queue.leave(reading.ticket)
        nbytes = reading.landed * self.page_nbytes
        self._link.end(self._now_s(), begun_s=reading.begun_s, pages=reading.landed, nbytes=nbytes)
        if fetch.ended:
            self._let_go(fetch)

    @property
    def now_s(self) -> Callable[[], float]:
        """The clock."""
        return self._now_s

    def _keep(self, fetch: Fetch, positions: RowArray) -> None:
        """Pages that landed stay on the host, unless another fetch brought them first."""
        residency = self._residency
        rows, slots = fetch.rows[positions], fetch.slots[positions]
        fresh = ~residency.lies_in(rows, Tier.HOST)
        residency.place(rows[fresh], Tier.HOST, slots[fresh])
        kept = set(slots[fresh].tolist())
        fetch.spare = [slot for slot in fetch.spare if slot not in kept]
        if len(positions) and not fetch.ended:
            fetch.tell(fetch.arrived(residency, positions, Tier.DISK))

    def _lose(
        self, fetch: Fetch, positions: RowArray, reasons: RowArray, is_late: RowArray
    ) -> None:
        """Copies that failed are dropped; those of a directory that is out come again with it."""
        residency, rows = self._residency, fetch.rows[positions]
        gone = ~is_late & (reasons != Reason.UNAVAILABLE) & residency.lies_in(rows, Tier.DISK)
        for reason in np.unique(reasons[gone]):
            residency.drop(rows[gone & (reasons == reason)], Tier.DISK, Reason(reason))
        if not fetch.ended:
            fetch.tell(fetch.lost(positions, reasons))


class _Reading:
    """What a fetch reads, chunk by chunk. Implements :class:`bodocache.move.queue.Work`."""

    def __init__(
        self, fetcher: Fetcher, fetch: Fetch, positions: RowArray, deadline_s: float
    ) -> None:
        self.fetch = fetch
        self.deadline_s = deadline_s
        self.begun_s = fetcher.now_s()
        self.left = positions  # not begun
        self.transfers: list[Transfer] = []
        self.landed = 0
        self.ticket: Ticket | None = None
        self._fetcher = fetcher

    @property
    def left_nbytes(self) -> int:
        """What has not been begun."""
        return len(self.left) * self._fetcher.page_nbytes

    def begin(self, nbytes: int) -> int:
        """Begin to read a chunk: no more than one, so that something more urgent never waits."""
        nbytes = min(nbytes, self._fetcher.chunk_nbytes)
        pages = max(1, nbytes // self._fetcher.page_nbytes)
        while len(self.left):
            chunk, self.left = self.left[:pages], self.left[pages:]
            if self._fetcher.read_chunk(self, chunk):
                return len(chunk) * self._fetcher.page_nbytes
        self._fetcher.end_if_over(self)
        return 0

    def withdraw(self) -> None:
        """What has begun is one chunk: it goes on."""

    def stop(self) -> None:
        """Begin nothing more."""
        self.left = self.left[:0]
        for transfer in self.transfers:
            transfer.abandon()
        self._fetcher.end_if_over(self)


def _keys(residency: Residency, rows: RowArray) -> KeyArray:
    return residency.table.keys[rows]
