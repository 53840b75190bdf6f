# SPDX-License-Identifier: Apache-2.0
"""What the orchestrator costs: CPU per op at a rate of ops, and how long the loop stands still.

Loads from a slab, each decided before its first byte and while it is under way (it has a start).
An op is a page that lies apart from the others: planned, read, sent on, checked and placed. Loads
come at a rate that makes 10,000 ops a second. The CPU of the process, less what the same reads take
of the storage alone, its threads included, is the orchestrator's. A ticker notes how late each
wake-up of the loop is, while as many loads are served once more: it takes CPU itself. What was
there before is frozen, as docs/orchestrator.md tells engines to do.
"""

import asyncio
import gc
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import Claim, parser, write

from bodocache import Cache, CacheConfig, Group, Layout, LayoutKind, OwnedPool, Tier
from bodocache.clock import RealClock
from bodocache.config import FeaturesConfig, HostConfig, IdentityConfig, TiersConfig
from bodocache.io.backend import Status
from bodocache.io.config import SlabConfig
from bodocache.io.slab import SlabBackend
from bodocache.match import Match
from bodocache.move.residency import Residency
from bodocache.replay import payload

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
    with tempfile.TemporaryDirectory() as folder:
        row = asyncio.run(measure(Path(folder), chosen.seconds))
    write(chosen.json, [row], claims(row), seconds=chosen.seconds, pages_a_load=PAGES)


async def measure(folder: Path, seconds: float) -> dict[str, Any]:
    """Serve loads for so long."""
    page_nbytes, pages = GROUP.page_nbytes(PAGE_TOKENS), PROMPTS * PAGES
    pool = OwnedPool(Layout(LayoutKind.LAYER_FIRST, GROUP, PAGE_TOKENS, pages))
    config = CacheConfig(
        IdentityConfig(model="bench", dtype="bytes"),
        TiersConfig(HostConfig(pages * page_nbytes)),
        features=FeaturesConfig(admit=False),
    )
    slab = SlabConfig(
        folder, 3 * pages * page_nbytes, page_nbytes, bytes(32), read_through_nbytes=0
    )
    backend = await SlabBackend.open(slab, clock=RealClock())
    async with await Cache.open(config, pool, backend=backend) as cache:
        matches = await stored(cache, pool)
        residency = cache._orchestrator.residency  # noqa: SLF001 -- to leave the pages on disk alone
        for tier in (Tier.DEVICE, Tier.HOST):
            residency.evict(tier, PROMPTS * PAGES)
        await serve(cache, residency, matches, 0.5)
        gc.collect()
        gc.freeze()
        alone_s = await storage_alone_s(residency, matches)
        extents = [0]
        backend.observer = lambda _: extents.__setitem__(0, extents[0] + 1)
        begun_s, cpu_s = time.perf_counter(), time.process_time()
        ops, lost = await serve(cache, residency, matches, seconds)
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - begun_s
        reads = extents[0] / ops
        gaps: list[float] = []
        ticker = asyncio.create_task(tick(gaps))
        lost += (await serve(cache, residency, matches, seconds))[1]
        ticker.cancel()
    gc.unfreeze()
    ordered = sorted(gaps)
    return {
        "ops": ops,
        "reads_per_op": round(reads, 3),
        "ops_per_s": round(ops / wall_s),
        "cpu_us_per_op": round(cpu_s / ops * 1e6, 1),
        "storage_us_per_op": round(alone_s * 1e6, 1),
        "orchestrator_us_per_op": round((cpu_s / ops - alone_s) * 1e6, 1),
        "gap_p50_ms": round(statistics.median(ordered) * 1e3, 3),
        "gap_p999_ms": round(ordered[int(0.999 * len(ordered))] * 1e3, 3),
        "not_delivered": lost,
    }


async def stored(cache: Cache, pool: OwnedPool) -> list[Match]:
    """Store every prompt page by page, in turns, so that no two of its pages lie side by side."""
    tokens = np.arange(PROMPTS, dtype=np.uint32)[:, None] * np.uint32(100_000)
    tokens = tokens + np.arange(PAGES * PAGE_TOKENS, dtype=np.uint32)
    for page in range(PAGES):
        for prompt in tokens:
            match = await cache.match(prompt[: (page + 1) * PAGE_TOKENS])
            slots = cache.acquire(1)
            payload.fill(payload.words_of(pool), slots, payload.seeds(match.keys[page:]))
            async with cache.store(match, slots) as store:
                await store.written
    return [await cache.match(prompt) for prompt in tokens]


async def storage_alone_s(residency: Residency, matches: list[Match]) -> float:
    """CPU seconds of one page's read alone, by the same calls to the storage."""
    assert residency.backend is not None
    begun_s, times = time.process_time(), 4
    for match in matches * times:
        rows, slots = residency.leading(match.keys), residency.take_most(Tier.HOST, PAGES)
        batch = residency.describe(rows, slots)
        transfer = residency.backend.get(batch, residency.host.rows, deadline_s=math.inf)
        await transfer.finished()
        await transfer.drained()
        assert (transfer.statuses == Status.LANDED).all()
        residency.give_back(slots, Tier.HOST)
    return (time.process_time() - begun_s) / times / len(matches) / PAGES


async def tick(gaps: list[float]) -> None:
    """Note how late each wake-up is."""
    while True:
        due_s = time.perf_counter() + TICK_S
        await asyncio.sleep(TICK_S)
        gaps.append(max(0.0, time.perf_counter() - due_s))


async def serve(
    cache: Cache, residency: Residency, matches: list[Match], seconds: float
) -> tuple[int, int]:
    """Loads at OPS_PER_S, some at a time; how many ops, and pages that did not come."""
    rng, ops, lost = np.random.default_rng(0), 0, 0
    end_s = time.perf_counter() + seconds
    next_s = time.perf_counter()
    while time.perf_counter() < end_s:
        chosen = [matches[k] for k in rng.choice(PROMPTS, AT_ONCE, replace=False)]
        loads = [cache.load(match, start_s=10.0) for match in chosen]
        for load in loads:
            loaded = await load
            lost += PAGES - loaded.pages
            ops += PAGES
            load.close()
            await load.released
        for tier in (Tier.DEVICE, Tier.HOST):
            residency.evict(tier, AT_ONCE * PAGES)
        next_s += AT_ONCE * PAGES / OPS_PER_S
        await asyncio.sleep(max(0.0, next_s - time.perf_counter()))
    return ops, lost


def claims(row: dict[str, Any]) -> list[Claim]:
    """Beside the issue's targets."""
    return [
        Claim.at_least("reads an op", row["reads_per_op"], 0.95, ""),
        Claim.at_least("ops a second", row["ops_per_s"], 0.9 * OPS_PER_S, ""),
        Claim.at_most("orchestrator's CPU per op", row["orchestrator_us_per_op"], MOST_US, "us"),
        Claim.at_most("event loop's gaps, p99.9", row["gap_p999_ms"], MOST_GAP_MS, "ms"),
        Claim("pages not delivered", row["not_delivered"], "= 0", row["not_delivered"] == 0),
    ]


if __name__ == "__main__":
    main()
