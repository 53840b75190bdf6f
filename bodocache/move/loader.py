# SPDX-License-Identifier: Apache-2.0
"""Executes loads: demands become ops, ops become verified pages in device slots.

A *part* is what one load takes from one tier. A part keeps its pages pinned and its slots taken
until it has drained, whatever became of the load meanwhile.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bodocache import digest
from bodocache.io.backend import TRANSFER, Status, Transfer
from bodocache.move.copies import Copies
from bodocache.move.link import Link
from bodocache.move.load import Load
from bodocache.move.residency import KeyArray, Residency, RowArray, SlotArray
from bodocache.move.tasks import Nursery
from bodocache.pages import NOWHERE, Reason, Tier
from bodocache.plan.records import DEMAND, OpKind
from bodocache.pools import OwnedPool


@dataclass(slots=True)
class Part:
    """What one load takes from one tier: ``rows[i]`` goes to ``load.slots[positions[i]]``."""

    load: Load
    source: Tier
    link: Link
    rows: RowArray
    positions: RowArray
    staging: SlotArray  # host slots that the pages pass through
    ops: list[RowArray] = field(default_factory=list)  # indices into rows, op by op
    landed: int = 0


class Loader:
    """Begins loads and sees them through."""

    def __init__(
        self,
        residency: Residency,
        *,
        links: dict[Tier, Link],
        copies: Copies,
        nursery: Nursery,
        now_s: Callable[[], float],
        page_tokens: int,
    ) -> None:
        self.disk_idle = asyncio.Event()  # set while no load reads from disk
        self.disk_idle.set()
        self.failed_checks = 0
        self.hits = {Tier.DEVICE: 0, Tier.HOST: 0, Tier.DISK: 0}
        self._residency = residency
        self._links = links
        self._copies = copies
        self._nursery = nursery
        self._now_s = now_s
        self._page_tokens = page_tokens
        self._loop = asyncio.get_running_loop()
        self._live: set[Load] = set()

    def begin(self, keys: KeyArray, slots: SlotArray | None, deadline_s: float) -> Load:
        """Begin to bring the pages of ``keys`` to the device; the leading ones that fit.

        ``slots`` are the engine's own device slots, one per page; None for an owned pool.
        """
        residency, begun_s = self._residency, self._now_s()
        rows = residency.leading(keys)
        residency.touch(rows)
        residency.pin(rows)
        target, wanted, sources = self._targets(rows, slots)
        load = Load(
            rows=rows,
            slots=target,
            page_tokens=self._page_tokens,
            begun_s=begun_s,
            deadline_s=deadline_s,
            on_close=self._close,
        )
        self._live.add(load)
        load.begin_part()  # this call: it ends below, so that a load of nothing ends too
        there = np.ones(len(rows), np.bool_)
        there[wanted] = False
        load.arrive(np.flatnonzero(there))
        self.hits[Tier.DEVICE] += int(there.sum())
        for tier in (Tier.HOST, Tier.DISK):
            positions = wanted[sources == tier]
            if len(positions):
                self._begin_part(load, tier, positions)
        self._without_room(load, wanted[sources == NOWHERE])
        self._watch_deadline(load)
        load.end_part()
        return load

    async def close(self) -> None:
        """Cancel every load under way and wait until their slots are free."""
        for load in list(self._live):
            load.close()
            await load.released

    def _targets(
        self, rows: RowArray, slots: SlotArray | None
    ) -> tuple[SlotArray, RowArray, NDArray[np.int64]]:
        """Device slot of each page, positions that must be moved, and from which tier each.

        A position whose page finds no room has the source NOWHERE.
        """
        residency = self._residency
        if slots is not None:
            return slots[: len(rows)], np.arange(len(rows)), residency.fastest(rows)
        target = residency.slots(rows, Tier.DEVICE)
        wanted = np.flatnonzero(target == NOWHERE)
        sources = residency.fastest(rows[wanted])
        taken = residency.take_most(Tier.DEVICE, len(wanted))
        target[wanted[: len(taken)]] = taken
        sources[len(taken) :] = NOWHERE
        return target, wanted, sources

    def _begin_part(self, load: Load, tier: Tier, positions: RowArray) -> None:
        staging = np.empty(0, np.int64)
        if tier is Tier.DISK:
            staging = self._residency.take_most(Tier.HOST, len(positions))
            self._without_room(load, positions[len(staging) :])
            positions = positions[: len(staging)]
            if not len(positions):
                return
        rows = load.rows[positions]
        self._residency.pin(rows)
        load.begin_part()
        link = self._links[tier]
        link.begin(load.begun_s)
        if tier is Tier.DISK:
            self.disk_idle.clear()
        part = Part(load, tier, link, rows, positions, staging)
        self._plan(part)
        if tier is Tier.DISK:
            self._nursery.spawn(self._fetch(part))
        elif len(part.ops) == 1 and self._copies.runs_inline(len(rows)):
            self._copy_from_host_now(part)
        else:
            self._nursery.spawn(self._copy_from_host(part))

    def _without_room(self, load: Load, positions: RowArray) -> None:
        load.fail(positions, np.full(len(positions), Reason.NO_ROOM, np.uint8))
        self._free_targets(load, positions)

    def _watch_deadline(self, load: Load) -> None:
        if math.isfinite(load.deadline_s) and not load.done:
            delay_s = max(0.0, load.deadline_s - self._now_s())
            timer = self._loop.call_later(delay_s, self._too_late, load)
            load.on_settled(timer.cancel)

    def _too_late(self, load: Load) -> None:
        load.settle()
        load.abandon()

    def _plan(self, part: Part) -> None:
        """Decide the ops of ``part``: positions of the load, op by op."""
        demands = np.zeros(len(part.rows), DEMAND)
        demands["page"] = part.rows
        demands["kind"] = OpKind.LOAD
        demands["deadline_s"] = part.load.deadline_s
        demands["arrival_s"] = part.load.begun_s
        plan = self._residency.plan(demands)
        depths = self._residency.table.records["depth"]
        for op in plan.ops:
            rows = plan.rows[op["first"] : op["first"] + op["count"]]
            part.ops.append(np.searchsorted(part.positions, depths[rows]))

    # Host to device

    async def _copy_from_host(self, part: Part) -> None:
        """Copy op by op; other callbacks of the loop run between two."""
        try:
            for chosen in part.ops:
                copy = self._copy_of(part, chosen, self._host_slots(part, chosen))
                self._land(part, chosen, await self._copies.run(len(chosen), copy))
                await asyncio.sleep(0)
        finally:
            self._end_part(part)

    def _copy_from_host_now(self, part: Part) -> None:
        """As above for one short op: it has landed when the call returns."""
        try:
            (chosen,) = part.ops
            copy = self._copy_of(part, chosen, self._host_slots(part, chosen))
            self._land(part, chosen, copy())
        finally:
            self._end_part(part)

    def _host_slots(self, part: Part, chosen: RowArray) -> SlotArray:
        return self._residency.slots(part.rows[chosen], Tier.HOST)

    def _copy_of(
        self, part: Part, chosen: RowArray, host_slots: SlotArray
    ) -> Callable[[], NDArray[np.bool_]]:
        """A function that moves pages to their device slots and returns which of them verified."""
        rows, table = part.rows[chosen], self._residency.table
        device_slots = part.load.slots[part.positions[chosen]]
        keys, expected = table.keys[rows], table.digests[rows]

        def move() -> NDArray[np.bool_]:
            found = digest.seeded(self._copies.to_device(host_slots, device_slots), keys)
            verified: NDArray[np.bool_] = (found == expected).all(axis=1)
            return verified

        return move

    def _land(self, part: Part, chosen: RowArray, verified: NDArray[np.bool_]) -> None:
        """Pages ``chosen`` are in their device slots; those not ``verified`` are worth nothing."""
        good, bad = chosen[verified], chosen[~verified]
        if len(bad):
            self.failed_checks += len(bad)
            self._lose(part, bad, Tier.HOST, np.full(len(bad), Reason.CORRUPT, np.uint8))
        if isinstance(self._residency.device, OwnedPool):
            self._settle_on_device(part, good)
        part.landed += len(good)
        self.hits[part.source] += len(good)
        part.load.arrive(part.positions[good])

    def _settle_on_device(self, part: Part, chosen: RowArray) -> None:
        """Place pages that landed; where another load was faster, its copy is the one."""
        residency, load = self._residency, part.load
        rows, positions = part.rows[chosen], part.positions[chosen]
        beaten = residency.lies_in(rows, Tier.DEVICE)
        if beaten.any():
            residency.give_back(load.slots[positions[beaten]], Tier.DEVICE)
            load.slots[positions[beaten]] = residency.slots(rows[beaten], Tier.DEVICE)
        residency.place(rows[~beaten], Tier.DEVICE, load.slots[positions[~beaten]])

    # Disk to host, then to the device

    async def _fetch(self, part: Part) -> None:
        residency, backend = self._residency, self._residency.backend
        assert backend is not None, "a page lies on disk only where there is a disk tier"
        order = np.concatenate(part.ops)
        buffers = residency.host.rows
        residency.host.hold(part.staging)
        batch = self._transfer_batch(part, order)
        try:
            transfer = backend.get(batch, buffers, deadline_s=part.load.deadline_s)
            try:
                part.load.on_cancel(transfer.abandon)
                await self._follow(part, order, transfer)
            finally:
                transfer.abandon()
                await transfer.drained()
        finally:
            residency.host.drop(part.staging)
            self._end_part(part)

    async def _follow(self, part: Part, order: RowArray, transfer: Transfer) -> None:
        seen, more = np.zeros(len(order), np.bool_), True
        while more:
            more = await transfer.progress()
            fresh = np.flatnonzero((transfer.statuses != Status.PENDING) & ~seen)
            seen[fresh] = True
            statuses, reasons = transfer.statuses[fresh], transfer.reasons[fresh]
            await self._take_over(part, order[fresh], statuses, reasons)

    def _transfer_batch(self, part: Part, order: RowArray) -> NDArray[np.void]:
        rows, table = part.rows[order], self._residency.table
        batch = np.zeros(len(rows), TRANSFER)
        batch["key"] = table.keys[rows]
        batch["digest"] = table.digests[rows]
        batch["frame"] = table.records["frame"][rows]
        batch["slot"] = part.staging[order]
        batch["nbytes"] = table.records["nbytes"][rows]
        return batch

    async def _take_over(
        self, part: Part, chosen: RowArray, statuses: NDArray[np.uint8], reasons: NDArray[np.uint8]
    ) -> None:
        """Pages ``chosen`` have become final at the backend: send on the good, forget the bad."""
        landed = chosen[statuses == Status.LANDED]
        late = statuses == Status.LATE
        lost = (statuses != Status.LANDED) & ~late
        part.load.fail(part.positions[chosen[late]], reasons[late])
        if lost.any():
            self._lose(part, chosen[lost], Tier.DISK, reasons[lost])
        if len(landed):
            copy = self._copy_of(part, landed, part.staging[landed])
            verified = await self._copies.run(len(landed), copy)
            self._keep_on_host(part, landed[verified])
            self._land(part, landed, verified)

    def _keep_on_host(self, part: Part, chosen: RowArray) -> None:
        rows = part.rows[chosen]
        fresh = ~self._residency.lies_in(rows, Tier.HOST)
        self._residency.place(rows[fresh], Tier.HOST, part.staging[chosen[fresh]])

    def _lose(self, part: Part, chosen: RowArray, tier: Tier, reasons: NDArray[np.uint8]) -> None:
        """Copies that failed are dropped: the next lookup does not find them."""
        part.load.fail(part.positions[chosen], reasons)
        rows = part.rows[chosen]
        there = self._residency.lies_in(rows, tier)
        for reason in np.unique(reasons[there]):
            self._residency.drop(rows[there & (reasons == reason)], tier, Reason(reason))

    # Endings

    def _end_part(self, part: Part) -> None:
        residency = self._residency
        if part.source is Tier.DISK:
            unused = part.staging[residency.slots(part.rows, Tier.HOST) != part.staging]
            residency.give_back(unused, Tier.HOST)
        now_s, nbytes = self._now_s(), part.landed * residency.host.layout.page_nbytes
        part.link.end(now_s, begun_s=part.load.begun_s, pages=part.landed, nbytes=nbytes)
        if part.source is Tier.DISK and not part.link.in_flight:
            self.disk_idle.set()
        self._free_targets(part.load, part.positions)
        residency.unpin(part.rows)
        part.load.end_part()

    def _free_targets(self, load: Load, positions: RowArray) -> None:
        """Give back the device slots of pages that did not come."""
        if not isinstance(self._residency.device, OwnedPool) or not len(positions):
            return
        slots = load.slots[positions]
        unused = (slots != NOWHERE) & (
            self._residency.slots(load.rows[positions], Tier.DEVICE) != slots
        )
        self._residency.give_back(slots[unused], Tier.DEVICE)
        load.slots[positions[unused]] = NOWHERE

    def _close(self, load: Load) -> None:
        self._live.discard(load)
        self._residency.unpin(load.rows)
