# SPDX-License-Identifier: Apache-2.0
"""Pages that nothing but pages behind them elsewhere keep: these leave first."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache import jit
from bodocache.move import room
from bodocache.pages import NOWHERE, PAGE, Tier
from bodocache.plan import evict, kept, shares
from bodocache.plan.records import POLICY, Feature
from bodocache.plan.victims import Taker

jit.warm()  # here, not in a test: a cold compile is not part of any test's time

DEVICE, HOST, DISK, _ = Tier
ANYBODY = Taker(shares.ANYBODY, 0, 0)


class Table:
    """Pages that came at 0, and lie in the tiers of ``lies``; the first was used least lately."""

    def __init__(self, lies, parents, min_residence_s=0.0):
        count = len(lies)
        self.pages, self.policy = np.zeros(count, PAGE), np.zeros(1, POLICY)
        self.pages["parent"], self.pages["nbytes"], self.pages["heat"] = parents, 4096, 1.0
        self.pages["recompute_s"], self.policy["half_life_s"] = 0.01, 60.0
        self.policy["capacity_pages"] = count
        self.policy["features_off"] = Feature.REUSE  # by heat
        self.policy["min_residence_s"] = min_residence_s
        self.queues = evict.open_queues(count)
        for row, tiers in enumerate(lies):
            for tier in tiers:
                self.arrive(row, tier, 0.0)

    @property
    def state(self):
        return room.State(self.pages, self.queues, self.policy)

    def arrive(self, row, tier, now_s):
        evict.arrive(*self.state, np.array([row]), int(tier), now_s)

    def leave(self, tier, count, now_s):
        """What leaves, in order."""
        gone = room.leave(self.state, tier, count, ANYBODY, now_s)
        return [(step.tier, row) for step in gone for row in step.rows.tolist()]


def test_what_keeps_a_page_leaves_before_it_from_all_its_tiers():
    table = Table([[HOST], [DEVICE, DISK], [DISK]], [NOWHERE, 0, 1])
    gone = table.leave(HOST, 1, 1.0)
    assert gone == [(DEVICE, 1), (DISK, 2), (DISK, 1), (HOST, 0)]


def test_no_copy_leaves_that_has_not_been_in_its_tier_for_long_enough():
    """The page behind came to the host at 0, and to the disk at 100."""
    table = Table([[HOST], [HOST]], [NOWHERE, 0], min_residence_s=10.0)
    table.arrive(1, DISK, 100.0)
    assert table.leave(HOST, 1, 101.0) == [(HOST, 1)]
    assert table.leave(HOST, 1, 101.0) == []
    assert table.leave(HOST, 1, 109.9) == []
    assert table.leave(HOST, 1, 110.0) == [(DISK, 1), (HOST, 0)]


def test_the_page_itself_has_to_be_of_age():
    table = Table([[DISK], [DISK]], [NOWHERE, 0], min_residence_s=10.0)
    table.arrive(0, HOST, 100.0)
    evict.depart(*table.state, np.array([0]), int(DISK))
    assert table.leave(HOST, 1, 109.9) == []
    assert table.leave(HOST, 1, 110.0) == [(DISK, 1), (HOST, 0)]


@pytest.mark.parametrize("keep", ["pins", "holds"])
def test_a_page_that_could_not_go_is_looked_at_again_a_moment_later(keep):
    table = Table([[HOST], [DISK]], [NOWHERE, 0])
    table.pages[keep][1] = 1
    evict.requeue(*table.state, np.arange(2))
    assert table.leave(HOST, 1, 1.0) == []
    table.pages[keep][1] = 0
    evict.requeue(*table.state, np.array([1]))
    assert table.leave(HOST, 1, 1.0) == []  # the attempt is not made anew at once
    assert table.leave(HOST, 1, 1.0 + 3 * kept.LOOK_AGAIN_S) == [(DISK, 1), (HOST, 0)]


def test_an_attempt_looks_at_so_many_pages_and_the_next_one_goes_on():
    rows = np.arange(2 * kept.MOST)  # in pairs, of which an attempt looks at half
    table = Table([[HOST], [DISK]] * kept.MOST, np.where(rows % 2, rows - 1, NOWHERE))
    evict.pin(*table.state, rows[1:-2:2].copy())  # all but the last page on disk
    table.pages["stamp_s"] = rows * 1e-6
    evict.requeue(*table.state, rows)
    assert table.leave(HOST, 1, 1.0) == []
    assert table.leave(HOST, 1, 1.0) == [(DISK, rows[-1]), (HOST, rows[-2])]


def test_a_page_used_meanwhile_is_not_the_next():
    table = Table([[HOST], [DISK], [HOST], [DISK]], [NOWHERE, 0, NOWHERE, 2])
    evict.touch(*table.state, np.array([0]), 0.5)
    assert table.leave(HOST, 1, 1.0) == [(DISK, 3), (HOST, 2)]


def test_what_has_more_behind_it_than_there_is_memory_for_goes_whole():
    count = 2 * room._BEHIND
    table = Table([[HOST]] + [[DISK]] * count, np.arange(-1, count))
    assert table.leave(HOST, 1, 1.0) == [*[(DISK, row) for row in range(count, 0, -1)], (HOST, 0)]


def test_who_is_nobodys_child_any_more_keeps_nobody():
    table = Table([[HOST], [DISK], [DISK]], [NOWHERE, 0, 0])
    table.pages["parent"] = NOWHERE
    evict.disown(table.queues, np.array([0]))
    assert not table.queues.kin.view("<i4").any()


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=200)
def test_the_next_is_the_least_lately_used_that_can_go(seed):
    """Against a look at all pages, from parents and tiers alone."""
    chance = np.random.default_rng(seed)
    count = int(chance.integers(2, 24))
    parents = np.array([int(chance.integers(-1, row)) for row in range(count)])
    lies = [[HOST], [DISK], [DEVICE, DISK], [HOST, DISK]]
    table = Table([lies[kind] for kind in chance.integers(4, size=count)], parents)
    table.policy["min_residence_s"] = 10.0
    pinned = chance.random(count) < 0.1
    table.pages["pins"] = pinned
    young = chance.random(count) < 0.1
    table.queues.since_s[young] = 95.0
    table.pages["stamp_s"] = chance.permutation(count) / 1e3
    evict.requeue(*table.state, np.arange(count))
    able = {}
    for row in np.flatnonzero(table.pages["tiers"] == HOST.bit).tolist():
        family = behind(parents, row)
        there = (table.pages["tiers"][parents == row] & HOST.bit).any()
        if len(family) > 1 and not there and not (pinned | young)[family].any():
            able[row] = family[1:]
    out = np.empty(count, np.int64)
    found = kept.behind_next(*table.state, int(HOST), 100.0, ANYBODY, np.inf, out)
    first = min(able, key=lambda row: table.pages["stamp_s"][row], default=None)
    assert sorted(out[:found].tolist()) == sorted(able.get(first, []))
    place = {row: at for at, row in enumerate(out[:found].tolist())}
    assert all(place.get(parents[row], -1) < place[row] for row in place)


def behind(parents, row):
    """``row`` and all pages behind it."""
    family = [row]
    for other in range(row + 1, len(parents)):
        if parents[other] in family:
            family.append(other)
    return family
