# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bodocache import jit
from bodocache.plan import unproven
from bodocache.plan.reuse import TENANTS

jit.warm()


def reused_by(**pages):
    """Pages used again, by tenant: ``reused_by(t0=5)``."""
    reused = np.zeros(TENANTS)
    for tenant, count in pages.items():
        reused[int(tenant[1:])] = count
    return reused


@given(st.floats(0, 1e9), st.integers(0, 1 << 40))
def test_a_tenant_alone_has_no_limit(pages, capacity):
    assert unproven.allowance(reused_by(t3=pages), 3, capacity) >= capacity


def test_nobody_has_a_limit_before_anything_was_used_again():
    assert unproven.allowance(reused_by(), 7, 1000) >= 1000


def test_who_uses_nothing_again_has_the_least_share():
    assert unproven.allowance(reused_by(t0=1e6), 1, 1000) == pytest.approx(100)


def test_a_limit_follows_the_share_of_what_is_used_again():
    assert unproven.allowance(reused_by(t0=799, t1=200), 1, 1000) == pytest.approx(603)


def test_what_was_used_long_ago_gives_no_share():
    reused = reused_by(t0=1e6)
    for _ in range(100):
        unproven.fade(reused)
    reused[1] = 200.0
    assert unproven.allowance(reused, 0, 1000) < 0.3 * unproven.allowance(reused, 1, 1000)
