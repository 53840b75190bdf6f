# SPDX-License-Identifier: Apache-2.0
"""SGLang's real UnifiedRadixCache over our backend, by SGLang's own test kit.

Kernels between device and host are for GPUs: here plain indexing stands for them.
"""

import json
import unittest
import warnings
from array import array

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    kit = pytest.importorskip(
        "sglang.test.kits.unified_radix_cache.storage", reason="this version has no such kit"
    )
    from sglang.srt.mem_cache.base_prefix_cache import CacheRequestHandle, EvictParams
    from sglang.srt.mem_cache.pool_host import common, mha
    from sglang.srt.mem_cache.unified_cache.components.base import ComponentType
    from sglang.srt.runtime_context import get_parallel
    from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler
    from sglang.test.kits.unified_radix_cache import fixtures
    from sglang.test.kits.unified_radix_cache.config import CacheConfig

FULL = CacheConfig(page_size=16, components=(ComponentType.FULL,), kv_size=512)
WINDOW = CacheConfig(
    page_size=16,
    components=(ComponentType.FULL, ComponentType.SWA),
    sliding_window_size=32,
    kv_size=512,
)


def backup_by_indexing(self, device_pool, host_indices, device_indices, io_backend, **more):
    for layer, (k, v) in enumerate(zip(self.device_k_buffers, self.device_v_buffers, strict=True)):
        self.k_buffer[host_indices, layer] = k[device_indices]
        self.v_buffer[host_indices, layer] = v[device_indices]


def load_by_indexing(self, device_pool, host_indices, device_indices, layer_id, io_backend, **more):
    self.device_k_buffers[layer_id][device_indices] = self.k_buffer[host_indices, layer_id]
    self.device_v_buffers[layer_id][device_indices] = self.v_buffer[host_indices, layer_id]


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    monkeypatch.setattr(fixtures, "get_device", lambda *_, **__: "cpu")
    monkeypatch.setitem(
        common.ALLOC_MEMORY_FUNCS,
        "cpu",
        lambda dims, dtype, *_, **__: torch.zeros(dims, dtype=dtype),
    )
    monkeypatch.setattr(
        mha.MHATokenToKVPoolHost, "backup_from_device_all_layer", backup_by_indexing
    )
    monkeypatch.setattr(mha.MHATokenToKVPoolHost, "load_to_device_per_layer", load_by_indexing)


class Trees(kit.UnifiedRadixCacheStorageFixtures, unittest.TestCase):
    """The kit's helpers; ours open the tree over our backend."""

    def runTest(self):  # noqa: N802 -- unittest's name
        pass

    def open(self, extra):
        cache, allocator, requests = fixtures.build_fixture(self.cfg)
        topology = get_parallel().override(tp_rank=0, tp_size=1, pp_rank=0, pp_size=1)
        topology.__enter__()
        self.addCleanup(topology.__exit__, None, None, None)
        arguments = ServerArgs(
            model_path="dummy",
            page_size=self.cfg.page_size,
            hicache_io_backend="kernel",
            hicache_write_policy="write_through",
            hicache_storage_backend="dynamic",
            hicache_storage_backend_extra_config=json.dumps(extra | {"prefetch_threshold": 1}),
            hicache_storage_prefetch_policy="wait_complete",
        )
        set_global_server_args_for_scheduler(arguments)
        cache.init_hicache(arguments, cache.cache_init_params)
        self.addCleanup(fixtures.drop_hicache_atexit_pin, cache)
        self.addCleanup(cache.release_host_resources)
        self.addCleanup(cache.cache_controller.detach_storage_backend)
        cache.write_through_threshold = 1 << 30
        cache.load_back_threshold = 0
        cache.cache_controller.prefetch_capacity_limit = cache.cache_controller.mem_pool_host.size
        return cache, allocator, requests


@pytest.fixture
def trees(tmp_path_factory, house):
    it = Trees()
    it.directory = tmp_path_factory.mktemp("tree")
    yield it
    it.doCleanups()
    for pool in ("kv", "swa"):
        house.until(lambda pool=pool: house.node_is_gone(it.directory, pool))


def equal(ours, theirs):
    return all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("cfg", [FULL, WINDOW], ids=["full", "window"])
@pytest.mark.parametrize("prefix_keys", [False, True])
def test_what_one_tree_backed_up_another_prefetches(trees, house, cfg, prefix_keys):
    trees.cfg = cfg
    extra = house.extra_config(trees.directory, hicache_storage_pass_prefix_keys=prefix_keys)
    cache, allocator, requests = trees.open(extra)
    tokens = trees._make_seq(1, 8)
    trees._insert(cache, allocator, requests, tokens)
    match = fixtures.match_prefix(cache, tokens)
    leaf = match.last_device_node
    trees._fill_full_kv(allocator, cache.path_device_indices(leaf), marker=7)
    kept = trees._snapshot_full_kv(allocator, cache.path_device_indices(leaf))
    trees._backup_node(cache, leaf)
    trees._write_path_to_l3(cache, leaf)
    trees._flush_l3_backups(cache)
    hashes = trees._all_page_hashes(cache, leaf)
    storage = cache.cache_controller.storage_backend
    assert storage.batch_exists(hashes) == len(hashes) == 8
    if cfg is WINDOW:  # two pages of it, in a pool and at a node of their own
        assert storage._storages["swa"].holds(hashes).tolist()[-2:] == [True, True]

    other, its_allocator, its_requests = trees.open(extra)
    request = CacheRequestHandle("request", 0)
    other.prefetch_from_storage(request, other.root_node_handle(), array("q", tokens), None, None)
    trees._run_prefetch_to_completion(other, request, timeout=30)
    found = fixtures.match_prefix(other, tokens)
    assert found.device_prefix_len == 0
    assert found.host_hit_length == len(tokens)
    trees._load_back_through_admission(other, its_requests, tokens)
    trees._finish_pending_loads(other)
    back = fixtures.match_prefix(other, tokens)
    assert back.device_prefix_len == len(tokens)
    came = trees._snapshot_full_kv(its_allocator, other.path_device_indices(back.last_device_node))
    assert equal(came, kept)
    other.sanity_check()


def test_what_left_the_device_comes_back(trees, house):
    trees.cfg = FULL
    cache, allocator, requests = trees.open(house.extra_config(trees.directory))
    tokens = trees._make_seq(1, 8)
    trees._insert(cache, allocator, requests, tokens)
    leaf = fixtures.match_prefix(cache, tokens).last_device_node
    trees._fill_full_kv(allocator, cache.path_device_indices(leaf), marker=3)
    kept = trees._snapshot_full_kv(allocator, cache.path_device_indices(leaf))
    trees._backup_node(cache, leaf)
    trees._write_path_to_l3(cache, leaf)
    trees._flush_l3_backups(cache)
    cache.evict(EvictParams(num_tokens=len(tokens)))
    found = fixtures.match_prefix(cache, tokens)
    assert (found.device_prefix_len, found.host_hit_length) == (0, len(tokens))
    trees._load_back_through_admission(cache, requests, tokens)
    trees._finish_pending_loads(cache)
    back = fixtures.match_prefix(cache, tokens)
    came = trees._snapshot_full_kv(allocator, cache.path_device_indices(back.last_device_node))
    assert equal(came, kept)
