# SPDX-License-Identifier: Apache-2.0
"""Actions on sessions and spans: each one with each outcome, and the races between them."""

import asyncio

import numpy as np
import pytest

from bodocache.clock import VirtualClock
from bodocache.config import HintsConfig
from bodocache.errors import HintError, TierFull
from bodocache.hints import (
    Demote,
    Leave,
    Pin,
    Prefetch,
    Release,
    Retain,
    Reuse,
    Session,
    Span,
    Unpin,
    from_envelope,
    to_envelope,
)
from bodocache.pages import Reason, Tier
from bodocache.testing import Fault, FaultyBackend, Operation

S = Session("s")
HALF = HintsConfig(max_held_share=0.5)


async def hint(it, *actions):
    """What each action was answered with: its status, or status and pages where it has some."""
    outcomes = await it.cache.hint(actions)
    return [(outcome.status.value, outcome.pages) for outcome in outcomes]


async def why(it, action):
    (outcome,) = await it.cache.hint([action])
    return outcome.status.value, outcome.reason


# --- retain and pin


def test_retained_pages_outlive_those_that_others_need_until_their_time(house, prompt):
    async def scenario():
        clock = VirtualClock()
        async with house(device=8, host=8, disk=0, clock=clock) as it:
            await it.serve(prompt(4), session="s")
            assert await hint(it, Retain(S, 60.0)) == [("accepted", 4)]
            await it.crowd_out(prompt)
            assert await it.pages_of(prompt(4)) == 4
            clock.advance(60.0)
            await it.crowd_out(prompt)
            assert await it.pages_of(prompt(4)) == 0

    asyncio.run(scenario())


def test_without_a_hint_the_same_pages_go(house, prompt):
    async def scenario():
        async with house(device=8, host=8, disk=0) as it:
            await it.serve(prompt(4), session="s")
            await it.crowd_out(prompt)
            assert await it.pages_of(prompt(4)) == 0

    asyncio.run(scenario())


def test_what_is_beyond_the_share_is_clipped_from_the_end_and_said(house, prompt):
    async def scenario():
        async with house(device=12, host=10, disk=0) as it:
            await it.serve(prompt(8), session="s")
            assert await hint(it, Retain(S, 60.0)) == [("clipped", 5)]
            status, reason = await why(it, Pin(Session("s"), 60.0))
            assert (status, "part" in reason) == ("clipped", True)
            await it.crowd_out(prompt, pages=5)
            rows = it.residency.leading((await it.cache.match(prompt(8))).keys)
            on_host = it.residency.lies_in(rows, Tier.HOST).tolist()
            assert (on_host[:5], any(on_host[5:])) == ([True] * 5, False)

    asyncio.run(scenario())


def test_a_hold_longer_than_allowed_is_clipped_to_what_is(house, prompt):
    async def scenario():
        async with house(hints=HintsConfig(max_hold_s=10.0)) as it:
            await it.serve(prompt(2), session="s")
            retained, pinned = await it.cache.hint([Retain(S, 60.0), Pin(S)])
            assert (retained.status.value, retained.until_s) == ("clipped", 10.0)
            assert "max_hold_s" in retained.reason
            assert (pinned.status.value, pinned.until_s) == ("accepted", 10.0)

    asyncio.run(scenario())


def test_a_part_that_is_full_defers_until_a_hold_ends(house, prompt):
    async def scenario():
        async with house(device=16, host=8, disk=0, clock=VirtualClock()) as it:
            await it.serve(prompt(4), session="s")
            await it.serve(prompt(4, of=1), session="t")
            assert await hint(it, Retain(S, 60.0)) == [("accepted", 4)]
            (outcome,) = await it.cache.hint([Retain(Session("t"), 90.0)])
            assert (outcome.status.value, outcome.until_s) == ("deferred", 60.0)
            assert await hint(it, Release(S), Retain(Session("t"), 90.0)) == [
                ("accepted", 4),
                ("accepted", 4),
            ]

    asyncio.run(scenario())


def test_nothing_can_be_held_where_nothing_may_be(house, prompt):
    async def scenario():
        async with house(hints=HintsConfig(max_held_share=0.0)) as it:
            await it.serve(prompt(2), session="s")
            status, reason = await why(it, Retain(S, 60.0))
            assert (status, "max_held_share" in reason) == ("rejected", True)

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", [Retain, Pin, Prefetch, Demote, Release, Unpin])
def test_a_session_that_nobody_named_is_missing(house, prompt, kind):
    async def scenario():
        async with house() as it:
            await it.serve(prompt(2), session="s", tenant=1)
            more = (1.0,) if kind is Retain else ()
            for target in (Session("t", 1), Session("s", 2)):
                status, reason = await why(it, kind(target, *more))
                assert (status, "not known" in reason) == ("missing", True)

    asyncio.run(scenario())


def test_a_session_is_forgotten_after_its_time(house, prompt):
    async def scenario():
        clock = VirtualClock()
        async with house(clock=clock, hints=HintsConfig(session_ttl_s=5.0)) as it:
            await it.serve(prompt(2), session="s")
            clock.advance(5.1)
            assert await hint(it, Retain(S, 1.0)) == [("missing", 0)]

    asyncio.run(scenario())


def test_the_least_used_session_is_forgotten_beyond_the_bound(house, prompt):
    async def scenario():
        async with house(hints=HintsConfig(max_sessions=2)) as it:
            for name in "abac":
                await it.serve(prompt(2), session=name)
            asked = [Retain(Session(name), 1.0) for name in "abc"]
            assert [status for status, _ in await hint(it, *asked)] == [
                "accepted",
                "missing",
                "accepted",
            ]
            assert it.cache.stats().hints.sessions == 2

    asyncio.run(scenario())


def test_a_tenant_of_many_sessions_makes_nobody_elses_unknown(house, prompt):
    async def scenario():
        async with house(hints=HintsConfig(max_sessions=4)) as it:
            await it.serve(prompt(2), session="mine", tenant=1)
            for number in range(9):
                await it.serve(prompt(2), session=str(number), tenant=2)
            asked = [Retain(Session("mine", 1), 1.0), Retain(Session("5", 2), 1.0)]
            statuses = [status for status, _ in await hint(it, *asked)]
            assert statuses == ["accepted", "missing"]
            assert it.cache.stats().hints.sessions == 4

    asyncio.run(scenario())


def test_pages_that_were_evicted_are_missing_and_a_part_of_them_clips(house, prompt):
    async def scenario():
        async with house(device=8, host=8, disk=0) as it:
            await it.serve(prompt(4), session="s")
            it.residency.drop(it.residency.leading((await it.cache.match(prompt(4))).keys)[-1:],
                              Tier.DEVICE, Reason.EVICTED)  # fmt: skip
            it.residency.drop(it.residency.leading((await it.cache.match(prompt(4))).keys)[-1:],
                              Tier.HOST, Reason.EVICTED)  # fmt: skip
            assert await hint(it, Retain(S, 60.0)) == [("clipped", 3)]
            await hint(it, Release(S))
            await it.crowd_out(prompt)
            assert await hint(it, Retain(S, 60.0)) == [("missing", 0)]

    asyncio.run(scenario())


def test_a_span_is_held_with_what_leads_to_it(house, prompt):
    async def scenario():
        async with house(device=16, host=12, disk=0) as it:
            await it.serve(prompt(6))
            assert await hint(it, Retain(Span(prompt(6), 16, 25), 60.0)) == [("accepted", 2)]
            await it.crowd_out(prompt, pages=6)
            assert await it.pages_of(prompt(6)) == 4

    asyncio.run(scenario())


def test_a_span_without_a_whole_page_is_missing(house, prompt):
    async def scenario():
        async with house() as it:
            await it.serve(prompt(2))
            spans = [Span(prompt(2), 16), Span(prompt(2)[:5]), Span(prompt(2, of=3))]
            answers = await hint(it, *(Pin(span) for span in spans))
            assert answers == [("missing", 0)] * 3

    asyncio.run(scenario())


def test_a_pin_ends_when_its_owner_says_so_and_nobody_else(house, prompt):
    async def scenario():
        async with house(device=8, host=8, disk=0) as it:
            span = Span(prompt(2), tenant=1)
            await it.serve(prompt(2), tenant=1)
            assert await hint(it, Pin(span), Unpin(Span(prompt(2), tenant=2))) == [
                ("accepted", 2),
                ("missing", 0),
            ]
            await it.crowd_out(prompt)
            assert await it.pages_of(prompt(2)) == 2
            assert await hint(it, Unpin(span), Unpin(span)) == [("accepted", 2), ("missing", 0)]
            await it.crowd_out(prompt)
            assert await it.pages_of(prompt(2)) == 0

    asyncio.run(scenario())


def test_pages_on_their_way_defer_a_hold(house, prompt):
    async def scenario():
        async with house() as it:
            match = await it.cache.match(prompt(2))
            store = await it.compute(match)
            assert await hint(it, Retain(Span(match), 60.0)) == [("deferred", 0)]
            await store
            store.close()
            assert await hint(it, Retain(Span(match), 60.0)) == [("accepted", 2)]

    asyncio.run(scenario())


# --- demote


@pytest.mark.parametrize(("to", "left"), [(Tier.HOST, [Tier.HOST]), (Tier.DISK, [Tier.DISK])])
def test_demoted_pages_leave_the_faster_tiers_with_their_bytes(house, prompt, to, left):
    async def scenario():
        async with house(admit=True) as it:
            await it.serve(prompt(3), session="s")
            (outcome,) = await it.cache.hint([Demote(S, to)])
            assert (outcome.status.value, await outcome.operation) == ("accepted", 3)
            assert await it.tiers(prompt(3)) == left * 3
            assert (await it.get(prompt(3))).pages == 3

    asyncio.run(scenario())


def test_a_demotion_is_not_asked_whether_it_is_worth_it(house, prompt):
    async def scenario():
        async with house(admit=True) as it:
            it.residency.policy["write_s_per_byte"] = 1e9  # nothing is worth a write
            await it.serve(prompt(3), session="s")
            assert it.cache.stats().traffic.tiers[Tier.DISK].pages == 0
            (outcome,) = await it.cache.hint([Demote(S)])
            assert await outcome.operation == 3
            assert it.cache.stats().traffic.tiers[Tier.DISK].pages == 3

    asyncio.run(scenario())


def test_pages_that_lie_on_the_device_alone_are_copied_down(house, prompt):
    async def scenario():
        async with house() as it:
            await it.serve(prompt(3), session="s")
            rows = it.residency.leading((await it.cache.match(prompt(3))).keys)
            for tier in (Tier.HOST, Tier.DISK):
                it.residency.drop(rows[::-1].copy(), tier, Reason.EVICTED)
            (outcome,) = await it.cache.hint([Demote(S)])
            assert await outcome.operation == 3
            assert await it.tiers(prompt(3)) == [Tier.DISK] * 3
            assert (await it.get(prompt(3))).pages == 3

    asyncio.run(scenario())


def test_pages_that_others_use_are_not_demoted(house, prompt):
    async def scenario():
        async with house() as it:
            both = np.concatenate((prompt(2), prompt(2, of=1)))
            await it.serve(prompt(2), session="t")
            await it.serve(both, session="s")
            (outcome,) = await it.cache.hint([Demote(S)])
            assert (outcome.status.value, await outcome.operation) == ("clipped", 2)
            assert "others use" in outcome.reason
            assert await it.tiers(both) == [Tier.DEVICE] * 2 + [Tier.DISK] * 2
            status, reason = await why(it, Demote(Session("t")))
            assert (status, "others" in reason) == ("rejected", True)

    asyncio.run(scenario())


def test_pages_that_a_request_without_a_session_used_are_not_the_sessions_alone(house, prompt):
    async def scenario():
        async with house() as it:
            await it.serve(prompt(3), session="s")
            assert await hint(it, Demote(S, Tier.HOST)) == [("accepted", 3)]
            await it.serve(prompt(2))
            assert await hint(it, Demote(S)) == [("clipped", 1)]

    asyncio.run(scenario())


def test_what_somebody_else_holds_stays_where_it_is(house, prompt):
    async def scenario():
        async with house() as it:
            await it.serve(prompt(3), session="s")
            _, outcome = await it.cache.hint([Retain(Span(prompt(3)), 60.0), Demote(S)])
            assert await outcome.operation == 0
            assert await it.tiers(prompt(3)) == [Tier.HOST] * 3
            assert await hint(it, Release(S, Leave.AT_ONCE)) == [("deferred", 0)]
            assert await it.tiers(prompt(3)) == [Tier.HOST] * 3

    asyncio.run(scenario())


def test_room_is_not_made_by_what_is_held_behind_the_coldest_page(house, prompt):
    async def scenario():
        async with house(device=4) as it:
            await it.serve(prompt(2), session="s")
            first, second = it.residency.leading((await it.cache.match(prompt(2))).keys)[:, None]
            for rows, faster in ((first, (Tier.HOST, Tier.DISK)), (second, (0, Tier.HOST))):
                for tier in faster:
                    it.residency.drop(rows, Tier(tier), Reason.EVICTED)
            (outcome,) = await it.cache.hint([Prefetch(S)])
            assert await outcome.operation == 1
            with pytest.raises(TierFull):
                it.cache.acquire(4)
            assert await it.tiers(prompt(2)) == [Tier.DEVICE, Tier.HOST]

    asyncio.run(scenario())


def test_without_a_disk_nothing_is_demoted_to_it(house, prompt):
    async def scenario():
        async with house(disk=0) as it:
            await it.serve(prompt(2), session="s")
            assert await why(it, Demote(S)) == ("rejected", "there is no disk tier")

    asyncio.run(scenario())


def test_pages_in_use_defer_a_demotion(house, prompt):
    async def scenario():
        async with house() as it:
            await it.serve(prompt(3), session="s")
            with it.cache.load(await it.cache.match(prompt(3), session="s")) as load:
                await load
                status, reason = await why(it, Demote(S))
                assert (status, "uses" in reason) == ("deferred", True)
                assert await it.tiers(prompt(3)) == [Tier.DEVICE] * 3

    asyncio.run(scenario())


class Spent:
    """A backend whose budget for today is spent."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    @property
    def usage(self):
        return self._inner.usage._replace(budget_frames=0)


def test_a_spent_budget_defers_a_demotion(house, prompt):
    async def scenario():
        async with house(wrap=Spent) as it:
            await it.serve(prompt(3), session="s")
            status, reason = await why(it, Demote(S))
            assert (status, "budget" in reason) == ("deferred", True)
            assert await it.tiers(prompt(3)) == [Tier.DEVICE] * 3

    asyncio.run(scenario())


def test_demotions_displace_no_more_on_disk_than_the_tenants_part(house, prompt):
    async def scenario():
        async with house(disk=6, host=16, device=16, admit=True) as it:
            it.residency.policy["write_s_per_byte"] = 1e9
            for of in range(4):
                await it.serve(prompt(3, of=of), session=str(of))
            answers = [await it.cache.hint([Demote(Session(str(of)))]) for of in range(2)]
            assert [await answer.operation for (answer,) in answers] == [3, 3]
            (third,) = await it.cache.hint([Demote(Session("2"))])
            assert await third.operation == 3  # half of the disk: three of six
            assert await hint(it, Demote(Session("3"))) == [("deferred", 0)]

    asyncio.run(scenario())


def test_a_write_that_fails_leaves_the_pages_where_they_are(house, prompt):
    async def scenario():
        faults = [Fault.once(Operation.PUT, n) for n in range(8)]
        async with house(admit=True, wrap=lambda inner: FaultyBackend(inner, faults)) as it:
            it.residency.policy["write_s_per_byte"] = 1e9
            await it.serve(prompt(3), session="s")
            (outcome,) = await it.cache.hint([Demote(S)])
            assert await outcome.operation == 0
            assert await it.tiers(prompt(3)) == [Tier.DEVICE] * 3

    asyncio.run(scenario())


def test_pages_used_while_they_are_written_stay(house, prompt):
    async def scenario():
        async with house(admit=True) as it:
            it.residency.policy["write_s_per_byte"] = 1e9
            await it.serve(prompt(3), session="s")
            it.valve.is_shut = True
            (outcome,) = await it.cache.hint([Demote(S)])
            await asyncio.sleep(0)
            assert (await it.get(prompt(3))).pages == 3
            it.valve.open()
            assert await outcome.operation == 0
            assert await it.tiers(prompt(3)) == [Tier.DEVICE] * 3

    asyncio.run(scenario())


def test_a_retained_session_is_held_where_it_was_demoted_to(house, prompt):
    async def scenario():
        async with house(device=8, host=8, disk=8) as it:
            await it.serve(prompt(3), session="s")
            _, outcome = await it.cache.hint([Retain(S, 60.0), Demote(S)])
            assert await outcome.operation == 3
            assert await it.tiers(prompt(3)) == [Tier.DISK] * 3
            await it.crowd_out(prompt)
            assert await it.tiers(prompt(3)) == [Tier.DISK] * 3

    asyncio.run(scenario())


# --- prefetch


async def on_disk(it, prompt, pages=4):
    await it.serve(prompt(pages), session="s")
    it.leave_on(Tier.DISK)


def test_prefetched_pages_are_on_the_host_and_stay_until_they_are_used(house, prompt):
    async def scenario():
        async with house(device=8, host=8, disk=32) as it:
            await on_disk(it, prompt)
            (outcome,) = await it.cache.hint([Prefetch(S)])
            assert (outcome.status.value, await outcome.operation) == ("accepted", 4)
            assert await it.tiers(prompt(4)) == [Tier.HOST] * 4
            await it.crowd_out(prompt)
            assert await it.tiers(prompt(4)) == [Tier.HOST] * 4
            assert (await it.get(prompt(4))).pages == 4
            assert it.cache.stats().traffic.links["disk->host"].pages == 4

    asyncio.run(scenario())


def test_a_prefetch_beyond_the_tenants_part_is_clipped(house, prompt):
    async def scenario():
        async with house(device=8, host=8, disk=32) as it:
            await on_disk(it, prompt, pages=6)
            (outcome,) = await it.cache.hint([Prefetch(S)])
            assert (outcome.status.value, outcome.pages) == ("clipped", 4)
            assert await outcome.operation == 4
            assert await hint(it, Prefetch(Session("s")), Prefetch(S)) == [("deferred", 0)] * 2

    asyncio.run(scenario())


def test_there_is_nothing_to_prefetch_of_pages_that_are_there(house, prompt):
    async def scenario():
        async with house() as it:
            await it.serve(prompt(2), session="s")
            (outcome,) = await it.cache.hint([Prefetch(S)])
            assert (outcome.status.value, outcome.pages) == ("accepted", 2)
            assert outcome.operation is None

    asyncio.run(scenario())


def test_a_page_whose_bytes_changed_on_disk_is_not_prefetched_and_not_found(house, prompt):
    async def scenario():
        async with house() as it:
            await on_disk(it, prompt)
            rows = it.residency.leading((await it.cache.match(prompt(4))).keys)
            it.disk.pages[it.residency.slots(rows, Tier.DISK)[1], 5] ^= 1
            (outcome,) = await it.cache.hint([Prefetch(S)])
            assert await outcome.operation == 3
            match = await it.cache.match(prompt(4))
            assert (match.pages, match.reasons[0]) == (1, Reason.CORRUPT)

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["cancel", "release", "deadline", "rotate"])
def test_a_prefetch_that_is_given_up_brings_nothing_more(house, prompt, how):
    async def scenario():
        async with house() as it:
            await on_disk(it, prompt)
            it.valve.is_shut = True
            deadline_s = 0.01 if how == "deadline" else np.inf
            (outcome,) = await it.cache.hint([Prefetch(S, deadline_s)])
            await asyncio.sleep(0)
            if how == "cancel":
                outcome.operation.cancel()
            elif how == "release":
                assert await hint(it, Release(S)) == [("accepted", 4)]
            elif how == "rotate":
                it.cache.rotate("2")
            else:
                await asyncio.sleep(0.02)
            assert outcome.operation.is_cancelled
            it.valve.open()
            await outcome.operation  # what was in flight has drained: nothing holds a slot

    asyncio.run(scenario())


def test_a_load_beside_a_prefetch_of_its_pages_gets_them(house, prompt):
    async def scenario():
        async with house() as it:
            await on_disk(it, prompt)
            it.valve.is_shut = True
            (outcome,) = await it.cache.hint([Prefetch(S)])
            await asyncio.sleep(0)
            loading = await it.begin(prompt(4))
            it.valve.open()
            with loading as load:
                loaded = await load
                keys = (await it.cache.match(prompt(4))).keys
                assert (loaded.pages, it.wrong_bytes(keys, loaded)) == (4, 0)
            await outcome.operation

    asyncio.run(scenario())


@pytest.mark.parametrize("what", [Prefetch(S), Demote(S)])
def test_a_cache_that_closes_ends_what_is_under_way(house, prompt, what):
    async def scenario():
        async with house(admit=isinstance(what, Demote)) as it:
            it.residency.policy["write_s_per_byte"] = 1e9  # a demotion has something to write
            await it.serve(prompt(4), session="s")
            if isinstance(what, Prefetch):
                it.leave_on(Tier.DISK)
            it.valve.is_shut = True
            (outcome,) = await it.cache.hint([what])
            await asyncio.sleep(0)
            closing = asyncio.ensure_future(it.cache.close())
            await asyncio.sleep(0)
            it.valve.open()
            await closing
            await outcome.operation

    asyncio.run(scenario())


# --- release


def test_released_pages_go_before_colder_ones_and_a_use_brings_them_back(house, prompt):
    async def scenario():
        async with house(device=8, host=8, disk=0) as it:
            for of, name in enumerate("st"):
                await it.serve(prompt(3, of=of), session=name)
            await it.serve(prompt(3), session="s")
            assert await hint(it, Release(S)) == [("accepted", 3)]
            await it.serve(prompt(4, of=2))
            assert await it.pages_of(prompt(3)) < 3
            assert await it.pages_of(prompt(3, of=1)) == 3

    asyncio.run(scenario())


def test_a_release_that_was_wrong_is_undone_by_the_next_use(house, prompt):
    async def scenario():
        async with house(device=8, host=8, disk=0) as it:
            for of, name in enumerate("st"):
                await it.serve(prompt(3, of=of), session=name)
            await hint(it, Release(S))
            assert await it.serve(prompt(3), session="s") == 3
            await it.serve(prompt(4, of=2))
            assert await it.pages_of(prompt(3)) == 3

    asyncio.run(scenario())


def test_pages_released_at_once_are_gone_but_not_those_of_others(house, prompt):
    async def scenario():
        async with house() as it:
            both = np.concatenate((prompt(2), prompt(2, of=1)))
            await it.serve(prompt(2), session="t")
            await it.serve(both, session="s")
            (outcome,) = await it.cache.hint([Release(S, Leave.AT_ONCE)])
            assert (outcome.status.value, outcome.pages) == ("clipped", 2)
            match = await it.cache.match(both)
            assert (match.pages, match.reasons.tolist()) == (2, [Reason.RELEASED] * 2)

    asyncio.run(scenario())


def test_pages_in_use_are_not_released_at_once(house, prompt):
    async def scenario():
        async with house() as it:
            await it.serve(prompt(3), session="s")
            with it.cache.load(await it.cache.match(prompt(3), session="s")) as load:
                loaded = await load
                assert await hint(it, Release(S, Leave.AT_ONCE)) == [("deferred", 0)]
                keys = (await it.cache.match(prompt(3))).keys
                assert it.wrong_bytes(keys, loaded) == 0

    asyncio.run(scenario())


def test_another_tenant_cannot_release_what_it_did_not_store(house, prompt):
    async def scenario():
        async with house() as it:
            await it.serve(prompt(3), tenant=1)
            theirs = Span(prompt(3), tenant=2)
            assert await hint(it, Release(theirs, Leave.AT_ONCE)) == [("clipped", 0)]
            assert await hint(it, Demote(theirs)) == [("rejected", 0)]
            assert await it.tiers(prompt(3)) == [Tier.DEVICE] * 3

    asyncio.run(scenario())


# --- rotation, envelopes, stats


def test_after_a_rotation_sessions_and_older_matches_are_missing_and_nothing_is_held(house, prompt):
    async def scenario():
        async with house() as it:
            await it.serve(prompt(3), session="s")
            match = await it.cache.match(prompt(3))
            await hint(it, Pin(S))
            it.cache.rotate("2")
            assert await hint(it, Pin(S), Pin(Span(match))) == [("missing", 0)] * 2
            assert it.cache.stats().hints.held_pages == {}
            assert not it.residency.table.records["holds"].any()

    asyncio.run(scenario())


def test_a_store_that_a_rotation_overtakes_notes_nothing(house, prompt):
    async def scenario():
        async with house() as it:
            match = await it.cache.match(prompt(2), session="s", reuse=Reuse(keep_s=60.0))
            store = await it.compute(match)
            it.cache.rotate("2")
            await store
            store.close()
            assert it.cache.stats().hints.sessions == 0

    asyncio.run(scenario())


def test_an_envelope_is_carried_out_and_answered(house, prompt):
    async def scenario():
        async with house() as it:
            await it.serve(prompt(2), session="s", tenant=3)
            actions = [("retain", {"session": "s", "keep_s": 5}), ("share", {"session": "s"})]
            message = {"protocol_version": "1", "message_id": "m", "actions": [
                {"action_id": name, "action_type": name, "action_version": 1, "payload": payload}
                for name, payload in actions
            ]}  # fmt: skip
            envelope = from_envelope(message, tenant=3)
            outcomes = await it.cache.hint(envelope.actions)
            answer = to_envelope(envelope.message_id, outcomes)
            assert [told["outcome"] for told in answer["outcomes"]] == ["accepted", "rejected"]

    asyncio.run(scenario())


def test_what_is_no_action_is_refused_before_any_is_carried_out(house, prompt):
    async def scenario():
        async with house() as it:
            await it.serve(prompt(2), session="s")
            with pytest.raises(HintError, match="expected an action"):
                await it.cache.hint([Pin(S), "pin"])
            with pytest.raises(HintError, match="session"):
                await it.cache.match(prompt(2), session="")
            for nobody in (-1, 1.5, "x", True, 1 << 32):
                with pytest.raises(HintError, match=f"tenant = {nobody!r}"):
                    await it.cache.match(prompt(2), tenant=nobody)
            with pytest.raises(HintError, match="tenant = -1"):
                Session("s", -1)
            assert (await it.cache.match(prompt(2), tenant=np.int64(9))).pages == 2
            with pytest.raises(HintError, match="expected a Reuse"):
                await it.cache.match(prompt(2), reuse=0.5)
            assert it.cache.stats().hints.outcomes == {}

    asyncio.run(scenario())


def test_hints_are_counted_by_action_and_outcome(house, prompt):
    async def scenario():
        async with house() as it:
            await it.serve(prompt(2), session="s", tenant=5)
            mine = Session("s", 5)
            await hint(it, Pin(mine), Pin(mine), Unpin(Session("x")), Demote(mine))
            stats = it.cache.stats().hints
            assert stats.outcomes == {
                ("pin", "accepted"): 2,
                ("unpin", "missing"): 1,
                ("demote", "accepted"): 1,
            }
            assert stats.held_pages == {5: 2}

    asyncio.run(scenario())
