# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bodocache.pages import PAGE, Tier
from bodocache.plan import evict, victims
from bodocache.plan.records import POLICY, TIERS, Feature

PAGES = 16
SECONDS = st.floats(0.0, 50.0)
TIER = st.sampled_from([Tier.HOST, Tier.DISK])


def policy_of(min_residence_s=0.0):
    policy = np.zeros(1, POLICY)
    policy["half_life_s"] = 60.0
    policy["features_off"] = Feature.REUSE  # by heat
    policy["min_residence_s"] = min_residence_s
    policy["load_s_per_byte"] = [0, 1e-10, 1e-9, 1e-8]
    policy["load_latency_s"] = [0, 1e-5, 1e-4, 1e-3]
    return policy


def tree(parents, heats=0.0, recompute_s=0.01):
    """Pages that lie nowhere yet; few distinct heats make ties."""
    pages = np.zeros(len(parents), PAGE)
    pages["parent"], pages["frame"], pages["nbytes"] = parents, -1, 4096
    for row, parent in enumerate(parents):
        pages["depth"][row] = 0 if parent < 0 else pages["depth"][parent] + 1
    pages["heat"] = heats
    pages["recompute_s"] = recompute_s
    return pages


# --- the twin: the order as DESIGN.md states it, from parents, tiers, pins and heat alone


def density(pages, policy, row, tier):
    page = pages[row]
    loads = policy["load_latency_s"][0] + policy["load_s_per_byte"][0] * page["nbytes"]
    slower = [loads[t] for t in range(tier + 1, TIERS) if page["tiers"] >> t & 1]
    saved_s = max(min([page["recompute_s"], *slower]) - loads[tier], 1e-9)
    return warmth(pages, policy, row) + np.log2(saved_s / page["nbytes"])


def warmth(pages, policy, row):
    with np.errstate(divide="ignore"):
        log_heat = np.log2(np.float64(pages["heat"][row]))
    return log_heat + pages["stamp_s"][row] / policy["half_life_s"][0]


def order(pages, queues, policy, tier, now_s):
    """Every page of the tier that can leave it, in the order it would."""
    here = [row for row in range(len(pages)) if pages["tiers"][row] >> tier & 1]
    keys = {row: own_key(pages, queues, policy, row, tier, now_s) for row in here}
    for row in sorted(here, key=lambda row: -int(pages["depth"][row])):
        parent = pages["parent"][row]
        if parent in keys:
            keys[parent] = max(keys[parent], keys[row])
    able = [row for row in here if keys[row] < np.inf]
    return sorted(able, key=lambda row: (keys[row], -int(pages["depth"][row]), row))


def own_key(pages, queues, policy, row, tier, now_s):
    children = pages["tiers"][pages["parent"] == row]
    last = pages["tiers"][row] == tier.bit
    others = (children & (0xFF - tier.bit)).any()  # a child that stays when this tier's have left
    young = queues.since_s[row, tier] + policy["min_residence_s"][0] > now_s
    held = pages["pins"][row] > 0 or young or (last and others)
    return np.inf if held else density(pages, policy, row, tier)


def check(pages, queues, policy):
    """Counts, heaps and keys are what a recount from scratch gives."""
    present = pages["tiers"] > 0
    for tier in Tier:
        here = pages["tiers"] >> tier & 1 == 1
        for row in range(len(pages)):
            child = pages["parent"] == row
            assert pages["children"][row, tier] == (child & here).sum()
            assert pages["descended"][row] == (child & present).sum()
        queued, kept = queued_in(queues, tier), kept_in(queues, tier)
        assert queued == [row for row in np.flatnonzero(here) if leaf(pages, row, tier)]
        assert kept == [row for row in np.flatnonzero(here) if is_kept(pages, row, tier)]
        assert (queues.nodes["key"][tier, kept] == pages["stamp_s"][kept]).all()
        for row in queued:
            node = queues.nodes[tier, row]
            if node["lane"] != evict.YOUNG + 1:
                assert node["key"] == pytest.approx(density(pages, policy, row, tier))
    for row in range(len(pages)):
        behind = np.flatnonzero(present & (pages["parent"] == row)).tolist()
        assert sorted(children_of(queues, row)) == behind
    for row in np.flatnonzero(present & (pages["parent"] >= 0)):
        parent = pages["parent"][row]
        assert present[parent], "an orphan"
        assert warmth(pages, policy, parent) >= warmth(pages, policy, row)


def leaf(pages, row, tier):
    children = pages["tiers"][pages["parent"] == row]
    last = pages["tiers"][row] == tier.bit
    return pages["pins"][row] == 0 and not (children if last else children >> tier & 1).any()


def is_kept(pages, row, tier):
    """Whether pages behind it, all in other tiers, keep its last copy here."""
    children = pages["tiers"][pages["parent"] == row]
    elsewhere = len(children) and children.any() and not (children >> tier & 1).any()
    return pages["tiers"][row] == tier.bit and pages["pins"][row] == 0 and elsewhere


def queued_in(queues, tier):
    lanes = queues.nodes["lane"][tier] - 1
    return np.flatnonzero((lanes >= 0) & (lanes < evict.kept_lane(queues, 0))).tolist()


def kept_in(queues, tier):
    return np.flatnonzero(queues.nodes["lane"][tier] > evict.kept_lane(queues, 0)).tolist()


def children_of(queues, row):
    children, child = [], int(queues.kin["child"][row]) - 1
    while child >= 0:
        children.append(child)
        child = int(queues.kin["next"][child]) - 1
    return children


def take(pages, queues, policy, tier, count, now_s):
    out = np.empty(count, np.int64)
    return out[: victims.coldest(pages, queues, policy, tier, count, now_s, out)].tolist()


def rows_of(*rows):
    return np.array(rows, np.int64)


# --- the stage against it


@st.composite
def trees(draw):
    size = draw(st.integers(1, 40))
    parents = [draw(st.integers(-1, row - 1)) for row in range(size)]
    few = st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.5]), min_size=size, max_size=size)
    pins = st.lists(st.sampled_from([0, 0, 0, 0, 1]), min_size=size, max_size=size)
    arrivals = st.lists(st.sampled_from([0.0, 0.0, 0.0, 9.0]), min_size=size, max_size=size)
    return parents, draw(few), draw(few), draw(pins), draw(arrivals)


@given(trees(), st.integers(0, 40))
@settings(max_examples=300)
def test_victims_are_the_first_of_the_order_by_subtree_maximum_deepest_first(case, count):
    parents, heats, costs, pins, arrivals = case
    pages, policy = tree(parents, heats, costs), policy_of(min_residence_s=5.0)
    queues = evict.open_queues(len(pages))
    pages["pins"] = pins
    for row, since_s in sorted(enumerate(arrivals), key=lambda arrival: arrival[1]):
        evict.arrive(pages, queues, policy, rows_of(row), Tier.HOST, since_s)
    expected = order(pages, queues, policy, Tier.HOST, 10.0)[:count]
    assert take(pages, queues, policy, Tier.HOST, count, 10.0) == expected


class Evictions(RuleBasedStateMachine):
    """Two tiers under everything that can happen, checked against a recount after each step."""

    @initialize(data=st.data(), min_residence_s=st.sampled_from([0.0, 30.0]))
    def open(self, data, min_residence_s):
        parents = [data.draw(st.integers(max(-1, row - 4), row - 1)) for row in range(PAGES)]
        costs = data.draw(st.lists(st.sampled_from([0.0, 0.01]), min_size=PAGES, max_size=PAGES))
        self.pages, self.policy = tree(parents, 0.0, costs), policy_of(min_residence_s)
        self.queues = evict.open_queues(PAGES)
        self.now_s = 0.0

    def state(self):
        return self.pages, self.queues, self.policy

    def chain(self, row):
        rows = []
        while row >= 0:
            rows.append(row)
            row = self.pages["parent"][row]
        return rows_of(*rows[::-1])

    @rule(row=st.integers(0, PAGES - 1), tier=TIER, passed_s=SECONDS)
    def arrive(self, row, tier, passed_s):
        self.now_s += passed_s
        evict.arrive(*self.state(), self.chain(row), tier, self.now_s)

    @rule(row=st.integers(0, PAGES - 1), tier=TIER)
    def arrive_without_its_ancestors(self, row, tier):
        parent = self.pages["parent"][row]
        if parent < 0 or self.pages["tiers"][parent]:
            evict.arrive(*self.state(), rows_of(row), tier, self.now_s)

    @rule(row=st.integers(0, PAGES - 1), passed_s=SECONDS, alone=st.booleans())
    def touch(self, row, passed_s, alone):
        self.now_s += passed_s
        rows = rows_of(row) if alone else self.chain(row)
        evict.touch(*self.state(), rows, self.now_s)

    @rule(row=st.integers(0, PAGES - 1))
    def pin(self, row):
        evict.pin(*self.state(), rows_of(row))

    @precondition(lambda self: self.pages["pins"].any())
    @rule(data=st.data())
    def unpin(self, data):
        pinned = np.flatnonzero(self.pages["pins"]).tolist()
        evict.unpin(*self.state(), rows_of(data.draw(st.sampled_from(pinned))))

    @rule(tier=TIER, data=st.data())
    def lose_a_leaf(self, tier, data):
        here = np.flatnonzero(self.pages["tiers"] >> tier & 1)
        leaves = [int(row) for row in here if leaf(self.pages, row, tier)]
        if leaves:
            evict.depart(*self.state(), rows_of(data.draw(st.sampled_from(leaves))), tier)

    @rule(tier=TIER, count=st.integers(0, 5), passed_s=SECONDS)
    def evict_some(self, tier, count, passed_s):
        self.now_s += passed_s
        expected = order(*self.state(), tier, self.now_s)[:count]
        assert take(*self.state(), tier, count, self.now_s) == expected

    @rule()
    def grow(self):
        rows = len(self.queues.since_s)
        self.queues = evict.grown(self.queues, rows + 1)
        pages = np.zeros(rows + 1, PAGE)
        pages[:rows] = self.pages
        pages["parent"][-1] = -1
        self.pages = pages

    @rule(min_residence_s=st.sampled_from([0.0, 5.0, 30.0]))
    def change_the_guard(self, min_residence_s):
        self.policy["min_residence_s"] = min_residence_s
        everything = np.arange(len(self.pages))
        evict.requeue(*self.state(), everything)

    @invariant()
    def state_is_what_a_recount_gives(self):
        check(*self.state())


Evictions.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestEvictions = Evictions.TestCase


def test_a_longer_guard_holds_for_pages_queued_before_it():
    pages, queues, policy = tree([-1, -1], 1.0), evict.open_queues(2), policy_of()
    evict.arrive(pages, queues, policy, rows_of(0), Tier.HOST, 0.0)
    evict.arrive(pages, queues, policy, rows_of(1), Tier.HOST, 8.0)
    policy["min_residence_s"] = 5.0
    assert take(pages, queues, policy, Tier.HOST, 2, 10.0) == [0]
    assert take(pages, queues, policy, Tier.HOST, 2, 13.0) == [1]


def test_a_parent_is_never_colder_than_its_child():
    pages, queues, policy = tree([-1, 0, 1], 1.0), evict.open_queues(3), policy_of()
    evict.arrive(pages, queues, policy, np.arange(3), Tier.HOST, 0.0)
    evict.touch(pages, queues, policy, rows_of(2), 30.0)
    assert pages["heat"][0] == pages["heat"][2]
    assert pages["stamp_s"][0] == 30.0


def test_a_copy_in_a_slower_tier_makes_a_page_cheaper_to_lose():
    pages, queues, policy = tree([-1, -1], 1.0), evict.open_queues(2), policy_of()
    evict.arrive(pages, queues, policy, rows_of(0, 1), Tier.HOST, 0.0)
    evict.arrive(pages, queues, policy, rows_of(1), Tier.DISK, 0.0)
    assert take(pages, queues, policy, Tier.HOST, 1, 0.0) == [1]


def test_a_held_copy_stays_and_what_leads_to_it_and_copies_elsewhere_go():
    pages, queues, policy = tree([-1, 0, -1], 1.0), evict.open_queues(3), policy_of()
    for tier in (Tier.HOST, Tier.DISK):
        evict.arrive(pages, queues, policy, np.arange(3), tier, 0.0)
    pages["holds"][1, Tier.HOST] = 1
    evict.requeue(pages, queues, policy, rows_of(1))
    assert take(pages, queues, policy, Tier.HOST, 3, 0.0) == [2]
    assert take(pages, queues, policy, Tier.DISK, 3, 0.0) == [1, 0, 2]
    pages["holds"][1, Tier.HOST] = 0
    evict.requeue(pages, queues, policy, rows_of(1))
    assert take(pages, queues, policy, Tier.HOST, 3, 0.0) == [1, 0]


@pytest.mark.parametrize("field", ["forecast", "rank"])
def test_hints_move_a_page_in_the_order_and_a_use_ends_what_was_forecast(field):
    pages, queues, policy = tree([-1, -1], 1.0), evict.open_queues(2), policy_of()
    evict.arrive(pages, queues, policy, np.arange(2), Tier.HOST, 0.0)
    pages[field] = [1.0, -np.inf]
    evict.touch(pages, queues, policy, rows_of(0, 1), 0.0)
    assert pages["forecast"].tolist() == [0.0, 0.0]
    pages[field] = [1.0, -np.inf]
    evict.requeue(pages, queues, policy, rows_of(0, 1))
    assert victims.price(pages, queues, policy, Tier.HOST, 0.0) == 0.0
    assert take(pages, queues, policy, Tier.HOST, 1, 0.0) == [1]
    plain, factor = tree([-1], 1.0), 2.0 ** pages[field][0]
    other = evict.open_queues(1)
    evict.arrive(plain, other, policy, rows_of(0), Tier.HOST, 0.0)
    evict.touch(plain, other, policy, rows_of(0), 0.0)
    prices = [
        victims.price(*state, policy, Tier.HOST, 0.0) for state in ((pages, queues), (plain, other))
    ]
    assert prices[0] == pytest.approx(factor * prices[1])


def test_price_is_the_density_of_the_next_to_leave():
    pages, queues, policy = tree([-1], 1.0), evict.open_queues(1), policy_of()
    assert victims.price(pages, queues, policy, Tier.DISK, 0.0) == np.inf
    evict.arrive(pages, queues, policy, rows_of(0), Tier.DISK, 0.0)
    saved_s = 0.01 - (1e-4 + 4096 * 1e-9)
    price = victims.price(pages, queues, policy, Tier.DISK, 60.0)  # one half-life later
    assert price == pytest.approx(0.5 * saved_s / 4096)


def test_the_churn_guard_lets_a_share_of_the_tier_go_in_its_time():
    pages, queues, policy = tree([-1] * 12, 1.0), evict.open_queues(12), policy_of()
    policy["churn_share"], policy["churn_s"], policy["capacity_pages"] = 0.25, 10.0, 12
    evict.arrive(pages, queues, policy, np.arange(12), Tier.HOST, 0.0)
    taken = [len(take(pages, queues, policy, Tier.HOST, 5, at_s)) for at_s in (0.0, 1.0, 4.0, 99.0)]
    assert taken == [3, 0, 1, 3]
    assert victims.allowance(queues, policy, Tier.DISK, 99.0) == 3


def test_a_tier_of_few_pages_may_always_lose_one():
    pages, queues, policy = tree([-1] * 2, 1.0), evict.open_queues(2), policy_of()
    policy["churn_share"], policy["churn_s"], policy["capacity_pages"] = 0.01, 10.0, 2
    evict.arrive(pages, queues, policy, np.arange(2), Tier.HOST, 0.0)
    assert len(take(pages, queues, policy, Tier.HOST, 2, 0.0)) == 1


def test_a_row_outside_the_table_is_an_assertion_error():
    pages, queues, policy = tree([-1]), evict.open_queues(1), policy_of()
    with pytest.raises(AssertionError):
        evict.arrive(pages, queues, policy, rows_of(1), Tier.HOST, 0.0)
    with pytest.raises(AssertionError):
        evict.unpin(pages, queues, policy, rows_of(0))
