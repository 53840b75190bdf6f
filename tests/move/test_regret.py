# SPDX-License-Identifier: Apache-2.0
import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache import jit
from bodocache.move import regret
from bodocache.move.regret import Accesses
from bodocache.pages import KEY_NBYTES, Reason, Tier
from bodocache.plan.optimum import min_hits
from bodocache.replay.policy import Policy, Touches, simulate
from bodocache.replay.trace import load_trace

jit.warm()  # here, not in a test: a cold compile is not part of any test's time


def keys_of(pages):
    """A key for each page number, of bits as evenly spread as a hash's."""
    generator = np.random.default_rng(7)
    table = generator.integers(0, 256, (max(pages, default=0) + 1, KEY_NBYTES), np.uint8)
    return table[np.array(pages, np.int64)]


def recorded(accesses, pages, offsets, hits, tier=Tier.HOST):
    """Record requests whose leading ``hits`` lie in ``tier``."""
    keys = keys_of(pages.tolist())
    for begin, end, found in zip(offsets[:-1], offsets[1:], hits, strict=True):
        accesses.record(keys[begin:end], np.full(found, tier, np.uint8))
    return accesses.regret()


def repeats_hit(pages, offsets, hits):
    """Touches that hit, of pages touched before."""
    seen, count = set(), 0
    for begin, end, found in zip(offsets[:-1], offsets[1:], hits, strict=True):
        own = pages[begin:end].tolist()
        count += sum(page in seen for page in own[:found])
        seen.update(own)
    return count


@st.composite
def requests(draw):
    """Paths down a random tree, and how many leading pages of each were found."""
    parents = [draw(st.integers(-1, row - 1)) for row in range(draw(st.integers(1, 12)))]
    chains = []
    for row, parent in enumerate(parents):
        chains.append([*(chains[parent] if parent >= 0 else []), row])
    ends = draw(st.lists(st.integers(0, len(parents) - 1), min_size=1, max_size=20))
    paths = [chains[end] for end in ends]
    hits = [draw(st.integers(0, len(path))) for path in paths]
    pages = np.array([page for path in paths for page in path], np.int64)
    return pages, np.cumsum([0, *map(len, paths)]), hits, len(parents)


@given(requests(), st.integers(1, 8), st.integers(0, 8))
@settings(max_examples=100, deadline=None)
def test_unsampled_it_is_the_exact_regret(trace, capacity, memory):
    pages, offsets, hits, distinct = trace
    found = recorded(Accesses.open(capacity, memory), pages, offsets, hits)
    assert (found.sample_rate, found.touches, found.requests) == (1, len(pages), len(hits))
    assert found.repeats == len(pages) - len(set(pages.tolist()))
    assert found.all_tiers.hits == found.memory.hits == repeats_hit(pages, offsets, hits)
    for tally, room in ((found.all_tiers, capacity), (found.memory, memory)):
        assert tally.optimum_hits == min_hits(pages, offsets, distinct, room).hits.sum()


def test_what_comes_from_disk_is_no_hit_of_memory():
    pages, offsets = np.array([0, 1, 0, 1]), np.array([0, 2, 4])
    found = recorded(Accesses.open(2, 1), pages, offsets, [0, 2], Tier.DISK)
    assert (found.all_tiers.hits, found.memory.hits) == (2, 0)
    assert (found.all_tiers.optimum_hits, found.memory.optimum_hits) == (2, 1)
    assert (found.all_tiers.regret, found.memory.regret) == (0, 1)


def test_before_anything_was_asked_for_there_is_no_regret():
    found = Accesses.open(10, 5).regret()
    assert (found.requests, found.touches, found.all_tiers.regret) == (0, 0, 0)


def test_the_window_is_bounded_and_begins_with_a_whole_request(monkeypatch):
    monkeypatch.setattr(regret, "WINDOW_TOUCHES", 10)
    accesses = Accesses.open(100, 100)
    nbytes = accesses.ring.nbytes
    offsets = np.arange(0, 301, 3)
    found = recorded(accesses, np.tile(np.arange(6), 50), offsets, [3] * 100)
    assert accesses.ring.nbytes == nbytes
    assert (found.touches, found.requests, found.repeats) == (9, 3, 3)  # the tenth is of a fourth


def test_a_snapshot_does_not_change_afterwards():
    accesses = Accesses.open(10, 10)
    recorded(accesses, np.array([0, 1]), np.array([0, 2]), [0])
    before = accesses.snapshot()
    recorded(accesses, np.array([0, 1]), np.array([0, 2]), [2])
    assert (before.regret().repeats, accesses.regret().repeats) == (0, 2)


@pytest.mark.parametrize("capacity", [2_048, 2_049, 4_096, 100_000])
def test_the_sample_is_half_full_at_least_and_never_more(capacity):
    found = Accesses.open(capacity, 1).regret()
    room = capacity * found.sample_rate
    assert 1_024 <= room <= regret.SAMPLED_PAGES


@pytest.mark.parametrize("capacity", [3_000, 10_000])
def test_sampled_it_is_within_three_points_on_the_conversation_trace(conversation_trace, capacity):
    trace = load_trace(conversation_trace, 6_000)
    touches = Touches(trace.pages, trace.offsets, trace.parent, trace.depth, trace.timestamps_s)
    hits = simulate(Policy.LRU, touches, capacity).hits
    exact = 1 - hits.sum() / simulate(Policy.MIN, touches, capacity).hits.sum()
    found = recorded(Accesses.open(capacity, 0), trace.pages, trace.offsets, hits.tolist())
    assert found.sample_rate < 1
    assert found.all_tiers.regret == pytest.approx(exact, abs=0.03)


def test_a_page_that_every_load_asks_for_counts_by_its_share_sampled_or_not():
    accesses = Accesses.open(4_000, 4_000)  # one page in two
    pages = np.stack((np.zeros(4_000, np.int64), np.arange(1, 4_001)), axis=1).ravel()
    hits = np.ones(4_000, np.int64)
    hits[0] = 0
    found = recorded(accesses, pages, np.arange(0, 8_001, 2), hits.tolist())
    assert found.touches == 4_000
    assert found.all_tiers.hits == pytest.approx(2_000, rel=0.05)
    assert found.all_tiers.regret == pytest.approx(0, abs=0.01)


def test_a_cache_says_how_far_from_the_optimum_it_is(house, prompt):
    async def scenario():
        async with house(device=3, host=3, disk=0) as it:
            for of in (0, 1, 0, 1):
                if not (await it.get(prompt(3, of=of))).pages:
                    await it.put(prompt(3, of=of))
            stats = it.cache.stats()
        found = stats.regret
        assert (found.sample_rate, found.requests, found.repeats) == (1, 4, 6)
        assert found.all_tiers == found.memory
        assert (found.all_tiers.capacity_pages, found.all_tiers.optimum_hits) == (6, 6)
        assert stats.ghost_hits == stats.misses.get(Reason.EVICTED, 0) > 0
        assert found.all_tiers.hits == 6 - stats.ghost_hits

    asyncio.run(scenario())


def test_pages_of_an_engine_are_no_part_of_the_capacity(house):
    async def scenario():
        async with house(device=8, host=5, disk=20, borrowed=True) as it:
            found = it.cache.stats().regret
            assert (found.all_tiers.capacity_pages, found.memory.capacity_pages) == (25, 5)

    asyncio.run(scenario())
