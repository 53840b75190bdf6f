# SPDX-License-Identifier: Apache-2.0
"""Whose pages may leave a tier for whom, against a walk that evicts page by page."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache import jit
from bodocache.pages import PAGE, Tier
from bodocache.plan import evict, shares, victims
from bodocache.plan.records import POLICY, TENANT, Feature

jit.warm()  # here, not in a test: a cold compile is not part of any test's time

HOST = Tier.HOST


def tier(owners, parts, capacity, reuse=False):
    """Pages of ``owners`` in host memory, the first the coldest; nobody needs another."""
    pages, policy = np.zeros(len(owners), PAGE), np.zeros(1, POLICY)
    pages["parent"], pages["nbytes"], pages["recompute_s"] = -1, 4096, 0.01
    pages["tenant"], pages["heat"] = owners, 1.0 + np.arange(len(owners))
    policy["half_life_s"], policy["capacity_pages"] = 60.0, capacity
    policy["features_off"] = 0 if reuse else Feature.REUSE
    queues = evict.open_queues(len(owners), shares.open_tally(parts))
    queues.memories["stamp_s"] = np.arange(len(owners))
    evict.arrive(pages, queues, policy, np.arange(len(owners)), HOST, 0.0)
    return pages, queues, policy


def take(state, count, tenant, promised=0):
    queues, out = state[1], np.empty(count, np.int64)
    account = int(shares.account_of(queues.tally, tenant))
    taker = victims.Taker(account, tenant, promised)
    return out[: victims.coldest_for(*state, int(HOST), count, 0.0, taker, out)].tolist()


def walk(owners, parts, capacity, count, taker, promised):
    """Page by page, coldest first: who may go for the taker's next?"""
    account = [owner if owner in parts else None for owner in owners]
    part = {None: int(max(0.0, 1.0 - sum(parts.values())) * capacity)}
    part |= {tenant: int(share * capacity) for tenant, share in parts.items()}
    taker, gone = taker if taker in parts else None, []
    while len(gone) < count:
        here = [row for row in range(len(owners)) if row not in gone]
        used = {one: sum(account[row] == one for row in here) for one in part}
        below = used[taker] + promised + len(gone) < part[taker]
        able = [
            row
            for row in here
            if account[row] == taker or (below and used[account[row]] > part[account[row]])
        ]
        if not able:
            break
        gone.append(able[0])
    return gone


@st.composite
def cases(draw):
    owners = draw(st.lists(st.integers(0, 3), min_size=1, max_size=16))
    weights = draw(st.dictionaries(st.integers(1, 3), st.floats(0.05, 0.33), max_size=3))
    capacity = len(owners) + draw(st.integers(0, 4))
    return owners, weights, capacity, draw(st.integers(1, 16)), draw(st.integers(0, 3))


@given(cases(), st.integers(0, 3), st.booleans())
@settings(deadline=None)
def test_victims_are_those_of_a_walk_page_by_page(case, promised, learned):
    owners, parts, capacity, count, taker = case
    state = tier(owners, parts, capacity, learned)
    assert take(state, count, taker, promised) == walk(*case, promised)


@given(cases())
@settings(deadline=None)
def test_nobody_within_its_share_loses_a_page_to_another(case):
    owners, parts, capacity, count, taker = case
    state = tier(owners, parts, capacity)
    take(state, count, taker)
    tally = state[1].tally
    for tenant, share in parts.items():
        had = owners.count(tenant)
        left = int(tally.used[HOST, shares.account_of(tally, tenant)])
        assert tenant == taker or left >= min(had, int(share * capacity))


@given(cases())
@settings(deadline=None)
def test_who_is_below_its_share_of_a_full_tier_gets_it(case):
    owners, parts, _, _, taker = case
    capacity = len(owners)
    state = tier(owners, parts, capacity)
    share = int(parts.get(taker, max(0.0, 1.0 - sum(parts.values()))) * capacity)
    had = sum(owner == taker if taker in parts else owner not in parts for owner in owners)
    lacks = max(0, share - had)
    assert len(take(state, lacks, taker)) == lacks


def test_a_flood_replaces_its_own_pages_only():
    state = tier([1] * 3 + [2] * 7, {1: 0.5, 2: 0.5}, 10)
    assert take(state, 10, tenant=2) == [3, 4, 5, 6, 7, 8, 9]


def test_without_shares_the_coldest_page_goes_whosever_it_is():
    state = tier([1] * 3 + [2] * 7, {}, 10)
    assert take(state, 4, tenant=2) == [0, 1, 2, 3]


def test_what_arrives_and_departs_is_counted_by_its_owners_account():
    pages, queues, policy = tier([1, 2, 7], {2: 0.5}, 10)
    assert queues.tally.used[HOST].tolist() == [2, 1]
    evict.depart(pages, queues, policy, np.array([1, 2]), HOST)
    assert queues.tally.used[HOST].tolist() == [1, 0]


def test_shares_of_a_table_are_by_row():
    tenants = np.zeros(3, TENANT)
    tenants["share"] = [0.5, 0.0, 0.25]
    tally = shares.of_tenants(tenants)
    assert (tally.tenants.tolist(), tally.parts.tolist()) == ([-1, 0, 2], [0.25, 0.5, 0.25])


@pytest.mark.parametrize("parts", [{1: 0.7, 2: 0.4}, {1: 0.0}, {1: -0.1}, {1: float("nan")}])
def test_shares_that_are_none_are_refused(parts):
    with pytest.raises(ValueError, match="all together 1 at most"):
        shares.open_tally(parts)
