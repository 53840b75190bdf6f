# SPDX-License-Identifier: Apache-2.0
"""What the orchestrator costs: CPU per op at a rate of ops, and how long the loop stands still.

Loads from a disk in memory whose reads cost next to nothing go through one link, chunk by chunk
beside each other, each load decided (it has a start). An op is a chunk handed to the backend and
taken over when it has landed. The loads come at a rate that makes 10,000 ops a second; the CPU of
the process, less that of the stand-in's copies and digests, measured alone, is the orchestrator's.
A ticker notes by how much each wake-up of the loop was late.
"""

import asyncio
import statistics
import time
from typing import Any

import numpy as np
from _common import Claim, parser, write

from bodocache import Cache, CacheConfig, Group, Layout, LayoutKind, OwnedPool, Tier
from bodocache.clock import RealClock
from bodocache.config import FeaturesConfig, HostConfig, IdentityConfig, TiersConfig
from bodocache.io.backend import TRANSFER
from bodocache.replay import payload
from bodocache.testing import MemoryBackend, MemoryDisk

GROUP = Group("attention", layers=4, heads=1, head_dim=32, itemsize=2)
PAGE_TOKENS, PROMPTS, PAGES = 8, 64, 16  # a page of 4 KiB
OPS_PER_S, SECONDS = 10_000, 5.0
TICK_S = 1e-3
MOST_US, MOST_GAP_MS = 25.0, 5.0


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seconds", type=float, default=SECONDS)
    chosen = arguments.parse_args()
    row = asyncio.run(measure(chosen.seconds))
    write(chosen.json, [row], claims(row), seconds=chosen.seconds, pages_a_load=PAGES)


async def measure(seconds: float) -> dict[str, Any]:
    """Serve loads for so long."""
    page_nbytes = GROUP.page_nbytes(PAGE_TOKENS)
    pool = OwnedPool(Layout(LayoutKind.LAYER_FIRST, GROUP, PAGE_TOKENS, PROMPTS * PAGES))
    config = CacheConfig(
        IdentityConfig(model="bench", dtype="bytes"),
        TiersConfig(HostConfig(PROMPTS * PAGES * page_nbytes)),
        features=FeaturesConfig(admit=False),
    )
    disk = MemoryDisk(page_nbytes, PROMPTS * PAGES)
    backend = MemoryBackend(disk, clock=RealClock())
    async with await Cache.open(config, pool, backend=backend) as cache:
        matches = [await stored(cache, pool, k) for k in range(PROMPTS)]
        queue = cache._orchestrator._links["disk->device"].queue  # noqa: SLF001 -- its chunk
        type(queue).chunk_nbytes = property(lambda _: page_nbytes)  # type: ignore[assignment]
        await serve(cache, matches, 0.5)
        alone_s = await stand_in_s(backend)
        gaps: list[float] = []
        ticker = asyncio.create_task(tick(gaps))
        begun_s, cpu_s = time.perf_counter(), time.process_time()
        ops, wrong = await serve(cache, matches, seconds)
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - begun_s
        ticker.cancel()
    ordered = sorted(gaps)
    return {
        "ops": ops,
        "ops_per_s": round(ops / wall_s),
        "cpu_us_per_op": round(cpu_s / ops * 1e6, 1),
        "stand_in_us_per_op": round(alone_s * 1e6, 1),
        "orchestrator_us_per_op": round((cpu_s / ops - alone_s) * 1e6, 1),
        "gap_p50_ms": round(statistics.median(ordered) * 1e3, 3),
        "gap_p999_ms": round(ordered[int(0.999 * len(ordered))] * 1e3, 3),
        "not_delivered": wrong,
    }


async def stored(cache: Cache, pool: OwnedPool, k: int) -> Any:
    """Store prompt k until it is on disk."""
    tokens = np.arange(PAGES * PAGE_TOKENS, dtype=np.uint32) + np.uint32(k * 100_000)
    match = await cache.match(tokens)
    slots = cache.acquire(PAGES)
    payload.fill(payload.words_of(pool), slots, payload.seeds(match.keys))
    store = cache.store(match, slots)
    await store
    store.close()
    await store.written
    return await cache.match(tokens)


async def stand_in_s(backend: MemoryBackend) -> float:
    """CPU seconds of one page through the stand-in alone."""
    entries = backend.entries()
    batch = np.zeros(1, TRANSFER)
    batch["key"], batch["frame"] = entries.keys[:1], entries.frames[:1]
    batch["nbytes"] = backend.page_nbytes
    buffers = np.zeros((1, backend.page_nbytes), np.uint8)
    begun_s, times = time.process_time(), 5000
    for _ in range(times):
        transfer = backend.get(batch, buffers, deadline_s=np.inf)
        await transfer.finished()
    return (time.process_time() - begun_s) / times


async def tick(gaps: list[float]) -> None:
    """Note how late each wake-up is."""
    while True:
        due_s = time.perf_counter() + TICK_S
        await asyncio.sleep(TICK_S)
        gaps.append(max(0.0, time.perf_counter() - due_s))


async def serve(cache: Cache, matches: list[Any], seconds: float) -> tuple[int, int]:
    """Loads at OPS_PER_S, eight at a time; how many ops, and pages that did not come."""
    residency = cache._orchestrator.residency  # noqa: SLF001 -- to leave the pages on disk alone
    rng, ops, lost, eight = np.random.default_rng(0), 0, 0, 8
    end_s = time.perf_counter() + seconds
    next_s = time.perf_counter()
    while time.perf_counter() < end_s:
        for tier in (Tier.DEVICE, Tier.HOST):
            residency._evict(tier, PROMPTS * PAGES)  # noqa: SLF001
        chosen = [matches[k] for k in rng.choice(PROMPTS, eight, replace=False)]
        loads = [cache.load(match, start_s=10.0) for match in chosen]
        for load in loads:
            loaded = await load
            lost += PAGES - loaded.pages
            ops += PAGES
            load.close()
            await load.released
        next_s += eight * PAGES / OPS_PER_S
        await asyncio.sleep(max(0.0, next_s - time.perf_counter()))
    return ops, lost


def claims(row: dict[str, Any]) -> list[Claim]:
    """Beside the issue's targets."""
    return [
        Claim.at_least("ops a second", row["ops_per_s"], 0.9 * OPS_PER_S, ""),
        Claim.at_most("orchestrator's CPU per op", row["orchestrator_us_per_op"], MOST_US, "us"),
        Claim.at_most("event loop's gaps, p99.9", row["gap_p999_ms"], MOST_GAP_MS, "ms"),
        Claim("pages not delivered", row["not_delivered"], "= 0", row["not_delivered"] == 0),
    ]


if __name__ == "__main__":
    main()
