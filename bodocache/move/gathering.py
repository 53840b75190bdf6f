# SPDX-License-Identifier: Apache-2.0
"""How the pages of a store leave the device: whole, or each layer as it is computed.

Digests are of what was read from the device, so that a byte that changes on the way to the host is
a miss later, not a page. On a stream they are taken behind the last layer, from the very slots.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bodocache import digest
from bodocache.move.copies import Copies
from bodocache.move.link import Link
from bodocache.move.queue import LinkQueue
from bodocache.move.residency import SlotArray
from bodocache.move.store import Store
from bodocache.move.stream import LayerStream, passed
from bodocache.move.ticket import Priority
from bodocache.pages import Tier
from bodocache.pools import BorrowedPool

_Digests = NDArray[np.uint64]  # [n, 2], without seeds


class Gathering:
    """Copies device slots to host slots; each method returns the digests of the pages."""

    def __init__(
        self,
        device: BorrowedPool,
        *,
        lease: Callable[[SlotArray], AbstractContextManager[object]],
        link: Link,
        beside: LinkQueue,
        copies: Copies,
        now_s: Callable[[], float],
        step: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """``lease`` of host slots; ``step`` is entered around each time that something writes."""
        self._device = device
        self._lease = lease
        self._step = step
        self._link = link
        self._beside = beside
        self._copies = copies
        self._now_s = now_s

    async def gather(self, store: Store, slots: SlotArray, host_slots: SlotArray) -> _Digests:
        """Pages of ``store`` in ``slots``, once they are computed. Abandoned: they will not be."""
        last = self._copies.num_layers - 1
        if store.is_by_layer and not (len(slots) and self._goes_by_layer):
            await store.layer(last)
        if not len(slots):
            return np.empty((0, 2), np.uint64)
        with self._lease(host_slots), self._device.lease(slots):
            return await self._way(store)(store, slots, host_slots)

    @property
    def _goes_by_layer(self) -> bool:
        return self._copies.runs_here or self._copies.streams_layers

    def _way(self, store: Store) -> Callable[[Store, SlotArray, SlotArray], Awaitable[_Digests]]:
        if not (store.is_by_layer and self._goes_by_layer):
            return self._whole
        return self._in_turns if self._copies.runs_here else self._on_stream

    async def _whole(self, _: Store, slots: SlotArray, host_slots: SlotArray) -> _Digests:
        self._link.begin(begun_s := self._now_s())
        landed = 0
        try:
            copy = partial(self._copies.to_host, slots, host_slots)
            with self._step():
                raw = await self._copies.run(len(slots), copy, to=Tier.HOST)
            landed = len(slots)
        finally:
            self._end(begun_s, self._copies.num_layers, landed, landed)
        return raw

    async def _in_turns(self, store: Store, slots: SlotArray, host_slots: SlotArray) -> _Digests:
        """Between CPU pools, on the loop, in turns with the loads: they use the same memory bus."""
        copies, sums = self._copies, np.zeros((len(slots), 2), np.uint64)
        pages = max(1, copies.turn_nbytes // copies.layer_nbytes)
        for layer in range(copies.num_layers):
            await store.layer(layer)
            for first in range(0, len(slots), pages):
                turn = slice(first, first + pages)
                nbytes = len(slots[turn]) * copies.layer_nbytes
                async with self._beside.turn(Priority.STORE, nbytes):
                    self._link.begin(begun_s := self._now_s())
                    with self._step():
                        copies.layer_to_host(layer, slots[turn], host_slots[turn], sums[turn])
                    self._end(begun_s, 1, len(slots[turn]), self._ended(layer + 1, slots[turn]))
        return digest.of_sums(sums, copies.num_layers * copies.layer_nbytes)

    async def _on_stream(self, store: Store, slots: SlotArray, host_slots: SlotArray) -> _Digests:
        """On a stream of the device, which waits for the engine's."""
        copies = self._copies
        stream = await copies.in_thread(partial(copies.stream_up, slots, host_slots))
        try:
            while stream.given < copies.num_layers:
                await store.layer(stream.given)
                before, begun_s = stream.given, self._now_s()
                self._link.begin(begun_s)
                try:
                    with self._step():
                        await copies.in_thread(partial(_submit, stream, store, store.ready))
                        await passed(lambda: stream.has_passed)
                finally:
                    layers = stream.whole - before
                    self._end(begun_s, layers, len(slots), self._ended(stream.whole, slots))
            await passed(lambda: stream.is_over)
            return stream.digests
        finally:
            if not stream.is_over:
                await copies.in_thread(stream.drain)

    def _ended(self, layers: int, slots: SlotArray) -> int:
        """How many pages have arrived with their first ``layers`` layers."""
        return len(slots) if layers == self._copies.num_layers else 0

    def _end(self, begun_s: float, layers: int, pages: int, whole: int) -> None:
        nbytes = layers * pages * self._copies.layer_nbytes
        self._link.end(self._now_s(), begun_s=begun_s, pages=whole, nbytes=nbytes)


def _submit(stream: LayerStream, store: Store, layers: int) -> None:
    for layer in range(stream.given, layers):
        stream.submit(layer + 1, store.event(layer))
