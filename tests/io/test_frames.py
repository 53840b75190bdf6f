# SPDX-License-Identifier: Apache-2.0
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bodocache.errors import LeaseError, TierFull
from bodocache.io.frames import FrameAllocator


def allocator(pattern):
    """One character a frame: # is reserved."""
    return FrameAllocator(np.array([mark == "#" for mark in pattern]))


def test_frames_right_behind_come_first():
    assert allocator("#..#.....").reserve(2, after=0).tolist() == [1, 2]


def test_the_tightest_run_that_holds_all_comes_next():
    assert allocator("....#...#..").reserve(3, after=-1).tolist() == [5, 6, 7]


def test_without_such_a_run_the_longest_are_taken():
    assert allocator("..#....#...").reserve(6, after=-1).tolist() == [3, 4, 5, 6, 0, 1]


def test_a_run_behind_that_is_too_short_is_used_up_first():
    assert allocator("#.#....").reserve(3, after=0).tolist() == [1, 3, 4]


def test_released_neighbours_become_one_run():
    frames = allocator("......")
    taken = frames.reserve(6, after=-1)
    for chosen in (taken[[1, 4]], taken[[0, 5]], taken[[3, 2]]):
        frames.release(chosen)
    assert frames.reserve(6, after=-1).tolist() == list(range(6))


@pytest.mark.parametrize("wrong", [[0], [1, 1], [-1], [99], [1, 0]])
def test_a_release_of_what_is_not_reserved_changes_nothing(wrong):
    frames = allocator(".#.")
    with pytest.raises(LeaseError):
        frames.release(np.array(wrong))
    assert frames.free == 2
    assert frames.reserved.tolist() == [False, True, False]


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9), st.integers(-1, 39)), max_size=60))
def test_every_frame_is_free_or_taken_once(steps):
    frames, taken = FrameAllocator(np.zeros(40, bool)), []
    for reserves, count, after in steps:
        if reserves and count > 40 - len(taken):
            with pytest.raises(TierFull):
                frames.reserve(count, after=after)
        elif reserves:
            taken += frames.reserve(count, after=after).tolist()
        else:
            given_back = taken[after : after + count] if after >= 0 else []
            frames.release(np.array(given_back, np.int64))
            taken = [frame for frame in taken if frame not in given_back]
        assert len(set(taken)) == len(taken)
        assert np.flatnonzero(frames.reserved).tolist() == sorted(taken)
        assert frames.free == 40 - len(taken)
        free = np.flatnonzero(~frames.reserved)
        assert len(frames._starts) == len(np.flatnonzero(np.diff(free) != 1)) + bool(len(free))


def test_a_million_fragmented_frames_are_quick():
    reserved = np.zeros(1_000_000, bool)
    reserved[::2] = True
    frames = FrameAllocator(reserved)
    start_s = time.perf_counter()
    for _ in range(100):
        frames.release(frames.reserve(8, after=-1))
    assert (time.perf_counter() - start_s) / 100 < 0.02  # a generous bound; 0.3 ms measured
