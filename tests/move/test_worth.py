# SPDX-License-Identifier: Apache-2.0
"""A cache that costs more than it gains steps aside, and comes back when it would pay."""

import asyncio

import numpy as np
import pytest

from bodocache.cache import Cache
from bodocache.clock import VirtualClock
from bodocache.config import CacheConfig, HostConfig, IdentityConfig, TiersConfig
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory
from bodocache.move.worth import PROBE_HALF_LIVES, Worth
from bodocache.pages import Reason, Tier
from bodocache.pools import BorrowedPool, OwnedPool

PAGE_TOKENS = 8
PAGE_S = PAGE_TOKENS * 20e-6  # to compute, as the configuration says by default
HALF_LIFE_S = 600.0
COPY_S = 0.1 * PAGE_S  # of the engine's time, that storing a page takes
GAP_S = 10.0


class Engine:
    """Computes in virtual time; storing takes some of it."""

    def __init__(self, cache, clock, host_pages):
        self.cache, self.clock, self.host_pages = cache, clock, host_pages
        self.ttfts_s = []

    async def serve(self, pages):
        """One request; its pages that came from the cache."""
        begun_s = self.clock.now_s()
        keys = [page.to_bytes(8, "little") for page in pages]
        match = await self.cache.match_engine_keys(keys)
        slots = np.arange(len(pages))
        with self.cache.load(match, slots[: match.pages]) as load:
            loaded = await load
        async with self.cache.store(match, slots[loaded.pages :]):
            pass  # layer by layer, beside the computing: it takes the engine's bandwidth
        self.clock.advance((len(pages) - loaded.pages) * PAGE_S)
        self.ttfts_s.append(self.clock.now_s() - begun_s)
        self.clock.advance(GAP_S)
        return loaded.pages

    @property
    def gain(self):
        return self.cache.stats().traffic.gain


async def engine(monkeypatch, host_pages=256, load_page_s=0.0):
    group = Group("kv", layers=1, heads=1, head_dim=8, itemsize=2)
    pool = OwnedPool(Layout(LayoutKind.LAYER_FIRST, group, PAGE_TOKENS, 64), name="engine")
    config = CacheConfig(
        IdentityConfig(model="m", dtype="bytes"),
        TiersConfig(HostConfig(host_pages * pool.layout.page_nbytes)),
    )
    clock = VirtualClock()
    memory = BorrowedPool(PagedMemory.of_layout(pool.buffer, pool.layout))
    cache = await Cache.open(config, memory, group=group, clock=clock)
    copies = cache._orchestrator._copies
    to_host, to_device = copies.to_host, copies.to_device

    def store(device_slots, host_slots):
        clock.advance(COPY_S * len(device_slots))
        return to_host(device_slots, host_slots)

    def load(host_slots, device_slots):
        clock.advance(load_page_s * len(device_slots))
        return to_device(host_slots, device_slots)

    monkeypatch.setattr(copies, "to_host", store)
    monkeypatch.setattr(copies, "to_device", load)
    return Engine(cache, clock, host_pages)


def test_without_reuse_it_steps_aside_and_costs_less_than_a_hundredth(monkeypatch):
    async def scenario():
        it = await engine(monkeypatch)
        async with it.cache:
            for request in range(2_000):
                await it.serve(range(8 * request, 8 * request + 8))
            assert np.mean(it.ttfts_s[:50]) > 1.05 * 8 * PAGE_S  # what it costs where it does not
            assert np.mean(it.ttfts_s) < 1.01 * 8 * PAGE_S
            assert (it.gain.is_aside, it.gain.times_aside) == (True, 1 + 20_000 // 30_600)
            assert it.gain.saved_s == 0.0

    asyncio.run(scenario())


def test_with_reuse_it_never_steps_aside(monkeypatch):
    async def scenario():
        it = await engine(monkeypatch)
        async with it.cache:
            hits = 0
            for request in range(1_000):
                chat = request % 12  # each comes again after two minutes
                hits += await it.serve(range(100 * chat, 100 * chat + 8 + request // 100))
            assert hits > 5_000
            assert (it.gain.is_aside, it.gain.times_aside) == (False, 0)
            assert it.gain.saved_s > 10 * it.gain.spent_s

    asyncio.run(scenario())


def test_where_loads_take_longer_than_computing_it_steps_aside(monkeypatch):
    async def scenario():
        it = await engine(monkeypatch, load_page_s=2 * PAGE_S)  # contexts are short
        async with it.cache:
            for request in range(200):
                await it.serve(range(100 * (request % 12), 100 * (request % 12) + 8))
            assert it.gain.is_aside

    asyncio.run(scenario())


def test_it_comes_back_when_what_is_asked_for_again_would_have_saved_more(monkeypatch):
    async def scenario():
        it = await engine(monkeypatch)
        async with it.cache:
            for request in range(100):
                await it.serve(range(8 * request, 8 * request + 8))
            assert it.gain.is_aside
            match = await it.cache.match_engine_keys([(8 * 5).to_bytes(8, "little")])
            assert match.reasons.tolist() in ([Reason.ASIDE], [Reason.EVICTED])
            for request in range(200):
                first = 10_000 + 100 * (request % 12)
                await it.serve(range(first, first + 32))
            assert (it.gain.is_aside, it.gain.times_aside) == (False, 1)
            assert await it.serve(range(10_000, 10_032)) == 32

    asyncio.run(scenario())


def test_what_it_holds_is_not_offered_while_it_is_aside_and_says_why(monkeypatch):
    async def scenario():
        it = await engine(monkeypatch)
        async with it.cache:
            await it.serve(range(4))
            it.cache._orchestrator.worth.is_aside = True
            keys = [page.to_bytes(8, "little") for page in range(6)]
            match = await it.cache.match_engine_keys(keys)
            assert match.pages == 0
            assert match.reasons.tolist() == [Reason.ASIDE] * 4 + [Reason.NEVER_STORED] * 2
            async with it.cache.store(match, np.arange(6)) as store:
                stored = await store
            assert (stored.new, stored.refused) == (0, 6)

    asyncio.run(scenario())


def test_it_measures_again_now_and_then():
    clock = VirtualClock()
    worth = worth_of(clock)
    keys = np.zeros((1, 32), np.uint8)
    worth.spent(1.0)
    assert not worth.judge(keys)  # not before a half-life
    clock.advance(HALF_LIFE_S)
    worth.spent(1.0)
    assert worth.judge(keys)
    clock.advance((PROBE_HALF_LIVES - 1) * HALF_LIFE_S)
    assert worth.judge(keys)
    clock.advance(HALF_LIFE_S)
    assert not worth.judge(keys)


@pytest.mark.parametrize("is_on", [True, False])
def test_it_never_steps_aside_where_that_is_switched_off(is_on):
    clock = VirtualClock()
    worth = worth_of(clock, is_on=is_on)
    clock.advance(HALF_LIFE_S)
    worth.spent(1.0)
    assert worth.judge(np.zeros((1, 32), np.uint8)) == is_on


def test_a_load_saves_everyone_whom_the_recompute_would_have_delayed():
    worth = worth_of(VirtualClock())
    worth.loaded(np.arange(4), waited_s=0.1, n_waiting=2.5)
    assert (worth.saved_s, worth.spent_s) == (pytest.approx(3.5 * 4 * PAGE_S), 0.1)


def worth_of(clock, is_on=True):
    return Worth(
        recompute_s=lambda depths: np.full(len(depths), PAGE_S),
        load_page_s=0.0,
        half_life_s=HALF_LIFE_S,
        is_on=is_on,
        now_s=clock.now_s,
    )


def test_an_owned_pools_pages_stay_on_the_host_but_are_not_written_while_it_is_aside(house, prompt):
    async def scenario():
        async with house() as it:
            for is_aside, written in ((False, 3), (True, 0)):
                it.orchestrator.worth.is_aside = is_aside
                tokens = prompt(3, of=int(is_aside))
                store = await it.compute(tokens)
                assert (await store).new == 3
                store.close()
                assert await store.written == written
                assert await it.pages_of(tokens) == 3  # what the device holds
            it.leave_on(Tier.HOST)
            assert await it.pages_of(tokens) == 0

    asyncio.run(scenario())


def test_what_passes_before_the_engine_is_free_is_no_wait_of_its(house, prompt):
    async def scenario():
        async with house(clock=VirtualClock()) as it:
            for start_s, waited_s in ((None, 8.0), (5.0, 3.0), (10.0, 0.0)):
                await it.put(prompt(4))
                it.leave_on(Tier.DISK)
                it.valve.is_shut = True
                before_s = it.orchestrator.worth.spent_s
                with await it.begin(prompt(4), start_s=start_s) as load:
                    await asyncio.sleep(0)
                    it.clock.advance(8.0)
                    it.valve.open()
                    assert (await load).pages == 4
                spent_s = it.orchestrator.worth.spent_s - before_s
                assert spent_s == pytest.approx(waited_s)

    asyncio.run(scenario())


def test_a_gpus_copies_of_stores_take_no_time_of_its_engine(house, prompt):
    async def scenario():
        async with house() as it:
            await it.put(prompt(4))
            assert it.orchestrator._links["device->host"].counted()[3] > 0.0
            for runs_here in (False, True):
                it.orchestrator._copies.runs_here = runs_here
                before_s = it.orchestrator.worth.spent_s
                it.orchestrator.stands_aside(np.zeros((0, 32), np.uint8))
                assert (it.orchestrator.worth.spent_s > before_s) == runs_here

    asyncio.run(scenario())


def test_a_store_by_layer_is_refused_while_it_is_aside_as_any_other(house, prompt):
    async def scenario():
        async with house(borrowed=True) as it:
            it.orchestrator.worth.is_aside = True
            match = await it.cache.match(prompt(2))
            slots = it.engine_pool.acquire(2)
            it.fill(slots, match.keys)
            store = it.cache.store(match, slots, layers=True)
            for layer in range(it.orchestrator.num_layers):
                store.layer_ready(layer)
            assert (await store).refused == 2
            store.close()
            it.engine_pool.release(slots)

    asyncio.run(scenario())
