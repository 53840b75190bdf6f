# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bodocache.pages import PAGE
from bodocache.plan import heat

SECONDS = st.floats(0.0, 1e4)


@given(st.lists(SECONDS, min_size=1, max_size=20), SECONDS, st.floats(1.0, 1e4))
def test_heat_is_the_sum_of_its_uses_each_halved_every_half_life(uses, later_s, half_life_s):
    pages, times = np.zeros(1, PAGE), np.sort(uses)
    for now_s in times:
        heat.add_hit(pages, 0, now_s, half_life_s)
    end_s = times[-1] + later_s
    expected = np.exp2(-(end_s - times) / half_life_s).sum()
    found = heat.decayed(float(pages["heat"][0]), pages["stamp_s"][0], end_s, half_life_s)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-30)
    assert pages["hits"][0] == len(uses)


@given(st.floats(0.1, 1e3), SECONDS, st.floats(1.0, 1e4), st.floats(0.0, 1e3))
def test_the_score_does_not_change_while_heat_decays(warmth, stamp_s, half_life_s, passed_s):
    now_s = stamp_s + passed_s
    later = heat.decayed(warmth, stamp_s, now_s, half_life_s)
    if later > 1e-300:
        before = heat.score(warmth, stamp_s, half_life_s)
        assert heat.score(later, now_s, half_life_s) == pytest.approx(before, abs=1e-6)


def test_a_page_never_used_is_colder_than_any():
    assert heat.score(0.0, 1e9, 1.0) == -np.inf


def test_time_that_runs_backwards_warms_nothing():
    assert heat.decayed(2.0, 10.0, 5.0, 1.0) == 2.0
