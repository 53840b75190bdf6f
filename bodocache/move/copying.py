# SPDX-License-Identifier: Apache-2.0
"""From host memory to the device: page by page, or layer by layer once the load is committed.

Between CPU pools a turn of the link's queue copies here, on the loop, about 1 ms; the digest is of
the bytes that were moved. By layer, digests are of whole pages in host memory, checked in turns
between the layers, and the last layer comes when all were right: no step ends on bytes that failed.
A copy that waits for a GPU runs in a thread, whole pages at a time.
"""

import logging
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bodocache import digest
from bodocache.move.copies import Copies
from bodocache.move.land import Lander
from bodocache.move.part import Part, RowArray
from bodocache.move.tasks import Nursery
from bodocache.pages import Reason, Tier

_log = logging.getLogger(__name__)


class Copying:
    """Copies one part. Implements :class:`bodocache.move.queue.Work` and ``load.Source``."""

    def __init__(
        self,
        part: Part,
        *,
        copies: Copies,
        lander: Lander,
        nursery: Nursery,
        now_s: Callable[[], float],
        on_progress: Callable[[Part], None],
    ) -> None:
        self.part = part
        self._copies = copies
        self._lander = lander
        self._nursery = nursery
        self._now_s = now_s
        self._on_progress = on_progress
        self._by_layer: _ByLayer | None = None

    @property
    def left_nbytes(self) -> int:
        """What has not arrived."""
        return self.part.left_nbytes

    def begin(self, nbytes: int) -> int:
        """Copy the next pages, or what comes next of the layers."""
        part = self.part
        try:
            if self._by_layer is not None:
                moved = self._by_layer.turn(nbytes)
            elif self._copies.runs_here:
                moved = self._copy_turn(nbytes)
            else:
                return self._begin_in_thread(nbytes)
        except Exception:  # noqa: BLE001 -- what cannot be copied is a miss
            _log.exception("host to device: %d pages could not be copied", len(part.rows))
            self._by_layer, part.under_way = None, 0
            self._lander.break_off(part)
            moved = 0
        self._end_if_over()
        if moved:
            self._on_progress(part)
        return moved

    def withdraw(self) -> None:
        """What has begun has moved, or is in a thread."""

    def trim(self) -> None:
        """Copy nothing more that the load does not want."""
        self.part.drop_unwanted()
        if self._by_layer is not None and not self.part.load.wanted:
            self._by_layer, self.part.under_way = None, 0
        self._end_if_over()

    def hurry(self) -> None:
        """Go on layer by layer, where the engine computes so."""
        part = self.part
        if not (part.load.terms.is_layered and self._copies.runs_here and len(part.left)):
            return
        chosen = part.take(len(part.left))
        self._by_layer = _ByLayer(part, chosen, self._copies, self._lander, self._now_s)
        if part.ticket is not None:
            part.link.queue.start(part.ticket, float(self._by_layer.due_s[0]))

    def _copy_turn(self, nbytes: int) -> int:
        part = self.part
        pages = min(self._copies.turn_pages, nbytes // part.page_nbytes)
        chosen = part.take(max(1, pages))
        if len(chosen):
            verified = self._send(chosen)
            part.under_way -= len(chosen)
            self._lander.land(part, chosen, verified)
        return len(chosen) * part.page_nbytes

    def _send(self, chosen: RowArray) -> NDArray[np.bool_]:
        """Copy pages ``chosen`` and compare the digests of what was moved. Any thread."""
        part = self.part
        raw = self._copies.to_device(part.host_slots[chosen], part.device_slots[chosen])
        part.landed_s = max(part.landed_s, self._now_s())
        found = digest.seeded(raw, part.keys[chosen])
        verified: NDArray[np.bool_] = (found == part.digests[chosen]).all(axis=1)
        return verified

    def _begin_in_thread(self, nbytes: int) -> int:
        chosen = self.part.take(max(1, nbytes // self.part.page_nbytes))
        if len(chosen):
            self._nursery.spawn(self._copy_in_thread(chosen))
        else:
            self._end_if_over()
        return len(chosen) * self.part.page_nbytes

    async def _copy_in_thread(self, chosen: RowArray) -> None:
        part = self.part
        try:
            verified = await self._copies.run(len(chosen), partial(self._send, chosen))
            part.under_way -= len(chosen)
            self._lander.land(part, chosen, verified)
            self._on_progress(part)
        except Exception:
            part.under_way -= len(chosen)
            self._lander.break_off(part)
            raise
        finally:
            if part.ticket is not None:
                part.link.queue.done(part.ticket, len(chosen) * part.page_nbytes)
            self._end_if_over()

    def _end_if_over(self) -> None:
        part = self.part
        if self._by_layer is not None and self._by_layer.is_over:
            self._by_layer = None
        if not (part.is_over or part.under_way or len(part.left)):
            self._lander.end_part(part, self)


class _ByLayer:
    """What was left of a part at the commit: copied by layer, and checked meanwhile."""

    def __init__(
        self,
        part: Part,
        chosen: RowArray,
        copies: Copies,
        lander: Lander,
        now_s: Callable[[], float],
    ) -> None:
        self._part = part
        self._chosen = chosen
        self._copies = copies
        self._lander = lander
        self._now_s = now_s
        self._checked = 0  # pages
        self._is_checks_turn = True  # the last turn was: layers come first
        self._layer = self._done = 0  # and pages of this layer that are there
        self.due_s = part.load.terms.layers_due_s(now_s())

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is left."""
        return not len(self._chosen)

    def turn(self, nbytes: int) -> int:
        """Check or copy what one turn allows; the bytes of whole pages that it is worth."""
        nbytes = min(nbytes, self._copies.turn_nbytes)
        is_last = self._layer == self._copies.num_layers - 1
        self._is_checks_turn = is_last or not self._is_checks_turn
        if self._is_checks_turn and self._checked < len(self._chosen):
            return self._check(max(1, nbytes // self._part.page_nbytes))
        return self._copy(max(1, nbytes // self._copies.layer_nbytes))

    def _check(self, pages: int) -> int:
        """Compare digests in host memory. One that is wrong ends the load: it was committed."""
        part, chosen = self._part, self._chosen[self._checked : self._checked + pages]
        raw = self._copies.digests_on_host(part.host_slots[chosen])
        right = (digest.seeded(raw, part.keys[chosen]) == part.digests[chosen]).all(axis=1)
        self._checked += len(chosen)
        if not right.all():
            self._end()
            bad = chosen[~right]
            self._lander.failed_checks += len(bad)
            reasons = np.full(len(bad), Reason.CORRUPT, np.uint8)
            self._lander.lose(part, bad, Tier.HOST, reasons)
        return len(chosen) * part.page_nbytes

    def _copy(self, pages: int) -> int:
        part, chosen = self._part, self._chosen[self._done : self._done + pages]
        slots = (part.host_slots[chosen], part.device_slots[chosen])
        self._copies.copy_layer(self._layer, *slots)
        self._done += len(chosen)
        if self._done == len(self._chosen):
            self._layer, self._done = self._layer + 1, 0
            self._end_layer()
        return len(chosen) * self._copies.layer_nbytes

    def _end_layer(self) -> None:
        part, all_chosen = self._part, self._chosen
        if self._layer < self._copies.num_layers:
            part.load.arrive_by_layer(part.positions[all_chosen], self._layer)
            if part.ticket is not None:
                part.link.queue.start(part.ticket, float(self.due_s[self._layer]))
            return
        self._end()
        part.landed_s = max(part.landed_s, self._now_s())
        self._lander.land(part, all_chosen, np.ones(len(all_chosen), np.bool_))

    def _end(self) -> None:
        self._part.under_way -= len(self._chosen)
        self._chosen = self._chosen[:0]
