# SPDX-License-Identifier: Apache-2.0
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bodocache.io import columns
from bodocache.io.backend import TRANSFER
from bodocache.io.columns import Columns, newest
from bodocache.pages import Reason


def filled(keys):
    records = np.zeros(len(keys), TRANSFER)
    records["key"] = np.array(keys)[:, None]
    records["owner"] = 10 + np.arange(len(keys))
    table = Columns(len(keys) + 2)
    table.fill(np.arange(len(keys)), records, np.arange(len(keys), dtype=np.uint64))
    return table


def test_each_key_is_listed_once_by_its_newest_frame():
    assert filled([1, 2, 1, 3, 2, 1]).latest().tolist() == [3, 4, 5]


def test_entries_say_whose_their_pages_are():
    assert filled([1, 2, 1]).entries().owners.tolist() == [11, 12]


def test_an_invalid_newest_frame_lets_the_older_one_count():
    table = filled([1, 2, 1])
    table.invalidate(np.array([2]), Reason.CORRUPT)
    assert table.latest().tolist() == [0, 1]


def test_keys_whose_mixed_words_tie_are_told_apart():
    words = np.zeros((3, 4), np.uint64)
    for i in range(3):
        words[i, i] = np.prod(np.delete(columns._MIXERS[:3], i))
    mixed = (words * columns._MIXERS).sum(axis=1)
    assert (mixed == mixed[0]).all()
    keys = words[[0, 1, 0, 2, 1, 0]].view(np.uint8)
    assert newest(keys, np.arange(6, dtype=np.uint64)).tolist() == [3, 4, 5]
    assert newest(keys, np.zeros(6, np.uint64)).tolist() == [0, 1, 3]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=60))
def test_the_highest_generation_of_each_key_is_kept_and_of_equals_the_first(pages):
    keys = np.array([[key] * 32 for key, _ in pages], np.uint8).reshape(-1, 32)
    generations = np.array([generation for _, generation in pages], np.uint64)
    best = {}
    for row, (key, generation) in enumerate(pages):
        if key not in best or generation > pages[best[key]][1]:
            best[key] = row
    assert newest(keys, generations).tolist() == sorted(best.values())


def test_nothing_is_listed_of_an_empty_table():
    assert not len(Columns(4).entries().keys)


def test_an_evicted_page_is_evicted_only_for_its_own_key():
    table = filled([1, 2])
    table.evict(np.array([0, 2]))
    keys = np.array([[1] * 32, [2] * 32, [9] * 32], np.uint8)
    reasons = table.look_up(np.array([0, 0, 2]), keys)
    assert reasons.tolist() == [Reason.EVICTED, Reason.NEVER_STORED, Reason.NEVER_STORED]


def test_a_digest_is_held_by_a_frame_that_holds_a_page_of_it():
    table = filled([1, 2, 3, 4])
    seeds = table.keys[:, :16].copy().view("<u8")
    table.digests[:4] = np.array([[5, 6], [5, 7], [8, 9], [10, 11]], np.uint64) + seeds[:4]
    table.evict(np.array([2]))
    wanted = np.array([[5, 6], [5, 8], [8, 9], [10, 11], [5, 7], [0, 0]], np.uint64)
    assert table.holds(wanted).tolist() == [True, False, False, True, True, False]
    assert table.holds(wanted[:0]).tolist() == []


def test_an_empty_table_holds_no_digest():
    assert Columns(4).holds(np.zeros((2, 2), np.uint64)).tolist() == [False, False]
