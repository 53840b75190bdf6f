# SPDX-License-Identifier: Apache-2.0
import asyncio

import numpy as np
import pytest

from bodocache.errors import LayoutError, TierFull
from bodocache.move.store import Stored
from bodocache.pages import Reason, Tier


def test_pages_are_found_when_the_store_returns(house, prompt):
    async def scenario():
        async with house() as it:
            store = await it.compute(prompt(3))
            assert (await it.cache.match(prompt(3))).pages == 0
            assert await store == Stored(new=3, known=0, refused=0)
            assert await it.tiers(prompt(3)) == [Tier.DEVICE] * 3
            store.close()
            store.close()

    asyncio.run(scenario())


def test_a_page_on_its_way_has_a_reason_to_be_a_miss(house, prompt):
    async def scenario():
        async with house() as it:
            store = await it.compute(prompt(2))
            match = await it.cache.match(prompt(3))
            assert match.reasons.tolist() == [Reason.NEVER_STORED] * 3
            await store
            store.close()

    asyncio.run(scenario())


def test_pages_that_are_known_are_not_stored_again(house, prompt):
    async def scenario():
        async with house() as it:
            await it.put(prompt(3))
            assert await it.put(prompt(5)) == Stored(new=2, known=3, refused=0)
            assert it.pool.free == 3

    asyncio.run(scenario())


def test_two_stores_of_the_same_pages_at_once_keep_one(house, prompt):
    async def scenario():
        async with house() as it:
            one, two = await it.compute(prompt(3)), await it.compute(prompt(4))
            assert await one == Stored(new=3, known=0, refused=0)
            assert await two == Stored(new=1, known=3, refused=0)
            one.close()
            two.close()
            assert it.pool.free == 4
            assert (await it.get(prompt(4))).pages == 4

    asyncio.run(scenario())


def test_a_store_whose_prefix_vanished_is_refused(house, prompt):
    async def scenario():
        async with house(disk=0) as it:
            await it.put(prompt(2))
            match = await it.cache.match(prompt(4))
            slots = it.slots(2)
            it.leave_on(Tier.DISK)
            async with it.cache.store(match, slots) as store:
                assert await store == Stored(new=0, known=0, refused=2)
                assert await store.written == 0
            assert (await it.cache.match(prompt(4))).pages == 0
            assert it.pool.free == 8

    asyncio.run(scenario())


def test_slots_of_a_closed_store_can_be_had_at_once(house, prompt):
    async def scenario():
        async with house(device=4, disk=0) as it:
            store = await it.compute(prompt(4))
            await store
            with pytest.raises(TierFull):
                it.cache.acquire(4)
            store.close()
            it.cache.release(it.cache.acquire(4))

    asyncio.run(scenario())


def test_a_store_closed_before_it_is_visible_is_stored(house, prompt):
    async def scenario():
        async with house() as it:
            store = await it.compute(prompt(4))
            store.close()
            assert (await store).new == 4
            await store.written
            assert (await it.get(prompt(4))).pages == 4

    asyncio.run(scenario())


def test_pages_that_no_tier_has_room_for_are_refused(house, prompt):
    async def scenario():
        async with house(host=2, disk=0) as it:
            async with await it.compute(prompt(4)) as store:
                assert await store == Stored(new=2, known=0, refused=2)
                match = await it.cache.match(prompt(4))
                assert match.pages == 2
                assert match.reasons.tolist() == [Reason.NO_ROOM] * 2
            assert (await it.get(prompt(4))).pages == 2

    asyncio.run(scenario())


def test_the_churn_guard_lets_no_flood_turn_a_tier_over(house, prompt):
    async def scenario():
        async with house(device=40, host=8, disk=0) as it:
            policy, evicted = it.residency.policy, it.residency.evicted
            policy["churn_share"], policy["churn_s"] = 0.25, 1e6
            for number in range(6):
                await it.put(prompt(4, of=number))
            assert evicted[Tier.HOST] == 2
            policy["churn_share"] = 0.0
            assert (await it.put(prompt(4, of=9))).new == 4

    asyncio.run(scenario())


def test_refused_pages_can_be_stored_while_the_refused_store_is_open(house, prompt):
    async def scenario():
        async with house(device=12, host=4, disk=0) as it:
            async with await it.compute(prompt(2, of=1)):
                refused = await it.compute(prompt(4))
                assert await refused == Stored(new=2, known=0, refused=2)
            assert await it.put(prompt(4)) == Stored(new=2, known=2, refused=0)
            refused.close()
            assert (await it.get(prompt(4))).pages == 4

    asyncio.run(scenario())


def test_a_page_that_failed_its_check_is_stored_anew_while_its_load_is_open(house, prompt):
    async def scenario():
        async with house(disk=0) as it:
            await it.put(prompt(2))
            it.leave_on(Tier.HOST)
            keys = (await it.cache.match(prompt(2))).keys
            slots = it.residency.slots(it.residency.leading(keys), Tier.HOST)
            it.host.rows[slots[1]] ^= 1
            with await it.begin(prompt(2)) as load:
                assert (await load).pages == 1
                async with await it.compute(prompt(2), have=1) as store:
                    assert await store == Stored(new=1, known=0, refused=0)
                assert (await it.cache.match(prompt(2))).pages == 2
            assert (await it.get(prompt(2))).pages == 2

    asyncio.run(scenario())


def refuse_first(it):
    """Whoever asks for room first gets none."""
    sound = it.residency.take_worth

    def take_none(rows, *_, **__):
        it.residency.take_worth = sound
        return rows[:0]

    it.residency.take_worth = take_none


@pytest.mark.parametrize("borrowed", [False, True])
def test_a_store_behind_one_that_found_no_room_brings_its_pages(house, prompt, borrowed):
    async def scenario():
        async with house(device=16, borrowed=borrowed) as it:
            refuse_first(it)
            one, two = await it.compute(prompt(2)), await it.compute(prompt(4))
            assert await one == Stored(new=0, known=0, refused=2)
            assert await two == Stored(new=4, known=0, refused=0)
            for store in (one, two):
                store.close()
                await store.written
            slots = {"slots": it.slots(4)} if borrowed else {}
            assert (await it.get(prompt(4), **slots)).pages == 4

    asyncio.run(scenario())


def test_no_page_is_shown_behind_one_that_has_no_room(house, prompt):
    async def scenario():
        async with house(device=16, host=4, disk=0) as it:
            async with await it.compute(prompt(2, of=1)) as kept:
                assert (await kept).new == 2  # they cannot leave
                refuse_first(it)
                one, two = await it.compute(prompt(2)), await it.compute(prompt(4))
                assert await one == Stored(new=0, known=0, refused=2)
                assert await two == Stored(new=0, known=0, refused=4)
                assert it.host.free == 2
                one.close()
                two.close()
            assert it.pool.free == 14

    asyncio.run(scenario())


def test_pages_behind_a_lost_one_are_its_children_when_it_comes_again(house, prompt):
    async def scenario():
        async with house(disk=0) as it:
            await it.put(prompt(3))
            it.leave_on(Tier.HOST)
            match = await it.cache.match(prompt(3))
            rows = it.residency.leading(match.keys)
            it.host.rows[it.residency.slots(rows, Tier.HOST)[1]] ^= 1
            assert (await it.get(prompt(3))).pages == 1
            assert await it.put(prompt(2)) == Stored(new=1, known=1, refused=0)
            assert await it.pages_of(prompt(3)) == 3
            assert it.residency.table.records["parent"][rows].tolist() == [-1, *rows[:2]]
            it.leave_on(Tier.HOST)
            for pages in (2, 1, 0):
                it.residency.evict(Tier.HOST, 1)
                assert await it.pages_of(prompt(3)) == pages

    asyncio.run(scenario())


def test_a_store_whose_copy_raises_ends_and_leaks_nothing(house, prompt, caplog):
    def broken(*_):
        raise RuntimeError("the device is gone")

    async def scenario():
        async with house(failures=1) as it:
            sound, it.orchestrator._copies.to_host = it.orchestrator._copies.to_host, broken
            store = await it.compute(prompt(3))
            assert await store == Stored(new=0, known=0, refused=3)
            assert await store.written == 0
            store.close()
            it.orchestrator._copies.to_host = sound
            assert (await it.cache.match(prompt(3))).pages == 0
            assert await it.put(prompt(3)) == Stored(new=3, known=0, refused=0)

    asyncio.run(scenario())
    assert "the device is gone" in caplog.text


def test_acquire_says_what_is_full_and_takes_nothing(house, prompt):
    async def scenario():
        async with house(device=6) as it:
            store = await it.compute(prompt(4))
            await store
            with pytest.raises(TierFull, match=r"device: 3 slots asked for, 2 of 6 free"):
                it.cache.acquire(3)
            assert it.pool.free == 2
            store.close()

    asyncio.run(scenario())


def test_more_slots_than_pages_is_an_error(house, prompt):
    async def scenario():
        async with house() as it:
            match = await it.cache.match(prompt(2))
            with pytest.raises(LayoutError, match="3 slots for 2 pages"):
                it.cache.store(match, np.arange(3))

    asyncio.run(scenario())


def test_a_borrowed_slot_is_the_engines_again_when_the_store_is_visible(house, prompt):
    async def scenario():
        async with house(borrowed=True, device=12) as it:
            store = await it.compute(prompt(3))
            await store
            it.words[:] = 0
            store.close()
            assert (await it.get(prompt(3), slots=it.slots(3))).pages == 3

    asyncio.run(scenario())
