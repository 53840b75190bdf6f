# SPDX-License-Identifier: Apache-2.0
"""Requests, hints and time in any order on tiny tiers: bytes, counts and holds are always right."""

import asyncio
import random

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bodocache.clock import VirtualClock
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
    Status,
    TokenRange,
    Unpin,
)
from bodocache.move.holds import KEEPING
from bodocache.pages import Tier

TENANTS, NAMES = st.integers(0, 2), st.sampled_from(["a", "b", None])
SECONDS = st.sampled_from([0.0, 1.0, 20.0, 700.0])
PAGES, BRANCHES = st.integers(1, 5), st.integers(0, 3)
CHANCES = st.sampled_from([None, 0.0, 0.3, 1.0])
SIZES = st.sampled_from([(10, 10, 20), (12, 7, 9), (8, 12, 0), (10, 8, 40)])


@st.composite
def reuses(draw):
    start = draw(st.integers(0, 20))
    part = TokenRange(start, start + 9, draw(st.integers(0, 100)), keep_s=draw(SECONDS))
    return Reuse(
        probability=draw(CHANCES),
        priority=draw(st.sampled_from([35, 0, 90])),
        keep_s=draw(st.sampled_from([None, 5.0])),
        ranges=draw(st.sampled_from([(), (part,)])),
    )


@st.composite
def targets(draw):
    tenant = draw(TENANTS)
    if draw(st.booleans()):
        return Session(draw(st.sampled_from("ab")), tenant)
    start = draw(st.integers(0, 30))
    return Span(tokens_of(draw(PAGES), draw(BRANCHES)), start, start + draw(PAGES) * 8, tenant)


ACTIONS = st.one_of(
    st.builds(Retain, targets(), SECONDS),
    st.builds(Pin, targets(), SECONDS),
    st.builds(Unpin, targets()),
    st.builds(Demote, targets(), st.sampled_from([Tier.HOST, Tier.DISK])),
    st.builds(Prefetch, targets()),
    st.builds(Release, targets(), st.sampled_from(Leave)),
)


def tokens_of(pages, branch):
    """Branches share their first page, two and two their first two."""
    ids = [0, 10 + branch // 2, *(100 * branch + page for page in range(2, pages))][:pages]
    return np.repeat(np.array(ids, np.uint32), 8)


class Hinted(RuleBasedStateMachine):
    house = None  # the fixture

    @initialize(sizes=SIZES, admit=st.booleans())
    def open(self, sizes, admit):
        device, host, disk = sizes
        self.runner = asyncio.Runner()
        self.clock = VirtualClock()
        self.context = Hinted.house(
            device=device, host=host, disk=disk, admit=admit, clock=self.clock
        )
        self.it = self.run(self.context.__aenter__())
        self.operations = []

    def run(self, coroutine):
        return self.runner.run(coroutine)

    @rule(
        pages=PAGES,
        branch=BRANCHES,
        tenant=TENANTS,
        session=NAMES,
        reuse=st.none() | reuses(),
        again=st.none() | reuses(),
    )
    def serve(self, pages, branch, tenant, session, reuse, again):
        async def scenario():
            it, tokens = self.it, tokens_of(pages, branch)
            match = await it.cache.match(tokens, tenant=tenant, session=session, reuse=reuse)
            with it.cache.load(match) as load:
                loaded = await load
                assert it.wrong_bytes(match.keys, loaded) == 0
                slots = it.slots(pages - loaded.pages)
                it.fill(slots, match.keys[loaded.pages :])
            store = it.cache.store(match, slots, reuse=again)
            await store
            store.close()

        self.run(scenario())

    @rule(action=ACTIONS)
    def hint(self, action):
        async def scenario():
            (outcome,) = await self.it.cache.hint([action])
            assert outcome.reason
            assert 0 <= outcome.pages <= outcome.asked_pages
            if outcome.status in (Status.REJECTED, Status.MISSING, Status.DEFERRED):
                assert outcome.operation is None
            if outcome.operation is not None:
                self.operations.append(outcome.operation)

        self.run(scenario())

    @rule(chooses=st.randoms(use_true_random=False), cancels=st.booleans())
    def finish_some(self, chooses: random.Random, cancels):
        async def scenario():
            operation = self.operations.pop(chooses.randrange(len(self.operations)))
            if cancels:
                operation.cancel()
            await operation

        if self.operations:
            self.run(scenario())

    @rule(seconds=SECONDS)
    def time_passes(self, seconds):
        self.clock.advance(seconds)

    @rule(tier=st.sampled_from([Tier.HOST, Tier.DISK]))
    def room_is_needed(self, tier):
        self.it.leave_on(tier)

    @rule()
    def weights_change(self):
        self.it.cache.rotate(str(self.clock.now_s()) + str(len(self.operations)))

    @invariant()
    def holds_are_what_a_recount_gives_and_are_kept(self):
        residency = self.it.residency
        counted = np.zeros_like(residency.table.records["holds"])
        for hold in self.holds():
            same = residency.words(hold.rows) == hold.words
            if hold.kind.value in ("keep", "retain", "pin", "coming"):
                np.add.at(counted, (hold.rows[same], hold.tiers[same]), 1)
            if hold.kind in KEEPING:
                held = residency.table.records["tiers"][hold.rows] >> hold.tiers & 1
                assert (same & (held == 1)).all(), "a page that is kept went"
        assert (counted == residency.table.records["holds"]).all()

    @invariant()
    def nobody_holds_more_than_its_part(self):
        holds = self.it.orchestrator.hints._holds
        for tenant, held in holds._held.items():
            for tier in (Tier.DEVICE, Tier.HOST, Tier.DISK):
                assert 0 <= held[tier] <= holds.part(tier), (tenant, tier)

    @invariant()
    def families_are_whole(self):
        self.it.check_family()

    def holds(self):
        holds = self.it.orchestrator.hints._holds
        return [hold for mine in holds._by_tenant.values() for hold in mine.values()]

    def teardown(self):
        if hasattr(self, "context"):
            self.run(self.context.__aexit__(None, None, None))
            self.runner.close()


Hinted.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_hints_in_any_order_lose_no_byte_and_keep_what_they_hold(house, monkeypatch):
    monkeypatch.setattr(Hinted, "house", staticmethod(house))
    Hinted.TestCase().runTest()
