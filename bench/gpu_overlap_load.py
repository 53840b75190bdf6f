# SPDX-License-Identifier: Apache-2.0
"""A load through a cache from host memory to a GPU, layer by layer, under compute as long.

The engine is a thread with a stream of its own: before each layer its stream waits for the layer
(``Load.wait_layer``), then multiplies matrices for as long as the load alone takes a layer. In
turns: the load alone, by layer and nobody computing; the compute alone; both. Every byte that was
loaded is compared. Target: both together take at most 1.1 times the longer.

Needs a GPU, and numba and pydantic beside what kernels need; calibrates first where that was not
done (20 s), and compiles the planner's code where it is not cached (most of a minute).
"""

import asyncio
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _common import Claim, parser, write

try:
    import numba  # noqa: F401 -- GPU images have torch and triton; a cache needs these, too
    import pydantic  # noqa: F401
except ModuleNotFoundError as error:
    sys.exit(f"skipped: {error}")

from bodocache import Cache, CacheConfig, Group, Layout, LayoutKind, Load, Match, OwnedPool, cache
from bodocache.config import HostConfig, IdentityConfig, TiersConfig
from bodocache.kernels import select
from bodocache.kernels.reference.views import page_views

LAYERS, PAGE_TOKENS, PAGES = 32, 16, 1024
GROUP = Group("attention", layers=LAYERS, heads=8, head_dim=128, itemsize=2)  # 2 MiB a page
ROUNDS = 7
LONGEST = 1.1  # of the longer of the two
HIDDEN, MOST_TOKENS = 4096, 8192
WAIT_S = 60.0


@dataclass(slots=True)
class House:
    """A cache that holds one prompt on the host, and the engine's pool and stream."""

    cache: Cache
    match: Match
    views: list[torch.Tensor]  # of the pool, one for each layer's K and V
    truth: list[torch.Tensor]  # likewise, of the pages
    stream: torch.cuda.Stream
    compute: "Compute"

    async def loaded(self, tokens: int) -> tuple[float, int]:
        """Seconds of a load with ``tokens`` computed of each layer, and its wrong bytes.

        It is committed at once: all but the first pages go by layer.
        """
        self.cache._orchestrator.residency.empty_device()  # noqa: SLF001 -- no door for that
        begun_s = time.perf_counter()
        load = self.cache.load(self.match, compute_s=np.full(LAYERS, 1e-3))
        load.commit()
        began_s = time.perf_counter() - begun_s
        return began_s + await self.timed(load, tokens), await self.end(load)

    async def end(self, load: Load) -> int:
        """Wrong bytes of what it delivered."""
        loaded = await load
        assert loaded.pages == PAGES, f"{loaded.pages} pages were delivered of {PAGES}"
        slots = torch.from_numpy(loaded.slots).cuda()
        wrong = [
            int((view[slots] != truth).sum())
            for view, truth in zip(self.views, self.truth, strict=True)
        ]
        load.close()
        await load.released
        torch.cuda.synchronize()
        return sum(wrong)

    async def timed(self, load: Load | None, tokens: int) -> float:
        """Seconds until every layer was waited for, and ``tokens`` of each computed."""
        begun_s = time.perf_counter()
        engine = threading.Thread(target=self._run, args=(load, tokens))
        engine.start()
        while engine.is_alive():  # noqa: ASYNC110 -- a hop through an executor waits as long
            await asyncio.sleep(5e-4)
        return time.perf_counter() - begun_s

    def _run(self, load: Load | None, tokens: int) -> None:
        for layer in range(LAYERS):
            if load is not None:
                load.wait_layer(layer, self.stream, timeout_s=WAIT_S)
            self.compute.layer(self.stream, tokens)
        self.stream.synchronize()


class Compute:
    """Prefill-like: one product of bf16 matrices after the other."""

    def __init__(self) -> None:
        like: dict[str, Any] = {"dtype": torch.bfloat16, "device": "cuda"}
        self._left = torch.randn((MOST_TOKENS, HIDDEN), **like)
        self._right = torch.randn((HIDDEN, 4 * HIDDEN), **like)
        self._out = torch.empty((MOST_TOKENS, 4 * HIDDEN), **like)

    def layer(self, stream: torch.cuda.Stream, tokens: int) -> None:
        """Products for so many tokens; more than the matrices have are more products."""
        with torch.cuda.stream(stream):
            while tokens > 0:
                some = min(tokens, MOST_TOKENS)
                torch.mm(self._left[:some], self._right, out=self._out[:some])
                tokens -= some


def main() -> None:
    chosen = parser(__doc__).parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: nothing to measure here")
    device = torch.device("cuda", 0)
    if select.load_table(select.describe(device)) is None:
        subprocess.run([sys.executable, "-m", "bodocache.kernels.calibrate"], check=True)
        select.load_table.cache_clear()
    rows = asyncio.run(measure())
    gpu = torch.cuda.get_device_name(device)
    write(chosen.json, rows, claims(rows), gpu=gpu, pages=PAGES, layers=LAYERS, rounds=ROUNDS)


async def measure() -> list[dict[str, Any]]:
    """One row a round."""
    cache.warm = lambda: None  # compile what is called alone
    pool = OwnedPool(Layout(LayoutKind.LAYER_FIRST, GROUP, PAGE_TOKENS, PAGES + 1), device="cuda")
    config = CacheConfig(
        IdentityConfig(model="bench", dtype="bytes"),
        TiersConfig(HostConfig((PAGES + 8) * GROUP.page_nbytes(PAGE_TOKENS))),
    )
    async with await Cache.open(config, pool) as opened:
        house = await stored(opened, pool)
        tokens = await calibrated(house)
        rows = [await one_round(house, tokens) for _ in range(ROUNDS + 2)]
    return rows[2:]  # the first touch memory and teach the link


async def stored(opened: Cache, pool: OwnedPool) -> House:
    """Store a prompt of random bytes."""
    tokens = np.arange(PAGES * PAGE_TOKENS, dtype=np.uint32)
    match = await opened.match(tokens)
    slots = opened.acquire(PAGES)
    views, where = page_views(pool.memory), torch.from_numpy(slots).cuda()
    truth = []
    for view in views:
        shape = (PAGES, *view.shape[1:])
        truth.append(torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda"))
        view[where] = truth[-1]
    torch.cuda.synchronize()
    async with opened.store(match, slots):
        pass
    found = await opened.match(tokens)
    assert found.pages == PAGES, f"{found.pages} pages were stored of {PAGES}"
    return House(opened, found, views, truth, torch.cuda.Stream(), Compute())


async def calibrated(house: House) -> int:
    """How many tokens take as long as a layer of the load."""
    load_s = statistics.median([(await house.loaded(0))[0] for _ in range(5)])
    tokens = MOST_TOKENS
    for _ in range(3):  # few tokens are no faster than some
        compute_s = statistics.median([await house.timed(None, tokens) for _ in range(5)])
        tokens = max(64, round(tokens * load_s / compute_s / 64) * 64)
    return tokens


async def one_round(house: House, tokens: int) -> dict[str, Any]:
    """The load alone, the compute alone, and both."""
    load_s, wrong = await house.loaded(0)
    compute_s = await house.timed(None, tokens)
    both_s, more_wrong = await house.loaded(tokens)
    return {
        "load_ms": round(load_s * 1e3, 2),
        "compute_ms": round(compute_s * 1e3, 2),
        "both_ms": round(both_s * 1e3, 2),
        "of_the_longer": round(both_s / max(load_s, compute_s), 3),
        "gb_per_s": round(PAGES * GROUP.page_nbytes(PAGE_TOKENS) / load_s / 1e9, 2),
        "tokens": tokens,
        "wrong_bytes": wrong + more_wrong,
    }


def claims(rows: list[dict[str, Any]]) -> list[Claim]:
    """Of the median round; wrong bytes of all."""
    ratio = statistics.median(row["of_the_longer"] for row in rows)
    wrong = sum(row["wrong_bytes"] for row in rows)
    return [
        Claim.at_most("load to a GPU and compute together, of the longer", ratio, LONGEST, ""),
        Claim("wrong bytes", wrong, "= 0", wrong == 0),
    ]


if __name__ == "__main__":
    main()
