# SPDX-License-Identifier: Apache-2.0
"""Executes stores: gathers new pages from device slots into the host pool, then shows them.

A page becomes visible only with its digest known. The engine's slots are pinned until it closes the
store (an owned pool) or are its own again when the store is visible (a borrowed one).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bodocache import digest
from bodocache.move.copies import Copies
from bodocache.move.link import Link
from bodocache.move.residency import NEXT, KeyArray, Residency, RowArray, SlotArray
from bodocache.move.store import Store, Stored
from bodocache.move.tasks import Nursery
from bodocache.move.writer import Writer
from bodocache.pages import NOWHERE, Reason, Tier
from bodocache.pools import OwnedPool


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose pages these are."""

    version: int = 0  # of the weights
    tenant: int = 0


class Storer:
    """Begins stores and sees them through until their pages can be found."""

    def __init__(
        self,
        residency: Residency,
        *,
        link: Link,
        copies: Copies,
        nursery: Nursery,
        writer: Writer | None,
        now_s: Callable[[], float],
    ) -> None:
        self._residency = residency
        self._link = link
        self._copies = copies
        self._nursery = nursery
        self._writer = writer
        self._now_s = now_s
        self._live: set[Store] = set()

    def begin(self, keys: KeyArray, slots: SlotArray, origin: Origin) -> Store:
        """Begin to store the last ``len(slots)`` pages of the chain ``keys``."""
        residency = self._residency
        first = len(keys) - len(slots)
        before = residency.leading(keys[:first])
        store = Store(on_close=self._close)
        if len(before) < first:  # their prefix is gone: nobody could reach them
            self._refuse(store, slots, known=0)
            return store
        chain = residency.index.find(keys[first:])
        new = ~residency.is_held(chain)
        fresh = np.flatnonzero(new)
        residency.pin(before)
        residency.pin(chain[~new])
        chain[new] = NOWHERE
        chain[fresh] = self._add(keys, before, chain, fresh, origin)
        held = np.concatenate((before, chain))
        store.hold(held, spare=np.delete(slots, fresh))
        self._live.add(store)
        self._nursery.spawn(self._run(store, chain[fresh], slots[fresh], len(slots) - len(fresh)))
        return store

    async def idle(self) -> None:
        """Wait until no store is on its way to the host."""
        for store in list(self._live):
            await store

    def _add(
        self, keys: KeyArray, before: RowArray, chain: RowArray, fresh: RowArray, origin: Origin
    ) -> RowArray:
        residency, first = self._residency, len(before)
        last = before[-1] if first else NOWHERE
        parents = np.concatenate(([last], np.where(chain[:-1] == NOWHERE, NEXT, chain[:-1])))[fresh]
        depths = first + fresh
        rows = residency.add(keys[depths], parents, depths)
        records = residency.table.records
        records["version"][rows] = origin.version
        records["tenant"][rows] = origin.tenant
        return rows

    def _refuse(self, store: Store, slots: SlotArray, *, known: int) -> None:
        store.hold(np.empty(0, np.int64), spare=slots)
        store.visible.set_result(Stored(new=0, known=known, refused=len(slots) - known))
        store.settle(0, 0)

    async def _run(self, store: Store, rows: RowArray, slots: SlotArray, known: int) -> None:
        residency, shown = self._residency, 0
        host_slots = residency.take_most(Tier.HOST, len(rows))
        kept = len(host_slots)
        store.spare(slots[kept:])
        residency.table.records["reason"][rows[kept:]] = Reason.NO_ROOM
        try:
            await self._show(rows[:kept], slots[:kept], host_slots)
            shown = kept
            if self._writer is not None:
                await self._writer.offer(store, rows[:kept])
        finally:
            store.settle(0, 0)
            self._live.discard(store)
            store.visible.set_result(Stored(new=shown, known=known, refused=len(rows) - shown))

    async def _show(self, rows: RowArray, slots: SlotArray, host_slots: SlotArray) -> None:
        if not len(rows):
            return
        residency, begun_s = self._residency, self._now_s()
        self._link.begin(begun_s)
        with residency.host.lease(host_slots), residency.device.lease(slots):
            raw = await self._copies.run(len(rows), lambda: self._copies.to_host(slots, host_slots))
        nbytes = len(rows) * residency.host.layout.page_nbytes
        self._link.end(self._now_s(), begun_s=begun_s, pages=len(rows), nbytes=nbytes)
        table = residency.table
        table.digests[rows] = digest.seeded(raw, table.keys[rows])
        residency.place(rows, Tier.HOST, host_slots)
        if isinstance(residency.device, OwnedPool):
            residency.place(rows, Tier.DEVICE, slots)
        residency.touch(rows)

    def _close(self, store: Store) -> None:
        residency = self._residency
        if isinstance(residency.device, OwnedPool):
            residency.give_back(store.spare_slots, Tier.DEVICE)
        residency.unpin(store.held_rows)
