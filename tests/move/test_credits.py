# SPDX-License-Identifier: Apache-2.0
"""What waits for its tenant's credits, for how long, and what it costs whom."""

import asyncio
import math

import numpy as np
import pytest

from bodocache.clock import VirtualClock
from bodocache.config import CacheConfig, FeaturesConfig, TenantsConfig, parse
from bodocache.errors import ConfigError
from bodocache.move.credits import Credits
from bodocache.move.link import Link
from bodocache.move.queue import CHUNK_S, LinkQueue
from bodocache.move.ticket import Priority
from bodocache.pages import Reason, Tier
from bodocache.plan.records import POLICY, Purpose
from bodocache.testing.loop import run_virtual

RATE = 1e6  # bytes/s of the link
CHUNK = int(RATE * CHUNK_S)
PAGE = 500
GOLD, FREE, OTHER = 1, 2, 3


class Pages:
    """Work that moves at the link's rate on the loop's clock; notes when each chunk began."""

    def __init__(self, links, name, nbytes):
        self.links, self.name, self.left_nbytes, self.waits = links, name, nbytes, nbytes
        self.begun = []  # (s, bytes)

    def enter(self, priority=Priority.LOAD, due_s=math.inf, payers=()):
        self.ticket = self.links.enter(self, priority, deadline_s=due_s, payers=payers)
        self.links.start(self.ticket)
        return self

    def begin(self, nbytes):
        begun = min(max(PAGE, nbytes // PAGE * PAGE), self.waits)
        self.waits -= begun
        if begun:
            loop = asyncio.get_running_loop()
            self.begun.append((loop.time(), begun))
            loop.call_later(begun / RATE, self.end, begun)
        return begun

    def end(self, nbytes):
        self.left_nbytes -= nbytes
        self.links.done(self.ticket, nbytes)
        if not self.left_nbytes:
            self.ended_s = asyncio.get_running_loop().time()
            self.links.leave(self.ticket)

    def withdraw(self):
        pass


def in_virtual_time(scenario):
    """Run ``scenario(clock)``."""
    clock = VirtualClock()
    run_virtual(scenario(clock), clock)


def credits_of(clock, **said):
    said.setdefault("burst_s", 0.01)
    config = TenantsConfig(**said)
    policy = np.zeros(1, POLICY)
    return Credits(config, policy=policy, page_nbytes=PAGE, now_s=clock.now_s)


def queue_of(clock, **said):
    links = LinkQueue(now_s=clock.now_s, rate=lambda: RATE)
    links.credits = credits_of(clock, **said) if said else None
    return links


def test_who_has_a_rate_moves_at_that_rate_and_its_burst():
    async def scenario(clock):
        links = queue_of(clock, bytes_per_s={"2": 1e5})
        it = Pages(links, "free", 100_000).enter(payers=(FREE,))
        await asyncio.sleep(10)
        assert it.ended_s == pytest.approx(1.0, abs=0.015)  # 1e5 bytes/s, 1000 bytes put by
        assert links.credits.spent(FREE)[Purpose.READ] == 100_000

    in_virtual_time(scenario)


def test_ios_are_limited_too():
    async def scenario(clock):
        links = queue_of(clock, ios_per_s={"2": 10.0})
        it = Pages(links, "free", 10 * CHUNK).enter(payers=(FREE,))
        await asyncio.sleep(10)
        assert it.ended_s == pytest.approx(0.9, abs=0.01)  # the first is put by

    in_virtual_time(scenario)


@pytest.mark.parametrize("payers", [(OTHER,), ()])
def test_who_has_no_rate_waits_for_nobody(payers):
    async def scenario(clock):
        links = queue_of(clock, bytes_per_s={"2": 1e4})
        flood = Pages(links, "free", 1_000_000).enter(payers=(FREE,), due_s=0.0)
        it = Pages(links, "other", 100_000).enter(payers=payers, due_s=9.0)
        await asyncio.sleep(1)
        assert it.ended_s < 0.1 * 1.05 + 2 * CHUNK_S
        assert 5_000 < sum(nbytes for _, nbytes in flood.begun) <= 12_000

    in_virtual_time(scenario)


def test_a_tenants_own_work_does_not_overtake_what_waits_for_credits():
    async def scenario(clock):
        links = queue_of(clock, bytes_per_s={"2": 1e4})
        first = Pages(links, "large", 4 * CHUNK).enter(payers=(FREE,), due_s=1.0)
        small = [Pages(links, "small", PAGE).enter(payers=(FREE,), due_s=2.0) for _ in range(50)]
        await asyncio.sleep(20)
        assert first.ended_s < min(one.begun[0][0] for one in small)
        assert all(not one.left_nbytes for one in small)  # nobody starves

    in_virtual_time(scenario)


def test_what_two_wait_for_is_charged_in_equal_parts():
    async def scenario(clock):
        links = queue_of(clock, bytes_per_s={"1": 1e5, "2": 1e5}, burst_s=1.0)
        Pages(links, "shared", 10_000).enter(payers=(GOLD, FREE))
        await asyncio.sleep(5)
        assert links.credits.spent(GOLD)[Purpose.READ] == 5_000
        assert links.credits.spent(FREE)[Purpose.READ] == 5_000

    in_virtual_time(scenario)


def test_reads_prefetches_and_writes_have_credits_of_their_own():
    async def scenario(clock):
        links = queue_of(clock, bytes_per_s={"2": 1e5})
        works = [
            Pages(links, one.name, 10_000).enter(one, payers=(FREE,))
            for one in (Priority.LOAD, Priority.PREFETCH, Priority.WRITE)
        ]
        await asyncio.sleep(5)
        assert all(0.08 < work.ended_s < 0.2 for work in works)
        assert set(links.credits.spent(FREE).values()) == {10_000}

    in_virtual_time(scenario)


def test_a_turn_that_no_bucket_holds_is_saved_up_for():
    async def scenario(clock):
        links = queue_of(clock, bytes_per_s={"2": 1e5})
        async with links.turn(Priority.WRITE, 50_000, payers=(FREE,)):
            assert clock.now_s() == pytest.approx(0.49, abs=0.01)

    in_virtual_time(scenario)


def test_what_is_unused_is_lent_where_the_lender_allows_it():
    async def scenario(clock, lend):
        said = {"bytes_per_s": {"1": 1e5, "2": 1e4}, "burst_s": 1.0, "lend": lend}
        it = Pages(queue_of(clock, **said), "free", 40_000).enter(payers=(FREE,))
        await asyncio.sleep(30)
        ended_s.append(it.ended_s)

    ended_s = []
    for lend in (0.0, 1.0):
        in_virtual_time(lambda clock, lend=lend: scenario(clock, lend))
    assert ended_s[0] == pytest.approx(3.0, abs=0.1)
    assert ended_s[1] < 2.1  # it may owe a bucket


def test_who_waits_for_credits_leaves_room_in_the_queue():
    async def scenario(clock):
        links = queue_of(clock, bytes_per_s={"2": 1.0})
        links._max_open = 10
        taken = 0
        while links.has_room((FREE,)):
            Pages(links, "free", PAGE).enter(payers=(FREE,))
            taken += 1
        assert taken == 5
        assert links.has_room((OTHER,))

    in_virtual_time(scenario)


def test_closing_lets_what_waits_for_credits_go():
    async def scenario(clock):
        links = queue_of(clock, bytes_per_s={"2": 1.0})
        it = Pages(links, "free", 10 * PAGE).enter(payers=(FREE,))
        await asyncio.sleep(0.1)
        links.stop_charging()
        await asyncio.sleep(0.1)
        assert not it.left_nbytes

    in_virtual_time(scenario)


def test_an_idle_queue_has_no_timer():
    async def scenario(clock):
        links = queue_of(clock, bytes_per_s={"2": 1e5})
        Pages(links, "free", 10_000).enter(payers=(FREE,))
        Pages(links, "write", 10_000).enter(Priority.WRITE, payers=(FREE,))
        await asyncio.sleep(5)
        assert links.is_idle
        assert not pending()

    in_virtual_time(scenario)


def pending():
    """Timers of the running loop that were not cancelled."""
    return [it for it in asyncio.get_running_loop()._scheduled if not it.cancelled()]


# --- in a cache


def test_a_load_that_its_tenant_cannot_pay_for_in_time_is_computed(house, prompt):
    async def scenario():
        tenants = TenantsConfig(bytes_per_s={"2": 400.0}, burst_s=1.0)  # a page is put by
        async with house(tenants=tenants) as it:
            await it.put(prompt(4))
            it.leave_on(Tier.DISK)
            for tenant, pages in ((OTHER, 4), (FREE, 1)):
                it.leave_on(Tier.DISK)
                match = await it.cache.match(prompt(4), tenant=tenant)
                with it.cache.load(match, deadline_s=2.0) as load:
                    loaded = await load
                await load.released
                assert loaded.pages == pages
            assert loaded.reasons.tolist() == [Reason.CUT] * 3
            assert it.cache.stats().traffic.cuts["unpaid"] == 1

    asyncio.run(scenario())


def test_without_the_feature_nobody_waits_for_credits(house, prompt):
    async def scenario():
        tenants = TenantsConfig(bytes_per_s={"2": 1.0}, burst_s=0.25)
        async with house(tenants=tenants, features=FeaturesConfig(credits=False)) as it:
            await it.serve(prompt(4), tenant=FREE)  # written, too
            it.leave_on(Tier.DISK)
            assert await it.serve(prompt(4), tenant=FREE) == 4
            assert it.cache.stats().traffic.credit_waits == 0

    asyncio.run(scenario())


def test_a_write_without_credits_is_in_nobodys_way_and_ends_with_the_cache(house, prompt):
    async def scenario():
        tenants = TenantsConfig(bytes_per_s={"2": 1.0})
        async with house(tenants=tenants, host=32) as it:
            stores = []
            for tenant, of in ((FREE, 0), (OTHER, 1)):
                match = await it.cache.match(prompt(2, of=of), tenant=tenant)
                stores.append(await it.compute(match))
                await stores[-1]
                stores[-1].close()
            assert await stores[1].written == 2
            assert not stores[0].written.done()
        assert await stores[0].written == 2

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "said", [{"bytes_per_s": {"2": 0}}, {"lend": 1.5}, {"ios_per_s": {"x": 1.0}}]
)
def test_a_rate_that_cannot_be_is_refused(said):
    values = {"identity": {"model": "m", "dtype": "d"}, "tiers": {"host": {"capacity_bytes": 99}}}
    with pytest.raises(ConfigError, match=next(iter(said))):
        parse(CacheConfig, {**values, "tenants": said})


def test_waiting_for_credits_says_nothing_of_the_link():
    async def scenario(clock):
        link = Link("disk->device", now_s=clock.now_s)
        link.queue.credits, link.queue._rate = (
            credits_of(clock, bytes_per_s={"2": 1e5}),
            lambda: RATE,
        )
        link.begin(clock.now_s())  # as long as the work is there
        it = Pages(link.queue, "free", 200_000)
        ended = it.end

        def end(nbytes):
            link.moved(clock.now_s(), nbytes)
            ended(nbytes)

        it.end = end
        it.enter(payers=(FREE,))
        await asyncio.sleep(1.5)
        assert link.estimate().rate == pytest.approx(RATE, rel=0.01)
        assert link.lag_s() == 0.0

    in_virtual_time(scenario)
