# SPDX-License-Identifier: Apache-2.0
import asyncio
from contextlib import asynccontextmanager

import pytest

from bodocache.errors import BackendError
from bodocache.hints import Leave, Release, Span, Status
from bodocache.move import queue, writer
from bodocache.pages import Reason, Tier
from bodocache.testing import Fault, FaultyBackend, Operation
from bodocache.testing.wrapper import WrappedBackend


class Refusing(WrappedBackend):
    """A backend whose first put raises."""

    refuses = True

    def put(self, *arguments, **options):
        if self.refuses:
            self.refuses = False
            raise BackendError("no puts today")
        return super().put(*arguments, **options)


def faulty(*plan):
    return lambda inner: FaultyBackend(inner, plan)


def test_written_counts_the_pages_on_disk(house, prompt):
    async def scenario():
        async with house() as it:
            for pages, count in ((3, 3), (5, 2), (5, 0)):
                async with await it.compute(prompt(pages)) as store:
                    assert await store.written == count
            assert it.backend.usage.used_frames == 5

    asyncio.run(scenario())


def test_pages_of_one_prefix_lie_side_by_side_on_disk(house, prompt):
    async def scenario():
        async with house(device=16) as it:
            await it.put(prompt(3))
            await it.put(prompt(6))
            rows = it.residency.leading((await it.cache.match(prompt(6))).keys)
            frames = it.residency.slots(rows, Tier.DISK)
            assert (frames - frames[0]).tolist() == [*range(6)]

    asyncio.run(scenario())


def test_pages_that_are_not_worth_it_are_not_admitted(house, prompt):
    async def scenario():
        async with house(admit=True) as it:  # recompute is faster than this disk
            async with await it.compute(prompt(3)) as store:
                assert await store.written == 0
            it.leave_on(Tier.DISK)
            match = await it.cache.match(prompt(3))
            assert match.reasons.tolist() == [Reason.NOT_ADMITTED] * 3
            assert it.cache.stats().traffic.not_admitted == 3

    asyncio.run(scenario())


def test_a_long_backlog_makes_stores_wait_and_then_go_on(house, prompt):
    async def scenario():
        async with house(device=32, host=16) as it, asyncio.timeout(5):  # 4 pages may wait
            it.valve.is_shut = True
            stores = [await it.compute(prompt(3, of=i)) for i in range(4)]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*stores), 0.02)
            assert [(await it.cache.match(prompt(3, of=i))).pages for i in range(4)] == [3] * 4
            it.valve.open()
            await asyncio.gather(*stores)
            assert await asyncio.gather(*(store.written for store in stores)) == [3] * 4
            for store in stores:
                store.close()

    asyncio.run(scenario())


def test_a_store_longer_than_the_backlog_ends(house, prompt):
    async def scenario():
        async with house(device=16, host=8) as it, asyncio.timeout(5):
            assert (await it.put(prompt(8))).new == 8
            assert it.backend.usage.used_frames == 8

    asyncio.run(scenario())


def test_pages_evicted_while_they_wait_are_not_written(house, prompt):
    async def scenario():
        async with house(host=4) as it:
            it.orchestrator._writer._backlog_pages = 100
            with it.busy_disk():
                store = await it.compute(prompt(3))
                await store
                store.close()
                await asyncio.sleep(0)
                it.leave_on(Tier.DISK)
                assert (await it.put(prompt(4, of=2))).new == 4
            assert await store.written == 0
            assert await it.tiers(prompt(3)) == []

    asyncio.run(scenario())


@asynccontextmanager
async def write_in_flight(it, tokens):
    """Inside, the pages of ``tokens`` are being written and the disk does not answer."""
    it.orchestrator._writer._backlog_pages = 100
    it.valve.is_shut = True
    async with await it.compute(tokens) as store:
        await store
    async with asyncio.timeout(5):
        while not it.valve.in_flight:  # noqa: ASYNC110 -- no event is set
            await asyncio.sleep(0)
    yield store
    it.valve.open()
    await store.written


def test_pages_that_are_being_written_do_not_leave_for_room_that_others_would_not_get(
    house, prompt
):
    async def scenario():
        async with house(borrowed=True, device=32, host=8) as it:
            async with write_in_flight(it, prompt(4)) as store:
                async with await it.compute(prompt(4, of=1)) as queued:
                    assert (await queued).new == 4
                async with await it.compute(prompt(6, of=2)) as other:
                    stored = await other
                    assert (stored.new, stored.refused) == (4, 2)
                assert it.residency.evicted[Tier.HOST] == 4
                assert await it.pages_of(prompt(4)) == 4
            assert await store.written == 4
            it.residency.evict(Tier.HOST, 100)
            assert await it.tiers(prompt(4)) == [Tier.DISK] * 4

    asyncio.run(scenario())


def test_on_a_disk_that_hangs_pages_leave_the_host_after_a_while(house, prompt, monkeypatch):
    monkeypatch.setattr(writer, "KEPT_S", 0.01)

    async def scenario():
        async with house(borrowed=True, device=32, host=8) as it, asyncio.timeout(5):
            async with write_in_flight(it, prompt(4)):
                while it.residency.table.records["holds"].any():  # noqa: ASYNC110 -- no event
                    await asyncio.sleep(0.005)
                it.residency.evict(Tier.HOST, 100)
                assert await it.pages_of(prompt(4)) == 0
                assert it.host.free == 4  # the others are the disk's until it answers
            assert it.host.free == 8
            assert it.backend.usage.used_frames == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("n", range(4))
def test_a_failed_put_is_no_page_on_disk_and_no_frame_lost(house, prompt, n):
    async def scenario():
        async with house(wrap=faulty(Fault.once(Operation.PUT, n))) as it:
            async with await it.compute(prompt(4)) as store:
                assert await store.written == 3
            assert it.backend.usage.used_frames == 3
            it.leave_on(Tier.HOST)
            assert (await it.get(prompt(4))).pages == 4

    asyncio.run(scenario())


def test_a_full_disk_refuses_and_nothing_is_lost(house, prompt):
    async def scenario():
        plan = faulty(Fault(Operation.RESERVE, 0, None))
        async with house(wrap=plan) as it:
            async with await it.compute(prompt(4)) as store:
                assert await store.written == 0
            assert (await it.get(prompt(4))).pages == 4
            assert it.backend.usage.used_frames == 0

    asyncio.run(scenario())


def test_a_store_that_finds_no_frames_refuses_no_other_in_its_batch(house, prompt):
    async def scenario():
        async with house(device=32, host=32, disk=8) as it:
            with it.busy_disk():
                stores = [await it.compute(prompt(9, of=9))]
                stores += [await it.compute(prompt(2, of=of)) for of in range(3)]
                for store in stores:
                    assert (await store).refused == 0
            assert [await store.written for store in stores] == [0, 2, 2, 2]
            for store in stores:
                store.close()

    asyncio.run(scenario())


def test_no_page_goes_to_disk_behind_one_that_was_refused_there(house, prompt):
    async def scenario():
        async with house(device=32, host=32, disk=8) as it:
            with it.busy_disk():
                stores = [await it.compute(prompt(pages)) for pages in (9, 12)]
                for store in stores:
                    assert (await store).refused == 0
            assert [await store.written for store in stores] == [0, 0]
            assert it.backend.usage.used_frames == 0
            for store in stores:
                store.close()

    asyncio.run(scenario())


def test_a_backend_that_raises_does_not_end_write_through(house, prompt):
    async def scenario():
        async with house(wrap=Refusing) as it, asyncio.timeout(5):
            async with await it.compute(prompt(3)) as store:
                assert await store.written == 0
            assert it.backend.usage.used_frames == 0
            async with await it.compute(prompt(3, of=2)) as store:
                assert await store.written == 3

    asyncio.run(scenario())


def test_a_small_disk_turns_over(house, prompt):
    async def scenario():
        async with house(device=8, host=8, disk=4) as it:
            for of in range(6):
                async with await it.compute(prompt(3, of=of)) as store:
                    assert await store.written == 3
            it.leave_on(Tier.DISK)
            assert it.backend.usage.used_frames <= 4
            assert (await it.get(prompt(3, of=5))).pages == 3

    asyncio.run(scenario())


def test_writes_wait_for_loads_from_disk_but_not_for_ever(house, prompt, monkeypatch):
    monkeypatch.setattr(queue, "PATIENCE_S", (1.0, 1.0, 1.0, 0.02))

    async def scenario():
        async with house() as it, asyncio.timeout(5):
            with it.busy_disk():
                store = await it.compute(prompt(1))
                await store
                await asyncio.sleep(0.005)
                assert it.backend.usage.used_frames == 0
                assert await store.written == 1
            store.close()

    asyncio.run(scenario())


def test_a_page_that_waits_twice_takes_one_frame(house, prompt):
    async def scenario():
        async with house(host=32) as it:
            stores = []
            with it.busy_disk():
                for _ in range(2):  # stored, evicted, and stored again before it was written
                    stores.append(await it.compute(prompt(3)))
                    await stores[-1]
                    stores[-1].close()
                    it.leave_on(Tier.DISK)
                stores.append(await it.compute(prompt(3)))
                await stores[-1]
                stores[-1].close()
            assert [await store.written for store in stores] == [3] * 3
            assert it.backend.usage.used_frames == 3

    asyncio.run(scenario())


def test_a_load_ends_while_writes_are_held(house, prompt):
    async def scenario():
        async with house(host=32) as it, asyncio.timeout(5):
            await it.put(prompt(4))
            it.leave_on(Tier.DISK)
            it.valve.is_shut = True
            store = await it.compute(prompt(2, of=1))
            await store
            await asyncio.sleep(0.01)
            assert it.valve.in_flight
            held, it.valve.in_flight = it.valve.in_flight, []
            it.valve.is_shut = False
            assert (await it.get(prompt(4))).pages == 4
            it.valve.in_flight = held
            it.valve.open()
            await store.written
            store.close()

    asyncio.run(scenario())


def test_pages_that_are_being_written_can_be_released_at_once(house, prompt):
    """Nobody wants their write any more: it holds them no longer, and comes to nothing."""

    async def scenario():
        async with house(device=64, host=32, borrowed=True) as it, asyncio.timeout(5):
            match = await it.cache.match(prompt(4))
            slots = it.engine_pool.acquire(4)
            it.fill(slots, match.keys)
            it.valve.is_shut = True
            store = it.cache.store(match, slots)
            await store
            store.close()
            await asyncio.sleep(0.01)
            assert it.valve.in_flight
            span = Span(prompt(4), 0, None, 0)
            (outcome,) = await it.cache.hint([Release(span, Leave.AT_ONCE)])
            assert (outcome.status, outcome.pages) == (Status.ACCEPTED, 4)
            it.valve.open()
            await store.written
            it.engine_pool.release(slots)
            assert (await it.cache.match(prompt(4))).pages == 0
            assert it.backend.usage.used_frames == 0
            assert not it.residency.table.records["holds"].any()

    asyncio.run(scenario())
