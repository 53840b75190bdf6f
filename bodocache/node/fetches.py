# SPDX-License-Identifier: Apache-2.0
"""Brings pages to host slots for an engine's load, and keeps them there until it has copied them.

A fetch pins its pages and leases their host slots until it is ended and its reads have drained.
Reads wait for their turn in the disk's queue, by deadline, whatever engine they are for; a page
that several ask for is read once.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bodocache import digest
from bodocache.errors import BodoCacheError
from bodocache.io.backend import Status, Transfer
from bodocache.move.ghosts import Activity
from bodocache.move.link import Link
from bodocache.move.requests import note_planned
from bodocache.move.residency import KeyArray, Residency, RowArray, SlotArray
from bodocache.move.room import Need
from bodocache.move.tasks import Nursery
from bodocache.move.ticket import Priority
from bodocache.move.windows import Windows
from bodocache.node import messages
from bodocache.node.ledger import Entry, Ledger
from bodocache.node.reading import Fetch, Reading, Tell
from bodocache.pages import Reason, Tier

_log = logging.getLogger(__name__)

_NONE = np.empty(0, np.int64)


@dataclass(slots=True, eq=False)
class _Coming:
    """A page that is being read, and who else waits for it: fetch and position."""

    reading: Reading
    followers: list[tuple[Fetch, int]] = field(default_factory=list)


class Fetcher:
    """Begins fetches and ends them."""

    def __init__(
        self,
        residency: Residency,
        ledger: Ledger,
        *,
        link: Link,
        windows: Windows,
        nursery: Nursery,
        now_s: Callable[[], float],
    ) -> None:
        self.joined = 0  # pages that were on their way for another load, and not read again
        self._ledger = ledger
        self._residency = residency
        self._link = link
        self._windows = windows
        self._nursery = nursery
        self._now_s = now_s
        self._coming: dict[int, _Coming] = {}  # by row

    def begin(self, asked: messages.Fetch, entry: Entry, tell: Tell) -> Fetch:
        """Begin to bring pages of a chain to the host; its tenant's credits pay.

        What is there is told before this returns, the rest as it lands.
        """
        residency, now_s = self._residency, self._now_s()
        rows, *_ = residency.begin_load(asked.keys)
        fetch = Fetch(
            *(asked.load, rows, tell, entry, now_s + asked.due_s, now_s + asked.deadline_s),
            slots=np.full(len(rows), -1),
            note=partial(self._ledger.requests.timeline.add, entry.request.number),
        )
        end = min(asked.end, len(rows))
        wanted = np.arange(min(asked.first, end), end)
        here = residency.lies_in(rows[wanted], Tier.HOST)
        self._lease(fetch, wanted[here], residency.slots(rows[wanted[here]], Tier.HOST))
        tell(fetch.arrived(residency, wanted[here], Tier.HOST))
        vanished = np.arange(max(asked.first, len(rows)), len(asked.keys))
        if len(vanished):
            tell(fetch.lost(vanished, np.full(len(vanished), Reason.EVICTED)))
        if not here.all():
            self._read(fetch, self._without_coming(fetch, wanted[~here]))
        return fetch

    def end(self, fetch: Fetch, bad: RowArray = _NONE) -> None:
        """The engine needs its slots no more; pages ``bad`` had other bytes than were stored.

        What it says is not believed: the bytes are looked at here before a page is dropped.
        """
        if fetch.ended:
            return
        fetch.ended = True
        self._ledger.end(fetch.entry, bad)
        self._drop_corrupt(fetch, bad[(bad >= 0) & (bad < len(fetch.rows))])
        for reading in list(fetch.readings):
            reading.stop()
        if not fetch.readings and not fetch.is_over.is_set():  # one that never began ended it
            self._let_go(fetch)

    def _lease(self, fetch: Fetch, positions: RowArray, slots: SlotArray) -> None:
        self._residency.host.hold(slots)
        fetch.slots[positions] = slots

    def _let_go(self, fetch: Fetch) -> None:
        residency = self._residency
        residency.host.drop(fetch.slots[fetch.slots >= 0])
        residency.give_back(np.array(fetch.spare, np.int64), Tier.HOST)
        residency.unpin(fetch.rows)
        fetch.is_over.set()

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

    def _read(self, fetch: Fetch, positions: RowArray) -> None:
        residency, backend = self._residency, self._residency.backend
        assert backend is not None, "a page lies on disk only where there is a disk tier"
        most = positions[: self._most_read(fetch, len(positions))]
        need = Need(Activity.LOAD, fetch.tenant)
        slots = residency.take_for(Tier.HOST, fetch.rows[most], need)
        without = positions[len(slots) :]
        if len(without):
            fetch.tell(fetch.lost(without, np.full(len(without), Reason.NO_ROOM)))
        if not len(slots):
            return
        positions = positions[: len(slots)]
        self._lease(fetch, positions, slots)
        fetch.spare += slots.tolist()
        reading = Reading(self, fetch, positions, begun_s=self._now_s())
        ticket = self._link.queue.enter(
            reading, Priority.LOAD, deadline_s=fetch.due_s, payers=(fetch.tenant,)
        )
        if ticket is None:
            fetch.tell(fetch.lost(positions, np.full(len(positions), Reason.NO_ROOM)))
            return
        fetch.readings.append(reading)
        reading.ticket = ticket
        prediction = self._link.predict_ticket(ticket)
        note_planned(fetch.note, self._link, ticket, len(positions), prediction)
        for row in fetch.rows[positions].tolist():
            self._coming[row] = _Coming(reading)
        self._link.begin(reading.begun_s)
        self._windows.add(reading)
        self._link.queue.start(ticket)
        self._windows.wait()

    def _most_read(self, fetch: Fetch, pages: int) -> int:
        """How many of ``pages`` may take host slots and wait for the disk."""
        memory_nbytes = self._residency.host.num_pages * self.page_nbytes
        room = self._link.queue.room_nbytes((fetch.tenant,), memory_nbytes)
        return int(min(pages, room // self.page_nbytes))

    def read_chunk(self, reading: Reading, positions: RowArray) -> bool:
        """Begin to read ``positions``; whether it was begun."""
        residency, backend, fetch = self._residency, self._residency.backend, reading.fetch
        assert backend is not None, "a page lies on disk only where there is a disk tier"
        try:
            batch = residency.describe(fetch.rows[positions], fetch.slots[positions])
            transfer = backend.get(batch, residency.host.rows, deadline_s=fetch.deadline_s)
        except Exception as error:  # noqa: BLE001 -- what cannot be read is a miss
            expected = isinstance(error, BodoCacheError | OSError)
            _log.warning("disk tier: %s", error, exc_info=None if expected else error)
            self._tell_lost(fetch, positions, np.full(len(positions), Reason.IO_ERROR))
            return False
        reading.transfers.append(transfer)
        reading.under_way += len(positions)
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

    async def _follow(self, reading: Reading, positions: RowArray, transfer: Transfer) -> None:
        """Tell of pages as they become final, until nothing can touch the slots any more."""
        fetch, seen, more, landed = reading.fetch, np.zeros(len(positions), np.bool_), True, 0
        try:
            while more:
                more = await transfer.progress()
                fresh = np.flatnonzero((transfer.statuses != Status.PENDING) & ~seen)
                seen[fresh] = True
                reading.under_way -= len(fresh)
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
            reading.under_way -= int(np.count_nonzero(~seen))
            reading.transfers.remove(transfer)
            reading.landed += landed
            self._link.moved(self._now_s(), landed * self.page_nbytes)
            assert reading.ticket is not None, "it has one before it begins"
            self._link.queue.done(reading.ticket, len(positions) * self.page_nbytes)
            self.end_if_over(reading)

    def end_if_over(self, reading: Reading) -> None:
        """Nothing of it is under way, or will be."""
        fetch = reading.fetch
        if reading.transfers or len(reading.left) or reading not in fetch.readings:
            return
        fetch.readings.remove(reading)
        assert reading.ticket is not None, "it has one before it begins"
        self._link.queue.leave(reading.ticket)
        nbytes = reading.landed * self.page_nbytes
        self._link.end(self._now_s(), begun_s=reading.begun_s, pages=reading.landed, nbytes=nbytes)
        if fetch.ended and not fetch.readings:
            self._let_go(fetch)

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
        for other, theirs in self._followers(rows):
            self._lease(other, theirs, residency.slots(other.rows[theirs], Tier.HOST))
            other.tell(other.arrived(residency, theirs, Tier.DISK))

    def _lose(
        self, fetch: Fetch, positions: RowArray, reasons: RowArray, is_late: NDArray[np.bool_]
    ) -> None:
        """Copies that failed are dropped; those of a directory that is out come again with it."""
        residency, rows = self._residency, fetch.rows[positions]
        gone = ~is_late & (reasons != Reason.UNAVAILABLE) & residency.lies_in(rows, Tier.DISK)
        for reason in np.unique(reasons[gone]):
            residency.drop(rows[gone & (reasons == reason)], Tier.DISK, Reason(reason))
        self._tell_lost(fetch, positions[~is_late], reasons[~is_late])
        if is_late.any() and not fetch.ended:
            fetch.tell(fetch.lost(positions[is_late], reasons[is_late]))
        self._read_for(self._followers(rows[is_late]))

    def _tell_lost(self, fetch: Fetch, positions: RowArray, reasons: RowArray) -> None:
        """The pages at ``positions`` come for nobody."""
        if not len(positions):
            return
        if not fetch.ended:
            fetch.tell(fetch.lost(positions, reasons))
        rows = fetch.rows[positions]
        why = dict(zip(rows.tolist(), reasons.tolist(), strict=True))
        for other, theirs in self._followers(rows):
            told = [why[row] for row in other.rows[theirs].tolist()]
            other.tell(other.lost(theirs, np.array(told)))

    # One read for all who want a page

    def _without_coming(self, fetch: Fetch, positions: RowArray) -> RowArray:
        """The positions that nobody reads already; of the others ``fetch`` is told as they land."""
        mine = np.ones(len(positions), np.bool_)
        for i, position in enumerate(positions.tolist()):
            coming = self._coming.get(int(fetch.rows[position]))
            if coming is None:
                continue
            mine[i] = False
            self.joined += 1
            coming.followers.append((fetch, position))
            ticket = coming.reading.ticket
            if ticket is not None and fetch.tenant not in ticket.payers:
                ticket.payers.append(fetch.tenant)
            if ticket is not None and fetch.due_s < ticket.due_s:
                self._link.queue.start(ticket, fetch.due_s)  # as urgent as the most urgent asker
        return positions[mine]

    def _followers(self, rows: RowArray) -> list[tuple[Fetch, RowArray]]:
        """Who waits for ``rows``, which nobody reads any more, and their positions there."""
        found: dict[int, tuple[Fetch, list[int]]] = {}
        for row in rows.tolist():
            coming = self._coming.pop(row, None)
            for fetch, position in () if coming is None else coming.followers:
                if not fetch.ended:
                    found.setdefault(id(fetch), (fetch, []))[1].append(position)
        return [(fetch, np.array(it, np.int64)) for fetch, it in found.values()]

    def _read_for(self, followers: list[tuple[Fetch, RowArray]]) -> None:
        """Whoever was to read their pages does not: they do."""
        for fetch, positions in followers:
            self._read(fetch, self._without_coming(fetch, positions))

    def hand_over(self, reading: Reading, positions: RowArray) -> None:
        """``reading`` will not read ``positions``: those who waited for them do."""
        self._read_for(self._followers(reading.fetch.rows[positions]))


def _keys(residency: Residency, rows: RowArray) -> KeyArray:
    return residency.table.keys[rows]
