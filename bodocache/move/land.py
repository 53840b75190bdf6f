# SPDX-License-Identifier: Apache-2.0
"""What becomes of pages that were moved for a load: they are placed, or lost; and how parts end."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bodocache.move.flights import Flights
from bodocache.move.load import Load, Source
from bodocache.move.part import Part, RowArray
from bodocache.move.residency import Residency
from bodocache.pages import NOWHERE, Reason, Tier
from bodocache.pools import OwnedPool


class Landing(Protocol):
    """Who is told what copies did."""

    def land(self, part: Part, chosen: RowArray, verified: NDArray[np.bool_]) -> None:
        """Pages ``chosen`` were sent; those that did not verify are worth nothing."""

    def break_off(self, part: Part) -> None:
        """What of ``part`` has not arrived will not come."""

    def end_part(self, part: Part, source: Source) -> None:
        """Nothing of ``part`` is under way or will be."""


class Lander:
    """Takes note of what loads move. Only what has its digest is ever placed."""

    def __init__(self, residency: Residency, flights: Flights, now_s: Callable[[], float]) -> None:
        self.failed_checks = 0
        self._flights = flights
        self._residency = residency
        self._now_s = now_s

    def land(self, part: Part, chosen: RowArray, verified: NDArray[np.bool_]) -> None:
        """Pages ``chosen`` were sent; those that did not verify are worth nothing."""
        count = np.count_nonzero(verified)
        good = chosen if count == len(chosen) else chosen[verified]
        if count:  # first: a committed load that fails names the pages that are whole
            self._land(part, good)
        if count < len(chosen):
            bad = chosen[~verified]
            self.failed_checks += len(bad)
            self.lose(part, bad, Tier.HOST, np.full(len(bad), Reason.CORRUPT, np.uint8))

    def _land(self, part: Part, good: RowArray) -> None:
        if part.source is Tier.DISK:
            self._keep_on_host(part, good)
        if isinstance(self._residency.device, OwnedPool):
            self._settle_on_device(part, good)
        part.landed += len(good)
        part.link.moved(part.landed_s, len(good) * part.page_nbytes, part.called_s)
        part.load.arrive(part.positions[good], part.source)
        self._flights.landed(part, good)

    def lose(self, part: Part, chosen: RowArray, tier: Tier, reasons: NDArray[np.uint8]) -> None:
        """Copies that failed are dropped: the next lookup does not find them."""
        rows = part.rows[chosen]
        there = self._residency.lies_in(rows, tier)
        for reason in np.unique(reasons[there]):
            self._residency.drop(rows[there & (reasons == reason)], tier, Reason(reason))
        self.fail(part, chosen, reasons)

    def fail(self, part: Part, chosen: RowArray, reasons: NDArray[np.uint8]) -> None:
        """Pages that cannot be had there: not by the loads that joined either."""
        part.load.fail(part.positions[chosen], reasons)
        self._flights.failed(part, chosen, reasons)

    def fail_alone(self, part: Part, chosen: RowArray, reasons: NDArray[np.uint8]) -> None:
        """Pages that do not come for this load: those that joined go on."""
        part.load.fail(part.positions[chosen], reasons)
        self._flights.left(part, chosen)

    def break_off(self, part: Part) -> None:
        """What of ``part`` has not arrived will not come."""
        part.left = part.left[:0]
        lost = part.positions[part.ours]
        part.load.fail(lost, np.full(len(lost), Reason.IO_ERROR, np.uint8))

    def without_room(self, load: Load, positions: RowArray) -> None:
        """There is no slot, or no place in a queue, for the pages at ``positions``."""
        load.fail(positions, np.full(len(positions), Reason.NO_ROOM, np.uint8))
        self.free_targets(load, positions)

    def end_part(self, part: Part, source: Source) -> None:
        """Nothing of ``part`` is under way or will be: let go of its pages and slots."""
        residency, link = self._residency, part.link
        part.is_over = True
        residency.host.drop(part.host_slots)
        residency.device.drop(part.device_slots)
        if part.source is Tier.DISK:
            residency.give_back(part.host_slots[~part.kept], Tier.HOST)
        is_whole = part.landed == np.count_nonzero(part.ours)
        link.end(
            part.landed_s if is_whole else self._now_s(),
            begun_s=part.load.begun_s,
            pages=part.landed,
            nbytes=part.landed * part.page_nbytes,
        )
        ticket = part.ticket
        if is_whole and part.prediction is not None and ticket and not ticket.was_overtaken:
            link.calibration.judge(part.prediction, part.landed_s)
        self._flights.end(part)
        if not is_whole:
            self.free_targets(part.load, part.positions[part.ours])
        residency.unpin(part.rows)
        if ticket is not None:
            link.queue.leave(ticket)
        part.load.end_part(source)

    def free_targets(self, load: Load, positions: RowArray) -> None:
        """Give back the device slots of pages that did not come."""
        if not isinstance(self._residency.device, OwnedPool) or not len(positions):
            return
        slots = load.slots[positions]
        unused = (slots != NOWHERE) & (
            self._residency.slots(load.rows[positions], Tier.DEVICE) != slots
        )
        self._residency.give_back(slots[unused], Tier.DEVICE)
        load.slots[positions[unused]] = NOWHERE

    def _settle_on_device(self, part: Part, chosen: RowArray) -> None:
        """Place pages that landed; where another load was faster, its copy is the one."""
        residency, load = self._residency, part.load
        rows, positions = part.rows[chosen], part.positions[chosen]
        beaten = residency.settle(rows, Tier.DEVICE, load.slots[positions])
        if len(beaten):
            residency.give_back(load.slots[positions[beaten]], Tier.DEVICE)
            load.slots[positions[beaten]] = residency.slots(rows[beaten], Tier.DEVICE)

    def _keep_on_host(self, part: Part, chosen: RowArray) -> None:
        """Pages read from disk stay on the host, unless another load brought them first."""
        rows, slots = part.rows[chosen], part.host_slots[chosen]
        part.kept[chosen] = True
        part.kept[chosen[self._residency.settle(rows, Tier.HOST, slots)]] = False
