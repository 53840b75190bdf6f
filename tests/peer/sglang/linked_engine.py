# SPDX-License-Identifier: Apache-2.0
"""What of SGLang drives the linker: its radix tree, its allocator, its device pool."""

import time
from array import array
from types import SimpleNamespace

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
from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler

PAGE, TOKENS, LAYERS = 16, 640, 4


def published():
    """SGLang's arguments, as its scheduler has published them."""
    arguments = ServerArgs(model_path="dummy", page_size=PAGE)
    set_global_server_args_for_scheduler(arguments)
    return arguments


def mha():
    return MHATokenToKVPool(
        TOKENS, PAGE, torch.bfloat16, 2, 32, LAYERS, "cpu", enable_memory_saver=False
    )


def mla():
    return MLATokenToKVPool(
        TOKENS, PAGE, torch.bfloat16, 64, 32, LAYERS, "cpu", enable_memory_saver=False
    )


class Engine:
    """An engine without a model."""

    def __init__(self, server, pool, extra, ranks=None):
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
            tp_cache_group=ranks,
        )
        self.tree = UnifiedRadixCache(params=params)
        config = {
            "linker": "BodoCacheLinker",
            "linker_module_path": "bodocache.integrations.sglang.linker",
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
        for part in self.parts:
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
