# SPDX-License-Identifier: Apache-2.0
"""What is said with requests: times to keep, priorities, ends, and chances that are counted."""

import asyncio
import random

import numpy as np
import pytest

from bodocache.clock import VirtualClock
from bodocache.config import HintsConfig
from bodocache.errors import HintError
from bodocache.hints import Pin, Retain, Reuse, Session, Span, TokenRange
from bodocache.pages import Tier
from bodocache.plan.records import Feature
from bodocache.replay import payload

NO_DISK = {"device": 8, "host": 8, "disk": 0}


def records_of(it, match):
    return it.residency.table.records[it.residency.index.find(match.keys)]


def test_pages_said_to_be_kept_stay_until_their_time(house, prompt):
    async def scenario():
        clock = VirtualClock()
        async with house(**NO_DISK, clock=clock) as it:
            await it.serve(prompt(4), reuse=Reuse(keep_s=60.0))
            await it.crowd_out(prompt)
            assert await it.pages_of(prompt(4)) == 4
            clock.advance(61.0)
            await it.crowd_out(prompt)
            assert await it.pages_of(prompt(4)) == 0

    asyncio.run(scenario())


def test_each_range_is_kept_for_its_own_time_with_what_leads_to_it(house, prompt):
    async def scenario():
        clock = VirtualClock()
        async with house(device=16, host=16, disk=0, clock=clock) as it:
            ranges = (TokenRange(0, 8, keep_s=60.0), TokenRange(16, 24, keep_s=10.0))
            await it.serve(prompt(4), reuse=Reuse(ranges=ranges))
            match = await it.cache.match(prompt(4))
            assert records_of(it, match)["holds"][:, Tier.HOST].tolist() == [1, 1, 1, 0]
            clock.advance(10.0)
            assert it.cache.stats().hints.held_pages == {0: 1}
            assert records_of(it, match)["holds"][:, Tier.HOST].tolist() == [1, 0, 0, 0]

    asyncio.run(scenario())


def test_pages_that_every_request_keeps_are_charged_once(house, prompt):
    async def scenario():
        async with house(device=32, host=16, disk=0, clock=VirtualClock()) as it:
            said = Reuse(ranges=(TokenRange(0, 16, keep_s=60.0),))
            for of in range(4):
                tokens = np.concatenate((prompt(2), prompt(1, of=of + 1)))
                await it.serve(tokens, reuse=said, session=str(of))
            assert it.cache.stats().hints.held_pages == {0: 2}

    asyncio.run(scenario())


def test_what_a_store_says_takes_the_place_of_what_the_match_said(house, prompt):
    async def scenario():
        async with house() as it:
            match = await it.cache.match(prompt(2), tenant=1, reuse=Reuse(keep_s=60.0))
            slots = it.slots(2)
            payload.fill(it.words, slots, payload.seeds(match.keys))
            async with it.cache.store(match, slots, tenant=2, session="s", reuse=Reuse()):
                pass
            assert it.cache.stats().hints.held_pages == {}
            assert records_of(it, match)["tenant"].tolist() == [2, 2]
            (outcome,) = await it.cache.hint([Retain(Session("s", 2), 1.0)])
            assert outcome.pages == 2

    asyncio.run(scenario())


@pytest.mark.parametrize(("first", "second"), [(20, 50), (35, 40), (0, 35)])
def test_pages_of_lower_priority_go_first(house, prompt, first, second):
    async def scenario():
        async with house(**NO_DISK) as it:
            await it.serve(prompt(3), reuse=Reuse(priority=second))
            await it.serve(prompt(3, of=1), reuse=Reuse(priority=first))
            await it.serve(prompt(3, of=2))
            assert await it.pages_of(prompt(3)) == 3
            assert await it.pages_of(prompt(3, of=1)) < 3

    asyncio.run(scenario())


def test_a_priority_ends_after_its_time(house, prompt):
    async def scenario():
        clock = VirtualClock()
        async with house(clock=clock) as it:
            said = (TokenRange(0, 8, 75, 10.0), TokenRange(16, None, 15, 20.0))
            await it.serve(prompt(3), reuse=Reuse(ranges=said))
            match = await it.cache.match(prompt(3))
            assert records_of(it, match)["rank"].tolist() == [4.0, 0.0, -2.0]
            clock.advance(10.0)
            it.cache.stats()
            assert records_of(it, match)["rank"].tolist() == [0.0, 0.0, -2.0]
            clock.advance(10.0)
            it.cache.stats()
            assert records_of(it, match)["rank"].tolist() == [0.0, 0.0, 0.0]

    asyncio.run(scenario())


def test_a_priority_beyond_the_tenants_part_is_not_given(house, prompt):
    async def scenario():
        async with house(device=12, host=8, disk=0) as it:
            await it.serve(prompt(6), reuse=Reuse(priority=100))
            match = await it.cache.match(prompt(6))
            assert (records_of(it, match)["rank"] > 0).tolist() == [True] * 4 + [False] * 2

    asyncio.run(scenario())


def test_a_low_priority_lowers_no_page_that_others_use(house, prompt):
    async def scenario():
        async with house() as it:
            both = np.concatenate((prompt(2), prompt(2, of=1)))
            await it.serve(prompt(2), session="t")
            await it.serve(both, session="s", reuse=Reuse(priority=0))
            match = await it.cache.match(both)
            assert (records_of(it, match)["rank"] < 0).tolist() == [False] * 2 + [True] * 2

    asyncio.run(scenario())


@pytest.mark.parametrize("said", [Reuse(end_of_conversation=True), Reuse(probability=0.0)])
def test_pages_of_an_ended_conversation_go_first_but_not_what_others_use(house, prompt, said):
    async def scenario():
        async with house(device=10, host=10, disk=0) as it:
            both = np.concatenate((prompt(2), prompt(3, of=1)))
            await it.serve(prompt(2), session="t")
            for _ in range(3):
                await it.serve(both, session="s")
            await it.serve(prompt(3, of=2), session="u")
            await it.serve(both, session="s", reuse=said)
            await it.serve(prompt(4, of=3))
            assert await it.pages_of(both) < 5
            assert await it.pages_of(prompt(2)) == 2
            assert await it.pages_of(prompt(3, of=2)) == 3

    asyncio.run(scenario())


def test_an_ended_conversation_is_not_written_to_disk(house, prompt):
    async def scenario():
        async with house(admit=True) as it:
            it.residency.policy["load_latency_s"] = it.residency.policy["write_s_per_byte"] = 0.0
            await it.serve(prompt(3), reuse=Reuse(end_of_conversation=True))
            await it.serve(prompt(3, of=1))
            assert (await it.cache.match(prompt(3))).tiers.tolist() == [Tier.DEVICE] * 3
            assert it.cache.stats().traffic.tiers[Tier.DISK].pages == 3

    asyncio.run(scenario())


def test_a_tenant_whose_ends_are_wrong_is_not_heeded_any_more(house, prompt):
    async def scenario():
        clock = VirtualClock()
        async with house(clock=clock) as it:
            for _ in range(6):
                await it.serve(prompt(2), tenant=1, reuse=Reuse(end_of_conversation=True))
                clock.advance(700.0 / 6)
            for _ in range(6):
                clock.advance(110.0)
                await it.serve(prompt(2), tenant=1, reuse=Reuse(end_of_conversation=True))
            match = await it.cache.match(prompt(2))
            assert (records_of(it, match)["forecast"] == 0.0).all()
            told = it.cache.stats().hints.reliability[1]
            assert (told.outcomes > 3, told.base_rate > 0.5) == (True, True)

    asyncio.run(scenario())


async def converse(it, prompt, clock, say, *, requests=120, seed=3):
    """Conversations of one or more turns; ``say(goes_on)`` is told with each request."""
    chance, turns, hits = random.Random(seed), {}, 0
    for number in range(requests):
        goes_on = [of for of, more in turns.items() if more]
        of = chance.choice(goes_on) if goes_on and chance.random() < 0.5 else number + 100
        more = chance.random() < 0.4
        turns[of] = more
        hits += await it.serve(prompt(2, of=of), tenant=1, **say(more))
        clock.advance(chance.expovariate(1 / 20.0))
    clock.advance(700.0)
    return hits


def said_right(goes_on):
    return {"reuse": Reuse(probability=0.9 if goes_on else 0.1)}


@pytest.mark.parametrize("learns", [True, False])
def test_right_chances_are_found_out_and_then_count(house, prompt, learns):
    async def scenario():
        clock = VirtualClock()
        async with house(device=16, host=16, disk=0, clock=clock) as it:
            if not learns:
                it.residency.policy["features_off"] = Feature.REUSE
            await converse(it, prompt, clock, said_right)
            told = it.cache.stats().hints.reliability[1]
            assert told.outcomes == 120
            assert told.weight > 0.9
            await it.serve(prompt(2), tenant=1, reuse=Reuse(probability=0.1))
            await it.serve(prompt(2, of=1), tenant=1, reuse=Reuse(probability=0.9))
            low, high = [
                records_of(it, await it.cache.match(prompt(2, of=of)))["forecast"][0]
                for of in (0, 1)
            ]
            if learns:  # from the chance itself: its odds would be the same news twice
                assert low == high == 0.0
            else:
                assert low < -1.0 < 0.5 < high

    asyncio.run(scenario())


def test_right_chances_are_worth_hits(house, prompt):
    async def hits_with(say):
        clock = VirtualClock()
        async with house(device=12, host=12, disk=0, clock=clock) as it:
            await converse(it, prompt, clock, say, requests=150, seed=1)
            return await converse(it, prompt, clock, say, requests=250, seed=2)

    async def scenario():
        with_hints, without = await hits_with(said_right), await hits_with(lambda _: {})
        assert with_hints > 1.05 * without

    asyncio.run(scenario())


@pytest.mark.parametrize("seed", range(3))
def test_useless_chances_change_no_hit(house, prompt, seed):
    async def hits_with(say):
        clock = VirtualClock()
        async with house(device=12, host=12, disk=0, clock=clock) as it:
            return await converse(it, prompt, clock, say, requests=150, seed=seed)

    async def scenario():
        noise = random.Random(seed)
        useless = await hits_with(lambda _: {"reuse": Reuse(probability=noise.random())})
        assert useless == await hits_with(lambda _: {})

    asyncio.run(scenario())


def test_asking_again_for_the_same_match_is_no_next_use(house, prompt):
    async def scenario():
        clock = VirtualClock()
        async with house(clock=clock) as it:
            match = await it.cache.match(prompt(2), reuse=Reuse(probability=0.9))
            store = await it.compute(match)
            await store
            store.close()
            with it.cache.load(match) as load:
                await load
            clock.advance(601.0)
            told = it.cache.stats().hints.reliability[0]
            assert (told.outcomes, told.base_rate) == (1, pytest.approx(1.0 / 5.0))

    asyncio.run(scenario())


async def serve_from_host(it, tokens, **said):
    """As :func:`serve`, for an engine with slots of its own: the host alone decides."""
    match = await it.cache.match(tokens, **said)
    slots = it.slots(len(match.keys))
    with it.cache.load(match, slots[: match.pages]) as load:
        loaded = await load
        assert it.wrong_bytes(match.keys, loaded) == 0
    new = slots[loaded.pages :]
    payload.fill(it.words, new, payload.seeds(match.keys)[loaded.pages :])
    async with it.cache.store(match, new):
        pass
    it.engine_pool.release(slots)
    return loaded.pages


async def visits(it, prompt, wild, seed):
    """Pages tenant 2 finds again beside tenant 1, whose prompts are new and who says things."""
    chance, hits = random.Random(seed), 0
    for new in range(60):
        it.clock.advance(1.0)
        of = chance.randrange(6)
        hits += await serve_from_host(it, prompt(2, of=of), tenant=2)
        said = wild(new) if wild else {}
        tokens = prompt(chance.randrange(1, 5), of=100 + new)
        await serve_from_host(it, tokens, tenant=1, **said)
        if wild:
            span = Span(tokens, tenant=1)
            await it.cache.hint([Retain(span, 3600.0), Pin(span)])
    return hits


def shout(number):
    """Everything at once."""
    said = Reuse(probability=1.0, expected_s=0.0, priority=100, keep_s=3600.0)
    return {"reuse": said, "session": str(number)}


@pytest.mark.parametrize("pages", [12, 16, 20])
def test_a_tenant_that_shouts_takes_no_more_than_its_part(house, prompt, pages):
    """Another's hits are those it has in a tier smaller by that part, nobody shouting, or more.

    Of four runs together: what is learned is not the same in both tiers, a hit more or less.
    """

    async def hits_in(host, wild, seed):
        tiers = {"device": 8, "host": host, "disk": 0, "borrowed": True}
        limits = HintsConfig(max_held_share=0.5)
        async with house(**tiers, hints=limits, clock=VirtualClock()) as it:
            await serve_from_host(it, prompt(1, of=99), tenant=2)
            return await visits(it, prompt, wild, seed)

    async def hits(host, wild):
        return sum([await hits_in(host, wild, seed) for seed in range(4)])

    async def scenario():
        part = pages // 2 // 2
        assert await hits(pages, shout) >= 0.98 * await hits(pages - part, None)

    asyncio.run(scenario())


def test_a_new_tenant_makes_the_parts_smaller(house, prompt):
    async def scenario():
        async with house(device=16, host=16, disk=0) as it:
            for of in range(2):
                await it.serve(prompt(4, of=of), session=str(of), tenant=1)
            soon, late = Retain(Session("0", 1), 5.0), Retain(Session("1", 1), 9.0)
            assert [it_.pages for it_ in await it.cache.hint([soon, late])] == [4, 4]
            await it.serve(prompt(1, of=9), tenant=2)
            assert it.cache.stats().hints.held_pages == {1: 4}
            match = await it.cache.match(prompt(4, of=1))
            assert (records_of(it, match)["holds"][:, Tier.HOST] == 1).all()

    asyncio.run(scenario())


def test_a_hint_in_the_wrong_form_stores_nothing(house, prompt):
    async def scenario():
        async with house() as it:
            match = await it.cache.match(prompt(2))
            slots = it.slots(2)
            with pytest.raises(HintError):
                it.cache.store(match, slots, reuse="soon")
            it.cache.release(slots)
            assert await it.pages_of(prompt(2)) == 0

    asyncio.run(scenario())
