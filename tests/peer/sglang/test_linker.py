# SPDX-License-Identifier: Apache-2.0
"""SGLang's radix tree over our linker: what it offloads comes back by layer, byte for byte."""

import time
from array import array
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator
from sglang.srt.mem_cache.base_prefix_cache import (
    EvictParams,
    InitLoadBackParams,
    InsertParams,
    MatchPrefixParams,
)
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool, ReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.components.base import ComponentType
from sglang.srt.mem_cache.unified_cache.linker_factory import create_unified_cache_linker
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from bodocache.errors import ConfigError, LayoutError

PAGE, TOKENS, LAYERS = 16, 640, 4


def mha(server):
    return MHATokenToKVPool(
        TOKENS, PAGE, torch.bfloat16, 2, 32, LAYERS, "cpu", enable_memory_saver=False
    )


def mla(server):
    return MLATokenToKVPool(
        TOKENS, PAGE, torch.bfloat16, 64, 32, LAYERS, "cpu", enable_memory_saver=False
    )


class Engine:
    """What of SGLang drives the linker: its tree, its allocator, its device pool."""

    def __init__(self, server, pool, extra):
        self.pool = pool
        allocator = PagedTokenToKVPoolAllocator(
            TOKENS, PAGE, torch.bfloat16, "cpu", pool, need_sort=False
        )
        self.allocator = allocator
        requests = ReqToTokenPool(
            size=4, max_context_len=TOKENS, device="cpu", enable_memory_saver=False
        )
        params = CacheInitParams(
            disable=False,
            req_to_token_pool=requests,
            token_to_kv_pool_allocator=allocator,
            page_size=PAGE,
            tree_components=(ComponentType.FULL,),
        )
        self.tree = UnifiedRadixCache(params=params)
        config = {
            "linker": "BodoCacheLinker",
            "linker_module_path": "bodocache.integrations.sglang_linker",
            "linker_extra_config": {"host_bytes": "16 MiB", **extra},
        }
        self.linker = create_unified_cache_linker(
            server, params, backend="dynamic", config=config, components=set(self.tree.components)
        )
        self.tree.init_cache_linker(self.linker)
        pool.register_layer_transfer_counter(self.linker.layer_done_counter)

    def bytes_of(self, slots):
        """Of the tokens in ``slots``, by layer."""
        return [part[slots].clone() for part in self.parts]

    @property
    def parts(self):
        """Every tensor of the device pool."""
        if isinstance(self.pool, MHATokenToKVPool):
            return [*self.pool.k_buffer, *self.pool.v_buffer]
        return self.pool.kv_buffer

    def compute(self, tokens):
        """Insert a prompt whose KV was just computed; what it is."""
        slots = self.allocator.alloc(len(tokens))
        for part in self.parts:
            part[slots] = torch.randn(part[slots].shape).to(part.dtype)
        self.tree.insert(InsertParams(key=key(tokens), value=slots))
        return self.bytes_of(slots)

    def settle(self):
        """Wait until every offload is over, as the scheduler's steps do."""
        ends = time.monotonic() + 60
        while self.tree.linker.pending_offloads:
            assert time.monotonic() < ends
            self.tree.check_hicache_events()
            time.sleep(0.002)

    def forget(self):
        """Evict everything from the device, and spoil what lay there."""
        self.tree.evict(EvictParams(num_tokens=TOKENS))
        for part in (
            [*self.pool.k_buffer, *self.pool.v_buffer] if self.is_mha else self.pool.kv_buffer
        ):
            part.fill_(-7)

    def match(self, tokens, rid):
        request = SimpleNamespace(
            rid=rid, last_node=None, swa_branching_seqlen=None, session=None,
            swa_host_hit_length=0, mamba_host_hit_length=0, kv=None,
        )  # fmt: skip
        found = self.tree.match_prefix(MatchPrefixParams(key=key(tokens), req=request))
        request.last_node = found.last_device_node
        return request, found

    def restore(self, tokens, rid="r"):
        """The bytes of the prompt after a load by layer, and what the last wait said."""
        request, found = self.match(tokens, rid)
        if not found.host_hit_length:
            return None
        count, _ = self.tree.init_load_back(
            InitLoadBackParams(found.best_match_node, found.host_hit_length, req=request)
        )
        slots = self.tree.linker.private_load_indices[rid]
        assert len(slots) == count == found.host_hit_length
        self.linker.layer_done_counter.set_consumer(self.tree.ready_to_load_host_cache())
        for layer in range(LAYERS):
            self.pool.get_key_buffer(layer)
        seen = self.bytes_of(slots)
        failed = self.tree.finish_external_linker_loads([request])
        self.allocator.free(slots)
        return seen if not failed else "failed"


def key(tokens):
    return RadixKey(array("q", tokens))


@pytest.fixture
def engine(server, made):
    engines = []

    def start(**extra):
        engines.append(Engine(server, made(server), extra))
        return engines[-1]

    yield start
    for it in engines:
        it.linker.close()


@pytest.fixture(params=[mha, mla])
def made(request):
    return request.param


def test_what_was_offloaded_comes_back_by_layer(engine):
    engine = engine()
    prompt = list(range(160))
    computed = engine.compute(prompt)
    engine.settle()
    engine.forget()
    for number in range(2):
        restored = engine.restore(prompt, f"r{number}")
        assert all(map(torch.equal, restored, computed))


def test_the_longest_common_prefix_is_offered(engine):
    engine = engine()
    prompt = list(range(160))
    computed = engine.compute(prompt)
    engine.settle()
    engine.forget()
    restored = engine.restore([*prompt[:96], *range(1000, 1064)])
    assert all(torch.equal(a, b[:96]) for a, b in zip(restored, computed, strict=True))


def test_a_restart_finds_what_is_on_disk(engine, tmp_path):
    prompt, disk = list(range(320)), {"directory": str(tmp_path), "disk_bytes": "32 MiB"}
    first = engine(**disk)
    computed = first.compute(prompt)
    first.settle()
    first.linker.close()
    second = engine(**disk)
    second.forget()
    _, found = second.match(prompt, "asks")
    assert found.host_hit_length == 0  # it is being read
    ends = time.monotonic() + 30
    while (restored := second.restore(prompt)) is None:
        assert time.monotonic() < ends
        time.sleep(0.01)
    assert all(torch.equal(a, b[: len(a)]) for a, b in zip(restored, computed, strict=True))
    assert len(restored[0]) == len(prompt)


def test_other_weights_or_another_domain_are_misses(engine, tmp_path):
    prompt, disk = list(range(160)), {"directory": str(tmp_path), "disk_bytes": "32 MiB"}
    first = engine(**disk)
    first.compute(prompt)
    first.settle()
    first.linker.close()
    for other in ({"weights_version": "2"}, {"domain": "other"}):
        second = engine(**disk, **other)
        for _ in range(5):
            assert second.restore(prompt) is None
            time.sleep(0.02)
        second.linker.close()


def test_a_queued_load_can_be_cancelled(engine):
    engine = engine()
    prompt = list(range(160))
    engine.compute(prompt)
    engine.settle()
    engine.forget()
    request, found = engine.match(prompt, "r")
    engine.tree.init_load_back(
        InitLoadBackParams(found.best_match_node, found.host_hit_length, req=request)
    )
    engine.tree.linker.release_request("r")
    assert engine.tree.ready_to_load_host_cache() == -1
    assert engine.tree.finish_external_linker_loads([request]) == []
    assert all((part == -7).all() for part in engine.bytes_of(slice(None)))


def test_damage_in_host_memory_fails_the_load_and_never_the_bytes(engine):
    engine = engine()
    prompt = list(range(160))
    engine.compute(prompt)
    engine.settle()
    engine.forget()
    request, found = engine.match(prompt, "r")
    assert found.host_hit_length == 160

    async def spoil(cache):
        cache._orchestrator.residency.host.buffer[:4096] ^= 1

    engine.linker._cache.run(spoil)
    engine.tree.init_load_back(
        InitLoadBackParams(found.best_match_node, found.host_hit_length, req=request)
    )
    engine.linker.layer_done_counter.set_consumer(engine.tree.ready_to_load_host_cache())
    engine.pool.get_key_buffer(LAYERS - 1)
    assert engine.tree.finish_external_linker_loads([request]) == [request]


def test_options_and_pools_that_do_not_fit_are_said(server, made):
    with pytest.raises(ConfigError, match="linker_extra_config: hosts_bytes: unknown key"):
        Engine(server, made(server), {"hosts_bytes": 1})
    with pytest.raises(ConfigError, match="capacity_bytes"):
        Engine(server, made(server), {"host_bytes": "4 KiB"})

    class Other(MHATokenToKVPool):
        """Lays its bytes out in a way of its own."""

    other = Other(TOKENS, PAGE, torch.bfloat16, 2, 32, LAYERS, "cpu", enable_memory_saver=False)
    with pytest.raises(LayoutError, match="Other: the BodoCache linker restores"):
        Engine(server, other, {})
