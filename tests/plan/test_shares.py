# SPDX-License-Identifier: Apache-2.0
"""Room of a tenant in a tier, against a walk that evicts page by page."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bodocache import jit
from bodocache.plan.records import TENANT
from bodocache.plan.shares import excess_nbytes, may_evict, takable_nbytes

jit.warm()  # here, not in a test: a cold compile is not part of any test's time


def tier(shares, used):
    tenants = np.zeros(len(shares), TENANT)
    tenants["share"] = shares
    return tenants, np.array(used, np.int64)


@st.composite
def tiers(draw):
    """Tenants, what each uses, and a tier that holds it; bytes are pages here."""
    count = draw(st.integers(1, 5))
    shares = np.array([draw(st.floats(0.01, 1.0)) for _ in range(count)])
    used = [draw(st.integers(0, 20)) for _ in range(count)]
    capacity = sum(used) + draw(st.integers(0, 20))
    return *tier(shares / shares.sum() * draw(st.floats(0.1, 1.0)), used), capacity


def take_all(tenants, used, capacity, taker):
    """How many pages the taker has once it may evict no other's any more: one by one."""
    used = used.copy()
    used[taker] += capacity - used.sum()
    rows = range(len(used))
    while victims := [
        row
        for row in rows
        if row != taker and used[row] and may_evict(tenants, used, capacity, taker, row)
    ]:
        used[victims[0]] -= 1
        used[taker] += 1
    return used[taker]


@given(tiers(), st.data())
def test_what_a_tenant_may_take_is_what_it_gets_evicting_page_by_page(case, data):
    tenants, used, capacity = case
    taker = data.draw(st.integers(0, len(used) - 1))
    assert takable_nbytes(tenants, used, capacity, taker) == take_all(*case, taker)


@given(tiers(), st.data())
def test_every_tenant_can_reach_its_share_and_nobody_below_it_loses_a_page(case, data):
    tenants, used, capacity = case
    taker = data.draw(st.integers(0, len(used) - 1))
    assert takable_nbytes(*case, taker) >= int(tenants["share"][taker] * capacity)
    for owner in range(len(used)):
        within = excess_nbytes(*case, owner) <= 0
        assert owner == taker or not (within and may_evict(*case, taker, owner))


def test_a_flood_takes_free_room_and_replaces_its_own_but_evicts_nobody_within_its_share():
    case = *tier([0.5, 0.5], [30, 70]), 100
    assert not may_evict(*case, 1, 0)
    assert takable_nbytes(*case, 1) == 70
    assert may_evict(*case, 0, 1)
    assert takable_nbytes(*case, 0) == 50


def test_a_tenant_alone_may_take_the_whole_tier():
    assert takable_nbytes(*tier([0.2, 0.8], [5, 0]), 100, 0) == 100
