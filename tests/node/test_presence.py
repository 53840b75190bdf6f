# SPDX-License-Identifier: Apache-2.0
"""The table of what is there, which engines look up without asking."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache.node.presence import HEADER_WORDS, Presence, words_for


def keys_of(words):
    keys = np.zeros((len(words), 32), np.uint8)
    keys[:, :8] = np.array(words, np.uint64)[:, None].view(np.uint8)
    return keys


def table(pages):
    return Presence(np.zeros(words_for(pages), np.uint64))


def u64(words):
    return np.array(words, np.uint64)


# Few different places, so that entries lie in each other's way, around the end of the table, too.
WORDS = st.integers(0, 5).flatmap(
    lambda home: st.integers(0, 6).map(lambda turn: (home - 2) % 32 + 32 * turn)
)


@given(st.lists(st.tuples(st.booleans(), st.lists(WORDS, max_size=6)), max_size=30))
@settings(max_examples=200, deadline=None)
def test_it_holds_what_was_added_and_not_removed(steps):
    presence, there = table(16), set()
    presence.open()
    for is_added, words in steps:
        if is_added and len(there | {max(it, 1) for it in words}) <= 16:
            presence.add(u64(words))
            there |= {max(it, 1) for it in words}
        elif not is_added:
            presence.remove(u64(words))
            there -= {max(it, 1) for it in words}
        found = {word for word in range(1, 32 * 7) if presence.leading(keys_of([word])) == 1}
        assert found == there


def test_leading_pages_are_counted():
    presence = table(16)
    presence.add(u64([7, 8, 9]))
    presence.open()
    assert presence.leading(keys_of([7, 8, 9, 10, 7])) == 3
    assert presence.leading(keys_of([10, 7])) == 0
    assert presence.leading(keys_of([])) == 0


def test_a_table_that_is_not_open_or_too_small_is_no_answer():
    presence = table(8)
    assert presence.leading(keys_of([7])) is None
    presence.open()
    presence.add(u64(range(1, 9)))
    assert presence.leading(keys_of([7])) == 1
    presence.add(u64([9]))
    assert presence.leading(keys_of([7])) is None


def test_at_most_half_of_it_is_used():
    for pages in (1, 8, 9, 1000):
        assert words_for(pages) - HEADER_WORDS >= 2 * pages
