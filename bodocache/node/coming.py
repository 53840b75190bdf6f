# SPDX-License-Identifier: Apache-2.0
"""One load of an engine: what it awaits of its node, and what it copies from there to the device.

What the node has said of a page is copied by the same code as in-process (move/copying.py), through
the queue of the engine's own link. A page counts as landed only when the bytes that were moved have
its digest, so it does not matter what became of the host slot meanwhile.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bodocache.move.copying import Copying
from bodocache.move.link import Link
from bodocache.move.load import Load, Source
from bodocache.move.part import Part, RowArray
from bodocache.move.requests import note_planned
from bodocache.move.residency import KeyArray
from bodocache.move.ticket import Priority, Ticket
from bodocache.node import messages
from bodocache.node.attached import Attached
from bodocache.node.device import Targets
from bodocache.node.messages import Digests
from bodocache.pages import Reason, Tier


class Coming:
    """A load whose pages are on their way.

    Implements ``load.Source`` for what is awaited, and ``land.Landing`` for what is copied.
    """

    def __init__(
        self,
        number: int,
        load: Load,
        keys: KeyArray,
        targets: Targets,
        attached: Attached | None,
        *,
        page_nbytes: int,
        now_s: Callable[[], float],
    ) -> None:
        self.number = number
        self.load = load
        self.keys = keys
        self.targets = targets
        self.attached = attached
        self.is_over = False  # nothing is awaited; copies may be under way
        self.bad: list[int] = []  # pages that had other bytes than were stored
        self.awaited: list[Part] = []  # of each tier
        self._open = np.zeros(len(keys), np.bool_)  # pages of which nothing was heard
        self._tiers = np.zeros(len(keys), np.uint8)
        self._page_nbytes = page_nbytes
        self._now_s = now_s

    def want(self, positions: RowArray) -> None:
        """Pages at ``positions`` are awaited."""
        self._open[positions] = True

    def await_from(self, tier: Tier, positions: RowArray, link: Link) -> Part | None:
        """Those at ``positions`` are to come from ``tier``, in time; None: nobody predicts it.

        ``link`` is busy from now on, so that a node that stands still makes it late.
        """
        none = np.empty(0, np.int64)
        part = self._part(tier, link, positions, none, np.empty((0, 2), np.uint64))
        if not self._enter(part, _Awaited(part)):
            return None
        link.begin(self.load.begun_s)
        self.awaited.append(part)
        return part

    def hear(self, message: messages.Arrived) -> messages.Arrived:
        """What of ``message`` is news: pages that are there; those that will not come are lost."""
        here = (message.lost >= 0) & (message.lost < len(self._open))
        lost = here & self._open[np.where(here, message.lost, 0)]
        self.lose(message.lost[lost], message.reasons[lost])
        fresh = self._open[message.positions] & self.load.is_wanted(message.positions)
        self._tiers[message.positions[fresh]] = message.tiers[fresh]
        self._open[message.positions] = False
        self._arrived(is_read=bool((message.tiers == Tier.DISK).all()))
        if fresh.all():
            return message
        return messages.Arrived(
            message.load,
            message.positions[fresh],
            message.slots[fresh],
            message.tiers[fresh],
            message.digests[fresh],
            message.lost,
            message.reasons,
        )

    def lose(self, positions: RowArray, reasons: NDArray[np.uint8]) -> None:
        """Pages at ``positions`` will not come."""
        self._shut(positions)
        self.load.fail(positions, reasons)

    def lose_rest(self) -> None:
        """Nothing that is awaited will come."""
        positions = np.flatnonzero(self._open)
        self.lose(positions, np.full(len(positions), Reason.UNAVAILABLE, np.uint8))
        self.end_if_over()

    def to_copy(self, arrived: messages.Arrived, link: Link) -> Part:
        """Pages that lie in host slots, for ``link`` to copy."""
        return self._part(Tier.HOST, link, arrived.positions, arrived.slots, arrived.digests)

    def enter(self, part: Part, work: Copying) -> bool:
        """Let ``part`` wait for its turn; False: there is no room for it."""
        if not self._enter(part, work):
            self.load.fail(part.positions, np.full(len(part.positions), Reason.NO_ROOM, np.uint8))
            return False
        self.load.begin_part()
        self.load.add_source(work)
        part.link.begin(self._now_s())
        return True

    def end_if_over(self) -> None:
        """Let go of what waits for nothing more."""
        if self.is_over or self._open.any():
            return
        self.is_over = True
        self.load.end_part(self)

    # As a source

    def trim(self) -> None:
        """Wait no longer for what the load does not want."""
        self._shut(np.arange(self.load.wanted, len(self._open)))
        self.end_if_over()

    def hurry(self) -> None:
        """The commit changes nothing for what is awaited."""

    # What was copied

    def land(self, part: Part, chosen: RowArray, verified: NDArray[np.bool_]) -> None:
        """Pages ``chosen`` were sent; those that did not verify are worth nothing."""
        good, bad = part.positions[chosen[verified]], part.positions[chosen[~verified]]
        part.landed += len(good)
        part.link.moved(self._now_s(), len(good) * self._page_nbytes)
        tiers = self._tiers[good]  # first: a committed load that fails names the pages that came
        for tier in np.unique(tiers).tolist():
            self.load.arrive(good[tiers == tier], Tier(tier))
        self.bad += bad.tolist()
        self.load.fail(bad, np.full(len(bad), Reason.CORRUPT, np.uint8))

    def break_off(self, part: Part) -> None:
        """What of ``part`` has not arrived will not come."""
        part.left = part.left[:0]
        self.load.fail(part.positions, np.full(len(part.positions), Reason.IO_ERROR, np.uint8))

    def end_part(self, part: Part, source: Source) -> None:
        """Nothing of ``part`` is under way or will be."""
        self._leave(part)
        self.load.end_part(source)

    def _arrived(self, *, is_read: bool) -> None:
        """Pages that are awaited no more have come; ``is_read``: now, from the disk."""
        now_s = self._now_s()
        for part in list(self.awaited):
            before = len(part.left)
            part.left = part.left[self._open[part.positions[part.left]]]
            came = before - len(part.left)
            part.landed += came
            part.landed_s = now_s
            if came and is_read and part.source is Tier.DISK:
                part.link.moved(now_s, came * self._page_nbytes)
            self._leave_if_over(part)

    def _shut(self, positions: RowArray) -> None:
        """Nothing more is to be heard of ``positions``."""
        self._open[positions] = False
        for part in list(self.awaited):
            part.left = part.left[self._open[part.positions[part.left]]]
            self._leave_if_over(part)

    def _leave_if_over(self, part: Part) -> None:
        if not len(part.left):
            self.awaited.remove(part)
            if part.source is Tier.DISK:
                self._leave(part)
            else:  # its copies are the ops of that link
                part.is_over = True
                part.link.end_uncounted(self._now_s())
                part.link.queue.leave(_ticket(part))

    def _leave(self, part: Part) -> None:
        link, ticket, part.is_over = part.link, _ticket(part), True
        is_whole = part.landed == len(part.positions)
        if is_whole and part.prediction is not None and not ticket.was_overtaken:
            link.calibration.judge(part.prediction, part.landed_s)
        nbytes = part.landed * self._page_nbytes
        link.end(self._now_s(), begun_s=self.load.begun_s, pages=part.landed, nbytes=nbytes)
        link.queue.leave(ticket)

    def _enter(self, part: Part, work: "Copying | _Awaited") -> bool:
        queue, due_s = part.link.queue, self.load.terms.due_s(self.load.begun_s)
        part.ticket = queue.enter(work, Priority.LOAD, deadline_s=due_s)
        if part.ticket is None:
            return False
        part.own_due_s = part.ticket.due_s
        part.prediction = part.link.predict_ticket(part.ticket)
        pages = len(part.positions)
        note_planned(self.load.note, part.link, part.ticket, pages, part.prediction)
        return True

    def _part(
        self, source: Tier, link: Link, positions: RowArray, slots: RowArray, digests: Digests
    ) -> Part:
        return Part(
            load=self.load,
            source=source,
            link=link,
            page_nbytes=self._page_nbytes,
            rows=self.targets.rows[positions],
            positions=positions,
            host_slots=slots,
            device_slots=self.targets.slots[positions],
            keys=self.keys[positions],
            digests=digests,
            kept=np.zeros(len(positions), np.bool_),
            left=np.arange(len(positions)),
            ours=np.ones(len(positions), np.bool_),
        )


def _ticket(part: Part) -> Ticket:
    assert part.ticket is not None, "it waits for its turn"
    return part.ticket


class _Awaited:
    """What the node brings: in the engine's queue so that it is predicted; begun by nobody here."""

    def __init__(self, part: Part) -> None:
        self._part = part

    @property
    def left_nbytes(self) -> int:
        """What has not been heard of."""
        return self._part.left_nbytes

    def begin(self, nbytes: int) -> int:
        """Nothing waits for a turn here."""
        del nbytes
        return 0

    def withdraw(self) -> None:
        """Nothing was begun here."""
