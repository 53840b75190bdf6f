# SPDX-License-Identifier: Apache-2.0
"""An engine's stores: the node leases empty host slots, we fill them, the node shows the pages.

What goes wrong between the two is a refusal, with a line in the log: nothing of the store can be
found then.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import nullcontext
from itertools import count
from typing import Any

import numpy as np

from bodocache import digest
from bodocache.errors import BodoCacheError, NodeLost
from bodocache.hints.reuse import Said
from bodocache.move.gathering import Gathering
from bodocache.move.link import Link
from bodocache.move.queue import LinkQueue
from bodocache.move.residency import KeyArray, Residency, RowArray, SlotArray
from bodocache.move.store import Abandoned, Store, Stored
from bodocache.move.tasks import Nursery
from bodocache.node import messages
from bodocache.node.attached import Attached
from bodocache.node.device import Device
from bodocache.node.said import said_to_json
from bodocache.pages import Tier

_log = logging.getLogger(__name__)

PATIENCE_S = 5.0  # with the node, which makes a store wait up to 1 s for its disk (move/writer.py)


class NodeStorer:
    """Begins stores and sees them through."""

    def __init__(
        self,
        residency: Residency,
        device: Device,
        *,
        link: Link,
        beside: LinkQueue,
        nursery: Nursery,
        now_s: Callable[[], float],
    ) -> None:
        """``beside``: the queue of the copies to the device, which this must not slow."""
        self._residency = residency
        self._device = device
        self._link = link
        self._beside = beside
        self._nursery = nursery
        self._now_s = now_s
        self._numbers = count(1)
        self._live: set[Store] = set()
        self._unwritten: dict[int, Store] = {}

    def begin(
        self,
        keys: KeyArray,
        slots: SlotArray,
        said: Said,
        attached: Attached | None,
        *,
        by_layer: bool = False,
    ) -> Store:
        """Begin to store the last ``len(slots)`` pages of the chain ``keys``."""
        if attached is None:
            return self.refuse(slots, by_layer=by_layer)
        store = self._opened(by_layer=by_layer)
        rows, before = self._device.begin_store(keys, slots)
        store.hold(rows, spare=slots)
        self._live.add(store)
        self._nursery.spawn(self._run(store, keys, slots, before, said, attached))
        return store

    def refuse(self, slots: SlotArray, *, by_layer: bool = False) -> Store:
        """A store of nothing: its pages could not be reached."""
        store = self._opened(by_layer=by_layer)
        self._residency.promise(slots)
        store.hold(np.empty(0, np.int64), spare=slots)
        store.conclude(Stored(new=0, known=0, refused=len(slots)))
        store.settle(0, 0)
        return store

    def written(self, message: messages.Written) -> None:
        """The disk has decided on a store's pages."""
        store = self._unwritten.pop(message.store, None)
        if store is not None:
            store.settle(0, message.pages)

    def lose_all(self) -> None:
        """The node is gone: nobody will say what was written."""
        for store in self._unwritten.values():
            store.settle(0, 0)
        self._unwritten.clear()

    async def idle(self) -> None:
        """Wait until no store is on its way to the node: what is not computed is not stored."""
        for store in list(self._live):
            store.abandon()
            await store

    async def _run(
        self,
        store: Store,
        keys: KeyArray,
        slots: SlotArray,
        before: SlotArray,
        said: Said,
        attached: Attached,
    ) -> None:
        number, first = next(self._numbers), len(keys) - len(slots)
        self._unwritten[number] = store
        shown, known = np.empty((2, 0), np.int64)
        try:
            ours = np.concatenate((before, slots))
            shown, known = await self._put(store, number, keys, ours, said, attached)
            rows = self._device.place_stored(keys, slots, shown, said.tenant)
            store.held_rows = np.concatenate((store.held_rows, rows))
        except Abandoned:
            pass  # nothing of it was shown
        except BodoCacheError as error:
            _log.warning("store: %d pages are not stored: %s", len(slots), error)
        finally:
            new, old = int((shown >= first).sum()), int((known >= first).sum())
            if not new:
                self.written(messages.Written(number, 0))
            self._live.discard(store)
            store.conclude(Stored(new, old, len(slots) - new - old))

    async def _put(
        self,
        store: Store,
        number: int,
        keys: KeyArray,
        slots: SlotArray,
        said: Said,
        attached: Attached,
    ) -> tuple[RowArray, RowArray]:
        """Positions of the pages that can be found from now on, and of those that could before."""
        supplied, channel = len(keys) - len(slots), attached.channel
        epoch = channel.welcome.epoch
        answer = channel.request(messages.Reserve(number, supplied, said_to_json(said), keys))
        digests = np.empty((0, 2), np.uint64)
        try:
            reserved = await _in_time(answer)
            mine = slots[reserved.positions - supplied]
            raw = await self._gathering(attached, epoch).gather(store, mine, reserved.slots)
            digests = digest.seeded(raw, keys[reserved.positions])
        finally:  # without a digest the slots go back, however late they were given
            answer = channel.request(messages.Publish(number, digests))
        published = await _in_time(answer)
        return published.shown, np.union1d(reserved.known, published.known)

    def _gathering(self, attached: Attached, epoch: int) -> Gathering:
        """What copies to slots that the node leased in ``epoch``, and to no others."""
        return Gathering(
            self._residency.device,
            lease=nullcontext,
            link=self._link,
            beside=self._beside,
            copies=attached.copies,
            now_s=self._now_s,
            step=lambda: attached.writing(epoch),
        )

    def _opened(self, *, by_layer: bool) -> Store:
        layers = self._residency.device.memory.layers
        return Store(on_close=self._close, layers=layers if by_layer else 0)

    def _close(self, store: Store) -> None:
        residency = self._residency
        if self._device.is_owned:
            spare = store.spare_slots
            residency.give_back(spare[residency.owners(spare) < 0], Tier.DEVICE)
        residency.unpin(store.held_rows)


async def _in_time(answer: "asyncio.Future[Any]") -> Any:
    """The answer, or NodeLost when the node is silent for PATIENCE_S."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await answer
    except TimeoutError:
        raise NodeLost(f"the node did not answer within {PATIENCE_S:g} s") from None
