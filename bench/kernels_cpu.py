# SPDX-License-Identifier: Apache-2.0
"""Gather, scatter and digest on one CPU core, against one core's memcpy of the same bytes.

Public calls, launcher included; "fused" and "plain" are their loops alone. Pages in random order.
The claims are about what a host tier is: a pool beyond the caches (256 MiB a side, huge pages where
the system gives them on request). A pool inside the caches (4 MiB a side, where a launcher's 30 us
are a third of memcpy's time) is measured beside it. The yardstick is one NumPy copy of all bytes.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import _common
import numpy as np
import torch

from bodocache.kernels import cpu, digest_pages, gather_pages, scatter_pages
from bodocache.kernels.runs import runs_of
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory

KIB, MIB = 1 << 10, 1 << 20
PAGE_NBYTES = (4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, 1 * MIB, 2 * MIB)
LAYERS, HEADS, HEAD_DIM, ITEMSIZE = 4, 2, 32, 2  # 128-byte tokens: 4 KiB pages are 4 tokens
POOLS = {"dram": 256 * MIB, "cache": 4 * MIB}
RUNS = {"dram": 15, "cache": 101}


class Case(NamedTuple):
    """Pages of one size in one pool, and the contiguous pages they are copied from and to."""

    memory: PagedMemory
    slots: torch.Tensor
    source: torch.Tensor
    pages: torch.Tensor


def case(kind: LayoutKind, page_nbytes: int, pool_nbytes: int) -> Case:
    """A pool of random bytes, its pages in random order."""
    group = Group("attention", LAYERS, HEADS, HEAD_DIM, ITEMSIZE)
    layout = Layout(kind, group, page_nbytes // group.page_nbytes(1), pool_nbytes // page_nbytes)
    source = aligned(pool_nbytes).random_(0, 256)
    pages = aligned(pool_nbytes).view(layout.num_pages, page_nbytes)
    slots = torch.randperm(layout.num_pages)
    return Case(PagedMemory.of_layout(source, layout), slots, source, pages)


def aligned(nbytes: int) -> torch.Tensor:
    """Zeros at a multiple of 2 MiB; NumPy asks for huge pages, torch does not."""
    memory = torch.from_numpy(np.zeros(nbytes + 2 * MIB, np.uint8))
    return memory[-memory.data_ptr() % (2 * MIB) :][:nbytes]


def calls(c: Case) -> dict[str, Callable[[], object]]:
    """What is timed in turns: public calls; their loops alone, with the digest and without it."""
    runs, rows = runs_of(c.memory), torch.arange(len(c.slots))
    out_of, into = cpu.gather_mode(runs, c.pages), cpu.scatter_mode(runs)
    source, target = c.source.numpy(), c.pages.numpy().reshape(-1)
    return {
        "memcpy": lambda: np.copyto(target, source),
        "gather": lambda: gather_pages(c.memory, c.slots, out=c.pages),
        "gather_fused": lambda: cpu.move(runs, c.slots, rows, c.pages, out_of),
        "gather_plain": lambda: cpu.move(runs, c.slots, rows, c.pages, cpu.plain(out_of)),
        "scatter": lambda: scatter_pages(c.pages, c.memory, c.slots),
        "scatter_fused": lambda: cpu.move(runs, c.slots, rows, c.pages, into),
        "scatter_plain": lambda: cpu.move(runs, c.slots, rows, c.pages, cpu.plain(into)),
        "digest": lambda: digest_pages(c.pages),
    }


def measure(pool: str, kind: LayoutKind, page_nbytes: int) -> list[dict[str, Any]]:
    """One row per call."""
    timed = _common.interleaved(
        calls(case(kind, page_nbytes, POOLS[pool])), runs=RUNS[pool], warmups=2
    )
    return [
        {
            "pool": pool,
            "layout": str(kind),
            "page_nbytes": page_nbytes,
            "call": name,
            "gb_per_s": round(POOLS[pool] / timing.median_s / 1e9, 2),
            "of_memcpy": round(timed["memcpy"].median_s / timing.median_s, 3),
            "median_s": timing.median_s,
            "p99_s": timing.p99_s,
        }
        for name, timing in timed.items()
    ]


def claims(rows: list[dict[str, Any]]) -> list[_common.Claim]:
    """The worst of all layouts, for pages of 64 KiB and more beyond the caches."""
    large = [row for row in rows if row["pool"] == "dram" and row["page_nbytes"] >= 64 * KIB]

    def worst(field: str, call: str) -> float:
        return min(float(row[field]) for row in large if row["call"] == call)

    at_least, at_most = _common.Claim.at_least, _common.Claim.at_most
    return [
        at_least("gather with digest, share of memcpy", worst("of_memcpy", "gather"), 0.7, ""),
        at_least("scatter with digest, share of memcpy", worst("of_memcpy", "scatter"), 0.7, ""),
        at_least("digest", worst("gb_per_s", "digest"), 20, "GB/s a core"),
        at_most("gather, time with digest over without", slowdown(large, "gather"), 1.1, "x"),
        at_most("scatter, time with digest over without", slowdown(large, "scatter"), 1.1, "x"),
    ]


def slowdown(rows: list[dict[str, Any]], op: str) -> float:
    """Largest ratio of the fused time to the plain one."""
    seconds = {
        (row["pool"], row["layout"], row["page_nbytes"], row["call"]): row["median_s"]
        for row in rows
    }
    return max(
        fused / seconds[*where, f"{op}_plain"]
        for (*where, call), fused in seconds.items()
        if call == f"{op}_fused"
    )


def main() -> None:
    """Measure all cases on one core and write them."""
    arguments = _common.parser(__doc__).parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [
        row
        for pool in POOLS
        for kind in (LayoutKind.LAYER_FIRST, LayoutKind.PAGE)
        for page_nbytes in PAGE_NBYTES
        for row in measure(pool, kind, page_nbytes)
    ]
    _common.write(arguments.json, rows, claims(rows), seed=0, pools_nbytes=POOLS)


if __name__ == "__main__":
    main()
