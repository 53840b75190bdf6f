# SPDX-License-Identifier: Apache-2.0
from functools import cache
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache import jit
from bodocache.errors import BackendUnavailable, BodoCacheError
from bodocache.replay import bounds, intervals
from bodocache.replay.bounds import bound_saved_s
from bodocache.replay.policies.model import checked
from bodocache.replay.policy import Policy, Recompute, Touches, simulate
from bodocache.replay.trace import build_trace
from bodocache.replay.workload import WorkloadConfig, generate

pytest.importorskip("scipy")
jit.warm()

SLACK = 1e-6


@st.composite
def cases(draw, pages=5, requests=7, most_nbytes=3):
    """A random tree, paths down it, and seconds and bytes of every page."""
    parents = [draw(st.integers(-1, row - 1)) for row in range(draw(st.integers(1, pages)))]
    ends = draw(st.lists(st.integers(0, len(parents) - 1), min_size=1, max_size=requests))
    seconds = draw(st.lists(st.integers(0, 5), min_size=len(parents), max_size=len(parents)))
    sizes = st.lists(st.integers(1, most_nbytes), min_size=len(parents), max_size=len(parents))
    touches = touches_of(parents, [path(parents, end) for end in ends])
    return touches, np.array(seconds, float), np.array(draw(sizes), float)


def path(parents, row):
    return [*path(parents, parents[row]), row] if row >= 0 else []


def touches_of(parents, requests):
    offsets = np.cumsum([0, *map(len, requests)])
    depths = [len(path(parents, row)) - 1 for row in range(len(parents))]
    ids = np.array([*chain(*requests)], np.int64)
    return Touches(ids, offsets, np.array(parents), np.array(depths), np.zeros(len(requests)))


def requests_of(touches):
    pairs = zip(touches.offsets[:-1], touches.offsets[1:], strict=True)
    return [touches.ids[begin:end].tolist() for begin, end in pairs]


def best_saved_s(touches, capacity, seconds, nbytes):
    """The optimum: after each request, every set that is closed under prefixes and fits."""
    requests, parents = requests_of(touches), touches.parents

    def may_stay(pages):
        closed = all(parents[page] < 0 or parents[page] in pages for page in pages)
        return closed and sum(nbytes[page] for page in pages) <= capacity

    @cache
    def best(number, present):
        if number == len(requests):
            return 0.0
        saved = sum(seconds[page] for page in requests[number] if page in present)
        able = sorted(present | set(requests[number]))
        kept = chain(*(combinations(able, n) for n in range(len(able) + 1)))
        later = (best(number + 1, frozenset(pages)) for pages in kept if may_stay(frozenset(pages)))
        return saved + max(later)

    return best(0, frozenset())


@given(cases(), st.integers(0, 6))
@settings(max_examples=150, deadline=None)
def test_no_choice_of_pages_to_keep_saves_more(case, capacity):
    found = bound_saved_s(case[0], capacity, *case[1:])
    assert found.saved_s >= best_saved_s(case[0], capacity, *case[1:]) - SLACK


@given(cases(), st.integers(1, 6), st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_windows_loosen_the_bound_and_never_break_it(case, capacity, window_requests):
    touches, seconds, nbytes = case
    whole = bound_saved_s(touches, capacity, seconds, nbytes)
    parts = bound_saved_s(touches, capacity, seconds, nbytes, window_requests=window_requests)
    assert parts.saved_s >= best_saved_s(touches, capacity, seconds, nbytes) - SLACK
    assert parts.saved_s >= whole.saved_s - SLACK


@given(st.data(), cases(), st.integers(0, 6))
@settings(max_examples=100, deadline=None)
def test_a_bound_at_any_prices_is_one(data, case, capacity):
    touches, seconds, nbytes = case
    segments = intervals.cut(checked(touches), seconds, nbytes)
    if not len(segments.start):
        return
    window = bounds._Window(
        segments.start, segments.end, segments.nbytes, segments.saved_s, touches.offsets.size,
        float(capacity),
    )  # fmt: skip
    held = np.array(data.draw(lists_of(st.sampled_from([0.0, 0.5, 1.0]), len(segments.start))))
    orders = bounds._broken(segments, 0, 0, held)
    price = np.array(data.draw(lists_of(st.sampled_from([0.0, 0.25, 2.0]), window.requests)))
    penalty = np.array(data.draw(lists_of(st.sampled_from([0.0, 1.0, 9.0]), len(orders.share))))
    best = best_saved_s(touches, capacity, seconds, nbytes)
    assert bounds._priced(window, orders, price, penalty) >= best - SLACK


def lists_of(element, count):
    return st.lists(element, min_size=count, max_size=count)


@given(cases(pages=10, requests=20), st.integers(0, 8))
@settings(max_examples=100, deadline=None)
def test_for_pages_of_equal_size_and_worth_it_is_the_exact_optimum(case, capacity):
    found = bound_saved_s(case[0], capacity, np.ones(len(case[1])))
    assert found.saved_s == pytest.approx(simulate(Policy.MIN, case[0], capacity).hits.sum())


@given(cases(pages=10, requests=20))
@settings(max_examples=30, deadline=None)
def test_more_room_never_lowers_it(case):
    touches, seconds, nbytes = case
    found = [bound_saved_s(touches, room, seconds, nbytes).saved_s for room in range(0, 31, 5)]
    assert (np.diff(found) >= -SLACK).all()
    again = intervals.cut(checked(touches), seconds, nbytes).saved_s.sum()
    assert found[-1] == pytest.approx(again)  # 10 pages of 3 bytes fit


@given(cases(pages=10, requests=20))
@settings(max_examples=50, deadline=None)
def test_segments_hold_every_second_touch_once_and_grow_less_dense(case):
    touches, seconds, nbytes = case
    found = intervals.cut(checked(touches), seconds, nbytes)
    again = found.earlier >= 0
    assert found.pages.sum() == again.sum() == (found.segment >= 0).sum()
    assert found.saved_s.sum() == pytest.approx(seconds[touches.ids[again]].sum())
    same = (np.diff(found.start) == 0) & (np.diff(found.end) == 0)
    assert (np.diff(found.saved_s / found.nbytes)[same] < 0).all()


def test_a_page_is_held_only_behind_the_pages_before_it():
    # 1 is worth 9 behind 0, which is worth nothing and asked for again in between.
    touches = touches_of([-1, 0], [[0, 1], [0], [0, 1]])
    found = bound_saved_s(touches, 1, np.array([0.0, 9.0]))
    assert found.orders > 0
    assert found.saved_s == pytest.approx(4.5)  # half of each; the true optimum is 0
    assert best_saved_s(touches, 1, [0, 9], [1, 1]) == 0


def test_no_policy_saves_more_on_a_generated_trace():
    trace = build_trace("chats", generate(WorkloadConfig(seed=3, requests=400)))
    touches = Touches(trace.pages, trace.offsets, trace.parent, trace.depth, trace.timestamps_s)
    seconds = Recompute().seconds(trace.depth)
    before = np.concatenate(([0.0], np.cumsum(Recompute().seconds(np.arange(1000)))))
    found = bound_saved_s(touches, 500, seconds).saved_s
    saved = {policy: before[simulate(policy, touches, 500).hits].sum() for policy in Policy}
    assert max(saved.values()) <= found + SLACK
    assert saved[Policy.MIN] > 0.9 * found


@pytest.mark.parametrize(
    ("name", "column"), [("seconds", [1.0, np.nan]), ("nbytes", [1.0, 0.0]), ("nbytes", [1.0])]
)
def test_a_column_that_makes_no_sense_is_named_with_its_row(name, column):
    touches = touches_of([-1, 0], [[0, 1]])
    columns = {"seconds": np.ones(2), "nbytes": np.ones(2)} | {name: np.array(column)}
    where = rf"{name}\[1\]" if len(column) == 2 else f"{name}: .* 2"
    with pytest.raises(ValueError, match=where):
        bound_saved_s(touches, 1, **columns)


@pytest.mark.parametrize("capacity", [-1.0, np.nan, np.inf])
def test_a_capacity_that_makes_no_sense_is_an_error(capacity):
    with pytest.raises(ValueError, match="capacity_nbytes"):
        bound_saved_s(touches_of([-1], [[0]]), capacity, np.ones(1))


def test_without_scipy_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(bounds.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BackendUnavailable, match=r"pip install bodocache\[bound\]"):
        bound_saved_s(touches_of([-1], [[0]]), 1, np.ones(1))


def test_a_solver_that_stops_is_an_error(monkeypatch):
    import scipy.optimize

    stopped = scipy.optimize.OptimizeResult(status=1, message="limit reached")
    monkeypatch.setattr(scipy.optimize, "linprog", lambda *_, **__: stopped)
    with pytest.raises(BodoCacheError, match="limit reached"):
        bound_saved_s(touches_of([-1], [[0], [0]]), 1, np.ones(1))
