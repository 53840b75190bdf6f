# SPDX-License-Identifier: Apache-2.0
"""The chosen set is the planner's, but for pages within float32 rounding of the threshold.

Plain pytest runs the CPU path; test_interpreter.py runs this file again on the Triton kernels.
"""

import importlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bodocache import env, jit
from bodocache.errors import LayoutError
from bodocache.kernels import coldest as module
from bodocache.kernels import subtree
from bodocache.kernels.coldest import Coldest, coldest_pages
from bodocache.kernels.page_records import DEPTH, HEAT, DevicePages, Formula
from bodocache.kernels.reference import coldest as twin
from bodocache.kernels.reference import score as score_twin
from bodocache.kernels.reference import subtree as subtree_twin
from bodocache.kernels.score import score_pages
from bodocache.kernels.subtree import refresh_keys
from bodocache.pages import PAGE, Tier
from bodocache.plan import evict, value, victims
from bodocache.plan.records import POLICY, TIERS, Feature

importlib.import_module("bodocache.kernels.cpu_scoring")
jit.warm()  # a cold compile is not part of any test's time

NOW_S = 5000.0
FORMULA = Formula(60.0, 5.0, (0.0, 1e-5, 1e-4, 1e-3), (0.0, 1e-10, 1e-9, 1e-8))
EXAMPLES = 25 if env.triton_interpreted() else 300


def planners_policy():
    policy = np.zeros(1, POLICY)
    policy["features_off"] = Feature.REUSE  # by heat, as the device has it
    for name in ("half_life_s", "min_residence_s", "load_latency_s", "load_s_per_byte"):
        policy[name] = getattr(FORMULA, name)
    return policy


def records_of(parents):
    """Pages that lie nowhere yet, shallow to deep."""
    records = np.zeros(len(parents), PAGE)
    records["parent"], records["nbytes"], records["recompute_s"] = parents, 4096, 0.01
    for row, parent in enumerate(parents):
        records["depth"][row] = 0 if parent < 0 else records["depth"][parent] + 1
    return records


def device_pages(records, since_s=None):
    pages = DevicePages(len(records), "cpu")
    since_s = np.zeros((len(records), TIERS)) if since_s is None else since_s
    pages.update(np.arange(len(records)), records, since_s)
    return pages


def planners_keys(records, queues, policy, tier):
    """float64 subtree maxima at NOW_S, as the planner's own test has them."""
    here = [row for row in range(len(records)) if records["tiers"][row] >> tier & 1]
    keys = {row: own_key(records, queues, policy, row, tier) for row in here}
    for row in sorted(here, key=lambda row: -int(records["depth"][row])):
        parent = int(records["parent"][row])
        if parent in keys:
            keys[parent] = max(keys[parent], keys[row])
    return keys


def own_key(records, queues, policy, row, tier):
    children = records["tiers"][records["parent"] == row]
    others = records["tiers"][row] == tier.bit and (children & (0xFF - tier.bit)).any()
    young = queues.since_s[row, tier] + policy["min_residence_s"][0] > NOW_S
    if records["pins"][row] > 0 or young or others:
        return np.inf
    density = value.log_density(records, policy, row, int(tier))
    return density - NOW_S / FORMULA.half_life_s


def key_error(key):
    """How far a float32 key may lie from the planner's: score.py's bound, and that of its age.

    A maximum of keys that err by at most this errs by at most this.
    """
    return 2.0**-20 + 2.0**-24 * abs(key) + NOW_S / FORMULA.half_life_s * 2.0**-50


def assert_same_but_for_rounding(chosen, planned, keys):
    """Both are as many, and each page that only one has could be either side of the threshold.

    Of two pages that change places, both keys may err: pages differ by at most twice the bound from
    the greatest key that the planner took.
    """
    assert len(chosen) == len(planned)
    threshold = max((keys[row] for row in planned), default=0.0)
    for row in set(chosen) ^ set(planned):
        assert keys[row] < np.inf
        slack = 2 * key_error(max(abs(threshold), abs(keys[row])))
        assert abs(keys[row] - threshold) <= slack, (row, keys[row], threshold)


def assert_orphans_nobody(chosen, records, tier):
    """No page that stays in the tier has lost the page before it; no last copy that one needs."""
    left = records["tiers"].copy()
    left[chosen] &= 0xFF - tier.bit
    for row, parent in enumerate(records["parent"]):
        if parent in chosen:
            assert not left[row] >> tier & 1, (row, parent)
            assert left[parent] or not left[row], (row, parent)


def rows_chosen(coldest):
    count = int(coldest.num_pages)
    assert (coldest.rows[count:] == -1).all()
    rows = coldest.rows[:count].tolist()
    assert rows == sorted(set(rows))
    return rows


def choose(pages, count, tier=Tier.HOST, **options):
    return rows_chosen(
        coldest_pages(pages, refresh_keys(pages, tier, NOW_S, FORMULA), count, **options)
    )


@st.composite
def trees(draw):
    """(parents, heats, costs, stamps, pins, arrivals to two tiers) with ties and near ties."""
    size = draw(st.integers(1, 40))

    def column(*values):
        return draw(st.lists(st.sampled_from(values), min_size=size, max_size=size))

    parents = [draw(st.integers(max(-1, row - 5), row - 1)) for row in range(size)]
    near = float(np.nextafter(np.float32(3.5), np.float32(4)))
    heats = column(0.0, 1.0, 2.0, 3.5, near)
    times = (None, 0.0, 0.0, 0.0, NOW_S - 1)
    tiers = {Tier.HOST: column(*times[1:]), Tier.DISK: column(*times), Tier.DEVICE: column(*times)}
    return (
        parents,
        heats,
        column(0.0, 0.01, 0.02),
        column(0.0, 4990.0, 4999.9999),
        column(*[0] * 8, 1),
        tiers,
    )


@pytest.mark.timeout(60)  # 25 trees in the interpreter: 6 s alone
@given(trees(), st.sampled_from([Tier.HOST, Tier.DISK, Tier.DEVICE]), st.integers(0, 40))
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_chosen_set_is_the_planners(case, tier, count):
    parents, heats, costs, stamps, pins, arrivals = case
    records, policy = records_of(parents), planners_policy()
    records["heat"], records["recompute_s"] = heats, costs
    records["stamp_s"], records["pins"] = stamps, pins
    queues = evict.open_queues(len(records))
    for where, times in arrivals.items():
        for row, at in enumerate(times):
            if at is not None:
                evict.arrive(records, queues, policy, np.array([row]), int(where), at)
    pages = device_pages(records, queues.since_s)
    before, keys = records.copy(), planners_keys(records, queues, policy, tier)
    chosen = choose(pages, count, tier)
    out = np.empty(count, np.int64)
    taken = victims.coldest(records, queues, policy, int(tier), count, NOW_S, out)
    assert_same_but_for_rounding(chosen, out[:taken].tolist(), keys)
    assert_orphans_nobody(chosen, before, tier)


def random_pages(count, seed=5, chain=0.9):
    """A forest with long prefixes, many never used, over all tiers."""
    random = np.random.default_rng(seed)
    parents = np.where(random.random(count) < chain, np.arange(count) - 1, -1)
    parents[::11] = random.integers(-1, np.maximum(np.arange(count), 1))[::11]
    parents[0] = -1
    records = records_of(parents.tolist())
    records["heat"] = random.integers(0, 4, count)
    records["stamp_s"] = random.uniform(0, NOW_S, count)
    records["tiers"] = random.choice([0, 2, 6, 4], count, p=[0.05, 0.6, 0.3, 0.05])
    records["pins"] = random.random(count) < 0.01
    return records


@pytest.mark.parametrize("tier", [Tier.HOST, Tier.DISK])
def test_keys_equal_their_twins(tier):
    pages = device_pages(random_pages(2500))
    keys = refresh_keys(pages, tier, NOW_S, FORMULA)
    expected = score_pages(pages, tier, NOW_S, FORMULA)
    subtree_twin.refresh_keys(pages, tier, expected)
    assert torch.equal(keys, expected)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 64, 65, 1500])
def test_the_last_page_of_a_chain_raises_all_before_it(length):
    records = records_of(range(-1, length - 1))
    records["tiers"], records["heat"] = Tier.HOST.bit, 1.0
    records["heat"][-1] = 64.0
    keys = refresh_keys(device_pages(records), Tier.HOST, NOW_S, FORMULA)
    assert (keys == keys[-1]).all()
    assert choose(device_pages(records), 1) == [length - 1]


def test_rounds_double_what_a_key_covers():
    assert [subtree.num_rounds(levels) for levels in (1, 2, 3, 4, 5, 65536)] == [0, 1, 2, 2, 3, 16]


def test_a_page_outside_the_tier_cuts_its_subtree_off():
    records = records_of([-1, 0, 1])
    records["tiers"] = [6, 4, 2]
    records["heat"] = [1.0, 1.0, 8.0]
    keys = refresh_keys(device_pages(records), Tier.HOST, NOW_S, FORMULA)
    assert keys[0] < keys[2]
    assert torch.isinf(keys).tolist() == [False, True, False]


def test_a_last_copy_stays_while_a_page_after_it_lies_in_another_tier():
    records = records_of([-1, 0])
    records["tiers"], records["heat"] = [2, 6], 1.0
    assert choose(device_pages(records), 2) == [1]
    records["tiers"] = [6, 6]
    assert choose(device_pages(records), 2) == [0, 1]


COUNTS = [0, 1, 37, 1000, 3500]


@pytest.mark.parametrize("count", COUNTS)
def test_chosen_pages_equal_their_twins(count):
    pages = device_pages(random_pages(4300))
    keys = refresh_keys(pages, Tier.HOST, NOW_S, FORMULA)
    expected = twin.coldest_pages(keys, pages.words[DEPTH], count)
    assert rows_chosen(coldest_pages(pages, keys, count)) == expected.tolist()


def test_any_key_has_its_place():
    pages = device_pages(random_pages(2400))
    bits = torch.randint(-(2**31), 2**31 - 1, (2400,), dtype=torch.int32)
    keys = bits.view(torch.float32).nan_to_num(torch.inf)
    keys[torch.arange(0, 2400, 3)] = -torch.inf
    for count in (5, 801):
        expected = twin.coldest_pages(keys, pages.words[DEPTH], count)
        assert rows_chosen(coldest_pages(pages, keys, count)) == expected.tolist()


def test_equals_go_deepest_first_then_the_first_row():
    records = records_of([-1, 0, 1, -1, 3, 4])
    records["tiers"] = Tier.HOST.bit
    pages = device_pages(records)
    expected = [[2], [2, 5], [1, 2, 5], [1, 2, 4, 5], [0, 1, 2, 4, 5]]
    assert [choose(pages, count) for count in range(1, 6)] == expected


def test_depths_of_three_digits_are_told_apart():
    records = records_of([-1] * 5)
    records["tiers"] = Tier.HOST.bit
    records["depth"] = [1, 256, 65536, 65535, 0]
    assert [choose(device_pages(records), n) for n in (1, 2, 3)] == [[2], [2, 3], [1, 2, 3]]


def test_what_must_stay_is_never_chosen():
    records = records_of([-1, 0, 1, -1])
    records["tiers"] = Tier.HOST.bit
    records["pins"] = [0, 1, 0, 0]
    assert choose(device_pages(records), 4) == [2, 3]


def test_the_cap_holds_whatever_is_wanted():
    pages = device_pages(random_pages(100))
    assert len(choose(pages, 50, cap=7)) == 7
    assert choose(pages, 3, cap=7) == choose(pages, 3)


def test_no_pages_leave_nothing():
    assert choose(DevicePages(0, "cpu"), 5) == []


def test_without_numba_the_twins_serve(monkeypatch):
    pages = device_pages(random_pages(300))
    with_numba = choose(pages, 40)
    for name in ("score", "subtree", "coldest"):
        monkeypatch.setattr(f"bodocache.kernels.{name}.compiled", lambda: None)
    assert choose(pages, 40) == with_numba
    assert choose(pages, 300) == rows_chosen_by_twins(pages, 300)


def rows_chosen_by_twins(pages, count):
    keys = score_twin.score_pages(pages, Tier.HOST, NOW_S, FORMULA)
    subtree_twin.refresh_keys(pages, Tier.HOST, keys)
    return twin.coldest_pages(keys, pages.words[DEPTH], count).tolist()


def test_nothing_is_written_outside_rows_and_keys():
    pages = device_pages(random_pages(2200))
    guarded = torch.full((16 + 2200 + 16,), 7.0)
    keys = refresh_keys(pages, Tier.HOST, NOW_S, FORMULA, out=guarded[16:-16])
    rows = torch.full((16 + 99 + 16,), 7, dtype=torch.int32)
    out = Coldest(rows[16:-16], torch.zeros(1, dtype=torch.int32))
    if env.triton_interpreted():
        for step in module.launches(pages, keys, out):
            step.run()
    else:
        importlib.import_module("bodocache.kernels.cpu_scoring").coldest(pages, keys, out.rows)
    assert out.rows.tolist() == choose(pages, 99)
    for edge in (guarded[:16], guarded[-16:], rows[:16], rows[-16:]):
        assert (edge == 7).all()


@pytest.mark.parametrize(("count", "cap"), [(-1, None), (1, -1)])
def test_counts_below_zero_are_refused(count, cap):
    with pytest.raises(LayoutError, match=f"count is {count} and cap {cap}; expected 0 or more"):
        coldest_pages(DevicePages(4, "cpu"), torch.zeros(4), count, cap=cap)


def test_keys_that_do_not_fit_are_refused():
    with pytest.raises(LayoutError, match=r"keys is float32\[3\] on cpu; expected the shape \[4\]"):
        coldest_pages(DevicePages(4, "cpu"), torch.zeros(3), 1)
    with pytest.raises(LayoutError, match=r"out is float64\[4\] on cpu; expected float32"):
        refresh_keys(DevicePages(4, "cpu"), 1, 0.0, FORMULA, out=torch.zeros(4).double())


def test_columns_hold_the_records_bits():
    records = random_pages(10)
    pages = device_pages(records)
    assert np.array_equal(pages.words[HEAT].view(torch.float32).numpy(), records["heat"])
    assert pages.levels == records["depth"].max() + 1
