# SPDX-License-Identifier: Apache-2.0
"""Every public coroutine of a cache, cancelled in each of its waits, with I/O in flight.

Afterwards no lease, pin or task is left, no file is open that was not, and the bytes are right.
"""

import asyncio
import gc
import itertools
import socket
from pathlib import Path

import pytest

from bodocache.cache import HASH_INLINE_PAGES, Cache
from bodocache.config import (
    CacheConfig,
    DiskConfig,
    FeaturesConfig,
    HostConfig,
    IdentityConfig,
    MetricsConfig,
    TiersConfig,
)
from bodocache.hints import Demote, Prefetch, Span
from bodocache.layout import Group, Layout, LayoutKind
from bodocache.pages import Tier
from bodocache.pools import OwnedPool
from bodocache.replay import payload
from bodocache.testing import Cancelled, Moment, cancel_at

PAGES = 4
LONG = HASH_INLINE_PAGES + 1  # pages whose keys are made in another thread
LAYERS = 4
GROUP = Group("kv", layers=LAYERS, heads=1, head_dim=32, itemsize=2)
SLAB_NBYTES = 4096 + 32 * (GROUP.page_nbytes(8) + 512)
IN_FLIGHT_S = 0.002


def open_files():
    gc.collect()
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


# What an engine does, with what it found on disk on its way


async def load(it, prompt):
    match = await it.cache.match(prompt(PAGES))
    with it.cache.load(match, slots_of(it)) as one:
        loaded = await one
        assert it.wrong_bytes(match.keys, loaded) == 0
    await one.released


async def load_by_layer(it, prompt):
    match = await it.cache.match(prompt(PAGES))
    with it.cache.load(match, slots_of(it), compute_s=[1e-4] * LAYERS) as one:
        one.commit()
        for layer in range(LAYERS):
            await one.layer(layer)
    await one.released


async def loads_of_the_same_pages(it, prompt):
    match = await it.cache.match(prompt(PAGES))
    with it.cache.load(match, slots_of(it)) as one, it.cache.load(match, slots_of(it)) as other:
        assert (await one).pages == (await other).pages == PAGES
    await one.released
    await other.released


async def store(it, prompt):
    match = await it.cache.match(prompt(2, of=1))
    slots = it.slots(2)
    try:
        it.fill(slots, match.keys)
        async with it.cache.store(match, slots) as one:
            slots = slots[:0]  # the store's
            await one
            await one.written
    finally:
        if it.pool is it.engine_pool:
            it.cache.release(slots)


async def store_by_layer(it, prompt):
    match = await it.cache.match(prompt(2, of=1))
    slots = it.slots(2)
    it.fill(slots, match.keys)
    async with it.cache.store(match, slots, layers=True) as one:
        for layer in range(LAYERS):
            await asyncio.sleep(0)
            one.layer_ready(layer)
    await one.written


async def match_a_long_prompt(it, prompt):
    await it.cache.match(prompt(LONG))


async def match_engine_keys(it, _):
    await it.cache.match_engine_keys([bytes([i]) * 32 for i in range(LONG)])


async def holds_engine_keys(it, _):
    await it.cache.holds_engine_keys([bytes([i]) * 32 for i in range(LONG)])


async def follow(it, prompt):
    it.orchestrator._recompute_s = lambda pages: pages * 10.0
    mine = await it.cache.match(prompt(2, of=2))
    with it.cache.announce(mine, ready_s=5.0) as announced:
        asyncio.get_running_loop().call_later(IN_FLIGHT_S, announced.close)
        await it.cache.follow(await it.cache.match(prompt(2, of=2)))


async def hint(it, prompt):
    outcomes = await it.cache.hint(
        [Prefetch(Span(prompt(LONG))), Prefetch(Span(prompt(PAGES))), Demote(Span(prompt(PAGES)))]
    )
    for outcome in outcomes:
        if outcome.operation is not None:
            await outcome.operation


async def close(it, prompt):
    it.cache.load(await it.cache.match(prompt(PAGES)), slots_of(it))
    await it.cache.close()


MOVING = (load, load_by_layer, loads_of_the_same_pages, store, store_by_layer, hint, close)
OTHERS = (match_a_long_prompt, match_engine_keys, holds_engine_keys, follow)
CALLS = [
    *((call, ways) for call in MOVING for ways in ("owned", "borrowed", "streamed")),
    *((call, "owned") for call in OTHERS),
]


def slots_of(it):
    """Of a borrowed pool, those that the engine keeps for this; an owned pool gives out its own."""
    return None if it.pool is it.engine_pool else it.spare.pop()


def leave_on_disk(it):
    if it.pool is it.engine_pool:
        it.leave_on(Tier.DISK)
    else:
        it.residency.evict(Tier.HOST, 1 << 12)


async def settled(it):
    """Wait until nothing moves any more."""
    async with asyncio.timeout(5):
        while it.orchestrator._loader._live or it.orchestrator._storer._live or in_flight(it):
            it.valve.open()
            await asyncio.sleep(0)


def in_flight(it):
    links = it.orchestrator._links.values()
    return any(link.in_flight for link in links) or it.residency.table.records["pins"].any()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("moment", Moment)
@pytest.mark.parametrize(
    ("call", "ways"), CALLS, ids=[f"{call.__name__}-{ways}" for call, ways in CALLS]
)
def test_a_call_cancelled_in_any_wait_leaves_nothing(house, prompt, call, ways, moment):
    async def scenario(at):
        options = {"borrowed": ways == "borrowed", "streams": ways == "streamed"}
        async with house(device=20, **options) as it:
            if ways == "borrowed":
                it.spare = [it.slots(PAGES) for _ in range(3)]
            await it.put(prompt(PAGES))
            leave_on_disk(it)
            tasks = asyncio.all_tasks()
            it.valve.is_shut = True
            asyncio.get_running_loop().call_later(IN_FLIGHT_S, it.valve.open)
            fired = await cancel_at(call(it, prompt), at, moment)
            if call is close:
                return fired  # the house closes it once more, and looks
            await settled(it)
            async with asyncio.timeout(5):
                while asyncio.all_tasks() - tasks:  # noqa: ASYNC110 -- who let go last ends
                    await asyncio.sleep(0)
            it.check()
            assert (await it.get(prompt(PAGES), slots=slots_of(it))).pages == PAGES
        return fired

    before, at = open_files(), 0
    while asyncio.run(scenario(at)):
        at += 1
    assert at
    assert open_files() == before


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def config_in(folder):
    return CacheConfig(
        IdentityConfig(model="m", dtype="bytes"),
        TiersConfig(HostConfig(8 * GROUP.page_nbytes(8)), DiskConfig((folder,), SLAB_NBYTES)),
        features=FeaturesConfig(admit=False),
        metrics=MetricsConfig(port=free_port()),
    )


@pytest.mark.timeout(60)
@pytest.mark.parametrize("moment", Moment)
def test_an_opening_cancelled_in_any_wait_leaves_nothing_open(tmp_path, prompt, moment):
    pool = OwnedPool(Layout(LayoutKind.LAYER_FIRST, GROUP, 8, 8), name="device")
    words = payload.words_of(pool)

    async def store_once():
        async with await Cache.open(config_in(tmp_path), pool) as cache:
            match = await cache.match(prompt(PAGES))
            slots = cache.acquire(PAGES)
            payload.fill(words, slots, payload.seeds(match.keys))
            async with cache.store(match, slots) as one:
                await one.written

    async def serves():
        async with await Cache.open(config_in(tmp_path), pool) as cache:
            match = await cache.match(prompt(PAGES))
            with cache.load(match) as one:
                loaded = await one
                seeds = payload.seeds(match.keys)
                assert loaded.pages == PAGES
                assert payload.count_wrong_bytes(words, loaded.slots, seeds) == 0

    async def open_and_close(at):
        opening = Cancelled(Cache.open(config_in(tmp_path), pool), at, moment)
        try:
            cache = await opening
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # what was told of it
            assert asyncio.all_tasks() == {asyncio.current_task()}
        else:
            await cache.close()
        return opening.fired

    asyncio.run(store_once())
    before = open_files()
    for at in itertools.count():
        fired = asyncio.run(open_and_close(at))
        assert open_files() == before
        assert pool.free == pool.num_pages
        asyncio.run(serves())
        if not fired:
            break
    assert at
