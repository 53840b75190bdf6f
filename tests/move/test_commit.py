# SPDX-License-Identifier: Apache-2.0
"""Cuts before the commit, the commit, and layers after it."""

import asyncio
import threading

import numpy as np
import pytest

from bodocache.errors import BodoCacheError, ConfigError, LoadFailed
from bodocache.pages import Reason, Tier
from bodocache.testing import Fault, FaultyBackend, Operation

LAYERS = 4
COMPUTE_S = [1e-3] * LAYERS
CANARY = np.uint64(0x5A5A5A5A5A5A5A5A)


async def on_tier(it, tokens, tier):
    await it.put(tokens)
    it.leave_on(tier)


def test_a_commit_fixes_the_tokens_before_they_are_there(house, prompt):
    async def scenario():
        async with house() as it:
            await on_tier(it, prompt(4), Tier.DISK)
            it.valve.is_shut = True
            with await it.begin(prompt(4)) as load:
                assert (load.landed, load.committed) == (0, None)
                assert load.commit() == range(32) == load.commit() == load.committed
                assert (load.recompute, load.done) == (range(32, 32), False)
                it.valve.open()
                loaded = await load
                assert loaded.pages == 4
                assert it.wrong_bytes((await it.cache.match(prompt(4))).keys, loaded) == 0

    asyncio.run(scenario())


def test_a_cut_keeps_what_landed_and_what_is_before_it(house, prompt):
    async def scenario():
        async with house() as it:
            await on_tier(it, prompt(5), Tier.DISK)
            it.valve.is_shut = True
            with await it.begin(prompt(5)) as load:
                it.valve.flow_one()
                await asyncio.sleep(0.001)
                assert load.landed == 1
                load.cut(3)
                assert (load.done, load.recompute) == (False, range(8, 40))
                it.valve.flow_one()
                it.valve.flow_one()
                loaded = await load
                assert (loaded.pages, loaded.recompute) == (3, range(24, 40))
                assert loaded.reasons.tolist() == [Reason.CUT] * 2
                assert not load.released.done()
                it.valve.open()
                await load.released
            assert it.cache.stats().misses == {Reason.CUT: 2}

    asyncio.run(scenario())


def test_a_cut_before_what_landed_loses_nothing(house, prompt):
    async def scenario():
        async with house() as it:
            await on_tier(it, prompt(4), Tier.DISK)
            it.valve.is_shut = True
            with await it.begin(prompt(4)) as load:
                it.valve.flow_one()
                it.valve.flow_one()
                await asyncio.sleep(0.001)
                load.cut(0)
                assert (await load).pages == 2
                it.valve.open()

    asyncio.run(scenario())


def test_what_is_cut_and_has_not_begun_gives_its_room_back(house, prompt):
    async def scenario():
        async with house() as it:
            await on_tier(it, prompt(6), Tier.DISK)
            with it.busy_disk():
                load = await it.begin(prompt(6))
                assert it.pool.free == 2
                load.cut(0)
                await load.released
                assert it.pool.free == 8
                load.close()

    asyncio.run(scenario())


def test_nothing_is_cut_after_the_commit(house, prompt):
    async def scenario():
        async with house() as it:
            await on_tier(it, prompt(4), Tier.DISK)
            it.valve.is_shut = True
            with await it.begin(prompt(4)) as load:
                load.cut(2)
                assert load.commit() == range(16)
                with pytest.raises(BodoCacheError, match="after the commit of 2 pages"):
                    load.cut(1)
                with pytest.raises(BodoCacheError, match="it is final"):
                    load.commit(3)
                it.valve.open()
                assert (await load).pages == 2

    asyncio.run(scenario())


@pytest.mark.parametrize("n", range(4))
def test_a_committed_load_fails_whole_and_names_the_pages_that_are_whole(house, prompt, n):
    plan = [Fault.once(Operation.GET, n), Fault.once(Operation.GET, 4)]  # read, and read again

    async def scenario():
        async with house(wrap=lambda inner: FaultyBackend(inner, plan)) as it:
            await on_tier(it, prompt(4), Tier.DISK)
            it.valve.is_shut = True
            with await it.begin(prompt(4), compute_s=COMPUTE_S) as load:
                load.commit()
                it.valve.open()
                with pytest.raises(LoadFailed, match="IO_ERROR") as failed:
                    await load
                assert (failed.value.pages, failed.value.committed) == (n, 4)
                with pytest.raises(LoadFailed):
                    await load.layer(0)
                await load.released
            assert (await it.get(prompt(4))).pages == n

    asyncio.run(scenario())


def test_a_committed_load_that_is_late_fails(house, prompt):
    async def scenario():
        async with house() as it:
            await on_tier(it, prompt(4), Tier.DISK)
            it.valve.is_shut = True
            with await it.begin(prompt(4), deadline_s=0.02) as load:
                load.commit()
                with pytest.raises(LoadFailed, match="LATE"):
                    await load
                it.valve.open()

    asyncio.run(scenario())


def test_layers_come_one_after_the_other_from_the_host(house, prompt):
    async def scenario():
        async with house(device=12) as it:
            await on_tier(it, prompt(5), Tier.HOST)
            copies = it.orchestrator._copies
            copies.turn_pages, copies.turn_nbytes = 1, 2 * copies.layer_nbytes
            with await it.begin(prompt(5), compute_s=COMPUTE_S) as load:
                landed = load.landed
                assert 1 <= landed < 5
                left = load.slots[landed:5].copy()
                it.words[:, :, left] = CANARY
                assert load.commit() == range(40)
                for layer in range(LAYERS):
                    await load.layer(layer)
                    there = (it.words[:, :, left] != CANARY).any(axis=(0, 2, 3))
                    assert there[: layer + 1].all()
                    if layer == 0:
                        assert not there[1:].any()
                loaded = await load
                assert loaded.pages == 5
                assert it.wrong_bytes((await it.cache.match(prompt(5))).keys, loaded) == 0

    asyncio.run(scenario())


def test_bytes_that_changed_in_host_memory_end_a_committed_load(house, prompt):
    async def scenario():
        async with house(disk=0) as it:
            await on_tier(it, prompt(4), Tier.HOST)
            it.orchestrator._copies.turn_pages = 1
            rows = it.residency.leading((await it.cache.match(prompt(4))).keys)
            it.host.rows[it.residency.slots(rows, Tier.HOST)[2], 100] ^= 4
            with await it.begin(prompt(4), compute_s=COMPUTE_S) as load:
                load.commit()
                with pytest.raises(LoadFailed, match="CORRUPT") as failed:
                    await load.layer(LAYERS - 1)
                assert failed.value.pages == load.landed <= 2
                await load.released
            assert it.cache.stats().traffic.failed_checks == 1
            assert await it.pages_of(prompt(4)) == 2

    asyncio.run(scenario())


def test_a_thread_waits_for_a_layer_and_the_loop_may_not(house, prompt):
    async def scenario():
        async with house() as it:
            await on_tier(it, prompt(4), Tier.DISK)
            it.valve.is_shut = True
            with await it.begin(prompt(4)) as load:
                with pytest.raises(BodoCacheError, match="commit first"):
                    load.wait_layer(0)
                load.commit()
                with pytest.raises(BodoCacheError, match="would wait for itself"):
                    load.wait_layer(0)
                with pytest.raises(TimeoutError):
                    await asyncio.to_thread(load.wait_layer, 0, timeout_s=0.01)
                there = threading.Event()
                waiting = asyncio.create_task(asyncio.to_thread(waited, load, there))
                it.valve.open()
                await waiting
                assert there.is_set()

    def waited(load, there):
        load.wait_layer(LAYERS - 1)
        there.set()

    asyncio.run(scenario())


def test_a_cancel_after_the_commit_ends_waits_and_frees_the_slots(house, prompt):
    async def scenario():
        async with house() as it, asyncio.timeout(5):
            await on_tier(it, prompt(4), Tier.HOST)
            it.orchestrator._copies.turn_pages = it.orchestrator._copies.turn_nbytes = 1
            load = await it.begin(prompt(4), compute_s=COMPUTE_S)
            load.commit()
            await load.layer(0)
            load.close()
            with pytest.raises(LoadFailed, match="CANCELLED"):
                await load.layer(3)
            await load.released
            assert it.pool.free == 8 - load.landed

    asyncio.run(scenario())


def test_another_ranks_commit_is_kept_or_fails(house, prompt):
    async def scenario():
        async with house() as it:
            await on_tier(it, prompt(4), Tier.DISK)
            with it.busy_disk():
                first, second = await it.begin(prompt(4)), await it.begin(prompt(4))
                assert first.commit(2) == range(16)
                second.cut(1)
                assert second.commit(3) == range(24)  # it has to be: all ranks do the same
                with pytest.raises(LoadFailed):
                    await second
            assert (await first).pages == 2
            first.close()
            second.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "terms",
    [
        {"start_s": -1.0},
        {"start_s": float("nan")},
        {"compute_s": [1.0]},
        {"compute_s": [1.0, 1.0, 1.0, -1.0]},
        {"n_waiting": -1},
        {"deadline_s": float("nan")},
    ],
)
def test_terms_that_cannot_be_are_refused(house, prompt, terms):
    async def scenario():
        async with house() as it:
            await it.put(prompt(1))
            with pytest.raises(ConfigError, match="load: "):
                await it.begin(prompt(1), **terms)

    asyncio.run(scenario())
