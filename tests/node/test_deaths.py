# SPDX-License-Identifier: Apache-2.0
"""Engines and nodes that are killed, stopped and continued, in processes of their own."""

import asyncio
import os
import random
import signal

import numpy as np
import pytest

from bodocache.errors import NodeLost
from bodocache.hints import Pin, Session
from bodocache.pages import Reason, Tier

pytestmark = pytest.mark.timeout(150)  # the zygote compiles, once


def free_slots(node):
    return node.host.residency.host.free


def engines_of(node):
    return node.describe()["engines"]


def test_an_engine_killed_in_mid_store_leaves_nothing(tmp_path, house, zygote):
    async def scenario():
        values, path = house.settings(), tmp_path / "s"
        async with house.node_at(path, values) as node:
            pid = await zygote.start("stop_in_mid_store", path, values)
            assert await zygote.hears(pid, "reserved") == 4
            assert free_slots(node) == 12
            os.kill(pid, signal.SIGKILL)
            await house.until(lambda: free_slots(node) == 16)
            assert not engines_of(node)
            async with house.attach(path, values) as it:
                assert (await it.cache.match(house.prompt(4, of=9))).pages == 0

    asyncio.run(scenario())


def test_slots_of_a_stopped_engine_are_not_reused_before_it_is_dead(tmp_path, house, zygote):
    async def scenario():
        values, path = house.settings(silence_s=0.3), tmp_path / "s"
        async with house.node_at(path, values) as node:
            pid = await zygote.start("stop_in_mid_store", path, values)
            await zygote.hears(pid, "reserved")
            await house.until(lambda: engines_of(node)[0]["fenced"])
            assert engines_of(node)[0]["quarantined_slots"] == 4
            async with house.attach(path, values) as it:
                await it.serve(house.prompt(8))  # others go on, in the slots that are left
                await it.serve(house.prompt(8, of=1))
                assert (
                    node.host.residency.host.num_pages
                    - node.host.residency.stats()[Tier.HOST].pages
                    >= 4
                )
            os.kill(pid, signal.SIGKILL)
            await house.until(lambda: not engines_of(node))

    asyncio.run(scenario())


def test_what_a_fenced_engine_publishes_is_refused_and_it_may_go_on(tmp_path, house, zygote):
    async def scenario():
        values, path = house.settings(silence_s=0.3), tmp_path / "s"
        async with house.node_at(path, values) as node:
            pid = await zygote.start("stop_in_mid_store", path, values)
            await zygote.hears(pid, "reserved")
            await house.until(lambda: engines_of(node)[0]["fenced"])
            async with house.attach(path, values) as it:
                os.kill(pid, signal.SIGCONT)
                late = await zygote.hears(pid, "late")
                assert late.startswith("NodeFenced")
                assert "node.silence_s = 0.3 s" in late
                assert await zygote.hears(pid, "stored") == 4  # under a new epoch
                assert await it.serve(house.prompt(4, of=9)) == 4
                assert await zygote.hears(pid, "closed")

    asyncio.run(scenario())


def test_a_hundred_engines_killed_at_any_moment_leave_only_right_pages(tmp_path, house, zygote):
    async def scenario():
        dice = random.Random(20)
        values, path = house.settings(tmp_path), tmp_path / "s"
        async with house.node_at(path, values) as node:
            kills = 0
            living = []
            while kills < 100:
                while len(living) < 3:
                    seed = dice.randrange(1 << 30)
                    pid = await zygote.start("serve_prompts", path, values, seed=seed)
                    living.append(pid)
                    if dice.random() < 0.7:  # the others are killed while they attach
                        await zygote.hears(pid, "attached")
                await asyncio.sleep(dice.random() * 0.03)
                pid = living.pop(dice.randrange(len(living)))
                os.kill(pid, signal.SIGKILL)
                kills += 1
            for pid in living:
                os.kill(pid, signal.SIGKILL)
            await house.until(lambda: house.is_clean(node))
            assert not [it for said in zygote.said.values() for it in said if "wrong" in it]
            assert not [it for said in zygote.said.values() for it in said if "failed" in it]
            assert node.host.residency.stats()[Tier.HOST].pages > 0
            async with house.attach(path, values) as it:
                for of in range(6):
                    await it.serve(house.prompt(8, of=of))

    asyncio.run(scenario())


def test_when_the_node_is_killed_pages_are_misses_until_it_is_back(tmp_path, house, zygote, caplog):
    async def scenario():
        values, path = house.settings(tmp_path), tmp_path / "s"
        pid = await zygote.start("be_a_node", path, values)
        await house.until(path.exists)
        async with house.attach(path, values) as it:
            cache = it.cache
            await it.serve(house.prompt(6))
            await make_room(it)
            match = await cache.match(house.prompt(6))
            assert match.pages == 6
            os.kill(pid, signal.SIGKILL)
            with cache.load(match) as load:  # no deadline: the node's end is its end
                assert (await load).pages < 6
            await house.until(lambda: cache.trouble is not None)
            lost = await cache.match(house.prompt(6, of=2))
            assert lost.reasons.tolist() == [Reason.UNAVAILABLE] * 6
            slots = cache.acquire(6)
            async with cache.store(lost, slots) as store:
                assert (await store).refused == 6
            with pytest.raises(NodeLost, match=r"node is gone|Connection refused"):
                await cache.hint([Pin(Session("s"))])
            again = await zygote.start("be_a_node", path, values)
            await house.until(lambda: cache._engine._attached is not None)
            await make_room(it)
            assert await it.serve(house.prompt(6)) == 6
            assert cache.stats().traffic.hits[Tier.DISK] >= 6
        os.kill(again, signal.SIGTERM)
        assert await zygote.hears(again, "ended")

    async def make_room(it):
        """All pages leave the device."""
        held = []
        while it.pool.free or it.cache.stats().traffic.tiers[Tier.DEVICE].pages:
            held.append(it.cache.acquire(1))
        it.cache.release(np.concatenate(held))

    asyncio.run(scenario())


def test_a_node_that_stands_still_costs_no_load_its_deadline(tmp_path, house, zygote, monkeypatch):
    async def scenario():
        values, path = house.settings(), tmp_path / "s"
        pid = await zygote.start("be_a_node", path, values)
        await house.until(path.exists)
        async with house.attach(path, values, patience_s=0.1) as it:
            async with house.attach(path, values) as other:
                await other.serve(house.prompt(6))
            match = await it.cache.match(house.prompt(6))
            assert match.pages == 6
            os.kill(pid, signal.SIGSTOP)
            try:
                with it.cache.load(match, deadline_s=0.05) as load:
                    async with asyncio.timeout(5):
                        loaded = await load
                        await load.released
                assert loaded.pages == 0
                assert loaded.reasons.tolist() == [Reason.LATE] * 6
                lost = await it.cache.match(house.prompt(6))
                assert lost.reasons.tolist() == [Reason.UNAVAILABLE] * 6
                monkeypatch.setattr("bodocache.node.stores.PATIENCE_S", 0.05)
                async with it.cache.store(lost, it.cache.acquire(6)) as store:
                    assert (await store).refused == 6
                monkeypatch.undo()
            finally:
                os.kill(pid, signal.SIGCONT)
            assert await it.serve(house.prompt(6)) == 6
            assert (await it.cache.node_stats())["leased_slots"] == 0  # of the late store's
        os.kill(pid, signal.SIGTERM)
        assert await zygote.hears(pid, "ended")

    asyncio.run(scenario())
