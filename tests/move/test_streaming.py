# SPDX-License-Identifier: Apache-2.0
"""Layers on a stream of the device: the ways that a GPU takes, over CPU pools and a slow lane."""

import asyncio

import numpy as np
import pytest

from bodocache.errors import BodoCacheError, LoadFailed
from bodocache.move.stream import passed
from bodocache.move.ticket import Priority
from bodocache.pages import Reason, Tier

LAYERS = 4
COMPUTE_S = [1e-3] * LAYERS
CANARY = np.uint64(0x5A5A5A5A5A5A5A5A)
PAGES = 5


async def on_host(it, tokens):
    await it.put(tokens)
    it.leave_on(Tier.HOST)
    return it.orchestrator._copies


async def until(is_so):
    await asyncio.wait_for(passed(is_so), 5)


async def committed(it, tokens, **when):
    """A load of which all pages are left at the commit; its lane is shut."""
    copies = it.orchestrator._copies
    copies.is_shut = True
    with it.busy("host->device"):
        load = await it.begin(tokens, compute_s=COMPUTE_S, **when)
        assert load.landed == 0
        it.words[:, :, load.slots] = CANARY
        load.commit()
    return load


async def lane_of(it, steps):
    """The last lane, once it was given so much."""
    copies = it.orchestrator._copies
    await until(lambda: copies.lanes and len(copies.lanes[-1].steps) >= steps)
    return copies.lanes[-1]


ALL_STEPS = LAYERS + 1  # and the digests


def there(it, load, layer):
    """Which pages have something of a layer."""
    return (it.words[:, layer, load.slots] != CANARY).any(axis=(0, 2)).tolist()


def test_an_engines_stream_waits_on_the_device_and_the_last_layer_is_waited_for_here(
    house, prompt, engine_stream
):
    async def scenario():
        async with house(streams=True) as it:
            await on_host(it, prompt(PAGES))
            load, stream = await committed(it, prompt(PAGES)), engine_stream()
            for layer in range(LAYERS - 1):
                await asyncio.wait_for(load.layer(layer, stream), 5)
                assert [mark.passed for mark in stream.waits] == [False] * (layer + 1)
            lane = await lane_of(it, ALL_STEPS)
            first, last = (
                asyncio.ensure_future(load.layer(layer, one))
                for layer, one in ((0, None), (LAYERS - 1, stream))
            )
            lane.flow(1)
            await asyncio.wait_for(first, 5)
            assert [mark.passed for mark in stream.waits] == [True, False, False]
            assert there(it, load, 0) == [True] * PAGES
            assert there(it, load, 1) == [False] * PAGES
            lane.flow(3)
            await asyncio.sleep(0.005)
            assert not last.done()  # every byte is there, and none was verified
            lane.flow(1)
            await asyncio.wait_for(last, 5)
            assert len(stream.waits) == LAYERS - 1
            loaded = await load
            assert loaded.pages == PAGES
            assert it.wrong_bytes((await it.cache.match(prompt(PAGES))).keys, loaded) == 0
            load.close()

    asyncio.run(scenario())


def test_a_thread_goes_on_when_its_stream_waits(house, prompt, engine_stream):
    async def scenario():
        async with house(streams=True) as it:
            await on_host(it, prompt(PAGES))
            load, stream = await committed(it, prompt(PAGES)), engine_stream()
            with pytest.raises(BodoCacheError, match="would wait for itself"):
                load.wait_layer(0, stream)
            await asyncio.to_thread(load.wait_layer, 2, stream, timeout_s=5)
            load.wait_layer(1, stream)  # it was given: nobody waits here
            with pytest.raises(TimeoutError):
                await asyncio.to_thread(load.wait_layer, 2, timeout_s=0.01)
            (await lane_of(it, ALL_STEPS)).drain()
            await asyncio.to_thread(load.wait_layer, LAYERS - 1, stream, timeout_s=5)
            load.close()

    asyncio.run(scenario())


def test_before_the_commit_pages_go_whole_and_what_is_left_by_layer(house, prompt):
    async def scenario():
        async with house(streams=True) as it:
            copies = await on_host(it, prompt(PAGES))
            it.orchestrator.links["host->device"].queue._rate = lambda: 1.0  # a page at a time
            load = await it.begin(prompt(PAGES), compute_s=COMPUTE_S)
            (source,) = load._sources
            assert (source.part.under_way, len(source.part.left)) == (1, PAGES - 1)
            load.commit()
            loaded = await load
            assert loaded.pages == PAGES
            assert it.wrong_bytes((await it.cache.match(prompt(PAGES))).keys, loaded) == 0
            assert len(copies.lanes) == 1
            load.close()

    asyncio.run(scenario())


def test_beside_another_load_layers_take_turns_by_when_they_are_due(house, prompt):
    async def scenario():
        async with house(streams=True) as it, asyncio.timeout(60):
            copies = await on_host(it, prompt(PAGES))
            queue = it.orchestrator.links["host->device"].queue
            queue._rate = lambda: 1.0  # bytes/s: a turn is one layer
            load = await committed(it, prompt(PAGES), start_s=50.0)
            urgent, relaxed = _Turn(), _Turn()
            tickets = [
                queue.enter(turn, Priority.LOAD, deadline_s=it.clock.now_s() + due_s)
                for turn, due_s in ((urgent, 49.0), (relaxed, 51.0))
            ]
            for ticket in tickets:
                queue.start(ticket)
            lane = await lane_of(it, 1)
            lane.flow(1)
            await until(lambda: urgent.begun)
            assert (len(lane.steps), relaxed.begun) == (1, 0)
            queue.done(tickets[0], urgent.begun)
            queue.leave(tickets[0])
            for layer in range(1, LAYERS):  # each before what is due later, and no more than one
                await until(lambda layer=layer: len(lane.steps) > layer)
                assert (lane.done, relaxed.begun) == (layer, 0)
                lane.drain()
            await until(lambda: relaxed.begun)
            queue.done(tickets[1], relaxed.begun)
            queue.leave(tickets[1])
            lane.drain()
            assert (await load).pages == PAGES
            assert len(copies.lanes) == 1
            load.close()

    asyncio.run(scenario())


def test_a_load_that_has_its_link_to_itself_is_submitted_whole(house, prompt):
    async def scenario():
        async with house(streams=True) as it:
            await on_host(it, prompt(PAGES))
            it.orchestrator.links["host->device"].queue._rate = lambda: 1.0
            load = await committed(it, prompt(PAGES))
            lane = await lane_of(it, 1)
            lane.flow(1)
            await lane_of(it, ALL_STEPS)
            assert lane.done == 1
            lane.drain()
            assert (await load).pages == PAGES
            load.close()

    asyncio.run(scenario())


class _Turn:
    left_nbytes = 1 << 20
    begun = 0

    def begin(self, nbytes):
        given, self.begun = (0 if self.begun else nbytes), nbytes
        return given

    def withdraw(self):
        pass


@pytest.mark.parametrize("flowed", range(ALL_STEPS + 1))
def test_a_cancelled_load_ends_in_released_and_nothing_writes_afterwards(house, prompt, flowed):
    async def scenario():
        async with house(streams=True) as it, asyncio.timeout(60):
            await on_host(it, prompt(PAGES))
            load = await committed(it, prompt(PAGES))
            slots = load.slots.copy()
            lane = await lane_of(it, ALL_STEPS)
            lane.flow(flowed)
            load.close()
            with pytest.raises(LoadFailed, match="CANCELLED"):
                await load.layer(LAYERS - 1)
            if flowed < LAYERS:
                await asyncio.sleep(0.005)
                assert not load.released.done()
                lane.drain()
            await load.released
            assert lane.done == len(lane.steps)
            it.words[:, :, slots] = CANARY
            lane.drain()
            await asyncio.sleep(0.005)
            assert (it.words[:, :, slots] == CANARY).all()

    asyncio.run(scenario())


def test_a_load_cancelled_before_its_turn_submits_nothing(house, prompt):
    async def scenario():
        async with house(streams=True) as it, asyncio.timeout(60):
            copies = await on_host(it, prompt(PAGES))
            with it.busy("host->device"):
                load = await it.begin(prompt(PAGES), compute_s=COMPUTE_S)
                load.commit()
                await until(lambda: copies.lanes)
                load.close()
                await load.released
            assert not copies.lanes[0].steps

    asyncio.run(scenario())


@pytest.mark.parametrize("refused", range(LAYERS))
def test_a_driver_that_refuses_a_layer_fails_the_load_whole(house, prompt, engine_stream, refused):
    async def scenario():
        async with house(streams=True, failures=1) as it, asyncio.timeout(60):
            copies = await on_host(it, prompt(PAGES))
            copies.refuses_from = refused
            load = await committed(it, prompt(PAGES))
            with pytest.raises(LoadFailed, match="IO_ERROR") as failed:
                await load
            assert failed.value.pages == 0
            with pytest.raises(LoadFailed):
                await load.layer(refused, engine_stream())
            await load.released
            assert it.pool.free == 8
            load.close()
            copies.refuses_from = None
            copies.is_shut = False
            assert (await it.get(prompt(PAGES), compute_s=COMPUTE_S)).pages == PAGES

    asyncio.run(scenario())


# Stores


class Computing:
    """Pages that an engine computes layer by layer into slots that held something else."""

    def __init__(self, it, match, slots):
        self.it, self.slots = it, slots
        it.fill(slots, match.keys)
        self.done = it.words[:, :, slots].copy()
        it.words[:, :, slots] = 0

    def compute(self, layer):
        self.it.words[:, layer, self.slots] = self.done[:, layer]


async def storing(it, tokens):
    match = await it.cache.match(tokens)
    slots = it.slots(len(match.keys))
    computing = Computing(it, match, slots)
    return computing, it.cache.store(match, slots, layers=True)


@pytest.mark.parametrize("borrowed", [False, True])
def test_layers_leave_behind_the_engines_events(house, prompt, engine_stream, borrowed):
    async def scenario():
        async with house(streams=True, borrowed=borrowed) as it:
            copies = it.orchestrator._copies
            copies.is_shut = True
            computing, store = await storing(it, prompt(PAGES))
            stream = engine_stream()
            for layer in range(LAYERS):
                store.layer_ready(layer, stream)  # launched, not computed
            lane = await lane_of(it, 2 * LAYERS + 1)
            for layer in range(LAYERS):
                assert stream.passed == [True] * layer + [False] * (LAYERS - layer)
                computing.compute(layer)  # before the lane gets to the event
                lane.flow(2)  # the event, and the copy behind it
                assert await it.pages_of(prompt(PAGES)) == 0
            assert stream.passed == [True] * LAYERS
            lane.flow(1)
            assert (await store).new == PAGES
            store.close()
            await store.written
            copies.is_shut = False
            it.leave_on(Tier.HOST) if not borrowed else None
            it.words[:, :, computing.slots] = 0
            slots = {"slots": computing.slots} if borrowed else {}
            assert (await it.get(prompt(PAGES), **slots)).pages == PAGES

    asyncio.run(scenario())


@pytest.mark.parametrize("ready", [0, 2])
def test_a_store_closed_before_it_is_whole_has_stored_nothing(house, prompt, ready):
    async def scenario():
        async with house(streams=True) as it, asyncio.timeout(60):
            computing, store = await storing(it, prompt(PAGES))
            for layer in range(ready):
                computing.compute(layer)
                store.layer_ready(layer)
            await asyncio.sleep(0.005)
            store.close()
            stored = await store
            assert (stored.new, stored.refused) == (0, PAGES)
            assert await it.pages_of(prompt(PAGES)) == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("streams", [False, True])
def test_a_byte_that_changes_on_the_way_to_the_host_is_a_miss_and_not_a_page(
    house, prompt, streams
):
    async def scenario():
        async with house(streams=streams, disk=0) as it:
            computing, store = await storing(it, prompt(PAGES))
            for layer in range(LAYERS):
                computing.compute(layer)
                store.layer_ready(layer)
                await asyncio.sleep(0.01)
                if layer == 1:
                    it.host.rows[:, 40] ^= 1  # of layer 0, which is there
            await store
            store.close()
            it.leave_on(Tier.HOST)
            loaded = await it.get(prompt(PAGES))
            assert (loaded.pages, loaded.reasons[0]) == (0, Reason.CORRUPT)

    asyncio.run(scenario())
