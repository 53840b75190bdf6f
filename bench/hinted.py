# SPDX-License-Identifier: Apache-2.0
"""What hints are worth in the live cache: hits of a trace's whole pages, by quality of the hints.

The real Cache over host memory alone, on a virtual clock that follows the trace; no session is
named. A hint says with each request how likely its last whole page is used again: right (1 or 0),
with a binormal noise of AUC 0.9, or at random. Pages are small (256 bytes) and of equal value.
Unfilled pages are not stored; hits are counted per touch of the trace, those pages included.
The horizon of 150 s was chosen on the first half of the trace, the odds of trust.py on all of it.
"""

import asyncio
import math
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from _common import Claim, parser, write

from bodocache.cache import Cache
from bodocache.clock import VirtualClock
from bodocache.config import CacheConfig, HostConfig, IdentityConfig, PlannerConfig, TiersConfig
from bodocache.hints import Reuse
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory
from bodocache.pools import BorrowedPool, OwnedPool
from bodocache.replay.trace import Trace, load_trace

CONVERSATION = Path(__file__).parents[2] / "shared" / "traces" / "conversation_trace.jsonl"
CAPACITIES = (1_000, 3_000, 10_000)
QUALITIES = ("none", "right", "auc 0.9", "random")
PAGE_TOKENS = 512  # of the trace
GROUP = Group("kv", layers=1, heads=1, head_dim=8, itemsize=2)
SEED = 12
RIGHT = {3_000: 0.210, 10_000: 0.345}  # hits per touch of the conversation trace


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("trace", nargs="?", type=Path, help="a .jsonl or .jsonl.gz trace")
    arguments.add_argument("--max-requests", type=int)
    chosen = arguments.parse_args()
    path = chosen.trace or CONVERSATION
    if not path.exists():
        sys.exit(f"{path.name}: not there; pass the path of a trace (bodocache trace fetch)")
    trace = load_trace(path, chosen.max_requests)
    requests = whole_pages(trace)
    said = {quality: chances(requests, quality) for quality in QUALITIES}
    rows = [
        asyncio.run(serve(trace, requests, capacity, quality, said[quality]))
        for capacity in CAPACITIES
        for quality in QUALITIES
    ]
    promised = [*claims(rows)] if path.name == CONVERSATION.name else []
    write(chosen.json, rows, promised, trace=path.name, requests=len(requests), seed=SEED)


def whole_pages(trace: Trace) -> list[list[int]]:
    """The pages of each request that are full."""
    full = trace.input_lengths // PAGE_TOKENS
    begins = trace.offsets[:-1]
    ends = np.minimum(begins + full, trace.offsets[1:])
    return [trace.pages[begin:end].tolist() for begin, end in zip(begins, ends, strict=True)]


def chances(requests: list[list[int]], quality: str) -> list[float | None]:
    """What is said of each request; None where nothing is."""
    goes_on, later, noise = [], set[int](), random.Random(SEED)
    for pages in reversed(requests):
        goes_on.append(bool(pages) and pages[-1] in later)
        later.update(pages)
    goes_on.reverse()
    base = sum(goes_on) / len(goes_on)
    if quality == "none":
        return [None] * len(goes_on)
    if quality == "right":
        return [float(it) for it in goes_on]
    if quality == "random":
        return [noise.random() for _ in goes_on]
    apart = math.sqrt(2) * NormalDist().inv_cdf(0.9)  # binormal: AUC = Phi(apart / sqrt 2)
    odds = [apart * (noise.gauss(apart * it, 1.0) - apart / 2) for it in goes_on]
    return [1 / (1 + math.exp(-score) * (1 - base) / base) for score in odds]


async def serve(
    trace: Trace,
    requests: list[list[int]],
    capacity: int,
    quality: str,
    said: list[float | None],
) -> dict[str, Any]:
    """Serve every request from a host tier of ``capacity`` pages."""
    clock, hits = VirtualClock(), np.zeros(len(requests), np.int64)
    async with await open_cache(capacity, clock, max(map(len, requests))) as cache:
        slots = np.arange(cache_slots(cache))
        begin_s = time.process_time()
        for number, pages in enumerate(requests):
            clock.advance(float(trace.timestamps_s[number]) - clock.now_s())
            if pages:
                hits[number] = await one(cache, pages, slots, said[number])
        cpu_s = time.process_time() - begin_s
        reliability = cache.stats().hints.reliability.get(0)
    half = len(requests) // 2
    touches_of_half = int(trace.offsets[-1] - trace.offsets[half])
    return {
        "capacity_pages": capacity,
        "hints": quality,
        "hits": int(hits.sum()),
        "hit_ratio": round(int(hits.sum()) / trace.touches, 4),
        "second_half_hits": int(hits[half:].sum()),
        "second_half_hit_ratio": round(int(hits[half:].sum()) / touches_of_half, 4),
        "us_per_request": round(cpu_s / len(requests) * 1e6, 1),
        "weight": round(reliability.weight, 4) if reliability else 0.0,
        "gain_bits": round(reliability.gain_bits, 2) if reliability else 0.0,
        "outcomes": reliability.outcomes if reliability else 0,
    }


async def open_cache(capacity: int, clock: VirtualClock, longest: int) -> Cache:
    pool = OwnedPool(Layout(LayoutKind.LAYER_FIRST, GROUP, 8, longest), name="engine")
    memory = PagedMemory.of_layout(pool.buffer, pool.layout)
    config = CacheConfig(
        IdentityConfig(model="m", dtype="bytes"),
        TiersConfig(HostConfig(capacity * pool.layout.page_nbytes)),
        PlannerConfig(recompute_slope_s=0.0),
    )
    return await Cache.open(config, BorrowedPool(memory), group=GROUP, clock=clock)


def cache_slots(cache: Cache) -> int:
    return cache.stats().traffic.tiers[0].capacity_pages


async def one(cache: Cache, pages: list[int], slots: np.ndarray, chance: float | None) -> int:
    """One request, as an engine makes it; pages that came from the cache."""
    reuse = None if chance is None else Reuse(probability=chance)
    keys = [page.to_bytes(8, "little") for page in pages]
    match = await cache.match_engine_keys(keys, reuse=reuse)
    with cache.load(match, slots[: match.pages]) as load:
        loaded = await load
    async with cache.store(match, slots[loaded.pages : len(pages)]):
        pass
    return loaded.pages


def claims(rows: list[dict[str, Any]]) -> Iterator[Claim]:
    for capacity in CAPACITIES:
        of = {row["hints"]: row for row in rows if row["capacity_pages"] == capacity}
        hits = {quality: row["hits"] for quality, row in of.items()}
        at = f"{capacity} pages"
        gain = hits["right"] - hits["none"]
        part = (hits["auc 0.9"] - hits["none"]) / gain if gain > 0 else 0.0
        if capacity in RIGHT:
            ratio = of["right"]["hit_ratio"]
            yield Claim.at_least(f"{at}: hit ratio, right hints", ratio, RIGHT[capacity], "")
        yield Claim.at_least(f"{at}: part of that gain with AUC 0.9", part, 0.5, "")
        yield Claim.at_least(
            f"{at}: random hints over none", hits["random"] / hits["none"], 0.98, ""
        )


if __name__ == "__main__":
    main()
