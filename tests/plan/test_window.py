# SPDX-License-Identifier: Apache-2.0
"""The stages together: what each decides, that each can be switched off, and what is refused."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache.pages import NOWHERE, PAGE, Tier
from bodocache.plan import evict
from bodocache.plan.heat import NEVER_FADES_S
from bodocache.plan.loads import Verdict
from bodocache.plan.records import (
    DEMAND,
    IO,
    LINK,
    POLICY,
    REQUEST,
    TENANT,
    Fate,
    Feature,
    OpKind,
)
from bodocache.plan.tardiness import Z90
from bodocache.plan.window import Inputs, Planner, plan_window

NBYTES, PAGE_TOKENS, LAYERS = 1 << 20, 100, 8
DEVICE, HOST, DISK, REMOTE = Tier


class Case:
    """A chain of pages, one request a tenant for all of them, on one node."""

    def __init__(self, pages=4, requests=1, tier=HOST, kind=OpKind.LOAD, deadline_s=np.inf):
        self.pages = np.zeros(pages, PAGE)
        self.pages["parent"], self.pages["depth"] = np.arange(pages) - 1, np.arange(pages)
        self.pages["nbytes"], self.pages["tiers"] = NBYTES, tier.bit
        self.pages["heat"], self.pages["recompute_s"] = 1.0, 0.01
        self.pages["frame"], self.pages["cluster"] = np.arange(pages), NOWHERE
        self.queues = evict.open_queues(pages)
        self.policy = np.zeros(1, POLICY)
        self.policy["half_life_s"], self.policy["chunk_nbytes"] = 60.0, 1 << 30
        self.demands = np.zeros(pages * requests, DEMAND)
        self.demands["page"] = np.tile(np.arange(pages), requests)
        self.demands["request"] = np.repeat(np.arange(requests), pages)
        self.demands["kind"], self.demands["deadline_s"] = kind, deadline_s
        self.links = np.zeros(0, LINK)
        self.tenants, self.requests = np.zeros(0, TENANT), np.zeros(0, REQUEST)

    def with_links(self, host=1e9, disk=1e8, queued_nbytes=0):
        self.links = np.zeros(2, LINK)
        self.links["rate"], self.links["queued_nbytes"] = [host, disk], queued_nbytes
        self.links["source"], self.links["destination"] = [HOST, DISK], [DEVICE, HOST]
        return self

    def with_requests(self, **fields):
        count = len(self.demands) // len(self.pages)
        self.requests = np.zeros(count, REQUEST)
        self.requests["request"] = np.arange(count)
        self.requests["first"] = np.arange(count) * len(self.pages)
        self.requests["count"], self.requests["page_tokens"] = len(self.pages), PAGE_TOKENS
        self.requests["cut_at"], self.requests["token_s"] = -1, 1e-4
        for name, value in fields.items():
            self.requests[name] = value
        return self

    def with_tenants(self, count=1, held=0, ios=100):
        self.tenants = np.zeros(count, TENANT)
        self.tenants["cap"], self.tenants["rate"] = [[1 << 30, 1000 * IO] * 3], [[1e6, IO] * 3]
        self.tenants["held"], self.tenants["share"] = [[held, ios * IO] * 3], 1 / count
        self.demands["tenant"] = self.demands["request"] % count
        return self

    def plan(self, features_off=0, **options):
        self.policy["features_off"] = features_off
        tables = {"tenants": self.tenants, "links": self.links, "requests": self.requests}
        return plan_window(
            self.demands, self.pages, self.queues, self.policy, **{**tables, **options}
        )


def fates(made):
    return [Fate(fate).name for fate in made.fates]


# --- what each stage decides, and its switch


def test_heat_fades_unless_it_is_switched_off():
    case = Case(2, kind=OpKind.WRITE)
    case.pages["parent"] = -1
    case.pages["heat"], case.pages["tiers"] = [3.0, 2.0], [DISK.bit, HOST.bit]
    for half_life_s, planned in ((60.0, [1]), (NEVER_FADES_S, [])):
        case.policy["half_life_s"] = half_life_s
        queues = evict.open_queues(2)
        case.pages["tiers"][0], case.pages["stamp_s"] = 0, [0.0, 100.0]
        evict.arrive(case.pages, queues, case.policy, np.array([0]), DISK, 100.0)
        case.queues = queues
        assert case.plan(Feature.REUSE, free_frames=0).rows.tolist() == planned


def test_what_was_learned_decides_unless_it_is_switched_off():
    case = Case(2, kind=OpKind.WRITE)
    case.pages["parent"], case.pages["heat"] = NOWHERE, [1.0, 9.0]
    case.policy["write_s_per_byte"] = 2 * 0.01 / NBYTES  # what two uses would save
    assert case.plan(Feature.REUSE).rows.tolist() == [1]
    assert case.plan().rows.tolist() == []


def test_admission_refuses_what_is_worth_less_than_a_write_unless_it_is_switched_off():
    case = Case(2, kind=OpKind.WRITE)
    case.policy["write_s_per_byte"] = 1.0
    made = case.plan()
    assert (fates(made), len(made.ops)) == (["REFUSED", "REFUSED"], 0)
    assert case.plan(Feature.ADMIT).rows.tolist() == [0, 1]


def test_a_tenant_without_credits_waits_until_it_has_them_unless_that_is_switched_off():
    case = Case(4).with_tenants(held=2 * NBYTES)
    made = case.plan()
    assert fates(made) == ["PLANNED", "PLANNED", "DEFERRED", "DEFERRED"]
    assert made.rows.tolist() == [0, 1]
    assert made.ready_s[2] == pytest.approx(NBYTES / 1e6, rel=1e-3)
    assert case.with_tenants().plan(Feature.CREDITS).rows.tolist() == [0, 1, 2, 3]


def test_pages_that_merge_into_one_op_cost_one_operation_together():
    case = Case(4).with_tenants(held=1 << 29)
    assert len(case.plan().ops) == 1
    assert case.tenants["spent"][0, :2].tolist() == [4 * NBYTES, IO]


def test_who_shares_a_page_shares_its_price():
    case = Case(4, requests=2).with_tenants(2, held=1 << 29)
    assert case.plan().rows.tolist() == [0, 1, 2, 3]
    assert case.tenants["spent"][:, 0].tolist() == [2 * NBYTES, 2 * NBYTES]
    assert case.tenants["spent"][:, 1].sum() == IO


def test_a_load_that_the_engine_outruns_is_cut_unless_that_is_switched_off():
    case = Case(8).with_links(host=1e8).with_requests(token_s=2e-4, layers=LAYERS)
    made = case.plan()
    [decision] = made.decisions
    assert (decision["verdict"], decision["cut"], decision["cut_at"]) == (Verdict.CUT, 5, 500)
    assert fates(made) == ["PLANNED"] * 5 + ["CUT"] * 3
    assert made.rows.tolist() == [0, 1, 2, 3, 4]
    assert len(case.plan(Feature.TARDINESS).rows) == 8


def test_what_one_load_gives_up_is_still_moved_for_another():
    case = Case(4, requests=2).with_links(host=1e8).with_requests(token_s=[1e-6, 1.0])
    made = case.plan()
    assert fates(made) == ["CUT"] * 4 + ["PLANNED"] * 4
    assert made.demands.tolist() == [4, 5, 6, 7]


def test_cut_pages_cost_their_tenant_nothing():
    case = Case(4).with_links(host=1e6).with_requests(token_s=1e-6).with_tenants(held=1 << 29)
    assert fates(case.plan()) == ["CUT"] * 4
    assert case.tenants["spent"].sum() == 0


def test_bytes_that_two_loads_share_cross_the_link_once():
    case = Case(4, requests=2).with_links(host=1e8).with_requests(token_s=1.0)
    first, second = case.plan().decisions["finish_s"]
    assert first == pytest.approx(4 * NBYTES / 1e8)
    assert second <= first


def test_a_load_that_gives_way_goes_after_all_others():
    pages, rate = np.repeat([0, 1, 2], [9, 2, 2]), 100 * NBYTES  # 10 ms a page
    case = Case(13).with_links(host=rate)
    case.pages["depth"] = [*range(9), 0, 1, 0, 1]
    case.pages["parent"][[9, 11]] = NOWHERE
    case.demands["request"] = pages
    case.demands["deadline_s"] = np.array([0.100, 0.101, 0.102])[pages]
    case.with_requests()
    case.requests = np.repeat(case.requests, 3)
    case.requests["request"], case.requests["first"] = [0, 1, 2], [0, 9, 11]
    case.requests["count"], case.requests["token_s"] = [9, 2, 2], [5e-4, 1e-3, 1e-3]
    made = case.plan()
    assert made.decisions["demoted"].tolist() == [1, 0, 0]
    assert made.ops["request"].tolist() == [1, 2, 0]
    assert made.ops["deadline_s"].tolist() == [0.101, 0.102, np.inf]


def test_a_page_is_as_urgent_as_the_most_urgent_behind_it():
    case = Case(2).with_tenants(held=NBYTES)
    case.demands["deadline_s"] = [9.0, 1.0]
    made = case.plan()
    assert fates(made) == ["PLANNED", "DEFERRED"]
    assert made.ops["deadline_s"].tolist() == [1.0]


def test_other_requests_deadlines_make_a_page_no_more_urgent():
    case = Case(2, requests=2).with_tenants(2)
    case.pages["parent"] = NOWHERE
    case.demands = case.demands[[0, 3]]
    case.demands["deadline_s"] = [9.0, 1.0]
    assert sorted(case.plan(Feature.CREDITS).ops["deadline_s"].tolist()) == [1.0, 9.0]


def test_a_load_under_way_that_is_cut_is_aborted_at_the_second_look():
    case = Case(4).with_links(host=1e6).with_requests(token_s=1e-6)
    case.demands["under_way"] = 1
    first = case.plan()
    assert (fates(first), len(first.ops)) == (["JOINED"] * 4, 0)
    case.requests["cut_at"] = first.decisions["cut_at"]
    [op] = case.plan().ops
    assert (op["kind"], op["count"], op["nbytes"]) == (OpKind.ABORT, 4, 4 * NBYTES)


def test_what_another_still_wants_is_not_aborted():
    case = Case(4, requests=2).with_links(host=1e6).with_requests(token_s=[1e-6, 10.0], cut_at=0)
    case.demands["under_way"][:4] = 1
    assert fates(case.plan()) == ["CUT"] * 4 + ["JOINED"] * 4
    assert len(case.plan().ops) == 0


def test_who_wants_what_is_under_way_joins_it():
    case = Case(2, requests=2)
    case.demands["under_way"][2] = 1
    made = case.plan()
    assert fates(made) == ["JOINED", "PLANNED", "JOINED", "PLANNED"]
    assert made.rows.tolist() == [1]


def test_layers_run_ahead_unless_that_is_switched_off():
    case = Case(4).with_links().with_requests(token_s=1.0, new_compute_s=0.02, layers=LAYERS)
    [op] = case.plan().ops
    assert op["num_layers"] == LAYERS
    assert 1 <= op["head_layers"] < LAYERS
    assert 1 <= op["layers_ahead"] <= LAYERS
    [op] = case.plan(Feature.OVERLAP).ops
    assert (op["num_layers"], op["head_layers"], op["layers_ahead"]) == (0, 0, 0)


def test_ops_are_large_unless_coalescing_is_switched_off():
    assert Case(4).plan().ops["count"].tolist() == [4]
    assert Case(4).plan(Feature.COALESCE).ops["count"].tolist() == [1, 1, 1, 1]


# --- finishes


@given(
    st.lists(st.tuples(st.sampled_from([HOST, DISK]), st.floats(0, 9)), min_size=1, max_size=6),
    st.integers(0, 10**8),
)
@settings(deadline=None)
def test_finishes_are_those_of_a_plain_program(loads, queued_nbytes):
    case = Case(len(loads)).with_links(queued_nbytes=queued_nbytes)
    case.links["spread"], case.links["drift"] = 1e-6, 0.1
    case.pages["tiers"] = [tier.bit for tier, _ in loads]
    case.demands["request"], case.pages["frame"] = np.arange(len(loads)), np.arange(len(loads)) * 9
    case.demands["deadline_s"] = [deadline_s for _, deadline_s in loads]
    ahead, free_s = np.full(2, float(queued_nbytes)), queued_nbytes / case.links["rate"]
    for op in case.plan(now_s=5.0).ops:
        at_s = variance = 0.0
        for k in (1, 0) if op["source"] == DISK else (0,):
            link = case.links[k]
            ahead[k] += op["nbytes"]
            at_s = free_s[k] = max(free_s[k], at_s) + op["nbytes"] / link["rate"]
            variance += 1e-12 * ahead[k] + (0.1 * ahead[k] / link["rate"]) ** 2
        assert op["predicted_finish_s"] == pytest.approx(5.0 + at_s + Z90 * np.sqrt(variance))


def test_each_stream_of_each_node_counts_its_own_ops():
    case = Case(4)
    case.demands["node"], case.demands["request"] = [7, 7, 9, 7], [0, 1, 2, 3]
    case.pages["tiers"] = [HOST.bit, HOST.bit, HOST.bit, DISK.bit]
    ops = case.plan().ops
    assert ops[["node", "stream", "order"]].tolist() == [(7, 4, 0), (7, 4, 1), (9, 4, 0), (7, 8, 0)]
    assert np.isinf(ops["predicted_finish_s"]).all()


def test_a_destination_keeps_pages_for_as_long_as_somebody_may_come():
    case = Case(1, deadline_s=30.0)
    case.policy["min_residence_s"] = 10.0
    assert case.plan(now_s=1.0).ops["keep_until_s"].tolist() == [30.0]
    assert case.plan(now_s=25.0).ops["keep_until_s"].tolist() == [35.0]


# --- memory


@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(0, 63))
@settings(max_examples=30, deadline=None)
def test_one_planner_plans_every_window_as_a_new_one_would(sizes, features_off):
    planner = Planner()
    for requests in sizes:
        case = Case(30, requests, deadline_s=1.0).with_links(host=2e8).with_requests()
        case.policy["features_off"] = features_off
        tables = (case.tenants, case.links, case.requests)
        inputs = Inputs(case.demands, case.pages, case.policy, *tables)
        made, fresh = planner.plan(inputs, case.queues), case.plan(features_off)
        for one, two in zip(made, fresh, strict=True):
            assert one.tobytes() == two.tobytes()


def test_windows_of_one_size_keep_no_memory():
    case, planner = Case(30, 4).with_links().with_requests().with_tenants(2, 1 << 29), Planner()
    inputs = Inputs(case.demands, case.pages, case.policy, case.tenants, case.links, case.requests)
    tracemalloc.start()
    held_nbytes = []
    for _ in range(3):  # at first NumPy and the interpreter fill lists of their own
        for _ in range(1000):
            planner.plan(inputs, case.queues)
        held_nbytes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert held_nbytes[2] - held_nbytes[1] < 10_000  # one object a window is 28,000


# --- what comes in is checked first


def test_time_does_not_run_backwards():
    case, planner = Case(), Planner()
    inputs = Inputs(case.demands, case.pages, case.policy)
    planner.plan(inputs, case.queues, now_s=5.0)
    for now_s in (4.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"now_s: .*; the last window was at 5.0"):
            planner.plan(inputs, case.queues, now_s=now_s)
    assert len(planner.plan(inputs, case.queues, now_s=5.0).ops) == 1


@pytest.mark.parametrize(
    ("table", "field", "row", "value", "says"),
    [
        ("demands", "tenant", 2, 7, "demands.tenant: row 2: 7 is unknown: there are 2 tenants"),
        ("demands", "under_way", 1, 3, "demands.under_way: row 1: 3"),
        ("demands", "kind", 1, OpKind.EVICT, "demands.kind: row 1: 3"),
        ("pages", "domain", 3, 9, "demands.tenant: row 3: 0 is of another domain than page 3"),
        ("tenants", "rate", 1, np.nan, "tenants.rate: row 1"),
        ("tenants", "refilled_s", 1, 9.0, "tenants.refilled_s: row 1: .*backwards"),
        ("tenants", "cap", 0, IO, "tenants.*row 0"),
        ("links", "rate", 1, 0.0, "links.rate: row 1: 0.0"),
        ("links", "spread", 1, np.nan, "links.spread: row 1: nan"),
        ("links", "drift", 0, -1.0, "links.drift: row 0: -1.0"),
        ("links", "queued_nbytes", 0, -1, "links.queued_nbytes: row 0: -1"),
        ("links", "node", 0, 1 << 16, "links.node: row 0: 65536"),
        ("links", "source", 1, 4, "links.source: row 1: 4"),
        ("requests", "first", 1, 3, "requests.first: row 1: 3"),
        ("requests", "count", 1, 5, "requests.first: row 1: 4, 5 demands"),
        ("requests", "request", 1, 0, "requests.request: row 1: 0"),
        ("requests", "page_tokens", 1, 0, "requests.page_tokens: row 1: 0"),
        ("requests", "n_waiting", 1, np.inf, "requests.n_waiting: row 1: inf"),
        ("requests", "wait_s", 0, np.nan, "requests.wait_s: row 0: nan"),
        ("requests", "new_compute_s", 0, -1.0, "requests.new_compute_s: row 0: -1.0"),
        ("requests", "token_s", 1, np.nan, "requests.token_s: row 1: nan"),
        ("requests", "slope_s", 1, np.inf, "requests.slope_s: row 1: inf"),
        ("pages", "tiers", 1, 16, r"demands.page: row 1: .*\(pages.tiers\)"),
        ("pages", "cluster", 1, 4, r"demands.page: row 1: .*\(pages.cluster\)"),
        ("pages", "parent", 1, 10**9, r"demands.page: row 1: .*\(pages.parent\)"),
        ("pages", "heat", 1, np.nan, r"demands.page: row 1: .*\(pages.heat\)"),
        ("pages", "stamp_s", 1, np.inf, r"demands.page: row 1: .*\(pages.stamp_s\)"),
        ("pages", "recompute_s", 1, np.nan, r"demands.page: row 1: .*\(pages.recompute_s\)"),
        ("policy", "features_off", 0, 128, "policy.features_off: row 0: 128"),
        ("policy", "min_residence_s", 0, -1.0, "policy.min_residence_s: row 0: -1.0"),
        ("policy", "patience_s", 0, np.nan, "policy.patience_s: row 0: nan"),
        ("policy", "switch_s", 0, np.nan, "policy.switch_s: row 0: nan"),
        ("policy", "churn_share", 0, 1.5, "policy.churn_share: row 0: 1.5"),
        ("policy", "churn_s", 0, np.nan, "policy.churn_share: row 0: .*churn_s > 0 .nan."),
        ("policy", "capacity_pages", 0, -1, "policy.capacity_pages: row 0"),
        ("policy", "load_s_per_byte", 0, np.nan, "policy.load_s_per_byte: row 0"),
        ("policy", "load_latency_s", 0, -1.0, "policy.load_latency_s: row 0"),
        ("policy", "write_s_per_byte", 0, np.nan, "policy.write_s_per_byte: row 0"),
        ("policy", "credits_per_s", 0, -1.0, "policy.credits_per_s: row 0"),
    ],
)
def test_what_is_out_of_range_is_named_and_changes_nothing(table, field, row, value, says):
    case = Case(4, 2).with_links().with_requests().with_tenants(2, held=NBYTES)
    getattr(case, table)[field][row] = value
    tables = {name: it for name, it in vars(case).items() if isinstance(it, np.ndarray)}
    before = {name: it.tobytes() for name, it in tables.items()}
    with pytest.raises(ValueError, match=says):
        case.plan(case.policy["features_off"][0], now_s=1.0)
    assert {name: it.tobytes() for name, it in tables.items()} == before


def test_a_requests_pages_go_shallow_to_deep():
    case = Case(4).with_requests()
    case.demands["page"] = [0, 2, 1, 3]
    with pytest.raises(ValueError, match=r"requests.count: row 0: its pages"):
        case.plan()


@pytest.mark.parametrize("free_frames", [-5, 2.5, np.nan, None, "7", 2**63])
def test_free_frames_are_a_count(free_frames):
    with pytest.raises(ValueError, match=r"free_frames: .*; expected an integer"):
        Case().plan(free_frames=free_frames)


@pytest.mark.parametrize("now_s", ["1", [1.0], np.inf, np.nan, 10**400])
def test_a_time_is_a_number(now_s):
    with pytest.raises(ValueError, match="now_s: "):
        Case().plan(now_s=now_s)


@pytest.mark.parametrize("table", ["pages", "policy", "tenants", "requests"])
def test_a_table_that_cannot_be_written_to_is_named(table):
    case = Case().with_requests().with_tenants()
    getattr(case, table).flags.writeable = False
    with pytest.raises(ValueError, match=f"{table}: expected an array that may be written to"):
        Planner().plan(inputs_of(case), case.queues)


def test_demands_and_links_may_be_read_only():
    case = Case().with_links()
    case.demands.flags.writeable = case.links.flags.writeable = False
    assert len(case.plan().ops) == 1


@pytest.mark.parametrize("table", ["demands", "pages", "policy", "tenants", "links", "requests"])
def test_a_table_that_is_no_array_is_named(table):
    case = Case().with_links().with_requests().with_tenants()
    setattr(case, table, getattr(case, table).tolist())
    tables = (case.demands, case.pages, case.policy, case.tenants, case.links, case.requests)
    with pytest.raises(ValueError, match=f"{table}: expected the dtype of records.py, got list"):
        Planner().plan(Inputs(*tables), case.queues)


@pytest.mark.parametrize("table", ["demands", "pages", "policy", "tenants", "links", "requests"])
def test_a_mask_is_not_ignored_but_refused(table):
    case = Case().with_links().with_requests().with_tenants()
    setattr(case, table, np.ma.array(getattr(case, table)))
    with pytest.raises(ValueError, match=f"{table}: expected the dtype .*, got a masked array"):
        Planner().plan(inputs_of(case), case.queues)


def test_an_array_that_begins_between_two_words_is_refused():
    case = Case()
    shifted = np.frombuffer(b"?" + case.demands.tobytes(), np.uint8)[1:].view(DEMAND)
    case.demands = shifted
    with pytest.raises(ValueError, match="demands: expected one contiguous"):
        case.plan()


def test_tables_of_another_dtype_are_refused():
    with pytest.raises(ValueError, match="links: expected the dtype"):
        Case().plan(links=np.zeros(1))


def test_a_planner_used_again_tells_nothing_of_its_last_window():
    planner = Planner()
    late = Case(8, deadline_s=1e-6).with_links(disk=1.0, host=1.0).with_requests(token_s=1e-9)
    late.with_tenants(held=NBYTES)
    first = planner.plan(inputs_of(late), late.queues)
    assert first.decisions["verdict"].any()
    assert first.ready_s.any()
    idle = Case(8).with_links().with_requests(token_s=1e-9)
    idle.pages["tiers"] = DEVICE.bit
    again, alone = (it.plan(inputs_of(idle), idle.queues) for it in (planner, Planner()))
    assert again.decisions.tobytes() == alone.decisions.tobytes()
    assert not again.ready_s.any()


def test_a_page_that_several_want_written_takes_one_frame():
    case = Case(3, 2, kind=OpKind.WRITE)
    case.pages["parent"], case.pages["depth"] = NOWHERE, 0
    made = case.plan(free_frames=3)
    assert sorted(made.rows.tolist()) == [0, 1, 2]
    assert fates(made) == ["PLANNED"] * 6
    assert set(fates(case.plan(free_frames=0))) == {"REFUSED"}


def test_a_window_before_what_the_queues_were_told_is_an_error():
    case = Case(2)
    evict.touch(case.pages, case.queues, case.policy, np.array([0]), 100.0)
    with pytest.raises(ValueError, match=r"now_s: 1.0; the queues were told of 100.0"):
        case.plan(now_s=1.0)


def inputs_of(case):
    tables = (case.tenants, case.links, case.requests)
    return Inputs(case.demands, case.pages, case.policy, *tables)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("parent", 4), ("parent", -2), ("heat", np.nan), ("stamp_s", np.inf)),
        *(("recompute_s", np.nan), ("forecast", np.nan), ("rank", np.nan)),
    ],
)
def test_what_a_page_to_write_is_weighed_by_is_named_if_it_is_nonsense(field, value):
    case = Case(4, kind=OpKind.WRITE)
    case.pages[field][2] = value
    with pytest.raises(ValueError, match=rf"demands.page: row 2: page 2 .*pages.*{field}"):
        case.plan()


def test_a_page_on_disk_without_a_frame_is_named():
    case = Case(4, tier=DISK)
    case.pages["frame"][2] = NOWHERE
    with pytest.raises(ValueError, match=r"demands.page: row 2: .*\(pages.frame\)"):
        case.plan()
