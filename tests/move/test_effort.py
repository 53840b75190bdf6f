# SPDX-License-Identifier: Apache-2.0
"""What engines take to compute, learned from what they say of their steps."""

import numpy as np
import pytest

from bodocache.move.effort import MOST, Effort

TOKEN_S, SLOPE_S = 30e-6, 1e-9


def said(effort, token_s, slope_s, steps=40, seed=0, noise=0.0):
    rng = np.random.default_rng(seed)
    for first, tokens in rng.integers(4_000, 40_000, (steps, 2)).tolist():
        seconds = token_s * tokens + slope_s * (first * tokens + tokens * tokens / 2)
        effort.computed(first, tokens, seconds * (1.0 + noise * rng.standard_normal()))
    return effort


@pytest.mark.parametrize(("token", "slope"), [(1.3, 0.7), (0.7, 1.3), (1.0, 1.0), (2.0, 3.0)])
def test_what_was_configured_wrongly_is_learned(token, slope):
    effort = said(Effort(TOKEN_S, SLOPE_S), token * TOKEN_S, slope * SLOPE_S, noise=0.05)
    assert effort.token_s == pytest.approx(token * TOKEN_S, rel=0.1)
    assert effort.slope_s == pytest.approx(slope * SLOPE_S, rel=0.15)


def test_one_step_says_most_of_it():
    effort = said(Effort(TOKEN_S, 0.0), 1.3 * TOKEN_S, 0.0, steps=1)
    assert effort.recompute_s(1000) == pytest.approx(1000 * 1.3 * TOKEN_S, rel=0.05)


def test_an_engine_that_has_become_faster_is_soon_known_to_be():
    effort = said(Effort(TOKEN_S, SLOPE_S), TOKEN_S, SLOPE_S, steps=1_000)
    said(effort, TOKEN_S / 2, SLOPE_S / 2, steps=300)
    assert effort.recompute_s(20_000) == pytest.approx(
        Effort(TOKEN_S / 2, SLOPE_S / 2).recompute_s(20_000), rel=0.15
    )


@pytest.mark.parametrize("factor", [0.5 / MOST, 2 * MOST])
def test_a_step_that_is_no_prefill_says_nothing(factor):
    effort = said(Effort(TOKEN_S, SLOPE_S), factor * TOKEN_S, factor * SLOPE_S)
    assert (effort.token_s, effort.slope_s) == (TOKEN_S, SLOPE_S)


def test_as_configured_before_anybody_says_anything():
    effort = Effort(TOKEN_S, SLOPE_S)
    assert effort.recompute_s(1000) == pytest.approx(1000 * TOKEN_S + SLOPE_S * 1000 * 1000 / 2)
