# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache.pages import NOWHERE, PAGE, Tier
from bodocache.plan import evict
from bodocache.plan.records import DEMAND, POLICY, OpKind
from bodocache.plan.window import plan_window

NBYTES = 4096
DEVICE, HOST, DISK, REMOTE = Tier


def policy_of(chunk_pages=4, hole_pages=0):
    policy = np.zeros(1, POLICY)
    policy["half_life_s"] = 60.0
    policy["chunk_nbytes"], policy["hole_nbytes"] = chunk_pages * NBYTES, hole_pages * NBYTES
    return policy


def pages_of(tiers, frames=None):
    """A chain of pages, each in the given tiers."""
    pages = np.zeros(len(tiers), PAGE)
    pages["parent"], pages["depth"] = np.arange(len(tiers)) - 1, np.arange(len(tiers))
    pages["nbytes"], pages["heat"], pages["recompute_s"] = NBYTES, 1.0, 0.01
    pages["tiers"] = [sum(tier.bit for tier in held) for held in tiers]
    pages["frame"] = np.arange(len(tiers)) if frames is None else frames
    pages["cluster"] = NOWHERE
    return pages


def demands_of(pages, kind=OpKind.LOAD, request=0, deadline_s=np.inf, arrival_s=0.0):
    demands = np.zeros(len(pages), DEMAND)
    demands["page"], demands["kind"], demands["request"] = pages, kind, request
    demands["deadline_s"], demands["arrival_s"] = deadline_s, arrival_s
    return demands


def plan(demands, pages, policy, **options):
    made = plan_window(demands, pages, evict.open_queues(len(pages)), policy, **options)
    return [(op, made.rows[op["first"] :][: op["count"]].tolist()) for op in made.ops]


def rows(ops):
    return [moved for _, moved in ops]


# --- the twin


def urgency(demand):
    return tuple(demand[name].item() for name in ("deadline_s", "arrival_s", "request"))


def source_of(demand, pages):
    """The tier a demand's page is taken from; None: nothing to move."""
    held = {tier for tier in Tier if pages["tiers"][demand["page"]] >> tier & 1}
    done, able = {
        OpKind.LOAD: ({DEVICE}, set(Tier)),
        OpKind.WRITE: ({DISK}, {DEVICE, HOST}),
        OpKind.PREFETCH: ({DEVICE, HOST}, {DISK, REMOTE}),
    }[demand["kind"]]
    return None if held & done else min(held & able, default=None)


def twin(demands, pages, policy):
    """[(urgency, kind, shallowest page, source, rows, askers of each, nbytes)], in order."""
    moves, groups = {}, {}
    for i, demand in enumerate(demands):
        if source_of(demand, pages) is not None:
            moves.setdefault((demand["page"], demand["node"], demand["kind"]), []).append(i)
    for askers in moves.values():
        first = demands[min(askers, key=lambda i: urgency(demands[i]))]
        cluster = pages["cluster"][first["page"]]
        of = ("cluster", cluster) if cluster >= 0 else ("request", first["request"])
        lane = (first["node"].item(), first["kind"].item(), source_of(first, pages), *of)
        groups.setdefault(lane, []).append((first, askers))
    ops = [
        described(lane[1:3], op, pages)
        for lane, group in groups.items()
        for op in cut(group, lane[2] is DISK, pages, policy)
    ]
    return sorted(ops, key=lambda op: op[:3])


def described(lane, op, pages):
    moved, nbytes = op
    kind, source = lane
    first = min(urgency(demand) for demand, _ in moved)
    shallowest = min(pages["depth"][demand["page"]].item() for demand, _ in moved)
    rows = [demand["page"].item() for demand, _ in moved]
    return first, kind, shallowest, int(source), rows, [set(askers) for _, askers in moved], nbytes


def cut(group, by_frame, pages, policy):
    """Grow an op page by page for as long as holes and bytes allow: [(demands, nbytes)]."""
    frame, ops = pages["frame"].astype(int), []
    for move in sorted(group, key=lambda move: frame[move[0]["page"]]) if by_frame else group:
        moved, nbytes = ops[-1] if ops else ([], 0)
        step = frame[move[0]["page"]] - frame[moved[-1][0]["page"]] - 1 if moved and by_frame else 0
        fits = nbytes + (step + 1) * NBYTES <= policy["chunk_nbytes"][0]
        if moved and fits and 0 <= step * NBYTES <= policy["hole_nbytes"][0]:
            ops[-1] = ([*moved, move], nbytes + (step + 1) * NBYTES)
        else:
            ops.append(([move], NBYTES))
    return ops


@st.composite
def windows(draw):
    held = st.lists(st.sampled_from(Tier), max_size=2).map(set)
    tiers = draw(st.lists(held, min_size=1, max_size=12))
    frames = draw(st.permutations(range(2 * len(tiers))))[: len(tiers)]
    pages = pages_of(tiers, frames)
    pages["parent"] = -1  # every write is admitted
    cluster = st.integers(-2, min(2, len(tiers) - 1))
    pages["cluster"] = draw(st.lists(cluster, min_size=len(tiers), max_size=len(tiers)))
    demands = [np.zeros(0, DEMAND)]
    for request in draw(st.permutations(range(4))):
        asked = sorted(draw(st.sets(st.integers(0, len(tiers) - 1))))
        kind = draw(st.sampled_from([OpKind.LOAD, OpKind.WRITE, OpKind.PREFETCH]))
        when = st.sampled_from([1.0, 2.0, np.inf])
        demands.append(
            demands_of(asked, kind, request, draw(when), draw(st.sampled_from([0.0, -0.0, 1.0])))
        )
        demands[-1]["node"] = draw(st.integers(0, 1))
    return np.concatenate(demands).astype(DEMAND), pages


@given(windows(), st.integers(1, 5), st.integers(0, 2))
@settings(max_examples=300, deadline=None)
def test_ops_are_those_of_a_plain_program(window, chunk_pages, hole_pages):
    demands, pages = window
    policy = policy_of(chunk_pages, hole_pages)
    made = plan_window(demands, pages, evict.open_queues(len(pages)), policy)
    found = []
    for op in made.ops:
        places = range(op["first"], op["first"] + op["count"])
        answered = [made.demands[made.answers[k] : made.answers[k + 1]] for k in places]
        lead = demands[answered[0]]
        assert {*lead["node"].tolist()} == {op["node"].item()}
        found.append(
            (
                (op["deadline_s"].item(), op["request"].item(), op["kind"].item()),
                (op["source"].item(), op["nbytes"].item()),
                made.rows[op["first"] : op["first"] + op["count"]].tolist(),
                [set(some.tolist()) for some in answered],
            )
        )
    assert found == [
        ((first[0], first[2], kind), (source, nbytes), moved, askers)
        for first, kind, _, source, moved, askers, nbytes in twin(demands, pages, policy)
    ]


def test_host_pages_form_chunks_shallow_to_deep():
    pages = pages_of([{HOST}] * 6)
    ops = plan(demands_of(range(6)), pages, policy_of(chunk_pages=4))
    assert rows(ops) == [[0, 1, 2, 3], [4, 5]]
    assert [op["nbytes"] for op, _ in ops] == [4 * NBYTES, 2 * NBYTES]


def test_frames_too_far_apart_for_bytes_to_be_counted_do_not_merge():
    pages = pages_of([{DISK}] * 2, frames=[0, (1 << 61) + 1])
    pages["nbytes"], policy = 1 << 20, policy_of(hole_pages=1)
    policy["chunk_nbytes"] = 1 << 30
    assert rows(plan(demands_of(range(2)), pages, policy)) == [[0], [1]]


def test_disk_pages_merge_by_frame_not_by_depth():
    pages = pages_of([{DISK}] * 4, frames=[11, 10, 30, 12])
    assert rows(plan(demands_of(range(4)), pages, policy_of())) == [[1, 0, 3], [2]]


def test_a_hole_is_read_through_and_counted():
    pages = pages_of([{DISK}] * 2, frames=[10, 12])
    [(op, moved)] = plan(demands_of(range(2)), pages, policy_of(hole_pages=1))
    assert moved == [0, 1]
    assert op["nbytes"] == 3 * NBYTES
    assert rows(plan(demands_of(range(2)), pages, policy_of(2, hole_pages=1))) == [[0], [1]]


def test_ops_go_by_deadline_then_arrival_then_request():
    pages = pages_of([{HOST}] * 4)
    demands = np.concatenate(
        [
            demands_of([0], request=7, deadline_s=9.0),
            demands_of([1], request=6, deadline_s=3.0, arrival_s=2.0),
            demands_of([2], request=5, deadline_s=3.0, arrival_s=2.0),
            demands_of([3], request=8, deadline_s=3.0, arrival_s=1.0),
        ]
    ).astype(DEMAND)
    assert [op["request"] for op, _ in plan(demands, pages, policy_of())] == [8, 5, 6, 7]


def test_a_page_on_the_device_or_nowhere_is_not_loaded():
    pages = pages_of([{DEVICE, HOST}, set(), {HOST, DISK}])
    [(op, moved)] = plan(demands_of(range(3)), pages, policy_of())
    assert moved == [2]
    assert (op["source"], op["destination"]) == (HOST, DEVICE)


def test_a_write_goes_from_the_fastest_copy_to_disk():
    pages = pages_of([{HOST}, {DEVICE, HOST}, {DISK}, {REMOTE}])
    ops = plan(demands_of(range(4), OpKind.WRITE), pages, policy_of())
    assert [(op["source"], op["destination"]) for op, _ in ops] == [(HOST, DISK), (DEVICE, DISK)]
    assert rows(ops) == [[0], [1]]


# --- what comes in is checked first


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("page", 3, "demands.page: row 1: 3 is outside"),
        ("page", -1, "demands.page: row 1: -1 is outside"),
        ("kind", 9, "demands.kind: row 1: 9"),
        ("request", -4, "demands.request: row 1: -4"),
        ("deadline_s", np.nan, "demands.deadline_s: row 1"),
        ("arrival_s", np.inf, "demands.arrival_s: row 1"),
    ],
)
def test_a_demand_out_of_range_is_refused_by_field_and_row(field, value, says):
    demands = demands_of([0, 1])
    demands[field][1] = value
    with pytest.raises(ValueError, match=says):
        plan(demands, pages_of([{HOST}] * 3), policy_of())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("half_life_s", 0.0),
        ("half_life_s", np.nan),
        ("chunk_nbytes", 0),
        ("hole_nbytes", -1),
        ("load_s_per_byte", -1.0),
        ("min_residence_s", np.nan),
    ],
)
def test_a_policy_out_of_range_is_refused_even_for_no_demands(field, value):
    policy = policy_of()
    policy[field] = value
    with pytest.raises(ValueError, match="policy"):
        plan(demands_of([]), pages_of([{HOST}]), policy)


def test_a_demanded_page_of_no_bytes_is_refused():
    pages = pages_of([{HOST}] * 2)
    pages["nbytes"][1] = 0
    with pytest.raises(ValueError, match=r"demands.page: row 1: page 1 has 0 bytes"):
        plan(demands_of([0, 1]), pages, policy_of())


def test_arrays_of_another_dtype_or_shape_are_refused():
    pages, policy, queues = pages_of([{HOST}]), policy_of(), evict.open_queues(1)
    for bad in (np.zeros(1), demands_of([0]).reshape(1, 1), np.repeat(demands_of([0]), 4)[::2]):
        with pytest.raises(ValueError, match="demands"):
            plan_window(bad, pages, queues, policy)
    with pytest.raises(ValueError, match="queues: 0 rows for 1 pages"):
        plan_window(demands_of([0]), pages, evict.open_queues(0), policy)
