# SPDX-License-Identifier: Apache-2.0
"""Many engines at once on tiers so small that every step evicts; the seed is the test's name."""

import asyncio
import math
import random

import numpy as np
import pytest

from bodocache.clock import RealClock
from bodocache.errors import TierFull
from bodocache.pages import Tier
from bodocache.testing import Fault, FaultyBackend, Operation, SlowBackend

TASKS, ROUNDS = 5, 16
BACKENDS = {
    "sound": lambda inner: inner,
    "slow": lambda inner: SlowBackend(inner, 0.001, clock=RealClock()),
    "faulty": lambda inner: FaultyBackend(
        inner,
        [Fault.once(Operation.GET, n) for n in range(3, 400, 7)]
        + [Fault.once(Operation.PUT, n) for n in range(5, 400, 11)],
    ),
}


class Crowd:
    """Engines that ask for overlapping prompts, and change their minds."""

    def __init__(self, it, prompt, seed):
        self.it, self.prompt, self.random = it, prompt, random.Random(seed)
        self.asked = 0

    def some_prompt(self):
        branch = self.random.randrange(1, 7)
        own = self.random.randrange(5)
        return np.concatenate([self.prompt(1), self.prompt(1, of=branch), self.prompt(own, of=9)])

    async def pause(self):
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)

    async def serve(self):
        for _ in range(ROUNDS):
            try:
                await asyncio.wait_for(self.one(), self.random.choice([0.002, 1, 1, 1]))
            except TimeoutError:
                continue
            except TierFull:
                await asyncio.sleep(0.001)

    async def one(self):
        it, tokens = self.it, self.some_prompt()
        match = await it.cache.match(tokens)
        await self.pause()
        self.asked += len(match.keys)
        deadline_s = self.random.choice([0.0, 0.001, math.inf, math.inf])
        with it.cache.load(match, deadline_s=deadline_s) as load:
            await self.pause()
            if self.random.random() < 0.2:
                load.cancel()
            loaded = await load
            assert it.wrong_bytes(match.keys, loaded) == 0
            await self.pause()
            it.leave_on(self.random.choice([Tier.DEVICE, Tier.DEVICE, Tier.HOST, Tier.DISK]))
            assert it.wrong_bytes(match.keys, loaded) == 0
            store = await it.compute(tokens, have=loaded.pages)
        try:
            await self.pause()
            await store
        finally:
            store.close()
        if self.random.random() < 0.3:
            await store.written


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [(12, 10, 40), (16, 7, 20), (12, 24, 6)])
@pytest.mark.parametrize("seed", range(4))
def test_a_crowd_gets_right_bytes_or_misses_and_leaves_nothing(house, prompt, backend, sizes, seed):
    async def scenario():
        device, host, disk = sizes
        tiers = {"device": device, "host": host, "disk": disk}
        async with house(wrap=BACKENDS[backend], **tiers) as it, asyncio.timeout(10):
            crowd = Crowd(it, prompt, seed)
            async with asyncio.TaskGroup() as group:
                for _ in range(TASKS):
                    group.create_task(crowd.serve())
            stats = it.cache.stats()
            assert stats.hits + sum(stats.misses.values()) == crowd.asked
            assert stats.traffic.hits[Tier.DEVICE] > 0
            assert stats.traffic.hits[Tier.HOST] + stats.traffic.hits[Tier.DISK] > 0

    asyncio.run(scenario())


def test_loads_beside_eviction_never_lend_a_slot_that_is_being_read(house, prompt):
    """What a load delivered stays until it is closed, whatever others need."""

    async def scenario():
        async with house(device=8, host=8) as it:
            await it.put(prompt(4))
            with await it.begin(prompt(4)) as load:
                loaded = await load
                for of in range(1, 6):
                    await it.put(prompt(4, of=of))
                keys = (await it.cache.match(prompt(4))).keys
                assert it.wrong_bytes(keys, loaded) == 0
                with pytest.raises(TierFull):
                    it.cache.acquire(5)
            assert await it.tiers(prompt(4)) == [Tier.DEVICE] * 4

    asyncio.run(scenario())
