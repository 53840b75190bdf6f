# SPDX-License-Identifier: Apache-2.0
"""Every public coroutine of an attached cache, cancelled in each of its waits.

Afterwards neither side holds a lease, task or descriptor that it did not hold before, and the bytes
are right.
"""

import asyncio
import gc
from pathlib import Path

import pytest

from bodocache.clock import RealClock
from bodocache.hints import Prefetch, Span
from bodocache.node.client import NodeCache
from bodocache.pages import Tier
from bodocache.testing import (
    Cancelled,
    MemoryBackend,
    MemoryDisk,
    Moment,
    SlowBackend,
    cancel_at,
)

PAGES = 4
SLOW_S = 0.002


def open_files():
    gc.collect()  # a mapping goes with the last reference to it
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


async def load(it, prompt):
    match = await it.cache.match(prompt(PAGES))
    with it.cache.load(match) as one:
        await one
    await one.released


async def load_by_layer(it, prompt):
    match = await it.cache.match(prompt(PAGES))
    with it.cache.load(match, compute_s=[1e-4] * 4) as one:
        one.commit()
        for layer in range(4):
            await one.layer(layer)
    await one.released


async def serve(it, prompt):
    await it.serve(prompt(2, of=1))


async def match_engine_keys(it, _):
    await it.cache.match_engine_keys([bytes([i]) * 32 for i in range(40)])


async def holds_engine_keys(it, _):
    await it.cache.holds_engine_keys([bytes([i]) * 32 for i in range(40)])


async def hint(it, prompt):
    for outcome in await it.cache.hint([Prefetch(Span(prompt(PAGES)))]):
        if outcome.operation is not None:
            await outcome.operation


async def node_stats(it, _):
    await it.cache.node_stats()


async def close(it, prompt):
    it.cache.load(await it.cache.match(prompt(PAGES)))
    await it.cache.close()


CALLS = (
    *(load, load_by_layer, serve, match_engine_keys, holds_engine_keys, hint, node_stats, close),
)


def slow_disk(house):
    clock = RealClock()
    disk = MemoryBackend(MemoryDisk(house.PAGE_NBYTES, 64), clock=clock)
    return SlowBackend(disk, SLOW_S, clock=clock)


async def at_rest(house, node, it):
    """Wait until nothing moves on either side."""
    engine, records = it.cache._engine, it.cache._engine.residency.table.records
    await house.until(lambda: not engine._loader._live and not engine._storer._live)
    await house.until(lambda: not records["pins"].any() and not it.pool.leased)
    await house.until(lambda: not node.host.residency.table.records["pins"].any())
    await house.until(lambda: not node.host.residency.host.leased)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("moment", Moment)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_a_call_cancelled_in_any_wait_leaves_nothing_on_either_side(tmp_path, house, call, moment):
    async def scenario():
        path, values = tmp_path / "s", house.settings()
        async with house.node_at(path, values, backend=slow_disk(house)) as node:
            async with house.attach(path, values) as it:
                await it.serve(house.prompt(PAGES))
            before, at, fired = open_files(), 0, True
            while fired:
                async with house.attach(path, values) as it:
                    node.host.residency.evict(Tier.HOST, 1 << 12)
                    tasks = asyncio.all_tasks()
                    fired = await cancel_at(call(it, house.prompt), at, moment)
                    if call is not close:
                        await at_rest(house, node, it)
                        await house.until(lambda tasks=tasks: asyncio.all_tasks() == tasks)
                        assert await it.serve(house.prompt(PAGES)) == PAGES
                at += 1
                await house.until(lambda: not node.door.connections)
                assert open_files() == before
        return at

    assert asyncio.run(scenario()) > 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("moment", Moment)
def test_an_attaching_cancelled_in_any_wait_leaves_nothing(tmp_path, house, moment):
    async def scenario():
        path, values = tmp_path / "s", house.settings()
        async with house.node_at(path, values) as node:
            async with house.attach(path, values) as it:
                await it.serve(house.prompt(PAGES))
            before, at, fired = open_files(), 0, True
            tasks = asyncio.all_tasks()
            while fired:
                pool = house.device_pool()
                attaching = Cancelled(
                    NodeCache.attach(path, house.config_of(values), pool), at, moment
                )
                try:
                    await (await attaching).close()
                except asyncio.CancelledError:
                    assert pool.free == pool.num_pages
                fired = attaching.fired
                await house.until(lambda: asyncio.all_tasks() == tasks)
                await house.until(lambda: not node.door.connections)
                assert open_files() == before
                async with house.attach(path, values) as it:
                    assert await it.serve(house.prompt(PAGES)) == PAGES
                at += 1
        return at

    assert asyncio.run(scenario()) > 1
