# SPDX-License-Identifier: Apache-2.0
"""What one engine announces, measures or leaves behind, as the node and other engines see it."""

import asyncio
import os
import signal
from contextlib import asynccontextmanager

import numpy as np
import pytest

from bodocache.clock import RealClock
from bodocache.kernels.lane import HostLane
from bodocache.move.choice import Why
from bodocache.move.copies import Copies
from bodocache.move.link import Link
from bodocache.move.rate import BLOCK_CHUNKS, CLASSES_NBYTES, LinkRate
from bodocache.move.timeline import Cut
from bodocache.pages import Reason, Tier
from bodocache.replay import payload
from bodocache.testing import MemoryBackend, MemoryDisk, SlowBackend

PAGES = 4


@pytest.fixture
def two_engines(house, tmp_path):
    """``async with two_engines(...) as (node, one, two)``: they compute a token in ``token_s``."""
    path = tmp_path / "s"

    @asynccontextmanager
    async def opened(token_s=1.0, backend=None, host=16):
        values = {**house.settings(host=host), "planner": {"recompute_s_per_token": token_s}}
        async with (
            house.node_at(path, values, backend=backend) as node,
            house.attach(path, values) as one,
            house.attach(path, values) as two,
        ):
            yield node, one, two

    return opened


async def following(it, match):
    task = asyncio.create_task(it.cache.follow(match))
    await asyncio.wait([task], timeout=0.05)
    assert not task.done()
    return task


def test_an_engine_waits_for_pages_that_another_computes(two_engines, house):
    async def scenario():
        async with two_engines() as (_, one, two):
            one.cache.announce(await one.cache.match(house.prompt(PAGES)), ready_s=5.0)
            match = await two.cache.match(house.prompt(PAGES + 2))
            assert (match.pages, match.announced) == (0, PAGES)
            assert 4.0 < match.announced_s <= 5.0
            follower = await following(two, match)
            assert await one.serve(house.prompt(PAGES)) == 0
            found = await asyncio.wait_for(follower, 5)
            assert (found.pages, found.announced) == (PAGES, 0)
            assert await two.serve(house.prompt(PAGES)) == PAGES

    asyncio.run(scenario())


def test_pages_that_another_than_their_announcer_stores_are_waited_for_no_more(two_engines, house):
    async def scenario():
        async with two_engines() as (_, one, two):
            one.cache.announce(await one.cache.match(house.prompt(PAGES)), ready_s=5.0)
            follower = await following(one, await one.cache.match(house.prompt(PAGES)))
            await two.serve(house.prompt(2))
            match = await one.cache.match(house.prompt(PAGES))
            assert (match.pages, match.announced) == (2, PAGES - 2)
            await two.serve(house.prompt(PAGES))
            assert (await asyncio.wait_for(follower, 3)).pages == PAGES

    asyncio.run(scenario())


@pytest.mark.parametrize("ends", ["withdrawn", "closed", "refused"])
def test_an_announcement_ends_with_what_its_engine_does(two_engines, house, ends):
    async def scenario():
        async with two_engines() as (node, one, two):
            match = await one.cache.match(house.prompt(PAGES))
            announcement = one.cache.announce(match, ready_s=9.0)
            follower = await following(two, await two.cache.match(house.prompt(PAGES)))
            if ends == "withdrawn":
                announcement.close()
            elif ends == "closed":
                await one.cache.close()
            else:
                node.host.residency.take_most = lambda *_, **__: np.empty(0, np.int64)
                async with one.cache.store(match, one.cache.acquire(PAGES)) as store:
                    assert (await store).refused == PAGES
            found = await asyncio.wait_for(follower, 5)
            assert (found.pages, found.announced) == (0, 0)

    asyncio.run(scenario())


def test_of_other_weights_nothing_is_announced(two_engines, house):
    async def scenario():
        async with two_engines() as (_, one, two):
            one.cache.announce(await one.cache.match(house.prompt(PAGES)), ready_s=5.0)
            two.cache.rotate("2")
            assert (await two.cache.match(house.prompt(PAGES))).announced == 0

    asyncio.run(scenario())


@pytest.mark.timeout(150)  # the zygote compiles, once
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_an_announcer_that_dies_or_hangs_holds_nobody_up(house, tmp_path, zygote, number):
    async def scenario():
        values, path = house.settings(silence_s=1.0), tmp_path / "s"
        values["planner"] = {"recompute_s_per_token": 10.0}
        async with house.node_at(path, values), house.attach(path, values) as it:
            pid = await zygote.start("announce", path, values)
            assert await zygote.hears(pid, "announced") is True
            match = await it.cache.match(house.prompt(4, of=9))
            assert match.announced == 4
            follower = await following(it, match)
            os.kill(pid, number)
            assert (await asyncio.wait_for(follower, 5)).announced == 0
            if number == signal.SIGSTOP:
                os.kill(pid, signal.SIGKILL)

    asyncio.run(scenario())


def teach(link, rate):
    """Let ``link`` have brought many chunks of every size at ``rate``, and nothing else."""
    link.rate, now_s = LinkRate(), 0.0
    for nbytes in (4096, *CLASSES_NBYTES):
        for _ in range(2 * BLOCK_CHUNKS):
            now_s += nbytes / rate
            link.rate.add(now_s, nbytes)


def slow_disk(house, seconds):
    clock = RealClock()
    disk = MemoryBackend(MemoryDisk(house.PAGE_NBYTES, 64), clock=clock)
    return SlowBackend(disk, seconds, clock=clock)


async def on_disk_alone(house, one):
    """Pages of one prompt, which others have pushed out of host memory."""
    await one.serve(house.prompt(6))
    await one.serve(house.prompt(8, of=1))


def test_an_engine_that_has_loaded_nothing_knows_what_the_node_measured(two_engines, house):
    async def scenario():
        async with two_engines(20e-6, slow_disk(house, 0.0), host=12) as (node, one, two):
            await on_disk_alone(house, one)
            disk = node.host.links["disk->host"]
            teach(disk, 1e6)
            teach(two.cache._orchestrator.decider._links[Tier.HOST], 1e9)
            disk.queue.ahead_of = lambda *_, **__: 2_000_000
            match = await two.cache.match(house.prompt(6))
            from_disk = int((match.tiers == Tier.DISK).sum()) * house.PAGE_NBYTES
            assert from_disk > 0
            assert match.forecast.mean_s == pytest.approx(2.0 + from_disk / 1e6, rel=0.05)
            with two.cache.load(match, start_s=0.0) as load:
                assert (await load).reasons[-1] == Reason.CUT
            assert two.cache.stats().traffic.cuts[Why.BEFORE] == 1

    asyncio.run(scenario())


def test_what_is_queued_of_the_engines_own_is_not_told_it(two_engines, house, monkeypatch):
    async def scenario():
        monkeypatch.setattr(Link, "lag_s", lambda _: 0.0)  # of a disk that stands still so long
        async with two_engines(20e-6, slow_disk(house, 0.2), host=12) as (node, one, two):
            await on_disk_alone(house, one)
            teach(node.host.links["disk->host"], 1e6)
            one.cache.release(one.cache.acquire(8))
            match = await two.cache.match(house.prompt(6))
            with two.cache.load(match) as load:
                for it, is_others in ((one, True), (two, False)):
                    await it.cache.match(house.prompt(1, of=7))
                    disk = it.cache._orchestrator.disk
                    assert (disk._queued_nbytes > 0) is is_others
                assert (await load).pages == 6

    asyncio.run(scenario())


@pytest.mark.timeout(150)
def test_a_load_from_a_node_that_stands_still_is_cut(tmp_path, house, zygote):
    async def scenario():
        values, path = house.settings(), tmp_path / "s"
        pid = await zygote.start("be_a_node", path, values)
        await house.until(path.exists)
        async with house.attach(path, values) as other:
            await other.serve(house.prompt(6))
        async with house.attach(path, values) as it:
            decider = it.cache._orchestrator.decider
            teach(decider._links[Tier.HOST], 1e9)
            decider._nearly_over = lambda _: False  # pages of the tests are so small that all is
            match = await it.cache.match(house.prompt(6))
            os.kill(pid, signal.SIGSTOP)
            try:
                with it.cache.load(match, start_s=0.0) as load:
                    loaded = await asyncio.wait_for(load, 5)
                    assert loaded.reasons.tolist() == [Reason.CUT] * 6
                    await load.released
            finally:
                os.kill(pid, signal.SIGCONT)
            assert it.cache.stats().traffic.cuts[Why.TARDY] == 1
            assert await it.serve(house.prompt(6)) == 6
        os.kill(pid, signal.SIGTERM)
        assert await zygote.hears(pid, "ended")

    asyncio.run(scenario())


def drains_late(transfer):
    """Storage goes on for a while with what it has begun."""
    drained = transfer.drained

    async def late():
        await asyncio.sleep(0.1)
        await drained()

    transfer.drained = late


def test_when_an_engine_has_closed_the_node_holds_nothing_of_it(two_engines, house):
    async def scenario():
        async with two_engines(20e-6, slow_disk(house, 0.2), host=12) as (node, one, two):
            await on_disk_alone(house, one)
            load = two.cache.load(await two.cache.match(house.prompt(6)))
            await two.cache.match(house.prompt(1))  # the node has begun to read
            assert node.host.residency.host.leased > 0
            for connection in node.door.connections:
                for fetch in connection.session.fetches.values():
                    drains_late(fetch.readings[0].transfers[0])
            await two.cache.close()
            assert (await load).pages < 6
            assert len(node.describe()["engines"]) == 1
            assert node.host.residency.host.leased == 0
            assert not node.host.residency.table.records["pins"].any()

    asyncio.run(scenario())


def test_an_engine_fenced_between_two_layers_of_a_store_writes_to_its_slots_no_more(
    two_engines, house
):
    async def scenario():
        async with two_engines() as (node, one, _):
            match = await one.cache.match(house.prompt(PAGES))
            slots = one.cache.acquire(PAGES)
            payload.fill(one.words, slots, payload.seeds(match.keys))
            link = one.cache._orchestrator.links["device->host"]
            async with one.cache.store(match, slots, layers=True) as store:
                store.layer_ready(0)
                await house.until(lambda: link.counted()[2] == PAGES * house.PAGE_NBYTES // 4)
                connection = next(it for it in node.door.connections if it.session.stages)
                connection._fence("silent")
                pool = node.host.residency.host
                held = pool.rows.copy()
                await house.until(lambda: one.cache.trouble is not None or _ping(one))
                for layer in (1, 2, 3):
                    store.layer_ready(layer)
                assert (await store).refused == PAGES
                assert np.array_equal(pool.rows, held)
            assert await one.serve(house.prompt(PAGES)) == 0

    asyncio.run(scenario())


def _ping(it):
    """Let the engine hear that it was fenced."""
    it.cache._engine._attached.channel._ping()


class Streamed(Copies):
    """Copies between CPU pools on the ways that a GPU's take: in the thread, and on lanes."""

    def __init__(self, device, host):
        super().__init__(device, host)
        self.runs_here, self.streams_layers, self.pad = False, True, None

    def make_lane(self):
        return HostLane()


def test_layers_cross_on_a_stream_of_the_device_where_there_is_one(two_engines, house, monkeypatch):
    monkeypatch.setattr("bodocache.node.attached.Copies", Streamed)

    async def scenario():
        async with two_engines() as (_, one, two):
            for it in (one, two):
                for link in it.cache._orchestrator.links.values():
                    link.queue._runs_here = False
            match = await one.cache.match(house.prompt(PAGES))
            slots, seeds = one.cache.acquire(PAGES), payload.seeds(match.keys)
            async with one.cache.store(match, slots, layers=True) as store:
                payload.fill(one.words, slots, seeds)
                for layer in range(4):
                    store.layer_ready(layer)
                assert (await store).new == PAGES
            match = await two.cache.match(house.prompt(PAGES))
            with two.cache.load(match, start_s=0.0, compute_s=[1.0] * 4) as load:
                assert len(load.commit()) == PAGES * house.PAGE_TOKENS
                for layer in range(4):
                    await load.layer(layer)
                loaded = await load
                assert payload.count_wrong_bytes(two.words, loaded.slots, seeds) == 0
                await load.released

    asyncio.run(scenario())


# What the node counts of all


def test_what_one_engine_spends_and_another_saves_is_weighed_together(two_engines, house):
    async def scenario():
        async with two_engines() as (node, one, two):
            await one.serve(house.prompt(PAGES))  # it copies, and loads nothing
            await one.cache.match(house.prompt(PAGES))
            assert node.host.worth.spent_s > 0.0 == node.host.worth.saved_s
            assert await two.serve(house.prompt(PAGES)) == PAGES
            await two.cache.match(house.prompt(PAGES))
            assert node.host.worth.saved_s == pytest.approx(PAGES * 8 * 1.0, rel=0.01)
            assert await aside(node, one, house)
            assert two.cache.stats().traffic.gain.is_aside is False  # not told yet
            assert (await two.cache.match(house.prompt(PAGES))).tiers.tolist() == [0] * PAGES
            assert two.cache.stats().traffic.gain.is_aside

    asyncio.run(scenario())


async def aside(node, it, house):
    """Let the node find that it costs more than it gains; what ``it`` is told."""
    node.host.worth.spent(1e6)
    node.host.worth._since_s -= 1e6
    await it.cache.match(house.prompt(PAGES))
    return it.cache.stats().traffic.gain.is_aside


def test_what_an_engine_was_loading_when_it_died_counts_as_cancelled(house, tmp_path):
    async def scenario():
        disk, path = house.Disk(), tmp_path / "s"
        async with (
            house.node_at(path, house.settings(), backend=disk.backend(RealClock())),
            house.attach(path, house.settings()) as it,
        ):
            await it.serve(house.prompt(PAGES))
        disk.seconds = 0.3
        slow = disk.backend(RealClock())
        async with (
            house.node_at(path, house.settings(), backend=slow) as node,
            house.attach(path, house.settings()) as it,
        ):
            requests = node.host.requests
            with it.cache.load(await it.cache.match(house.prompt(PAGES))) as load:
                await house.until(lambda: requests.loads_in_flight == 1)
                for connection in node.door.connections:
                    connection._transport.abort()
                await house.until(lambda: requests.loads_in_flight == 0)
                await load.released
            assert node.host.ledger.misses[Reason.CANCELLED] == PAGES
            assert requests.cuts[Cut.CANCELLED] == 1
            await house.until(lambda: it.cache._engine._attached is not None)

    asyncio.run(scenario())
