# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache.replay import hints
from bodocache.replay.policies.model import Touches
from bodocache.replay.shapes import workload
from bodocache.replay.trace import load_trace


def touches_of(requests, parents=None):
    """Requests as lists of pages; timestamps do not matter here."""
    pages = 1 + max(page for request in requests for page in request)
    columns = (
        np.concatenate([np.array(request, np.int64) for request in requests]),
        np.cumsum([0, *map(len, requests)]),
        np.array(parents or [-1] * pages),
        np.zeros(pages, np.int64),
    )
    return Touches(*columns, np.zeros(len(requests)))


def test_a_request_is_continued_when_its_last_page_but_one_is_touched_again():
    requests = [[0, 1, 2], [0, 1, 3, 4], [0, 5, 6], [7], [7], [0, 1, 3, 8], []]
    # 1 is in the second, 3 in the sixth, 5 in no other; the only page of a request counts
    assert hints.continued(touches_of(requests)).tolist() == [
        *(True, True, False, True, False, False, False)
    ]


@settings(max_examples=60, deadline=None)
@given(requests=st.lists(st.lists(st.integers(0, 6), max_size=5, unique=True), min_size=1))
def test_continued_is_what_a_look_at_all_later_requests_says(requests):
    requests.append([0])
    seen = [
        bool(r) and any(r[max(len(r) - 2, 0)] in later for later in requests[at + 1 :])
        for at, r in enumerate(requests)
    ]
    assert hints.continued(touches_of(requests)).tolist() == seen


@pytest.fixture(scope="module")
def truth():
    trace = load_trace(workload("chat", seed=11, requests=8000))
    columns = trace.pages, trace.offsets, trace.parent, trace.depth, trace.timestamps_s
    return hints.continued(Touches(*columns))


@pytest.mark.parametrize("auc", [0.5, 0.62, 0.76, 0.9, 0.99])
def test_a_noisy_hint_is_as_good_as_asked_for(truth, auc):
    assert hints.measured_auc(truth, hints.noisy(truth, auc, 3)) == pytest.approx(auc, abs=0.01)


def test_a_noisy_hint_is_the_probability_it_says(truth):
    said = hints.noisy(truth, 0.9, 3)
    for low in (0.1, 0.3, 0.5, 0.7, 0.9):
        among = (said >= low - 0.1) & (said < low + 0.1)
        assert truth[among].mean() == pytest.approx(said[among].mean(), abs=0.06)


def test_a_perfect_hint_is_the_truth(truth):
    trace = load_trace(workload("chat", seed=11, requests=8000))
    columns = trace.pages, trace.offsets, trace.parent, trace.depth, trace.timestamps_s
    assert (hints.perfect(Touches(*columns)) == truth).all()
    assert hints.measured_auc(truth, truth.astype(float)) == 1.0


def test_a_useless_hint_is_as_sure_as_a_noisy_one_and_knows_nothing(truth):
    useless, noisy = hints.useless(truth, 0.9, 3), hints.noisy(truth, 0.9, 4)
    assert sorted(useless) == sorted(noisy)
    assert hints.measured_auc(truth, useless) == pytest.approx(0.5, abs=0.02)


def test_equal_seeds_give_equal_hints(truth):
    for make in (hints.noisy, hints.useless):
        assert (make(truth, 0.8, 3) == make(truth, 0.8, 3)).all()
        assert (make(truth, 0.8, 3) != make(truth, 0.8, 4)).any()


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(st.booleans(), st.sampled_from([0.1, 0.5, 0.9]))))
def test_auc_is_the_share_of_pairs_in_order(pairs):
    yes = [hint for continued, hint in pairs if continued]
    no = [hint for continued, hint in pairs if not continued]
    wins = sum((y > n) + 0.5 * (y == n) for y in yes for n in no)
    expected = wins / (len(yes) * len(no)) if yes and no else float("nan")
    columns = np.array([c for c, _ in pairs], bool), np.array([h for _, h in pairs])
    assert hints.measured_auc(*columns) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("auc", [0.49, 1.0, float("nan")])
def test_an_auc_out_of_range_is_refused(auc):
    with pytest.raises(ValueError, match=r"expected 0\.5 <= auc < 1"):
        hints.noisy(np.array([True]), auc, 0)
