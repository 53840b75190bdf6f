# SPDX-License-Identifier: Apache-2.0
"""A load from host memory, layer by layer, beside a computation that takes as long.

Real bytes between two CPU pools, every one compared afterwards. A thread of compiled code without
Python's lock stands for the engine: for each layer it waits until the layer is there, then computes
for as long as the load alone takes a layer. In turns: the load alone, by layer and nobody
computing; the computation alone; both. Target: both together take at most 1.1 times the longer.
"""

import asyncio
import statistics
import threading
import time
from typing import Any

import numpy as np
from _common import Claim, parser, write

from bodocache import (
    Cache,
    CacheConfig,
    Group,
    Layout,
    LayoutKind,
    Load,
    Match,
    OwnedPool,
    Tier,
    jit,
)
from bodocache.config import HostConfig, IdentityConfig, TiersConfig
from bodocache.replay import payload

LAYERS, PAGE_TOKENS, PAGES = 32, 16, 768
GROUP = Group("attention", layers=LAYERS, heads=8, head_dim=64, itemsize=2)  # 1 MiB a page
ROUNDS = 9
LONGEST = 1.1  # of the longer of the two


@jit.compiled(jit.f8)
def _compute(seconds: float) -> int:
    """Keep a core busy for so long."""
    clock, steps = np.empty(2, np.int64), 0
    end_s = jit.now_s(clock) + seconds
    while jit.now_s(clock) < end_s:
        steps += 1
    return steps


class Engine:
    """A thread that computes layer by layer, each once it is there."""

    def __init__(self, load: Load | None, layer_s: float) -> None:
        self.stalled_s = 0.0
        self._load = load
        self._layer_s = layer_s
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for layer in range(LAYERS):
            if self._load is not None:
                begun_s = time.perf_counter()
                self._load.wait_layer(layer, timeout_s=60.0)
                self.stalled_s += time.perf_counter() - begun_s
            _compute(self._layer_s)

    async def ended(self) -> None:
        """Wait for it, the loop running."""
        await asyncio.to_thread(self._thread.join)


class House:
    """A cache that holds one prompt on the host."""

    def __init__(self, cache: Cache, pool: OwnedPool, match: Match) -> None:
        self.cache = cache
        self.match = match
        self._words = payload.words_of(pool)
        self._residency = cache._orchestrator.residency  # noqa: SLF001 -- to empty the device

    def begin(self) -> Load:
        """A load, committed at once: all goes by layer."""
        self._residency.empty_device()
        load = self.cache.load(self.match, compute_s=np.full(LAYERS, 1e-3))
        load.commit()
        return load

    async def end(self, load: Load) -> int:
        """Wrong bytes of what it delivered, or those of pages that did not come."""
        loaded = await load
        seeds = payload.seeds(self.match.keys)
        wrong = payload.count_wrong_bytes(self._words, loaded.slots, seeds[: loaded.pages])
        load.close()
        await load.released
        missing = PAGES - loaded.pages
        return int(wrong) + missing * GROUP.page_nbytes(PAGE_TOKENS)


def main() -> None:
    arguments = parser(__doc__)
    chosen = arguments.parse_args()
    rows = asyncio.run(measure())
    write(chosen.json, rows, claims(rows), pages=PAGES, layers=LAYERS, rounds=ROUNDS)


async def measure() -> list[dict[str, Any]]:
    """One row a round."""
    page_nbytes = GROUP.page_nbytes(PAGE_TOKENS)
    pool = OwnedPool(Layout(LayoutKind.LAYER_FIRST, GROUP, PAGE_TOKENS, PAGES + 1))
    config = CacheConfig(
        IdentityConfig(model="bench", dtype="bytes"),
        TiersConfig(HostConfig((PAGES + 8) * page_nbytes)),
    )
    _compute(0.0)
    async with await Cache.open(config, pool) as cache:
        match = await stored(cache, pool)
        house = House(cache, pool, match)
        rows = [await one_round(house) for _ in range(ROUNDS + 2)]
    return rows[2:]  # the first touch memory and teach the link


async def stored(cache: Cache, pool: OwnedPool) -> Match:
    """Store a prompt; the match that finds it."""
    tokens = np.arange(PAGES * PAGE_TOKENS, dtype=np.uint32)
    match = await cache.match(tokens)
    slots = cache.acquire(PAGES)
    payload.fill(payload.words_of(pool), slots, payload.seeds(match.keys))
    async with cache.store(match, slots):
        pass
    found = await cache.match(tokens)
    assert found.pages == PAGES
    return found


async def one_round(house: House) -> dict[str, Any]:
    """The load alone, the computation alone, and both."""
    assert (house.match.tiers <= Tier.HOST).all()
    begun_s = time.perf_counter()
    load = house.begin()
    await load.layer(LAYERS - 1)
    load_s = time.perf_counter() - begun_s
    wrong = await house.end(load)
    begun_s = time.perf_counter()
    await Engine(None, load_s / LAYERS).ended()
    compute_s = time.perf_counter() - begun_s
    begun_s = time.perf_counter()
    load = house.begin()
    engine = Engine(load, load_s / LAYERS)
    await engine.ended()
    both_s = time.perf_counter() - begun_s
    wrong += await house.end(load)
    return {
        "load_ms": round(load_s * 1e3, 2),
        "compute_ms": round(compute_s * 1e3, 2),
        "both_ms": round(both_s * 1e3, 2),
        "stalled_ms": round(engine.stalled_s * 1e3, 2),
        "of_the_longer": round(both_s / max(load_s, compute_s), 3),
        "gb_per_s": round(PAGES * GROUP.page_nbytes(PAGE_TOKENS) / load_s / 1e9, 2),
        "wrong_bytes": wrong,
    }


def claims(rows: list[dict[str, Any]]) -> list[Claim]:
    """Of the median round; wrong bytes of all."""
    ratio = statistics.median(row["of_the_longer"] for row in rows)
    wrong = sum(row["wrong_bytes"] for row in rows)
    return [
        Claim.at_most("load and compute together, of the longer", ratio, LONGEST, ""),
        Claim("wrong bytes", wrong, "= 0", wrong == 0),
    ]


if __name__ == "__main__":
    main()
