# SPDX-License-Identifier: Apache-2.0
"""Begins loads: which pages come from where, in which slots; and sees them through."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bodocache.move.copies import Copies
from bodocache.move.copying import Copying
from bodocache.move.decide import Decider
from bodocache.move.flights import Flights
from bodocache.move.ghosts import Activity
from bodocache.move.land import Lander
from bodocache.move.link import Link
from bodocache.move.load import Load
from bodocache.move.part import Part
from bodocache.move.reads import Reads
from bodocache.move.residency import KeyArray, Residency, RowArray, SlotArray
from bodocache.move.room import Need
from bodocache.move.tasks import Nursery
from bodocache.move.terms import Terms
from bodocache.move.ticket import Priority, Ticket
from bodocache.move.timeline import Event
from bodocache.move.windows import Windows
from bodocache.pages import NOWHERE, Tier
from bodocache.pools import OwnedPool

_PLANNED, _PREDICTED = int(Event.PLANNED), int(Event.PREDICTED)
# NumPy compares with a member of an enum ten times as slowly.
_DEVICE, _DISK = int(Tier.DEVICE), int(Tier.DISK)


class Loader:
    """Begins loads and sees them through."""

    def __init__(
        self,
        residency: Residency,
        *,
        links: dict[Tier, Link],
        copies: Copies,
        nursery: Nursery,
        decider: Decider,
        windows: Windows,
        now_s: Callable[[], float],
        page_tokens: int,
    ) -> None:
        self._hits = np.zeros(len(Tier), np.int64)
        self._residency = residency
        self._links = links
        self._copies = copies
        self._nursery = nursery
        self._decider = decider
        self._windows = windows
        self._flights = Flights(now_s)
        self._flights.arrived, self._flights.carry_on = self._came_along, self._carry_on
        self._lander = Lander(residency, self._flights, now_s)
        self._now_s = now_s
        self._page_tokens = page_tokens
        self._live: set[Load] = set()
        decider.reroute = self._reroute
        decider.leaders = self._flights.leaders

    @property
    def hits(self) -> dict[Tier, int]:
        """Pages that loads delivered, by the tier they came from."""
        return {tier: int(self._hits[tier]) for tier in (Tier.DEVICE, Tier.HOST, Tier.DISK)}

    @property
    def joined(self) -> int:
        """Pages that were on their way for another load, and not read again."""
        return self._flights.joined

    def are_coming(self, rows: RowArray) -> NDArray[np.bool_]:
        """Whether some load brings each of ``rows`` from disk."""
        return self._flights.are_coming(rows)

    @property
    def failed_checks(self) -> int:
        """Pages whose bytes failed the digest between host and device."""
        return self._lander.failed_checks

    def begin(
        self,
        keys: KeyArray,
        slots: SlotArray | None,
        terms: Terms,
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
        load = Load(
            rows=rows,
            slots=target,
            page_tokens=self._page_tokens,
            layers=self._copies.num_layers,
            begun_s=begun_s,
            terms=terms,
            on_close=self._close,
        )
        on_load(load)
        self._live.add(load)
        load.begin_part()  # this call: it ends below, so that a load of nothing ends too
        if len(wanted) < len(rows):
            there = np.ones(len(rows), np.bool_)
            there[wanted] = False
            load.arrive(there.nonzero()[0], Tier.DEVICE)
        load.on_settled(partial(self._count_hits, load))
        try:
            if terms.may_be_cut:
                self._decider.before_first_byte(load, wanted, sources)
                if load.wanted < len(rows):
                    kept = load.is_wanted(wanted)
                    wanted, sources = wanted[kept], sources[kept]
            self._bring(load, wanted, sources)
            self._decider.watch_deadline(load)
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
        self._windows.close()
        self._decider.close()

    def _bring(self, load: Load, positions: RowArray, sources: NDArray[np.int64]) -> None:
        """Bring the pages at ``positions``, or wait for those that are on their way."""
        joins = sources == _DISK
        if np.count_nonzero(joins):
            joins[joins] = self._flights.join(load, positions[joins])
            if np.count_nonzero(joins):
                positions, sources = positions[~joins], sources[~joins]
        if isinstance(self._residency.device, OwnedPool):
            self._take_targets(load, positions, sources)
        self._begin_parts(load, positions, sources)

    def _came_along(self, load: Load, positions: RowArray) -> None:
        """Another load has brought pages that this one joined."""
        residency, rows = self._residency, load.rows[positions]
        if isinstance(residency.device, OwnedPool):
            load.slots[positions] = residency.slots(rows, Tier.DEVICE)
            load.arrive(positions, Tier.DISK)
        else:  # into our own slots, from the one copy that was read
            self._begin_part(load, Tier.HOST, positions)
        self._decider.progress_of(load)

    def _carry_on(self, load: Load, positions: RowArray) -> None:
        """Bring pages that this load had joined and the other wants no more."""
        residency, records = self._residency, self._residency.table.records
        rows = load.rows[positions]
        gone = records["tiers"][rows] == 0
        load.fail(positions[gone], records["reason"][rows[gone]].astype(np.uint8))
        rows, positions = rows[~gone], positions[~gone]
        sources = residency.fastest(rows)
        there = sources == _DEVICE
        load.slots[positions[there]] = residency.slots(rows[there], Tier.DEVICE)
        load.arrive(positions[there], Tier.DEVICE)
        self._bring(load, positions[~there], sources[~there])

    def _take_targets(self, load: Load, wanted: RowArray, sources: NDArray[np.int64]) -> None:
        """Device slots for the positions ``wanted``; the source is NOWHERE where none is left."""
        residency = self._residency
        taken = residency.take_for(Tier.DEVICE, load.rows[wanted], _need_of(load))
        residency.promise(taken)
        load.slots[wanted[: len(taken)]] = taken
        sources[len(taken) :] = NOWHERE

    def _begin_parts(self, load: Load, wanted: RowArray, sources: NDArray[np.int64]) -> None:
        for tier in (Tier.DISK, Tier.HOST):  # the disk reads while the host copies
            positions = wanted[sources == int(tier)]
            if len(positions):
                self._begin_part(load, tier, positions)
        if len(sources) and sources[-1] == NOWHERE:
            self._lander.without_room(load, wanted[sources == NOWHERE])

    def _begin_part(self, load: Load, tier: Tier, positions: RowArray) -> None:
        residency, lander, link = self._residency, self._lander, self._links[tier]
        if not link.queue.has_room((load.terms.tenant,)):
            lander.without_room(load, positions)
            return
        host_slots = None
        if tier is Tier.DISK:
            first = positions[: self._most_read(load, len(positions))]
            host_slots = residency.take_for(Tier.HOST, load.rows[first], _need_of(load))
            if len(host_slots) < len(positions):
                lander.without_room(load, positions[len(host_slots) :])
                positions = positions[: len(host_slots)]
        if not len(positions):
            return
        rows = load.rows[positions]
        if host_slots is None:
            host_slots = residency.slots(rows, tier)
        device_slots = load.slots[positions]
        residency.pin(rows)
        residency.host.hold(host_slots)
        residency.device.hold(device_slots)
        load.begin_part()
        link.begin(load.begun_s)
        part = Part(
            load=load,
            source=tier,
            link=link,
            page_nbytes=residency.host.layout.page_nbytes,
            rows=rows,
            positions=positions,
            host_slots=host_slots,
            device_slots=device_slots,
            keys=residency.table.keys[rows],
            digests=residency.table.digests[rows],
            kept=np.zeros(len(rows), np.bool_),
            left=np.arange(len(rows)),
            ours=np.ones(len(rows), np.bool_),
        )
        if tier is Tier.DISK:
            part.on_left = self._flights.left
            self._flights.lead(part)
        self._enter(part)

    def _most_read(self, load: Load, pages: int) -> int:
        """How many of ``pages`` may take host slots and wait for the disk."""
        host, queue = self._residency.host, self._links[Tier.DISK].queue
        page_nbytes = host.layout.page_nbytes
        room = queue.room_nbytes((load.terms.tenant,), host.num_pages * page_nbytes)
        return int(min(pages, room // page_nbytes))

    def _enter(self, part: Part) -> None:
        """Let the part wait for its turn on its link: it may have come when this returns."""
        work, queue = self._work(part), part.link.queue
        part.load.add_source(work)
        due_s = part.load.terms.due_s(part.load.begun_s)
        payers = (part.load.terms.tenant,)
        part.ticket = queue.enter(work, Priority.LOAD, deadline_s=due_s, payers=payers)
        assert part.ticket is not None, "there was room"
        part.own_due_s = part.ticket.due_s
        part.prediction = part.link.predict_ticket(part.ticket)
        self._note(part, part.ticket)
        self._decider.watch(part)
        is_planned = part.source is Tier.DISK  # a copy gains nothing by another order
        if is_planned:
            self._windows.add(part)
        queue.start(part.ticket)
        if is_planned:
            self._windows.wait()

    def _note(self, part: Part, ticket: Ticket) -> None:
        note, link, nbytes = part.load.note, part.link, len(part.rows) * part.page_nbytes
        note(_PLANNED, link.number, len(part.rows), 0.0, nbytes)
        if part.prediction is not None and (known := link.estimate(nbytes)) is not None:
            ahead = link.queue.ahead_nbytes(ticket) - ticket.work.left_nbytes
            note(_PREDICTED, link.number, 0, part.prediction.finish_s, ahead, known.rate)

    def _reroute(self, part: Part, tier: Tier) -> None:
        """Bring what of ``part`` has not begun from ``tier``, as far as it lies there."""
        chosen = part.left[self._residency.lies_in(part.rows[part.left], tier)]
        part.give_up(chosen)
        self._begin_part(part.load, tier, part.positions[chosen])
        part.load.look_over()

    def _work(self, part: Part) -> Reads | Copying:
        if part.source is Tier.DISK:
            return Reads(
                part,
                residency=self._residency,
                copies=self._copies,
                lander=self._lander,
                nursery=self._nursery,
                deadline_s=self._decider.backend_deadline_s(part.load),
                now_s=self._now_s,
                on_progress=self._decider.progress,
            )
        return Copying(
            part,
            copies=self._copies,
            lander=self._lander,
            nursery=self._nursery,
            now_s=self._now_s,
            on_progress=self._decider.progress,
        )

    def _count_hits(self, load: Load) -> None:
        self._hits += load.hits

    def _close(self, load: Load) -> None:
        self._residency.unpin(load.rows)
        self._live.discard(load)


def _need_of(load: Load) -> Need:
    return Need(Activity.LOAD, load.terms.tenant)
