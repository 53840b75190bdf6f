# SPDX-License-Identifier: Apache-2.0
"""From disk to host memory, and on to the device from the very threads that read.

A part that is alone goes in one call to the backend; beside others it goes chunk by chunk, as the
link's queue says. What was called for and has not reached the device can be withdrawn and waits
again. Host slots stay leased until the reads have drained, wanted or not.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bodocache import digest
from bodocache.errors import BodoCacheError
from bodocache.io.backend import NativeCall, Status, Transfer
from bodocache.kernels.landing import Landing  # noqa: TC001 -- as the others
from bodocache.move.copies import Copies
from bodocache.move.land import Lander
from bodocache.move.part import Part, RowArray
from bodocache.move.residency import Residency
from bodocache.move.tasks import Nursery
from bodocache.pages import Reason, Tier

_log = logging.getLogger(__name__)
_LANDED, _LATE = int(Status.LANDED), int(Status.LATE)


class SendOn:
    """Sends pages on to the device as they land: natively between CPU pools. Any thread."""

    __slots__ = ("_chosen", "_copies", "_landing", "_now_s", "_part", "native", "verified")

    def __init__(
        self, part: Part, chosen: RowArray, copies: Copies, now_s: Callable[[], float]
    ) -> None:
        self.verified = np.zeros(len(chosen), np.bool_)
        self.native: NativeCall | None = None
        self._part = part
        self._chosen = chosen
        self._copies = copies
        self._now_s = now_s
        self._landing: Landing | None = None
        if copies.pad is not None:
            rows, slots = part.host_slots[chosen], part.device_slots[chosen]
            keys, digests = part.keys[chosen], part.digests[chosen]
            self._landing = copies.pad.expect(rows, slots, keys, digests, self.verified)
            self.native = NativeCall(self._landing.function, self._landing.argument)

    def __call__(self, positions: NDArray[np.int64]) -> None:
        """Send them in Python."""
        part, chosen = self._part, self._chosen[positions]
        raw = self._copies.to_device(part.host_slots[chosen], part.device_slots[chosen])
        found = digest.seeded(raw, part.keys[chosen])
        self.verified[positions] = (found == part.digests[chosen]).all(axis=1)
        part.landed_s = max(part.landed_s, self._now_s())

    def take_time(self) -> None:
        """Let the part know when native threads had sent the last page. On the loop."""
        if self._landing is not None:
            self._part.landed_s = max(self._part.landed_s, self._landing.landed_s)


@dataclass(slots=True, eq=False)
class _Flight:
    """What one call to the backend brings."""

    chosen: RowArray  # of the part's pages
    sender: SendOn
    transfer: Transfer
    nbytes: int
    called_s: float
    was_withdrawn: bool = False
    counts: bool = True  # as in flight


class Reads:
    """Reads one part. Implements :class:`bodocache.move.queue.Work` and ``load.Source``."""

    def __init__(
        self,
        part: Part,
        *,
        residency: Residency,
        copies: Copies,
        lander: Lander,
        nursery: Nursery,
        deadline_s: float,
        now_s: Callable[[], float],
        on_progress: Callable[[Part], None],
    ) -> None:
        self.part = part
        self._residency = residency
        self._copies = copies
        self._lander = lander
        self._nursery = nursery
        self._deadline_s = deadline_s
        self._now_s = now_s
        self._on_progress = on_progress
        self._flights: list[_Flight] = []

    @property
    def left_nbytes(self) -> int:
        """What has not arrived."""
        return self.part.left_nbytes

    def begin(self, nbytes: int) -> int:
        """Call for the next pages."""
        part = self.part
        chosen = part.take(max(1, nbytes // part.page_nbytes))
        if not len(chosen):
            self._end_if_over()
            return 0
        try:
            flight = self._call(chosen)
        except Exception as error:  # noqa: BLE001 -- what cannot be read is a miss
            expected = isinstance(error, BodoCacheError | OSError)
            _log.warning("disk tier: %s", error, exc_info=None if expected else error)
            part.under_way -= len(chosen)
            self._lander.break_off(part)
            self._end_if_over()
            return 0
        self._flights.append(flight)
        self._nursery.spawn(self._follow(flight))
        return flight.nbytes

    def withdraw(self) -> None:
        """Let what the device has not begun wait again."""
        for flight in self._flights:
            flight.was_withdrawn = True
            flight.transfer.abandon()

    def trim(self) -> None:
        """Call off what the load no longer wants."""
        part = self.part
        part.drop_unwanted()
        for flight in list(self._flights):
            if part.load.wanted <= part.positions[flight.chosen].max():
                flight.was_withdrawn = True
                flight.transfer.abandon()
                if not part.load.wanted:
                    self._no_longer_counts(flight)
        self._end_if_over()

    def hurry(self) -> None:
        """Pages come whole: the commit changes nothing."""

    def _call(self, chosen: RowArray) -> _Flight:
        residency, part = self._residency, self.part
        assert residency.backend is not None, "a page lies on disk only where there is a disk tier"
        sender, called_s = SendOn(part, chosen, self._copies, self._now_s), self._now_s()
        transfer = residency.backend.get(
            residency.describe(part.rows[chosen], part.host_slots[chosen]),
            residency.host.rows,
            deadline_s=self._deadline_s,
            on_landed=sender,
        )
        return _Flight(chosen, sender, transfer, len(chosen) * part.page_nbytes, called_s)

    async def _follow(self, flight: _Flight) -> None:
        """Take note of pages as they become final, until nothing can touch the slots any more."""
        transfer, more = flight.transfer, True
        seen = np.zeros(len(flight.chosen), np.uint8)  # PENDING: a final status never changes
        try:
            while more:
                more = await transfer.progress()
                flight.sender.take_time()
                fresh = (transfer.statuses != seen).nonzero()[0]
                seen[fresh] = transfer.statuses[fresh]
                self.part.under_way -= len(fresh)
                self._take_over(flight, fresh)
                self._on_progress(self.part)
        finally:
            transfer.abandon()
            await transfer.drained()
            self._end(flight)

    def _take_over(self, flight: _Flight, fresh: NDArray[np.int64]) -> None:
        """The pages at ``fresh`` of the flight are final."""
        if not len(fresh):
            return
        part, chosen, statuses = self.part, flight.chosen[fresh], flight.transfer.statuses[fresh]
        landed = statuses == _LANDED
        part.called_s = flight.called_s
        if np.count_nonzero(landed) == len(fresh):
            self._lander.land(part, chosen, flight.sender.verified[fresh])
            return
        self._lander.land(part, chosen[landed], flight.sender.verified[fresh[landed]])
        reasons, late = flight.transfer.reasons[fresh], statuses == _LATE
        if flight.was_withdrawn:
            back = late & (reasons == Reason.CANCELLED)
            part.put_back(chosen[back])
            part.drop_unwanted()
            late &= ~back
        lost = ~landed & (statuses != _LATE)
        self._lander.fail_alone(part, chosen[late], reasons[late])
        absent = lost & (reasons == Reason.UNAVAILABLE)  # they are there again with their directory
        self._lander.fail(part, chosen[absent], reasons[absent])
        lost &= ~absent
        if lost.any():
            self._lander.lose(part, chosen[lost], Tier.DISK, reasons[lost])

    def _end(self, flight: _Flight) -> None:
        self._flights.remove(flight)
        self._no_longer_counts(flight)
        part = self.part
        if len(part.left) and part.ticket is not None:
            part.link.queue.start(part.ticket)
        self._end_if_over()

    def _no_longer_counts(self, flight: _Flight) -> None:
        if flight.counts and self.part.ticket is not None:
            flight.counts = False
            self.part.link.queue.done(self.part.ticket, flight.nbytes)

    def _end_if_over(self) -> None:
        part = self.part
        if not part.is_over and not self._flights and not len(part.left):
            self._lander.end_part(part, self)
