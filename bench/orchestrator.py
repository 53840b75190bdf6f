# SPDX-License-Identifier: Apache-2.0
"""What the orchestrator costs: CPU per op at a rate of ops, and how long the loop stands still.

Loads from a disk in memory, each decided before its first byte and while it is under way (it has a
start). An op is a page that is planned, read, sent on, checked and placed by itself
(``chunk_nbytes`` is one page); a load of 64 ops is one call to the storage. Loads come at a rate
that makes 10,000 ops a second. The CPU of the process, less that of the storage's stand-in and of
the copies, measured alone, is the orchestrator's. A ticker notes how late each wake-up is.
"""

import asyncio
import statistics
import time
from typing import Any

import numpy as np
from _common import Claim, parser, write
from numpy.typing import NDArray

from bodocache import Cache, CacheConfig, Group, Layout, LayoutKind, OwnedPool, Tier
from bodocache.clock import RealClock
from bodocache.config import FeaturesConfig, HostConfig, IdentityConfig, TiersConfig
from bodocache.io.backend import TRANSFER, ToldInPython
from bodocache.move.copies import Copies
from bodocache.replay import payload
from bodocache.testing import MemoryBackend, MemoryDisk

GROUP = Group("attention", layers=4, heads=1, head_dim=32, itemsize=2)
PAGE_TOKENS, PROMPTS, PAGES = 8, 16, 64  # a page of 4 KiB
AT_ONCE = 4  # loads
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
        cache._orchestrator.residency.policy["chunk_nbytes"] = 1  # noqa: SLF001 -- a page an op
        await serve(cache, matches, 0.5)
        alone_s = await stand_in_s(backend, pool)
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


async def stand_in_s(backend: MemoryBackend, pool: OwnedPool) -> float:
    """CPU seconds of one page through the stand-in and the copy alone."""
    entries = backend.entries()
    batch = np.zeros(PAGES, TRANSFER)
    batch["key"], batch["frame"] = entries.keys[:PAGES], entries.frames[:PAGES]
    batch["slot"], batch["nbytes"] = np.arange(PAGES), backend.page_nbytes
    host = OwnedPool(Layout(LayoutKind.PAGE, GROUP, PAGE_TOKENS, PAGES))
    copies = Copies(pool, host)
    send = ToldInPython(lambda positions: _send(copies, positions))
    begun_s, times = time.process_time(), 100
    for _ in range(times):
        transfer = backend.get(batch, host.rows, deadline_s=np.inf, on_landed=send)
        await transfer.finished()
    copies.close()
    return (time.process_time() - begun_s) / times / PAGES


def _send(copies: Copies, positions: NDArray[np.int64]) -> None:
    copies.to_device(positions, positions)


async def tick(gaps: list[float]) -> None:
    """Note how late each wake-up is."""
    while True:
        due_s = time.perf_counter() + TICK_S
        await asyncio.sleep(TICK_S)
        gaps.append(max(0.0, time.perf_counter() - due_s))


async def serve(cache: Cache, matches: list[Any], seconds: float) -> tuple[int, int]:
    """Loads at OPS_PER_S, some at a time; how many ops, and pages that did not come."""
    residency = cache._orchestrator.residency  # noqa: SLF001 -- to leave the pages on disk alone
    rng, ops, lost = np.random.default_rng(0), 0, 0
    end_s = time.perf_counter() + seconds
    next_s = time.perf_counter()
    while time.perf_counter() < end_s:
        for tier in (Tier.DEVICE, Tier.HOST):
            residency._evict(tier, PROMPTS * PAGES)  # noqa: SLF001
        chosen = [matches[k] for k in rng.choice(PROMPTS, AT_ONCE, replace=False)]
        loads = [cache.load(match, start_s=10.0) for match in chosen]
        for load in loads:
            loaded = await load
            lost += PAGES - loaded.pages
            ops += PAGES
            load.close()
            await load.released
        next_s += AT_ONCE * PAGES / OPS_PER_S
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
