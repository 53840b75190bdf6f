# SPDX-License-Identifier: Apache-2.0
"""EVICT ops: who leaves a tier for what a window brings there."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache import jit
from bodocache.pages import NOWHERE, PAGE, Tier
from bodocache.plan import evict, shares, victims
from bodocache.plan.records import DEMAND, POLICY, TENANT, Fate, Feature, OpKind
from bodocache.plan.window import Inputs, Planner, plan_window

jit.warm()  # here, not in a test: a cold compile is not part of any test's time

NBYTES = 4096
DEVICE, HOST, DISK, _ = Tier


class Case:
    """Pages, each in a tier or several; the first is the coldest."""

    def __init__(self, tiers, owners=0, parts=None, parents=NOWHERE, **capacities):
        count = len(tiers)
        self.pages, self.policy = np.zeros(count, PAGE), np.zeros(1, POLICY)
        self.pages["parent"], self.pages["nbytes"], self.pages["cluster"] = parents, NBYTES, NOWHERE
        self.pages["recompute_s"], self.pages["tenant"] = 0.01, owners
        self.pages["frame"], self.pages["heat"] = np.arange(count), 1.0 + np.arange(count)
        self.policy["half_life_s"], self.policy["chunk_nbytes"] = 60.0, 1 << 30
        self.policy["features_off"] = Feature.REUSE | Feature.ADMIT
        for name, capacity in capacities.items():
            self.policy["capacity_pages"][0, Tier[name.upper()]] = capacity
        self.queues = evict.open_queues(count, shares.open_tally(parts))
        for row, where in enumerate(tiers):
            for tier in [where] if isinstance(where, Tier) else where:
                self.arrive(row, tier, 0.0)

    def state(self):
        return self.pages, self.queues, self.policy

    def arrive(self, row, tier, now_s):
        evict.arrive(self.pages, self.queues, self.policy, np.array([row]), int(tier), now_s)

    def plan(self, rows, kind=OpKind.LOAD, tenant=0, tenants=None, **options):
        demands = np.zeros(len(rows), DEMAND)
        demands["page"], demands["kind"], demands["deadline_s"] = rows, kind, 7.0
        demands["request"], demands["tenant"] = np.arange(len(rows)), tenant
        table = np.zeros(0, TENANT) if tenants is None else tenants
        tables = demands, self.pages, self.queues, self.policy
        return plan_window(*tables, tenants=table, evicts=True, **options)

    def leaves(self, *args, **options):
        """The pages of the EVICT ops, by tier."""
        made, gone = self.plan(*args, **options), {}
        for op in made.ops[made.ops["kind"] == OpKind.EVICT]:
            rows = made.rows[op["first"] : op["first"] + op["count"]].tolist()
            gone.setdefault(Tier(op["source"]), []).extend(rows)
        return gone


def test_a_load_to_a_full_device_has_the_coldest_pages_leave_it():
    case = Case([DEVICE] * 3 + [HOST] * 2, device=3)
    made = case.plan([3, 4])
    out, load = made.ops[0], made.ops[1:]
    assert (out["kind"], out["source"], out["destination"]) == (OpKind.EVICT, DEVICE, DEVICE)
    assert (out["count"], out["nbytes"], out["deadline_s"]) == (2, 2 * NBYTES, 7.0)
    assert made.rows.tolist() == [0, 1, 3, 4]
    assert (load["first"].tolist(), made.answers.tolist()) == ([2, 3], [0, 0, 0, 1, 2])


@pytest.mark.parametrize(("capacity", "leave"), [(0, 0), (5, 0), (4, 1), (3, 2)])
def test_as_many_leave_as_have_no_place(capacity, leave):
    case = Case([DEVICE] * 3 + [HOST] * 2, device=capacity)
    assert case.leaves([3, 4]) == ({DEVICE: list(range(leave))} if leave else {})


def test_a_write_to_a_full_disk_has_room_made_for_it():
    case = Case([DISK] * 3 + [HOST], disk=4)
    assert case.leaves([3], OpKind.WRITE) == {}
    assert case.leaves([3], OpKind.WRITE, free_frames=0) == {DISK: [0]}


def test_a_prewarm_makes_room_on_the_host():
    case = Case([HOST] * 2 + [DISK], host=2)
    assert case.leaves([2], OpKind.PREWARM) == {HOST: [0]}


def test_what_the_window_demands_does_not_leave():
    case = Case([HOST, HOST, DISK], host=2)
    demands = np.array([0, 2])
    made = case.plan(demands, np.array([OpKind.LOAD, OpKind.PREFETCH]))
    assert made.rows[: made.ops["count"][0]].tolist() == [1]


def test_a_plan_changes_no_page_and_no_queue():
    parents = [NOWHERE, 0, *[NOWHERE] * 6]
    case = Case([DEVICE] * 6 + [HOST] * 2, parents=parents, device=6)
    before, used = case.pages.copy(), case.queues.tally.used.copy()
    first = case.leaves([6, 7])
    assert (case.pages == before).all()
    assert (case.queues.tally.used == used).all()
    assert not case.queues.churned.any()
    assert case.leaves([6, 7]) == first
    out = np.empty(2, np.int64)
    state = case.pages, case.queues, case.policy
    assert victims.coldest(*state, int(DEVICE), 2, 0.0, out) == 2
    assert out.tolist() == first[DEVICE]


@pytest.mark.parametrize(("tenant", "leave"), [(1, [0, 1]), (2, [1, 2]), (0, None)])
def test_only_pages_that_the_tenant_may_evict_leave(tenant, leave):
    """Tenant 1 is below its share, 2 above its own, and the others have none."""
    owners, parts = [1, 2, 2, 2, 2, 2, 1, 1, 0, 0], {1: 0.625, 2: 0.375}
    case, tenants = (
        Case([DEVICE] * 8 + [HOST] * 2, owners, parts, device=8),
        tenants_of(0, *parts.values()),
    )
    left = case.leaves([8, 9], tenant=tenant, tenants=tenants)
    assert left == ({DEVICE: leave} if leave else {})


def test_each_page_of_an_op_is_charged_to_who_asks_for_it_most_urgently():
    """Tenant 0 has its share, tenant 1 lacks 3 pages, and tenant 2 has 3 too many."""
    shares_of = {0: 0.25, 1: 0.25, 2: 0.5}
    tiers, owners = [HOST] * 12 + [DISK] * 4, [2] * 9 + [0] * 3 + [1] * 4
    for asks, leave in [
        ([0, 1, 1, 1], [9, 0, 1, 2]),  # its own page for tenant 0, the others for tenant 1
        ([1, 0, 1, 1], [0, 1, 2, 9]),
        ([1, 1, 1, 1], [0, 1, 2]),
        ([0, 0, 0, 0], [9, 10, 11]),
    ]:
        case = Case(tiers, owners, shares_of, host=12)
        case.pages["cluster"] = 0
        options = {"tenant": asks, "tenants": tenants_of(*shares_of.values())}
        made = case.plan([12, 13, 14, 15], OpKind.PREFETCH, **options)
        assert made.ops["count"][made.ops["kind"] == OpKind.PREFETCH].tolist() == [4]
        assert case.leaves([12, 13, 14, 15], OpKind.PREFETCH, **options) == {HOST: leave}


def test_free_places_count_for_those_who_get_them():
    """Tenant 1 lacks 2 pages; one place is free, for the page that is read first."""
    case = Case([HOST] * 7 + [DISK] * 2, [2] * 5 + [1] * 4, {1: 0.5, 2: 0.5}, host=8)
    case.pages["cluster"] = 0
    options = {"tenants": tenants_of(0, 0.5, 0.5)}
    assert case.leaves([7, 8], OpKind.PREFETCH, tenant=[1, 2], **options) == {HOST: [0]}
    assert case.leaves([7, 8], OpKind.PREFETCH, tenant=[2, 1], **options) == {HOST: [0]}
    assert case.leaves([7], OpKind.PREFETCH, tenant=[2], **options) == {}


def test_the_churn_guard_holds_for_plans():
    case = Case([DEVICE] * 8 + [HOST] * 4, device=8)
    case.policy["churn_share"], case.policy["churn_s"] = 0.25, 1.0
    assert case.leaves([8, 9, 10, 11]) == {DEVICE: [0, 1]}


# --- the time of the window


def test_a_page_is_of_age_as_of_the_window():
    case = Case([HOST] * 2 + [DISK], host=2)
    case.policy["min_residence_s"] = 10.0
    assert case.leaves([2], OpKind.PREFETCH, now_s=5.0) == {}
    assert case.leaves([2], OpKind.PREFETCH, now_s=100.0) == {HOST: [0]}


def test_the_churn_guard_has_forgotten_what_left_long_ago():
    case = Case([HOST] * 4 + [DISK] * 2, host=3)
    case.policy["churn_share"], case.policy["churn_s"] = 0.34, 1.0
    assert victims.coldest(*case.state(), int(HOST), 4, 0.0, np.empty(4, np.int64)) == 1
    assert case.leaves([4, 5], OpKind.PREFETCH, now_s=0.0) == {}
    assert case.leaves([4, 5], OpKind.PREFETCH, now_s=100.0) == {HOST: [1]}


def test_a_write_is_weighed_against_pages_that_are_of_age_as_of_the_window():
    case = Case([DISK, HOST], disk=1)
    case.policy["features_off"], case.policy["min_residence_s"] = Feature.REUSE, 10.0
    evict.requeue(*case.state(), np.arange(2))
    assert case.plan([1], OpKind.WRITE, free_frames=0, now_s=5.0).fates.tolist() == [Fate.REFUSED]
    assert case.leaves([1], OpKind.WRITE, free_frames=0, now_s=100.0) == {DISK: [0]}


# --- several tiers at once


def test_a_page_that_leaves_one_tier_stays_in_the_other_for_its_child():
    case = Case([[DEVICE, HOST], DISK, DISK, DISK], parents=[NOWHERE, 0, NOWHERE, NOWHERE])
    case.policy["capacity_pages"][0, :2] = 1
    kinds = np.array([OpKind.LOAD, OpKind.PREFETCH])
    assert case.leaves([2, 3], kinds) == {DEVICE: [0]}


class Forest:
    """Random trees in full tiers, pages pinned, held or young, and what a window asks of them."""

    def __init__(self, seed):
        chance = np.random.default_rng(seed)
        count = int(chance.integers(4, 30))
        drawn = [int(chance.integers(-1, i)) for i in range(count)]
        self.parents, self.lies = np.array(drawn), np.zeros((count, 3), np.bool_)
        for row in range(count):  # each lies somewhere, so that all can be reached
            held = chance.choice([1, 2, 3, 4, 5, 7], p=[0.1, 0.15, 0.25, 0.3, 0.1, 0.1])
            self.lies[row] = [held >> tier & 1 for tier in range(3)]
        capacities = dict(zip(("device", "host", "disk"), self.lies.sum(0).tolist(), strict=True))
        tiers = [[tier for tier in (DEVICE, HOST, DISK) if row[tier]] for row in self.lies]
        self.case = Case(tiers, parents=self.parents, **capacities)
        if chance.random() < 0.5:
            self.case.policy["features_off"] = Feature.ADMIT
        self.kept = self._keep(chance, count)
        state = self.case.pages, self.case.queues, self.case.policy
        evict.requeue(*state, np.arange(count))
        self.rows = chance.choice(count, int(chance.integers(1, count)), replace=False)
        self.kinds = chance.choice([OpKind.LOAD, OpKind.PREFETCH, OpKind.WRITE], len(self.rows))
        self.kept |= {(int(row), tier) for row in self.rows for tier in range(3)}

    def _keep(self, chance, count):
        """Pin, hold and renew some; which (row, tier) may not leave."""
        case, kept = self.case, set()
        state = case.pages, case.queues, case.policy
        for row in np.flatnonzero(chance.random(count) < 0.2):
            tier, how = int(chance.choice(np.flatnonzero(self.lies[row]))), chance.integers(3)
            kept |= {(int(row), it) for it in range(3) if how == 0 or it == tier}
            if how == 0:
                evict.pin(*state, np.array([row]))
            elif how == 1:
                case.pages["holds"][row, tier] = 1
                evict.requeue(*state, np.array([row]))
            else:
                case.policy["min_residence_s"] = 5.0
                evict.depart(*state, np.array([row]), tier)
                case.arrive(int(row), tier, 9.0)
        return kept

    def may_leave(self, row, tier):
        """Whether nobody needs that copy: a scan of all pages."""
        if not self.lies[row, tier] or (row, tier) in self.kept:
            return False
        behind = self.lies[self.parents == row]
        return not (behind[:, tier] if self.lies[row].sum() > 1 else behind).any()


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=200)
def test_what_leaves_several_tiers_can_leave_them_in_that_order(seed):
    """Executed page after page, no op takes one that another needs, and none is forgotten."""
    forest = Forest(seed)
    case, used = forest.case, forest.lies.sum(0)
    before = [array.tobytes() for array in (case.pages, *queued(case.queues))]
    made = case.plan(forest.rows, forest.kinds)
    assert [array.tobytes() for array in (case.pages, *queued(case.queues))] == before
    goes = made.ops["kind"] == OpKind.EVICT
    out, moves = made.ops[goes], made.ops[~goes]
    assert (np.diff(out["source"].astype(int)) >= 0).all()
    for tier in range(3):
        short = int(moves["count"][moves["destination"] == tier].sum())
        assert used[tier] == case.policy["capacity_pages"][0, tier]
        for op in out[out["source"] == tier]:
            for row in made.rows[op["first"] : op["first"] + op["count"]].tolist():
                assert forest.may_leave(row, tier)
                forest.lies[row, tier] = False
                short -= 1
        assert short == 0 or not any(forest.may_leave(row, tier) for row in range(len(case.pages)))
        assert short >= 0


def queued(queues):
    """Who is in which queue, in what order; and the counts."""
    keys = np.where(queues.nodes["lane"] > 0, queues.nodes["key"], 0)
    return queues.nodes["lane"], keys, *counts_of(queues)


def counts_of(queues):
    return queues.tally.used, queues.churned, queues.unproven, queues.counted


# --- who asks for it, and bad pages


def test_a_window_that_is_not_asked_to_makes_no_room():
    case = Case([DEVICE] * 3 + [HOST] * 2, device=3)
    demands = np.zeros(2, DEMAND)
    demands["page"], demands["deadline_s"] = [3, 4], 7.0
    made = plan_window(demands, case.pages, case.queues, case.policy)
    assert made.ops["kind"].tolist() == [OpKind.LOAD]


def tenants_of(*shares_of_tier):
    tenants = np.zeros(len(shares_of_tier), TENANT)
    tenants["rate"], tenants["cap"], tenants["held"] = 1e9, 1 << 40, 1 << 39
    tenants["share"] = shares_of_tier
    return tenants


def test_a_tenants_share_decides_whose_pages_leave():
    tenants = tenants_of(0.0, 0.25, 0.75)
    case = Case([DEVICE] * 4 + [HOST], [2, 1, 1, 2, 1], {1: 0.25, 2: 0.75}, device=4)
    assert case.leaves([4], tenant=1, tenants=tenants) == {DEVICE: [1]}
    equal = Case([DEVICE] * 4 + [HOST], [2, 1, 1, 2, 1], device=4)
    tenants["share"] = 0
    assert equal.leaves([4], tenant=1, tenants=tenants) == {DEVICE: [0]}


def test_a_share_that_the_queues_do_not_know_is_refused():
    tenants = tenants_of(0.0, 0.5)
    case = Case([DEVICE, HOST], [1, 1], {1: 0.25}, device=1)
    before = tenants.tobytes()
    with pytest.raises(ValueError, match=r"tenants.share: row 1: 0.5 is not what the queues"):
        case.plan([1], tenant=1, tenants=tenants)
    assert tenants.tobytes() == before
    case.queues.tally.parts[1] = 0.5
    assert len(case.plan([1], tenant=1, tenants=tenants).ops) == 2


@pytest.mark.parametrize("tenants", [None, "too few"])
def test_a_table_without_a_tenant_that_has_a_share_is_refused(tenants):
    tenants = tenants if tenants is None else tenants_of(0.0)
    case = Case([DEVICE, HOST], [1, 1], {1: 0.25}, device=1)
    with pytest.raises(ValueError, match=r"tenants.share: row 1: no such row is not what the qu"):
        case.plan([1], tenant=0, tenants=tenants)


def test_a_page_with_as_many_pins_as_there_can_be_is_planned_like_any():
    case = Case([DEVICE] * 2 + [HOST], device=2)
    case.pages["pins"][2] = 2**32 - 1
    assert case.leaves([2]) == {DEVICE: [0]}
    assert case.pages["pins"][2] == 2**32 - 1


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("parent", 10**9, "pages.parent: row 1: 1000000000 is outside the table of 4 pages"),
        ("parent", -2, "pages.parent: row 1: -2 is outside"),
        ("nbytes", 0, "pages.nbytes: row 1: 0"),
        ("tiers", 255, "pages.tiers: row 1: 255 has bits"),
        ("tiers", 0, "pages.tiers: row 1: 0 lacks a tier that the queues know it in"),
        ("tiers", HOST.bit, "pages.tiers: row 1: 2 lacks a tier"),
        ("cluster", 4, "pages.cluster: row 1: 4 is outside"),
        ("heat", np.nan, "pages.heat: row 1: nan is not a finite number"),
        ("stamp_s", np.nan, "pages.stamp_s: row 1: nan"),
        ("recompute_s", np.inf, "pages.recompute_s: row 1: inf"),
        ("forecast", np.nan, "pages.forecast: row 1: nan, rank 0.0"),
        ("rank", np.nan, "pages.forecast: row 1: 0.0, rank nan"),
    ],
)
def test_a_bad_page_that_was_to_leave_is_named_and_changes_nothing(field, value, says):
    """Row 0 has left by then, and the tenant was charged."""
    case, planner = Case([DEVICE] * 2 + [HOST] * 2, device=2), Planner()
    demands, tenants = np.zeros(2, DEMAND), tenants_of(0.0)
    demands["page"], demands["request"], good = [2, 3], [0, 1], case.pages[field][1]
    inputs = Inputs(demands, case.pages, case.policy, tenants)
    case.pages[field][1] = value
    before = [table.tobytes() for table in (case.pages, tenants, *queued(case.queues))]
    with pytest.raises(ValueError, match=says):
        planner.plan(inputs, case.queues, now_s=1.0, evicts=True)
    assert [table.tobytes() for table in (case.pages, tenants, *queued(case.queues))] == before
    case.pages[field][1] = good
    made = planner.plan(inputs, case.queues, now_s=0.5, evicts=True)  # 1.0 was no window
    assert made.rows.tolist() == [0, 1, 2, 3]


def test_a_parent_that_is_no_row_is_followed_nowhere():
    case = Case([DEVICE] * 2, device=2)
    case.pages["parent"] = [10**9, -(2**31)]
    state = case.pages, case.queues, case.policy
    evict.touch(*state, np.array([0, 1]), 1.0)
    evict.depart(*state, np.array([0, 1]), DEVICE)
    case.arrive(0, DEVICE, 2.0)
    out = np.empty(2, np.int64)
    assert victims.coldest(*state, int(DEVICE), 2, 2.0, out) == 1
