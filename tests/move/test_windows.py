# SPDX-License-Identifier: Apache-2.0
"""Loads that are planned together, at once where nothing is busy, and not at all where it fails."""

import asyncio
import logging

import pytest

from bodocache.clock import VirtualClock
from bodocache.config import CacheConfig, ConfigError, parse
from bodocache.move.windows import RESTS, Unplanned
from bodocache.pages import Tier


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

    def counting(demands):
        sizes.append(len(demands))
        return plan(demands)

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

            def sleeps(demands):
                clock.advance(0.1)
                return plan(demands)

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
