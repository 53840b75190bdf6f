# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache import jit
from bodocache.replay.policy import Policy, Recompute, Touches, simulate
from bodocache.replay.trace import load_trace

jit.warm()  # here, not in a test: a cold compile is not part of any test's time

CONVERSATION = Path(__file__).parents[3] / "shared" / "traces" / "conversation_trace.jsonl"


@st.composite
def traces(draw):
    """Requests over a random tree: each a path from a first page down."""
    parents = [draw(st.integers(-1, row - 1)) for row in range(draw(st.integers(1, 14)))]
    chains = [[row] for row in range(len(parents))]
    for row, parent in enumerate(parents):
        if parent >= 0:
            chains[row] = [*chains[parent], row]
    ends = draw(st.lists(st.integers(0, len(parents) - 1), min_size=1, max_size=30))
    gaps = draw(st.lists(st.sampled_from([0.0, 1.0, 60.0]), min_size=30, max_size=30))
    return touches_of(parents, [chains[end] for end in ends], np.cumsum(gaps[: len(ends)]))


def touches_of(parents, requests, timestamps_s):
    depths = [0] * len(parents)
    for row, parent in enumerate(parents):
        depths[row] = 0 if parent < 0 else depths[parent] + 1
    offsets = np.cumsum([0, *map(len, requests)])
    ids = np.array([page for request in requests for page in request], np.int64)
    columns = (np.array(column, np.int64) for column in (offsets, parents, depths))
    return Touches(ids, *columns, np.array(timestamps_s, np.float64))


def requests_of(touches):
    pairs = zip(touches.offsets[:-1], touches.offsets[1:], strict=True)
    return [touches.ids[begin:end].tolist() for begin, end in pairs]


class Oracle:
    """The semantics as issue and module state them, on sets and dicts, one page at a time."""

    def __init__(self, touches, capacity):
        self.touches, self.capacity = touches, capacity
        self.cost_s = Recompute().seconds(touches.depths)
        self.present, self.rank, self.uses, self.floor = set(), {}, {}, 0.0
        self.heat = {}

    def hits(self, policy):
        found = []
        for number, pages in enumerate(requests_of(self.touches)):
            leading = 0
            while leading < len(pages) and pages[leading] in self.present:
                leading += 1
            found.append(leading)
            for page in pages:
                if page in self.present:
                    continue
                if len(self.present) == self.capacity and not self.evict_one(policy, pages):
                    break
                self.present.add(page)
                self.uses[page] = 0
            self.use(policy, number, [page for page in pages if page in self.present])
        return found

    def evict_one(self, policy, own):
        parents = {self.touches.parents[page] for page in self.present}
        leaves = self.present - parents - set(own)
        if not leaves:
            return False
        depths = self.touches.depths
        victim = min(leaves, key=lambda page: (self.rank[page], -depths[page], page))
        self.floor = max(self.floor, self.rank[victim]) if policy is Policy.GDSF else 0.0
        self.present.remove(victim)
        return True

    def use(self, policy, number, pages):
        for page in pages:
            self.uses[page] += 1
            self.rank[page] = {
                Policy.LRU: number,
                Policy.LFU: (self.uses[page], number),
                Policy.GDSF: self.floor + self.uses[page] * self.cost_s[page],
            }[policy]


@pytest.mark.parametrize("policy", [Policy.LRU, Policy.LFU, Policy.GDSF])
@given(touches=traces(), capacity=st.integers(0, 10))
@settings(max_examples=150, deadline=None)
def test_ranked_policies_do_what_a_plain_program_does(policy, touches, capacity):
    done = simulate(policy, touches, capacity)
    oracle = Oracle(touches, capacity)
    assert done.hits.tolist() == oracle.hits(policy)
    assert done.inserted - done.evicted == len(oracle.present)


def heat_hits(touches, capacity, half_life_s):
    """Value density over subtrees, the victims of a request chosen together."""
    cost_s, depths = Recompute().seconds(touches.depths).astype(np.float32), touches.depths
    present, heat, stamp, found = set(), {}, {}, []
    for now_s, pages in zip(touches.timestamps_s, requests_of(touches), strict=True):
        leading = sum(page in present for page in pages)  # present pages lead
        found.append(leading)
        for page in pages[:leading]:
            old = np.float64(heat[page]) * np.exp2(-(now_s - stamp[page]) / half_life_s)
            heat[page], stamp[page] = np.float32(old + 1.0), now_s
        keys = {
            page: np.log2(np.float64(heat[page])) + stamp[page] / half_life_s
            + np.log2(np.float64(cost_s[page]))
            for page in present
        }  # fmt: skip
        keys.update(dict.fromkeys(pages[:leading], np.inf))
        for page in sorted(present, key=lambda page: -depths[page]):
            if touches.parents[page] in keys:
                parent = touches.parents[page]
                keys[parent] = max(keys[parent], keys[page])
        free = [page for page in present if keys[page] < np.inf]
        free.sort(key=lambda page: (keys[page], -depths[page], page))
        needed = max(0, len(present) + len(pages) - leading - capacity)
        present -= set(free[:needed])
        new = pages[leading:][: max(0, capacity - len(present))]
        present |= set(new)
        heat.update(dict.fromkeys(new, np.float32(1.0)))
        stamp.update(dict.fromkeys(new, now_s))
    return found, len(present)


@given(touches=traces(), capacity=st.integers(0, 10))
@settings(max_examples=150, deadline=None)
def test_heat_evicts_by_value_density_over_subtrees(touches, capacity):
    done = simulate(Policy.HEAT, touches, capacity, half_life_s=30.0)
    hits, pages = heat_hits(touches, capacity, 30.0)
    assert done.hits.tolist() == hits
    assert done.inserted - done.evicted == pages


@given(touches=traces(), capacity=st.integers(0, 10))
@settings(max_examples=100, deadline=None)
def test_no_policy_beats_the_optimum(touches, capacity):
    most = simulate(Policy.MIN, touches, capacity).hits.sum()
    assert all(simulate(policy, touches, capacity).hits.sum() <= most for policy in Policy)


@pytest.fixture(scope="session")
def conversation():
    if not CONVERSATION.exists():
        pytest.skip(f"{CONVERSATION.name} is not beside the checkout (bodocache trace fetch)")
    trace = load_trace(CONVERSATION)
    return Touches(trace.pages, trace.offsets, trace.parent, trace.depth, trace.timestamps_s)


@pytest.mark.parametrize(
    ("policy", "capacity", "hits"),
    [
        (Policy.LRU, 3_000, 18_850),
        (Policy.LRU, 10_000, 61_046),
        (Policy.MIN, 3_000, 84_953),
        (Policy.MIN, 10_000, 105_710),
        (Policy.LRU, 288_500, 105_710),
    ],
)
def test_the_conversation_trace_gives_the_figures_others_found(
    conversation, policy, capacity, hits
):
    assert len(conversation.ids) == 288_500
    assert simulate(policy, conversation, capacity).hits.sum() == hits


def test_a_trace_without_pages_is_served():
    touches = touches_of([-1], [[], []], [0.0, 1.0])
    for policy in Policy:
        assert simulate(policy, touches, 5).hits.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ids": np.array([0, 9])}, "ids"),
        ({"ids": np.array([1, 0])}, "request 0"),
        ({"offsets": np.array([0, 1])}, "offsets"),
        ({"depths": np.array([0, 7])}, "request 0"),
        ({"timestamps_s": np.zeros(2)}, "timestamps_s"),
    ],
)
def test_columns_that_do_not_fit_together_are_refused(change, says):
    touches = touches_of([-1, 0], [[0, 1]], [0.0])._replace(**change)
    with pytest.raises(ValueError, match=says):
        simulate(Policy.LRU, touches, 5)


def test_a_negative_capacity_is_refused():
    with pytest.raises(ValueError, match="capacity_pages"):
        simulate(Policy.LRU, touches_of([-1], [[0]], [0.0]), -1)
