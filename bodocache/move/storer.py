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
from bodocache.pages import NOWHERE, Reason, Tier
from bodocache.pools import OwnedPool


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose pages these are, and what was said of them."""

    version: int = 0  # of the weights
    tenant: int = 0
    chance: float = math.nan  # that the request goes on, as its caller says
    favour: float = 0.0  # log2 of what that multiplies the pages' worth by
    is_written: bool = True  # False: not to the disk, whatever the pages are worth


@dataclass(frozen=True, slots=True, eq=False)
class _Offer:
    """The pages of one store, by position in its chain, and what has become of them so far."""

    chain: RowArray
    slots: SlotArray  # on the device
    fresh: NDArray[np.int64]  # positions of the pages that nobody else stored or brings
    ahead: frozenset[Store]  # stores that began before this one and bring others of its pages
    host_slots: SlotArray  # that it took; NOWHERE: none, or it is given back or holds a page
    sums: NDArray[np.uint64]  # [n, 2]: digests, without seeds, of what was copied there
    is_placed: NDArray[np.bool_]  # by this store

    @classmethod
    def of(
        cls, chain: RowArray, slots: SlotArray, fresh: NDArray[np.int64], ahead: frozenset[Store]
    ) -> "_Offer":
        """Nothing has become of any."""
        n = len(chain)
        sums, is_placed = np.zeros((n, 2), np.uint64), np.zeros(n, np.bool_)
        return cls(chain, slots, fresh, ahead, np.full(n, NOWHERE), sums, is_placed)


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
        self._coming: dict[int, Store] = {}  # rows of pages on their way to the host

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
        coming = (self._coming.get(row) for row in chain[~new].tolist())
        ahead = frozenset(one for one in coming if one is not None)
        residency.pin(before)
        residency.pin(chain[~new])
        chain[new] = NOWHERE
        chain[fresh] = self._add(keys, before, chain, fresh, origin)
        self._coming.update(dict.fromkeys(chain[fresh].tolist(), store))
        store.hold(np.concatenate((before, chain)), spare=slots[:0])
        self._live.add(store)
        residency.promise(slots)
        self._nursery.spawn(self._run(store, _Offer.of(chain, slots, fresh, ahead), origin))
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
        return rows

    def refuse(self, slots: SlotArray, *, by_layer: bool = False) -> Store:
        """A store of nothing: its pages could not be reached."""
        store = self._opened(by_layer=by_layer)
        self._residency.promise(slots)
        store.hold(np.empty(0, np.int64), spare=slots)
        store.conclude(Stored(new=0, known=0, refused=len(slots)))
        store.settle(0, 0)
        return store

    async def _run(self, store: Store, offer: _Offer, origin: Origin) -> None:
        try:
            await self._show(store, offer, origin)
            shown = offer.chain[offer.is_placed]
            store.show(shown)  # before the disk asks what they are worth
            if self._writer is not None and origin.is_written:
                await self._writer.offer(store, shown)
        except Abandoned:
            pass  # nothing of it was shown
        finally:
            store.spare(offer.slots[~offer.is_placed])
            store.settle(0, 0)
            self._live.discard(store)
            found = self._reach(store, offer)
            new = int(np.count_nonzero(offer.is_placed[:found]))
            refused = len(offer.chain) - found
            store.conclude(Stored(new=new, known=found - new, refused=refused))

    async def _show(self, store: Store, offer: _Offer, origin: Origin) -> None:
        """Copy what is worth its room; what can be reached can be found from then on.

        A page that another store did not bring after all, or has not brought when this one has all
        its own, is brought by this one: it has the bytes. It waits for no other's engine, and for
        none that began later: so no two wait for each other.
        """
        residency, chain = self._residency, offer.chain
        rows = chain[offer.fresh]
        before = int(residency.table.records["parent"][rows[0]]) if len(rows) else NOWHERE
        residency.learn(  # behind: one that is not filled
            rows, before=before, behind=1, tenant=origin.tenant, chance=origin.chance
        )
        try:
            await self._bring(store, offer, offer.fresh, origin)
            for other in offer.ahead:
                if other.is_computed:
                    await other.decided.wait()
            is_left = residency.table.records["tiers"][chain] == 0
            is_left[offer.fresh] = False
            if is_left.any():
                await self._bring(store, offer, np.flatnonzero(is_left), origin)
            self._place(store, offer)
        finally:
            unused = offer.host_slots[offer.host_slots != NOWHERE]
            residency.give_back(unused, Tier.HOST)
            for row in rows.tolist():
                del self._coming[row]
            store.decided.set()

    async def _bring(
        self, store: Store, offer: _Offer, at: NDArray[np.int64], origin: Origin
    ) -> None:
        """Copy the pages at positions ``at`` to the host, as many of the first as have room."""
        writer = self._writer if origin.is_written else None
        host_slots = self._residency.take_worth(
            *(offer.chain[at], Need(Activity.STORE, origin.tenant)),
            favour=origin.favour,
            goes_on=writer is not None and writer.has_room(len(at)),
        )
        at = at[: len(host_slots)]
        offer.host_slots[at] = host_slots
        offer.sums[at] = await self._gathering.gather(store, offer.slots[at], host_slots)

    def _place(self, store: Store, offer: _Offer) -> None:
        """Show the pages that were brought, as far as all before them are there.

        In one go, so that a page is never found without its prefix.
        """
        residency, table = self._residency, self._residency.table
        is_brought = offer.host_slots != NOWHERE
        brought = np.flatnonzero(is_brought[: self._reach(store, offer, or_at=is_brought)])
        # Another store, or a load that was under way when a page was lost, may have been faster.
        new = brought[table.records["tiers"][offer.chain[brought]] == 0]
        rows = offer.chain[new]
        table.records["reason"][rows] = Reason.NONE
        table.digests[rows] = digest.seeded(offer.sums[new], table.keys[rows])
        residency.place(rows, Tier.HOST, offer.host_slots[new])
        if isinstance(residency.device, OwnedPool):
            residency.place(rows, Tier.DEVICE, offer.slots[new])
        offer.host_slots[new] = NOWHERE
        offer.is_placed[new] = True
        residency.touch(offer.chain[brought])

    def _reach(self, store: Store, offer: _Offer, *, or_at: NDArray[np.bool_] | None = None) -> int:
        """How many leading pages can be found, where those ``or_at`` these positions count, too."""
        lies = self._residency.table.records["tiers"][store.held_rows] != 0
        first = len(lies) - len(offer.chain)
        if or_at is not None:
            lies[first:] |= or_at
        return max(0, int(np.argmin(np.append(lies, False))) - first)

    def _opened(self, *, by_layer: bool) -> Store:
        return Store(on_close=self._close, layers=self._num_layers if by_layer else 0)

    def _close(self, store: Store) -> None:
        residency = self._residency
        if isinstance(residency.device, OwnedPool):
            spare = store.spare_slots  # an engine may have passed the slot of a page we hold
            residency.give_back(spare[residency.owners(spare) < 0], Tier.DEVICE)
        residency.unpin(store.held_rows)
