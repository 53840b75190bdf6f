# SPDX-License-Identifier: Apache-2.0
"""The pages that lie in an engine's own device pool, when it owns one: found, placed, evicted.

An engine that lends its pool (BorrowedPool) keeps track of it by itself. A page is placed only
behind its prefix, so whatever lies on the device can be reached from a first page.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache.move.ghosts import Activity
from bodocache.move.residency import NEXT, KeyArray, Residency, RowArray, SlotArray
from bodocache.move.room import Need
from bodocache.pages import NOWHERE, Tier
from bodocache.pools import OwnedPool

Mask = NDArray[np.bool_]


class Targets(NamedTuple):
    """Where the pages of a load are to lie; rows are pinned, NOWHERE in a borrowed pool."""

    rows: RowArray
    slots: SlotArray  # NOWHERE where there is no room
    there: Mask  # pages that lie in their slot already


class Device:
    """An engine's device pool, as loads and stores use it."""

    def __init__(self, residency: Residency) -> None:
        self._residency = residency
        self.is_owned = isinstance(residency.device, OwnedPool)
        self.layers = residency.device.memory.layers  # of a page

    def begin_load(self, keys: KeyArray, slots: SlotArray | None, tenant: int) -> Targets:
        """Slots for the pages of ``keys``: those given, or our own; ours are pinned and leased.

        Here a page is the tenant's that brought it first: who stored it, only the node knows.
        """
        residency = self._residency
        if slots is not None:
            residency.device.hold(slots)
            there = np.zeros(len(slots), np.bool_)
            return Targets(np.full(len(slots), NOWHERE), slots, there)
        front, *_ = residency.begin_load(keys)
        rows = self._with_rest(keys, front, tenant)
        there = residency.lies_in(rows, Tier.DEVICE)
        slots = residency.slots(rows, Tier.DEVICE)
        wanted = np.flatnonzero(~there)
        need = Need(Activity.LOAD, tenant)
        taken = residency.take_for(Tier.DEVICE, rows[wanted], need)
        residency.promise(taken)
        slots[wanted[: len(taken)]] = taken
        residency.device.hold(slots[slots != NOWHERE])
        return Targets(rows, slots, there)

    def place(self, targets: Targets, pages: int) -> None:
        """The leading ``pages`` landed; where another load was faster, its copy is the one."""
        if not self.is_owned:
            return
        residency = self._residency
        fresh = np.flatnonzero(~targets.there[:pages])
        rows, slots = targets.rows[fresh], targets.slots[fresh]
        beaten = residency.lies_in(rows, Tier.DEVICE)
        residency.place(rows[~beaten], Tier.DEVICE, slots[~beaten])
        if beaten.any():
            residency.device.drop(slots[beaten])
            residency.give_back(slots[beaten], Tier.DEVICE)
            targets.slots[fresh[beaten]] = residency.slots(rows[beaten], Tier.DEVICE)
            residency.device.hold(targets.slots[fresh[beaten]])

    def end_load(self, targets: Targets) -> None:
        """Nothing is copied to the slots any more: those that hold no page go back."""
        residency, slots = self._residency, targets.slots
        residency.device.drop(slots[slots != NOWHERE])
        if self.is_owned:
            lies = residency.slots(targets.rows, Tier.DEVICE)
            unused = (slots != NOWHERE) & (lies != slots)
            residency.give_back(slots[unused], Tier.DEVICE)
            slots[unused] = NOWHERE

    def close_load(self, targets: Targets) -> None:
        """The engine uses the pages no more."""
        if self.is_owned:
            self._residency.unpin(targets.rows)

    def begin_store(self, keys: KeyArray, slots: SlotArray) -> tuple[RowArray, SlotArray]:
        """Rows, pinned, and slots of the pages that we could supply before those in ``slots``.

        All of them or none.
        """
        none = np.empty(0, np.int64)
        if not self.is_owned:
            return none, none
        residency, before = self._residency, keys[: len(keys) - len(slots)]
        residency.promise(slots)
        rows = residency.leading(before)
        if len(rows) < len(before):
            return none, none
        residency.pin(rows)
        return rows, residency.slots(rows, Tier.DEVICE)

    def place_stored(
        self, keys: KeyArray, slots: SlotArray, shown: RowArray, tenant: int
    ) -> RowArray:
        """Of the pages in ``slots``, the last of ``keys``, those ``shown`` (positions) stay there.

        As far as their prefix lies on the device; returns their rows, pinned.
        """
        if not self.is_owned:
            return np.empty(0, np.int64)
        residency, first = self._residency, len(keys) - len(slots)
        chain = residency.index.find(keys)
        there = (chain != NOWHERE) & residency.lies_in(chain, Tier.DEVICE)
        come = np.zeros(len(keys), np.bool_)
        come[shown[shown >= first]] = True
        reached = np.cumprod(there | come).astype(np.bool_)
        new = np.flatnonzero(reached & ~there)
        rows = self._add(keys, np.where(there, chain, NOWHERE), new, tenant)
        residency.place(rows, Tier.DEVICE, slots[new - first])
        residency.touch(rows)
        return rows

    def _with_rest(self, keys: KeyArray, front: RowArray, tenant: int) -> RowArray:
        """Rows of all ``keys``, pinned; those in ``front`` are."""
        residency, first = self._residency, len(front)
        rest = residency.index.find(keys[first:])
        there = (rest != NOWHERE) & residency.lies_in(rest, Tier.DEVICE)
        residency.pin(rest[there])
        chain = np.concatenate((front, np.where(there, rest, NOWHERE)))
        new = first + np.flatnonzero(~there)
        chain[new] = self._add(keys, chain, new, tenant)
        return chain

    def _add(self, keys: KeyArray, chain: RowArray, new: RowArray, tenant: int) -> RowArray:
        """Rows for pages ``new`` (positions) of ``keys``; ``chain`` is NOWHERE where they are."""
        residency = self._residency
        before = np.concatenate(([NOWHERE], chain[:-1])) if len(chain) else chain
        parents = np.where(before == NOWHERE, NEXT, before)
        parents[:1] = NOWHERE
        rows = residency.add(keys[new], parents[new], new)
        fresh = residency.table.records["tiers"][rows] == 0  # nobody's yet
        residency.table.records["tenant"][rows[fresh]] = tenant
        return rows
