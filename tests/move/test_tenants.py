# SPDX-License-Identifier: Apache-2.0
"""Tenants of one live cache: shares, who streams, and what is learned of whom."""

import asyncio

import numpy as np
import pytest

from bodocache.cache import Cache
from bodocache.clock import RealClock, VirtualClock
from bodocache.config import CacheConfig, HostConfig, IdentityConfig, PlannerConfig, TiersConfig
from bodocache.errors import HintError, TierFull
from bodocache.hints import Reuse
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory
from bodocache.pages import Reason, Tier
from bodocache.pools import BorrowedPool, OwnedPool
from bodocache.replay.shapes import SCANNER, Scan, with_scan, workload
from bodocache.testing import MemoryBackend, MemoryDisk

PAGE_TOKENS = 512


@pytest.mark.parametrize(("shares", "left"), [({"1": 0.5, "2": 0.5}, 4), (None, 0)])
def test_a_flood_takes_nothing_of_a_tenant_within_its_share(house, prompt, shares, left):
    async def scenario():
        async with house(device=8, host=8, disk=0, shares=shares) as it:
            await it.serve(prompt(4), tenant=1)
            for of in range(1, 20):
                await it.serve(prompt(4, of=of), tenant=2)
            assert await it.pages_of(prompt(4)) == left
            assert await it.pages_of(prompt(4, of=19)) == 4

    asyncio.run(scenario())


def test_a_tenant_below_its_share_gets_it_from_who_has_more(house, prompt):
    async def scenario():
        async with house(device=8, host=8, disk=0, shares={"1": 0.5}) as it:
            await it.serve(prompt(8), tenant=2)
            await it.serve(prompt(4, of=1), tenant=1)
            assert await it.pages_of(prompt(4, of=1)) == 4
            assert await it.pages_of(prompt(8)) == 4
            await it.serve(prompt(4, of=2), tenant=1)  # at its share: its own make room
            assert await it.pages_of(prompt(8)) == 4

    asyncio.run(scenario())


def test_a_load_makes_room_with_pages_of_who_asks(house, prompt):
    async def scenario():
        shares = {"1": 0.5, "2": 0.5}
        async with house(device=8, host=8, disk=64, shares=shares) as it:
            await it.serve(prompt(4), tenant=1)
            for of in (1, 2):
                await it.serve(prompt(4, of=of), tenant=2)
            tiers = [await it.tiers(prompt(4, of=of)) for of in (0, 2)]
            for tenant, pages in ((3, 0), (2, 4)):  # tenant 2's, from disk
                match = await it.cache.match(prompt(4, of=1), tenant=tenant)
                with it.cache.load(match) as load:
                    assert (await load).pages == pages
                await load.released
                assert await it.tiers(prompt(4)) == tiers[0]
                assert (await it.tiers(prompt(4, of=2)) == tiers[1]) == (tenant == 3)

    asyncio.run(scenario())


def test_shares_can_leave_no_room(house, prompt):
    async def scenario():
        async with house(device=4, host=8, disk=0, shares={"1": 1.0}) as it:
            await it.serve(prompt(4), tenant=1)
            with pytest.raises(TierFull):
                it.cache.acquire(1, tenant=2)
            with pytest.raises(HintError, match="tenant = -1"):
                it.cache.acquire(1, tenant=-1)

    asyncio.run(scenario())


# --- a borrowed pool, pages of a few bytes, time of its own


class Engine:
    """Serves requests of engine keys through a cache over host memory."""

    def __init__(self, cache, clock, longest):
        self.cache, self.clock, self.slots = cache, clock, np.arange(longest)

    async def serve(self, pages, at_s, tenant=0, chance=None):
        """One request; how many of its pages came from the cache."""
        self.clock.advance(max(0.0, at_s - self.clock.now_s()))
        keys = [page.to_bytes(8, "little") for page in pages]
        said = None if chance is None else Reuse(probability=chance)
        match = await self.cache.match_engine_keys(keys, tenant=tenant, reuse=said)
        with self.cache.load(match, self.slots[: match.pages]) as load:
            loaded = await load
        async with self.cache.store(match, self.slots[loaded.pages : len(pages)]) as store:
            pass
        await store.written
        return loaded.pages

    async def pages_of(self, pages):
        keys = [page.to_bytes(8, "little") for page in pages]
        return await self.cache.match_engine_keys(keys)

    def score(self, *, here, new):
        """Let the model think so well of pages that the host has and of new ones."""
        queues, residency = self.residency._queues, self.residency
        rows = np.flatnonzero(residency.table.records["tiers"] & Tier.HOST.bit)
        queues.model.hazards.score[:] = new
        queues.model.hazards.score[np.unique(queues.memories["kind"][rows])] = here

    @property
    def residency(self):
        return self.cache._orchestrator.residency


async def engine(capacity, longest=256, disk=0):
    group = Group("kv", layers=1, heads=1, head_dim=8, itemsize=2)
    pool = OwnedPool(Layout(LayoutKind.LAYER_FIRST, group, 8, longest), name="engine")
    memory = PagedMemory.of_layout(pool.buffer, pool.layout)
    config = CacheConfig(
        IdentityConfig(model="m", dtype="bytes"),
        TiersConfig(HostConfig(capacity * pool.layout.page_nbytes)),
        PlannerConfig(recompute_s_per_token=0.00125, recompute_slope_s=0.0),
    )
    clock, backend = VirtualClock(), None
    if disk:
        backend = MemoryBackend(MemoryDisk(pool.layout.page_nbytes, disk), clock=RealClock())
    cache = await Cache.open(
        config, BorrowedPool(memory), group=group, clock=clock, backend=backend
    )
    return Engine(cache, clock, longest)


async def hits_of_others(requests, capacity):
    it, hits = await engine(capacity, max(len(request.hash_ids) for request in requests)), 0
    names = sorted({request.tenant for request in requests})
    async with it.cache:
        for request in requests:
            at_s, tenant = request.timestamp_ms / 1000, names.index(request.tenant)
            found = await it.serve(request.hash_ids, at_s, tenant)
            hits += found if request.tenant != SCANNER else 0
    return hits


@pytest.mark.timeout(120)
def test_who_streams_ten_times_the_capacity_costs_the_others_little():
    chats = list(workload("chat", seed=7, requests=1_500, requests_per_s=4.0).requests())
    capacity, end_s = 600, chats[-1].timestamp_ms / 1000
    scan = Scan(10 * capacity, end_s / 2, 10 * capacity / (end_s / 8))
    beside = list(with_scan(iter(chats), scan, PAGE_TOKENS))
    alone, scanned = (asyncio.run(hits_of_others(case, capacity)) for case in (chats, beside))
    assert alone > 1_000
    assert scanned >= 0.97 * alone


def test_a_page_that_is_not_worth_the_coldest_is_turned_away_and_says_so():
    async def scenario():
        it = await engine(4)
        async with it.cache:
            for at_s in range(0, 600, 10):
                await it.serve([1, 2, 3, 4], float(at_s))
            model = it.cache._orchestrator.residency._queues.model
            model.hazards.score[:] = 0.1
            kinds = it.cache._orchestrator.residency._queues.memories["kind"]
            model.hazards.score[kinds[:4]] = 5.0
            await it.serve([9, 10], 600.0)
            assert (await it.pages_of([1, 2, 3, 4])).pages == 4
            match = await it.pages_of([9, 10])
            assert (match.pages, match.reasons.tolist()) == (0, [Reason.NOT_ADMITTED] * 2)

    asyncio.run(scenario())


def test_who_streams_has_a_tenth_of_a_full_tier_however_well_its_pages_look():
    async def scenario():
        it = await engine(40)
        async with it.cache:
            for turn in range(5):
                await it.serve(range(40), 10.0 * turn, tenant=1)
            it.score(here=0.1, new=5.0)
            for turn in range(10):
                await it.serve(range(100 + 8 * turn, 108 + 8 * turn), 100.0 + turn, tenant=2)
                assert it.residency._queues.unproven[Tier.HOST, 2] == 4
            assert (await it.pages_of(range(40))).pages == 36
            match = await it.pages_of(range(172, 180))
            assert match.reasons.tolist() == [Reason.NOT_ADMITTED] * 8

    asyncio.run(scenario())


def test_pages_that_make_room_for_others_of_their_tenant_leave_its_allowance():
    async def scenario():
        it = await engine(40)
        async with it.cache:
            for turn in range(5):
                await it.serve(range(37), 10.0 * turn, tenant=1)
            await it.serve(range(100, 103), 100.0, tenant=2)
            kinds = it.residency._queues.memories["kind"]
            model = it.residency._queues.model
            model.hazards.score[:] = 5.0
            model.hazards.score[kinds[37:40]] = 0.1
            await it.serve(range(200, 203), 101.0, tenant=2)  # 3 of the 4 it may have
            assert (await it.pages_of(range(200, 203))).pages == 3
            assert (await it.pages_of(range(37))).pages == 37

    asyncio.run(scenario())


@pytest.mark.parametrize(("ends", "kept"), [(False, 2), (True, 0)])
def test_a_page_that_is_said_to_end_has_to_be_worth_more(ends, kept):
    async def scenario():
        it = await engine(4)
        async with it.cache:
            for at_s in range(0, 50, 10):
                await it.serve([1, 2, 3, 4], float(at_s))
            it.score(here=1.0, new=1.1)
            keys = [page.to_bytes(8, "little") for page in (9, 10)]
            match = await it.cache.match_engine_keys(keys, reuse=Reuse(end_of_conversation=ends))
            async with it.cache.store(match, it.slots[:2]):
                pass
            assert (await it.pages_of([9, 10])).pages == kept

    asyncio.run(scenario())


@pytest.mark.parametrize(("disk", "kept"), [(64, 4), (8, 0), (0, 0)])
def test_the_host_turns_nothing_away_that_the_disk_has_room_for(disk, kept):
    async def scenario():
        it = await engine(8, disk=disk)
        async with it.cache:
            for at_s in range(0, 50, 10):
                await it.serve(range(8), float(at_s))
            it.score(here=5.0, new=0.1)
            await it.serve(range(20, 24), 50.0)
            match = await it.pages_of(range(20, 24))
            assert match.pages == kept
            assert disk != 64 or it.residency.stats()[Tier.DISK].pages == 12

    asyncio.run(scenario())


def test_an_owned_pools_pages_come_to_the_host_whatever_they_are_worth(house, prompt):
    async def scenario():
        async with house(device=16, host=8, disk=0, admit=True) as it:
            for _ in range(5):
                await it.serve(prompt(8))
            model = it.residency._queues.model
            kinds = it.residency._queues.memories["kind"]
            model.hazards.score[:] = 0.1
            model.hazards.score[kinds[:8]] = 5.0
            await it.serve(prompt(2, of=1))
            assert await it.pages_of(prompt(2, of=1)) == 2

    asyncio.run(scenario())


def test_the_model_learns_whose_request_it_was_and_what_was_said():
    async def scenario():
        it = await engine(64)
        async with it.cache:
            for turn in range(3):
                await it.serve([1, 2, 3], 10.0 * turn, tenant=5, chance=0.95)
            await it.serve([7, 8, 9], 40.0, tenant=6)
            model = it.cache._orchestrator.residency._queues.model
        assert np.flatnonzero(model.reused).tolist() == [5]
        said, continued = model.hints[:, 5]
        assert (said.sum(), said[9], continued[9]) == (3, 3, 2)
        assert model.hints[:, 6].sum() == 0

    asyncio.run(scenario())


def test_unproven_pages_are_counted_as_they_come_are_used_and_leave(house, prompt):
    async def scenario():
        async with house(device=8, host=8, disk=0) as it:
            counts = it.residency._queues.unproven
            await it.serve(prompt(4), tenant=3)
            assert counts[:2, 3].tolist() == [4, 4]
            await it.serve(prompt(4), tenant=3)
            assert counts[:2, 3].tolist() == [0, 0]
            for of in (1, 2, 3):
                await it.serve(prompt(4, of=of), tenant=4)
            assert counts[:2, 4].tolist() == [4, 4]  # the others have left
            it.leave_on(Tier.DISK)
            assert not counts.any()

    asyncio.run(scenario())


def test_a_victim_that_is_still_being_read_leaves_its_room_later():
    async def scenario():
        it = await engine(8, 16)
        async with it.cache:
            await it.serve(list(range(8)), 0.0, 1)
            rows = it.residency.leading((await it.pages_of(list(range(8)))).keys)
            slots = it.residency.slots(rows, Tier.HOST)
            it.score(here=1e-9, new=1.0)
            with it.residency.host.lease(slots[-1:]):  # of the page that goes first
                await it.serve([20, 21], 1.0, 1)
                assert it.cache.stats().traffic.task_failures == 0
                match = await it.pages_of([20, 21])
                assert (match.pages, match.reasons.tolist()) == (1, [Reason.NO_ROOM])
            await it.serve([20, 21], 2.0, 1)
            assert (await it.pages_of([20, 21])).pages == 2

    asyncio.run(scenario())
