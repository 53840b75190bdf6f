# SPDX-License-Identifier: Apache-2.0
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bodocache.plan import order

COUNTS = st.sampled_from([0, 1, 2, 31, 32, 33, 400])
RANGES = st.sampled_from([1, 2, 300, 2**32, 2**64])  # how many keys there are: ties, many bits


def sorted_by(keys, begin, end):
    pairs = order.pairs_for(len(keys))
    pairs.keys[0], pairs.carried[0] = keys, np.arange(len(keys))
    order.sort(pairs, begin, end)
    return pairs.keys[0].tolist(), pairs.carried[0].tolist()


@given(COUNTS, RANGES, st.integers(0, 2**32))
def test_a_part_is_sorted_stably_and_the_rest_left_alone(count, keys, seed):
    chance = np.random.default_rng(seed)
    keys = chance.integers(0, keys, count, np.uint64)
    begin, end = sorted(chance.integers(0, count + 1, 2).tolist())
    inside = begin + np.argsort(keys[begin:end], kind="stable")
    expected = [*range(begin), *inside.tolist(), *range(end, count)]
    assert sorted_by(keys, begin, end) == (keys[expected].tolist(), expected)


@given(st.lists(st.floats(allow_nan=False), min_size=2, max_size=2))
def test_packed_numbers_compare_as_the_numbers_do(numbers):
    one, two = (int(order.sortable(number)) for number in numbers)
    assert (one < two, one == two) == (numbers[0] < numbers[1], numbers[0] == numbers[1])
