# SPDX-License-Identifier: Apache-2.0
"""Live regret: what the sampled window costs a load, what asking costs, and how wrong it is.

Cost: a cache over memory whose pages all lie on the device, the cheapest load there is, with and
without its record, in turns. Error: LRU on a trace, the sampled regret against the exact one.
"""

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _common import Claim, parser, timing, write
from policies import CONVERSATION

from bodocache import jit
from bodocache.cache import Cache
from bodocache.config import CacheConfig, HostConfig, IdentityConfig, TiersConfig
from bodocache.kernels.host import compiled as host_path
from bodocache.layout import Group, Layout, LayoutKind
from bodocache.move import regret
from bodocache.move.regret import Accesses
from bodocache.pages import KEY_NBYTES, Tier
from bodocache.plan.optimum import min_hits
from bodocache.pools import OwnedPool
from bodocache.replay.policies.model import Ids
from bodocache.replay.policy import Policy, Touches, simulate
from bodocache.replay.trace import Trace, load_trace

PAGES_A_LOAD = (8, 64, 512)
LOADS = 2_000
SHARE_OF_A_LOAD = 0.02
CAPACITIES = (3_000, 10_000, 30_000)
SAMPLES = 8
ERROR = 0.03
PAGE_TOKENS = 8
GROUP = Group("kv", layers=4, heads=1, head_dim=32, itemsize=2)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("trace", nargs="?", type=Path, help="a .jsonl or .jsonl.gz trace")
    chosen = arguments.parse_args()
    path = chosen.trace or CONVERSATION
    if not path.exists():
        sys.exit(f"{path.name}: not there; pass the path of a trace (bodocache trace fetch)")
    host_path()
    jit.warm()
    costs = [asyncio.run(cost_row(pages, shift)) for pages in PAGES_A_LOAD for shift in (0, 4)]
    errors = [*error_rows(load_trace(path))]
    claims = [
        Claim.at_most(
            f"{row['pages']} pages, 1 in {row['one_in']}: share of a load",
            row["record_us"] / row["load_us"],
            SHARE_OF_A_LOAD,
            "",
        )
        for row in costs
    ]
    for capacity in CAPACITIES:
        worst = max(row["error"] for row in errors if row["capacity_pages"] == capacity)
        claims.append(Claim.at_most(f"{capacity:,} pages: worst error", worst, ERROR, ""))
    write(chosen.json, [*costs, *errors, asking_row()], claims, trace=path.name)


async def cost_row(pages: int, shift: int) -> dict[str, Any]:
    """Microseconds of one record beside those of a load and its release."""
    pool = OwnedPool(Layout(LayoutKind.LAYER_FIRST, GROUP, PAGE_TOKENS, 2 * pages), name="device")
    tiers = TiersConfig(HostConfig(2 * pages * GROUP.page_nbytes(PAGE_TOKENS)))
    config = CacheConfig(IdentityConfig(model="m", dtype="bytes"), tiers)
    loads, records = [], []
    async with await Cache.open(config, pool) as cache:
        match = await cache.match(np.arange(pages * PAGE_TOKENS, dtype=np.uint32))
        async with cache.store(match, cache.acquire(pages)):
            pass
        match = await cache.match(np.arange(pages * PAGE_TOKENS, dtype=np.uint32))
        room = (regret.SAMPLED_PAGES << shift) if shift else 1
        accesses = Accesses.open(room, room)
        assert accesses.shift == shift
        for _ in range(LOADS):
            begin = time.perf_counter()
            with cache.load(match) as load:
                await load
            await load.released
            between = time.perf_counter()
            accesses.record(match.keys, match.tiers[: match.pages])
            loads.append(between - begin)
            records.append(time.perf_counter() - between)
    load, record = timing(loads), timing(records)
    return {
        "pages": pages,
        "one_in": 1 << shift,
        "load_us": round(load.median_s * 1e6, 2),
        "record_us": round(record.median_s * 1e6, 2),
        "record_p99_us": round(record.p99_s * 1e6, 2),
    }


def error_rows(trace: Trace) -> Iterator[dict[str, Any]]:
    touches = Touches(trace.pages, trace.offsets, trace.parent, trace.depth, trace.timestamps_s)
    for capacity in CAPACITIES:
        hits = simulate(Policy.LRU, touches, capacity).hits
        for seed in range(SAMPLES):
            yield error_row(touches, capacity, hits, seed)


def error_row(touches: Touches, capacity: int, hits: Ids, seed: int) -> dict[str, Any]:
    """Sampled against exact regret, of the requests that the sampled window still holds."""
    generator = np.random.default_rng(seed)
    keys = generator.integers(0, 256, (len(touches.parents), KEY_NBYTES), np.uint8)
    accesses = Accesses.open(capacity, capacity)
    for request, found in enumerate(hits):
        own = touches.ids[touches.offsets[request] : touches.offsets[request + 1]]
        accesses.record(keys[own], np.full(found, Tier.HOST, np.uint8))
    sampled = accesses.regret()
    first = int(np.searchsorted(touches.offsets, int(accesses.oldest_first()["before"][0])))
    exact = exact_regret(touches, capacity, hits, first)
    return {
        "capacity_pages": capacity,
        "seed": seed,
        "sample_rate": sampled.sample_rate,
        "touches": sampled.touches,
        "exact_regret": round(exact, 4),
        "sampled_regret": round(sampled.all_tiers.regret, 4),
        "error": round(abs(sampled.all_tiers.regret - exact), 4),
    }


def exact_regret(touches: Touches, capacity: int, hits: Ids, first: int) -> float:
    """Of the requests from ``first`` on, counting pages that one of them asked for before."""
    offsets = touches.offsets[first:] - touches.offsets[first]
    ids, distinct = touches.ids[touches.offsets[first] :], len(touches.parents)
    again = np.ones(len(ids), np.bool_)
    again[np.unique(ids, return_index=True)[1]] = False
    leading = touches.depths[ids] < np.repeat(hits[first:], np.diff(offsets))
    best = int(min_hits(ids, offsets, distinct, capacity).hits.sum())
    return 1 - int((leading & again).sum()) / best


def asking_row() -> dict[str, Any]:
    """Milliseconds of a snapshot and of the optimum, where the window is full."""
    accesses = Accesses.open(regret.SAMPLED_PAGES, regret.SAMPLED_PAGES)
    keys = np.random.default_rng(2).integers(0, 256, (8_192, KEY_NBYTES), np.uint8)
    for begin in range(0, 2 * regret.WINDOW_TOUCHES, 32):
        first = begin * 7 % (len(keys) - 32)
        accesses.record(keys[first - first % 32 :][:32], np.zeros(16, np.uint8))
    begin_s = time.perf_counter()
    snapshot = accesses.snapshot()
    taken_s = time.perf_counter()
    snapshot.regret()
    return {
        "window_touches": regret.WINDOW_TOUCHES,
        "nbytes": accesses.ring.nbytes,
        "snapshot_ms": round((taken_s - begin_s) * 1e3, 3),
        "regret_ms": round((time.perf_counter() - taken_s) * 1e3, 3),
    }


if __name__ == "__main__":
    main()
