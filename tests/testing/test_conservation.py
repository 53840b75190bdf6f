# SPDX-License-Identifier: Apache-2.0
"""The check itself: it sees what it is for."""

import numpy as np
import pytest

from bodocache.cache import warm
from bodocache.clock import VirtualClock
from bodocache.pages import Tier
from bodocache.replay.simulate.profile import load_profile
from bodocache.replay.simulate.world import World, contents, engine_keys
from bodocache.testing import run_virtual
from bodocache.testing.conservation import check_conservation

warm()

NOBODYS = np.empty(0, np.int64)


def look(spoil):
    """Store three pages, spoil the books, and check them."""
    clock = VirtualClock()

    async def scenario():
        world = World.build(load_profile("h100-llama-3.1-8b"), clock, 0, wrong_by=0.0)
        async with await world.open() as cache:
            residency = cache._orchestrator.residency
            match = await cache.match_engine_keys(engine_keys([0, 1, 2]))
            slots = cache.acquire(3)
            check_conservation(residency, slots)
            world.device.words[slots] = contents(match.keys)
            async with cache.store(match, slots):
                pass
            check_conservation(residency, NOBODYS)
            spoil(cache, residency)
            check_conservation(residency, NOBODYS)

    run_virtual(scenario(), clock)


def test_a_slot_that_an_engine_forgot_is_seen():
    with pytest.raises(AssertionError, match="taken by nobody"):
        look(lambda cache, _: cache.acquire(1))


def test_a_page_in_a_free_slot_is_seen():
    def spoil(cache, residency):
        rows = np.flatnonzero(residency.table.records["tiers"] & Tier.HOST.bit)
        residency.host.release(residency.slots(rows[:1], Tier.HOST))

    with pytest.raises(AssertionError, match="lies in a free slot"):
        look(spoil)


def test_two_pages_in_one_slot_are_seen():
    def spoil(cache, residency):
        rows = np.flatnonzero(residency.table.records["tiers"] & Tier.HOST.bit)
        slot = residency.table.records["host_slot"][rows[0]]
        residency.table.records["host_slot"][rows[1]] = slot

    with pytest.raises(AssertionError, match="two pages in one slot"):
        look(spoil)
