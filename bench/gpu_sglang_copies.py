# SPDX-License-Identifier: Apache-2.0
"""Our kernel in SGLang's host pools, on device memory: every byte, then rates beside the link's.

SGLang is not needed: the pool here has the attributes of its MHATokenToKVPoolHost that
``take_over`` reads, in each of its layouts. Back-up of all layers and loads layer by layer, token
indices on the device as its "kernel" backend hands them; beside them one contiguous copy of as many
bytes, which is what the link gives. Calibrate first (``python -m bodocache.kernels.calibrate``):
without it the copies take the safe path, at a fifteenth of the rate. SGLang's own kernels are not
beside it: its kernel package is not on the GPU machines.
"""

import functools
import sys
from dataclasses import dataclass
from typing import Any

import torch
from _common import Claim, parser, write
from _gpu_timing import EventTimer

from bodocache.integrations.sglang.host_copies import take_over
from bodocache.layout import LayoutKind

LAYOUTS = (
    LayoutKind.LAYER_FIRST,
    LayoutKind.PAGE_FIRST,
    LayoutKind.PAGE_FIRST_DIRECT,
    LayoutKind.PAGE_HEAD,
)
LEAST = 0.8  # of the link's rate


@dataclass
class MHATokenToKVPoolHost:
    """What of SGLang's host pool is read; tensors in the shapes that it gives them."""

    layout: str
    device: str
    page_size: int = 64
    page_num: int = 48
    layer_num: int = 32
    head_num: int = 8
    head_dim: int = 128
    dtype: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        pages, tokens, layers = self.page_num, self.page_size, self.layer_num
        heads, dim = self.head_num, self.head_dim
        self.size, self.target_layer_num = pages * tokens, layers
        shape = {
            "layer_first": (2, layers, self.size, heads, dim),
            "page_first": (2, self.size, layers, heads, dim),
            "page_first_direct": (2, pages, layers, tokens, heads, dim),
            "page_head": (2, pages, heads, tokens, layers, dim),
        }[self.layout]
        self.kv_buffer = torch.zeros(shape, dtype=self.dtype)
        if self.device != "cpu":
            self.kv_buffer = self.kv_buffer.pin_memory()
        rows = (self.size, heads, dim)
        self.device_k_buffers, self.device_v_buffers = (
            tuple(torch.zeros(rows, dtype=self.dtype, device=self.device) for _ in range(layers))
            for _ in range(2)
        )

    def host_page(self, page: int, kv: int, layer: int) -> torch.Tensor:
        """[tokens, heads, dim] of one page and layer, where SGLang's layouts have them."""
        part, tokens = self.kv_buffer[kv], slice(page * self.page_size, (page + 1) * self.page_size)
        if self.layout == "layer_first":
            return part[layer, tokens]
        if self.layout == "page_first":
            return part[tokens, layer]
        if self.layout == "page_first_direct":
            return part[page, layer]
        return part[page, :, :, layer].transpose(0, 1)

    def token_indices(self, pages: torch.Tensor) -> torch.Tensor:
        """As SGLang's controller hands them over, on the device."""
        tokens = pages[:, None] * self.page_size + torch.arange(self.page_size)
        return tokens.flatten().to(self.device)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--small", action="store_true", help="bytes only, on the CPU if need be")
    chosen = arguments.parse_args()
    if not torch.cuda.is_available() and not chosen.small:
        sys.exit("skipped: needs a GPU (--small checks the bytes on a CPU)")
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    stream = torch.cuda.Stream() if device != "cpu" else None
    rows: list[dict[str, Any]] = []
    with torch.cuda.stream(stream):  # not the legacy stream, which batches refuse
        for layout in LAYOUTS:
            small = {"page_size": 8, "layer_num": 2, "page_num": 12} if chosen.small else {}
            pool = MHATokenToKVPoolHost(layout.value, device, **small)
            take_over(pool)
            rows.append({"layout": layout.value, "wrong_bytes": wrong_bytes(pool)})
            if not chosen.small:
                rows[-1] |= rates(pool)
    write(chosen.json, rows, list(claims(rows)))


def wrong_bytes(pool: MHATokenToKVPoolHost) -> int:
    """Of a back-up of some pages in no order, their load to others, and all that is not theirs."""
    count = pool.page_num // 3
    here, there, back = torch.randperm(pool.page_num)[: 3 * count].chunk(3)
    parts = (pool.device_k_buffers, pool.device_v_buffers)
    for layers in parts:
        for layer in layers:
            layer.copy_(torch.randn(layer.shape, device=layer.device))
    before = [[layer.cpu() for layer in layers] for layers in parts]
    indices = functools.partial(map, pool.token_indices)
    host, device, again = indices((there, here, back))
    pool.backup_from_device_all_layer(None, host, device, "kernel")
    for layer in range(pool.layer_num):
        pool.load_to_device_per_layer(None, host, again, layer, "kernel")
    if pool.device != "cpu":
        torch.cuda.synchronize()
    wrong, size = 0, pool.page_size
    for kv, layers in enumerate(parts):
        for at, layer in enumerate(layers):
            expected, was = before[kv][at].clone(), before[kv][at]
            for page, slot, to in zip(there.tolist(), here.tolist(), back.tolist(), strict=True):
                rows = was[slot * size : (slot + 1) * size]
                expected[to * size : (to + 1) * size] = rows
                wrong += int((pool.host_page(page, kv, at) != rows).sum())
            wrong += int((layer.cpu() != expected).sum())
    untouched = set(range(pool.page_num)) - set(there.tolist())
    return wrong + sum(
        int((pool.host_page(page, kv, layer) != 0).sum())
        for page in untouched
        for kv in range(2)
        for layer in range(pool.layer_num)
    )


def rates(pool: MHATokenToKVPoolHost) -> dict[str, float]:
    """GB/s of both ways, and of one contiguous copy each way, interleaved."""
    pages = torch.randperm(pool.page_num)
    host, device = pool.token_indices(pages), pool.token_indices(torch.randperm(pool.page_num))
    flat = pool.kv_buffer.view(torch.uint8).flatten()
    whole = torch.empty_like(flat, device=pool.device)
    nbytes = flat.numel()

    def load(_: int) -> None:
        for layer in range(pool.layer_num):
            pool.load_to_device_per_layer(None, host, device, layer, "kernel")

    side = torch.cuda.Stream()
    timer = EventTimer(torch.device(pool.device), side, budget_s=0.8, runs=(5, 15))
    timed = timer.interleaved(
        {
            "back_up": lambda _: pool.backup_from_device_all_layer(None, host, device, "kernel"),
            "load": load,
            "link_to_host": lambda _: flat.copy_(whole, non_blocking=True),
            "link_to_device": lambda _: whole.copy_(flat, non_blocking=True),
        },
        hidden=False,
    )
    if timed.failures:
        raise RuntimeError(str(timed.failures))
    return {
        f"{name}_gb_per_s": round(nbytes / it.median_s / 1e9, 2)
        for name, it in timed.timings.items()
    } | {"nbytes": nbytes}


def claims(rows: list[dict[str, Any]]) -> list[Claim]:
    """No byte is wrong; both ways keep near the link's rate."""
    said = [Claim.at_most("wrong bytes", sum(row["wrong_bytes"] for row in rows), 0, "")]
    for row in rows:
        if "load_gb_per_s" in row:
            for way, link in (("back_up", "link_to_host"), ("load", "link_to_device")):
                part = row[f"{way}_gb_per_s"] / row[f"{link}_gb_per_s"]
                said.append(Claim.at_least(f"{row['layout']}: {way} of the link", part, LEAST, ""))
    return said


if __name__ == "__main__":
    main()
