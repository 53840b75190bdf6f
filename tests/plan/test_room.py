# SPDX-License-Identifier: Apache-2.0
"""EVICT ops: who leaves a tier for what a window brings there."""

import numpy as np
import pytest

from bodocache import jit
from bodocache.pages import NOWHERE, PAGE, Tier
from bodocache.plan import evict, shares, victims
from bodocache.plan.records import DEMAND, POLICY, TENANT, Feature, OpKind
from bodocache.plan.window import UNLIMITED, plan_window

jit.warm()  # here, not in a test: a cold compile is not part of any test's time

NBYTES = 4096
DEVICE, HOST, DISK, _ = Tier


class Case:
    """Pages that nobody needs another of; the first is the coldest."""

    def __init__(self, tiers, owners=0, parts=None, **capacities):
        count = len(tiers)
        self.pages, self.policy = np.zeros(count, PAGE), np.zeros(1, POLICY)
        self.pages["parent"], self.pages["nbytes"], self.pages["cluster"] = -1, NBYTES, NOWHERE
        self.pages["recompute_s"], self.pages["tenant"] = 0.01, owners
        self.pages["frame"], self.pages["heat"] = np.arange(count), 1.0 + np.arange(count)
        self.policy["half_life_s"], self.policy["chunk_nbytes"] = 60.0, 1 << 30
        self.policy["features_off"] = Feature.REUSE | Feature.ADMIT
        for name, capacity in capacities.items():
            self.policy["capacity_pages"][0, Tier[name.upper()]] = capacity
        self.queues = evict.open_queues(count, shares.open_tally(parts))
        for row, tier in enumerate(tiers):
            evict.arrive(self.pages, self.queues, self.policy, np.array([row]), int(tier), 0.0)

    def plan(self, rows, kind=OpKind.LOAD, free_frames=UNLIMITED, tenant=0, tenants=None):
        demands = np.zeros(len(rows), DEMAND)
        demands["page"], demands["kind"], demands["deadline_s"] = rows, kind, 7.0
        demands["request"], demands["tenant"] = np.arange(len(rows)), tenant
        table = np.zeros(0, TENANT) if tenants is None else tenants
        tables = demands, self.pages, self.queues, self.policy
        return plan_window(*tables, tenants=table, free_frames=free_frames)

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
    case = Case([DEVICE] * 6 + [HOST] * 2, device=6)
    case.pages["parent"][1], case.pages["depth"][1] = 0, 1
    case.queues = evict.open_queues(8)
    case.pages["tiers"] = case.pages["children"] = case.pages["descended"] = 0
    tiers = np.repeat([DEVICE, HOST], [6, 2])
    for row, tier in enumerate(tiers):
        evict.arrive(case.pages, case.queues, case.policy, np.array([row]), int(tier), 0.0)
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
    case = Case([DEVICE] * 8 + [HOST] * 2, owners, parts, device=8)
    assert case.leaves([8, 9], tenant=tenant) == ({DEVICE: leave} if leave else {})


def test_the_churn_guard_holds_for_plans():
    case = Case([DEVICE] * 8 + [HOST] * 4, device=8)
    case.policy["churn_share"], case.policy["churn_s"] = 0.25, 1.0
    assert case.leaves([8, 9, 10, 11]) == {DEVICE: [0, 1]}
