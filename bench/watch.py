# SPDX-License-Identifier: Apache-2.0
"""What it costs to be watched: an event, a load's bookkeeping, a scrape and a recording.

The ring and the requests kept are full. What runs on the orchestrator's loop is also how long the
loop stands still.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from _common import Claim, parser, timing, write

from bodocache import jit
from bodocache.cache import Cache
from bodocache.clock import RealClock
from bodocache.config import CacheConfig, HostConfig, IdentityConfig, TiersConfig
from bodocache.kernels.host import compiled as host_path
from bodocache.layout import Group, Layout, LayoutKind
from bodocache.move.requests import REQUESTS_KEPT
from bodocache.move.timeline import EVENTS_KEPT, Event, Timeline
from bodocache.pools import OwnedPool
from bodocache.watch.metrics import Watched, collected, exposition
from bodocache.watch.recording import Recording

EVENTS = 20_000  # a run
RUNS = 15
PAGE_TOKENS = 8
PAGES = 16  # of a load
EVENT_US = 1.0
GROUP = Group("kv", layers=4, heads=1, head_dim=32, itemsize=2)


def main() -> None:
    chosen = parser(__doc__).parse_args()
    host_path()
    jit.warm()
    event = event_row()
    rows = [event, *asyncio.run(cache_rows())]
    claim = Claim.at_most("an event of the timeline", event["median_us"], EVENT_US, "us")
    write(chosen.json, rows, [claim])


def event_row() -> dict[str, Any]:
    """One event, the ring being full; the loop around it is in the figure."""
    timeline = Timeline(RealClock().now_s, ["a", "b"])
    add, landed = timeline.add, int(Event.LANDED)

    def run() -> None:
        for _ in range(EVENTS):
            add(17, landed, 1, 12)

    run()
    run()
    assert timeline.lost > 0
    return row("event", run, per=EVENTS)


async def cache_rows() -> list[dict[str, Any]]:
    """A load of pages on the device, with and without its bookkeeping; a scrape; a recording."""
    pool = OwnedPool(Layout(LayoutKind.LAYER_FIRST, GROUP, PAGE_TOKENS, 2 * PAGES), name="device")
    tiers = TiersConfig(HostConfig((1 << 14) * GROUP.page_nbytes(PAGE_TOKENS)))
    config = CacheConfig(IdentityConfig(model="m", dtype="bytes"), tiers)
    async with await Cache.open(config, pool) as cache:
        orchestrator = cache._orchestrator  # noqa: SLF001 -- to reach what is measured
        tokens = np.arange(PAGES * PAGE_TOKENS, dtype=np.uint32)
        async with cache.store(await cache.match(tokens), cache.acquire(PAGES)):
            pass
        for _ in range(max(REQUESTS_KEPT, EVENTS_KEPT // 3)):  # 4 events each
            await load(cache, tokens)
        watched = Watched(orchestrator, cache._misses_by_reason)  # noqa: SLF001
        assert orchestrator.requests.timeline.lost > 0
        seconds = [await load(cache, tokens) for _ in range(2_000)]
        recording, families = Recording.of(orchestrator), collected(watched)
        return [
            {"what": "load of pages on the device", **figures(seconds)},
            row("scrape, on the loop", lambda: collected(watched)),
            row("its text, in a thread", lambda: exposition(families)),
            row("recording, on the loop", lambda: Recording.of(orchestrator)),
            row("its JSON, in a thread", recording.document),
        ]


async def load(cache: Cache, tokens: Any) -> float:
    """Seconds of one load, from the call to its release."""
    match = await cache.match(tokens)
    begun_s = time.perf_counter()
    with cache.load(match) as loading:
        await loading
    await loading.released
    await asyncio.sleep(0)  # what was to be called soon is called
    return time.perf_counter() - begun_s


def row(what: str, call: Callable[[], object], per: int = 1) -> dict[str, Any]:
    """Median and p99 of ``call``, in microseconds for one of ``per``."""
    seconds = []
    for _ in range(RUNS):
        begun_s = time.perf_counter()
        call()
        seconds.append((time.perf_counter() - begun_s) / per)
    return {"what": what, **figures(seconds)}


def figures(seconds: list[float]) -> dict[str, Any]:
    """Median and p99 in microseconds."""
    found = timing(seconds)
    return {
        "median_us": round(1e6 * found.median_s, 3),
        "p99_us": round(1e6 * found.p99_s, 3),
        "runs": found.runs,
    }


if __name__ == "__main__":
    main()
