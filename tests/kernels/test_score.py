# SPDX-License-Identifier: Apache-2.0
"""Scores against the planner's value density and against their twin.

Plain pytest runs the CPU path; test_interpreter.py runs this file again on the Triton kernels.
"""

import dataclasses
import importlib

import numpy as np
import pytest
import torch

from bodocache import env, jit
from bodocache.errors import LayoutError
from bodocache.kernels import launch, page_records
from bodocache.kernels.page_records import DevicePages, Formula
from bodocache.kernels.reference import score as twin
from bodocache.kernels.score import score_pages
from bodocache.pages import PAGE, PageTable, Tier
from bodocache.plan import value
from bodocache.plan.records import POLICY, TIERS

importlib.import_module("bodocache.kernels.cpu_scoring")
jit.warm()  # a cold compile is not part of any test's time

NOW_S = 1e6
FORMULA = Formula(600.0, 5.0, (0.0, 1e-5, 1e-4, 1e-3), (0.0, 1e-10, 1e-9, 1e-8))


def planners_policy():
    policy = np.zeros(1, POLICY)
    for name in ("half_life_s", "min_residence_s", "load_latency_s", "load_s_per_byte"):
        policy[name] = getattr(FORMULA, name)
    return policy


def random_records(count, seed=3):
    """Pages of all ages, sizes and tiers; a recompute may cost as much as a load, or less."""
    random = np.random.default_rng(seed)
    records = np.zeros(count, PAGE)
    records["parent"] = -1
    records["stamp_s"] = NOW_S - np.exp(random.uniform(-9, 13, count))
    records["heat"] = np.exp2(random.uniform(-140, 40, count))
    records["heat"][::7] = 0
    records["nbytes"] = random.integers(0, 1 << 32, count)
    records["recompute_s"] = random.exponential(0.01, count)
    slow = 1e-4 + records["nbytes"] * 1e-9  # as long as a load from disk, but for its last bits
    records["recompute_s"][::5] = slow[::5]
    records["tiers"] = random.integers(0, 16, count)
    return records


def device_pages(records, since_s=0.0):
    pages = DevicePages(len(records), "cpu")
    since = np.full((len(records), TIERS), since_s)
    pages.update(np.arange(len(records)), records, since)
    return pages


def score_error(score):
    """Two lg2.approx of mantissas (2^-22 each), two mantissas rounded (2^-24 / ln 2), the result.

    The CPU path and the twin only round the result.
    """
    return 2 * (2.0**-22 + 1.5 * 2.0**-24) + 2.0**-24 * np.abs(score) + 2.0**-40


@pytest.mark.parametrize("tier", list(Tier))
def test_a_score_is_the_planners_value_within_float32_rounding(tier):
    records, policy = random_records(1000), planners_policy()
    scores = score_pages(device_pages(records), tier, NOW_S, FORMULA).double().numpy()
    shift = NOW_S / FORMULA.half_life_s
    for row in np.flatnonzero(records["tiers"] >> tier & 1):
        expected = value.log_density(records, policy, row, int(tier)) - shift
        if records["heat"][row] == 0:
            assert scores[row] == -np.inf
        else:
            # the planner's own numbers lose NOW_S / half_life * 2^-53 each
            assert abs(scores[row] - expected) <= score_error(expected) + shift * 2.0**-50


@pytest.mark.parametrize("tier", list(Tier))
def test_scores_equal_their_twins(tier):
    pages = device_pages(random_records(1100))
    scores = score_pages(pages, tier, NOW_S, FORMULA).numpy()
    expected = twin.score_pages(pages, tier, NOW_S, FORMULA).numpy()
    finite = np.isfinite(expected)
    assert np.array_equal(scores[~finite], expected[~finite])
    error = np.abs(scores[finite].astype(np.float64) - expected[finite])
    assert (error <= 2 * score_error(expected[finite])).all()


def test_pinned_young_and_absent_pages_are_infinite():
    records = random_records(4)
    records["tiers"], records["heat"] = [2, 2, 1, 2], 1.0
    records["pins"] = [3, 0, 0, 0]
    pages = DevicePages(5, "cpu")  # the last row is free
    since_s = np.zeros((4, TIERS))
    since_s[1, Tier.HOST] = NOW_S - FORMULA.min_residence_s + 0.5
    pages.update(np.arange(4), records, since_s)
    scores = score_pages(pages, Tier.HOST, NOW_S, FORMULA)
    assert torch.isinf(scores).tolist() == [True, True, True, False, True]
    later = score_pages(pages, Tier.HOST, NOW_S + 0.5, FORMULA)
    assert torch.isinf(later).tolist() == [True, False, True, False, True]


def test_updated_rows_change_and_others_stay():
    records = random_records(50)
    records["tiers"], records["heat"] = 15, 1.0
    pages = device_pages(records)
    before = score_pages(pages, Tier.HOST, NOW_S, FORMULA)
    records["heat"][[7, 3]] = [4.0, 8.0]
    pages.update(np.array([7, 3]), records[[7, 3]], np.zeros((2, TIERS)))
    gained = score_pages(pages, Tier.HOST, NOW_S, FORMULA) - before
    expected = torch.zeros(50)
    expected[7], expected[3] = 2.0, 3.0
    assert torch.allclose(gained, expected, rtol=0, atol=1e-3)


def test_grown_pages_keep_their_rows():
    pages = device_pages(random_records(20))
    before = score_pages(pages, Tier.DISK, NOW_S, FORMULA)
    after = score_pages(pages.grown(33), Tier.DISK, NOW_S, FORMULA)
    assert torch.equal(after[:20], before)
    assert torch.isinf(after[20:]).all()


def test_a_new_row_of_the_page_table_is_in_no_tier():
    table = PageTable(2)
    rows = table.add(np.zeros((2, 32), np.uint8))
    pages = DevicePages(2, "cpu")
    pages.update(rows, table.records[rows], np.zeros((2, TIERS)))
    assert torch.isinf(score_pages(pages, Tier.HOST, 0.0, FORMULA)).all()


def test_no_pages_have_no_scores():
    assert score_pages(DevicePages(0, "cpu"), Tier.HOST, 0.0, FORMULA).shape == (0,)


def test_without_numba_the_twin_serves(monkeypatch):
    pages = device_pages(random_records(100))
    scores = score_pages(pages, Tier.HOST, NOW_S, FORMULA)
    monkeypatch.setattr("bodocache.kernels.score.compiled", lambda: None)
    again = score_pages(pages, Tier.HOST, NOW_S, FORMULA)
    assert torch.allclose(scores, again, rtol=1e-6, atol=1e-5)


def test_interpreted_processes_run_the_kernel(monkeypatch):
    launches = []
    monkeypatch.setattr(launch.Launch, "run", lambda _: launches.append(1))
    score_pages(device_pages(random_records(3)), Tier.HOST, NOW_S, FORMULA)
    assert len(launches) == int(env.triton_interpreted())


@pytest.mark.parametrize("tier", [-1, 4])
def test_a_tier_that_is_none_is_refused(tier):
    with pytest.raises(LayoutError, match=f"score_pages: tier is {tier}; pages have 4 tiers"):
        score_pages(DevicePages(1, "cpu"), tier, 0.0, FORMULA)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.zeros(3), r"out is float32\[3\] on cpu; expected the shape \[4\]"),
        (torch.zeros(4, dtype=torch.float64), r"out is float64\[4\] on cpu; expected float32"),
        (torch.zeros(4, device="meta"), "out is .* on meta; pages is on cpu"),
        (torch.zeros(5)[1:], "out is at 0x.*4; expected a multiple of 16"),
        (torch.zeros(8)[::2], "expected contiguous rows"),
    ],
)
def test_scores_that_do_not_fit_are_refused(out, message):
    with pytest.raises(LayoutError, match=message):
        score_pages(DevicePages(4, "cpu"), 0, 0.0, FORMULA, out=out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"half_life_s": 0.0}, "half_life_s is 0.0; expected more than 0"),
        ({"load_latency_s": (0.0,) * 3}, "load_latency_s has 3 tiers; pages have 4"),
    ],
)
def test_a_formula_that_cannot_be_is_refused(change, message):
    fields = {f.name: getattr(FORMULA, f.name) for f in dataclasses.fields(FORMULA) if f.init}
    with pytest.raises(LayoutError, match=message):
        Formula(**(fields | change))


def test_updates_that_do_not_fit_are_refused():
    pages, records, since_s = DevicePages(4, "cpu"), random_records(2), np.zeros((2, TIERS))
    deep, foreign = records.copy(), records.copy()
    deep["depth"][1], foreign["parent"][0] = page_records.MAX_LEVELS, 4
    for rows, which, since, message in [
        ([0, 4], records, since_s, "rows has 4; there are 4 rows"),
        ([-1, 0], records, since_s, "rows has -1; there are 4 rows"),
        ([2, 2], records, since_s, "rows has 2 twice"),
        ([0], records, since_s, r"records is PAGE\[2\]; expected PAGE\[1\]"),
        ([0, 1], records, since_s[:1], r"since_s is float64\[1, 4\]; expected float64\[2, 4\]"),
        ([0, 1], np.zeros(2), since_s, r"records is float64\[2\]; expected PAGE\[2\]"),
        ([0, 1], deep, since_s, "a depth is 16777216; expected less than 16777216"),
        ([0, 1], foreign, since_s, "a parent is row 4; there are 4 rows"),
    ]:
        with pytest.raises(LayoutError, match=message):
            pages.update(np.array(rows), which, since)
    with pytest.raises(LayoutError, match=r"rows is int32\[1\]; expected int64\[n\]"):
        pages.update(np.zeros(1, np.int32), records[:1], since_s[:1])
    with pytest.raises(LayoutError, match="3 rows; it has 4"):
        pages.grown(3)
