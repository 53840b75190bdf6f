# SPDX-License-Identifier: Apache-2.0
"""What an engine sees of loads, stores and announcements is the same in-process and on a node."""

import asyncio

import numpy as np
import pytest

from bodocache.errors import LoadFailed
from bodocache.move.choice import Why
from bodocache.move.copies import Copies
from bodocache.move.rate import BLOCK_CHUNKS, CLASSES_NBYTES, LinkRate
from bodocache.move.windows import Unplanned
from bodocache.pages import Reason, Tier
from bodocache.replay import payload

PAGES, LAYERS = 6, 4
FAST, SLOW = 1e9, 1e3  # bytes/s


def teach(it, tier, rate):
    """Let the link from ``tier`` have brought many chunks of every size at ``rate``."""
    link, now_s = it.decider._links[tier], 0.0
    link.rate = LinkRate()
    for nbytes in (4096, *CLASSES_NBYTES):
        for _ in range(2 * BLOCK_CHUNKS):
            now_s += nbytes / rate
            link.rate.add(now_s, nbytes)
    link.rate.resume(it.cache._orchestrator.now_s())


async def stored(it, tokens):
    assert await it.serve(tokens) == 0


async def clear_device(it):
    """All pages leave the device."""
    held = []
    while it.pool.free or it.cache.stats().traffic.tiers[Tier.DEVICE].pages:
        held.append(it.cache.acquire(1))
    it.cache.release(np.concatenate(held))


def wrong_bytes(it, match, slots):
    return payload.count_wrong_bytes(it.words, slots, payload.seeds(match.keys)[: len(slots)])


def cuts(it):
    return {why: n for why, n in it.cache.stats().traffic.cuts.items() if n}


# Announcements


async def begin_to_follow(it, match, **options):
    """A follower that waits, or has its answer."""
    task = asyncio.create_task(it.cache.follow(match, **options))
    await asyncio.wait([task], timeout=0.05)
    return task


def test_a_follower_waits_for_pages_that_another_computes(either, house):
    async def scenario():
        async with either(token_s=1.0) as it:
            await stored(it, house.prompt(1))
            mine = await it.cache.match(house.prompt(PAGES))
            it.cache.announce(mine, ready_s=5.0)
            match = await it.cache.match(house.prompt(PAGES))
            assert (match.pages, match.announced) == (1, PAGES - 1)
            assert 4.0 < match.announced_s <= 5.0
            follower = await begin_to_follow(it, match)
            assert not follower.done()
            assert await it.serve(house.prompt(PAGES)) == 1
            found = await asyncio.wait_for(follower, 5)
            assert (found.pages, found.announced, found.announced_s) == (PAGES, 0, 0.0)

    asyncio.run(scenario())


@pytest.mark.parametrize("ends", ["close", "limit"])
def test_an_announcer_that_gives_up_holds_nobody_up(either, house, ends):
    async def scenario():
        async with either(token_s=1.0) as it:
            match = await it.cache.match(house.prompt(PAGES))
            limit_s = 0.3 if ends == "limit" else 50.0
            announcement = it.cache.announce(match, ready_s=1.0, limit_s=limit_s)
            match = await it.cache.match(house.prompt(PAGES))
            assert match.announced == PAGES
            follower = await begin_to_follow(it, match)
            assert not follower.done()
            if ends == "close":
                announcement.close()
            found = await asyncio.wait_for(follower, 5)
            assert (found.pages, found.announced) == (0, 0)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("token_s", "ready_s", "deadline_s"), [(0.01, 10.0, 9.0), (1.0, 5.0, 1.0), (20e-6, 1.0, 9.0)]
)
def test_what_is_computed_sooner_is_not_waited_for(either, house, token_s, ready_s, deadline_s):
    async def scenario():
        async with either(token_s=token_s) as it:
            match = await it.cache.match(house.prompt(PAGES))
            with it.cache.announce(match, ready_s=ready_s):
                match = await it.cache.match(house.prompt(PAGES))
                assert match.announced == PAGES
                found = await asyncio.wait_for(it.cache.follow(match, deadline_s=deadline_s), 0.5)
                assert found is match

    asyncio.run(scenario())


def test_what_is_overdue_is_waited_for_no_longer_than_computing_takes(either, house):
    async def scenario():
        async with either(token_s=0.001) as it:
            match = await it.cache.match(house.prompt(PAGES))
            with it.cache.announce(match, ready_s=0.001, limit_s=100):
                match = await it.cache.match(house.prompt(PAGES))
                found = await asyncio.wait_for(it.cache.follow(match), 5)
                assert (found.pages, found.announced) == (0, PAGES)

    asyncio.run(scenario())


def test_closing_the_cache_ends_the_wait(either, house):
    async def scenario():
        async with either(token_s=1.0) as it:
            it.cache.announce(await it.cache.match(house.prompt(PAGES)), ready_s=1.0)
            follower = await begin_to_follow(it, await it.cache.match(house.prompt(PAGES)))
            assert not follower.done()
            await it.cache.close()
            assert (await asyncio.wait_for(follower, 5)).pages == 0

    asyncio.run(scenario())


# Predictions


def test_a_match_says_how_long_its_load_would_take(either, house):
    async def scenario():
        disk = house.Disk()
        async with either(disk) as it:
            await stored(it, house.prompt(PAGES))
        async with either(disk) as it:
            assert (await it.cache.match(house.prompt(PAGES))).forecast is None
            teach(it, Tier.DISK, 1e6)
            teach(it, Tier.HOST, FAST)
            match = await it.cache.match(house.prompt(PAGES))
            forecast = match.forecast
            assert match.tiers.tolist() == [Tier.DISK] * PAGES
            assert forecast.mean_s == pytest.approx(PAGES * house.PAGE_NBYTES / 1e6)
            assert forecast.mean_s < forecast.finish_s < 2 * forecast.mean_s
            assert forecast.recompute_s == pytest.approx(PAGES * 8 * 20e-6, rel=0.01)
            assert await it.serve(house.prompt(PAGES)) == PAGES
            assert (await it.cache.match(house.prompt(PAGES))).forecast.finish_s == 0.0

    asyncio.run(scenario())


def test_what_the_engine_computes_sooner_is_not_loaded_at_all(either, house):
    async def scenario():
        disk = house.Disk()
        async with either(disk) as it:
            await stored(it, house.prompt(PAGES))
        async with either(disk) as it:
            teach(it, Tier.DISK, SLOW)
            with it.cache.load(await it.cache.match(house.prompt(PAGES)), start_s=0.0) as load:
                loaded = await load
                assert (loaded.pages, loaded.reasons.tolist()) == (0, [Reason.CUT] * PAGES)
                assert load.commit() == range(0)
            assert cuts(it) == {Why.BEFORE: 1}
            with it.cache.load(await it.cache.match(house.prompt(PAGES))) as load:
                assert (await load).pages == PAGES  # nobody waits for it

    asyncio.run(scenario())


def test_what_comes_soon_is_loaded(either, house):
    async def scenario():
        disk = house.Disk()
        async with either(disk) as it:
            await stored(it, house.prompt(PAGES))
        async with either(disk, token_s=0.01) as it:
            teach(it, Tier.DISK, FAST)
            with it.cache.load(await it.cache.match(house.prompt(PAGES)), start_s=0.0) as load:
                assert (await load).pages == PAGES
            assert cuts(it) == {}

    asyncio.run(scenario())


@pytest.mark.parametrize("is_told", [False, True])
def test_a_load_that_stands_still_is_cut_unless_another_rank_decides(either, house, is_told):
    async def scenario():
        disk, told = house.Disk(), []
        async with either(disk) as it:
            await stored(it, house.prompt(PAGES))
        disk.seconds = 0.7
        follow = {"decide": lambda _, proposal: told.append(proposal)} if is_told else {}
        async with either(disk, **follow) as it:
            teach(it, Tier.DISK, FAST)
            it.decider._nearly_over = lambda _: False  # pages of the tests are so small that all is
            match = await it.cache.match(house.prompt(PAGES))
            with it.cache.load(match, start_s=0.0) as load:
                loaded = await load
                if is_told:
                    assert loaded.pages == PAGES
                    assert {one.why for one in told} == {Why.TARDY}
                else:
                    assert loaded.reasons.tolist() == [Reason.CUT] * PAGES
                await load.released
            assert cuts(it) == ({} if is_told else {Why.TARDY: 1})

    asyncio.run(scenario())


# Planning


def test_pages_are_read_without_a_planner_that_raises_and_it_is_counted(
    either, house, monkeypatch, caplog
):
    async def scenario():
        disk = house.Disk()
        async with either(disk) as it:
            await stored(it, house.prompt(PAGES))
        async with either(disk) as it:
            mover = it.node.host if hasattr(it, "node") else it.cache._orchestrator

            def fails(*_):
                raise ValueError("no plan")

            monkeypatch.setattr(mover.residency, "plan_load", fails)
            assert await it.serve(house.prompt(PAGES)) == PAGES
            assert {why: n for why, n in mover.unplanned.items() if n} == {Unplanned.FAILED: 1}

    asyncio.run(scenario())
    assert "loads go by their deadlines alone" in caplog.text


# Layers


@pytest.fixture
def layers_copied(monkeypatch):
    """Whenever layers of host slots are copied: which, and how many pages of it."""
    copied, copy = [], Copies.layer_to_device

    def noted(self, layer, host_slots, device_slots, sums):
        copied.append((layer, len(device_slots)))
        copy(self, layer, host_slots, device_slots, sums)

    monkeypatch.setattr(Copies, "layer_to_device", noted)
    return copied


async def on_host(it, tokens):
    await stored(it, tokens)
    await clear_device(it)


def test_what_is_left_at_the_commit_comes_layer_by_layer(either, house, layers_copied):
    async def scenario():
        async with either() as it:
            await on_host(it, house.prompt(PAGES))
            ahead = it.decider._links[Tier.HOST].queue
            ahead._is_pumping = True  # nothing has its turn yet
            match = await it.cache.match(house.prompt(PAGES))
            with it.cache.load(match, start_s=0.0, compute_s=[1.0] * LAYERS) as load:
                assert len(load.commit()) == PAGES * house.PAGE_TOKENS
                ahead._is_pumping = False
                ahead._pump()
                for layer in range(LAYERS):
                    await load.layer(layer)
                assert layers_copied == [(layer, PAGES) for layer in range(LAYERS)]
                assert wrong_bytes(it, match, (await load).slots) == 0
                await load.released

    asyncio.run(scenario())


def test_a_page_that_changed_behind_its_layers_fails_the_load(either, house, monkeypatch):
    async def scenario():
        async with either() as it:
            await on_host(it, house.prompt(PAGES))
            copy = Copies.layer_to_device

            def spoilt(self, layer, host_slots, device_slots, sums):
                copy(self, layer, host_slots, device_slots, sums)
                if layer == 1:  # as if a byte that was read had been another
                    sums[2] += np.uint64(1)

            monkeypatch.setattr(Copies, "layer_to_device", spoilt)
            queue = it.decider._links[Tier.HOST].queue
            queue._is_pumping = True
            match = await it.cache.match(house.prompt(PAGES))
            with it.cache.load(match, start_s=0.0, compute_s=[1.0] * LAYERS) as load:
                load.commit()
                queue._is_pumping = False
                queue._pump()
                with pytest.raises(LoadFailed) as failed:
                    await load.layer(LAYERS - 1)
                assert failed.value.pages == 2
                await load.released
            assert it.cache.stats().traffic.failed_checks == 1

    asyncio.run(scenario())


class Computing:
    """Pages that an engine computes layer by layer into slots that held something else."""

    def __init__(self, it, match):
        self.words, self.slots = it.words, it.cache.acquire(len(match.keys))
        payload.fill(it.words, self.slots, payload.seeds(match.keys))
        self.done = it.words[:, :, self.slots].copy()
        it.words[:, :, self.slots] = 0

    def compute(self, layer):
        self.words[:, layer, self.slots] = self.done[:, layer]


def test_layers_of_a_store_leave_as_they_are_computed(either, house):
    async def scenario():
        async with either() as it:
            match = await it.cache.match(house.prompt(PAGES))
            computing = Computing(it, match)
            link = it.cache._orchestrator.links["device->host"]
            async with it.cache.store(match, computing.slots, layers=True) as store:
                for layer in range(LAYERS):
                    computing.compute(layer)
                    assert (await it.cache.match(house.prompt(PAGES))).pages == 0
                    store.layer_ready(layer)
                    left = (layer + 1) * PAGES * house.PAGE_NBYTES // LAYERS
                    await house.until(lambda left=left: link.counted()[2] == left)
                assert (await store).new == PAGES
            await clear_device(it)
            assert await it.serve(house.prompt(PAGES)) == PAGES

    asyncio.run(scenario())


@pytest.mark.parametrize("ready", [0, 2])
def test_a_store_closed_before_it_is_whole_has_stored_nothing(either, house, ready):
    async def scenario():
        async with either() as it:
            match = await it.cache.match(house.prompt(PAGES))
            computing = Computing(it, match)
            store = it.cache.store(match, computing.slots, layers=True)
            for layer in range(ready):
                computing.compute(layer)
                store.layer_ready(layer)
            await asyncio.sleep(0.01)
            store.close()
            assert (await store).refused == PAGES
            assert await it.serve(house.prompt(PAGES)) == 0

    asyncio.run(scenario())
