# SPDX-License-Identifier: Apache-2.0
"""Shares in a live cache: in every tier, for every page that leaves to make room for somebody."""

import asyncio
import random
from contextlib import suppress

import numpy as np
import pytest

from bodocache.clock import VirtualClock
from bodocache.config import HintsConfig
from bodocache.errors import TierFull
from bodocache.hints import Pin, Prefetch, Reuse, Span
from bodocache.move.ghosts import Activity
from bodocache.move.residency import NEXT
from bodocache.move.room import Need
from bodocache.pages import KEY_NBYTES, NOBODY, NOWHERE, Tier
from bodocache.plan import evict
from bodocache.pools import OwnedPool

DEVICE, HOST, DISK = Tier.DEVICE, Tier.HOST, Tier.DISK
FOR_1 = Need(Activity.ACQUIRE, 1)


def pages_of_each(it, tier, tenants=(1, 2)):
    """Pages in ``tier`` of those without a share, and of each of ``tenants``."""
    records = it.residency.table.records
    owners = records["tenant"][(records["tiers"] & tier.bit) != 0]
    counts = [int((owners == tenant).sum()) for tenant in tenants]
    return [len(owners) - sum(counts), *counts]


async def serve(it, tokens, tenant, **said):
    """One request, whoever gives out the slots."""
    if isinstance(it.pool, OwnedPool):
        return await it.serve(tokens, tenant=tenant, **said)
    match = await it.cache.match(tokens, tenant=tenant, **said)
    slots = it.engine_pool.acquire(len(match.keys))
    with it.cache.load(match, slots[: match.pages]) as load:
        loaded = await load
        assert it.wrong_bytes(match.keys, loaded) == 0
    await load.released
    it.fill(slots[loaded.pages :], match.keys[loaded.pages :])
    store = it.cache.store(match, slots[loaded.pages :])
    await store
    store.close()
    await store.written
    it.engine_pool.release(slots)
    return loaded.pages


def chain(it, number, owner, tiers):
    """A chain of pages of ``owner``, one in each of ``tiers``; the bytes are nobody's."""
    residency, count = it.residency, len(tiers)
    keys = np.zeros((count, KEY_NBYTES), np.uint8)
    keys[:, 0], keys[:, 1], keys[:, 2] = np.arange(count), number, 7
    rows = residency.add(keys, np.array([NOWHERE] + [NEXT] * (count - 1)), np.arange(count))
    residency.table.records["tenant"][rows] = owner
    residency.learn(rows, before=NOWHERE, behind=1, tenant=owner, chance=float("nan"))
    for row, tier in zip(rows, tiers, strict=True):
        if tier is HOST:
            slot = residency.take_most(HOST, 1, Need(Activity.STORE, owner))
        else:
            slot = residency.backend.reserve(1, after=-1)
        residency.place(np.array([row]), tier, slot)
    residency.touch(rows)
    residency.unpin(rows)
    return rows


def empty(it):
    """Nothing is left for the checks of bytes."""
    for tier in (DEVICE, HOST, DISK):
        if it.residency.capacity(tier) and tier is not DEVICE:
            it.residency.evict(tier, 1 << 12)


def state_of(it):
    residency = it.residency
    queues = residency._queues
    lanes = queues.nodes["lane"] - 1
    is_leaf = (lanes >= 0) & (lanes < evict.kept_lane(queues, 0))
    return [
        *(residency.table.records.tobytes(), queues.tally.used.tolist(), queues.counted.tolist()),
        *(queues.nodes["lane"].tolist(), queues.unproven.tolist()),
        np.where(is_leaf, queues.nodes["key"], 0.0).tolist(),  # others: when they are looked at
        *(residency.host.free, queues.churned[:, 0].tolist(), dict(residency.evicted)),
    ]


@pytest.mark.parametrize("borrowed", [False, True])
@pytest.mark.parametrize("admit", [False, True])
def test_a_tenant_takes_of_others_what_it_lacks_and_not_a_page_more(house, prompt, borrowed, admit):
    async def scenario():
        shares = {"1": 0.375, "2": 0.25}
        options = {"device": 16, "host": 8, "disk": 0, "shares": shares}
        async with house(borrowed=borrowed, admit=admit, **options) as it:
            for of in (1, 2):
                await serve(it, prompt(4, of=of), 1)
            await serve(it, prompt(3, of=3), 2)
            assert pages_of_each(it, HOST) == [0, 6, 2]

    asyncio.run(scenario())


@pytest.mark.parametrize("free", [0, 1])
def test_frames_that_are_free_count_as_what_the_taker_has(house, free):
    async def scenario():
        shares = {"1": 0.5, "2": 0.25}
        async with house(host=8, disk=8, shares=shares) as it:
            held = chain(it, 9, 1, [DISK] * (3 - free))
            for number in range(5):
                chain(it, number, 2, [DISK])
            it.residency.pin(held)
            residency = it.residency
            with pytest.raises(TierFull):
                residency.take_frames(2 + free, FOR_1, after=-1)
            assert pages_of_each(it, DISK) == [0, 3 - free, 5]
            frames = residency.take_frames(1 + free, FOR_1, after=-1)
            assert pages_of_each(it, DISK) == [0, 3 - free, 4]
            residency.give_back(frames, DISK)
            residency.unpin(held)
            empty(it)

    asyncio.run(scenario())


def test_a_tenant_that_may_have_no_frame_costs_none_of_its_batch_theirs(house, prompt):
    async def scenario():
        async with house(
            device=40, host=32, disk=16, borrowed=True, shares={"1": 0.5, "2": 0.5}
        ) as it:
            for of in range(4):
                await serve(it, prompt(4, of=of), 2)
            assert pages_of_each(it, DISK) == [0, 0, 16]
            begun = []
            with it.busy_disk():
                for of, tenant in enumerate((3, 1, 3, 1)):
                    match = await it.cache.match(prompt(2, of=10 + of), tenant=tenant)
                    begun.append(await it.compute(match))
                    await begun[-1]
            assert [await store.written for store in begun] == [0, 2, 0, 2]
            for store in begun:
                store.close()
            assert pages_of_each(it, DISK) == [0, 4, 12]

    asyncio.run(scenario())


def test_room_on_the_disk_takes_no_host_page_of_an_owner_within_its_share_there(house):
    async def scenario():
        async with house(host=8, disk=8, shares={"1": 0.5, "2": 0.5}) as it:
            for number in range(2):
                chain(it, number, 2, [DISK, DISK, DISK, HOST])  # 6 frames: 2 above its share
            with pytest.raises(TierFull):
                it.residency.take_frames(3, FOR_1, after=-1)
            assert (pages_of_each(it, DISK), pages_of_each(it, HOST)) == ([0, 0, 6], [0, 0, 2])
            for number in range(2, 6):  # now it is above its share on the host, too
                chain(it, number, 2, [HOST])
            frames = it.residency.take_frames(3, FOR_1, after=-1)
            assert (pages_of_each(it, DISK), pages_of_each(it, HOST)) == ([0, 0, 5], [0, 0, 5])
            it.residency.give_back(frames, DISK)
            empty(it)

    asyncio.run(scenario())


def test_pages_that_go_with_another_count_each(house):
    async def scenario():
        async with house(host=8, disk=8, shares={"1": 0.5, "2": 0.5}) as it:
            first = chain(it, 0, 2, [HOST, DISK, DISK])  # two frames: one above its share
            for number in range(1, 4):
                chain(it, number, 2, [HOST, DISK])
            held = np.concatenate([chain(it, 5, 2, [HOST]), chain(it, 9, 1, [HOST] * 3)])
            it.residency.pin(held)
            slots = it.residency.take_most(HOST, 2, FOR_1)
            assert (len(slots), pages_of_each(it, HOST)) == (1, [0, 3, 4])
            assert it.residency.lies_in(first, HOST)[0]
            assert pages_of_each(it, DISK) == [0, 0, 4]
            it.residency.give_back(slots, HOST)
            it.residency.unpin(held)
            empty(it)

    asyncio.run(scenario())


def test_who_asks_for_more_than_it_can_have_takes_what_it_lacks_or_nothing(house):
    async def scenario():
        async with house(host=8, disk=8, shares={"1": 0.5, "2": 0.5}) as it:
            for number in range(5):
                chain(it, number, 2, [HOST, DISK])  # kept on the host by what lies behind
            held = chain(it, 9, 1, [HOST] * 3)
            it.residency.pin(held)
            before = state_of(it)
            with pytest.raises(TierFull):
                it.residency.take(HOST, 2, FOR_1)
            assert state_of(it) == before
            slots = it.residency.take_most(HOST, 3, FOR_1)
            assert (len(slots), pages_of_each(it, HOST)) == (1, [0, 3, 4])
            assert pages_of_each(it, DISK) == [0, 0, 4]
            it.residency.give_back(slots, HOST)
            it.residency.unpin(held)
            empty(it)

    asyncio.run(scenario())


def test_what_leaves_first_counts_when_more_is_to_leave(house):
    async def scenario():
        async with house(host=8, disk=8, shares={"1": 0.5, "2": 0.25}) as it:
            chain(it, 0, 2, [HOST])
            for number in range(1, 6):
                chain(it, number, 2, [HOST, DISK])
            held = chain(it, 9, 1, [HOST] * 2)
            it.residency.pin(
                held
            )  # tenant 1 lacks 2: a page that is free to go, and one that is kept
            slots = it.residency.take_most(HOST, 4, FOR_1)
            assert (len(slots), pages_of_each(it, HOST)) == (2, [0, 2, 4])
            it.residency.give_back(slots, HOST)
            it.residency.unpin(held)
            empty(it)

    asyncio.run(scenario())


@pytest.mark.parametrize("seed", range(8))
def test_a_request_for_room_that_fails_changes_nothing(house, seed):
    async def scenario():
        rng = random.Random(seed)
        async with house(host=12, disk=24, shares={"1": 0.25, "2": 0.5}) as it:
            for number in range(14):
                tiers = [rng.choice((HOST, DISK)) for _ in range(rng.randrange(1, 4))]
                if sum(tier is HOST for tier in tiers) <= it.host.free:
                    chain(it, number, rng.choice((1, 2, 3)), tiers)
            records = it.residency.table.records
            rows = np.flatnonzero(records["tiers"])
            held = rows[rng.randrange(len(rows))][None]
            it.residency.pin(held)
            before = state_of(it)
            for tenant in (1, 2, 3):
                with pytest.raises(TierFull):
                    it.residency.take(HOST, 12, Need(Activity.ACQUIRE, tenant))
                assert state_of(it) == before
            it.residency.unpin(held)
            empty(it)

    asyncio.run(scenario())


def test_what_the_churn_guard_lets_go_meanwhile_stays_away(house):
    async def scenario():
        clock = VirtualClock()
        async with house(host=8, disk=0, clock=clock, shares={"1": 0.5}) as it:
            for number in range(8):
                chain(it, number, 1, [HOST])
            it.residency.policy["churn_share"], it.residency.policy["churn_s"] = 0.25, 1.0
            with pytest.raises(TierFull):
                it.residency.take(HOST, 4, FOR_1)
            assert it.host.free == 2
            clock.advance(1.0)
            slots = it.residency.take(HOST, 4, FOR_1)
            it.residency.give_back(slots, HOST)
            it.residency.policy["churn_share"] = 0.0
            empty(it)

    asyncio.run(scenario())


def test_room_that_was_taken_counts_until_the_pages_come(house):
    async def scenario():
        async with house(device=8, host=8, disk=0, shares={"1": 0.5, "2": 0.5}) as it:
            await it.serve(np.arange(8 * 8, dtype=np.uint32), tenant=2)
            first = it.cache.acquire(3, tenant=1)
            with pytest.raises(TierFull):
                it.cache.acquire(2, tenant=1)  # 3 are on their way
            second = it.cache.acquire(1, tenant=1)
            assert pages_of_each(it, DEVICE) == [0, 0, 4]
            it.cache.release(first)
            it.cache.release(second)
            assert len(it.cache.acquire(4, tenant=1)) == 4  # what came back is free
            it.residency.give_back(np.flatnonzero(it.residency.owners(np.arange(8)) < 0), DEVICE)

    asyncio.run(scenario())


def test_stores_at_once_share_what_their_tenant_lacks(house, prompt):
    async def scenario():
        options = {"device": 32, "host": 16, "disk": 0, "shares": {"1": 0.25, "2": 0.25}}
        async with house(borrowed=True, **options) as it:
            for of in range(4):
                await serve(it, prompt(4, of=of), 2)
            stores, slots = [], it.engine_pool.acquire(16)
            for k in range(4):
                match = await it.cache.match(prompt(4, of=10 + k), tenant=1)
                mine = slots[4 * k : 4 * k + 4]
                it.fill(mine, match.keys)
                stores.append(it.cache.store(match, mine, layers=True))
            for _ in range(3):
                await asyncio.sleep(0)  # each has its host slots, and none is filled
            for store in stores:
                for layer in range(4):
                    store.layer_ready(layer)
            for store in stores:
                await store
                store.close()
            it.engine_pool.release(slots)
            assert pages_of_each(it, HOST) == [0, 4, 12]

    asyncio.run(scenario())


def test_a_load_takes_no_room_from_the_share_of_an_owner_who_did_not_ask(house, prompt):
    async def scenario():
        options = {"device": 32, "host": 8, "disk": 64, "shares": {"1": 0.25, "2": 0.5}}
        async with house(borrowed=True, **options) as it:
            await serve(it, prompt(4, of=1), 3)
            await serve(it, prompt(5, of=1), 2)  # the fifth page is tenant 2's
            for of in range(10, 14):
                await serve(it, prompt(1, of=of), 2)
            for of in range(20, 28):
                await serve(it, prompt(1, of=of), 3)
            for of in range(10, 14):
                await serve(it, prompt(1, of=of), 2)
            before = pages_of_each(it, HOST)
            assert before == [4, 0, 4]
            assert await serve(it, prompt(5, of=1), 3) == 4  # no room for the other's page
            assert pages_of_each(it, HOST) == [4, 0, 4]

    asyncio.run(scenario())


@pytest.mark.parametrize("is_old", [False, True])
def test_shares_hold_after_a_restart(house, prompt, is_old):
    """An old slab does not say whose its pages are: they are nobody's, and nobody's share."""

    async def scenario():
        options = {"host": 8, "disk": 32, "shares": {"1": 0.5, "2": 0.5}}
        async with house(**options) as it:
            for of in (0, 1, 2, 3, 10, 11, 12, 13):
                await it.serve(prompt(4, of=of), tenant=1 if of < 10 else 2)
            disk = it.disk
        if is_old:
            disk.columns.owners[:] = 0
        async with house(**(options | {"disk": disk})) as it:
            assert pages_of_each(it, DISK) == ([32, 0, 0] if is_old else [0, 16, 16])
            owners = it.residency.table.records["tenant"][:32]
            assert set(owners.tolist()) == ({NOBODY} if is_old else {1, 2})
            for of in range(20, 32):
                await it.serve(prompt(4, of=of), tenant=2)
            left = [await it.pages_of(prompt(4, of=of)) for of in range(4)]
            assert sum(left) == (0 if is_old else 16)

    asyncio.run(scenario())


@pytest.mark.parametrize("borrowed", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_nobody_falls_below_its_share_by_what_another_does(house, prompt, borrowed, seed):
    shares = {1: 0.375, 2: 0.25}

    async def scenario():
        rng = random.Random(seed)
        device, host, disk = rng.choice([8, 12]), rng.choice([8, 16]), rng.choice([0, 8, 24])
        options = {"device": device, "host": host, "disk": disk, "admit": rng.random() < 0.5}
        named = {str(tenant): share for tenant, share in shares.items()}
        async with house(borrowed=borrowed, shares=named, **options) as it:
            for _ in range(40):
                await step(it, rng)

    async def step(it, rng):
        before = {tier: pages_of_each(it, tier) for tier in (DEVICE, HOST, DISK)}
        tenant = rng.choice([1, 2, 3, 4])
        tokens = prompt(rng.randrange(1, 6), of=rng.randrange(14))
        if rng.random() < 0.4:  # a prompt that branches off another
            tokens = np.concatenate([tokens[:16], tokens[8:] + np.uint32(7000 * rng.randrange(4))])
        with suppress(TierFull):  # of an owned pool
            if rng.random() < 0.2:
                said = {"session": "chat", "reuse": Reuse(probability=1.0, priority=90)}
                await serve(it, tokens, tenant, **said)
            else:
                await serve(it, tokens, tenant)
        for tier, had in before.items():
            has = pages_of_each(it, tier)
            assert it.residency._queues.tally.used[tier].tolist() == has
            for other, share in shares.items():
                least = min(had[other], int(share * it.residency.capacity(tier)))
                assert other == tenant or has[other] >= least, tier

    asyncio.run(scenario())


@pytest.mark.parametrize("others", [(2,), (2, 3), tuple(range(2, 10))])
def test_what_others_hold_leaves_a_tenant_the_room_it_is_sure_of(house, prompt, others):
    """Beside shares, holds reach as far as the rest of the tier, not as max_held_share."""

    async def scenario():
        options = {"host": 100, "disk": 0, "borrowed": True, "admit": False}
        async with house(device=128, shares={"1": 0.8}, **options) as it:
            each, held = 100 // len(others), 0
            for tenant in others:
                await serve(it, prompt(each, of=100 * tenant), tenant)
            for tenant in others:
                mine = Span(prompt(each, of=100 * tenant), 0, None, tenant)
                held += (await it.cache.hint([Pin(mine)]))[0].pages
            assert 0 < held <= 20
            await serve(it, prompt(80, of=1), 1)
            assert pages_of_each(it, HOST, tenants=(1,)) == [20, 80]

    asyncio.run(scenario())


def test_a_tenant_holds_within_its_own_share_whatever_others_hold(house, prompt):
    async def scenario():
        options = {"host": 20, "disk": 0, "borrowed": True, "admit": False}
        hints = HintsConfig(max_held_share=0.9)
        async with house(device=32, shares={"1": 0.5, "2": 0.5}, hints=hints, **options) as it:
            for tenant in (1, 2):
                await serve(it, prompt(10, of=tenant), tenant)
            for tenant in (1, 2):
                span = Span(prompt(10, of=tenant), 0, None, tenant)
                (outcome,) = await it.cache.hint([Pin(span)])
                assert outcome.pages == 9  # its part of 18, of the 10 of its share

    asyncio.run(scenario())


def test_who_has_no_share_holds_nothing_where_shares_leave_nothing(house, prompt):
    async def scenario():
        options = {"host": 20, "disk": 0, "borrowed": True, "admit": False}
        async with house(device=32, shares={"1": 0.5, "2": 0.5}, **options) as it:
            await serve(it, prompt(4, of=3), 3)
            (outcome,) = await it.cache.hint([Pin(Span(prompt(4, of=3), 0, None, 3))])
            assert outcome.pages == 0

    asyncio.run(scenario())


def test_a_prefetch_takes_room_of_who_asks_for_it_and_not_of_the_pages_owner(house, prompt):
    async def scenario():
        options = {"host": 16, "disk": 64, "borrowed": True, "admit": False}
        async with house(device=64, shares={"1": 0.5, "2": 0.5}, **options) as it:
            cold, hot = [prompt(4, of=k) for k in (0, 1)], [prompt(4, of=k) for k in (10, 11)]
            for tokens in cold:
                await serve(it, tokens, 1)
            it.residency.evict(HOST, 64)
            for tokens in hot:
                await serve(it, tokens, 1)
            for of in (100, 101):
                await serve(it, prompt(4, of=of), 2)
            assert pages_of_each(it, HOST) == [0, 8, 8]
            (outcome,) = await it.cache.hint([Prefetch(Span(cold[0], 0, None, 2))])
            assert await outcome.operation == 4
            for tokens in hot:
                keys = (await it.cache.match(tokens)).keys
                assert it.residency.lies_in(it.residency.index.find(keys), HOST).all()
            assert pages_of_each(it, HOST) == [0, 12, 4]

    asyncio.run(scenario())
