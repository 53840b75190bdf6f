# SPDX-License-Identifier: Apache-2.0
import asyncio

import numpy as np
import pytest

from bodocache.pages import Reason, Tier
from bodocache.testing import Fault, FaultyBackend, Operation

PAGES = 4


def faulty(*plan):
    return lambda inner: FaultyBackend(inner, plan)


def twice(n):
    """Page ``n`` fails when all are read, and when it is read again."""
    return faulty(Fault.once(Operation.GET, n), Fault.once(Operation.GET, PAGES))


@pytest.mark.parametrize("n", range(PAGES))
def test_a_read_that_fails_once_costs_no_page(house, prompt, n):
    async def scenario():
        async with house(wrap=faulty(Fault.once(Operation.GET, n))) as it:
            await it.put(prompt(PAGES))
            it.leave_on(Tier.DISK)
            assert (await it.get(prompt(PAGES))).pages == PAGES
            assert it.backend.fired == 1
            assert (await it.put(prompt(PAGES))).new == 0  # none of them was given up

    asyncio.run(scenario())


@pytest.mark.parametrize("n", range(PAGES))
def test_a_read_that_fails_twice_is_a_miss_and_the_page_is_gone(house, prompt, n):
    async def scenario():
        async with house(wrap=twice(n)) as it:
            await it.put(prompt(PAGES))
            it.leave_on(Tier.DISK)
            loaded = await it.get(prompt(PAGES))
            assert (loaded.pages, loaded.reasons[0]) == (n, Reason.IO_ERROR)
            match = await it.cache.match(prompt(PAGES))
            assert (match.pages, match.reasons[0]) == (n, Reason.IO_ERROR)
            assert (match.reasons[1:] == Reason.UNREACHABLE).all()
            assert (await it.put(prompt(PAGES))).new == 1
            assert (await it.get(prompt(PAGES))).pages == PAGES

    asyncio.run(scenario())


@pytest.mark.parametrize("operation", Operation)
@pytest.mark.parametrize("n", range(0, 24, 3))
@pytest.mark.parametrize("last", [0, None])
def test_no_fault_anywhere_costs_more_than_a_miss(house, prompt, operation, n, last):
    async def scenario():
        plan = faulty(Fault(operation, n, None if last is None else n + 1))
        async with house(device=8, host=6, disk=12, wrap=plan) as it, asyncio.timeout(5):
            for of in (1, 2, 1, 3, 2, 1, 4):
                have = (await it.get(prompt(PAGES, of=of))).pages
                async with await it.compute(prompt(PAGES, of=of), have=have) as store:
                    await store.written

    asyncio.run(scenario())


def test_nothing_behind_a_page_that_is_lost_is_waited_for(house, prompt):
    async def scenario():
        async with house() as it, asyncio.timeout(5):
            await it.put(prompt(PAGES))
            it.leave_on(Tier.DISK)
            it.valve.is_shut = True
            with await it.begin(prompt(PAGES)) as load:
                load.fail(np.array([1]), np.array([Reason.CORRUPT], np.uint8))
                assert load.wanted == 1
                it.valve.open()
                loaded = await load
                assert loaded.pages == 1
                behind = [Reason.UNREACHABLE] * (PAGES - 2)
                assert loaded.reasons.tolist() == [Reason.CORRUPT, *behind]
                await load.released

    asyncio.run(scenario())


def test_bytes_changed_in_host_memory_are_caught(house, prompt):
    async def scenario():
        async with house() as it:
            await it.put(prompt(3))
            it.leave_on(Tier.HOST)
            rows = it.residency.leading((await it.cache.match(prompt(3))).keys)
            it.host.rows[it.residency.slots(rows, Tier.HOST)[1], 100] ^= 4
            loaded = await it.get(prompt(3))
            assert (loaded.pages, loaded.reasons[0]) == (1, Reason.CORRUPT)
            assert it.cache.stats().traffic.failed_checks == 1
            assert await it.tiers(prompt(3)) == [Tier.DEVICE, Tier.DISK, Tier.DEVICE]
            assert (await it.get(prompt(3))).pages == 3  # the copy on disk is sound

    asyncio.run(scenario())


def test_the_only_copy_changed_in_host_memory_is_gone(house, prompt):
    async def scenario():
        async with house(disk=0) as it:
            await it.put(prompt(3))
            it.leave_on(Tier.HOST)
            it.host.rows[:] ^= 1
            assert (await it.get(prompt(3))).pages == 0
            match = await it.cache.match(prompt(3))
            assert (match.pages, match.reasons.tolist()) == (0, [Reason.CORRUPT] * 3)
            assert it.host.free == it.host.num_pages

    asyncio.run(scenario())


def test_two_loads_find_the_same_page_corrupt(house, prompt):
    async def scenario():
        async with house(disk=0) as it:
            await it.put(prompt(3))
            it.leave_on(Tier.HOST)
            rows = it.residency.leading((await it.cache.match(prompt(3))).keys)
            it.host.rows[it.residency.slots(rows[:1], Tier.HOST)] ^= 1
            it.orchestrator._copies.turn_pages = 1
            it.residency.policy["chunk_nbytes"] = 1
            one, two = await it.begin(prompt(3)), await it.begin(prompt(3))
            assert ((await one).pages, (await two).pages) == (0, 0)
            await one.released
            await two.released
            one.close()
            two.close()

    asyncio.run(scenario())


def test_a_frame_changed_on_disk_is_a_miss_and_gone(house, prompt):
    async def scenario():
        async with house() as it:
            await it.put(prompt(3))
            it.leave_on(Tier.DISK)
            rows = it.residency.leading((await it.cache.match(prompt(3))).keys)
            it.disk.pages[it.residency.slots(rows, Tier.DISK)[1]] ^= 1
            loaded = await it.get(prompt(3))
            assert (loaded.pages, loaded.reasons[0]) == (1, Reason.CORRUPT)
            match = await it.cache.match(prompt(3))
            assert match.pages == 1
            assert match.reasons.tolist() == [Reason.CORRUPT, Reason.UNREACHABLE]
            assert it.backend.usage.used_frames == 2
            assert (await it.put(prompt(3))).new == 1
            assert (await it.get(prompt(3))).pages == 3

    asyncio.run(scenario())


def test_a_page_read_from_disk_is_found_corrupt_before_the_load_ends(house, prompt):
    """Its host slot was given back then: the load must not do it again."""

    async def scenario():
        async with house(borrowed=True, device=12) as it, asyncio.timeout(5):
            await it.put(prompt(3))
            it.residency.evict(Tier.HOST, 3)
            it.valve.is_shut = True
            first = await it.begin(prompt(3), slots=it.slots(3))
            it.valve.flow_one()
            await asyncio.sleep(0.001)
            assert first.landed == 1
            it.host.rows[:] ^= 1
            assert (await it.get(prompt(1), slots=it.slots(1))).reasons.tolist() == [Reason.CORRUPT]
            it.valve.open()
            assert (await first).pages == 3
            first.close()

    asyncio.run(scenario())


def test_a_copy_that_raises_ends_the_load_and_leaks_nothing(house, prompt, caplog):
    def broken(*_):
        raise RuntimeError("the device is gone")

    async def scenario():
        async with house() as it, asyncio.timeout(5):
            await it.put(prompt(3))
            it.leave_on(Tier.HOST)
            copies = it.orchestrator._copies
            sound, copies.to_device = copies.to_device, broken
            loaded = await it.get(prompt(3))
            assert loaded.pages == 0
            copies.to_device = sound
            assert (await it.get(prompt(3))).pages == 3

    asyncio.run(scenario())
    assert "the device is gone" in caplog.text


@pytest.mark.parametrize("error", [OSError("no disk"), MemoryError("no room"), ValueError("a bug")])
def test_a_get_that_raises_is_a_miss_and_leaks_nothing(house, prompt, caplog, error):
    def broken(*_, **__):
        raise error

    async def scenario():
        async with house() as it, asyncio.timeout(5):  # it looks for leaks when it is left
            await it.put(prompt(3))
            it.leave_on(Tier.DISK)
            backend = it.residency.backend
            sound, backend.get = backend.get, broken
            assert (await it.get(prompt(3))).reasons.tolist() == [Reason.IO_ERROR] * 3
            backend.get = sound
            assert (await it.get(prompt(3))).pages == 3

    asyncio.run(scenario())
    assert str(error) in caplog.text


def test_a_page_that_was_lost_comes_back_by_a_load_and_a_store_at_once(house, prompt):
    async def scenario():
        async with house() as it, asyncio.timeout(5):
            await it.put(prompt(2))
            it.leave_on(Tier.DISK)
            it.valve.is_shut = True
            first = await it.begin(prompt(2))
            request = it.valve.in_flight.pop(0)
            outcome = request.run()  # page 0 was read; the loop does not know yet
            it.residency.drop(first.rows[:1], Tier.DISK, Reason.IO_ERROR)  # as a prefetch would
            request.transfer.settle(request, outcome)
            store = await it.compute(prompt(2))
            await store
            it.valve.open()
            assert (await first).pages == 2
            first.close()
            store.close()

    asyncio.run(scenario())
