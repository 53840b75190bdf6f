# SPDX-License-Identifier: Apache-2.0
"""Loads that are planned together, at once where nothing is busy, and not at all where it fails."""

import asyncio
import logging
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from bodocache.clock import VirtualClock
from bodocache.config import CacheConfig, ConfigError, TenantsConfig, parse
from bodocache.move.choice import Why
from bodocache.move.rate import BLOCK_CHUNKS, CLASSES_NBYTES, LinkRate
from bodocache.move.windows import RESTS, Unplanned
from bodocache.pages import Reason, Tier
from bodocache.plan.records import Fate, Purpose

PAGE_NBYTES = 4096  # of the house
PAGE_RECOMPUTE_S = 8 * 20e-6  # as the configuration says by default


async def on_disk(it, prompts):
    for one in prompts:
        await it.put(one)
    it.leave_on(Tier.DISK)


def pending():
    """Timers of the running loop that were not cancelled."""
    return [it for it in asyncio.get_running_loop()._scheduled if not it.cancelled()]


def plans(it, monkeypatch):
    """How many pages each window planned, from now on."""
    sizes, plan = [], it.orchestrator.windows._plan

    def counting(asked):
        sizes.append(len(asked.demands))
        return plan(asked)

    monkeypatch.setattr(it.orchestrator.windows, "_plan", counting)
    return sizes


def test_a_load_that_comes_alone_begins_at_once_and_an_idle_cache_has_no_timer(
    house, prompt, monkeypatch
):
    async def scenario():
        async with house() as it:
            await on_disk(it, [prompt(4)])
            sizes = plans(it, monkeypatch)
            it.valve.is_shut = True
            with await it.begin(prompt(4)) as load:
                assert (sizes, len(it.valve.in_flight)) == ([4], 4)  # before the loop's next turn
                assert not pending()
                it.valve.open()
                await load
            await load.released
            await it.get(prompt(4), deadline_s=5.0)  # one that is watched
            assert not pending()

    asyncio.run(scenario())


@pytest.mark.parametrize("ends", ["turn", "window"])
def test_what_comes_while_the_link_is_busy_is_planned_together(house, prompt, monkeypatch, ends):
    async def scenario():
        async with house(host=16) as it:
            prompts = [prompt(2, of=of) for of in range(3)]
            await on_disk(it, prompts)
            sizes = plans(it, monkeypatch)
            with it.busy_disk():
                loads = [await it.begin(one) for one in prompts]
                assert sizes == []
                if ends == "window":
                    (timer,) = pending()
                    await asyncio.sleep(0)
                    timer._run()
                    assert sizes == [6]
            assert sizes == [6]
            assert [(await load).pages for load in loads] == [2, 2, 2]
            for load in loads:
                load.close()
                await load.released
            assert not pending()

    asyncio.run(scenario())


def test_a_planner_that_raises_is_done_without_and_counted(house, prompt, monkeypatch, caplog):
    async def scenario():
        async with house() as it:
            await on_disk(it, [prompt(3), prompt(3, of=1)])

            def fails(_):
                raise ValueError("no plan")

            monkeypatch.setattr(it.orchestrator.windows, "_plan", fails)
            for of in (0, 1):
                assert (await it.get(prompt(3, of=of))).pages == 3  # every byte is compared
            assert it.cache.stats().traffic.unplanned[Unplanned.FAILED] == 2

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert [it.message for it in caplog.records if "planner" in it.message] == [
        "planner: a window was failed; loads go by their deadlines alone (said once)"
    ]


def test_after_a_window_that_took_too_long_nothing_is_planned_for_a_while(
    house, prompt, monkeypatch
):
    async def scenario():
        clock = VirtualClock()
        async with house(clock=clock, host=16) as it:
            await on_disk(it, [prompt(2, of=of) for of in range(4)])
            windows, plan = it.orchestrator.windows, it.orchestrator.windows._plan

            def sleeps(asked):
                clock.advance(0.1)
                return plan(asked)

            monkeypatch.setattr(windows, "_plan", sleeps)
            assert (await it.get(prompt(2))).pages == 2
            assert windows.unplanned[Unplanned.OVERLONG] == 1
            assert (await it.get(prompt(2, of=1))).pages == 2
            assert windows.unplanned[Unplanned.RESTING] == 1
            clock.advance(0.1 * RESTS)
            monkeypatch.setattr(windows, "_plan", plan)
            assert (await it.get(prompt(2, of=2))).pages == 2
            assert (
                windows.unplanned[Unplanned.OVERLONG],
                windows.unplanned[Unplanned.RESTING],
            ) == (1, 1)

    asyncio.run(scenario())


def test_a_window_of_another_length_is_refused():
    values = {"identity": {"model": "m", "dtype": "d"}, "tiers": {"host": {"capacity_bytes": 99}}}
    with pytest.raises(ConfigError, match=r"planner.window_s = 0.02"):
        parse(CacheConfig, {**values, "planner": {"window_s": 0.02}})


# What a window is told


def taught(it, page_s):
    """The disk is known to read a page in ``page_s``."""
    link, rate = it.orchestrator._links["disk->device"], PAGE_NBYTES / page_s
    chunks = 2 * BLOCK_CHUNKS
    now_s = it.clock.now_s() - chunks * (page_s + sum(CLASSES_NBYTES) / rate)
    link.rate = LinkRate()
    link.rate.resume(now_s)
    for nbytes in (PAGE_NBYTES, *CLASSES_NBYTES):
        for _ in range(chunks):
            now_s += nbytes / rate
            link.rate.add(now_s, nbytes)
    link.rate.resume(it.clock.now_s())


def asked_of(it, monkeypatch):
    """What each window was asked, and what it planned, from now on."""
    windows, plan = [], it.orchestrator.windows._plan

    def noting(asked):
        made = plan(asked)
        windows.append((asked, made._replace(demands=made.demands.copy())))
        return made

    monkeypatch.setattr(it.orchestrator.windows, "_plan", noting)
    return windows


def frames_backwards(backend, monkeypatch):
    """What is deeper in a prompt lies before it on disk, so that it is read first."""
    reserve = backend.reserve
    monkeypatch.setattr(
        backend, "reserve", lambda count, *, after: reserve(count, after=after)[::-1]
    )


@contextmanager
def nothing_has_its_turn(it):
    """Inside; nothing is ahead of anybody either."""
    queue = it.orchestrator._links["disk->device"].queue
    queue._is_pumping = True
    yield
    queue._is_pumping = False
    queue._pump()


def waiting(it):
    """What the window that is open has collected."""
    return list(it.orchestrator.windows._parts)


@pytest.mark.parametrize("rate", [None, 2.0 * PAGE_NBYTES])
def test_what_credits_pay_for_is_read_first(house, prompt, monkeypatch, rate):
    async def scenario():
        limits = {"bytes_per_s": {"7": rate}} if rate else {}
        tenants = TenantsConfig(**limits, burst_s=1.0)  # two pages are put by
        async with house(clock=VirtualClock(), tenants=tenants, host=16) as it:
            frames_backwards(it.backend, monkeypatch)
            await on_disk(it, [prompt(6)])
            windows = asked_of(it, monkeypatch)
            match = await it.cache.match(prompt(6), tenant=7)
            with it.busy_disk(), it.cache.load(match) as load:
                (part,) = waiting(it)
                it.orchestrator.windows.close()
                depths = it.residency.table.records["depth"][part.rows].tolist()
            ((asked, plan),) = windows
            if rate:
                assert depths == [1, 0, 2, 3, 4, 5]
                assert (plan.fates == Fate.DEFERRED).sum() == 4
                assert it.orchestrator._credits.spent(7)[Purpose.READ] == 0  # chunks are charged
            else:
                assert depths == [5, 4, 3, 2, 1, 0]
                assert len(asked.tenants) == 0
            await load.released

    asyncio.run(scenario())


@pytest.mark.parametrize("is_told", [True, False])
def test_a_load_that_others_make_late_is_cut_before_its_first_byte(
    house, prompt, monkeypatch, is_told
):
    async def scenario():
        async with house(clock=VirtualClock(), host=24, device=24) as it:
            urgent, late = prompt(12, of=1), prompt(4)
            await on_disk(it, [late, urgent])
            taught(it, 0.8 * PAGE_RECOMPUTE_S)
            monkeypatch.setattr(it.orchestrator.decider, "_look", lambda: None)  # windows alone
            if not is_told:
                nothing = replace(it.orchestrator.windows._known, effort=None)
                monkeypatch.setattr(it.orchestrator.windows, "_known", nothing)
            it.valve.is_shut = True
            with nothing_has_its_turn(it):
                second = await it.begin(late, start_s=1e-3)
                first = await it.begin(urgent, start_s=0.0, n_waiting=9.0)
                assert (len(waiting(it)), second.wanted, first.wanted) == (2, 4, 12)
                it.orchestrator.windows.close()
            assert (second.wanted, first.wanted) == (0 if is_told else 4, 12)
            cuts = it.cache.stats().traffic.cuts
            assert cuts[Why.BEFORE] == int(is_told)
            if is_told:
                assert (await second).reasons.tolist() == [Reason.CUT] * 4
            it.valve.open()
            for load in (first, second):
                load.close()
                await load.released

    asyncio.run(scenario())


def test_a_window_goes_by_when_loads_are_needed(house, prompt, monkeypatch):
    async def scenario():
        async with house(clock=VirtualClock(), host=16) as it:
            prompts = [prompt(2, of=of) for of in range(3)]
            await on_disk(it, prompts)
            windows = asked_of(it, monkeypatch)
            with it.busy_disk():
                starts_s = (0.9, None, 0.1)  # by its patience, a second, where nobody said
                loads = [
                    await it.begin(one, start_s=start_s)
                    for one, start_s in zip(prompts, starts_s, strict=True)
                ]
                it.orchestrator.windows.close()
            ((asked, plan),) = windows
            assert asked.demands["deadline_s"].tolist() == [0.9] * 2 + [1.0] * 2 + [0.1] * 2
            assert plan.demands.tolist() == [4, 5, 0, 1, 2, 3]
            for load in loads:
                load.close()
                await load.released

    asyncio.run(scenario())


def test_a_window_that_cannot_be_described_goes_by_deadlines_and_is_counted(
    house, prompt, monkeypatch
):
    async def scenario():
        tenants = TenantsConfig(bytes_per_s={"7": 1e9})
        async with house(host=16, tenants=tenants) as it:
            prompts = [prompt(2, of=of) for of in range(2)]
            await on_disk(it, prompts)
            taught(it, 1e-6)
            effort = it.orchestrator.decider.effort
            monkeypatch.setattr(effort, "_learned", np.array([np.nan, np.nan]))
            with it.busy_disk():
                loads = [await it.begin(one) for one in prompts]
                for load in loads:  # as if they could be cut
                    load.terms = replace(load.terms, start_s=it.clock.now_s())
            assert [(await load).pages for load in loads] == [2, 2]
            assert it.cache.stats().traffic.unplanned[Unplanned.FAILED] == 1
            for load in loads:
                load.close()
                await load.released

    asyncio.run(scenario())
