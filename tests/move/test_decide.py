# SPDX-License-Identifier: Apache-2.0
"""Whether to load, how much, from where; and cuts of what turned late. Links are taught a rate."""

import asyncio
from contextlib import AsyncExitStack

import numpy as np
import pytest

from bodocache.clock import RealClock
from bodocache.errors import ConfigError
from bodocache.move.choice import Choice, Proposal, Why
from bodocache.move.rate import BLOCK_CHUNKS, CLASSES_NBYTES, LinkRate
from bodocache.pages import Reason, Tier

PAGE_NBYTES = 4096  # of the house
PAGE_RECOMPUTE_S = 8 * 20e-6  # as the configuration says by default
FAST, SLOW = 1e9, 1e3  # bytes/s


def teach(it, rate, name="disk->device"):
    """Let a link have brought many chunks of every size at ``rate``."""
    link, chunks = it.orchestrator._links[name], 2 * BLOCK_CHUNKS
    sizes = (PAGE_NBYTES, *CLASSES_NBYTES)
    now_s = it.clock.now_s() - chunks * sum(sizes) / rate
    link.rate = LinkRate()
    link.rate.resume(now_s)
    for nbytes in sizes:
        for _ in range(chunks):
            now_s += nbytes / rate
            link.rate.add(now_s, nbytes)
    link.rate.resume(it.clock.now_s())


async def on_tier(it, tokens, tier):
    await it.put(tokens)
    it.leave_on(tier)


def cuts(it):
    return {why: n for why, n in it.cache.stats().traffic.cuts.items() if n}


def test_what_the_engine_computes_sooner_is_not_loaded_at_all(house, prompt):
    async def scenario():
        async with house() as it:
            await on_tier(it, prompt(4), Tier.DISK)
            teach(it, SLOW)
            it.valve.is_shut = True
            with await it.begin(prompt(4), start_s=0.0) as load:
                loaded = await load
                assert (loaded.pages, loaded.reasons.tolist()) == (0, [Reason.CUT] * 4)
                assert load.commit() == range(0)
            assert not it.valve.in_flight
            assert cuts(it) == {Why.BEFORE: 1}

    asyncio.run(scenario())


@pytest.mark.parametrize("rate", [None, FAST])
def test_what_comes_soon_or_nobody_knows_when_is_loaded(house, prompt, rate):
    async def scenario():
        async with house() as it:
            await on_tier(it, prompt(4), Tier.DISK)
            if rate:
                teach(it, rate)
            assert (await it.get(prompt(4), start_s=0.0)).pages == 4
            assert cuts(it) == {}

    asyncio.run(scenario())


def test_a_load_that_nobody_waits_for_is_never_cut(house, prompt):
    async def scenario():
        async with house() as it:
            await on_tier(it, prompt(4), Tier.DISK)
            teach(it, SLOW)
            assert (await it.get(prompt(4))).pages == 4
            assert (await it.get(prompt(4), n_waiting=3)).pages == 4

    asyncio.run(scenario())


@pytest.mark.parametrize(("n_waiting", "pages"), [(0, 2), (500, 6)])
def test_a_part_is_loaded_while_the_engine_is_busy(house, prompt, n_waiting, pages):
    """A page comes in 41 ms and is computed in 0.16: what comes before the start is free."""

    async def scenario():
        async with house() as it:
            await on_tier(it, prompt(6), Tier.DISK)
            teach(it, 1e5)
            with it.busy_disk():  # nothing comes meanwhile; 1 GB of others is ahead, but not due
                it.orchestrator._links["disk->device"].queue.ahead_of = lambda *_, **__: 0
                load = await it.begin(prompt(6), start_s=0.1, n_waiting=n_waiting)
                assert load.wanted == pages
                load.close()

    asyncio.run(scenario())


def test_an_engine_may_say_anew_when_it_is_free(house, prompt):
    async def scenario():
        async with house() as it, asyncio.timeout(5):
            await on_tier(it, prompt(6), Tier.DISK)
            teach(it, SLOW)
            nearly_over(it, is_so=False)
            with it.busy_disk():
                it.orchestrator._links["disk->device"].queue.ahead_of = lambda *_, **__: 0
                load = await it.begin(prompt(6), start_s=100.0)
                for start_s in (90.0, 80.0):  # 25 s for all of it
                    load.expect(start_s=start_s, n_waiting=0.5)
                    await asyncio.sleep(20e-3)
                    assert load.wanted == 6
                load.expect(start_s=0.0, n_waiting=0.5)
                assert (await load).pages == 0
                assert cuts(it) == {Why.TARDY: 1}
                load.close()
            for wrong in ({"start_s": -1.0, "n_waiting": 0}, {"start_s": 0.0, "n_waiting": -1}):
                with pytest.raises(ConfigError):
                    load.expect(**wrong)

    asyncio.run(scenario())


def test_what_a_cut_leaves_on_disk_comes_to_the_host_while_the_disk_is_idle(house, prompt):
    async def scenario():
        async with house() as it, asyncio.timeout(5):
            await on_tier(it, prompt(4), Tier.DISK)
            teach(it, SLOW)
            with it.busy_disk():
                with await it.begin(prompt(4), start_s=0.0) as load:
                    assert (await load).pages == 0
                assert not it.valve.in_flight
            for operation in list(it.orchestrator._prefetcher._live):
                await operation
            assert (await it.cache.match(prompt(4))).tiers.tolist() == [Tier.HOST] * 4

    asyncio.run(scenario())


def test_a_load_that_stands_still_is_cut_and_keeps_what_landed(house, prompt):
    async def scenario():
        async with house() as it, asyncio.timeout(5):
            await on_tier(it, prompt(6), Tier.DISK)
            teach(it, FAST)
            it.valve.is_shut = True
            nearly_over(it, is_so=False)
            with await it.begin(prompt(6), start_s=0.0) as load:
                it.valve.flow_one()
                loaded = await load
                assert 1 <= loaded.pages < 6
                assert set(loaded.reasons.tolist()) == {Reason.CUT}
                assert not load.released.done()
                slots = it.cache.acquire(it.pool.free)
                it.words[:, :, slots] = CANARY
                it.valve.open()
                await load.released
                assert (it.words[:, :, slots] == CANARY).all()
                it.cache.release(slots)
            assert cuts(it) == {Why.TARDY: 1}

    asyncio.run(scenario())


CANARY = np.uint64(0x5A5A5A5A5A5A5A5A)


def nearly_over(it, *, is_so):
    """Pages of the tests are so small that any load is."""
    it.orchestrator.decider._nearly_over = lambda _: is_so


def choice(pages, cut_at, **options):
    rest = {"is_demoted": False, "finish_s": 0.0, "late_s": 0.0, "step_s": 0.0}
    return Choice(
        **{"pages": pages, "is_whole": cut_at is None, "cut_at": -1, **rest, **options},
        head_layers=0,
        layers_ahead=0,
    )


@pytest.mark.parametrize(("is_near", "pages"), [(False, 2), (True, 4)])
def test_what_is_nearly_there_is_not_cut(house, prompt, is_near, pages):
    async def scenario():
        async with house() as it, asyncio.timeout(5):
            await on_tier(it, prompt(4), Tier.DISK)
            it.valve.is_shut = True
            decider = it.orchestrator.decider
            nearly_over(it, is_so=is_near)
            script = [None]
            decider._outlook.look = lambda watched, _: [script[0]] * len(watched)
            with await it.begin(prompt(4), start_s=0.0) as load:
                script[0] = choice(2, 16)
                decider._look()
                assert load.wanted == pages
                script[0] = None
                it.valve.open()
                assert (await load).pages == pages

    asyncio.run(scenario())


def test_a_load_of_which_nothing_comes_is_looked_at_once_a_chunk(house, prompt):
    async def scenario():
        async with house() as it, asyncio.timeout(10):
            await on_tier(it, prompt(6), Tier.DISK)
            teach(it, PAGE_NBYTES / 0.05)  # 50 ms a page
            it.valve.is_shut = True
            with await it.begin(prompt(6), start_s=100.0):
                decider, looks = it.orchestrator.decider, []
                look = decider._look_at_all
                decider._look_at_all = lambda: (looks.append(it.clock.now_s()), look())
                await asyncio.sleep(0.5)
                it.valve.open()
            gaps_s = np.diff(looks)
            assert len(gaps_s) >= 4
            assert gaps_s.min() >= 0.045
            assert np.median(gaps_s) < 0.09  # and not ever longer

    asyncio.run(scenario())


@pytest.mark.parametrize(("pages", "is_near"), [(2, True), (3, False)])
def test_two_pages_that_are_left_are_as_good_as_there(house, prompt, pages, is_near):
    """However long a page takes: a cut would let one of them end anyway."""

    async def scenario():
        async with house() as it:
            await on_tier(it, prompt(pages), Tier.DISK)
            teach(it, SLOW)
            it.valve.is_shut = True
            with await it.begin(prompt(pages), start_s=100.0) as load:
                decider = it.orchestrator.decider
                assert decider._nearly_over(decider._watched[load]) == is_near
                it.valve.open()
                await load

    asyncio.run(scenario())


def test_two_looks_must_agree_on_a_cut(house, prompt):
    async def scenario():
        async with house() as it, asyncio.timeout(5):
            await on_tier(it, prompt(6), Tier.DISK)
            teach(it, FAST)
            nearly_over(it, is_so=False)
            it.valve.is_shut = True
            decider = it.orchestrator.decider
            with await it.begin(prompt(6), start_s=0.0) as load:
                teach(it, SLOW)
                decider._look()
                one = decider._watched[load]
                assert (one.cut_at, load.wanted) == (0, 6)
                teach(it, FAST)
                decider._look()
                assert (one.cut_at, load.wanted) == (-1, 6)
                teach(it, SLOW)
                decider._look()
                decider._look()
                assert load.wanted == 0
                it.valve.open()

    asyncio.run(scenario())


def test_the_commit_is_the_last_chance_to_cut(house, prompt):
    async def scenario():
        async with house() as it, asyncio.timeout(5):
            await on_tier(it, prompt(6), Tier.DISK)
            teach(it, FAST)
            nearly_over(it, is_so=False)
            it.valve.is_shut = True
            with await it.begin(prompt(6), start_s=0.0) as load:
                teach(it, SLOW)
                it.orchestrator.decider._look()
                assert load.commit() == range(0)
                assert load.recompute == range(48)
                it.valve.open()

    asyncio.run(scenario())


def test_a_load_that_its_link_cannot_serve_in_time_goes_last(house, prompt):
    async def scenario():
        async with house() as it, asyncio.timeout(5):
            await on_tier(it, prompt(4), Tier.DISK)
            decider = it.orchestrator.decider
            script = [None]
            decider._outlook.look = lambda watched, _: [script[0]] * len(watched)
            with it.busy_disk(), await it.begin(prompt(4), start_s=0.01) as load:
                (part,) = decider._watched[load].parts
                due_s = part.ticket.due_s
                script[0] = choice(4, None, is_demoted=True)
                decider._look()
                assert part.ticket.due_s > due_s + 0.5
                script[0] = choice(4, None)
                decider._look()
                assert part.ticket.due_s == due_s

    asyncio.run(scenario())


@pytest.mark.parametrize(("host_rate", "tier"), [(FAST, Tier.HOST), (SLOW, Tier.DISK)])
def test_of_two_copies_the_one_that_comes_sooner_is_taken(house, prompt, host_rate, tier):
    async def scenario():
        async with house() as it:
            await on_tier(it, prompt(4), Tier.HOST)
            teach(it, 1e8)
            teach(it, host_rate, "host->device")
            assert (await it.get(prompt(4), start_s=0.0)).pages == 4
            assert it.cache.stats().traffic.hits[tier] == 4

    asyncio.run(scenario())


def test_another_source_is_asked_when_the_first_turns_late(house, prompt):
    async def scenario():
        async with house() as it, asyncio.timeout(5):
            await on_tier(it, prompt(4), Tier.HOST)
            teach(it, 1e8)
            teach(it, SLOW, "host->device")
            disk = it.orchestrator._links["disk->device"]
            ahead_of, disk.queue.ahead_of = disk.queue.ahead_of, lambda *_, **__: 0
            with it.busy_disk(), await it.begin(prompt(4), start_s=0.0) as load:
                assert load.landed == 0  # it waits for the disk
                disk.queue.ahead_of = ahead_of
                teach(it, FAST, "host->device")
                it.orchestrator.decider._look()
                assert (await load).pages == 4
            assert it.cache.stats().traffic.hits[Tier.HOST] == 4

    asyncio.run(scenario())


def test_a_match_says_how_long_its_load_would_take(house, prompt):
    async def scenario():
        async with house() as it:
            await on_tier(it, prompt(4), Tier.DISK)
            assert (await it.cache.match(prompt(4))).forecast is None
            teach(it, 1e6)
            forecast = (await it.cache.match(prompt(4))).forecast
            assert forecast.mean_s == pytest.approx(4 * PAGE_NBYTES / 1e6)
            assert forecast.mean_s < forecast.finish_s < 2 * forecast.mean_s
            assert forecast.recompute_s == pytest.approx(4 * PAGE_RECOMPUTE_S, rel=0.01)
            await it.get(prompt(4))
            assert (await it.cache.match(prompt(4))).forecast.finish_s == 0.0

    asyncio.run(scenario())


class Skewed:
    """A clock that is ahead of the real one."""

    def __init__(self, by_s):
        self._by_s = by_s

    def now_s(self):
        return RealClock().now_s() + self._by_s


@pytest.mark.parametrize("skew_s", [-100.0, 0.0, 100.0])
@pytest.mark.parametrize("delay_s", [0.0, 0.01])
@pytest.mark.parametrize("deadline_s", [float("inf"), 0.02])
def test_ranks_follow_the_one_that_decides(another_house, prompt, skew_s, delay_s, deadline_s):
    """One rank's disk hangs; the others' brings all. All commit what the first decided."""

    async def scenario():
        async with AsyncExitStack() as stack, asyncio.timeout(10):
            leader = await stack.enter_async_context(another_house())
            others = [
                await stack.enter_async_context(another_house(clock=Skewed(k * skew_s)))
                for k in (1, 2)
            ]
            loads, told = {}, []

            def leads(_, proposal: Proposal):
                told.append(proposal)
                for other in others:
                    asyncio.get_running_loop().call_later(delay_s, loads[other].cut, proposal.pages)
                return proposal.pages

            leader.orchestrator.decider.consult(leads)
            for other in others:
                other.orchestrator.decider.consult(lambda *_: None)
            for it in (leader, *others):
                await on_tier(it, prompt(6), Tier.DISK)
                teach(it, FAST)
                nearly_over(it, is_so=False)
                it.valve.is_shut = True
            for it in (*others, leader):
                loads[it] = await it.begin(prompt(6), start_s=0.0, deadline_s=deadline_s)
                stack.callback(loads[it].close)
            leader.valve.flow_one()
            loaded = await loads[leader]
            for other in others:
                assert not loads[other].done
                other.valve.open()
            await asyncio.sleep(2 * delay_s)
            committed = loads[leader].commit()
            pages = loaded.pages
            assert 1 <= pages < 6
            assert committed == range(8 * pages)
            for other in others:
                assert loads[other].commit(pages) == committed
                assert (await loads[other]).pages >= pages  # all, if it was done before it heard
                assert loads[other].recompute == loads[leader].recompute
            assert len(told) == 1

    asyncio.run(scenario())
