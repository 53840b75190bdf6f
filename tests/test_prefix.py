# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bodocache.layout import ALL, POINT, Group, KVShape, window
from bodocache.pages import PageTable
from bodocache.prefix import PrefixIndex

PAGE_TOKENS = 4


def some_keys(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32), dtype=np.uint8)


def crowded_keys(count):
    """Keys that all want the same bucket."""
    keys = np.zeros((count, 32), np.uint8)
    keys[:, 31] = np.arange(count)
    return keys


def index_of(keys):
    table = PageTable()
    index = PrefixIndex(table)
    index.insert(table.add(keys))
    return index, table


def shape(*rules):
    groups = [Group(f"g{i}", 1, 1, 16, 1, rule=rule) for i, rule in enumerate(rules)]
    return KVShape(PAGE_TOKENS, tuple(groups))


def test_every_key_is_found_in_its_row():
    keys = some_keys(5000)
    index, table = index_of(keys)
    assert np.array_equal(table.keys[index.find(keys)], keys)
    assert len(index) == 5000


def test_an_unknown_key_is_not_found():
    index, _ = index_of(some_keys(100))
    assert (index.find(some_keys(100, seed=1)) == -1).all()


def test_keys_that_differ_in_one_late_byte_are_told_apart():
    keys = crowded_keys(200)
    index, table = index_of(keys)
    assert np.array_equal(table.keys[index.find(keys)], keys)


def test_pages_behind_an_evicted_ancestor_are_unreachable():
    keys = some_keys(10)
    index, _ = index_of(keys)
    rows = index.find(keys)
    index.remove(rows[4:5])
    assert np.array_equal(index.leading(keys), rows[:4])
    assert index.find(keys)[5] == rows[5]


@pytest.mark.parametrize("gone", list(itertools.permutations(range(5), 2)))
def test_removing_from_a_crowded_bucket_hides_nobody_else(gone):
    keys = crowded_keys(5)
    index, _ = index_of(keys)
    rows = index.find(keys)
    index.remove(rows[list(gone)])
    expected = [-1 if i in gone else row for i, row in enumerate(rows)]
    assert index.find(keys).tolist() == expected


def test_removing_a_row_twice_removes_it_once():
    index, _ = index_of(some_keys(3))
    rows = index.find(some_keys(3))
    index.remove(rows[:1])
    index.remove(rows[:1])
    assert len(index) == 2


class IndexMachine(RuleBasedStateMachine):
    """The index against a dictionary, over keys that crowd together."""

    def __init__(self):
        super().__init__()
        self.table = PageTable()
        self.index = PrefixIndex(self.table)
        self.model = {}

    @rule(number=st.integers(0, 60))
    def insert(self, number):
        key = crowded_keys(61)[number]
        if bytes(key) not in self.model:
            row = self.table.add(key[None])
            self.index.insert(row)
            self.model[bytes(key)] = int(row[0])

    @rule(number=st.integers(0, 60))
    def remove(self, number):
        row = self.model.pop(bytes(crowded_keys(61)[number]), None)
        if row is not None:
            self.index.remove(np.array([row]))
            self.table.remove(np.array([row]))

    @invariant()
    def finds_what_the_dictionary_finds(self):
        keys = crowded_keys(61)
        assert self.index.find(keys).tolist() == [self.model.get(bytes(k), -1) for k in keys]
        assert len(self.index) == len(self.model)


TestIndexMachine = IndexMachine.TestCase


def boundaries(rules, present):
    """Boundaries of a 6-page prompt where ``present[g]`` says which pages group g has."""
    table = PageTable()
    index = PrefixIndex(table)
    chains = [some_keys(len(p), seed=g) for g, p in enumerate(present)]
    for keys, there in zip(chains, present, strict=True):
        index.insert(table.add(keys[np.array(there, bool)]))
    return index.boundaries(shape(*rules), chains), table, chains


def brute_force(rules, present):
    pages = len(present[0])
    restorable = []
    for n in range(1, pages + 1):
        needed = []
        for rule_, there in zip(rules, present, strict=True):
            first = {"all": 0, "point": n - 1}.get(rule_.kind)
            if first is None:
                first = max(0, n - -(-rule_.window_tokens // PAGE_TOKENS))
            needed.append(all(there[first:n]))
        if all(needed):
            restorable.append(n)
    return restorable[::-1]


RULES = st.sampled_from([POINT, window(4), window(6), window(100), ALL])


@given(
    st.lists(
        st.tuples(RULES, st.lists(st.booleans(), min_size=6, max_size=6)), min_size=1, max_size=3
    )
)
def test_boundaries_are_those_where_every_rule_holds(groups):
    rules, present = [g[0] for g in groups], [g[1] for g in groups]
    found, _, _ = boundaries(rules, present)
    assert found.pages.tolist() == brute_force(rules, present)


def test_a_boundary_names_the_rows_each_group_needs():
    found, table, chains = boundaries([POINT, window(8)], [[1] * 6, [1] * 6])
    snapshot, recent = found.rows_at(5)
    assert np.array_equal(table.keys[snapshot], chains[0][4:5])
    assert np.array_equal(table.keys[recent], chains[1][3:5])
    assert found.deepest == 6


def test_nothing_stored_is_no_boundary():
    found, _, _ = boundaries([POINT], [[0] * 6])
    assert found.deepest == 0
