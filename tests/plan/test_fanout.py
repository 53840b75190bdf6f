# SPDX-License-Identifier: Apache-2.0
"""Single flight and clusters, against the definitions in plain Python."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache.pages import NOWHERE, PAGE, Tier
from bodocache.plan import evict, fanout, order
from bodocache.plan.facts import FACT
from bodocache.plan.records import DEMAND, POLICY, Feature, OpKind
from bodocache.plan.window import plan_window
from bodocache.replay.trace import load_trace

HALF_LIFE_S = 60.0


class Traffic:
    """A page table that requests pass through."""

    def __init__(self, parents):
        self.pages = np.zeros(len(parents), PAGE)
        self.pages["parent"], self.pages["cluster"] = parents, NOWHERE
        self.pages["nbytes"] = 4096
        self.policy = np.zeros(1, POLICY)
        self.policy["half_life_s"], self.policy["chunk_nbytes"] = HALF_LIFE_S, 1 << 20
        self.queues, self.passing = evict.open_queues(len(parents)), fanout.nobody()

    def request(self, rows, now_s):
        rows = np.array(rows, np.int64)
        evict.touch(self.pages, self.queues, self.policy, rows, now_s)
        fanout.count(self.passing, self.policy, 1, now_s)
        fanout.follow(self.passing, self.pages, self.policy, rows, now_s)

    def clusters(self, rows=slice(None)):
        return self.pages["cluster"][rows].tolist()


def path(parents, leaf):
    rows = [leaf]
    while parents[rows[0]] >= 0:
        rows.insert(0, parents[rows[0]])
    return rows


# --- clusters


class Twin:
    """Counts every request through every page, and keeps who was above."""

    def __init__(self, parents):
        self.parents, self.passed, self.requests = parents, [[] for _ in parents], []
        self.clusters = [NOWHERE] * len(parents)

    def recent(self, times, now_s):
        return sum(2.0 ** ((at - now_s) / HALF_LIFE_S) for at in times)

    def request(self, leaf, now_s):
        rows = path(self.parents, leaf)
        self.requests.append(now_s)
        for row in rows:
            self.passed[row].append(now_s)
        limit = max(0.01 * self.recent(self.requests, now_s), 4.0)
        cluster = fanout.ABOVE
        for row in rows:
            bound = limit / 2 if self.clusters[row] == fanout.ABOVE else limit
            if cluster < 0 and self.recent(self.passed[row], now_s) <= bound:
                cluster = row
            self.clusters[row] = cluster


@st.composite
def traffic(draw):
    parents = [-1, *(draw(st.integers(-1, row - 1)) for row in range(1, draw(st.integers(1, 8))))]
    leaves = st.integers(0, len(parents) - 1)
    gaps_s = st.sampled_from([0.0, 0.0, 1.0, 17.0, 100.0])
    return parents, draw(st.lists(st.tuples(leaves, gaps_s), max_size=60))


@given(traffic())
@settings(max_examples=200, deadline=None)
def test_clusters_are_those_of_a_program_that_counts_requests(case):
    parents, requests = case
    table, twin, now_s = Traffic(parents), Twin(parents), 0.0
    for leaf, gap_s in requests:
        now_s += gap_s
        table.request(path(parents, leaf), now_s)
        twin.request(leaf, now_s)
        assert table.clusters() == twin.clusters


def test_what_all_requests_share_is_above_and_each_tail_is_a_cluster():
    table = Traffic([-1, 0, 1, 0, 3])
    for now_s in range(3):
        table.request([0, 1, 2], now_s)
        table.request([0, 3, 4], now_s)
    assert table.clusters() == [fanout.ABOVE, 1, 1, 3, 3]


def test_a_cluster_that_grows_hot_is_split_and_one_that_cools_is_whole_again():
    table = Traffic([-1, 0, 1])
    table.request([0, 1, 2], 0.0)
    assert table.clusters() == [0, 0, 0]
    for _ in range(8):
        table.request([0, 1], 0.0)
    table.request([0, 1, 2], 0.0)
    assert table.clusters() == [fanout.ABOVE, fanout.ABOVE, 2]
    table.request([0, 1, 2], 5 * HALF_LIFE_S)
    assert table.clusters() == [0, 0, 0]


def test_near_the_limit_ids_do_not_flap():
    table, seen = Traffic([-1, 0]), []
    for now_s in np.cumsum([0.0] * 5 + [25.0, 20.0, 20.0, 25.0, 15.0] * 4):
        table.request([0, 1], now_s)  # from 2 to 5 recent requests: the limit is 4
        seen.append(table.clusters())
    assert sum(one != two for one, two in pairwise(seen)) == 1


def test_the_conversation_trace_has_a_cluster_for_each_second_page(conversation_trace):
    trace = load_trace(conversation_trace)
    table = Traffic(trace.parent)
    table.policy["half_life_s"] = 600.0
    for r, now_s in enumerate(trace.timestamps_s):
        table.request(trace.pages[trace.offsets[r] : trace.offsets[r + 1]], now_s)
    above = table.pages["cluster"] == fanout.ABOVE
    assert np.flatnonzero(above).tolist() == [0]
    nodes = np.unique(table.pages["cluster"][~above])
    assert trace.depth[nodes].max() == 1
    # 7,373, but for two whose only requests came while page 0 itself was a cluster: the first four
    assert len(nodes) == 1 + 7371


# --- single flight


@given(st.lists(st.sampled_from([0, 1, 2, 2**24, 2**63, 2**64 - 1]), max_size=40))
def test_each_demand_is_led_by_the_first_of_its_key(keys):
    facts, leads = np.zeros(len(keys), FACT), np.empty(len(keys), np.int32)
    facts["key"] = np.array(keys, np.uint64)
    table = np.full(1 << order.table_bits(len(keys)), -1, np.int32)
    fanout.join(facts, table, leads)
    assert leads.tolist() == [keys.index(key) for key in keys]


def demands(*requests):
    """Demands of requests: (pages, node, kind, deadline_s), numbered as they come."""
    made = [np.zeros(len(pages), DEMAND) for pages, *_ in requests]
    for request, (some, (pages, node, kind, deadline_s)) in enumerate(
        zip(made, requests, strict=True)
    ):
        some["page"], some["request"], some["deadline_s"] = pages, request, deadline_s
        some["node"], some["kind"] = node, kind
    return np.concatenate(made).astype(DEMAND)


def planned(asked, features_off=0):
    table = Traffic([-1, 0, 1])
    table.pages["tiers"], table.pages["cluster"] = Tier.HOST.bit, [fanout.ABOVE, 1, 1]
    table.pages["heat"], table.pages["recompute_s"] = 1.0, 0.01
    table.policy["features_off"] = features_off
    return plan_window(asked, table.pages, table.queues, table.policy)


def test_two_requests_for_one_prefix_move_it_once_by_the_earlier_deadline():
    load = OpKind.LOAD
    made = planned(demands(([0, 1], 0, load, 9.0), ([0, 1, 2], 0, load, 5.0)))
    assert sorted(made.rows.tolist()) == [0, 1, 2]
    assert made.ops["deadline_s"].tolist() == [5.0, 5.0]
    assert made.ops["request"].tolist() == [1, 1]
    assert made.ops["cluster"].tolist() == [-1, 1]
    assert sorted(made.demands.tolist()) == [0, 1, 2, 3, 4]
    assert made.demands[made.answers[0] : made.answers[1]].tolist() == [2, 0]


def test_other_nodes_and_kinds_fly_alone():
    load, write = OpKind.LOAD, OpKind.WRITE
    asked = demands(([0], 0, load, 1.0), ([0], 1, load, 1.0), ([0], 0, write, 1.0))
    assert planned(asked).rows.tolist() == [0, 0, 0]


def test_without_fan_out_every_request_moves_its_own_pages():
    asked = demands(([1], 0, OpKind.LOAD, 9.0), ([1], 0, OpKind.LOAD, 5.0))
    assert planned(asked).ops["count"].tolist() == [1]
    off = planned(asked, Feature.FANOUT)
    assert off.ops["deadline_s"].tolist() == [5.0, 9.0]
    assert off.ops["cluster"].tolist() == [-1, -1]
