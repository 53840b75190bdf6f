# SPDX-License-Identifier: Apache-2.0
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bodocache.io.extents import PAGES_MAX, merge, pages_per_extent, slices


def runs(frames, limit=10):
    frames = np.array(frames, np.int64)
    merged = merge(frames, limit=limit)
    return [frames[merged.order[chosen]].tolist() for chosen in slices(merged.bounds)]


def test_adjacent_frames_are_one_extent_in_whatever_order_they_come():
    assert runs([7, 3, 4, 9, 8]) == [[3, 4], [7, 8, 9]]


def test_a_run_is_cut_at_the_limit():
    assert runs(range(5), limit=2) == [[0, 1], [2, 3], [4]]


def test_a_frame_larger_than_a_chunk_is_an_extent_of_its_own():
    assert pages_per_extent(frame_nbytes=4096, chunk_nbytes=100) == 1


def test_no_extent_holds_more_buffers_than_one_call_takes():
    assert pages_per_extent(frame_nbytes=1, chunk_nbytes=1 << 30) == PAGES_MAX


def test_a_frame_named_twice_is_read_twice():
    assert runs([4, 4, 5]) == [[4], [4, 5]]


def test_nothing_merges_to_nothing():
    assert runs([]) == []


@given(st.lists(st.integers(0, 60), max_size=60), st.integers(1, 9))
def test_extents_cover_the_batch_once_and_are_adjacent_and_short(frames, limit):
    merged = merge(np.array(frames, np.int64), limit=limit)
    assert sorted(merged.order.tolist()) == list(range(len(frames)))
    assert sum(extent.stop - extent.start for extent in slices(merged.bounds)) == len(frames)
    for extent in slices(merged.bounds):
        chosen = [frames[position] for position in merged.order[extent].tolist()]
        assert chosen == list(range(chosen[0], chosen[0] + len(chosen)))
        assert len(chosen) <= limit
