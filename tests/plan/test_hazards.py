# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache.plan import hazards as counted
from bodocache.plan.hazards import BINS, GROUPS


def join(hazards, kind, pages):
    """Pages touched at 0 s; return their group."""
    (group,) = {counted.join(hazards, kind, 7, 0.0) for _ in range(pages)}
    return group


def opened(chance=0.5, classes=2):
    """Classes of one family, of which a constant hazard is believed."""
    return counted.open_hazards(np.full((classes, BINS), chance), np.zeros(classes, np.int64))


@given(st.floats(0.0, 1e6))
def test_an_age_is_in_the_bin_whose_edges_hold_it(age_s):
    hazards = opened()
    at = counted.bin_of(hazards, age_s)
    assert hazards.edges[at] <= age_s
    assert age_s < hazards.edges[at + 1] or at == BINS - 1


@given(st.lists(st.tuples(st.floats(0.0, 500.0), st.booleans()), min_size=1, max_size=20))
@settings(deadline=None)
def test_reuses_and_pages_at_risk_make_a_life_table(lives):
    """Pages touched at 0 s; each is used again at some age, or not within 1,000 s."""
    hazards = opened()
    group = join(hazards, 0, len(lives))
    ends = sorted(age for age, used in lives if used)
    for age_s in ends:
        counted.advance(hazards, age_s)
        counted.reuse(hazards, group, age_s)
    counted.advance(hazards, 1000.0)
    edges = hazards.edges[:-1]
    in_bin = [sum(low <= end < high for end in ends) for low, high in itertools.pairwise(edges)]
    weight = len(lives) ** -0.5
    assert hazards.reuses[0, : BINS - 1] == pytest.approx(weight * np.array(in_bin))
    begun = edges[edges <= 1000.0]
    reached = [len(lives) - sum(end < edge for end in ends) for edge in begun]
    assert hazards.at_risk[0, : len(begun)] == pytest.approx(weight * np.array(reached))


def test_a_forgotten_page_is_at_risk_no_more():
    hazards = opened()
    group = join(hazards, 1, 3)
    counted.advance(hazards, 2.0)
    counted.leave(hazards, group)
    counted.advance(hazards, 1000.0)
    at = counted.bin_of(hazards, 2.0)
    assert hazards.at_risk[1, at] == pytest.approx(3 / 3**0.5)
    assert hazards.at_risk[1, at + 1] == pytest.approx(2 / 3**0.5)


def test_pages_of_a_group_that_is_too_old_are_not_counted():
    hazards = opened()
    old = counted.join(hazards, 0, -1, 0.0)
    for request in range(GROUPS):
        counted.join(hazards, 1, request, 1.0)
    counted.reuse(hazards, old, 2.0)
    counted.leave(hazards, old)
    assert hazards.reuses.sum() == 0
    assert hazards.groups["pages"].tolist() == [1] * GROUPS


def index_of(hazard, edges, start):
    """The best over all horizons, each summed anew."""
    best = 0.0
    for stop in range(start + 1, BINS + 1):
        unused = np.cumprod(np.concatenate(([1.0], 1 - hazard[start:stop])))
        here, width = unused[:-1] * hazard[start:stop], np.diff(edges[start : stop + 1])
        best = max(best, here.sum() / ((unused[1:] + here / 2) * width).sum())
    return best


@pytest.mark.parametrize("seed", range(3))
def test_the_score_is_the_best_rate_of_hits_over_all_horizons(seed):
    prior = np.random.default_rng(seed).random((1, BINS)) ** 8
    hazards = counted.open_hazards(prior, np.zeros(1, np.int64))
    expected = [index_of(np.minimum(prior[0], 0.98), hazards.edges, at) for at in range(BINS)]
    assert hazards.score[0] == pytest.approx(expected)


def count(hazards, requests=300, pages=20):
    """Pages of class 0 are always used again after 3 s, those of class 1 never."""
    for request in range(requests):
        now_s = 10.0 * request
        counted.advance(hazards, now_s)
        for _ in range(pages):
            group = counted.join(hazards, 0, request, now_s)
            counted.join(hazards, 1, request, now_s)
        counted.advance(hazards, now_s + 3)
        for _ in range(pages):
            counted.reuse(hazards, group, now_s + 3)
    counted.fit(hazards)
    return hazards


def test_what_is_counted_outweighs_what_was_believed():
    hazards = count(opened(chance=0.01))
    assert counted.score(hazards, 0, 0.0) > 50 * counted.score(hazards, 1, 0.0)
    assert counted.score(hazards, 0, 0.0) == pytest.approx(1 / 3, rel=0.3)


def test_a_class_that_was_never_seen_is_scored_as_its_family():
    hazards = count(opened(chance=0.01, classes=4))
    assert hazards.score[2].tolist() == hazards.score[3].tolist()
    assert hazards.score[1, 0] < hazards.score[2, 0] < hazards.score[0, 0]


def test_counts_fade_by_a_fiftieth_every_hundred_requests():
    hazards = opened()
    counted.reuse(hazards, counted.join(hazards, 0, 1, 0.0), 0.0)
    for _ in range(2 * counted.FIT_REQUESTS):
        counted.advance(hazards, 0.0)
    assert hazards.reuses.sum() == pytest.approx(0.98**2)
