# SPDX-License-Identifier: Apache-2.0
"""Actions over a real slab, over an engine's own pool, and against a cache that closes."""

import asyncio
from contextlib import asynccontextmanager

import numpy as np
import pytest

from bodocache.cache import Cache
from bodocache.config import CacheConfig, DiskConfig, HostConfig, IdentityConfig, TiersConfig
from bodocache.errors import CacheClosed
from bodocache.hints import Demote, Pin, Prefetch, Retain, Session, Span
from bodocache.layout import Group, Layout, LayoutKind
from bodocache.pages import Reason, Tier
from bodocache.pools import OwnedPool
from bodocache.replay import payload

GROUP = Group("kv", layers=4, heads=1, head_dim=32, itemsize=2)
PAGE_NBYTES = GROUP.page_nbytes(8)
FRAME_NBYTES = PAGE_NBYTES + 512
S = Session("s")


class Engine:
    """Serves prompts over a cache whose writes nobody admits but a demotion asks for."""

    def __init__(self, cache, pool):
        self.cache, self.words = cache, payload.words_of(pool)

    async def serve(self, tokens, **said):
        match = await self.cache.match(tokens, **said)
        with self.cache.load(match) as load:
            loaded = await load
            seeds = payload.seeds(match.keys)
            assert payload.count_wrong_bytes(self.words, loaded.slots, seeds[: loaded.pages]) == 0
            slots = self.cache.acquire(len(match.keys) - loaded.pages)
            payload.fill(self.words, slots, seeds[loaded.pages :])
            async with self.cache.store(match, slots):
                pass
        return loaded.pages

    async def hint(self, action):
        (outcome,) = await self.cache.hint([action])
        return outcome

    async def tiers(self, tokens):
        return (await self.cache.match(tokens)).tiers.tolist()


@pytest.fixture
def engine(tmp_path):
    """``async with engine(**disk) as it``: on the same directory each time."""

    @asynccontextmanager
    async def opened(**disk):
        pool = OwnedPool(Layout(LayoutKind.LAYER_FIRST, GROUP, 8, 12), name="device")
        tier = DiskConfig((tmp_path,), 4096 + 32 * FRAME_NBYTES, **disk)
        config = CacheConfig(
            IdentityConfig(model="m", dtype="bytes"),
            TiersConfig(HostConfig(12 * PAGE_NBYTES), tier),
        )
        async with await Cache.open(config, pool) as cache:
            cache._orchestrator.residency.policy["write_s_per_byte"] = 1e9
            yield Engine(cache, pool)

    return opened


def test_a_demoted_session_is_read_back_from_its_files_by_a_prefetch(engine, prompt):
    async def scenario():
        async with engine() as it:
            await it.serve(prompt(4), session="s")
            assert await (await it.hint(Demote(S))).operation == 4
            assert await it.tiers(prompt(4)) == [Tier.DISK] * 4
            assert await (await it.hint(Prefetch(S, 5.0))).operation == 4
            assert await it.tiers(prompt(4)) == [Tier.HOST] * 4
            assert await it.serve(prompt(4)) == 4

    asyncio.run(scenario())


def test_demoted_pages_are_there_after_a_restart(engine, prompt):
    async def scenario():
        async with engine() as it:
            await it.serve(prompt(4), session="s")
            await (await it.hint(Demote(S))).operation
        async with engine() as it:
            outcome = await it.hint(Prefetch(Span(prompt(4), 0, 16)))
            assert (outcome.status.value, await outcome.operation) == ("accepted", 2)
            assert await it.tiers(prompt(4)) == [Tier.HOST] * 2 + [Tier.DISK] * 2
            assert await it.serve(prompt(4)) == 4

    asyncio.run(scenario())


def test_a_page_damaged_in_its_file_is_not_prefetched(engine, prompt, tmp_path):
    async def scenario():
        async with engine() as it:
            await it.serve(prompt(4), session="s")
            await (await it.hint(Demote(S))).operation
            file = tmp_path / "payload.slab"
            content = bytearray(file.read_bytes())
            records = it.cache._orchestrator.residency.table.records
            last = np.flatnonzero(records["depth"] == 3)[0]
            content[int(records["frame"][last]) * PAGE_NBYTES + 9] ^= 4
            file.write_bytes(content)
            assert await (await it.hint(Prefetch(S))).operation == 3
            match = await it.cache.match(prompt(4))
            assert (match.pages, match.reasons.tolist()) == (3, [Reason.CORRUPT])
            assert await it.serve(prompt(4)) == 3

    asyncio.run(scenario())


def test_what_is_left_of_the_days_writing_bounds_demotions(engine, prompt):
    per_frame = FRAME_NBYTES if PAGE_NBYTES % 4096 == 0 else 4096 + 512

    async def scenario():
        async with engine(write_bytes_per_day=24 * 5 * per_frame) as it:  # five frames an hour
            await it.serve(prompt(4), session="s")
            await it.serve(prompt(4, of=1), session="t")
            assert await (await it.hint(Demote(S))).operation == 4
            outcome = await it.hint(Demote(Session("t")))
            assert (outcome.status.value, "budget" in outcome.reason) == ("deferred", True)
            assert await it.tiers(prompt(4, of=1)) == [Tier.DEVICE] * 4

    asyncio.run(scenario())


def test_a_hint_that_a_close_overtakes_says_so(engine, prompt):
    async def scenario():
        async with engine() as it:
            hinting = asyncio.ensure_future(it.hint(Pin(Span(prompt(64)))))  # hashed in a thread
            await asyncio.sleep(0)
            await it.cache.close()
            with pytest.raises(CacheClosed):
                await hinting
            with pytest.raises(CacheClosed):
                await it.hint(Pin(S))

    asyncio.run(scenario())


def test_weights_that_change_while_a_prompt_is_hashed_leave_its_pages_missing(engine, prompt):
    async def scenario():
        async with engine() as it:
            await it.serve(prompt(4))
            hinting = asyncio.ensure_future(it.hint(Pin(Span(prompt(64)))))
            await asyncio.sleep(0)
            it.cache.rotate("2")
            assert (await hinting).status.value == "missing"

    asyncio.run(scenario())


def test_an_engines_own_pool_is_left_alone(house, prompt):
    async def scenario():
        async with house(borrowed=True) as it:
            await it.put(prompt(3))
            span = Span(prompt(3))
            retained, demoted = await it.cache.hint([Retain(span, 60.0), Demote(span)])
            assert [retained.pages, await demoted.operation] == [3, 3]
            assert await it.tiers(prompt(3)) == [Tier.DISK] * 3
            (outcome,) = await it.cache.hint([Prefetch(span)])
            assert await outcome.operation == 3
            assert it.engine_pool.free == 5

    asyncio.run(scenario())
