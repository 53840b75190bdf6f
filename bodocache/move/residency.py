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
from bodocache.move import room
from bodocache.move import rows as bookkeeping
from bodocache.move.ghosts import Activity, Ghosts
from bodocache.move.promises import Promises
from bodocache.move.regret import Accesses
from bodocache.move.room import Departure, Need, State
from bodocache.pages import NOBODY, NOWHERE, PageTable, Reason, Tier
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
NOBODYS = Need(Activity.NOBODY, 0)  # for another reason


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
        self.parts = dict(parts or {})  # of each tier, of which a tenant is sure
        tally = shares.open_tally(parts)
        self._queues = evict.open_queues(self.table.capacity, tally)
        self._promises = Promises(len(tally.parts)) if len(tally.parts) > 1 else None
        self._passing = fanout.nobody()
        self._planner = Planner()
        self.ghosts = Ghosts(self.table.capacity)
        self._owners = np.full(device.num_pages, NOWHERE)  # the page in each device slot, by slot
        owned = device.num_pages if isinstance(device, OwnedPool) else 0
        disk = backend.usage.total_frames if backend else 0
        memory = owned + host.num_pages
        self.accesses = Accesses.open(memory + disk, memory)
        self.evicted = dict.fromkeys((Tier.DEVICE, Tier.HOST, Tier.DISK), 0)
        for tier in self.evicted:
            policy["capacity_pages"][0, tier] = self.capacity(tier)
        self.before_eviction: Callable[[], None] = lambda: None  # ends holds that had their time
        self.before_removal: Callable[[RowArray], None] = lambda _: None  # ends those of writes
        self.windows, self.planning_s = 0, 0.0  # planned, and what they took

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
        return found[:present], slots[:present], wanted[:count], sources[:count]

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

    def recover(self, entries: Entries) -> int:
        """Take in what a backend holds from before; return how many pages can be reached.

        Pages whose prefix is not all there are given back.
        """
        order = np.argsort(entries.depths, kind="stable")
        keys, parents = entries.keys[order], entries.parents[order]
        depths, frames = entries.depths[order], entries.frames[order]
        owners = np.minimum(entries.owners[order] - np.uint64(1), np.uint64(NOBODY))  # 0: NOBODY
        kept = 0
        for depth in np.unique(depths):
            level = np.flatnonzero(depths == depth)
            above = self.index.find(parents[level]) if depth else np.full(len(level), NOWHERE)
            reached = (above != NOWHERE) | (depth == 0)
            self.give_back(frames[level[~reached]], Tier.DISK)
            level = level[reached]
            rows = self._add_recovered(keys[level], above[reached], depths[level])
            self.table.records["tenant"][rows] = owners[level]
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

    def take(self, tier: Tier, count: int, need: Need) -> SlotArray:
        """``count`` slots of an owned pool; the coldest that ``need`` may have make room.

        Raises:
            TierFull: pins, leases and shares leave too few; nothing is taken, and nothing leaves.
        """
        pool = self._owned(tier)
        self._make_room(tier, count - pool.free, need, need.tenant, all_or_none=True)
        return self._promised(tier, pool.acquire(count), need.tenant)

    def take_most(
        self, tier: Tier, count: int, need: Need = NOBODYS, *, owner: int | None = None
    ) -> SlotArray:
        """Up to ``count`` slots of an owned pool: as many as can be had.

        They are for pages of ``owner``; None: of who needs them, who makes room in any case.
        """
        pool = self._owned(tier)
        self._make_room(tier, count - pool.free, need, need.tenant)
        slots = pool.acquire(min(count, pool.free))
        return self._promised(tier, slots, need.tenant if owner is None else owner)

    def take_for(self, tier: Tier, rows: RowArray, need: Need) -> SlotArray:
        """Slots of an owned pool for the leading ``rows``: each is for a page of its owner.

        Room is made at the cost of who needs it: an owner loses nothing to a load that is not its
        own, and may never come.
        """
        if self._promises is None:
            return self.take_most(tier, len(rows), need)
        taken = [np.empty(0, np.int64)]
        for mine in self.by_owner(rows):
            owner = int(self.table.records["tenant"][mine[0]])
            taken.append(self.take_most(tier, len(mine), need, owner=owner))
            if len(taken[-1]) < len(mine):
                break
        return np.concatenate(taken)

    def by_owner(self, rows: RowArray) -> list[RowArray]:
        """``rows`` in runs of one owner; in one run where nobody has a share."""
        if self._promises is None or not len(rows):
            return [rows] if len(rows) else []
        owners = self.table.records["tenant"][rows]
        return np.split(rows, np.flatnonzero(owners[1:] != owners[:-1]) + 1)

    def take_worth(
        self, rows: RowArray, need: Need, *, favour: float, goes_on: bool = False
    ) -> SlotArray:
        """Host slots for the leading ``rows`` of a store that are worth their room there.

        In a full tier a page has to be worth more than the page that would leave for it
        (victims.coldest_below), but for an owned pool's; pages that a tenant used once have a limit
        (unproven.py). What has no room is marked NOT_ADMITTED, or NO_ROOM where nothing can leave.
        The rows were learned of; ``favour``: log2 of what hints multiply their worth by.
        ``goes_on``: the disk has room for them, which they reach through the host, so they come.
        """
        pool, records = self._owned(Tier.HOST), self.table.records
        if not self._admits or goes_on or pool.free >= len(rows):
            slots = self.take_most(Tier.HOST, len(rows), need)
            records["reason"][rows[len(slots) :]] = Reason.NO_ROOM
            return slots
        if isinstance(self.device, OwnedPool):  # its pages lie on the host, too, or nowhere
            favour = np.inf
        self.before_eviction()
        taker, now_s = self._taker(Tier.HOST, need.tenant, pool.free), self._now_s()
        kept, why, gone = room.leave_below(
            self._state, Tier.HOST, rows, pool.free, favour, taker, now_s
        )
        self._leave(gone, need)
        refused = Reason.NOT_ADMITTED if why == victims.WORTH_LESS else Reason.NO_ROOM
        records["reason"][rows[kept:]] = refused
        if kept > pool.free:  # who left is still being written: its slot is free when that ends
            records["reason"][rows[pool.free : kept]] = Reason.NO_ROOM
            kept = pool.free
        return self._promised(Tier.HOST, pool.acquire(kept), need.tenant)

    def take_frames(self, count: int, need: Need, *, after: int) -> SlotArray:
        """``count`` frames on disk behind frame ``after``, for pages of who needs them.

        Raises:
            TierFull: as for :meth:`take`.
        """
        assert self.backend is not None, "frames are taken only where there is a disk tier"
        usage = self.backend.usage
        if usage.budget_frames is not None and usage.budget_frames < count:
            raise TierFull(f"disk: {count} frames to write; today's budget: {usage.budget_frames}")
        short = count - usage.free_frames
        self._make_room(Tier.DISK, short, need, need.tenant, all_or_none=True)
        frames = self.backend.reserve(count, after=after)
        return self._promised(Tier.DISK, frames, need.tenant)

    def evict(self, tier: Tier, count: int) -> None:
        """Let the ``count`` coldest pages leave ``tier``, whosever they are; or as many as can."""
        self._make_room(tier, count, NOBODYS, shares.ANYBODY)

    def place(self, rows: RowArray, tier: Tier, slots: SlotArray) -> None:
        """Pages ``rows`` now lie in ``slots`` of ``tier``, verified; they can be found."""
        records = self.table.records
        bookkeeping.put(records, rows, int(tier), slots)
        if tier is Tier.DEVICE:
            self._owners[slots] = rows
        if self._promises is not None:
            self._promises.end(tier, slots)
        evict.arrive(records, self._queues, self.policy, rows, int(tier), self._now_s())

    def settle(self, rows: RowArray, tier: Tier, slots: SlotArray) -> RowArray:
        """The same, but for those that lie in ``tier`` already: they stay; returns their indices.

        Slots of those are the caller's.
        """
        beaten = np.empty(len(rows), np.int64)
        count = bookkeeping.settle(
            *(self.table.records, self._queues, self.policy, rows, int(tier), slots),
            *(self._now_s(), beaten),
        )
        beaten = beaten[:count]
        if count:
            rows, slots = np.delete(rows, beaten), np.delete(slots, beaten)
        if tier is Tier.DEVICE:
            self._owners[slots] = rows
        if self._promises is not None:
            self._promises.end(tier, slots)
        return beaten

    def drop(self, rows: RowArray, tier: Tier, reason: Reason) -> None:
        """The copies of ``rows`` in ``tier`` are gone or worthless."""
        evict.depart(self.table.records, self._queues, self.policy, rows, int(tier))
        self._forget(self._vacate(rows, tier, reason), int(tier))

    def give_back(self, slots: SlotArray, tier: Tier) -> None:
        """Return slots or frames that were taken and hold no page."""
        if not len(slots):
            return
        if self._promises is not None:
            self._promises.end(tier, slots)
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
        gone = np.empty(len(rows), np.int64)
        count = bookkeeping.unpin(self.table.records, self._queues, self.policy, rows, gone)
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

    def plan_load(self, *asked: NDArray[np.void]) -> Plan:
        """Ops for demands, in the order they should start.

        ``asked``: DEMAND records, and, where they are known, TENANT, LINK and REQUEST.
        """
        return self._plan(UNLIMITED, *asked)

    def plan_writes(self, demands: NDArray[np.void]) -> Plan:
        """The same for writes to disk: those that are worth their room there."""
        return self._plan(0 if self.backend is None else self.backend.usage.free_frames, demands)

    def _plan(self, free_frames: int, demands: NDArray[np.void], *others: NDArray[np.void]) -> Plan:
        inputs = Inputs(demands, self.table.records, self.policy, *others)
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

    @property
    def _state(self) -> State:
        return State(self.table.records, self._queues, self.policy)

    def _taker(self, tier: Tier, tenant: int, places: int) -> victims.Taker:
        """``places``: of ``tier``, that the tenant will have before anything more leaves."""
        account = room.account_of(self._state, tenant)
        if self._promises is not None and account != shares.ANYBODY:
            places += int(self._promises.pages[tier, account])
        return victims.Taker(account, tenant, places)

    def _promised(self, tier: Tier, slots: SlotArray, tenant: int) -> SlotArray:
        if self._promises is not None:
            self._promises.make(tier, slots, room.account_of(self._state, tenant))
        return slots

    def _free(self, tier: Tier) -> int:
        if tier is not Tier.DISK:
            return self._owned(tier).free
        assert self.backend is not None, "only a cache with a disk tier makes room there"
        return self.backend.usage.free_frames

    def _make_room(
        self, tier: Tier, short: int, need: Need, tenant: int, *, all_or_none: bool = False
    ) -> None:
        """Let ``short`` pages leave ``tier``: as many as may, or, where those are too few, none.

        What the churn guard keeps has to wait, and what has left meanwhile stays away: else a large
        request would never find room.
        """
        if short <= 0:
            return
        self.before_eviction()
        state, now_s = self._state, self._now_s()
        taker = self._taker(tier, tenant, self._free(tier))
        gone = room.leave(state, tier, short, taker, now_s)
        too_few = all_or_none and room.pages_in(gone, tier) < short
        if too_few and room.may_churn(state, tier, now_s):
            room.undo(state, gone)
        else:
            self._leave(gone, need)

    def _leave(self, gone: list[Departure], need: Need) -> None:
        """Empty the slots of pages that have departed."""
        forgotten: list[tuple[RowArray, Tier]] = []
        for tier, rows in gone:
            self.evicted[tier] += len(rows)
            forgotten.append((self._vacate(rows, tier, Reason.EVICTED), tier))
        later = np.empty(0, np.int64)
        for rows, tier in reversed(forgotten):  # one that left two tiers has left the last of them
            self._forget(rows[~np.isin(rows, later)], int(tier), need)
            later = np.concatenate((later, rows))

    def _vacate(self, rows: RowArray, tier: Tier, reason: Reason) -> RowArray:
        """Give back the slots of ``rows``, which departed; those that lie nowhere now."""
        slots, gone = np.empty((2, len(rows)), np.int64)
        count = bookkeeping.vacate(self.table.records, rows, int(tier), int(reason), slots, gone)
        if tier is Tier.DEVICE:
            self._owners[slots] = NOWHERE
        self.give_back(slots, tier)
        return gone[:count]

    def _forget(self, rows: RowArray, tier: int, need: Need = NOBODYS) -> None:
        """Pages that lie nowhere become ghosts, and the oldest ghosts lose their rows.

        Pages that one which failed leaves behind are its children when it comes again; once it is
        forgotten they are roots.
        """
        if not len(rows):
            return
        records = self.table.records
        records["parent"][rows] = NOWHERE
        self.ghosts.note(rows, (self._now_s(), need.tenant, tier, int(need.activity)))
        oldest = self.ghosts.add(rows)
        if records["descended"][oldest].any():
            records["parent"][np.isin(records["parent"], oldest)] = NOWHERE
            evict.disown(self._queues, oldest)
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
