# SPDX-License-Identifier: Apache-2.0
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bodocache.plan import pairing

LANES, ROWS = 3, 12
LANE, ROW = st.integers(0, LANES - 1), st.integers(0, ROWS - 1)
KEY = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, np.inf])


class Lanes(RuleBasedStateMachine):
    """Against a dictionary of what is queued."""

    def __init__(self):
        super().__init__()
        self.nodes, self.heads = np.zeros(ROWS, pairing.NODE), np.zeros(LANES, np.int32)
        self.queued = {}

    def least(self, lane):
        keys = [(key, tie, row) for row, (at, key, tie) in self.queued.items() if at == lane]
        return min(keys)[2] if keys else -1

    @rule(lane=LANE, row=ROW, key=KEY, tie=st.integers(-2, 2))
    def put(self, lane, row, key, tie):
        pairing.put(self.nodes, self.heads, lane, row, key, tie)
        self.queued[row] = lane, key, tie

    @rule(row=ROW)
    def drop(self, row):
        pairing.drop(self.nodes, self.heads, row)
        self.queued.pop(row, None)

    @precondition(lambda self: self.queued)
    @rule(lane=LANE)
    def empty(self, lane):
        while (row := pairing.first(self.heads, lane)) >= 0:
            assert row == self.least(lane)
            self.drop(row)

    @invariant()
    def the_least_of_each_lane_is_first(self):
        for lane in range(LANES):
            assert pairing.first(self.heads, lane) == self.least(lane)
        assert {row for row in range(ROWS) if self.nodes["lane"][row]} == set(self.queued)


TestLanes = Lanes.TestCase
TestLanes.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_ten_thousand_rows_come_out_in_order():
    rows = 10_000
    nodes, heads = np.zeros(rows, pairing.NODE), np.zeros(1, np.int32)
    keys = np.random.default_rng(7).integers(0, 500, rows).astype(float)
    for row in range(rows):
        pairing.put(nodes, heads, 0, row, keys[row], 0)
    out = []
    while (row := int(pairing.first(heads, 0))) >= 0:
        pairing.drop(nodes, heads, row)
        out.append(row)
    assert out == sorted(range(rows), key=lambda row: (keys[row], row))
