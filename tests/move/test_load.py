# SPDX-License-Identifier: Apache-2.0
import asyncio
import time

import numpy as np
import pytest

from bodocache.errors import LayoutError
from bodocache.pages import Reason, Tier

TIERS = [Tier.DEVICE, Tier.HOST, Tier.DISK]
CANARY = np.uint64(0x5A5A5A5A5A5A5A5A)


@pytest.mark.parametrize("tier", TIERS)
def test_pages_come_back_byte_for_byte_from_every_tier(house, prompt, tier):
    async def scenario():
        async with house() as it:
            await it.put(prompt(4))
            it.leave_on(tier)
            assert await it.tiers(prompt(4)) == [tier] * 4
            assert (await it.get(prompt(4))).pages == 4
            assert it.cache.stats().traffic.hits[tier] == 4

    asyncio.run(scenario())


def test_a_load_spans_all_tiers(house, prompt):
    async def scenario():
        async with house() as it:
            await it.put(prompt(6))
            it.leave_on(Tier.DISK)
            await it.get(prompt(4))
            it.leave_on(Tier.HOST)
            await it.get(prompt(2))
            assert await it.tiers(prompt(6)) == [0, 0, 1, 1, 2, 2]
            assert (await it.get(prompt(6))).pages == 6

    asyncio.run(scenario())


@pytest.mark.parametrize("deadline_s", [0.0, 0.02])
def test_a_load_ends_by_its_deadline_and_is_released_when_drained(house, prompt, deadline_s):
    async def scenario():
        async with house() as it:
            await it.put(prompt(3))
            it.leave_on(Tier.DISK)
            it.valve.is_shut = True
            begun_s = time.monotonic()
            load = await it.begin(prompt(3), deadline_s=deadline_s)
            loaded = await load
            assert time.monotonic() - begun_s < deadline_s + 0.2
            assert (loaded.pages, loaded.recompute) == (0, range(24))
            assert loaded.reasons.tolist() == [Reason.LATE] * 3
            load.close()
            assert load.released.done() == (not it.valve.in_flight)
            it.valve.open()
            await load.released
            assert it.cache.stats().misses == {Reason.LATE: 3}

    asyncio.run(scenario())


def test_what_landed_by_the_deadline_is_delivered(house, prompt):
    async def scenario():
        async with house() as it:
            await it.put(prompt(4))
            it.leave_on(Tier.DISK)
            await it.get(prompt(2))
            it.valve.is_shut = True
            with await it.begin(prompt(4), deadline_s=0.02) as load:
                assert (load.landed, load.done, load.recompute) == (2, False, range(16, 32))
                loaded = await load
                assert (loaded.pages, loaded.recompute) == (2, range(16, 32))
            stats = it.cache.stats()
            assert (stats.hits, stats.misses) == (4, {Reason.LATE: 2})

    asyncio.run(scenario())


def test_pages_that_land_late_are_kept_but_are_no_hits(house, prompt):
    async def scenario():
        async with house() as it:
            await it.put(prompt(3))
            it.leave_on(Tier.DISK)
            it.valve.is_shut = True
            with await it.begin(prompt(3), deadline_s=0.01) as load:
                await load
                it.valve.open()
                await load.released
            assert it.cache.stats().hits == 0
            assert it.cache.stats().misses == {Reason.LATE: 3}
            assert load.landed == 0

    asyncio.run(scenario())


def test_cancelled_slots_are_not_reused_before_release(house, prompt):
    async def scenario():
        async with house(device=8) as it:
            await it.put(prompt(5))
            it.leave_on(Tier.DISK)
            it.valve.is_shut = True
            load = await it.begin(prompt(5))
            load.close()
            loaded = await load
            assert loaded.reasons.tolist() == [Reason.CANCELLED] * 5
            assert it.pool.free == 3
            assert not load.released.done()
            slots = it.cache.acquire(3)
            it.words[:, :, slots] = CANARY
            it.valve.open()
            await load.released
            assert (it.words[:, :, slots] == CANARY).all()
            it.cache.release(slots)
            assert (await it.tiers(prompt(5))) == [Tier.DEVICE] * 5
            stats = it.cache.stats()
            assert (stats.hits, stats.misses) == (0, {Reason.CANCELLED: 5})

    asyncio.run(scenario())


def test_released_slots_are_never_written_again(house, prompt):
    async def scenario():
        async with house(device=8) as it:
            await it.put(prompt(5))
            it.leave_on(Tier.DISK)
            it.valve.is_shut = True
            load = await it.begin(prompt(5))
            load.close()
            it.valve.open()
            await load.released
            slots = it.cache.acquire(8)
            it.words[:, :, slots] = CANARY
            await asyncio.sleep(0.01)
            assert (it.words[:, :, slots] == CANARY).all()
            it.cache.release(slots)

    asyncio.run(scenario())


def test_a_cancel_after_landing_changes_nothing(house, prompt):
    async def scenario():
        async with house() as it:
            await it.put(prompt(3))
            it.leave_on(Tier.DISK)
            with await it.begin(prompt(3)) as load:
                await load
                load.cancel()
                load.cancel()
                assert (await load).pages == 3
            load.close()

    asyncio.run(scenario())


def test_a_cancel_between_two_turns_keeps_what_was_copied(house, prompt):
    async def scenario():
        async with house() as it:
            await it.put(prompt(4))
            it.leave_on(Tier.HOST)
            it.orchestrator._copies.turn_pages = 1
            it.residency.policy["chunk_nbytes"] = 1  # one page an op
            load = await it.begin(prompt(4))
            assert load.landed == 1
            load.cancel()
            loaded = await load
            assert (loaded.pages, loaded.reasons.tolist()) == (1, [Reason.CANCELLED] * 3)
            await load.released
            load.close()
            assert it.cache.stats().hits == 1

    asyncio.run(scenario())


def test_a_copy_in_turns_ends_by_its_deadline(house, prompt):
    async def scenario():
        async with house() as it:
            await it.put(prompt(4))
            it.leave_on(Tier.HOST)
            it.orchestrator._copies.turn_pages = 1
            it.residency.policy["chunk_nbytes"] = 1
            with await it.begin(prompt(4), deadline_s=0.0) as load:
                loaded = await load
                await load.released
            assert 1 <= loaded.pages < 4
            assert set(loaded.reasons.tolist()) == {Reason.LATE}
            assert (await it.get(prompt(4))).pages == 4

    asyncio.run(scenario())


@pytest.mark.parametrize("tier", [Tier.HOST, Tier.DISK])
def test_two_loads_of_the_same_pages_share_one_copy(house, prompt, tier):
    async def scenario():
        async with house(device=8) as it:
            await it.put(prompt(4))
            it.leave_on(tier)
            it.orchestrator._copies.turn_pages = 1
            it.residency.policy["chunk_nbytes"] = 1
            first, second = await it.begin(prompt(4)), await it.begin(prompt(4))
            one, two = await first, await second
            assert (one.pages, two.pages) == (4, 4)
            assert one.slots.tolist() == two.slots.tolist()
            keys = (await it.cache.match(prompt(4))).keys
            assert it.wrong_bytes(keys, one) == 0
            first.close()
            second.close()
            assert it.pool.free == 4

    asyncio.run(scenario())


def test_pages_without_a_device_slot_are_misses(house, prompt):
    async def scenario():
        async with house(device=6) as it:
            await it.put(prompt(2, of=1))
            await it.put(prompt(4, of=2))
            it.leave_on(Tier.HOST)
            with await it.begin(prompt(2, of=1)), await it.begin(prompt(4, of=2)) as load:
                held = it.cache.acquire(0)
                assert (await load).pages == 4
                third = await it.begin(prompt(2, of=1))
                assert (await third).pages == 2
                third.close()
                it.cache.release(held)
            slots = it.cache.acquire(5)
            loaded = await it.get(prompt(4, of=2))
            assert (loaded.pages, loaded.reasons.tolist()) == (1, [Reason.NO_ROOM] * 3)
            assert it.cache.stats().misses == {Reason.NO_ROOM: 3}
            it.cache.release(slots)

    asyncio.run(scenario())


def test_pages_from_disk_without_a_host_slot_are_misses(house, prompt):
    async def scenario():
        async with house(device=12, host=6) as it:
            await it.put(prompt(4, of=1))
            await it.put(prompt(4, of=2))
            it.leave_on(Tier.DISK)
            it.valve.is_shut = True
            one, two = await it.begin(prompt(4, of=1)), await it.begin(prompt(4, of=2))
            it.valve.open()
            assert (await one).pages == 4
            loaded = await two
            assert (loaded.pages, loaded.reasons.tolist()) == (2, [Reason.NO_ROOM] * 2)
            one.close()
            two.close()
            assert it.cache.stats().misses == {Reason.NO_ROOM: 2}

    asyncio.run(scenario())


def test_pages_evicted_between_match_and_load_are_misses(house, prompt):
    async def scenario():
        async with house(disk=0) as it:
            await it.put(prompt(3))
            match = await it.cache.match(prompt(3))
            it.leave_on(Tier.DISK)
            with it.cache.load(match) as load:
                assert (await load).pages == 0
            assert it.cache.stats().misses == {Reason.EVICTED: 3}

    asyncio.run(scenario())


def test_a_cancelled_wait_leaves_the_load_as_it_is(house, prompt):
    async def scenario():
        async with house() as it:
            await it.put(prompt(3))
            it.leave_on(Tier.DISK)
            it.valve.is_shut = True
            with await it.begin(prompt(3)) as load:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(load, 0.01)
                it.valve.open()
                assert (await load).pages == 3

    asyncio.run(scenario())


def test_a_load_of_nothing_ends(house, prompt):
    async def scenario():
        async with house() as it, asyncio.timeout(1):
            with await it.begin(prompt(3)) as load:
                assert (await load).pages == 0
                await load.released
            assert it.cache.stats().misses == {Reason.NEVER_STORED: 3}

    asyncio.run(scenario())


@pytest.mark.parametrize("tier", [Tier.HOST, Tier.DISK])
def test_a_borrowed_pool_gets_pages_in_the_engines_own_slots(house, prompt, tier):
    async def scenario():
        async with house(borrowed=True, device=12) as it:
            stored = await it.put(prompt(4))
            assert stored.new == 4
            it.residency.evict(Tier.HOST, 4 if tier is Tier.DISK else 0)
            slots = it.slots(4)
            it.words[:, :, slots] = 0
            loaded = await it.get(prompt(4), slots=slots)
            assert loaded.pages == 4
            assert loaded.slots.tolist() == slots.tolist()
            assert it.pool.leased == 0

    asyncio.run(scenario())


def test_a_borrowed_slot_is_the_engines_again_when_released(house, prompt):
    async def scenario():
        async with house(borrowed=True, device=12) as it:
            await it.put(prompt(4))
            it.residency.evict(Tier.HOST, 4)
            it.valve.is_shut = True
            load = await it.begin(prompt(4), slots=it.slots(4))
            load.close()
            assert not load.released.done()
            it.valve.open()
            await load.released
            it.words[:] = CANARY
            await asyncio.sleep(0.01)
            assert (it.words == CANARY).all()

    asyncio.run(scenario())


def test_slots_are_for_borrowed_pools_and_one_per_page(house, prompt):
    async def scenario():
        async with house() as it:
            await it.put(prompt(2))
            with pytest.raises(LayoutError, match="owned pool"):
                await it.begin(prompt(2), slots=np.arange(2))
        async with house(borrowed=True) as it:
            await it.put(prompt(2))
            for slots in (None, np.arange(1), np.arange(3)):
                with pytest.raises(LayoutError, match="2 pages"):
                    await it.begin(prompt(2), slots=slots)

    asyncio.run(scenario())


def test_a_page_behind_one_that_failed_is_counted_once(house, prompt):
    async def scenario():
        async with house(disk=0) as it:
            await it.put(prompt(4))
            it.leave_on(Tier.HOST)
            row = it.residency.leading((await it.cache.match(prompt(1))).keys)
            it.host.rows[it.residency.slots(row, Tier.HOST), 7] ^= 1
            loaded = await it.get(prompt(4))
            assert (loaded.pages, loaded.reasons[0]) == (0, Reason.CORRUPT)
            stats = it.cache.stats()
            assert stats.hits == 0
            assert stats.misses == {Reason.CORRUPT: 1, Reason.UNREACHABLE: 3}

    asyncio.run(scenario())


def test_who_asks_after_the_release_is_told_at_once(house, prompt):
    async def scenario():
        async with house() as it:
            await it.put(prompt(2))
            with await it.begin(prompt(2)) as load:
                await load.released
                told = []
                load.on_released(lambda: told.append(1))
                load.on_settled(lambda: told.append(2))
                assert told == [1, 2]

    asyncio.run(scenario())
