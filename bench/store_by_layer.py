# SPDX-License-Identifier: Apache-2.0
"""What a store by layer costs a load that crosses at the same time, between CPU pools.

Real bytes, each compared. In turns: a load of one prompt alone; the same load while another prompt,
all of whose layers are computed, leaves the device layer by layer. Both use one memory bus and one
loop. Target: the load takes at most 1.05 times as long. How long the store takes is reported, too.
"""

import asyncio
import statistics
import time
from typing import Any

import numpy as np
from _common import Claim, parser, write

from bodocache import Cache, CacheConfig, Group, Layout, LayoutKind, Match, OwnedPool
from bodocache.config import FeaturesConfig, HostConfig, IdentityConfig, TiersConfig
from bodocache.replay import payload

LAYERS, PAGE_TOKENS, PAGES, STORED = 32, 16, 512, 64
GROUP = Group("attention", layers=LAYERS, heads=8, head_dim=64, itemsize=2)  # 1 MiB a page
ROUNDS = 15
SLOWER = 1.05


def main() -> None:
    arguments = parser(__doc__)
    chosen = arguments.parse_args()
    rows = asyncio.run(measure())
    write(chosen.json, rows, claims(rows), pages=PAGES, stored_pages=STORED, rounds=ROUNDS)


async def measure() -> list[dict[str, Any]]:
    """One row a round."""
    page_nbytes = GROUP.page_nbytes(PAGE_TOKENS)
    pool = OwnedPool(Layout(LayoutKind.LAYER_FIRST, GROUP, PAGE_TOKENS, PAGES + STORED + 1))
    config = CacheConfig(
        IdentityConfig(model="bench", dtype="bytes"),
        TiersConfig(HostConfig((PAGES + (ROUNDS + 3) * STORED) * page_nbytes)),
        features=FeaturesConfig(admit=False),
    )
    async with await Cache.open(config, pool) as cache:
        match = await prompt(cache, 0, PAGES)
        slots = filled(cache, pool, match)
        async with cache.store(match, slots):
            pass
        match = await prompt(cache, 0, PAGES)
        rows = [await one_round(cache, pool, match, number) for number in range(1, ROUNDS + 3)]
    return rows[2:]  # the first touch memory


async def prompt(cache: Cache, number: int, pages: int) -> Match:
    tokens = np.arange(pages * PAGE_TOKENS, dtype=np.uint32) + np.uint32(number * 1_000_000)
    return await cache.match(tokens)


def filled(cache: Cache, pool: OwnedPool, match: Match) -> np.ndarray:
    """Device slots with the pages of ``match``."""
    slots = cache.acquire(len(match.keys))
    payload.fill(payload.words_of(pool), slots, payload.seeds(match.keys))
    return slots


async def one_round(cache: Cache, pool: OwnedPool, match: Match, number: int) -> dict[str, Any]:
    """The load alone, and beside a store."""
    alone_s, wrong = await load(cache, pool, match)
    new = await prompt(cache, number, STORED)
    store = cache.store(new, filled(cache, pool, new), layers=True)
    begun_s = time.perf_counter()
    store.layer_ready(0)
    await asyncio.sleep(0)
    for layer in range(1, LAYERS):
        store.layer_ready(layer)
    beside_s, more = await load(cache, pool, match)
    stored = await store
    store_s = time.perf_counter() - begun_s
    store.close()
    return {
        "alone_ms": round(alone_s * 1e3, 2),
        "beside_ms": round(beside_s * 1e3, 2),
        "slower": round(beside_s / alone_s, 3),
        "store_ms": round(store_s * 1e3, 2),
        "not_stored": STORED - stored.new,
        "wrong_bytes": wrong + more,
    }


async def load(cache: Cache, pool: OwnedPool, match: Match) -> tuple[float, int]:
    """Seconds of a load from the host, and the bytes that came wrong or not at all."""
    cache._orchestrator.residency.empty_device()  # noqa: SLF001
    begun_s = time.perf_counter()
    with cache.load(match) as one:
        loaded = await one
        seconds = time.perf_counter() - begun_s
        seeds = payload.seeds(match.keys)[: loaded.pages]
        wrong = payload.count_wrong_bytes(payload.words_of(pool), loaded.slots, seeds)
    await one.released
    return seconds, int(wrong) + (PAGES - loaded.pages) * GROUP.page_nbytes(PAGE_TOKENS)


def claims(rows: list[dict[str, Any]]) -> list[Claim]:
    """Beside the issue's target."""
    slower = statistics.median(row["beside_ms"] for row in rows) / statistics.median(
        row["alone_ms"] for row in rows
    )
    wrong = sum(row["wrong_bytes"] for row in rows)
    missing = sum(row["not_stored"] for row in rows)
    return [
        Claim.at_most("load beside a store by layer, over alone", slower, SLOWER, "x"),
        Claim("wrong bytes", wrong, "= 0", wrong == 0),
        Claim("pages not stored", missing, "= 0", missing == 0),
    ]


if __name__ == "__main__":
    main()
