# SPDX-License-Identifier: Apache-2.0
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache.plan import pairing

ROWS, LANES = 12, 3
STEPS = st.lists(
    st.tuples(
        st.integers(0, ROWS - 1),
        st.integers(0, LANES - 1),
        st.sampled_from([0.0, 1.0, 2.0]),
        st.integers(-1, 1),
    ),
    max_size=60,
)


@given(STEPS)
@settings(max_examples=300, deadline=None)
def test_the_first_row_is_the_least_of_its_heap_whatever_was_put_and_dropped(steps):
    nodes, roots, queued = np.zeros(ROWS, pairing.NODE), np.zeros(LANES, np.int32), {}
    for row, lane, key, tie in steps:
        if row in queued:
            pairing.drop(nodes, roots, row)
            del queued[row]
        else:
            pairing.put(nodes, roots, lane, row, key, tie)
            queued[row] = lane, (key, tie, row)
        for each in range(LANES):
            least = min((order for at, order in queued.values() if at == each), default=(-1,))
            assert pairing.first(roots, each) == least[-1]


def test_rows_leave_in_order_from_the_top():
    nodes, roots = np.zeros(500, pairing.NODE), np.zeros(1, np.int32)
    keys = np.random.default_rng(1).integers(0, 50, 500).astype(np.float64)
    for row, key in enumerate(keys):
        pairing.put(nodes, roots, 0, row, key, 0)
    popped = []
    while (row := pairing.first(roots, 0)) >= 0:
        popped.append(row)
        pairing.drop(nodes, roots, row)
    assert popped == np.lexsort((np.arange(500), keys)).tolist()


def test_dropping_a_row_that_is_in_no_heap_does_nothing():
    nodes, roots = np.zeros(2, pairing.NODE), np.zeros(1, np.int32)
    pairing.put(nodes, roots, 0, 1, 3.0, 0)
    pairing.drop(nodes, roots, 0)
    assert pairing.first(roots, 0) == 1
