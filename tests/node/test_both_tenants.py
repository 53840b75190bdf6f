# SPDX-License-Identifier: Apache-2.0
"""Whose bytes are paid for and whose pages leave: the same in-process and on a node."""

import asyncio

import numpy as np
import pytest

from bodocache.clock import VirtualClock
from bodocache.errors import TierFull
from bodocache.move.choice import Why
from bodocache.pages import Reason, Tier
from bodocache.testing.loop import VirtualSocketLoop, run_virtual

PAGES = 6
GOLD, FREE = 1, 2
PER_S = 2.0  # pages that FREE may load


def in_virtual_time(scenario):
    """Run ``scenario(clock)``."""
    clock = VirtualClock()
    run_virtual(scenario(clock), clock, VirtualSocketLoop)


def limited(house):
    """FREE may load PER_S pages a second, and has put by one."""
    rate = PER_S * house.PAGE_NBYTES
    return {"tenants": {"bytes_per_s": {str(FREE): rate}, "burst_s": 0.5}}


async def on_disk(either, house, *prompts, **options):
    """A disk that has pages of ``prompts``."""
    disk = house.Disk()
    async with either(disk, device=32, host=32, **options) as it:
        for tokens in prompts:
            assert await it.serve(tokens) == 0
    return disk


async def loaded(it, clock, tokens, tenant, **when):
    """Pages that ``tenant`` loads, why no more, and the seconds it took."""
    begun_s = clock.now_s()
    with it.cache.load(await it.cache.match(tokens, tenant=tenant), **when) as load:
        result = await load
        took_s = clock.now_s() - begun_s
    await load.released
    return result.pages, result.reasons.tolist(), took_s


async def credit_waits(it):
    if hasattr(it, "node"):
        return (await it.cache.node_stats())["credit_waits"]
    return it.cache.stats().traffic.credit_waits


def test_who_has_a_rate_loads_from_disk_at_that_rate(either, house):
    async def scenario(clock):
        disk = await on_disk(either, house, house.prompt(PAGES), clock=clock)
        async with either(disk, clock=clock, more=limited(house)) as it:
            pages, _, took_s = await loaded(it, clock, house.prompt(PAGES), FREE)
            assert (pages, took_s) == (PAGES, pytest.approx((PAGES - 1) / PER_S, abs=0.01))
            assert await credit_waits(it) > 0

    in_virtual_time(scenario)


def test_what_waits_for_credits_keeps_nobody_waiting(either, house):
    async def scenario(clock):
        prompts = [house.prompt(PAGES, of=of) for of in (FREE, GOLD)]
        disk = await on_disk(either, house, *prompts, clock=clock)
        async with either(disk, clock=clock, more=limited(house)) as it:
            slow = asyncio.create_task(loaded(it, clock, prompts[0], FREE))
            await asyncio.sleep(0.1)
            pages, _, took_s = await loaded(it, clock, prompts[1], GOLD, start_s=0.001)
            assert (pages, took_s) == (PAGES, pytest.approx(0.0, abs=0.01))
            assert not slow.done()
            assert (await slow)[0] == PAGES
            assert sum(it.cache.stats().traffic.cuts.values()) == 0

    in_virtual_time(scenario)


def test_what_credits_will_not_have_paid_for_in_time_is_cut_before_its_first_byte(either, house):
    async def scenario(clock):
        disk = await on_disk(either, house, house.prompt(PAGES), clock=clock)
        async with either(disk, clock=clock, more=limited(house)) as it:
            when = {"deadline_s": 1.1}  # one page was put by, two are earned
            pages, reasons, took_s = await loaded(it, clock, house.prompt(PAGES), FREE, **when)
            assert (pages, reasons) == (3, [Reason.CUT] * 3)
            assert took_s == pytest.approx(2 / PER_S, abs=0.01)
            assert it.cache.stats().traffic.cuts[Why.UNPAID] == 1

    in_virtual_time(scenario)


def test_a_load_that_waits_for_credits_and_is_given_up_leaves_nothing_behind(either, house):
    async def scenario(clock):
        disk = await on_disk(either, house, house.prompt(PAGES), clock=clock)
        async with either(disk, clock=clock, more=limited(house)) as it:
            for _ in range(2):  # the second has no credits: nothing of it begins
                load = it.cache.load(await it.cache.match(house.prompt(PAGES), tenant=FREE))
                await asyncio.sleep(0.1)
                load.close()
                await load.released
            if hasattr(it, "node"):
                assert it.cache.trouble is None
            assert (await loaded(it, clock, house.prompt(PAGES), GOLD))[0] == PAGES

    in_virtual_time(scenario)


@pytest.mark.parametrize(("shares", "left"), [({"1": 0.5, "2": 0.5}, 4), ({}, 0)])
def test_a_flood_takes_nothing_of_a_tenant_within_its_share(either, house, shares, left):
    async def scenario():
        more = {"tenants": {"shares": shares}}
        async with either(device=8, host=8, more=more) as it:
            await it.serve(house.prompt(4), GOLD)
            for of in range(1, 20):
                await it.serve(house.prompt(4, of=of), FREE)
            match = await it.cache.match(house.prompt(4))
            assert match.tiers.tolist() == [Tier.DEVICE] * left
            assert (await it.cache.match(house.prompt(4, of=19))).pages == 4

    asyncio.run(scenario())


def test_the_host_keeps_a_share_that_the_device_has_no_room_for(either, house):
    async def scenario():
        more = {"tenants": {"shares": {"1": 0.5}}}
        async with either(device=4, host=8, more=more) as it:
            await it.serve(house.prompt(4), GOLD)
            held = it.cache.acquire(2, tenant=FREE)
            it.cache.release(held)
            for of in range(1, 10):
                await it.serve(house.prompt(2, of=of), FREE)
            match = await it.cache.match(house.prompt(4))
            assert match.tiers.tolist() == [Tier.DEVICE] * 2 + [Tier.HOST] * 2

    asyncio.run(scenario())


def test_shares_can_leave_no_room(either, house):
    async def scenario():
        more = {"tenants": {"shares": {"1": 1.0}}}
        async with either(device=4, more=more) as it:
            await it.serve(house.prompt(4), GOLD)
            with pytest.raises(TierFull):
                it.cache.acquire(1, tenant=FREE)
            await it.cache.match(house.prompt(4), tenant=FREE)
            with it.cache.load(await it.cache.match(house.prompt(4), tenant=FREE)) as load:
                assert (await load).pages == 4  # anyone may use them

    asyncio.run(scenario())


def test_room_for_a_load_is_made_at_the_cost_of_who_loads(either, house):
    async def scenario():
        disk = await on_disk(either, house, house.prompt(4), house.prompt(4, of=1))
        more = {"tenants": {"shares": {"1": 0.5, "2": 0.5}}}
        async with either(disk, device=8, host=8, more=more) as it:
            for tenant, of in ((GOLD, 0), (FREE, 1)):
                assert await it.serve(house.prompt(4, of=of), tenant) == 4
            free = await it.cache.match(house.prompt(4, of=1))
            before = free.tiers.tolist()
            await it.serve(np.flip(house.prompt(4)), GOLD)
            assert (await it.cache.match(house.prompt(4, of=1))).tiers.tolist() == before

    asyncio.run(scenario())
