# SPDX-License-Identifier: Apache-2.0
"""What SGLang's linker is told when it starts: its device pool, its rank, its options."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from sglang.srt.runtime_context import get_parallel

from bodocache.config import Bytes, CacheConfig, Seconds, Tenant, parse
from bodocache.errors import LayoutError
from bodocache.layout import Group, PagedMemory

_STRICT = ConfigDict(extra="forbid", hide_input_in_errors=True)  # it may hold a secret
_SOURCE = "unified-cache-external-linker-config: linker_extra_config"


@dataclass(frozen=True, slots=True, config=_STRICT)
class LinkerOptions:
    """``linker_extra_config``: what this linker knows beyond SGLang's own options."""

    host_bytes: Bytes = 4 << 30  # of each rank
    directory: Path | None = None  # each rank has a folder of its own in it; none: no disk tier
    capacity_bytes: Bytes = 64 << 30  # on disk, of each rank
    model: str = ""  # empty: SGLang's name of it
    revision: str = ""
    weights_version: str = ""
    domain: Annotated[str, Field(min_length=1)] = "default"
    domain_secret_hex: str = Field(default="", repr=False)
    tenant: Tenant = 0
    hold_s: Seconds = 5.0  # pages that were offered stay for it, or until their load
    read_s: Seconds = 30.0  # a request's pages are read from disk for no longer
    retry_s: Seconds = 0.005  # a request whose pages are not all here is looked up again then
    layer_compute_s: Seconds = 0.001  # of a forward step: it paces layers of several loads
    recompute_s_per_token: Seconds = 20e-6  # what comes later than it is computed is not offered

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "LinkerOptions":
        """Check what stands in ``--unified-cache-external-linker-config``.

        Raises:
            ConfigError: a field is unknown, missing or out of range; the message names it.
        """
        return parse(cls, dict(values), source=_SOURCE)


class DevicePages:
    """The pages of SGLang's device pool, for which the radix tree gives out slots."""

    def __init__(self, pool: Any, page_tokens: int, layers: Mapping[int, int]) -> None:
        """Made by :meth:`of`."""
        latent = _name(pool) == "MLATokenToKVPool"
        keys = list(pool.kv_buffer if latent else pool.k_buffer)
        self.pool = pool
        self.dtype = str(pool.dtype)
        self.memory = PagedMemory.of_layers(
            keys, None if latent else list(pool.v_buffer), page_tokens
        )
        itemsize = keys[0].element_size()
        self.group = Group(
            "kv",
            layers=self.memory.layers,
            heads=self.memory.heads,
            head_dim=self.memory.row_nbytes // itemsize,
            itemsize=itemsize,
            kv=self.memory.kv,
        )
        self._layers = layers

    @classmethod
    def of(cls, params: Any) -> "DevicePages":
        """The pool of the model that SGLang's cache parameters describe.

        Of a model with sliding windows these are the pages of its full layers: SGLang computes
        the windows anew, as it does for every linker that does not name them.

        Raises:
            LayoutError: a pool of another kind, or one that drafts or scales lie beside.
        """
        pool = params.token_to_kv_pool_allocator.get_kvcache()
        layers = {layer: layer for layer in range(pool.layer_num)}
        if _name(pool) == "SWAKVPool":
            first, mapping = pool.start_layer, pool.layers_mapping.items()
            layers = {layer - first: at for layer, (at, in_window) in mapping if not in_window}
            pool = pool.full_kv_pool
        if _name(pool) not in ("MHATokenToKVPool", "MLATokenToKVPool"):
            raise LayoutError(
                f"{_name(pool)}: the BodoCache linker restores MHATokenToKVPool, MLATokenToKVPool"
                " and the full layers of SWAKVPool; for this model use --enable-hierarchical-cache"
                " with the storage backend"
            )
        drafts = (*params.mtp_draft_device_pools, *params.sidecar_draft_device_pools)
        if drafts or getattr(pool, "k_scale_buffer", None) is not None:
            raise LayoutError(
                f"{_name(pool)}: KV of draft models and scales of KV are not restored by the"
                " BodoCache linker; switch speculative decoding or the scaled KV cache off"
            )
        return cls(pool, params.page_size, layers)

    def layer_of(self, layer: int) -> int | None:
        """Our number of SGLang's ``layer``; None: it has nothing of ours."""
        return self._layers.get(layer)

    def slots(self, tokens: torch.Tensor) -> NDArray[np.int64]:
        """The slots of whole pages, given token by token.

        Raises:
            LayoutError: tokens of a page are not aligned and in order.
        """
        page_tokens = self.memory.page_tokens
        slots: NDArray[np.int64] = tokens.detach().cpu().numpy().astype(np.int64)
        rest = len(slots) % page_tokens
        first = slots[::page_tokens]
        in_order = (first[:, None] + np.arange(page_tokens)).ravel()[: len(slots)]
        if rest or (slots != in_order).any() or (first % page_tokens).any():
            raise LayoutError(
                f"{len(slots)} token slots: expected whole, aligned pages of {page_tokens} in order"
            )
        return first // page_tokens


def _name(pool: object) -> str:
    """Of the exact class: a class derived from one of SGLang's may lay its bytes out otherwise."""
    return type(pool).__name__


def rank_name(params: Any) -> str:
    """Which part of the model this process holds: a folder's name, and part of every key."""
    group = params.attn_tp_cache_group or params.tp_cache_group
    rank, size = 0, get_parallel().tp_size
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank = torch.distributed.get_rank(group=group)
        size = torch.distributed.get_world_size(group=group)
    parts = (
        f"tp{rank}of{size}",
        f"pp{params.pp_rank}of{params.pp_size}",
        f"cp{params.attn_cp_rank}of{params.attn_cp_size}",
    )
    return "-".join(parts)


def config_of(options: LinkerOptions, rank: str, device: DevicePages, model: str) -> CacheConfig:
    """The cache of one rank.

    Raises:
        ConfigError: a size that is none, or does not fit this machine.
    """
    tiers: dict[str, Any] = {"host": {"capacity_bytes": options.host_bytes}}
    if options.directory is not None:
        folder = options.directory / rank
        folder.mkdir(parents=True, exist_ok=True)
        tiers["disk"] = {"directories": folder, "capacity_bytes": options.capacity_bytes}
    values = {
        "identity": {
            "model": options.model or model,
            "revision": options.revision,
            "dtype": device.dtype,
            "weights_version": options.weights_version,
            "salt": rank,
            "domain": options.domain,
            "domain_secret_hex": options.domain_secret_hex,
        },
        "tiers": tiers,
        "planner": {"recompute_s_per_token": options.recompute_s_per_token},
    }
    return parse(CacheConfig, values, source=_SOURCE)
