# SPDX-License-Identifier: Apache-2.0
"""Stores by layer: each layer leaves the device as it is computed; pages show when whole."""

import asyncio

import pytest

from bodocache.clock import VirtualClock
from bodocache.errors import BodoCacheError
from bodocache.move.store import Stored
from bodocache.move.ticket import PATIENCE_S, Priority
from bodocache.pages import Tier

PAGES, LAYERS = 3, 4


class Computing:
    """Pages that an engine computes layer by layer into slots that held something else."""

    def __init__(self, it, match, slots):
        self.it, self.slots = it, slots
        it.fill(slots, match.keys)
        self.done = it.words[:, :, slots].copy()
        it.words[:, :, slots] = 0

    def compute(self, layer):
        """Layer ``layer`` of every page is there now."""
        self.it.words[:, layer, self.slots] = self.done[:, layer]


class Endless:
    """A load that always has another chunk."""

    left_nbytes = 1 << 20

    def begin(self, _):
        return 1

    def withdraw(self):
        pass


async def begun(it, tokens):
    match = await it.cache.match(tokens)
    slots = it.slots(len(match.keys))
    computing = Computing(it, match, slots)
    return computing, it.cache.store(match, slots, layers=True)


async def turns(n=8):
    for _ in range(n):
        await asyncio.sleep(0)


def test_the_pool_is_layer_first(house):
    async def scenario():
        async with house() as it:
            assert it.words.shape[:2] == (2, LAYERS)

    asyncio.run(scenario())


@pytest.mark.parametrize("borrowed", [False, True])
def test_layers_leave_as_they_are_computed_and_pages_show_when_whole(house, prompt, borrowed):
    async def scenario():
        async with house(device=8, borrowed=borrowed) as it:
            computing, store = await begun(it, prompt(PAGES))
            for layer in range(LAYERS):
                await turns()
                assert it.orchestrator.links["device->host"].counted()[2] == (
                    layer * PAGES * it.orchestrator._copies.layer_nbytes
                )
                assert await it.pages_of(prompt(PAGES)) == 0
                computing.compute(layer)
                store.layer_ready(layer)
                store.layer_ready(0)  # again is harmless
            stored = await store
            assert (stored.new, stored.refused) == (PAGES, 0)
            if borrowed:
                it.words[:, :, computing.slots] = 0  # they are the engine's own again
            store.close()
            await store.written
            if not borrowed:
                it.leave_on(Tier.HOST)
            slots = {"slots": it.slots(PAGES)} if borrowed else {}
            assert (await it.get(prompt(PAGES), **slots)).pages == PAGES

    asyncio.run(scenario())


def test_a_layer_waits_for_loads_on_the_same_memory_bus_but_not_for_ever(house, prompt):
    async def scenario():
        clock = VirtualClock()
        async with house(clock=clock) as it:
            left = it.orchestrator.links["device->host"].counted
            computing, store = await begun(it, prompt(PAGES))
            queue = it.orchestrator.links["host->device"].queue
            load = queue.enter(Endless(), Priority.LOAD, deadline_s=0.0)
            queue.start(load)
            for layer in range(LAYERS):
                computing.compute(layer)
                store.layer_ready(layer)
            for layer in range(2):
                await turns()
                assert left()[2] == layer * PAGES * it.orchestrator._copies.layer_nbytes
                clock.advance(PATIENCE_S[Priority.STORE])
                async with asyncio.timeout(60):
                    while left()[0] == layer:  # noqa: ASYNC110 -- no event is set
                        await asyncio.sleep(0.005)
            queue.leave(load)
            assert (await store).new == PAGES
            store.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("ready", [0, 2])
def test_a_store_closed_before_it_is_whole_has_stored_nothing(house, prompt, ready):
    async def scenario():
        async with house() as it:
            computing, store = await begun(it, prompt(PAGES))
            for layer in range(ready):
                computing.compute(layer)
                store.layer_ready(layer)
            await turns()
            store.close()
            stored = await store
            assert (stored.new, stored.refused) == (0, PAGES)
            assert await it.pages_of(prompt(PAGES)) == 0
            assert (await it.put(prompt(PAGES))).new == PAGES

    asyncio.run(scenario())


def test_a_store_behind_one_that_is_closed_before_it_is_whole_brings_its_pages(house, prompt):
    async def scenario():
        async with house(device=16, host=8) as it, asyncio.timeout(5):
            computing, first = await begun(it, prompt(PAGES))
            computing.compute(0)
            first.layer_ready(0)
            await turns()
            second = await it.compute(prompt(5))
            await turns()
            first.close()
            assert await first == Stored(new=0, known=PAGES, refused=0)
            assert await second == Stored(new=5, known=0, refused=0)
            second.close()
            assert it.pool.free == 11
            assert (await it.get(prompt(5))).pages == 5

    asyncio.run(scenario())


def test_a_store_waits_for_no_other_engine(house, prompt):
    async def scenario():
        async with house(device=16, host=16) as it, asyncio.timeout(5):
            computing, first = await begun(it, prompt(PAGES))
            assert await it.put(prompt(5)) == Stored(new=5, known=0, refused=0)
            for layer in range(LAYERS):
                computing.compute(layer)
                first.layer_ready(layer)
            assert await first == Stored(new=0, known=PAGES, refused=0)
            first.close()

    asyncio.run(scenario())


def test_stores_whose_layers_come_together_bring_shared_pages_once(house, prompt):
    async def scenario():
        async with house(device=16, host=5) as it, asyncio.timeout(5):
            begins = [await begun(it, prompt(pages)) for pages in (PAGES, 5)]
            for layer in range(LAYERS):
                for computing, store in begins:
                    computing.compute(layer)
                    store.layer_ready(layer)
                await turns()
            first, second = (store for _, store in begins)
            assert await first == Stored(new=PAGES, known=0, refused=0)
            assert await second == Stored(new=2, known=PAGES, refused=0)
            first.close()
            second.close()

    asyncio.run(scenario())


def test_leaving_the_context_before_the_last_layer_does_not_wait_for_it(house, prompt):
    async def scenario():
        async with house() as it:
            computing, store = await begun(it, prompt(PAGES))
            async with asyncio.timeout(5):
                async with store:
                    computing.compute(0)
                    store.layer_ready(0)
                assert (await store).new == 0

    asyncio.run(scenario())


def test_closing_the_cache_does_not_wait_for_layers(house, prompt):
    async def scenario():
        async with house() as it:
            _, store = await begun(it, prompt(PAGES))
            await asyncio.wait_for(it.cache.close(), 5)
            assert (await store).refused == PAGES
            store.close()

    asyncio.run(scenario())


def test_layers_are_said_in_order_and_of_stores_by_layer(house, prompt):
    async def scenario():
        async with house() as it:
            _, store = await begun(it, prompt(PAGES))
            with pytest.raises(BodoCacheError, match="layer 1 is ready before layer 0"):
                store.layer_ready(1)
            with pytest.raises(BodoCacheError, match="layer 4 of 4"):
                store.layer_ready(LAYERS)
            store.close()
            await store
            whole = await it.compute(prompt(1))
            with pytest.raises(BodoCacheError, match="layers=True"):
                whole.layer_ready(0)
            await whole
            whole.close()

    asyncio.run(scenario())
