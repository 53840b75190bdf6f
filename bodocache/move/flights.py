# SPDX-License-Identifier: Apache-2.0
"""Single flight: what one load reads from disk, others that want it too wait for.

A page that is on its way for one load is *joined* by the next: it is read once. Each load keeps its
own deadline, cut and cancel. A load that wants a page no more leaves it to who joined: what storage
has begun lands for them, what it has not they read themselves. What failed has failed for all.
The link's queue goes by the earliest deadline of all who wait for a part.
"""

import asyncio
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bodocache.move.load import Load
from bodocache.move.part import Part, RowArray
from bodocache.move.ticket import PATIENCE_S, Priority

NOBODY = 0


class Following:
    """Pages of a load that a part of another brings. Implements ``load.Source``."""

    __slots__ = ("_flights", "load", "part", "positions")

    def __init__(self, load: Load, part: Part, positions: RowArray, flights: "Flights") -> None:
        self.load = load
        self.part = part
        self.positions = positions  # of the load, still to come
        self._flights = flights

    def trim(self) -> None:
        """Wait no longer for what the load does not want."""
        wanted = self.load.is_wanted(self.positions)
        if not wanted.all():
            self.positions = self.positions[wanted]
            self._flights.end_if_over(self)

    def hurry(self) -> None:
        """Pages come whole: the commit changes nothing."""

    def take(self, rows: RowArray) -> RowArray:
        """Those of its pages that are among ``rows``; it waits for them no longer."""
        chosen = np.isin(self.load.rows[self.positions], rows)
        taken = self.positions[chosen]
        self.positions = self.positions[~chosen]
        return taken


class Flights:
    """Who brings each page from disk, and who waits for it. The loop's."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self.joined = 0  # pages that were not read again
        self.arrived: Callable[[Load, RowArray], None] = lambda _load, _positions: None
        self.carry_on: Callable[[Load, RowArray], None] = lambda _load, _positions: None
        self._now_s = now_s
        self._loop = asyncio.get_running_loop()
        self._leader = np.zeros(0, np.int64)  # of each row: the number of a part, or NOBODY
        self._parts: dict[int, Part] = {}
        self._number = NOBODY

    def lead(self, part: Part) -> None:
        """``part`` brings its pages from disk: others may join those that nobody brings yet."""
        self._grow(part.rows)
        self._number += 1
        self._parts[self._number] = part
        part.flight = self._number
        self._leader[part.rows[self._leader[part.rows] == NOBODY]] = self._number

    def are_coming(self, rows: RowArray) -> NDArray[np.bool_]:
        """Whether some part brings each of ``rows``."""
        coming: NDArray[np.bool_] = self._numbers(rows) != NOBODY
        return coming

    def leaders(self, rows: RowArray) -> list[Part]:
        """The parts that bring some of ``rows``."""
        return [self._parts[n] for n in _known(self._numbers(rows))]

    def join(self, load: Load, positions: RowArray) -> NDArray[np.bool_]:
        """Wait for those of ``positions`` that are on their way; which ones those are."""
        numbers = self._numbers(load.rows[positions])
        for number in _known(numbers):
            part = self._parts[number]
            following = Following(load, part, positions[numbers == number], self)
            part.followers.append(following)
            load.begin_part()
            load.add_source(following)
            self._reconsider(part)
        joins: NDArray[np.bool_] = numbers != NOBODY
        self.joined += int(np.count_nonzero(joins))
        return joins

    def landed(self, part: Part, chosen: RowArray) -> None:
        """Pages ``chosen`` of ``part`` are there, and can be found."""
        for following, positions in self._taken(part, chosen):
            self.arrived(following.load, positions)
            self.end_if_over(following)

    def failed(self, part: Part, chosen: RowArray, reasons: NDArray[np.uint8]) -> None:
        """Pages ``chosen`` of ``part`` cannot be read: they are misses of all."""
        rows = part.rows[chosen]
        for following, positions in self._taken(part, chosen):
            order = np.argsort(rows)
            at = order[np.searchsorted(rows, following.load.rows[positions], sorter=order)]
            following.load.fail(positions, reasons[at])
            self.end_if_over(following)

    def left(self, part: Part, chosen: RowArray) -> None:
        """Pages ``chosen`` of ``part`` do not come for it any more: who joined goes on alone."""
        for following, positions in self._taken(part, chosen):
            following.load.begin_part()
            self._loop.call_soon(self._go_on, following.load, positions)  # not in a queue's turn
            self.end_if_over(following)

    def end(self, part: Part) -> None:
        """Nothing of ``part`` is under way or will be."""
        self.left(part, np.arange(len(part.rows)))
        self._parts.pop(part.flight, None)

    def end_if_over(self, following: Following) -> None:
        """Let go of what waits for nothing more."""
        part = following.part
        if not len(following.positions) and following in part.followers:
            part.followers.remove(following)
            self._reconsider(part)
            following.load.end_part(following)

    def _go_on(self, load: Load, positions: RowArray) -> None:
        try:
            positions = positions[load.is_wanted(positions)]
            if len(positions):
                self.carry_on(load, positions)
        finally:
            load.end_part()

    def _taken(self, part: Part, chosen: RowArray) -> list[tuple[Following, RowArray]]:
        """Nobody can join ``chosen`` any more; who had joined, and which pages."""
        if part.flight == NOBODY:
            return []
        rows = part.rows[chosen]
        mine = rows[self._leader[rows] == part.flight]
        self._leader[mine] = NOBODY
        if not part.followers:
            return []
        taken = [(following, following.take(mine)) for following in part.followers]
        return [(following, positions) for following, positions in taken if len(positions)]

    def _reconsider(self, part: Part) -> None:
        """The earliest deadline of all who wait for a part is the part's."""
        dues_s = [self._due_s(following.load) for following in part.followers]
        part.joined_due_s = min(dues_s, default=math.inf)
        if part.ticket is not None:
            askers = [part.load, *(following.load for following in part.followers)]
            part.ticket.payers[:] = dict.fromkeys(load.terms.tenant for load in askers)
            part.link.queue.reschedule(part.ticket, min(part.own_due_s, part.joined_due_s))

    def _due_s(self, load: Load) -> float:
        due_s = load.terms.due_s(load.begun_s)
        return due_s if math.isfinite(due_s) else load.begun_s + PATIENCE_S[Priority.LOAD]

    def _numbers(self, rows: RowArray) -> NDArray[np.int64]:
        if not self._parts:
            return np.zeros(len(rows), np.int64)
        self._grow(rows)
        return self._leader[rows]

    def _grow(self, rows: RowArray) -> None:
        most = int(rows.max(initial=0))
        if most >= len(self._leader):
            self._leader = np.append(self._leader, np.zeros(most + 1, np.int64))


def _known(numbers: NDArray[np.int64]) -> list[int]:
    """Each number of a part among ``numbers``, once."""
    known = numbers[numbers != NOBODY]
    return np.unique(known).tolist() if len(known) else []
