# SPDX-License-Identifier: Apache-2.0
"""An engine's loads: the node brings pages into host slots, we copy them to the device and check.

On the loop. A page counts as landed only when the bytes that were moved have its digest, so it does
not matter what became of the host slot meanwhile. A node that is gone, or that stands still, makes
misses: at once, or at the deadline.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bodocache import digest
from bodocache.hints.reuse import Said
from bodocache.move.link import Link
from bodocache.move.load import Load
from bodocache.move.residency import KeyArray, SlotArray
from bodocache.move.tasks import Nursery
from bodocache.move.terms import Terms
from bodocache.node import messages
from bodocache.node.attached import Attached
from bodocache.node.device import Device, Targets
from bodocache.node.said import said_to_json
from bodocache.pages import NOWHERE, Reason, Tier

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Coming:
    """A load whose pages are on their way. Implements :class:`bodocache.move.load.Source`."""

    number: int
    load: Load
    keys: KeyArray
    targets: Targets
    attached: Attached | None
    open: NDArray[np.bool_]  # pages of which nothing was heard
    on_change: Callable[["_Coming"], None]
    waiting: deque[messages.Arrived] = field(default_factory=deque)  # to be copied
    bad: list[int] = field(default_factory=list)
    pages: int = 0  # copied
    is_copying: bool = False
    is_over: bool = False

    def trim(self) -> None:
        """The load was cut, is late, or was cancelled: what it does not want is not copied."""
        self.open[self.load.wanted :] = False
        self.on_change(self)

    def still_wanted(self, message: messages.Arrived) -> messages.Arrived:
        """The pages of ``message`` that are."""
        wanted = message.positions < self.load.wanted
        return message if wanted.all() else _cut(message, wanted)

    def hurry(self) -> None:
        """The load was committed. Pages come whole here, so each goes on as it is."""


class NodeLoader:
    """Begins loads and sees them through."""

    def __init__(
        self,
        device: Device,
        *,
        link: Link,
        page_nbytes: int,
        page_tokens: int,
        layers: int,
        nursery: Nursery,
        now_s: Callable[[], float],
    ) -> None:
        self.failed_checks = 0
        self._hits = np.zeros(len(Tier), np.int64)
        self._device = device
        self._link = link
        self._page_nbytes = page_nbytes
        self._page_tokens = page_tokens
        self._layers = layers
        self._nursery = nursery
        self._now_s = now_s
        self._loop = asyncio.get_running_loop()
        self._numbers = count(1)
        self._coming: dict[int, _Coming] = {}
        self._live: set[Load] = set()

    @property
    def hits(self) -> dict[Tier, int]:
        """Pages that loads delivered, by the tier they came from."""
        return {tier: int(self._hits[tier]) for tier in (Tier.DEVICE, Tier.HOST, Tier.DISK)}

    def begin(
        self,
        keys: KeyArray,
        slots: SlotArray | None,
        terms: Terms,
        said: Said,
        attached: Attached | None,
    ) -> Load:
        """Begin to bring the pages of ``keys`` to the device, on its engine's ``terms``."""
        begun_s, deadline_s = self._now_s(), terms.deadline_s
        targets = self._device.begin_load(keys, slots)
        load = Load(
            rows=targets.rows,
            slots=targets.slots,
            page_tokens=self._page_tokens,
            layers=self._layers,
            begun_s=begun_s,
            terms=terms,
            on_close=partial(self._close, targets),
        )
        self._live.add(load)
        load.begin_part()
        load.arrive(np.flatnonzero(targets.there), Tier.DEVICE)
        without = targets.slots == NOWHERE
        load.fail(np.flatnonzero(without), np.full(int(without.sum()), Reason.NO_ROOM, np.uint8))
        open_ = ~targets.there & ~without
        coming = _Coming(
            next(self._numbers), load, keys, targets, attached, open_, on_change=self._go_on
        )
        load.on_settled(partial(self._settled, coming))
        load.add_source(coming)
        self._coming[coming.number] = coming
        self._link.begin(begun_s)
        self._ask(coming, said, deadline_s - begun_s)
        self._go_on(coming)
        if math.isfinite(deadline_s) and not load.done:
            timer = self._loop.call_later(max(0.0, deadline_s - begun_s), self._too_late, load)
            load.on_settled(timer.cancel)
        return load

    def arrived(self, message: messages.Arrived) -> None:
        """Pages lie in host slots, or will not come."""
        coming = self._coming.get(message.load)
        if coming is None:
            return
        here = (message.lost >= 0) & (message.lost < len(coming.open))
        lost = here & coming.open[np.where(here, message.lost, 0)]
        coming.load.fail(message.lost[lost], message.reasons[lost])
        coming.open[message.lost[lost]] = False
        if len(message.positions):
            coming.waiting.append(message)
        self._go_on(coming)

    def lose_all(self) -> None:
        """The node is gone, or has taken back what it leased: nothing more will come."""
        for coming in list(self._coming.values()):
            self._lose(coming)

    async def close(self) -> None:
        """Cancel every load under way and wait until its slots are free."""
        loads = list(self._live)
        for load in loads:
            load.close()
        for load in loads:
            await load.released

    def _ask(self, coming: _Coming, said: Said, within_s: float) -> None:
        if coming.attached is None:
            self._lose(coming)
            return
        first = int(np.argmin(np.append(coming.targets.there, False)))
        fetch = messages.Fetch(
            coming.number, first, max(0.0, within_s), said_to_json(said), coming.keys
        )
        answer = coming.attached.channel.request(fetch)
        answer.add_done_callback(partial(self._answered, coming))

    def _answered(self, coming: _Coming, answer: "asyncio.Future[Any]") -> None:
        error = answer.exception()
        if error is None:
            self.arrived(answer.result())
        else:
            _log.warning("load: %s", error)
            self._lose(coming)

    def _lose(self, coming: _Coming) -> None:
        positions = np.flatnonzero(coming.open)
        coming.load.fail(positions, np.full(len(positions), Reason.UNAVAILABLE, np.uint8))
        coming.open[:] = False
        coming.waiting.clear()
        self._go_on(coming)

    def _too_late(self, load: Load) -> None:
        load.settle()
        load.abandon()

    # Host to device

    def _go_on(self, coming: _Coming) -> None:
        """Copy what waits; end the load when there is nothing to wait for."""
        if coming.is_copying:
            return
        attached = coming.attached
        if coming.load.done:
            coming.waiting.clear()
        if coming.waiting and attached is not None:
            first = coming.waiting[0]
            is_short = len(coming.waiting) == 1 and len(first.slots) <= attached.copies.turn_pages
            if not (attached.copies.runs_here and is_short):
                coming.is_copying = True
                self._nursery.spawn(self._copy_all(coming, attached))
                return
            coming.waiting.clear()
            first = coming.still_wanted(first)
            self._land(coming, first, self._send(coming, attached, first))
        if coming.load.done or not coming.open.any():
            self._end(coming)

    async def _copy_all(self, coming: _Coming, attached: Attached) -> None:
        """Turn by turn, the loop's other work between two; a cut takes effect at the next."""
        try:
            while coming.waiting and not coming.load.done:
                part = coming.still_wanted(coming.waiting.popleft())
                part, rest = _split(part, attached.copies.turn_pages)
                if rest is not None:
                    coming.waiting.appendleft(rest)
                send = partial(self._send, coming, attached, part)
                good = await attached.run(len(part.slots), send)
                self._land(coming, part, good)
                await asyncio.sleep(0)
        except Exception:
            self._lose(coming)
            raise
        finally:
            coming.is_copying = False
            self._go_on(coming)

    def _send(
        self, coming: _Coming, attached: Attached, part: messages.Arrived
    ) -> NDArray[np.bool_]:
        """Copy pages to the device; whether each has its digest. Any thread."""
        raw = attached.copies.to_device(part.slots, coming.targets.slots[part.positions])
        found = digest.seeded(raw, coming.keys[part.positions])
        good: NDArray[np.bool_] = (found == part.digests).all(axis=1)
        return good

    def _land(self, coming: _Coming, part: messages.Arrived, good: NDArray[np.bool_]) -> None:
        positions, bad = part.positions, part.positions[~good]
        if len(bad):
            self.failed_checks += len(bad)
            coming.bad += bad.tolist()
            coming.load.fail(bad, np.full(len(bad), Reason.CORRUPT, np.uint8))
        coming.open[positions] = False
        coming.pages += int(good.sum())
        for tier in np.unique(part.tiers[good]).tolist():
            coming.load.arrive(positions[good & (part.tiers == tier)], Tier(tier))

    # Endings

    def _settled(self, coming: _Coming) -> None:
        self._device.place(coming.targets, coming.load.landed)
        self._hits += coming.load.hits

    def _end(self, coming: _Coming) -> None:
        if coming.is_over:
            return
        coming.is_over = True
        del self._coming[coming.number]
        coming.load.settle()
        self._device.end_load(coming.targets)
        if coming.attached is not None:
            bad = np.array(coming.bad, np.int64)
            coming.attached.channel.note(messages.EndFetch(coming.number, bad))
        nbytes = coming.pages * self._page_nbytes
        begun_s, now_s = coming.load.begun_s, self._now_s()
        self._link.end(now_s, begun_s=begun_s, pages=coming.pages, nbytes=nbytes)
        coming.load.end_part(coming)

    def _close(self, targets: Targets, load: Load) -> None:
        self._live.discard(load)
        self._device.close_load(targets)


def _split(
    message: messages.Arrived, pages: int
) -> tuple[messages.Arrived, messages.Arrived | None]:
    """The first ``pages`` of ``message``, and the rest if there is any."""
    if len(message.positions) <= pages:
        return message, None
    return _cut(message, slice(None, pages)), _cut(message, slice(pages, None))


def _cut(message: messages.Arrived, chosen: slice | NDArray[np.bool_]) -> messages.Arrived:
    return messages.Arrived(
        message.load,
        message.positions[chosen],
        message.slots[chosen],
        message.tiers[chosen],
        message.digests[chosen],
        np.empty(0, np.int64),
        np.empty(0, np.uint8),
    )
