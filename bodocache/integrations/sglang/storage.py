# SPDX-License-Identifier: Apache-2.0
"""SGLang's storage backend: ``BodoCacheStorage``, created by its factory on every rank.

The calls come from threads of SGLang's, each waits for its result. Pages are at this host's node,
one process for all ranks and all servers with such pages; the first rank starts it.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    PoolHitPolicy,
    PoolName,
    PoolTransferResult,
)

from bodocache import jit
from bodocache.config import CacheConfig, parse
from bodocache.errors import ConfigError, LayoutError, NodeError
from bodocache.integrations.sglang import host_copies
from bodocache.integrations.sglang.figures import Figures
from bodocache.integrations.sglang.host_pages import (
    FlatPages,
    Pages,
    PiecePages,
    SlotArray,
    TensorCopier,
    page_slots,
)
from bodocache.integrations.sglang.options import Options, node_values
from bodocache.integrations.sglang.pool_storage import Keys, Mask, PoolStorage, ShardPages
from bodocache.integrations.sglang.ranks import Rank, held_shards, root_of
from bodocache.layout import PIECE_ALIGNMENT
from bodocache.node import starter, terms
from bodocache.node.direct import DirectNode
from bodocache.node.starter import NodePlace
from bodocache.wiring import root_of as node_root_of

_log = logging.getLogger(__name__)

Tensors = Sequence[torch.Tensor]


class BodoCacheStorage(HiCacheStorage):  # type: ignore[misc]  # Any where there is no sglang
    """HiCache's third tier: pages in the node's memory and on its disk, checked on every load."""

    def __init__(self, storage_config: Any, kwargs: dict[str, Any] | None = None) -> None:
        """Read the configuration; pools are registered after.

        Raises:
            ConfigError: an option is unknown, missing or out of range.
        """
        del kwargs  # SGLang's factory hands on an empty dictionary
        extra = storage_config.extra_config or {}
        self._options = Options.of(extra)
        self._rank = Rank.of(storage_config)
        self._zero_copy = bool(extra.get("interface_v1", 0))
        self._figures = Figures()
        self._nodes: dict[str, DirectNode] = {}
        self._storages: dict[str, PoolStorage] = {}
        self._pools: dict[str, Any] = {}

    # Pools

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """SGLang's KV pool. Attaches to the node, which is started if there is none.

        Raises:
            NodeError: the node did not start, or serves other pages.
            LayoutError: the pool's pages are not such as we can copy.
        """
        super().register_mem_pool_host(mem_pool_host)
        self._open(str(PoolName.KV), mem_pool_host)
        if self._options.copy_kernels:
            try:
                host_copies.take_over(mem_pool_host)
            except LayoutError as error:
                _log.warning("copy_kernels: SGLang's own stay: %s", error)

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        """A pool beside it: sliding windows, recurrent state, an indexer, a draft model's KV."""
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        self._open(str(host_pool_name), host_pool)

    def _open(self, name: str, pool: Any) -> None:
        if self._pools.get(name) is pool:
            return
        shards = held_shards(self._options, self._rank, pool)
        is_sidecar = name != PoolName.KV
        by_pieces = self._zero_copy or is_sidecar
        pages = _pages_of(pool, splits=len(shards)) if by_pieces else [FlatPages(pool)]
        if len(pages) != len(shards):
            raise ConfigError(
                f"pool {name}: {len(shards)} shards of a rank's heads (shard_heads, tp_lcm_size)"
                ' can only be stored with "interface_v1": 1'
            )
        node = self._attached(name, pages[0].nbytes, int(pool.page_size), is_sidecar=is_sidecar)
        stored = [
            ShardPages(
                root_of(self._options, self._rank, pool, name=name, shard=it.shard, form=one.form),
                self._options.tenant_domain,
                one,
                writes=it.writes,
            )
            for it, one in zip(shards, pages, strict=True)
        ]
        self._pools[name] = pool
        self._storages[name] = PoolStorage(stored, node, self._options)
        jit.warm()  # here, not in a call that has a time limit

    def _attached(
        self, name: str, nbytes: int, page_tokens: int, *, is_sidecar: bool
    ) -> DirectNode:
        """This host's node for the pages of pool ``name``."""
        unit = math.lcm(PIECE_ALIGNMENT, page_tokens)
        page_nbytes = -(-nbytes // unit) * unit
        options, place = self._options, NodePlace(Path(self._options.directory) / name)
        place.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        values = node_values(
            options,
            place.folder,
            page_nbytes=page_nbytes,
            page_tokens=page_tokens,
            is_sidecar=is_sidecar,
        )
        config = parse(CacheConfig, values)
        layout = terms.layout_for(config)
        hello = terms.hello_of(options.tenant_domain, node_root_of(config, layout), layout)
        old = self._nodes.pop(name, None)
        if old is not None:
            old.close()
        node = DirectNode(
            place.socket,
            hello,
            layout,
            patience_s=options.patience_s,
            ensure=lambda: starter.ensure(
                place, values, linger_s=options.linger_s, start_s=options.start_s
            ),
            tidy=lambda: self._storages[name].tidy() if name in self._storages else None,
        )
        self._nodes[name] = node
        return node

    # The KV pool, zero copy

    def batch_exists(self, keys: list[str], extra_info: Any = None) -> int:
        """How many leading pages are there; reading them begins."""
        del extra_info  # the keys say it all: they are chained
        return self._kv.leading(keys)

    def exists(self, key: str) -> bool:
        """Whether a page is there."""
        return bool(self._kv.holds([key])[0])

    def batch_get_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: Any = None
    ) -> list[bool]:
        """Bring pages to token slots ``host_indices``: whether each came, and was right."""
        del extra_info
        return self._get(str(PoolName.KV), keys, host_indices)

    def batch_set_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: Any = None
    ) -> list[bool]:
        """Store pages; True for those that were refused, too: a False would end the backup."""
        return self._set(str(PoolName.KV), keys, host_indices, _before(extra_info))

    # The KV pool, by flat tensors

    def get(
        self, key: str, target_location: Any = None, target_sizes: Any = None
    ) -> torch.Tensor | None:
        """Bring a page to the tensor ``target_location``."""
        return self.batch_get([key], [target_location], target_sizes)[0]

    def batch_get(
        self, keys: list[str], target_locations: Any = None, target_sizes: Any = None
    ) -> list[torch.Tensor | None]:
        """Bring pages to tensors; None for those that did not come."""
        del target_sizes
        targets: Tensors = target_locations
        with self._figures.getting() as call:
            landed = self._kv.get(
                keys,
                np.arange(len(keys)),
                lambda line: TensorCopier.of_tensors(line.pages, targets),
            )
            call.pages, call.nbytes = int(landed.sum()), int(landed.sum()) * _nbytes(targets)
        return [it if ok else None for it, ok in zip(targets, landed.tolist(), strict=True)]

    def set(
        self,
        key: str,
        value: Any = None,
        target_location: Any = None,
        target_sizes: Any = None,
    ) -> bool:
        """Store a page that is a flat tensor."""
        del target_location
        return self.batch_set([key], [value], None, target_sizes)

    def batch_set(
        self,
        keys: list[str],
        values: Any = None,
        target_locations: Any = None,
        target_sizes: Any = None,
    ) -> bool:
        """Store pages that are flat tensors."""
        del target_locations, target_sizes
        pages: Tensors = values
        with self._figures.setting() as call:
            slots = np.arange(len(keys))
            stored = self._kv.set(
                keys, slots, (), lambda line: TensorCopier.of_tensors(line.pages, pages)
            )
            call.pages, call.nbytes = len(keys) * stored, len(keys) * stored * _nbytes(pages)
        return stored

    # Several pools

    def batch_exists_v2(
        self, keys: list[str], pool_transfers: Any = None, extra_info: Any = None
    ) -> PoolTransferResult:
        """How long a prefix every pool can restore, by its own rule; reading begins."""
        pages = self.batch_exists(keys, extra_info)
        hits = {PoolName.KV: pages} if pages else {}
        restorable = np.ones(pages + 1, np.bool_)
        for transfer in pool_transfers or ():
            ours = _restorable(transfer, self._storages[str(transfer.name)], keys[:pages])
            best = int(np.flatnonzero(ours)[-1])
            if best:
                hits[transfer.name] = best
            restorable &= ours
        restorable[0] = False
        prefixes = np.flatnonzero(restorable).tolist()
        return _result(prefixes[-1] if prefixes else 0, hits, prefixes)

    def batch_get_v2(self, transfers: Any, extra_info: Any = None) -> dict[str, list[bool]]:
        """Bring pages of several pools to their token slots."""
        del extra_info
        return {
            it.name: self._get(str(it.name), it.keys or [], it.host_indices) for it in transfers
        }

    def batch_set_v2(self, transfers: Any, extra_info: Any = None) -> dict[str, list[bool]]:
        """Store pages of several pools."""
        stored = {}
        for it in transfers:
            # Trailing pages stand alone: the pages before them were never meant to be there.
            is_chain = it.hit_policy == PoolHitPolicy.ALL_PAGES
            before = _before(extra_info) if is_chain else ()
            stored[it.name] = self._set(str(it.name), it.keys or [], it.host_indices, before)
        return stored

    # The whole

    def clear(self) -> bool:
        """Forget every page of every pool here, of all ranks; False where a node did not answer."""
        lines = [node.line for node in self._nodes.values()]
        try:
            for line in lines:
                if line is not None:
                    line.clear(within_s=self._options.write_deadline_s)
        except NodeError as error:
            _log.warning("clear: %s", error)
            return False
        return None not in lines

    def get_stats(self) -> Any:
        """What was moved since the last call, as SGLang's StorageMetrics."""
        return self._figures.take()

    def close(self) -> None:
        """Leave the nodes; they end when nobody is left. Twice is harmless."""
        self._storages.clear()
        while self._nodes:
            self._nodes.popitem()[1].close()

    @property
    def _kv(self) -> PoolStorage:
        return self._storages[str(PoolName.KV)]

    def _get(self, name: str, keys: list[str], host_indices: Any) -> list[bool]:
        if host_indices is None:
            return [False] * len(keys)
        slots = self._slots(name, keys, host_indices)
        with self._figures.getting() as call:
            landed: Mask = self._storages[name].get(keys, slots)
            call.pages = int(landed.sum())
            call.nbytes = call.pages * self._storages[name].page_nbytes
        answers: list[bool] = landed.tolist()
        return answers

    def _set(self, name: str, keys: list[str], host_indices: Any, before: Keys) -> list[bool]:
        if host_indices is None:
            return [False] * len(keys)
        slots = self._slots(name, keys, host_indices)
        with self._figures.setting() as call:
            stored = self._storages[name].set(keys, slots, before)
            call.pages = len(keys) * stored
            call.nbytes = call.pages * self._storages[name].page_nbytes
        return [stored] * len(keys)

    def _slots(self, name: str, keys: list[str], host_indices: torch.Tensor) -> SlotArray:
        return page_slots(host_indices, int(self._pools[name].page_size), len(keys))


def _pages_of(pool: Any, *, splits: int) -> list[Pages]:
    """The pages of a pool by their pieces, or flat where it cannot say where they lie."""
    try:
        return list(PiecePages.of_pool(pool, splits=splits))
    except (NotImplementedError, ValueError, AttributeError) as error:
        if splits > 1:
            raise
        _log.info("%s: copied page by page: %s", type(pool).__name__, error)
        return [FlatPages(pool)]


def _restorable(transfer: Any, storage: PoolStorage, keys: Keys) -> Mask:
    """Whether a pool can restore a prefix of 0, 1, ... pages; 0 it always can."""
    if transfer.hit_policy == PoolHitPolicy.ALL_PAGES:
        return np.arange(len(keys) + 1) <= storage.leading(keys)
    if transfer.hit_policy != PoolHitPolicy.TRAILING_PAGES:
        raise ValueError(f"pool {transfer.name}: hit policy {transfer.hit_policy} is not known")
    window = max(1, len(transfer.keys) if transfer.keys else 1)
    counts = np.concatenate(([0], np.cumsum(storage.holds(keys))))
    ends = np.arange(len(counts))
    begins = np.maximum(0, ends - window)
    whole: Mask = counts[ends] - counts[begins] == ends - begins
    return whole


def _result(pages: int, hits: dict[Any, int], prefixes: list[int]) -> PoolTransferResult:
    if "restorable_prefix_pages" in PoolTransferResult.__dataclass_fields__:
        return PoolTransferResult(pages, hits, prefixes)
    return PoolTransferResult(pages, hits)  # older than 0.5.20


def _before(extra_info: Any) -> Keys:
    """The keys of the pages before, where SGLang passes them."""
    return (getattr(extra_info, "prefix_keys", None) if extra_info is not None else None) or ()


def _nbytes(pages: Tensors) -> int:
    return pages[0].numel() * pages[0].element_size() if len(pages) else 0
