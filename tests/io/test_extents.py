# SPDX-License-Identifier: Apache-2.0
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bodocache import jit
from bodocache.errors import LayoutError
from bodocache.io.extents import IOV_MAX, Limits, merge, slices

jit.warm()  # here, not in a test: a cold compile is not part of any test's time

NBYTES = 4096


def limits(pages=10, *, vectors=IOV_MAX, hole=0, padding=0):
    """Limits in pages and frames."""
    frame_nbytes = NBYTES + padding
    return Limits(NBYTES, frame_nbytes, pages * frame_nbytes, vectors, hole * frame_nbytes)


def cut(frames, allowed, places=None, deadlines_s=()):
    """Positions of each extent; page i lies at page ``places[i]`` of memory, scattered if None."""
    places = 2 * np.arange(len(frames))[::-1] if places is None else np.array(places)
    merged = merge(
        np.array(frames, np.int64),
        (1000 + places * NBYTES).astype(np.int64),
        allowed,
        np.array(deadlines_s, np.float64),
    )
    return [merged.order[chosen].tolist() for chosen in slices(merged.bounds)]


def frames_of(frames, *arguments, **options):
    return [[frames[i] for i in extent] for extent in cut(frames, *arguments, **options)]


# --- the oracle: what a request is, in plain words


def buffers(extent, frames, places, allowed):
    """(address, bytes) of what one call is handed; holes and padding lie in scratch, address -1."""
    handed = []

    def add(address, nbytes):
        if handed and handed[-1][0] + handed[-1][1] == address and address >= 0:
            handed[-1] = (handed[-1][0], handed[-1][1] + nbytes)
        elif nbytes:
            handed.append((address, nbytes))

    padding = allowed.frame_nbytes - allowed.page_nbytes
    for i, following in zip(extent, [*extent[1:], None], strict=True):
        add(1000 + places[i] * NBYTES, NBYTES)
        hole = 0 if following is None else frames[following] - frames[i] - 1
        add(-1, padding + hole * allowed.frame_nbytes)
    return handed


def is_allowed(extent, frames, places, allowed):
    holes = [frames[b] - frames[a] - 1 for a, b in pairwise(extent)]
    if any(not 0 <= hole * allowed.frame_nbytes <= allowed.hole_nbytes for hole in holes):
        return False
    handed = buffers(extent, frames, places, allowed)
    span = sum(nbytes for _, nbytes in handed)
    return len(extent) == 1 or (span <= allowed.nbytes and len(handed) <= allowed.vectors)


def partitions(things):
    """Every way to part ``things`` into sets."""
    if not things:
        yield []
        return
    for rest in partitions(things[1:]):
        yield [[things[0]], *rest]
        for i in range(len(rest)):
            yield [*rest[:i], [things[0], *rest[i]], *rest[i + 1 :]]


def fewest(positions, frames, places, allowed):
    """How many requests any partition needs, tried one by one."""
    by_frame = sorted(positions, key=lambda i: frames[i])
    return min(
        len(parts)
        for parts in partitions(by_frame)
        if all(is_allowed(part, frames, places, allowed) for part in parts)
    )


@st.composite
def batches(draw, most=6, *, unique=True):
    frames = draw(st.lists(st.integers(0, 2 * most), max_size=most, unique=unique))
    places = draw(st.permutations(range(2 * most)))[: len(frames)]
    if draw(st.booleans()):  # mostly adjacent, as a pool hands them out
        places = list(range(len(frames)))
    allowed = limits(
        draw(st.integers(1, 6)),
        vectors=draw(st.integers(1, 7)),
        hole=draw(st.integers(0, 3)),
        padding=draw(st.sampled_from([0, 512])),
    )
    deadlines_s = draw(st.lists(st.sampled_from([-1.0, 0.5, 2.0, math.inf]), min_size=most))
    return frames, places, allowed, deadlines_s[: len(frames)]


# --- one deadline


def test_adjacent_frames_are_one_extent_in_whatever_order_they_come():
    assert frames_of([7, 3, 4, 9, 8], limits()) == [[3, 4], [7, 8, 9]]


def test_a_run_is_cut_at_the_maximum_of_bytes():
    assert frames_of(range(5), limits(2)) == [[0, 1], [2, 3], [4]]


def test_a_frame_larger_than_the_maximum_is_an_extent_of_its_own():
    assert frames_of([1, 2], Limits(NBYTES, NBYTES, 100)) == [[1], [2]]


def test_a_run_is_cut_where_one_call_takes_no_more_buffers():
    assert frames_of(range(5), limits(vectors=2)) == [[0, 1], [2, 3], [4]]
    assert frames_of(range(5), limits(vectors=4, padding=512)) == [[0, 1], [2, 3], [4]]


def test_pages_adjacent_in_memory_share_a_buffer():
    assert len(frames_of(range(2000), limits(2000), range(2000))) == 1
    assert len(frames_of(range(2000), limits(2000))) == 2  # scattered: 1024 buffers a call


def test_with_one_buffer_pages_are_adjacent_in_memory_too():
    frames, places = [1, 2, 3, 5], [4, 5, 7, 8]
    assert frames_of(frames, limits(vectors=1, hole=4), places) == [[1, 2], [3], [5]]


def test_a_hole_is_read_through_up_to_its_limit_and_counts_towards_the_maximum():
    assert frames_of([1, 3, 6], limits(hole=1)) == [[1, 3], [6]]
    assert frames_of([1, 3, 6], limits(hole=2)) == [[1, 3, 6]]
    assert frames_of([1, 3, 6], limits(5, hole=2)) == [[1, 3], [6]]


def test_a_frame_named_twice_is_read_twice():
    assert frames_of([4, 4, 5], limits(hole=3)) == [[4], [4, 5]]


def test_nothing_merges_to_nothing():
    assert cut([], limits()) == []


@pytest.mark.parametrize("order", ["rising", "falling", "shuffled", "wide", "negative"])
@pytest.mark.parametrize("count", [2, 48, 49, 5000])
def test_every_order_is_sorted_and_equals_keep_their_turn(order, count):
    rng = np.random.default_rng(count)
    frames = {
        "rising": np.arange(count),
        "falling": np.arange(count)[::-1],
        "shuffled": rng.integers(0, count // 2 + 1, count),
        "wide": rng.integers(0, 1 << 62, count),
        "negative": rng.integers(-(1 << 62), 1 << 62, count) * 2,
    }[order].astype(np.int64)
    merged = merge(frames, np.zeros(count, np.int64), limits())
    assert merged.order.tolist() == np.argsort(frames, kind="stable").tolist()


@given(batches(60, unique=False))
def test_extents_hold_every_page_once_by_frame_and_within_the_limits(batch):
    frames, places, allowed, _ = batch
    extents = cut(frames, allowed, places)
    assert sorted(i for extent in extents for i in extent) == list(range(len(frames)))
    assert [frames[i] for extent in extents for i in extent] == sorted(frames)
    assert all(is_allowed(extent, frames, places, allowed) for extent in extents)


@given(batches())
def test_no_other_cut_has_fewer_requests(batch):
    frames, places, allowed, _ = batch
    least = fewest(range(len(frames)), frames, places, allowed)
    assert len(cut(frames, allowed, places)) == least


# --- several deadlines


def test_pages_of_an_earlier_deadline_come_in_earlier_extents():
    assert frames_of([1, 2, 8, 3], limits(), deadlines_s=[9, 9, 1, 1]) == [[3], [8], [1, 2]]


def test_an_extent_does_not_grow_by_pages_of_a_later_deadline():
    assert frames_of([1, 2, 3], limits(hole=3), deadlines_s=[2, 1, 2]) == [[2], [1, 3]]


def test_a_later_page_in_a_hole_that_is_read_anyway_lands_with_it():
    assert frames_of([1, 2, 3, 4], limits(hole=1), deadlines_s=[1, 2, 1, 2]) == [[1, 2, 3], [4]]
    assert frames_of([1, 2, 3], limits(), deadlines_s=[1, 2, 1]) == [[1], [3], [2]]


def test_a_later_page_stays_out_of_a_hole_where_it_takes_one_buffer_too_many():
    frames, deadlines_s = [1, 3, 5], [1, 2, 1]
    assert frames_of(frames, limits(hole=3, vectors=5), deadlines_s=deadlines_s) == [[1, 3, 5]]
    assert frames_of(frames, limits(hole=3, vectors=4), deadlines_s=deadlines_s) == [[1, 5], [3]]


@pytest.mark.parametrize("frames", [[1, 1, 3], [1, 3, 3]])
def test_a_frame_at_the_edge_of_a_hole_does_not_lie_in_it(frames):
    assert cut(frames, limits(hole=1), deadlines_s=[1, 2, 1]) == [[0, 2], [1]]


def test_negative_zero_and_infinity_are_deadlines_like_others():
    deadlines_s = [math.inf, -0.0, 0.0, -math.inf]
    assert frames_of([1, 2, 3, 4], limits(), deadlines_s=deadlines_s) == [[4], [2, 3], [1]]


@given(batches())
def test_equal_deadlines_are_none_at_all(batch):
    frames, places, allowed, _ = batch
    equal = [3.0] * len(frames)
    assert cut(frames, allowed, places, equal) == cut(frames, allowed, places)


@given(batches(30, unique=False))
def test_no_page_waits_for_one_of_a_later_deadline(batch):
    frames, places, allowed, deadlines_s = batch
    extents = cut(frames, allowed, places, deadlines_s)
    assert sorted(i for extent in extents for i in extent) == list(range(len(frames)))
    urgency = [min(deadlines_s[i] for i in extent) for extent in extents]
    assert urgency == sorted(urgency)
    for extent, most_urgent in zip(extents, urgency, strict=True):
        assert is_allowed(extent, frames, places, allowed)
        own = [i for i in extent if deadlines_s[i] == most_urgent]
        # Without those that joined it, the very same bytes are read.
        assert (own[0], own[-1]) == (extent[0], extent[-1])
        assert is_allowed(own, frames, places, allowed)


@given(batches())
def test_the_pages_of_each_deadline_are_in_as_few_requests_as_they_can_be(batch):
    frames, places, allowed, deadlines_s = batch
    extents = cut(frames, allowed, places, deadlines_s)
    for deadline_s in set(deadlines_s):
        own = [e for e in extents if min(deadlines_s[i] for i in e) == deadline_s]
        left = [i for extent in own for i in extent if deadlines_s[i] == deadline_s]
        assert len(own) == (fewest(left, frames, places, allowed) if left else 0)


@given(batches())
def test_whatever_lies_in_a_hole_and_fits_has_joined(batch):
    frames, places, allowed, deadlines_s = batch
    extents = cut(frames, allowed, places, deadlines_s)
    for place, extent in enumerate(extents):
        later = [i for other in extents[place + 1 :] for i in other]
        for i in later:
            with_it = sorted([*extent, i], key=lambda j: frames[j])
            inside = i not in {with_it[0], with_it[-1]}
            assert not (inside and is_allowed(with_it, frames, places, allowed)), (extents, i)


# --- refusals


@pytest.mark.parametrize(("addresses", "deadlines_s"), [(1, []), (2, [1.0]), (2, [1.0, math.nan])])
def test_columns_that_do_not_fit_together_are_refused(addresses, deadlines_s):
    with pytest.raises(LayoutError, match="2 frames"):
        merge(np.arange(2), np.arange(addresses), limits(), np.array(deadlines_s))


@pytest.mark.parametrize(
    "changes",
    [{"nbytes": 0}, {"vectors": 0}, {"hole_nbytes": -1}, {"page_nbytes": 0}, {"frame_nbytes": 9}],
)
def test_limits_out_of_range_are_refused(changes):
    with pytest.raises(LayoutError, match="expected sizes"):
        merge(np.arange(2), np.arange(2), limits()._replace(**changes))
