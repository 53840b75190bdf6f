# SPDX-License-Identifier: Apache-2.0
"""Executes loads: demands become ops, ops become verified pages in device slots."""

import asyncio
import logging
import math
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bodocache.errors import BodoCacheError
from bodocache.io.backend import Status, Transfer
from bodocache.kernels.landing import Landing
from bodocache.move.copies import Copies
from bodocache.move.link import Link
from bodocache.move.load import Load
from bodocache.move.part import Part, SendOn
from bodocache.move.residency import KeyArray, Residency, RowArray, SlotArray
from bodocache.move.tasks import Nursery
from bodocache.move.timeline import Event
from bodocache.pages import NOWHERE, Reason, Tier
from bodocache.plan.records import DEMAND, OpKind, Plan
from bodocache.pools import OwnedPool

_PLANNED = int(Event.PLANNED)

_log = logging.getLogger(__name__)


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
        self._hits = np.zeros(len(Tier), np.int64)
        self._residency = residency
        self._links = links
        self._copies = copies
        self._nursery = nursery
        self._now_s = now_s
        self._page_tokens = page_tokens
        self._loop = asyncio.get_running_loop()
        self._live: set[Load] = set()

    @property
    def hits(self) -> dict[Tier, int]:
        """Pages that loads delivered, by the tier they came from."""
        return {tier: int(self._hits[tier]) for tier in (Tier.DEVICE, Tier.HOST, Tier.DISK)}

    def begin(
        self,
        keys: KeyArray,
        slots: SlotArray | None,
        deadline_s: float,
        *,
        on_load: Callable[[Load], None] = lambda _: None,
    ) -> Load:
        """Begin to bring the pages of ``keys`` to the device; the leading ones that fit.

        ``slots`` are the engine's own device slots, one per page; None for an owned pool.
        ``on_load`` is told of the load before anything happens to it.
        """
        residency, begun_s = self._residency, self._now_s()
        rows, target, wanted, sources = residency.begin_load(keys)
        if slots is not None:
            target, wanted = slots[: len(rows)], np.arange(len(rows))
            sources = residency.fastest(rows)
        else:
            self._take_targets(target, wanted, sources)
        load = Load(
            rows=rows,
            slots=target,
            page_tokens=self._page_tokens,
            begun_s=begun_s,
            deadline_s=deadline_s,
            on_close=self._close,
        )
        on_load(load)
        self._live.add(load)
        load.begin_part()  # this call: it ends below, so that a load of nothing ends too
        there = np.ones(len(rows), np.bool_)
        there[wanted] = False
        load.arrive(np.flatnonzero(there), Tier.DEVICE)
        load.on_settled(partial(self._count_hits, load))
        try:
            for tier in (Tier.DISK, Tier.HOST):  # the disk reads while the host copies
                positions = wanted[sources == tier]
                if len(positions):
                    self._begin_part(load, tier, positions)
            if len(sources) and sources[-1] == NOWHERE:
                self._without_room(load, wanted[sources == NOWHERE])
            self._watch_deadline(load)
        except BaseException:
            load.close()
            raise
        finally:
            load.end_part()
        return load

    async def close(self) -> None:
        """Cancel every load under way and wait until their slots are free."""
        loads = list(self._live)
        for load in loads:
            load.close()
        for load in loads:
            await load.released

    def _take_targets(
        self, target: SlotArray, wanted: RowArray, sources: NDArray[np.int64]
    ) -> None:
        """Device slots for the positions ``wanted``; the source is NOWHERE where none is left."""
        residency = self._residency
        taken = residency.take_most(Tier.DEVICE, len(wanted))
        residency.promise(taken)
        target[wanted[: len(taken)]] = taken
        sources[len(taken) :] = NOWHERE

    def _begin_part(self, load: Load, tier: Tier, positions: RowArray) -> None:
        residency, table = self._residency, self._residency.table
        host_slots = None
        if tier is Tier.DISK:
            host_slots = residency.take_most(Tier.HOST, len(positions))
            if len(host_slots) < len(positions):
                self._without_room(load, positions[len(host_slots) :])
                positions = positions[: len(host_slots)]
        if not len(positions):
            return
        plan = self._plan(load, load.rows[positions])
        rows, positions = plan.rows, positions[plan.demands]
        if host_slots is None:
            host_slots = residency.slots(rows, tier)
        device_slots = load.slots[positions]
        residency.pin(rows)
        residency.host.hold(host_slots)
        residency.device.hold(device_slots)
        load.begin_part()
        link = self._links[tier]
        link.begin(load.begun_s)
        nbytes = len(rows) * residency.host.layout.page_nbytes
        load.note(_PLANNED, link.number, len(rows), 0.0, nbytes)
        part = Part(
            load=load,
            source=tier,
            link=link,
            rows=rows,
            positions=positions,
            host_slots=host_slots,
            device_slots=device_slots,
            keys=table.keys[rows],
            digests=table.digests[rows],
            verified=np.zeros(len(rows), np.bool_),
            kept=np.zeros(len(rows), np.bool_),
            ends=np.cumsum(plan.ops["count"]).tolist(),
        )
        if tier is Tier.DISK:
            self._fetch(part)
        elif not self._copies.runs_here:
            self._nursery.spawn(self._copy_in_thread(part))
        else:
            self._copy_from_host(part)

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

    def _plan(self, load: Load, rows: RowArray) -> Plan:
        """The ops that bring ``rows``, which are distinct, to the device."""
        demands = np.zeros(len(rows), DEMAND)
        demands["page"] = rows
        demands["kind"] = OpKind.LOAD
        demands["deadline_s"] = load.deadline_s
        demands["arrival_s"] = load.begun_s
        return self._residency.plan_load(demands)

    # Host to device

    def _copy_from_host(self, part: Part) -> None:
        """The first turn at once: a short part has landed when the call returns."""
        try:
            more = self._copy_turn(part)
        except Exception:  # noqa: BLE001 -- what cannot be copied is a miss
            _log.exception("host to device: %d pages could not be copied", len(part.rows))
            self._break_off(part)
            more = False
        if more:
            self._nursery.spawn(self._copy_rest(part))
        else:
            self._end_part(part)

    def _copy_turn(self, part: Part) -> bool:
        """Copy what one turn allows; whether anything is left."""
        chosen = part.take_turn(self._copies.turn_pages)
        part.send(chosen, self._copies, self._now_s)
        self._land(part, chosen)
        return part.taken < len(part.rows)

    async def _copy_rest(self, part: Part) -> None:
        """Turn by turn, the loop's other work between two; a cut takes effect at the next."""
        try:
            while not part.load.done:
                await asyncio.sleep(0)
                if not self._copy_turn(part):
                    return
        except Exception:
            self._break_off(part)
            raise
        finally:
            self._end_part(part)

    async def _copy_in_thread(self, part: Part) -> None:
        everything = part.take_turn(len(part.rows))
        try:
            send = partial(part.send, everything, self._copies, self._now_s)
            await self._copies.run(len(everything), send)
            self._land(part, everything)
        except Exception:
            self._break_off(part)
            raise
        finally:
            self._end_part(part)

    def _land(self, part: Part, chosen: RowArray) -> None:
        """Pages ``chosen`` were sent; those that did not verify are worth nothing."""
        verified = part.verified[chosen]
        good, bad = chosen[verified], chosen[~verified]
        if len(bad):
            self.failed_checks += len(bad)
            self._lose(part, bad, Tier.HOST, np.full(len(bad), Reason.CORRUPT, np.uint8))
        if part.source is Tier.DISK:
            self._keep_on_host(part, good)
        if isinstance(self._residency.device, OwnedPool):
            self._settle_on_device(part, good)
        part.landed += len(good)
        part.load.arrive(part.positions[good], part.source)

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

    def _fetch(self, part: Part) -> None:
        """Begin to read; pages go on to the device from the thread that read them."""
        residency, backend = self._residency, self._residency.backend
        assert backend is not None, "a page lies on disk only where there is a disk tier"
        self.disk_idle.clear()
        try:
            sender = SendOn(part, self._landing(part), self._copies, self._now_s)
            transfer = backend.get(
                residency.describe(part.rows, part.host_slots),
                residency.host.rows,
                deadline_s=part.load.deadline_s,
                on_landed=sender,
            )
        except Exception as error:  # noqa: BLE001 -- what cannot be read is a miss
            expected = isinstance(error, BodoCacheError | OSError)
            _log.warning("disk tier: %s", error, exc_info=None if expected else error)
            self._break_off(part)
            self._end_part(part)
            return
        part.load.on_cancel(transfer.abandon)
        self._nursery.spawn(self._follow(part, transfer, sender))

    def _landing(self, part: Part) -> Landing | None:
        """How a thread that holds no Python lock sends the pages on; None where it cannot."""
        if self._copies.pad is None:
            return None
        columns = (part.host_slots, part.device_slots, part.keys, part.digests, part.verified)
        return self._copies.pad.expect(*columns)

    async def _follow(self, part: Part, transfer: Transfer, sender: SendOn) -> None:
        """Take note of pages as they become final, until nothing can touch the slots any more."""
        seen, more = np.zeros(len(part.rows), np.bool_), True
        try:
            while more:
                more = await transfer.progress()
                sender.take_time()
                fresh = np.flatnonzero((transfer.statuses != Status.PENDING) & ~seen)
                seen[fresh] = True
                self._take_over(part, fresh, transfer.statuses[fresh], transfer.reasons[fresh])
        finally:
            transfer.abandon()
            await transfer.drained()
            self._end_part(part)

    def _take_over(
        self, part: Part, chosen: RowArray, statuses: NDArray[np.uint8], reasons: NDArray[np.uint8]
    ) -> None:
        landed, late = statuses == Status.LANDED, statuses == Status.LATE
        lost = ~landed & ~late
        part.load.fail(part.positions[chosen[late]], reasons[late])
        absent = lost & (reasons == Reason.UNAVAILABLE)  # they are there again with their directory
        part.load.fail(part.positions[chosen[absent]], reasons[absent])
        lost &= ~absent
        if lost.any():
            self._lose(part, chosen[lost], Tier.DISK, reasons[lost])
        self._land(part, chosen[landed])

    def _keep_on_host(self, part: Part, chosen: RowArray) -> None:
        """Pages read from disk stay on the host, unless another load brought them first."""
        fresh = chosen[~self._residency.lies_in(part.rows[chosen], Tier.HOST)]
        self._residency.place(part.rows[fresh], Tier.HOST, part.host_slots[fresh])
        part.kept[fresh] = True

    def _break_off(self, part: Part) -> None:
        """What of ``part`` has not arrived will not come."""
        part.load.fail(part.positions, np.full(len(part.rows), Reason.IO_ERROR, np.uint8))

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
        residency.host.drop(part.host_slots)
        residency.device.drop(part.device_slots)
        if part.source is Tier.DISK:
            residency.give_back(part.host_slots[~part.kept], Tier.HOST)
        part.link.end(
            part.landed_s if part.landed == len(part.rows) else self._now_s(),
            begun_s=part.load.begun_s,
            pages=part.landed,
            nbytes=part.landed * residency.host.layout.page_nbytes,
        )
        if part.source is Tier.DISK and not part.link.in_flight:
            self.disk_idle.set()
        if part.landed < len(part.rows):
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

    def _count_hits(self, load: Load) -> None:
        self._hits += load.hits

    def _close(self, load: Load) -> None:
        self._live.discard(load)
        self._residency.unpin(load.rows)
