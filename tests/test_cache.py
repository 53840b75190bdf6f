# SPDX-License-Identifier: Apache-2.0
"""The cache as an engine sees it, over a real slab. How bytes move: tests/move."""

import asyncio
import os
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache import jit
from bodocache.cache import Cache
from bodocache.clock import RealClock
from bodocache.config import (
    CacheConfig,
    DiskConfig,
    FeaturesConfig,
    HostConfig,
    IdentityConfig,
    NodeConfig,
    TiersConfig,
)
from bodocache.errors import BackendLocked, ConfigError, LayoutError, LeaseError
from bodocache.io.members import FAILURES
from bodocache.kernels.host import compiled as host_path
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory
from bodocache.node.client import NodeCache
from bodocache.node.process import serve
from bodocache.pages import Reason, Tier
from bodocache.pools import BorrowedPool, OwnedPool
from bodocache.replay import payload
from bodocache.testing import MemoryBackend, MemoryDisk, SlowBackend

host_path()
jit.warm()  # here, not in a test: a cold compile is not part of any test's time

GROUP = Group("kv", layers=4, heads=1, head_dim=32, itemsize=2)
PAGE_TOKENS = 8
PAGE_NBYTES = GROUP.page_nbytes(PAGE_TOKENS)
IDENTITY = IdentityConfig(model="m", dtype="bytes")


def prompt(pages, of=0):
    return np.arange(pages * PAGE_TOKENS, dtype=np.uint32) + np.uint32(of * 100_000)


class Engine:
    """Serves whole prompts: loads what there is, compares it, computes and stores the rest."""

    def __init__(self, cache, pool):
        self.cache, self.words = cache, payload.words_of(pool)

    async def serve(self, tokens, **options):
        """Pages loaded of ``tokens``; afterwards all of them are stored, and on disk."""
        return await self.finish(await self.cache.match(tokens, **options))

    async def finish(self, match):
        with self.cache.load(match) as load:
            loaded = await load
            seeds = payload.seeds(match.keys)
            wrong = payload.count_wrong_bytes(self.words, loaded.slots, seeds[: loaded.pages])
            assert wrong == 0
            slots = self.cache.acquire(len(match.keys) - loaded.pages)
            payload.fill(self.words, slots, seeds[loaded.pages :])
            async with self.cache.store(match, slots) as store:
                await store.written
        return loaded.pages


def device_pool(pages=8, group=GROUP):
    return OwnedPool(Layout(LayoutKind.LAYER_FIRST, group, PAGE_TOKENS, pages), name="device")


@asynccontextmanager
async def in_process(config, pool, _, **options):
    async with await Cache.open(config, pool, **options) as cache:
        yield cache


@asynccontextmanager
async def on_a_node(config, pool, directory):
    """The same through a node; its loop is ours, for what it does is not timed here."""
    group = pool.layout.group
    sizes = {name: getattr(group, name) for name in ("layers", "heads", "head_dim", "itemsize")}
    node = NodeConfig(page_tokens=PAGE_TOKENS, group=group.name, kv=group.kv, **sizes)
    async with serve(replace(config, node=node), directory / "socket") as served:
        async with await NodeCache.attach(directory / "socket", config, pool) as cache:
            cache.recovered_pages = served.recovered_pages
            cache.node = served
            yield cache
        assert not served.describe()["engines"]
        async with asyncio.timeout(10):  # what is left is the node's own: its writes to disk
            while served.host.residency.host.leased:  # noqa: ASYNC110 -- no event is set
                await asyncio.sleep(0.01)
        assert (served.host.residency.table.records["pins"] == 0).all()
        assert served.host.nursery.failures == 0


@pytest.fixture
def engine(tmp_path):
    """``async with engine(host=8, ...) as it``: on the same directory each time."""
    return engines(tmp_path, in_process)


@pytest.fixture(params=[in_process, on_a_node], ids=lambda it: it.__name__)
def either(request, tmp_path):
    """As ``engine``; then the same on a node."""
    return engines(tmp_path, request.param)


def engines(tmp_path, through):
    @asynccontextmanager
    async def opened(
        *,
        device=8,
        host=8,
        disk=40,
        identity=IDENTITY,
        group=GROUP,
        tier=None,
        directories=None,
        **options,
    ):
        page_nbytes = group.page_nbytes(PAGE_TOKENS)
        tier = DiskConfig(
            directories or tmp_path, 4096 + disk * (page_nbytes + 512), **(tier or {})
        )
        config = CacheConfig(
            identity,
            TiersConfig(HostConfig(host * page_nbytes), tier if disk else None),
            features=FeaturesConfig(admit=False),
        )
        pool = device_pool(device, group)
        async with through(config, pool, tmp_path, **options) as cache:
            yield Engine(cache, pool)

    return opened


@pytest.mark.parametrize(
    "tier",
    [{"durable": True}, {"mac_key_hex": "ab" * 32}, {"write_bytes_per_day": 1 << 30}],
    ids=lambda tier: next(iter(tier)),
)
def test_what_the_disk_tier_is_told_changes_no_byte_and_survives_a_restart(either, tier):
    async def scenario():
        async with either(tier=tier) as it:
            assert await it.serve(prompt(6)) == 0
        async with either(tier=tier) as it:
            assert await it.serve(prompt(6)) == 6

    asyncio.run(scenario())


def test_a_durable_tier_syncs_what_it_writes(either, monkeypatch):
    calls, real = [], os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (calls.append(fd), real(fd)))

    async def scenario(tier):
        async with either(tier=tier) as it:
            await it.serve(prompt(6, of=len(tier)))
        return len(calls)

    assert asyncio.run(scenario({})) == 0
    assert asyncio.run(scenario({"durable": True})) >= 2


def test_pages_beyond_the_days_writing_stay_off_the_disk_and_evict_nothing_there(engine):
    per_frame = PAGE_NBYTES + 512 if PAGE_NBYTES % 4096 == 0 else 4096 + 512
    day = 24 * 6 * per_frame  # an hour of it: six frames

    async def scenario():
        async with engine(tier={"write_bytes_per_day": day}, device=6, host=6, disk=6) as it:
            await it.serve(prompt(6))
            await it.serve(prompt(6, of=1))
            match = await it.cache.match(prompt(6))
            assert match.pages == 6
            assert (match.tiers == Tier.DISK).all()
            lost = await it.cache.match(prompt(6, of=1))
            assert not (lost.tiers == Tier.DISK).any()

    asyncio.run(scenario())


def test_a_prefix_on_several_directories_is_found_after_a_restart(either, tmp_path):
    directories = tuple(tmp_path / name for name in "abc")
    for directory in directories:
        directory.mkdir()

    async def scenario():
        for expected in (0, 8):
            async with either(directories=directories, disk=45) as it:
                for number in range(4):
                    assert await it.serve(prompt(8, of=number)) == expected

    asyncio.run(scenario())
    assert all((directory / "payload.slab").exists() for directory in directories)


def test_a_directory_that_is_out_of_service_for_a_while_loses_no_page(engine, tmp_path, caplog):
    directories = tuple(tmp_path / name for name in "ab")
    for directory in directories:
        directory.mkdir()

    async def scenario():
        async with engine(directories=directories, disk=80) as it:
            for number in range(4):
                await it.serve(prompt(8, of=number))
        async with engine(directories=directories, disk=80) as it:
            disk, number = it.cache._orchestrator.residency.backend, 0
            frames = it.cache._orchestrator.residency.table.records["frame"]
            out = disk._members[int(frames.max()) >> 40]
            out.reads.fail(FAILURES)
            lost = [await it.cache.match(prompt(8, of=number)) for number in range(4)]
            for match in lost:
                with it.cache.load(match) as load:
                    number += (await load).pages == 0
            assert number  # some could not be loaded
            out.reads._back_s = 0.0
            for number in range(4):
                with it.cache.load(await it.cache.match(prompt(8, of=number))) as load:
                    assert (await load).pages == 8

    asyncio.run(scenario())


def test_a_missing_directory_keeps_the_others_in_use_and_is_not_made(either, tmp_path, caplog):
    (tmp_path / "a").mkdir()
    directories = (tmp_path / "a", tmp_path / "gone")

    async def scenario():
        async with either(directories=directories, disk=45) as it:
            await it.serve(prompt(8))

    asyncio.run(scenario())
    assert not (tmp_path / "gone").exists()


def test_a_prompt_is_found_again_and_only_whole_pages_of_it(either):
    async def scenario():
        async with either() as it:
            assert await it.serve(prompt(4)[:-3]) == 0
            match = await it.cache.match(prompt(4))
            assert (match.pages, len(match.keys)) == (3, 4)
            assert await it.serve(prompt(4)) == 3

    asyncio.run(scenario())


def test_device_host_and_disk_give_back_what_was_stored(either):
    async def scenario():
        async with either(device=4, host=8, disk=24) as it:
            for _ in range(2):
                for of in range(6):
                    await it.serve(prompt(4, of=of))
            hits = it.cache.stats().traffic.hits
            assert hits[Tier.DISK] > 0
            assert await it.serve(prompt(4, of=5)) == 4
            assert await it.serve(prompt(4, of=4)) == 4
            assert it.cache.stats().traffic.hits[Tier.DEVICE] > hits[Tier.DEVICE]
            assert it.cache.stats().traffic.hits[Tier.HOST] > hits[Tier.HOST]

    asyncio.run(scenario())


def test_pages_of_other_tokens_are_not_found(either):
    async def scenario():
        async with either() as it:
            await it.serve(prompt(3))
            for changed in range(3):
                tokens = prompt(3)
                tokens[changed * PAGE_TOKENS + 5] ^= 1
                match = await it.cache.match(tokens)
                assert match.pages == changed
                expected = Reason.DIVERGED if changed else Reason.NEVER_STORED
                assert match.reasons.tolist() == [expected] * (3 - changed)

    asyncio.run(scenario())


def test_what_tokens_do_not_say_tells_pages_apart(either):
    async def scenario():
        async with either() as it:
            assert await it.serve(prompt(3), extras={1: b"a cat"}) == 0
            assert await it.serve(prompt(3), extras={1: b"a dog"}) == 1
            assert await it.serve(prompt(3)) == 1
            assert await it.serve(prompt(3), extras={1: b"a cat"}) == 3

    asyncio.run(scenario())


def test_engine_keys_are_an_identity_of_their_own(either):
    async def scenario():
        keys = [bytes([n]) * 32 for n in range(3)]
        async with either() as it:
            await it.finish(await it.cache.match_engine_keys(keys))
            assert (await it.cache.match_engine_keys([*keys, b"new"])).pages == 3
            assert (await it.cache.match_engine_keys(keys[1:])).pages == 2
            assert (await it.cache.match(prompt(3))).pages == 0
            held = await it.cache.holds_engine_keys([b"new", keys[2]])
            assert held.tolist() == [False, True]

    asyncio.run(scenario())


def test_long_prompts_are_hashed_to_the_same_keys(either):
    async def scenario():
        async with either(device=80, host=80, disk=80) as it:
            await it.serve(prompt(70))
            assert (await it.cache.match(prompt(20))).pages == 20
            assert (await it.cache.match(prompt(70))).pages == 70

    asyncio.run(scenario())


@pytest.mark.parametrize("field", ["model", "dtype", "domain", "lora", "salt", "weights_version"])
def test_pages_of_another_identity_are_not_found_after_a_restart(either, field):
    async def scenario():
        async with either() as it:
            await it.serve(prompt(3))
        async with either(identity=replace(IDENTITY, **{field: "another"})) as it:
            assert (await it.cache.match(prompt(3))).pages == 0
            assert await it.serve(prompt(3)) == 0
            assert await it.serve(prompt(3)) == 3
        async with either(identity=replace(IDENTITY, **{field: "third"})) as it:
            assert await it.serve(prompt(3)) == 0

    asyncio.run(scenario())


def test_a_rotated_cache_finds_new_pages_only_and_says_why(either):
    async def scenario():
        async with either() as it:
            await it.serve(prompt(3))
            it.cache.rotate("2")
            match = await it.cache.match(prompt(4))
            assert match.pages == 0
            assert match.reasons.tolist() == [Reason.OTHER_VERSION] * 3 + [Reason.NEVER_STORED]
            whole = getattr(it.cache, "node", None)
            tiers = whole.host.residency.stats() if whole else it.cache.stats().traffic.tiers
            assert tiers[Tier.HOST].pages == 3  # nothing was flushed
            assert await it.serve(prompt(3)) == 0
            assert await it.serve(prompt(3)) == 3

    asyncio.run(scenario())


def test_after_a_rotation_older_pages_go_first(either):
    async def scenario():
        async with either(device=12, host=9, disk=0) as it:
            for _ in range(3):
                await it.serve(prompt(3))
            it.cache.rotate("2")
            for of in (1, 2, 3):
                await it.serve(prompt(3, of=of))
            assert [(await it.cache.match(prompt(3, of=of))).pages for of in (1, 2, 3)] == [3] * 3

    asyncio.run(scenario())


def test_a_miss_says_that_the_page_was_evicted(either):
    async def scenario():
        async with either(device=4, host=4, disk=0) as it:
            await it.serve(prompt(4))
            await it.serve(prompt(4, of=1))
            match = await it.cache.match(prompt(4))
            assert match.reasons.tolist() == [Reason.EVICTED] * 4
            await it.serve(prompt(4))
            assert it.cache.stats().misses == {Reason.NEVER_STORED: 8, Reason.EVICTED: 4}

    asyncio.run(scenario())


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=25),
    st.sampled_from([(8, 8, 12), (6, 12, 6), (12, 7, 40), (8, 6, 0)]),
)
def test_every_page_asked_for_is_a_hit_or_a_miss(requests, sizes):
    async def scenario():
        device, host, disk = sizes
        config = CacheConfig(IDENTITY, TiersConfig(HostConfig(host * PAGE_NBYTES)))
        config = replace(config, features=FeaturesConfig(admit=False))
        backend = None
        if disk:
            backend = MemoryBackend(MemoryDisk(PAGE_NBYTES, disk), clock=RealClock())
        pool = device_pool(device)
        async with await Cache.open(config, pool, backend=backend) as cache:
            it, hits = Engine(cache, pool), 0
            for of, pages in requests:
                hits += await it.serve(prompt(pages, of=of))
            stats = cache.stats()
            assert stats.hits == hits == sum(stats.traffic.hits.values())
            assert hits + sum(stats.misses.values()) == sum(pages for _, pages in requests)
            assert Reason.NONE not in stats.misses

    asyncio.run(scenario())


def test_a_restart_finds_the_pages_again(either):
    async def scenario():
        async with either() as it:
            await it.serve(prompt(5))
            await it.serve(prompt(3, of=1))
        async with either() as it:
            assert it.cache.recovered_pages == 8
            assert await it.serve(prompt(5)) == 5
            assert await it.serve(prompt(3, of=1)) == 3
            assert it.cache.stats().traffic.hits[Tier.DISK] == 8

    asyncio.run(scenario())


def test_a_restart_after_evictions_loses_no_frame(engine):
    """Headers of pages that moved to another frame are found too; they hold no room."""

    async def scenario():
        for _ in range(3):
            async with engine(device=8, host=8, disk=12) as it:
                for of in (0, 1, 2, 3, 1, 0):
                    await it.serve(prompt(4, of=of))
                backend = it.cache._orchestrator._backend
                pages = it.cache.stats().traffic.tiers[Tier.DISK].pages
                assert backend.usage.used_frames == pages <= 12

    asyncio.run(scenario())


def test_an_older_copy_of_a_page_holds_no_frame_after_a_restart(engine):
    async def scenario():
        async with engine() as it:
            await it.serve(prompt(1))
            await it.serve(prompt(1, of=1))
            residency = it.cache._orchestrator.residency
            rows = residency.leading((await it.cache.match(prompt(1))).keys)
            for tier in (Tier.DEVICE, Tier.HOST, Tier.DISK):
                residency.drop(rows, tier, Reason.EVICTED)
            await it.serve(prompt(2))  # two frames side by side: not the one it had
        async with engine() as it:
            assert it.cache.recovered_pages == 3
            assert it.cache._orchestrator._backend.usage.used_frames == 3

    asyncio.run(scenario())


def test_pages_of_another_size_are_a_miss_after_a_restart(either):
    async def scenario():
        async with either() as it:
            await it.serve(prompt(3))
        larger = Group("kv", layers=4, heads=2, head_dim=32, itemsize=2)
        async with either(group=larger) as it:
            assert it.cache.recovered_pages == 0
            assert await it.serve(prompt(3)) == 0
            assert await it.serve(prompt(3)) == 3

    asyncio.run(scenario())


def test_a_second_writer_is_refused(engine):
    async def scenario():
        async with engine():
            with pytest.raises(BackendLocked):
                async with engine():
                    pass
        async with engine() as it:
            assert await it.serve(prompt(1)) == 0

    asyncio.run(scenario())


def test_a_host_tier_below_one_page_is_an_error(tmp_path):
    async def scenario():
        config = CacheConfig(IDENTITY, TiersConfig(HostConfig(100)))
        with pytest.raises(ConfigError, match="at least one page, 4096 bytes"):
            await Cache.open(config, device_pool())

    asyncio.run(scenario())


def test_a_borrowed_pool_must_hold_what_its_group_says():
    async def scenario():
        config = CacheConfig(IDENTITY, TiersConfig(HostConfig(PAGE_NBYTES)))
        owned = device_pool()
        pool = BorrowedPool(PagedMemory.of_layout(owned.buffer, owned.layout))
        for group in (None, replace(GROUP, layers=2), replace(GROUP, head_dim=64)):
            with pytest.raises(LayoutError, match="group"):
                await Cache.open(config, pool, group=group)

    asyncio.run(scenario())


def test_a_backend_must_hold_the_pools_pages():
    async def scenario():
        config = CacheConfig(IDENTITY, TiersConfig(HostConfig(PAGE_NBYTES)))
        backend = MemoryBackend(MemoryDisk(2 * PAGE_NBYTES, 2), clock=RealClock())
        with pytest.raises(LayoutError, match="memory: pages of 8192 bytes"):
            await Cache.open(config, device_pool(), backend=backend)

    asyncio.run(scenario())


def test_every_read_and_write_of_the_disk_is_told(engine):
    async def scenario():
        extents = []
        async with engine(on_extent=extents.append) as it:
            await it.serve(prompt(4))
        async with engine(on_extent=extents.append) as it:
            await it.serve(prompt(4))
        assert any(extent.writes for extent in extents)
        assert sum(extent.pages for extent in extents if not extent.writes) == 4

    asyncio.run(scenario())


def test_an_engine_key_that_stands_twice_is_refused(either):
    async def scenario():
        async with either() as it:
            with pytest.raises(LayoutError, match="twice"):
                await it.cache.match_engine_keys([b"a", b"b", b"a"])

    asyncio.run(scenario())


@pytest.mark.parametrize("device", [4, 1])
def test_a_chain_that_begins_in_the_middle_loads_its_own_pages(either, device):
    async def scenario():
        keys = [bytes([n]) * 32 for n in range(4)]
        async with either(device=8) as it:
            whole = await it.cache.match_engine_keys(keys)
            await it.finish(whole)
            await it.finish(await it.cache.match_engine_keys([b"%d" % n for n in range(8)]))
            assert await it.finish(await it.cache.match_engine_keys(keys[device % 3 + 1 :])) > 0

    asyncio.run(scenario())


def test_a_page_kept_only_by_pages_behind_it_elsewhere_makes_room(engine):
    async def scenario():
        async with engine(device=8, host=6, disk=0) as it:
            for of, pages in ((3, 4), (0, 3), (3, 5), (0, 5)):
                await it.serve(prompt(pages, of))
            residency = it.cache._orchestrator.residency
            assert (residency.table.records["pins"] == 0).all()

    asyncio.run(scenario())


def test_a_match_made_before_a_rotation_delivers_and_stores_nothing(either):
    async def scenario():
        async with either() as it:
            await it.serve(prompt(4))
            match = await it.cache.match(prompt(4))
            it.cache.rotate("2")
            with it.cache.load(match) as load:
                assert (await load).pages == 0
            slots = it.cache.acquire(4)
            async with it.cache.store(match, slots) as store:
                assert (await store).refused == 4
            assert it.cache.stats().misses[Reason.OTHER_VERSION] == 4

    asyncio.run(scenario())


def test_a_rotation_while_a_long_prompt_is_hashed_is_seen(either):
    async def scenario():
        async with either(device=80, host=80) as it:
            long = prompt(64)
            matching = asyncio.ensure_future(it.cache.match(long))
            await asyncio.sleep(0)
            it.cache.rotate("2")
            match = await matching
            assert np.array_equal(match.keys, (await it.cache.match(long)).keys)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "tokens",
    [
        np.arange(16) + (1 << 32),
        np.arange(16) - 1,
        np.arange(16) + 0.5,
        np.zeros((4, 4), np.uint32),
    ],
)
def test_tokens_that_a_cast_would_change_are_refused(either, tokens):
    async def scenario():
        async with either() as it:
            with pytest.raises(LayoutError, match="tokens"):
                await it.cache.match(tokens)

    asyncio.run(scenario())


def test_a_slot_that_holds_another_page_cannot_be_stored_or_released(either):
    async def scenario():
        async with either() as it:
            await it.serve(prompt(2))
            with it.cache.load(await it.cache.match(prompt(2))) as load:
                slots = (await load).slots
            other = await it.cache.match(prompt(2, of=1))
            with pytest.raises(LayoutError, match="another page"):
                it.cache.store(other, slots)
            with pytest.raises(LeaseError, match="hold pages"):
                it.cache.release(slots)
            with pytest.raises(LayoutError, match="distinct"):
                it.cache.store(other, np.array([5, 5]))

    asyncio.run(scenario())


def test_slots_of_loaded_pages_may_be_among_those_that_are_stored(either):
    async def scenario():
        async with either() as it:
            await it.serve(prompt(2))
            match = await it.cache.match(prompt(4))
            with it.cache.load(match) as load:
                loaded = (await load).slots
                fresh = it.cache.acquire(2)
                payload.fill(it.words, fresh, payload.seeds(match.keys)[2:])
                async with it.cache.store(match, np.concatenate((loaded, fresh))):
                    pass
            it.cache.acquire(4)
            assert await it.serve(prompt(4)[:-1]) == 3

    asyncio.run(scenario())


@pytest.mark.parametrize("deadline_s", [float("nan"), -1.0])
def test_a_deadline_that_is_no_time_from_now_is_refused(either, deadline_s):
    async def scenario():
        async with either() as it:
            match = await it.cache.match(prompt(2))
            with pytest.raises(ConfigError, match="deadline_s"):
                it.cache.load(match, deadline_s=deadline_s)

    asyncio.run(scenario())


def test_a_closed_cache_gives_the_pool_its_slots_back():
    async def scenario():
        pool = device_pool(4)
        config = CacheConfig(IDENTITY, TiersConfig(HostConfig(8 * pool.layout.page_nbytes)))
        for of in range(3):
            async with await Cache.open(config, pool) as cache:
                await Engine(cache, pool).serve(prompt(4, of))
            assert pool.free == 4

    asyncio.run(scenario())


def test_two_models_share_a_directory(either):
    async def scenario():
        async with either() as it:
            await it.serve(prompt(3))
        async with either(identity=replace(IDENTITY, model="another")) as it:
            assert await it.serve(prompt(3)) == 0
        async with either() as it:
            assert await it.serve(prompt(3)) == 3

    asyncio.run(scenario())


def test_pages_on_their_way_to_disk_make_room_on_the_device(engine):
    async def scenario():
        pool, clock = device_pool(4), RealClock()
        disk = MemoryDisk(pool.layout.page_nbytes, 8)
        backend = SlowBackend(MemoryBackend(disk, clock=clock), 0.05, clock=clock)
        config = CacheConfig(
            IDENTITY,
            TiersConfig(HostConfig(8 * pool.layout.page_nbytes)),
            features=FeaturesConfig(admit=False),
        )
        async with await Cache.open(config, pool, backend=backend, clock=clock) as cache:
            it, match = Engine(cache, pool), await cache.match(prompt(4))
            slots = cache.acquire(4)
            payload.fill(it.words, slots, payload.seeds(match.keys))
            async with cache.store(match, slots) as store:
                await store
            await asyncio.sleep(0)  # the writer has begun
            cache.release(cache.acquire(4))
            assert await store.written == 4
            assert await it.serve(prompt(4)) == 4

    asyncio.run(scenario())


def test_slots_of_a_store_under_way_are_nobody_elses(either):
    async def scenario():
        async with either() as it:
            one, two = await it.cache.match(prompt(2)), await it.cache.match(prompt(2, of=1))
            slots = it.cache.acquire(2)
            payload.fill(it.words, slots, payload.seeds(one.keys))
            async with it.cache.store(one, slots):
                with pytest.raises(LayoutError, match="another page"):
                    it.cache.store(two, slots)
                with pytest.raises(LeaseError):
                    it.cache.release(slots)
            assert await it.serve(prompt(2)) == 2

    asyncio.run(scenario())
