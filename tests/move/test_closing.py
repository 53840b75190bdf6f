# SPDX-License-Identifier: Apache-2.0
import asyncio

import numpy as np
import pytest

from bodocache.errors import CacheClosed
from bodocache.pages import Reason, Tier


@pytest.fixture
def eventually():
    """Call something while a close waits."""
    return lambda call: asyncio.get_running_loop().call_later(0.02, call)


def test_a_closed_cache_says_so(house, prompt):
    async def scenario():
        async with house() as it:
            match = await it.cache.match(prompt(2))
            await it.cache.close()
            await it.cache.close()
            for call in (
                lambda: it.cache.load(match),
                lambda: it.cache.store(match, np.arange(2)),
                lambda: it.cache.acquire(1),
                lambda: it.cache.rotate("2"),
            ):
                with pytest.raises(CacheClosed):
                    call()
            for asked in (
                it.cache.match(prompt(2)),
                it.cache.match_engine_keys([b"k"]),
                it.cache.holds_engine_keys([b"k"]),
            ):
                with pytest.raises(CacheClosed):
                    await asked

    asyncio.run(scenario())


def test_a_close_cancels_loads_and_waits_until_they_drained(house, prompt, eventually):
    async def scenario():
        async with house() as it:
            await it.put(prompt(3))
            it.leave_on(Tier.DISK)
            it.valve.is_shut = True
            load, other = await it.begin(prompt(3)), await it.begin(prompt(2))
            eventually(it.valve.open)
            await it.cache.close()
            assert load.released.done()
            assert (await load).reasons.tolist() == [Reason.CANCELLED] * 3
            assert (await other).pages == 0
            load.close()

    asyncio.run(scenario())


def test_a_close_lets_go_of_loads_that_nobody_closed(house, prompt):
    async def scenario():
        async with house() as it:
            await it.put(prompt(3))
            load = await it.begin(prompt(3))
            assert (await load).pages == 3

    asyncio.run(scenario())


def test_a_close_finishes_stores_and_writes_what_is_queued(house, prompt, eventually):
    async def scenario():
        async with house(device=32, host=16) as it:
            it.valve.is_shut = True
            stores = [await it.compute(prompt(3, of=i)) for i in range(4)]
            for store in stores:
                store.close()
            eventually(it.valve.open)
            await it.cache.close()
            assert [(await store).new for store in stores] == [3] * 4
            assert [await store.written for store in stores] == [3] * 4
            assert it.backend.usage.used_frames == 12

    asyncio.run(scenario())


def test_a_close_cancels_a_copy_between_two_turns(house, prompt):
    async def scenario():
        async with house() as it:
            await it.put(prompt(4))
            it.leave_on(Tier.HOST)
            it.orchestrator._copies.turn_pages = 1
            it.residency.policy["chunk_nbytes"] = 1
            load = await it.begin(prompt(4))
            await it.cache.close()
            assert 1 <= (await load).pages < 4

    asyncio.run(scenario())


def test_a_waiter_hears_of_the_close(house, prompt, eventually):
    async def scenario():
        async with house() as it:
            await it.put(prompt(3))
            it.leave_on(Tier.DISK)
            it.valve.is_shut = True
            load = await it.begin(prompt(3))

            async def wait():
                return (await load).pages

            waiter = asyncio.ensure_future(wait())
            await asyncio.sleep(0)
            eventually(it.valve.open)
            await it.cache.close()
            assert await waiter == 0

    asyncio.run(scenario())
