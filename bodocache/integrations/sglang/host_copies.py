# SPDX-License-Identifier: Apache-2.0
"""Our copy kernel between SGLang's host pool and its device pool, in place of its own.

SGLang's transfer engine asks the host pool to copy: one layer to the device, or all layers to the
host. :func:`take_over` answers these two calls of one pool object; nothing else of SGLang changes.
"""

from typing import Any, NamedTuple

import torch

from bodocache.errors import LayoutError
from bodocache.kernels.copy import PageCopy
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory

_CALLS = ("load_to_device_per_layer", "backup_from_device_all_layer")
_HOST, _DEVICE = range(2)


class PoolPair(NamedTuple):
    """A host pool of SGLang as pages, and the device tensors it is filled from."""

    host: PagedMemory
    device: PagedMemory
    target_layers: int  # those of the model; behind them lie those of packed drafts


def take_over(pool: Any) -> None:
    """Copy pages of the host pool ``pool`` (MHA or MLA, not split) by our kernels from now on.

    Its transfer calls then take the token indices that SGLang's controller hands them: whole
    aligned pages, on the CPU or on the device. Copies are submitted to the current stream.

    Raises:
        LayoutError: a pool of another class or layout, one that is split over ranks, or memory
            that is not pinned beside a GPU; its own kernels stay.
    """
    pair = pair_of(pool)
    to_device = [
        PageCopy(pair.host, pair.device, layers=range(layer, layer + 1))
        for layer in range(pair.host.layers)
    ]
    to_host = PageCopy(pair.device, pair.host)

    def load(
        device_pool: object,  # noqa: ARG001 -- the pool knows its own
        host_indices: torch.Tensor,
        device_indices: torch.Tensor,
        layer_id: int,
        io_backend: str,  # noqa: ARG001 -- ours serves all of them
        *,
        is_draft: bool = False,
    ) -> None:
        if is_draft or 0 <= layer_id < pair.target_layers:
            slots = _pages(host_indices, device_indices, pair.host.page_tokens)
            to_device[layer_id].run(slots[_HOST], slots[_DEVICE])

    def back_up(
        device_pool: object,  # noqa: ARG001
        host_indices: torch.Tensor,
        device_indices: torch.Tensor,
        io_backend: str,  # noqa: ARG001
    ) -> None:
        slots = _pages(host_indices, device_indices, pair.host.page_tokens)
        to_host.run(slots[_DEVICE], slots[_HOST])

    for name, call in zip(_CALLS, (load, back_up), strict=True):
        setattr(pool, name, call)


def give_back(pool: Any) -> None:
    """SGLang's own kernels copy the pool's pages again; harmless where they do already."""
    for name in _CALLS:
        vars(pool).pop(name, None)


def pair_of(pool: Any) -> PoolPair:
    """The pages of an SGLang host pool and of the device tensors behind it.

    Raises:
        LayoutError: as for :func:`take_over`.
    """
    kind = type(pool).__name__
    if kind not in ("MHATokenToKVPoolHost", "MLATokenToKVPoolHost"):
        raise LayoutError(f"{kind}: our kernels copy MHATokenToKVPoolHost and MLATokenToKVPoolHost")
    if not hasattr(pool, "target_layer_num"):
        raise LayoutError(
            f"{kind}: of a version of SGLang before 0.5.23; our kernels copy newer ones"
        )
    if pool.layout not in set(LayoutKind) - {LayoutKind.PAGE}:
        raise LayoutError(
            f"{kind}: layout {pool.layout}; expected layer_first, page_first, page_first_direct or"
            " page_head (--hicache-mem-layout)"
        )
    if kind == "MLATokenToKVPoolHost":
        return _latent_pair(pool)
    values = pool.device_v_buffers
    return _pair(pool, pool.device_k_buffers, values, pool.target_layer_num, pool.head_num)


def _latent_pair(pool: Any) -> PoolPair:
    if pool.dcp_size != 1 or pool._layer_shard_enabled or pool._is_dummy:  # noqa: SLF001
        raise LayoutError("MLATokenToKVPoolHost: split over ranks; our kernels copy whole pools")
    if pool.layout == LayoutKind.PAGE_HEAD or not pool.device_kv_buffers:
        raise LayoutError(f"MLATokenToKVPoolHost: layout {pool.layout} without plain tensors")
    return _pair(pool, pool.device_kv_buffers, None, pool.target_layer_num, 1)


def _pair(pool: Any, keys: Any, values: Any, target_layers: int, heads: int) -> PoolPair:
    device = PagedMemory.of_layers(list(keys), values and list(values), pool.page_size)
    host = pool.kv_buffer
    group = Group(
        "kv",
        layers=pool.layer_num,
        heads=heads,
        head_dim=device.row_nbytes // pool.dtype.itemsize,
        itemsize=pool.dtype.itemsize,
        kv=device.kv,
    )
    layout = Layout(LayoutKind(pool.layout), group, pool.page_size, pool.size // pool.page_size)
    if not host.is_contiguous() or host.nbytes != layout.pool_nbytes:
        raise LayoutError(
            f"{type(pool).__name__}: {host.nbytes} bytes, {list(host.shape)}; a pool of"
            f" {layout.num_pages} pages in layout {layout.kind} has {layout.pool_nbytes}"
        )
    memory = PagedMemory.of_layout(host.view(torch.uint8).flatten(), layout)
    return PoolPair(memory, device, target_layers)


def _pages(
    host_indices: torch.Tensor, device_indices: torch.Tensor, page_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots of the pages of each side, from token indices, both on one device.

    Tokens of a page are contiguous and aligned; SGLang's pools give them out like that.
    """
    host, device = (
        torch.div(tokens[::page_tokens], page_tokens, rounding_mode="floor")
        for tokens in (host_indices, device_indices)
    )
    if host.device != device.device:
        host, device = host.to(_faster(host, device)), device.to(_faster(host, device))
    return host, device


def _faster(*indices: torch.Tensor) -> torch.device:
    """Where indices of both sides go: to the device, which never waits for the CPU."""
    return next((it.device for it in indices if it.device.type != "cpu"), indices[0].device)
