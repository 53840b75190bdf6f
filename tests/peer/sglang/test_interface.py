# SPDX-License-Identifier: Apache-2.0
"""The rest of SGLang's storage interface: flat tensors, pools beside the KV, metrics, numbers."""

import threading
import time

import pytest
import torch
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    HiCacheStorageExtraInfo,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
)

from bodocache.integrations.sglang import BodoCacheStorage


def test_every_method_of_the_interface_is_ours():
    """A method that a new version adds, and that would do nothing, is seen here."""
    theirs = {name for name, it in vars(HiCacheStorage).items() if callable(it) and name[0] != "_"}
    inherited = theirs - set(vars(BodoCacheStorage))
    assert inherited <= {"on_host_pools_registered"}


def test_flat_pages_come_back(house, open_backend):
    pool = house.mha_pool("layer_first")
    backend = open_backend(pool, interface_v1=0)
    keys, source = house.hashes(4), house.slots(pool, 4)
    values = [pool.get_data_page(int(it), flat=True) for it in source[:: house.TOKENS]]
    assert backend.batch_set(keys, values)
    assert backend.exists(keys[2])
    rooms = [pool.get_dummy_flat_data_page() for _ in range(5)]
    came = backend.batch_get([*keys, *house.hashes(1, of=9)], rooms)
    assert came[4] is None
    for room, value in zip(came[:4], values, strict=True):
        assert torch.equal(room.view(torch.uint8), value.contiguous().view(torch.uint8))
    single = backend.get(keys[0], pool.get_dummy_flat_data_page())
    assert torch.equal(single.view(torch.uint8), values[0].contiguous().view(torch.uint8))


@pytest.fixture
def with_sidecar(house, open_backend, tmp_path_factory):
    """A backend with a KV pool and another one beside it, as a hybrid model has."""
    directory = tmp_path_factory.mktemp("hybrid")
    kv, beside = house.mha_pool(), house.mha_pool(heads=1)
    backend = open_backend(kv, directory)
    backend.register_mem_host_pool_v2(kv, PoolName.KV)
    backend.register_mem_host_pool_v2(beside, PoolName.SWA)
    yield backend, kv, beside
    backend.close()
    house.until(lambda: house.node_is_gone(directory, "swa"))


def test_a_pool_beside_restores_by_its_own_rule(house, with_sidecar):
    backend, kv, beside = with_sidecar
    keys = house.hashes(10)
    source = house.slots(kv, 10)
    assert backend.batch_set_v1(keys, source) == [True] * 10
    window = house.slots(beside, 2)
    for end in (4, 8):  # two nodes of the tree end there: the last two pages of each are stored
        stored = backend.batch_set_v2(
            [
                PoolTransfer(
                    PoolName.SWA,
                    host_indices=window,
                    keys=keys[end - 2 : end],
                    hit_policy=PoolHitPolicy.TRAILING_PAGES,
                )
            ],
            HiCacheStorageExtraInfo(prefix_keys=[]),
        )
        assert stored == {PoolName.SWA: [True, True]}
    asked = PoolTransfer(PoolName.SWA, keys=keys[-2:], hit_policy=PoolHitPolicy.TRAILING_PAGES)
    found = backend.batch_exists_v2(keys, [asked])
    assert found.kv_hit_pages == 8
    assert found.extra_pool_hit_pages == {PoolName.KV: 10, PoolName.SWA: 8}
    assert getattr(found, "restorable_prefix_pages", [4, 8]) == [4, 8]
    target = house.slots(beside, 2)
    came = backend.batch_get_v2([PoolTransfer(PoolName.SWA, host_indices=target, keys=keys[6:8])])
    assert came == {PoolName.SWA: [True, True]}
    assert torch.equal(house.page_bytes(beside, window), house.page_bytes(beside, target))


def test_a_pool_that_needs_every_page_ends_the_prefix(house, with_sidecar):
    backend, kv, beside = with_sidecar
    keys = house.hashes(6)
    assert all(backend.batch_set_v1(keys, house.slots(kv, 6)))
    transfer = PoolTransfer(PoolName.SWA, host_indices=house.slots(beside, 3), keys=keys[:3])
    assert backend.batch_set_v2([transfer]) == {PoolName.SWA: [True] * 3}
    found = backend.batch_exists_v2(keys, [PoolTransfer(PoolName.SWA)])
    assert (found.kv_hit_pages, found.extra_pool_hit_pages[PoolName.SWA]) == (3, 3)


def test_a_changed_byte_in_shared_memory_is_a_miss(house, open_backend):
    pool = house.mha_pool()
    backend = open_backend(pool)
    keys, source, target = house.hashes(4), house.slots(pool, 4), house.slots(pool, 4)
    assert all(backend.batch_set_v1(keys, source))
    house.written(backend, 4)
    assert backend.batch_exists(keys) == 4
    line, page = backend._nodes["kv"].line, house.page_bytes(pool, source)[2]
    house.until(lambda: any(it.is_final.all() for it in line.incoming.values()))
    for incoming in line.incoming.values():
        row = line.pages[int(incoming.slots[2])]
        assert torch.equal(row, page)
        row[100] ^= 1
    assert backend.batch_get_v1(keys, target) == [True, True, False, True]
    house.until(lambda: all(backend.batch_get_v1(keys, target)))  # from disk: that copy is gone
    assert torch.equal(house.page_bytes(pool, source), house.page_bytes(pool, target))


def test_pages_are_read_before_they_are_got(house, open_backend, tmp_path_factory):
    """What was named lies in host memory when SGLang comes for it."""
    directory = tmp_path_factory.mktemp("ahead")
    pool = house.mha_pool(pages=129)
    backend = open_backend(pool, directory)
    keys, source, target = house.hashes(40), house.slots(pool, 40), house.slots(pool, 40)
    assert all(backend.batch_set_v1(keys, source))
    before = house.page_bytes(pool, source)
    backend.close()
    house.until(lambda: house.node_is_gone(directory))
    backend = open_backend(pool, directory)
    assert backend.batch_exists(keys) == 40
    line = backend._nodes["kv"].line
    house.until(lambda: line.incoming)
    (incoming,) = line.incoming.values()
    line.wait(incoming, slice(None), time.monotonic() + 20)
    assert (incoming.slots >= 0).all()
    assert backend.batch_get_v1(keys, target) == [True] * 40
    assert torch.equal(before, house.page_bytes(pool, target))
    assert not line.incoming  # nothing is held any more


def test_pages_that_nobody_gets_are_let_go(house, open_backend):
    pool = house.mha_pool()
    backend = open_backend(pool, read_ahead_s=0.2)
    keys = house.hashes(4)
    assert all(backend.batch_set_v1(keys, house.slots(pool, 4)))
    assert backend.batch_exists(keys) == 4
    line = backend._nodes["kv"].line
    house.until(lambda: line.incoming)
    house.until(lambda: not line.incoming)


def test_metrics_are_of_sglangs_own_type(house, open_backend):
    pool = house.mha_pool()
    backend = open_backend(pool)
    keys = house.hashes(5)
    assert all(backend.batch_set_v1(keys, house.slots(pool, 5)))
    assert all(backend.batch_get_v1(keys, house.slots(pool, 5)))
    metrics = backend.get_stats()
    assert (metrics.prefetch_pgs, metrics.backup_pgs) == ([5], [5])
    assert metrics.prefetch_bandwidth[0] > 0
    assert backend.get_stats().prefetch_pgs == []


def test_four_threads_get_and_set_at_once(house, open_backend):
    pool = house.mha_pool(pages=129)
    backend = open_backend(pool)
    indices = [house.slots(pool, 8) for _ in range(8)]
    kept, wrong = [house.page_bytes(pool, it) for it in indices[:4]], []

    def work(number):
        for turn in range(20):
            keys = house.hashes(8, of=1000 * number + turn)
            stored = backend.batch_set_v1(keys, indices[number])
            ahead = backend.batch_exists(keys)
            came = backend.batch_get_v1(keys, indices[4 + number])
            landed = house.page_bytes(pool, indices[4 + number])
            if not (all(stored) and ahead == 8 and all(came)):
                wrong.append((stored, ahead, came))
            if not torch.equal(landed, kept[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
