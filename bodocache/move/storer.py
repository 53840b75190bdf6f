# SPDX-License-Identifier: Apache-2.0
"""Executes stores: gathers new pages from device slots into the host pool, then shows them.

A page becomes visible only with its digest known. The engine's slots are pinned until it closes the
store (an owned pool) or are its own again when the store is visible (a borrowed one).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bodocache import digest
from bodocache.move.copies import Copies
from bodocache.move.gathering import Gathering
from bodocache.move.ghosts import Activity
from bodocache.move.link import Link
from bodocache.move.queue import LinkQueue
from bodocache.move.residency import NEXT, KeyArray, Residency, RowArray, SlotArray
from bodocache.move.room import Need
from bodocache.move.store import Abandoned, Store, Stored
from bodocache.move.tasks import Nursery
from bodocache.move.writer import Writer
from bodocache.pages import NOWHERE, Tier
from bodocache.pools import OwnedPool


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose pages these are, and what was said of them."""

    version: int = 0  # of the weights
    tenant: int = 0
    chance: float = math.nan  # that the request goes on, as its caller says
    favour: float = 0.0  # log2 of what that multiplies the pages' worth by
    is_written: bool = True  # False: not to the disk, whatever the pages are worth


class Storer:
    """Begins stores and sees them through until their pages can be found."""

    def __init__(
        self,
        residency: Residency,
        *,
        link: Link,
        beside: LinkQueue,
        copies: Copies,
        nursery: Nursery,
        writer: Writer | None,
        now_s: Callable[[], float],
    ) -> None:
        """``beside``: the queue of the copies to the device, which this must not slow."""
        self._residency = residency
        self._gathering = Gathering(
            residency.device,
            lease=residency.host.lease,
            link=link,
            beside=beside,
            copies=copies,
            now_s=now_s,
        )
        self._num_layers = copies.num_layers
        self._nursery = nursery
        self._writer = writer
        self._live: set[Store] = set()
        self._coming: set[int] = set()  # rows of pages on their way to the host

    def begin(
        self, keys: KeyArray, slots: SlotArray, origin: Origin, *, by_layer: bool = False
    ) -> Store:
        """Begin to store the last ``len(slots)`` pages of the chain ``keys``."""
        residency = self._residency
        first = len(keys) - len(slots)
        before = residency.leading(keys[:first])
        if len(before) < first:  # their prefix is gone: nobody could reach them
            return self.refuse(slots, by_layer=by_layer)
        store = self._opened(by_layer=by_layer)
        chain = residency.index.find(keys[first:])
        new = ~self._is_known(chain)
        fresh = np.flatnonzero(new)
        residency.pin(before)
        residency.pin(chain[~new])
        chain[new] = NOWHERE
        chain[fresh] = self._add(keys, before, chain, fresh, origin)
        held = np.concatenate((before, chain))
        store.hold(held, spare=np.delete(slots, fresh))
        self._live.add(store)
        residency.promise(slots)
        known = len(slots) - len(fresh)
        self._nursery.spawn(self._run(store, chain[fresh], slots[fresh], known, origin))
        return store

    async def idle(self) -> None:
        """Wait until no store is on its way to the host: what is not computed is not stored."""
        for store in list(self._live):
            store.abandon()
            await store

    def _is_known(self, chain: RowArray) -> NDArray[np.bool_]:
        """Whether each page lies in a tier or is on its way to one; rows may be NOWHERE.

        A page that lies nowhere may be pinned all the same, by a load that found it corrupt.
        """
        tiers = self._residency.table.records["tiers"][chain]
        known: NDArray[np.bool_] = (chain != NOWHERE) & (tiers != 0)
        for i in np.flatnonzero(~known).tolist():
            known[i] = int(chain[i]) in self._coming
        return known

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
        self._coming.update(rows.tolist())
        return rows

    def refuse(self, slots: SlotArray, *, by_layer: bool = False) -> Store:
        """A store of nothing: its pages could not be reached."""
        store = self._opened(by_layer=by_layer)
        self._residency.promise(slots)
        store.hold(np.empty(0, np.int64), spare=slots)
        store.conclude(Stored(new=0, known=0, refused=len(slots)))
        store.settle(0, 0)
        return store

    async def _run(
        self, store: Store, rows: RowArray, slots: SlotArray, known: int, origin: Origin
    ) -> None:
        shown = 0
        try:
            shown = await self._show(store, rows, slots, origin)
            store.show(rows[:shown])  # before the disk asks what they are worth
            if self._writer is not None and origin.is_written:
                await self._writer.offer(store, rows[:shown])
        except Abandoned:
            pass  # nothing of it was shown
        finally:
            store.spare(slots[shown:])
            store.settle(0, 0)
            self._live.discard(store)
            store.conclude(Stored(new=shown, known=known, refused=len(rows) - shown))

    async def _show(self, store: Store, rows: RowArray, slots: SlotArray, origin: Origin) -> int:
        """Copy those of ``rows`` that are worth their room; from then on they can be found."""
        residency, table = self._residency, self._residency.table
        before = int(table.records["parent"][rows[0]]) if len(rows) else NOWHERE
        residency.learn(  # behind: one that is not filled
            rows, before=before, behind=1, tenant=origin.tenant, chance=origin.chance
        )
        writer = self._writer if origin.is_written else None
        host_slots = residency.take_worth(
            *(rows, Need(Activity.STORE, origin.tenant)),
            favour=origin.favour,
            goes_on=writer is not None and writer.has_room(len(rows)),
        )
        kept, unused = len(host_slots), host_slots
        try:
            raw = await self._gathering.gather(store, slots[:kept], host_slots)
            # A load that was under way when a page was lost may have brought it back by now.
            new = np.flatnonzero(table.records["tiers"][rows[:kept]] == 0)
            table.digests[rows[new]] = digest.seeded(raw[new], table.keys[rows[new]])
            unused = np.delete(host_slots, new)
            residency.place(rows[new], Tier.HOST, host_slots[new])
            if isinstance(residency.device, OwnedPool):
                residency.place(rows[new], Tier.DEVICE, slots[new])
                store.spare(np.delete(slots[:kept], new))
            residency.touch(rows[:kept])
        finally:
            residency.give_back(unused, Tier.HOST)
            self._coming.difference_update(rows.tolist())
        return kept

    def _opened(self, *, by_layer: bool) -> Store:
        return Store(on_close=self._close, layers=self._num_layers if by_layer else 0)

    def _close(self, store: Store) -> None:
        residency = self._residency
        if isinstance(residency.device, OwnedPool):
            spare = store.spare_slots  # an engine may have passed the slot of a page we hold
            residency.give_back(spare[residency.owners(spare) < 0], Tier.DEVICE)
        residency.unpin(store.held_rows)
