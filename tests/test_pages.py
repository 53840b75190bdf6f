# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest

from bodocache.io.backend import Status
from bodocache.move.ticket import Priority
from bodocache.pages import NOWHERE, PAGE, PageTable, Reason, Tier


def some_keys(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32), dtype=np.uint8)


def test_a_record_is_128_bytes_without_overlaps():
    assert PAGE.itemsize == 128
    spans = sorted((offset, offset + d.itemsize) for d, offset in PAGE.fields.values())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_a_new_row_lies_nowhere():
    table = PageTable()
    row = table.records[table.add(some_keys(1))[0]]
    assert row["tiers"] == 0
    assert {row[n] for n in ("frame", "device_slot", "host_slot", "parent", "cluster")} == {NOWHERE}


def test_rows_keep_their_numbers_when_the_table_grows():
    table, keys = PageTable(capacity=2), some_keys(1000)
    rows = table.add(keys)
    table.records["heat"][rows] = np.arange(1000)
    more = table.add(some_keys(5000, seed=1))
    assert np.array_equal(table.keys[rows], keys)
    assert np.array_equal(table.records["heat"][rows], np.arange(1000))
    assert not set(rows) & set(more)


def test_a_removed_row_is_given_again_and_is_clean():
    table = PageTable()
    rows = table.add(some_keys(3))
    table.records["heat"][rows] = 7
    table.remove(rows[1:2])
    again = table.add(some_keys(1, seed=1))
    assert again[0] == rows[1]
    assert table.records["heat"][again[0]] == 0
    assert len(table) == 3


def test_a_page_that_lies_in_a_tier_keeps_its_row():
    table = PageTable()
    rows = table.add(some_keys(1))
    table.records["tiers"][rows] = Tier.HOST.bit
    with pytest.raises(AssertionError):
        table.remove(rows)


@pytest.mark.soak
@pytest.mark.timeout(120)
def test_the_table_grows_to_ten_million_rows():
    table = PageTable()
    for _ in range(10):
        table.add(np.zeros((1_000_000, 32), np.uint8))
    assert len(table) == 10_000_000


@pytest.mark.parametrize("enum", [Tier, Reason, Status, Priority])
def test_members_of_enums_on_the_way_of_a_load_are_attributes_of_their_class(enum):
    for name, member in enum.__members__.items():
        assert vars(enum)[name] is member
    assert len(list(enum)) == len(enum.__members__)
