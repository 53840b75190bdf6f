# SPDX-License-Identifier: Apache-2.0
"""Eviction by what is learned of the next use (reuse.py); by heat: test_evict.py."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache.pages import PAGE, Tier
from bodocache.plan import evict, hazards, victims
from bodocache.plan.admit import WEIGHED, admit
from bodocache.plan.records import POLICY, Feature

KINDS = (0, 3, 254)
NOW_S = 100.0


def state(parents, kinds, stamps, recompute_s=0.01):
    """Pages in host memory, used at ``stamps``; scores that are no rule of age."""
    pages, policy = np.zeros(len(parents), PAGE), np.zeros(1, POLICY)
    pages["parent"], pages["frame"], pages["nbytes"] = parents, -1, 4096
    pages["recompute_s"] = recompute_s
    for row, parent in enumerate(parents):
        pages["depth"][row] = 0 if parent < 0 else pages["depth"][parent] + 1
    policy["half_life_s"] = 60.0
    queues = evict.open_queues(len(parents))
    queues.model.hazards.score[:] = np.random.default_rng(5).choice([0.0, 0.1, 0.7, 2.0], (256, 52))
    queues.memories["kind"], queues.memories["stamp_s"] = kinds, stamps
    evict.arrive(pages, queues, policy, np.arange(len(parents)), Tier.HOST, 0.0)
    queues.clock_s[0] = NOW_S
    return pages, queues, policy


def take(pages, queues, policy, count):
    out = np.empty(count, np.int64)
    return out[: victims.coldest(pages, queues, policy, Tier.HOST, count, NOW_S, out)].tolist()


# --- the twin: of each class the leaf that was not used for longest, of these the least density


def order(pages, queues):
    present, out = set(range(len(pages))), []
    while leaves := [row for row in present if row not in set(pages["parent"][list(present)])]:
        fronts = {}
        for row in sorted(leaves, key=lambda row: (*last_use(pages, queues, row), row)):
            fronts.setdefault(queues.memories["kind"][row], row)
        victim = min(fronts.values(), key=lambda row: density(pages, queues, row))
        present.remove(victim)
        out.append(victim)
    return out


def last_use(pages, queues, row):
    return queues.memories["stamp_s"][row], -int(pages["depth"][row])


def density(pages, queues, row):
    memory, learned = queues.memories[row], queues.model.hazards
    score = learned.score[memory["kind"], hazards.bin_of(learned, NOW_S - memory["stamp_s"])]
    with np.errstate(divide="ignore"):
        log = np.log2(score) + np.log2(np.float64(pages["recompute_s"][row]) / 4096)
    return log, -int(pages["depth"][row]), row


@st.composite
def trees(draw):
    size = draw(st.integers(1, 24))
    of = lambda one: draw(st.lists(one, min_size=size, max_size=size))  # noqa: E731
    parents = [draw(st.integers(-1, row - 1)) for row in range(size)]
    stamps = of(st.sampled_from([0.0, 40.0, 99.0, 99.99]))
    return parents, of(st.sampled_from(KINDS)), stamps, of(st.sampled_from([0.01, 0.05]))


@given(trees(), st.integers(0, 24))
@settings(max_examples=200, deadline=None)
def test_victims_are_the_least_of_the_classes_longest_unused(case, count):
    pages, queues, policy = state(*case)
    expected = order(pages, queues)[:count]
    assert take(pages, queues, policy, count) == expected


def test_a_use_puts_a_page_behind_the_others_of_its_class():
    pages, queues, policy = state([-1, -1], [3, 3], [1.0, 2.0])
    queues.memories["stamp_s"][0] = 50.0
    evict.touch(pages, queues, policy, np.array([0]), 50.0)
    assert take(pages, queues, policy, 1) == [1]


def test_a_page_that_changes_its_class_is_queued_there():
    pages, queues, policy = state([-1, -1], [3, 3], [1.0, 2.0])
    queues.model.hazards.score[3], queues.model.hazards.score[0] = 0.1, 2.0
    queues.memories["kind"][0] = 0
    evict.touch(pages, queues, policy, np.array([0]), NOW_S)
    assert take(pages, queues, policy, 1) == [1]


def test_switched_off_heat_decides():
    pages, queues, policy = state([-1, -1], [3, 0], [1.0, 2.0])
    queues.model.hazards.score[3], queues.model.hazards.score[0] = 2.0, 0.1
    learned = take(*(array.copy() for array in (pages,)), queues, policy, 1)
    pages, queues, policy = state([-1, -1], [3, 0], [1.0, 2.0])
    policy["features_off"] = Feature.REUSE
    pages["heat"] = [1.0, 2.0]
    evict.requeue(pages, queues, policy, np.arange(2))
    assert (learned, take(pages, queues, policy, 1)) == ([1], [0])


@pytest.mark.parametrize(("write_s_per_byte", "kept"), [(1e-7, True), (1e-5, False)])
def test_a_page_is_written_if_its_chance_outweighs_the_write(write_s_per_byte, kept):
    pages, queues, policy = state([-1], [3], [NOW_S])
    policy["write_s_per_byte"] = write_s_per_byte
    chance = hazards.chance(queues.model.hazards, 3)
    assert (chance * 0.01 / 4096 > write_s_per_byte) is kept
    assert admitted(pages, queues, policy, free_pages=1) == kept


def test_while_the_tier_is_full_a_page_must_be_worth_more_than_the_one_it_displaces():
    for other, kept in ((0.05, True), (3.0, False)):
        pages, queues, policy = state([-1, -1], [3, 0], [NOW_S, NOW_S])
        evict.arrive(pages, queues, policy, np.array([1]), Tier.DISK, NOW_S)
        queues.model.hazards.score[3], queues.model.hazards.score[0] = 1.0, other
        assert admitted(pages, queues, policy, free_pages=0) == kept


def admitted(pages, queues, policy, free_pages):
    mask, weighed = np.empty(1, np.bool_), np.empty(1, WEIGHED)
    rows = np.array([0])
    return bool(admit(pages, queues, policy, rows, Tier.DISK, free_pages, weighed, mask))
