# SPDX-License-Identifier: Apache-2.0
"""From host memory to the device: page by page, or layer by layer once the load is committed.

Between CPU pools a turn of the link's queue copies here, on the loop, about 1 ms. To a GPU whole
pages go in a thread, layers on a stream of the device. The digest of a whole page is of the bytes
that were moved; by layer, of what was moved of all layers (on a GPU: of what lies there behind the
last one), and the last layer comes when all were right: no step ends on bytes that failed.
"""

import logging
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bodocache.move.by_layer import ByLayer, Rest, verified_by
from bodocache.move.copies import Copies
from bodocache.move.land import Landing
from bodocache.move.part import Part, RowArray
from bodocache.move.streaming import Streaming
from bodocache.move.tasks import Nursery

_log = logging.getLogger(__name__)


class Copying:
    """Copies one part. Implements :class:`bodocache.move.queue.Work` and ``load.Source``."""

    def __init__(
        self,
        part: Part,
        *,
        copies: Copies,
        lander: Landing,
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
        self._by_layer: ByLayer | Streaming | None = None

    @property
    def left_nbytes(self) -> int:
        """What has not arrived."""
        return self.part.left_nbytes

    def begin(self, nbytes: int) -> int:
        """Copy the next pages, or what comes next of the layers."""
        part = self.part
        if isinstance(self._by_layer, Streaming):
            return self._by_layer.begin(nbytes)
        try:
            if self._by_layer is not None:
                moved = self._by_layer.begin(nbytes)
            elif self._copies.runs_here:
                moved = self._copy_turn(nbytes)
            else:
                return self._begin_in_thread(nbytes)
        except Exception:  # noqa: BLE001 -- what cannot be copied is a miss
            _log.exception("host to device: %d pages could not be copied", len(part.rows))
            if self._by_layer is not None:
                self._by_layer.stop()
            else:
                part.under_way = 0
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
            self._by_layer.stop()
        self._end_if_over()

    def hurry(self) -> None:
        """Go on layer by layer, where the engine computes so."""
        part, copies = self.part, self._copies
        if not (self._goes_by_layer and len(part.left)):
            return
        make = ByLayer if copies.runs_here else Streaming
        chosen = part.take(len(part.left))
        self._by_layer = by_layer = make(Rest(part, chosen, copies, self._lander, self._now_s))
        if isinstance(by_layer, Streaming):
            self._nursery.spawn(self._follow(by_layer))
        if part.ticket is not None:
            part.link.queue.start(part.ticket, float(by_layer.due_s[0]))

    @property
    def _goes_by_layer(self) -> bool:
        """Whether what is left at the commit goes layer by layer."""
        copies = self._copies
        is_able = copies.runs_here or copies.streams_layers
        return is_able and self.part.load.terms.is_layered

    async def _follow(self, streaming: Streaming) -> None:
        try:
            await streaming.run()
            self._on_progress(self.part)
        finally:
            self._end_if_over()

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
        return verified_by(raw, part, chosen)

    def _begin_in_thread(self, nbytes: int) -> int:
        if self._goes_by_layer:  # one step at a time: what is left at the commit is streamed
            if self.part.under_way:
                return 0
            nbytes = min(nbytes, self.part.link.queue.chunk_nbytes)
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
                if len(part.left):
                    part.link.queue.start(part.ticket)
            self._end_if_over()

    def _end_if_over(self) -> None:
        part = self.part
        if self._by_layer is not None and self._by_layer.is_over:
            self._by_layer = None
        if not (part.is_over or part.under_way or len(part.left)):
            self._lander.end_part(part, self)
