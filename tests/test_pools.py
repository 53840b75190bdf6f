# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from bodocache.errors import LayoutError, LeaseError, TierFull
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory
from bodocache.pools import BorrowedPool, OwnedPool

GROUP = Group("kv", layers=2, heads=2, head_dim=8, itemsize=2)


def owned(num_pages=8, kind=LayoutKind.PAGE):
    return OwnedPool(Layout(kind, GROUP, page_tokens=4, num_pages=num_pages), name="host")


def test_slots_are_distinct_until_released():
    pool = owned()
    first, second = pool.acquire(5), pool.acquire(3)
    assert sorted([*first, *second]) == list(range(8))


def test_a_full_pool_says_how_full_and_takes_nothing():
    pool = owned()
    pool.acquire(6)
    with pytest.raises(TierFull, match="host: 3 slots asked for, 2 of 8 free"):
        pool.acquire(3)
    assert pool.free == 2


def test_a_released_slot_is_free_and_of_another_generation():
    pool = owned()
    slots = pool.acquire(2)
    before = pool.generation[slots].copy()
    pool.release(slots)
    assert pool.free == 8
    assert np.array_equal(pool.generation[slots], before + 1)


def test_a_slot_under_lease_is_never_reused():
    pool = owned()
    slots = pool.acquire(8)
    with pool.lease(slots[:3]):
        pool.release(slots)
        assert pool.free == 5
        assert not set(pool.acquire(5)) & set(slots[:3])
    assert pool.free == 3


def test_a_slot_is_free_only_with_its_last_lease():
    pool = owned()
    slots = pool.acquire(1)
    pool.hold(slots)
    pool.hold(slots)
    pool.release(slots)
    pool.drop(slots)
    assert pool.free == 7
    pool.drop(slots)
    assert pool.free == 8


def test_a_lease_that_is_not_held_cannot_end():
    pool = owned()
    slots = pool.acquire(2)
    pool.hold(slots[:1])
    with pytest.raises(LeaseError):
        pool.drop(slots)
    assert pool.leased == 1


@pytest.mark.parametrize("twice", [[0, 0], [0]])
def test_a_slot_cannot_be_released_twice(twice):
    pool = owned()
    pool.acquire(1)
    if twice == [0]:
        pool.release(np.array([0]))
    with pytest.raises(LeaseError):
        pool.release(np.array(twice))


def test_a_slot_beyond_the_pool_is_an_error():
    with pytest.raises(LayoutError, match="the pool has 8"):
        owned().hold(np.array([8]))


def test_pages_of_a_page_layout_are_rows():
    pool = owned()
    pool.pages[3] = 7
    assert int((pool.buffer == 7).sum()) == pool.layout.page_nbytes
    with pytest.raises(LayoutError, match="scattered"):
        _ = owned(kind=LayoutKind.LAYER_FIRST).pages


def test_host_memory_is_page_aligned_for_direct_io():
    assert owned().buffer.data_ptr() % 4096 == 0


def test_a_borrowed_pool_leases_without_allocating():
    engine = owned()
    memory = PagedMemory.of_layout(engine.buffer, engine.layout)
    pool = BorrowedPool(memory)
    with pool.lease(np.array([1, 2])):
        assert pool.leased == 2
    assert pool.leased == 0
    assert not hasattr(pool, "acquire")


def test_a_free_slot_cannot_be_leased():
    pool = owned()
    with pytest.raises(LeaseError, match="slot 3 is free"):
        pool.hold(np.array([3]))
