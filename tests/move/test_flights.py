# SPDX-License-Identifier: Apache-2.0
"""Single flight: pages that several loads want at once are read from disk once."""

import asyncio

import pytest

from bodocache.move.rate import BLOCK_CHUNKS, CLASSES_NBYTES, LinkRate
from bodocache.pages import Reason, Tier
from bodocache.testing import CountingBackend, Fault, FaultyBackend, Operation

PAGES = 4


async def stored(it, tokens):
    """Leave ``tokens`` on disk only, and let reads from now on wait for the valve."""
    await it.put(tokens)
    if it.pool is it.engine_pool:
        it.leave_on(Tier.DISK)
    else:
        it.residency.evict(Tier.HOST, len(await it.tiers(tokens)))
    it.valve.is_shut = True


def teach(it, rate):
    """Let the disk have brought many chunks of every size at ``rate``."""
    link, now_s = it.orchestrator.links["disk->device"], 0.0
    link.rate = LinkRate()
    for nbytes in (4096, *CLASSES_NBYTES):
        for _ in range(2 * BLOCK_CHUNKS):
            now_s += nbytes / rate
            link.rate.add(now_s, nbytes)
    link.rate.resume(it.clock.now_s())


def joined(it):
    return it.cache.stats().traffic.joined


def reads(it):
    """How often each page that was read was read."""
    return sorted(it.backend.reads.values())


async def turns(n=8):
    for _ in range(n):
        await asyncio.sleep(0)


def test_two_loads_join_and_each_page_is_read_once(house, prompt):
    async def scenario():
        async with house(wrap=CountingBackend) as it:
            await stored(it, prompt(PAGES))
            match = await it.cache.match(prompt(PAGES), tenant=1)
            other = await it.cache.match(prompt(PAGES - 1), tenant=2)
            with it.cache.load(match) as first, it.cache.load(other) as second:
                assert joined(it) == PAGES - 1
                assert it.pool.free == it.pool.num_pages - PAGES  # the second takes no slots
                it.valve.open()
                one, two = await first, await second
                assert (one.pages, two.pages) == (PAGES, PAGES - 1)
                assert one.slots[: two.pages].tolist() == two.slots.tolist()
                assert it.wrong_bytes(match.keys, one) == it.wrong_bytes(other.keys, two) == 0
            assert reads(it) == [1] * PAGES
            assert it.cache.stats().traffic.hits[Tier.DISK] == 2 * PAGES - 1

    asyncio.run(scenario())


def test_a_load_reads_what_the_other_does_not_bring(house, prompt):
    async def scenario():
        async with house(wrap=CountingBackend) as it:
            await stored(it, prompt(PAGES))
            with await it.begin(prompt(2)) as first, await it.begin(prompt(PAGES)) as second:
                assert joined(it) == 2
                it.valve.open()
                assert ((await first).pages, (await second).pages) == (2, PAGES)
            assert reads(it) == [1] * PAGES

    asyncio.run(scenario())


def test_slots_of_two_engines_are_filled_from_one_host_copy(house, prompt):
    async def scenario():
        async with house(borrowed=True, device=16, wrap=CountingBackend) as it:
            await stored(it, prompt(PAGES))
            keys = (await it.cache.match(prompt(PAGES))).keys
            mine, yours = it.slots(PAGES), it.slots(PAGES)
            first = await it.begin(prompt(PAGES), slots=mine)
            second = await it.begin(prompt(PAGES), slots=yours)
            assert joined(it) == PAGES
            it.words[:, :, mine] = it.words[:, :, yours] = 0
            it.valve.open()
            for load, slots in ((first, mine), (second, yours)):
                loaded = await load
                assert loaded.slots.tolist() == slots.tolist()
                assert it.wrong_bytes(keys, loaded) == 0
                load.close()
                await load.released
            assert reads(it) == [1] * PAGES

    asyncio.run(scenario())


@pytest.mark.parametrize("borrowed", [False, True])
@pytest.mark.parametrize("leaver", [0, 1])
def test_a_cancel_of_one_leaves_the_other_its_pages(house, prompt, leaver, borrowed):
    async def scenario():
        async with house(device=12, borrowed=borrowed, wrap=CountingBackend) as it:
            await stored(it, prompt(PAGES))
            own = [{"slots": it.slots(PAGES)} if borrowed else {} for _ in range(2)]
            loads = [await it.begin(prompt(PAGES), **slots) for slots in own]
            loads[leaver].close()
            assert (await loads[leaver]).reasons.tolist() == [Reason.CANCELLED] * PAGES
            it.valve.open()
            kept = await loads[1 - leaver]
            assert kept.pages == PAGES
            assert it.wrong_bytes((await it.cache.match(prompt(PAGES))).keys, kept) == 0
            for load in loads:
                load.close()
                await load.released
            assert reads(it) == [1] * PAGES

    asyncio.run(scenario())


def test_what_storage_had_not_begun_is_read_by_who_stays(house, prompt):
    async def scenario():
        async with house(wrap=CountingBackend) as it:
            await stored(it, prompt(PAGES))
            it.valve.is_shut = False
            with it.busy_disk():
                first, second = await it.begin(prompt(PAGES)), await it.begin(prompt(PAGES))
                third = await it.begin(prompt(PAGES))
                assert joined(it) == 2 * PAGES
                first.close()
                await turns()
                assert first.released.done()
            loaded = await second
            assert (loaded.pages, (await third).pages) == (PAGES, PAGES)
            assert it.wrong_bytes((await it.cache.match(prompt(PAGES))).keys, loaded) == 0
            assert reads(it) == [1] * PAGES
            second.close()
            third.close()

    asyncio.run(scenario())


def test_the_last_who_leaves_abandons_the_read(house, prompt):
    async def scenario():
        async with house(wrap=CountingBackend) as it:
            await stored(it, prompt(PAGES))
            it.valve.is_shut = False
            with it.busy_disk():
                first, second = await it.begin(prompt(PAGES)), await it.begin(prompt(PAGES))
                first.close()
                await turns()
                second.close()
                await turns()
                assert first.released.done()
                assert second.released.done()
            await turns()
            assert reads(it) == []
            assert it.cache.stats().misses == {Reason.CANCELLED: 2 * PAGES}

    asyncio.run(scenario())


def test_the_deadline_of_the_first_passes_and_the_second_goes_on(house, prompt):
    async def scenario():
        async with house(wrap=CountingBackend) as it:
            await stored(it, prompt(PAGES))
            first = await it.begin(prompt(PAGES), deadline_s=0.005)
            second = await it.begin(prompt(PAGES), deadline_s=60)
            assert (await first).reasons.tolist() == [Reason.LATE] * PAGES
            first.close()
            assert not second.done
            it.valve.open()
            assert (await second).pages == PAGES
            second.close()
            await first.released
            assert reads(it) == [1] * PAGES

    asyncio.run(scenario())


def test_the_second_ends_by_its_own_deadline(house, prompt):
    async def scenario():
        async with house(wrap=CountingBackend) as it:
            await stored(it, prompt(PAGES))
            with await it.begin(prompt(PAGES)) as first:
                with await it.begin(prompt(PAGES), deadline_s=0.005) as second:
                    assert (await second).reasons.tolist() == [Reason.LATE] * PAGES
                    await second.released  # it never had a slot of its own
                it.valve.open()
                assert (await first).pages == PAGES

    asyncio.run(scenario())


def test_a_cut_of_the_first_leaves_the_rest_to_the_second(house, prompt):
    async def scenario():
        async with house(wrap=CountingBackend) as it:
            await stored(it, prompt(PAGES))
            it.valve.is_shut = False
            with it.busy_disk():
                first, second = await it.begin(prompt(PAGES)), await it.begin(prompt(PAGES))
                first.cut(1)
            assert ((await first).pages, (await second).pages) == (1, PAGES)
            assert reads(it) == [1] * PAGES
            first.close()
            second.close()

    asyncio.run(scenario())


def test_a_page_that_cannot_be_read_is_a_miss_of_both(house, prompt):
    def broken(backend):
        plan = [Fault.once(Operation.GET, 2), Fault.once(Operation.GET, PAGES)]
        return FaultyBackend(backend, plan)

    async def scenario():
        async with house(wrap=broken) as it:
            await stored(it, prompt(PAGES))
            with await it.begin(prompt(PAGES)) as first, await it.begin(prompt(PAGES)) as second:
                it.valve.open()
                for loaded in (await first, await second):
                    assert loaded.pages == 2
                    assert loaded.reasons.tolist() == [Reason.IO_ERROR, Reason.UNREACHABLE]
            assert joined(it) == PAGES
            assert it.backend.fired == 2  # read, and read again: not for the second

    asyncio.run(scenario())


def test_a_read_goes_by_the_earliest_deadline_of_all_who_wait(house, prompt):
    async def scenario():
        async with house(wrap=CountingBackend) as it:
            await stored(it, prompt(PAGES))
            it.valve.is_shut = False
            with it.busy_disk():
                first = await it.begin(prompt(PAGES), deadline_s=100)
                (part,) = it.orchestrator._loader._flights.leaders(first.rows)
                with await it.begin(prompt(PAGES), deadline_s=10) as second:
                    assert part.ticket.due_s == second.deadline_s
                    with await it.begin(prompt(1), deadline_s=50):
                        assert part.ticket.due_s == second.deadline_s
                await turns()
                assert part.ticket.due_s == first.deadline_s
            assert (await first).pages == PAGES
            first.close()

    asyncio.run(scenario())


def test_a_prediction_counts_a_shared_read_once(house, prompt):
    async def scenario():
        async with house(wrap=CountingBackend) as it:
            await stored(it, prompt(PAGES))
            teach(it, PAGES * 4096 / 0.1)  # the read takes 0.1 s
            with (
                await it.begin(prompt(PAGES), start_s=1.0) as first,
                await it.begin(prompt(PAGES), start_s=1.0) as second,
            ):
                it.orchestrator.decider._look()
                alone_s = 0.1
                now_s = it.clock.now_s()
                for load in (first, second):
                    assert load.outlook.is_whole
                    assert load.outlook.finish_s - now_s < 1.5 * alone_s
                it.valve.open()
                assert ((await first).pages, (await second).pages) == (PAGES, PAGES)

    asyncio.run(scenario())
