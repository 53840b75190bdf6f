# SPDX-License-Identifier: Apache-2.0
"""Brings pages to a slower tier because somebody said so; then they leave the faster ones.

Rows are not pinned meanwhile, so that writes cost nobody room: one that is another page's by then,
or was used again, stays where it is. What cannot be copied stays, too.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from bodocache import digest
from bodocache.move.copies import Copies
from bodocache.move.ghosts import Activity
from bodocache.move.leaving import leave
from bodocache.move.link import Link
from bodocache.move.operation import Operation
from bodocache.move.residency import Residency, RowArray, SlotArray
from bodocache.move.room import Need
from bodocache.move.tasks import Nursery
from bodocache.move.writer import Writer
from bodocache.pages import Tier


class _Ticket:
    """Counts what the writer decided of one demotion; a demotion waits for it to be all."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._open = 0
        self._then = then

    def expect(self, pages: int) -> None:
        self._open += pages

    def settle(self, pages: int, written: int) -> None:  # noqa: ARG002 -- looked up afterwards
        self._open -= pages
        if self._open == 0:
            self._then()


class Demoter:
    """Begins demotions and sees them through."""

    def __init__(
        self,
        residency: Residency,
        *,
        writer: Writer | None,
        copies: Copies,
        link: Link,
        nursery: Nursery,
        now_s: Callable[[], float],
    ) -> None:
        self._residency = residency
        self._writer = writer
        self._copies = copies
        self._link = link
        self._nursery = nursery
        self._now_s = now_s
        self._live: set[Operation] = set()

    def begin(
        self, rows: RowArray, to: Tier, leaving: Callable[[], AbstractContextManager[None]]
    ) -> Operation:
        """Begin to bring ``rows`` (shallow to deep, the end of a chain) to tier ``to``.

        They leave the faster tiers inside ``with leaving():``.
        """
        operation = Operation()
        self._live.add(operation)
        self._nursery.spawn(self._run(operation, rows, to, leaving))
        return operation

    async def close(self) -> None:
        """Cancel every demotion under way and wait until it is over; the writer still runs."""
        for operation in list(self._live):
            operation.cancel()
        for operation in list(self._live):
            await operation

    async def _run(
        self,
        operation: Operation,
        rows: RowArray,
        to: Tier,
        leaving: Callable[[], AbstractContextManager[None]],
    ) -> None:
        left = 0
        try:
            words, uses = self._residency.words(rows), self._uses(rows)
            await self._to_host(rows)
            if to is Tier.DISK and not operation.is_cancelled:
                await self._to_disk(operation, rows)
            same = (self._residency.words(rows) == words) & (self._uses(rows) == uses)
            if not operation.is_cancelled:
                with leaving():
                    left = self._leave_faster(rows[same], to)
        finally:
            self._live.discard(operation)
            operation.end(left)

    def _uses(self, rows: RowArray) -> NDArray[np.uint32]:
        uses: NDArray[np.uint32] = self._residency.table.records["hits"][rows]
        return uses

    def _leave_faster(self, rows: RowArray, to: Tier) -> int:
        """From the end of the chain on, as far as pages have arrived."""
        absent = np.flatnonzero(~self._residency.lies_in(rows, to))
        arrived = rows[absent[-1] + 1 :] if len(absent) else rows
        for tier in (Tier.DEVICE, Tier.HOST)[: int(to)]:
            leave(self._residency, arrived, tier)
        faster = self._residency.table.records["tiers"][arrived] & (to.bit - 1)
        return int(np.count_nonzero(faster == 0))

    async def _to_host(self, rows: RowArray) -> None:
        """Copies on the host of those that lie on the device alone, checked as any copy is."""
        residency = self._residency
        alone = rows[residency.table.records["tiers"][rows] == Tier.DEVICE.bit]
        if not len(alone):
            return
        owner = int(residency.table.records["tenant"][alone[-1]])
        slots = residency.take_for(Tier.HOST, alone, Need(Activity.HINT, owner))
        if not len(slots):
            return
        alone, good = alone[: len(slots)], np.zeros(len(slots), np.bool_)
        residency.pin(alone)
        try:
            good = await self._copy(alone, slots)
            residency.place(alone[good], Tier.HOST, slots[good])
        finally:
            residency.give_back(slots[~good], Tier.HOST)
            residency.unpin(alone)

    async def _copy(self, rows: RowArray, slots: SlotArray) -> NDArray[np.bool_]:
        """Copy ``rows`` to host ``slots``; which of them have their digest and are wanted there."""
        residency, begun_s = self._residency, self._now_s()
        good: NDArray[np.bool_] = np.zeros(len(rows), np.bool_)
        device_slots = residency.slots(rows, Tier.DEVICE)
        self._link.begin(begun_s)
        try:
            with residency.host.lease(slots), residency.device.lease(device_slots):
                raw = await self._copies.run(
                    *(len(slots), lambda: self._copies.to_host(device_slots, slots)), to=Tier.HOST
                )
            found = digest.seeded(raw, residency.table.keys[rows])
            good = (found == residency.table.digests[rows]).all(axis=1)
            good &= ~residency.lies_in(rows, Tier.HOST)
        finally:
            pages = int(good.sum())
            nbytes = pages * residency.host.layout.page_nbytes
            self._link.end(self._now_s(), begun_s=begun_s, pages=pages, nbytes=nbytes)
        return good

    async def _to_disk(self, operation: Operation, rows: RowArray) -> None:
        """Hand those that are not there to the writer; wait until it has decided, or cancelled."""
        assert self._writer is not None, "only a cache with a disk tier demotes to it"
        residency = self._residency
        rows = rows[residency.lies_in(rows, Tier.HOST) & ~residency.lies_in(rows, Tier.DISK)]
        if not len(rows):
            return
        decided = asyncio.Event()
        operation.on_cancel(decided.set)
        await self._writer.demote(_Ticket(decided.set), rows)
        await decided.wait()
