# SPDX-License-Identifier: Apache-2.0
"""Pages that another request computes: a follower waits for them where that saves time."""

import asyncio
import math

import numpy as np
import pytest

from bodocache.errors import ConfigError
from bodocache.move.queued import Queued, described
from bodocache.pages import Tier
from bodocache.plan.advise import QueueRules, Why

PAGES = 4
PAGE_RECOMPUTE_S = 8 * 20e-6  # as the configuration says by default


def make_slow(it, page_s):
    """Let the model believe that a page takes ``page_s`` to compute."""
    it.orchestrator._recompute_s = lambda pages: pages * page_s


async def following(it, match, **options):
    """A follower that has begun to wait, or has its answer."""
    task = asyncio.create_task(it.cache.follow(match, **options))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


def test_a_follower_waits_for_pages_that_another_computes(house, prompt):
    async def scenario():
        async with house() as it:
            make_slow(it, 10.0)
            await it.put(prompt(1))
            mine = await it.cache.match(prompt(PAGES))
            it.cache.announce(mine, ready_s=5.0)
            match = await it.cache.match(prompt(PAGES))
            assert (match.pages, match.announced) == (1, PAGES - 1)
            assert 4.0 < match.announced_s <= 5.0
            follower = await following(it, match)
            assert not follower.done()
            async with await it.compute(mine, have=1):
                pass
            found = await follower
            assert (found.pages, found.announced, found.announced_s) == (PAGES, 0, 0.0)
            assert (await it.get(prompt(PAGES))).pages == PAGES

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("page_s", "ready_s", "deadline_s"),
    [(1.0, 10.0, math.inf), (10.0, 5.0, 1.0), (PAGE_RECOMPUTE_S, 1.0, math.inf)],
)
def test_what_is_computed_sooner_is_not_waited_for(house, prompt, page_s, ready_s, deadline_s):
    async def scenario():
        async with house() as it:
            make_slow(it, page_s)
            match = await it.cache.match(prompt(PAGES))
            with it.cache.announce(match, ready_s=ready_s):
                match = await it.cache.match(prompt(PAGES))
                assert match.announced == PAGES
                follower = await following(it, match, deadline_s=deadline_s)
                assert follower.done()
                assert (await follower).pages == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("ends", ["close", "limit"])
def test_an_announcer_that_gives_up_or_dies_holds_nobody_up(house, prompt, ends):
    async def scenario():
        async with house() as it:
            make_slow(it, 100.0)
            match = await it.cache.match(prompt(PAGES))
            limit_s = 0.01 if ends == "limit" else 50.0
            announcement = it.cache.announce(match, ready_s=1.0, limit_s=limit_s)
            match = await it.cache.match(prompt(PAGES))
            follower = await following(it, match)
            assert not follower.done()
            if ends == "close":
                announcement.close()
                announcement.close()
            found = await asyncio.wait_for(follower, 5)
            assert (found.pages, found.announced) == (0, 0)

    asyncio.run(scenario())


def test_an_announcement_that_is_overdue_is_waited_for_no_longer_than_computing_takes(
    house, prompt
):
    async def scenario():
        async with house() as it:
            make_slow(it, 0.01)
            match = await it.cache.match(prompt(PAGES))
            with it.cache.announce(match, ready_s=0.001, limit_s=100):
                match = await it.cache.match(prompt(PAGES))
                found = await asyncio.wait_for(it.cache.follow(match), 5)
                assert (found.pages, found.announced) == (0, PAGES)

    asyncio.run(scenario())


def test_of_two_announcements_the_sooner_counts_and_the_other_stays(house, prompt):
    async def scenario():
        async with house() as it:
            match = await it.cache.match(prompt(PAGES))
            late = it.cache.announce(match, ready_s=9.0)
            with it.cache.announce(await it.cache.match(prompt(2)), ready_s=3.0):
                assert (await it.cache.match(prompt(2))).announced_s <= 3.0
                assert (await it.cache.match(prompt(PAGES))).announced_s > 8.0
            late.close()
            assert (await it.cache.match(prompt(PAGES))).announced == 0

    asyncio.run(scenario())


def test_a_rotation_ends_what_a_follower_waits_for(house, prompt):
    async def scenario():
        async with house() as it:
            match = await it.cache.match(prompt(PAGES))
            it.cache.rotate("w2")
            it.cache.announce(match, ready_s=1.0)  # of weights that nobody asks for any more
            assert (await it.cache.match(prompt(PAGES))).announced == 0

    asyncio.run(scenario())


def test_closing_the_cache_ends_the_wait(house, prompt):
    async def scenario():
        async with house() as it:
            make_slow(it, 100.0)
            it.cache.announce(await it.cache.match(prompt(PAGES)), ready_s=1.0)
            follower = await following(it, await it.cache.match(prompt(PAGES)))
            await it.cache.close()
            assert (await asyncio.wait_for(follower, 5)).pages == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "said", [{"ready_s": -1}, {"ready_s": math.inf}, {"ready_s": 1, "limit_s": -1}]
)
def test_seconds_that_cannot_be_are_refused(house, prompt, said):
    async def scenario():
        async with house() as it:
            match = await it.cache.match(prompt(1))
            with pytest.raises(ConfigError, match="announce: "):
                it.cache.announce(match, **said)

    asyncio.run(scenario())


def test_a_queue_is_advised_by_what_its_matches_say(house, prompt):
    async def scenario():
        async with house() as it:
            await it.put(prompt(1))
            twice = [await it.cache.match(prompt(PAGES)) for _ in range(2)]
            other = await it.cache.match(prompt(PAGES, of=1), tenant=3)
            queue = [Queued(one, n, 0.01) for n, one in enumerate((*twice, other))]
            advice = it.cache.advise(queue, QueueRules(step_s=1))
            steps = {one.request: (one.step, one.why) for one in advice}
            assert steps[0] == (0, Why.TURN)
            assert steps[1] == (1, Why.DEFERRED)  # its pages are computed by the first
            assert steps[2][0] == 0

    asyncio.run(scenario())


def test_only_what_two_prompts_have_in_common_is_waited_for(house, prompt):
    async def scenario():
        async with house() as it:
            whole = prompt(PAGES)
            half = np.concatenate([whole[: len(whole) // 2], prompt(2, of=5)])
            queue = [Queued(await it.cache.match(one), 0, 0.4) for one in (whole, half)]
            first, second = described(queue)
            assert first.prefix == second.prefix
            assert (first.compute_s, first.delayed_s) == (0.0, 0.4)
            assert (second.compute_s, second.delayed_s) == pytest.approx((0.2, 0.2))
            await it.put(whole)
            it.leave_on(Tier.HOST)
            stored = described([Queued(await it.cache.match(whole), 0, 0.0)])[0]
            assert (stored.prefix, stored.delayed_s) == (None, 0.0)

    asyncio.run(scenario())
