# SPDX-License-Identifier: Apache-2.0
"""Where every page is: page table, prefix index, slots and frames, kept in step.

One writer, the orchestrator's loop. A page that lies in no tier any more is a *ghost*: its row
stays for a while, to say why the page was a miss and how hot it had been.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bodocache.errors import TierFull
from bodocache.io.backend import TRANSFER, Backend, Entries
from bodocache.move import rows as bookkeeping
from bodocache.move.ghosts import Activity, Ghosts
from bodocache.move.regret import Accesses
from bodocache.pages import NOWHERE, PageTable, Reason, Tier
from bodocache.plan import evict, fanout, reuse, shares, victims
from bodocache.plan.records import DEMAND, Feature, Plan
from bodocache.plan.window import UNLIMITED, Inputs, Planner
from bodocache.pools import BorrowedPool, OwnedPool
from bodocache.prefix import PrefixIndex

RowArray = NDArray[np.int64]
SlotArray = NDArray[np.int64]
KeyArray = NDArray[np.uint8]

NEXT = -2  # in add(): "the row of the page before this one in the same call"
PROMISED = -2  # owner of a device slot that a load or store under way will fill
RECOVERED_HEAT = 1.0  # a page found on disk counts as used once, at the start


@dataclass(frozen=True, slots=True)
class TierStats:
    """How full a tier is, in pages."""

    pages: int
    capacity_pages: int


@dataclass(frozen=True, slots=True)
class RecomputeModel:
    """Seconds an engine needs for one page: ``page_tokens * (base_s + slope_s * position)``."""

    page_tokens: int
    base_s: float
    slope_s: float

    def seconds(self, depths: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """Seconds for the pages at ``depths`` (pages before each)."""
        positions = depths.astype(np.float64) * self.page_tokens
        return self.page_tokens * (self.base_s + self.slope_s * positions)


class Residency:
    """Finds, places, pins and evicts pages in all tiers."""

    def __init__(
        self,
        *,
        device: BorrowedPool,
        host: OwnedPool,
        backend: Backend | None,
        policy: NDArray[np.void],
        recompute: RecomputeModel,
        now_s: Callable[[], float],
        parts: Mapping[int, float] | None = None,
    ) -> None:
        self._recompute = recompute
        self.device, self.host, self.backend, self.policy = device, host, backend, policy
        self.table = PageTable()
        self.index = PrefixIndex(self.table)
        self._now_s = now_s
        self._queues = evict.open_queues(self.table.capacity, shares.open_tally(parts))
        self._loading = 0  # whose pages the load that began last is of
        self._passing = fanout.nobody()
        self._planner = Planner()
        self.ghosts = Ghosts(self.table.capacity)
        self._owners = np.full(device.num_pages, NOWHERE)  # the page in each device slot, by slot
        self._victims = np.empty(4096, np.int64)
        owned = device.num_pages if isinstance(device, OwnedPool) else 0
        disk = backend.usage.total_frames if backend else 0
        memory = owned + host.num_pages
        self.accesses = Accesses.open(memory + disk, memory)
        self.evicted = dict.fromkeys((Tier.DEVICE, Tier.HOST, Tier.DISK), 0)
        for tier in self.evicted:
            policy["capacity_pages"][0, tier] = self.capacity(tier)
        self.before_eviction: Callable[[], None] = lambda: None  # ends holds that had their time
        self.windows, self.planning_s = 0, 0.0  # planned, and what they took
        self._pressure = (0, int(Activity.NOBODY))  # tenant, and what it needs room for

    # Finding

    def leading(self, keys: KeyArray) -> RowArray:
        """Rows of the leading ``keys`` whose pages lie in some tier."""
        found = self.index.find(keys)
        return found[: bookkeeping.count_present(self.table.records, found)]

    def begin_load(self, keys: KeyArray) -> tuple[RowArray, SlotArray, RowArray, NDArray[np.int64]]:
        """Touch and pin the leading ``keys`` whose pages lie in some tier.

        Returns their rows; the device slot of each or NOWHERE; positions of those without, and the
        fastest tier of each of them.
        """
        found = self.index.find(keys)
        slots, wanted, sources = np.empty((3, len(found)), np.int64)
        present, count = bookkeeping.begin_load(
            *(self.table.records, self._queues, self._passing, self.policy, found, self._now_s()),
            *(slots, wanted, sources),
        )
        if present:
            self._loading = int(self.table.records["tenant"][found[present - 1]])
        return found[:present], slots[:present], wanted[:count], sources[:count]

    def loads_again(self, rows: RowArray) -> None:
        """A load of ``rows`` goes on: room is made for whom these pages are of."""
        self._loading = int(self.table.records["tenant"][rows[-1]])

    def describe(self, rows: RowArray, host_slots: SlotArray) -> NDArray[np.void]:
        """A batch (TRANSFER) that gets pages ``rows`` from disk into ``host_slots``."""
        batch = np.zeros(len(rows), TRANSFER)
        table = self.table
        bookkeeping.describe(table.records, table.keys, table.digests, rows, host_slots, batch)
        return batch

    def lies_in(self, rows: RowArray, tier: Tier) -> NDArray[np.bool_]:
        """Whether each page has a copy in ``tier``."""
        there: NDArray[np.bool_] = (self.table.records["tiers"][rows] & tier.bit) != 0
        return there

    def fastest(self, rows: RowArray) -> NDArray[np.int64]:
        """The fastest tier that holds each page."""
        bits = self.table.records["tiers"][rows].astype(np.int64)
        lowest = bits & -bits
        tiers: NDArray[np.int64] = np.log2(lowest).astype(np.int64)
        return tiers

    def words(self, rows: RowArray) -> NDArray[np.uint64]:
        """The first word of each page's key: whether a row that was not held still is that page."""
        words: NDArray[np.uint64] = self.table.keys.view("<u8")[rows, 0]
        return words

    def slots(self, rows: RowArray, tier: Tier) -> SlotArray:
        """Slot or frame of each page in ``tier``; NOWHERE where it has none."""
        slots = np.empty(len(rows), np.int64)
        bookkeeping.slots_of(self.table.records, rows, int(tier), slots)
        return slots

    def holds(self, keys: KeyArray) -> NDArray[np.bool_]:
        """Whether each of ``keys`` lies in some tier, reachable or not."""
        rows = self.index.find(keys)
        held: NDArray[np.bool_] = (rows != NOWHERE) & (self.table.records["tiers"][rows] != 0)
        return held

    def why_missing(self, keys: KeyArray, present: int) -> NDArray[np.uint8]:
        """Reason of each page of the chain ``keys`` from page ``present`` on."""
        if present == len(keys):
            return np.empty(0, np.uint8)
        rows = self.index.find(keys[present:])
        records = self.table.records
        reasons = np.where(rows == NOWHERE, self._why_new(keys, present), records["reason"][rows])
        there = (rows != NOWHERE) & (records["tiers"][rows] != 0)
        reasons[there] = Reason.UNREACHABLE
        reasons[reasons == Reason.NONE] = Reason.NEVER_STORED  # on its way to its first tier
        return reasons.astype(np.uint8)

    # Placing

    def room_for(self, activity: Activity, tenant: int) -> None:
        """From now on room is made for ``tenant``'s ``activity``: ghosts remember it."""
        self._pressure = (tenant, int(activity))

    def recover(self, entries: Entries) -> int:
        """Take in what a backend holds from before; return how many pages can be reached.

        Pages whose prefix is not all there are given back.
        """
        order = np.argsort(entries.depths, kind="stable")
        keys, parents = entries.keys[order], entries.parents[order]
        depths, frames = entries.depths[order], entries.frames[order]
        kept = 0
        for depth in np.unique(depths):
            level = np.flatnonzero(depths == depth)
            above = self.index.find(parents[level]) if depth else np.full(len(level), NOWHERE)
            reached = (above != NOWHERE) | (depth == 0)
            self.give_back(frames[level[~reached]], Tier.DISK)
            level = level[reached]
            rows = self._add_recovered(keys[level], above[reached], depths[level])
            self.table.digests[rows] = entries.digests[order[level]]
            self.place(rows, Tier.DISK, frames[level])
            self.unpin(rows)
            kept += len(rows)
        return kept

    def _add_recovered(self, keys: KeyArray, parents: RowArray, depths: RowArray) -> RowArray:
        rows = self.add(keys, parents, depths)
        self.table.records["heat"][rows] = RECOVERED_HEAT
        reuse.adopt(*self._learned, rows, self._now_s())
        return rows

    def add(self, keys: KeyArray, parents: RowArray, depths: NDArray[np.integer[Any]]) -> RowArray:
        """Rows for pages that lie nowhere, pinned once more; a ghost keeps its row and its heat.

        ``parents`` are rows; NEXT stands for the row that this call gives to the page before.
        """
        rows = self.index.find(keys)
        unknown = rows == NOWHERE
        rows[unknown] = self.table.add(keys[unknown])
        records = self.table.records
        if len(records) > len(self._queues.since_s):
            self._queues = evict.grown(self._queues, len(records))
            self.ghosts.grow_to(len(records))
        self.ghosts.remove(rows)
        before = np.concatenate((parents[:1], rows[:-1]))
        records["parent"][rows] = np.where(parents == NEXT, before, parents)
        records["depth"][rows] = depths
        records["nbytes"][rows] = self.host.layout.page_nbytes
        records["recompute_s"][rows] = self._recompute.seconds(depths)
        records["stamp_s"][rows[unknown]] = self._now_s()
        records["reason"][rows] = Reason.NONE
        records["forecast"][rows] = records["rank"][rows] = 0.0  # hints were on its last stay
        records["pins"][rows] += 1  # a page that was found corrupt may be held by its load
        self.index.insert(rows[unknown])
        return rows

    def take(self, tier: Tier, count: int, *, tenant: int | None = None) -> SlotArray:
        """``count`` slots of an owned pool, the coldest pages making room.

        They are for pages of ``tenant``, and what makes room are pages that it may evict
        (plan/shares.py); None: of whom the pages are that the last :meth:`begin_load` found.

        Raises:
            TierFull: pins, leases and shares leave too few; nothing is taken.
        """
        pool = self._owned(tier)
        if pool.free < count:
            self._evict(tier, count - pool.free, self._loading if tenant is None else tenant)
        return pool.acquire(count)

    def take_most(self, tier: Tier, count: int, *, tenant: int | None = None) -> SlotArray:
        """Up to ``count`` slots of an owned pool: as many as can be had."""
        try:
            return self.take(tier, count, tenant=tenant)
        except TierFull:
            return self.take(tier, self._owned(tier).free, tenant=tenant)

    def take_worth(self, rows: RowArray, *, tenant: int, favour: float) -> SlotArray:
        """Host slots for the leading ``rows`` of a store that are worth their room there.

        In a full tier a page has to be worth more than the page that would leave for it
        (victims.coldest_below), but for an owned pool's; pages that a tenant used once have a limit
        (unproven.py). What has no room is marked NOT_ADMITTED, or NO_ROOM where nothing can leave.
        The rows were learned of; ``favour``: log2 of what hints multiply their worth by.
        """
        pool, records = self._owned(Tier.HOST), self.table.records
        if not self._admits or pool.free >= len(rows):
            slots = self.take_most(Tier.HOST, len(rows), tenant=tenant)
            records["reason"][rows[len(slots) :]] = Reason.NO_ROOM
            return slots
        if isinstance(self.device, OwnedPool):  # its pages lie on the host, too, or nowhere
            favour = np.inf
        self.before_eviction()
        kept, why = self._evict_below(rows, tenant, favour)
        while why == victims.NONE_LEFT and self._may_churn(Tier.HOST):
            if not self._unblock(Tier.HOST, tenant):
                break
            kept, why = self._evict_below(rows, tenant, favour)
        refused = Reason.NOT_ADMITTED if why == victims.WORTH_LESS else Reason.NO_ROOM
        records["reason"][rows[kept:]] = refused
        return pool.acquire(kept)

    def _evict_below(self, rows: RowArray, tenant: int, favour: float) -> tuple[int, int]:
        pool = self._owned(Tier.HOST)
        worth, out = np.empty(len(rows)), np.empty(len(rows), np.int64)
        taker, now_s = self._taker(tenant, pool.free), self._now_s()
        kept, why = victims.coldest_below(
            self.table.records,
            self._queues,
            self.policy,
            rows,
            int(Tier.HOST),
            pool.free,
            favour,
            now_s,
            taker,
            worth,
            out,
        )
        gone = out[: max(0, kept - pool.free)].copy()
        self.evicted[Tier.HOST] += len(gone)
        self._vacate(gone, Tier.HOST, Reason.EVICTED)
        return int(kept), int(why)

    def take_frames(self, count: int, *, after: int, tenant: int) -> SlotArray:
        """``count`` frames on disk behind frame ``after``, for pages of ``tenant``.

        Raises:
            TierFull: as for :meth:`take`.
        """
        assert self.backend is not None, "frames are taken only where there is a disk tier"
        usage = self.backend.usage
        if usage.budget_frames is not None and usage.budget_frames < count:
            raise TierFull(f"disk: {count} frames to write; today's budget: {usage.budget_frames}")
        short = count - usage.free_frames
        if short > 0:
            self._evict(Tier.DISK, short, tenant)
        return self.backend.reserve(count, after=after)

    def place(self, rows: RowArray, tier: Tier, slots: SlotArray) -> None:
        """Pages ``rows`` now lie in ``slots`` of ``tier``, verified; they can be found."""
        records = self.table.records
        bookkeeping.put(records, rows, int(tier), slots)
        if tier is Tier.DEVICE:
            self._owners[slots] = rows
        evict.arrive(records, self._queues, self.policy, rows, int(tier), self._now_s())

    def drop(self, rows: RowArray, tier: Tier, reason: Reason) -> None:
        """The copies of ``rows`` in ``tier`` are gone or worthless."""
        evict.depart(self.table.records, self._queues, self.policy, rows, int(tier))
        self._vacate(rows, tier, reason)

    def give_back(self, slots: SlotArray, tier: Tier) -> None:
        """Return slots or frames that were taken and hold no page."""
        if not len(slots):
            return
        if tier is Tier.DISK:
            assert self.backend is not None, "frames come from a backend"
            self.backend.release(slots)
        else:
            self._owned(tier).release(slots)
            if tier is Tier.DEVICE:
                self._owners[slots] = NOWHERE

    def owners(self, slots: SlotArray) -> RowArray:
        """The page that each device slot holds for the cache, PROMISED, or NOWHERE."""
        return self._owners[slots]

    def promise(self, slots: SlotArray) -> None:
        """A load or store will fill these slots of an owned pool: nobody else may."""
        if isinstance(self.device, OwnedPool):
            self._owners[slots] = np.where(
                self._owners[slots] == NOWHERE, PROMISED, self._owners[slots]
            )

    def empty_device(self) -> None:
        """Give every device slot that holds a page back to the pool."""
        rows = self._owners[self._owners >= 0]
        deepest_first = np.argsort(self.table.records["depth"][rows])[::-1]
        self.drop(rows[deepest_first], Tier.DEVICE, Reason.EVICTED)

    # Holding

    def pin(self, rows: RowArray) -> None:
        """Keep every copy of ``rows`` where it is."""
        evict.pin(self.table.records, self._queues, self.policy, rows)

    def unpin(self, rows: RowArray) -> None:
        """End one pin; pages that lie nowhere and are not pinned are forgotten."""
        evict.unpin(self.table.records, self._queues, self.policy, rows)
        gone = np.empty(len(rows), np.int64)
        count = bookkeeping.find_gone(self.table.records, rows, gone)
        if count:
            self._forget(gone[:count], NOWHERE)

    def requeue(self, rows: RowArray) -> None:
        """Weigh ``rows`` anew: fields that eviction goes by were changed."""
        evict.requeue(self.table.records, self._queues, self.policy, rows)

    def learn(
        self, rows: RowArray, *, before: int, behind: int, tenant: int, chance: float
    ) -> None:
        """A request of ``tenant`` uses ``rows``, which are pinned: learn what is used again.

        ``before``, ``behind``: see reuse.Asked. ``chance``: the caller's that it goes on, or NaN.
        """
        asked = reuse.Asked(before, behind, tenant, chance)
        bookkeeping.learn(self.table.records, self._queues, rows, self._now_s(), asked)

    def touch(self, rows: RowArray) -> None:
        """Somebody stored ``rows``, the last pages of a prompt, shallow to deep."""
        records, now_s = self.table.records, self._now_s()
        evict.touch(records, self._queues, self.policy, rows, now_s)
        fanout.follow(self._passing, records, self.policy, rows, now_s)

    def retire_older_than(self, version: int) -> None:
        """Pages of weights before ``version`` go first from now on."""
        records = self.table.records
        old = np.flatnonzero((records["version"] < version) & (records["tiers"] != 0))
        records["heat"][old] = 0.0
        reuse.write_off(*self._learned, old)
        self.requeue(old)

    def stats(self) -> dict[Tier, TierStats]:
        """Pages in each tier."""
        tiers = self.table.records["tiers"]
        return {
            tier: TierStats(int(np.count_nonzero(tiers & tier.bit)), self.capacity(tier))
            for tier in self.evicted
            if self.capacity(tier)
        }

    @property
    def _learned(self) -> tuple[reuse.Model, NDArray[np.void]]:
        return self._queues.model, self._queues.memories

    def capacity(self, tier: Tier) -> int:
        """How many pages ``tier`` has room for."""
        if tier is Tier.DISK:
            return self.backend.usage.total_frames if self.backend else 0
        pools = {Tier.DEVICE: self.device, Tier.HOST: self.host}
        return pools[tier].num_pages if tier in pools else 0

    # Planning

    def rehearse(self) -> None:
        """Plan nothing, once: a first plan takes 10 ms, later ones of a load a tenth of one."""
        nothing = Inputs(np.zeros(0, DEMAND), self.table.records, self.policy)
        self._planner.plan(nothing, self._queues, now_s=self._now_s(), free_frames=UNLIMITED)

    def plan_load(self, demands: NDArray[np.void]) -> Plan:
        """Ops for ``demands`` (DEMAND records), in the order they should start."""
        return self._plan(demands, UNLIMITED)

    def plan_writes(self, demands: NDArray[np.void]) -> Plan:
        """The same for writes to disk: those that are worth their room there."""
        return self._plan(demands, 0 if self.backend is None else self.backend.usage.free_frames)

    def _plan(self, demands: NDArray[np.void], free_frames: int) -> Plan:
        inputs = Inputs(demands, self.table.records, self.policy)
        begun_s = time.perf_counter()
        made = self._planner.plan(
            *(inputs, self._queues),
            now_s=self._now_s(),
            free_frames=free_frames,
            evicts=False,  # take() makes room, as pages come
        )
        self.windows += 1
        self.planning_s += time.perf_counter() - begun_s
        return made._replace(rows=made.rows.copy())  # all else is used before the next window

    # Going

    def _owned(self, tier: Tier) -> OwnedPool:
        pool = self.device if tier is Tier.DEVICE else self.host
        assert isinstance(pool, OwnedPool), "an engine's pool gives out its own slots"
        return pool

    @property
    def learns(self) -> bool:
        """Whether pages are weighed by what is learned of their requests, hints among it."""
        return not int(self.policy["features_off"][0]) & Feature.REUSE

    @property
    def _admits(self) -> bool:
        """Whether stores have to be worth their room; only what is learned can be compared."""
        return self.learns and not int(self.policy["features_off"][0]) & Feature.ADMIT

    def _taker(self, tenant: int, promised: int) -> victims.Taker:
        return victims.Taker(self._account(tenant), tenant, promised)

    def _account(self, tenant: int) -> int:
        tally = self._queues.tally
        if tenant == shares.ANYBODY:
            return tenant
        return int(shares.account_of(tally, tenant)) if len(tally.tenants) > 1 else 0

    def _evict(self, tier: Tier, count: int, tenant: int = shares.ANYBODY) -> None:
        self.before_eviction()
        promised = 0 if tier is Tier.DISK else self._owned(tier).free
        while count > 0:
            out = self._victims[:count]
            found = victims.coldest_for(
                self.table.records,
                self._queues,
                self.policy,
                int(tier),  # an enum costs compiled code 40 us to look at
                len(out),
                self._now_s(),
                self._taker(tenant, promised),
                out,
            )
            if not found and not (self._may_churn(tier) and self._unblock(tier, tenant)):
                return
            promised += found
            rows = out[:found].copy()
            self.evicted[tier] += found
            self._vacate(rows, tier, Reason.EVICTED)
            count -= found

    def _may_churn(self, tier: Tier) -> bool:
        """Whether the churn guard lets any page go."""
        allowed = victims.allowance(self._queues, self.policy, int(tier), self._now_s())
        return int(allowed) > 0

    def _unblock(self, tier: Tier, tenant: int) -> bool:
        """Let the coldest page go whose last copy in ``tier`` is kept by pages behind it elsewhere.

        They would be out of reach without it, so they go first. A scan of the table, for the rare
        moment when nothing else can go. False where pins keep all that is left, or shares.
        """
        records, policy = self.table.records, self.policy[0]
        aged = records["arrived_s"] + policy["min_residence_s"] <= self._now_s()
        free = (records["pins"] == 0) & (records["holds"] == 0).all(axis=1)
        alone = (records["tiers"] == tier.bit) & free & aged
        rows = np.flatnonzero(alone & (records["descended"] > 0))
        with np.errstate(divide="ignore"):
            warmth = (
                np.log2(records["heat"][rows]) + records["stamp_s"][rows] / policy["half_life_s"]
            )
        for row in rows[np.argsort(warmth)]:
            behind = self._behind(row)
            if records["pins"][behind].any() or records["holds"][behind].any():
                continue
            if not self._may_take(np.append(behind, row), tier, tenant):
                continue
            for held in self.evicted:
                copies = behind[self.lies_in(behind, held)][::-1].copy()
                self.evicted[held] += len(copies)
                self.drop(copies, held, Reason.EVICTED)
            return True
        return False

    def _may_take(self, rows: RowArray, tier: Tier, tenant: int) -> bool:
        """Whether pages of all owners of ``rows`` may leave ``tier`` for one of ``tenant``."""
        tally, capacity = self._queues.tally, self.capacity(tier)
        taker = self._account(tenant)
        owners = {int(owner) for owner in np.unique(self.table.records["tenant"][rows])}
        return all(
            shares.may_evict(tally, int(tier), capacity, taker, 0, self._account(owner))
            for owner in owners
        )

    def _behind(self, row: int) -> RowArray:
        """The pages that lie in some tier and are reached through ``row``, shallow to deep."""
        records, found = self.table.records, [np.array([row])]
        while len(found[-1]):
            children = np.isin(records["parent"], found[-1]) & (records["tiers"] != 0)
            found.append(np.flatnonzero(children))
        return np.concatenate(found[1:])

    def _vacate(self, rows: RowArray, tier: Tier, reason: Reason) -> None:
        slots, gone = np.empty((2, len(rows)), np.int64)
        count = bookkeeping.vacate(self.table.records, rows, int(tier), int(reason), slots, gone)
        if tier is Tier.DEVICE:
            self._owners[slots] = NOWHERE
        self.give_back(slots, tier)
        if count:
            self._forget(gone[:count], int(tier))

    def _forget(self, rows: RowArray, tier: int) -> None:
        """Pages that lie nowhere become ghosts, and the oldest ghosts lose their rows.

        Children that a failed page leaves behind become roots.
        """
        records = self.table.records
        if records["descended"][rows].any():
            records["parent"][np.isin(records["parent"], rows)] = NOWHERE
        records["descended"][rows] = 0
        records["children"][rows] = 0
        records["parent"][rows] = NOWHERE
        tenant, activity = self._pressure
        self.ghosts.note(rows, (self._now_s(), tenant, tier, activity))
        oldest = self.ghosts.add(rows)
        self.ghosts.forget(oldest)
        self.index.remove(oldest)
        reuse.write_off(*self._learned, oldest)
        self.table.remove(oldest)

    def _why_new(self, keys: KeyArray, present: int) -> Reason:
        """Why a page that nobody remembers is missing: its prefix ends, or goes on elsewhere."""
        if present:
            row = int(self.index.find(keys[present - 1 : present])[0])
            if self.table.records["descended"][row]:
                return Reason.DIVERGED
        return Reason.NEVER_STORED
