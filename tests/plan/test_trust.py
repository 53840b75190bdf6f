# SPDX-License-Identifier: Apache-2.0
"""What hints are worth: the compiled counts against plain Python, and what they must give."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache import jit
from bodocache.plan import trust

jit.warm()  # here, not in a test: a cold compile is not part of any test's time

BUCKET = st.integers(0, trust.BUCKETS - 1)


class Plain:
    """plan/trust.py in plain Python, from the formulas of its docstring."""

    def __init__(self):
        self.said, self.came = [0.0] * trust.BUCKETS, [0.0] * trust.BUCKETS
        self.gain_bits, self.pages = 0.0, []

    def base(self):
        return (sum(self.came) + 0.25 * 4) / (sum(self.said) + 4)

    def chance(self, bucket):
        return (self.came[bucket] + 8 * self.base()) / (self.said[bucket] + 8)

    def weight(self):
        return max(0.0, math.tanh(math.log(2) / 2 * (self.gain_bits - 7)))

    def count(self, bucket, came, pages):
        q, b = self.chance(bucket), self.base()
        gain = math.log2(q / b) if came else math.log2((1 - q) / (1 - b))
        kept = 1 - 1 / 1024
        self.said = [kept * n for n in self.said]
        self.came = [kept * n for n in self.came]
        self.pages.append(pages)
        told = max(1.0, pages / np.mean(self.pages))
        self.said[bucket] += told
        self.came[bucket] += came * told
        self.gain_bits = kept * self.gain_bits + gain


def told(outcomes):
    trusts = np.zeros(2, trust.TRUST)
    for bucket, came, *pages in outcomes:
        trust.count(trusts, 1, bucket, came, *pages or [3])
    return trusts


def hints(number, auc_like, seed):
    """Outcomes of a tenant a quarter of whose requests go on: right, or said at random."""
    chance = random.Random(seed)
    for _ in range(number):
        came = chance.random() < 0.25
        said = came if chance.random() < auc_like else chance.random() < 0.5
        yield trust.bucket_of(0.9 if said else 0.1), came


@given(st.lists(st.tuples(BUCKET, st.booleans(), st.integers(1, 400)), max_size=60))
@settings(max_examples=100, deadline=None)
def test_the_counts_are_those_of_the_formulas(outcomes):
    trusts, plain = told(outcomes), Plain()
    for outcome in outcomes:
        plain.count(*outcome)
    assert trust.base_rate(trusts, 1) == pytest.approx(plain.base())
    assert trust.weight(trusts, 1) == pytest.approx(plain.weight())
    assert trusts["outcomes"].tolist() == [0, len(outcomes)]
    for bucket in range(trust.BUCKETS):
        assert trust.chance(trusts, 1, bucket) == pytest.approx(plain.chance(bucket))
        odds = [p / (1 - p) for p in (plain.chance(bucket), plain.base())]
        expected = plain.weight() * math.log2(odds[0] / odds[1])
        assert trust.favour(trusts, 1, bucket) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("chance", "bucket"),
    [(0.0, trust.END), (1e-9, 1), (0.124, 1), (0.125, 2), (0.999, 8), (1.0, 8)],
)
def test_every_chance_has_its_bucket(chance, bucket):
    assert trust.bucket_of(chance) == bucket


def test_a_request_without_a_hint_is_a_bucket_of_its_own():
    assert trust.bucket_of(math.nan) == trust.SILENT


@pytest.mark.parametrize("seed", range(40))
def test_a_useless_hint_weighs_nothing(seed):
    trusts = told(hints(400, 0.0, seed))
    assert trust.weight(trusts, 1) == 0.0
    assert trust.favour(trusts, 1, 8) == trust.favour(trusts, 1, 1) == 0.0


def test_a_right_hint_soon_weighs_all():
    trusts = told(hints(80, 1.0, 0))
    assert trust.weight(trusts, 1) > 0.99
    assert trust.chance(trusts, 1, 8) > 0.7
    assert trust.favour(trusts, 1, 8) > 1.0 > -2.0 > trust.favour(trusts, 1, 1)


def test_a_hint_that_is_always_the_other_way_round_is_read_the_other_way_round():
    outcomes = [(9 - bucket, came) for bucket, came in hints(200, 1.0, 0)]
    trusts = told(outcomes)
    assert trust.favour(trusts, 1, 8) < 0.0 < trust.favour(trusts, 1, 1)


def test_a_tenant_that_becomes_unreliable_is_believed_no_longer():
    trusts = told([*hints(300, 1.0, 0), *hints(6000, 0.0, 1)])
    assert trust.weight(trusts, 1) == 0.0


def test_an_end_is_taken_at_its_word_until_it_was_wrong_too_often():
    trusts = np.zeros(2, trust.TRUST)
    assert trust.heeds_end(trusts, 1)
    trust.count(trusts, 1, trust.END, True, 3)
    assert trust.heeds_end(trusts, 1)
    for _ in range(3):
        trust.count(trusts, 1, trust.END, True, 3)
    assert not trust.heeds_end(trusts, 1)
    for _ in range(100):
        trust.count(trusts, 1, trust.END, False, 3)
        trust.count(trusts, 1, trust.SILENT, True, 3)
    assert trust.heeds_end(trusts, 1)


def test_many_small_truths_do_not_pay_for_a_large_lie():
    day = [(1, False, 1)] * 60 + [(8, True, 1)] * 12 + [(8, False, 400)]
    trusts = told(day * 20)
    assert trust.chance(trusts, 1, 8) < 0.25
    assert trust.favour(trusts, 1, 8) < 1.5
