# SPDX-License-Identifier: Apache-2.0
"""What a flood by one tenant costs another in the live cache: in virtual time, over a slow disk.

Tenant 1 loads prompts of its own, one at a time, and has 60 ms of slack; tenant 2 asks for three
times what the disk gives, and stores new prompts all the while. Both are sure of half of every
tier. Three runs of one seed: without the flood, with it, and with it where tenant 2 has a rate; in
one process, and through a node. All code is the cache's; only the disk is simulated, and time.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _common
import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.cache import Cache, warm
from bodocache.clock import VirtualClock
from bodocache.config import (
    CacheConfig,
    FeaturesConfig,
    HostConfig,
    IdentityConfig,
    NodeConfig,
    PlannerConfig,
    TenantsConfig,
    TiersConfig,
)
from bodocache.io.backend import Backend
from bodocache.io.transfer import BatchTransfer, Request
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory
from bodocache.move.residency import KeyArray, SlotArray
from bodocache.node.client import NodeCache
from bodocache.node.process import serve
from bodocache.pools import BorrowedPool, OwnedPool
from bodocache.replay import payload
from bodocache.testing.loop import VirtualSocketLoop, run_virtual
from bodocache.testing.memory import MemoryBackend, MemoryDisk

GROUP = Group("kv", layers=1, heads=1, head_dim=64, itemsize=2)
PAGE_TOKENS = 16
PAGE_NBYTES = GROUP.page_nbytes(PAGE_TOKENS)
PAGE_S = 2e-3  # of the disk, a page
DISK_RATE = PAGE_NBYTES / PAGE_S
LOAD_PAGES, PROMPTS = 64, 16  # of each tenant
HOST_PAGES, DISK_PAGES = 256, 4096
SLACK_S = 0.06
TOKEN_S = 1e-3  # to compute one: 8 times as long as to load it
GAP_S, FLOOD_GAP_S = 0.4, LOAD_PAGES * PAGE_S / 3  # between requests, on average
VICTIM, FLOOD = 1, 2
FLOOD_SHARE, BURST_S = 0.05, 0.1  # of the disk's rate
LOADS = 40
CASES = {"alone": (False, False), "flood": (True, False), "flood, credits": (True, True)}

Opened = tuple[Cache, Callable[[], int]]
Through = Callable[
    [CacheConfig, BorrowedPool, Backend, VirtualClock], AbstractAsyncContextManager[Opened]
]


@dataclass(slots=True)
class Outcome:
    """What tenant 1 had."""

    pages: int = 0
    asked: int = 0
    seconds: list[float] = field(default_factory=list)  # of each load
    wrong: int = 0  # bytes
    flood_pages: int = 0  # of tenant 2
    waits: int = 0

    @property
    def hit_ratio(self) -> float:
        """Pages that came, of those asked for."""
        return self.pages / self.asked

    @property
    def p99_s(self) -> float:
        """Of its load times."""
        return float(np.quantile(self.seconds, 0.99))


class SlowQueue:
    """A disk that moves one page after the other, first come first served."""

    def __init__(self) -> None:
        self._waiting: list[Request] = []
        self._is_busy = False

    def submit(self, requests: Sequence[Request]) -> None:
        """Take requests in."""
        self._waiting += requests
        if not self._is_busy:
            self._next()

    def withdraw(self, transfer: BatchTransfer) -> list[Request]:
        """Give back what has not begun."""
        mine = [request for request in self._waiting if request.transfer is transfer]
        self._waiting = [request for request in self._waiting if request.transfer is not transfer]
        return mine

    def stop(self) -> list[Request]:
        """Give back all that has not begun."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def _next(self) -> None:
        self._is_busy = bool(self._waiting)
        if self._waiting:
            request = self._waiting.pop(0)
            asyncio.get_running_loop().call_later(PAGE_S, self._end, request)

    def _end(self, request: Any) -> None:
        request.transfer.settle(request, request.run())
        self._next()


class Engine:
    """Serves both tenants; what a page holds follows from its key."""

    def __init__(self, cache: Cache, pool: OwnedPool, clock: VirtualClock) -> None:
        self.cache, self.clock, self.outcome = cache, clock, Outcome()
        self._pool = pool
        self._words = payload.words_of(pool)

    async def store(self, prompt: int, tenant: int) -> None:
        """Compute a prompt and store it."""
        match = await self.cache.match(tokens_of(prompt), tenant=tenant)
        slots = self._pool.acquire(LOAD_PAGES)
        try:
            payload.fill(self._words, slots, payload.seeds(match.keys))
            async with self.cache.store(match, slots) as store:
                pass
            await store.written
        finally:
            self._pool.release(slots)

    async def load(self, prompt: int, tenant: int) -> None:
        """Load a prompt, by a deadline, and look at its bytes."""
        match = await self.cache.match(tokens_of(prompt), tenant=tenant)
        slots = self._pool.acquire(match.pages)
        begun_s = self.clock.now_s()
        try:
            deadline_s = LOAD_PAGES * PAGE_S + SLACK_S
            with self.cache.load(match, slots, deadline_s=deadline_s) as load:
                loaded = await load
                self._note(tenant, match.keys, loaded.slots, self.clock.now_s() - begun_s)
            await load.released
        finally:
            self._pool.release(slots)

    def _note(self, tenant: int, keys: KeyArray, slots: SlotArray, seconds: float) -> None:
        seeds = payload.seeds(keys[: len(slots)])
        self.outcome.wrong += payload.count_wrong_bytes(self._words, slots, seeds)
        if tenant == FLOOD:
            self.outcome.flood_pages += len(slots)
        else:
            self.outcome.pages += len(slots)
            self.outcome.asked += LOAD_PAGES
            self.outcome.seconds.append(seconds)


def tokens_of(prompt: int) -> NDArray[np.uint32]:
    """A prompt that shares nothing with others."""
    return np.arange(LOAD_PAGES * PAGE_TOKENS, dtype=np.uint32) + np.uint32(prompt << 16)


def main() -> None:
    arguments = _common.parser(__doc__).parse_args()
    warm()
    jit.warm()
    rows, promises = [], []
    for through in (in_process, on_a_node):
        outcomes = [simulate(*case, through=through) for case in CASES.values()]
        where = through.__name__.replace("_", " ")
        rows += [
            {"where": where, "case": name, **figures(outcome)}
            for name, outcome in zip(CASES, outcomes, strict=True)
        ]
        promises += claims(where, outcomes)
    _common.write(arguments.json, rows, promises, seed=0, loads=LOADS)


def figures(outcome: Outcome) -> dict[str, Any]:
    """Of one run."""
    return {
        "hit_ratio": round(outcome.hit_ratio, 4),
        "load_p50_ms": round(1e3 * float(np.median(outcome.seconds)), 2),
        "load_p99_ms": round(1e3 * outcome.p99_s, 2),
        "flood_pages": outcome.flood_pages,
        "credit_waits": outcome.waits,
        "wrong_bytes": outcome.wrong,
    }


def claims(where: str, outcomes: Sequence[Outcome]) -> list[_common.Claim]:
    """What credits promise, and that without them it does not hold."""
    at_most, at_least = _common.Claim.at_most, _common.Claim.at_least
    alone, *flooded = outcomes
    hits = [100 * (1 - it.hit_ratio / alone.hit_ratio) for it in flooded]
    waits = [100 * (it.p99_s / alone.p99_s - 1) for it in flooded]
    worse = max(hits[0] / 5, waits[0] / 10)
    wrong = sum(it.wrong for it in outcomes)
    return [
        at_most(f"{where}: hit ratio that a flood costs another, with credits", hits[1], 5, "%"),
        at_most(f"{where}: p99 load time that it costs, with credits", waits[1], 10, "%"),
        at_least(f"{where}: the worse of both without credits", worse, 1, "bounds"),
        at_most(f"{where}: wrong bytes", wrong, 0, "bytes"),
    ]


def simulate(
    has_flood: bool,  # noqa: FBT001 -- a table of cases
    has_credits: bool,  # noqa: FBT001
    *,
    through: Through | None = None,
    seed: int = 0,
    loads: int = LOADS,
) -> Outcome:
    """One run; ``through``: in one process, if left out."""
    clock = VirtualClock()
    work = _run(clock, through or in_process, config_of(has_credits), has_flood, seed, loads)
    return run_virtual(work, clock, loop=VirtualSocketLoop)


async def _run(
    clock: VirtualClock,
    through: Through,
    config: CacheConfig,
    has_flood: bool,  # noqa: FBT001 -- as simulate
    seed: int,
    loads: int,
) -> Outcome:
    layout = Layout(LayoutKind.LAYER_FIRST, GROUP, PAGE_TOKENS, 64 * LOAD_PAGES)
    pool = OwnedPool(layout, name="engine")
    backend = MemoryBackend(MemoryDisk(PAGE_NBYTES, DISK_PAGES), clock=clock)
    backend._queue = SlowQueue()  # type: ignore[assignment]  # noqa: SLF001 -- a slower disk
    memory = BorrowedPool(PagedMemory.of_layout(pool.buffer, layout))
    async with through(config, memory, backend, clock) as (cache, waits):
        engine = Engine(cache, pool, clock)
        for prompt in range(2 * PROMPTS):  # even ones are tenant 1's
            await engine.store(prompt, VICTIM + prompt % 2)
        await _serve(engine, has_flood, seed, loads)
        engine.outcome.waits = waits()
    return engine.outcome


def config_of(has_credits: bool) -> CacheConfig:  # noqa: FBT001 -- as simulate
    """Of cache and node alike."""
    return CacheConfig(
        IdentityConfig(model="m", dtype="bytes"),
        TiersConfig(HostConfig(HOST_PAGES * PAGE_NBYTES)),
        PlannerConfig(recompute_s_per_token=TOKEN_S),
        features=FeaturesConfig(admit=False),
        tenants=TenantsConfig(
            shares={str(VICTIM): 0.5, str(FLOOD): 0.5},
            bytes_per_s={str(FLOOD): FLOOD_SHARE * DISK_RATE} if has_credits else {},
            burst_s=BURST_S,
        ),
        node=NodeConfig(PAGE_TOKENS, layers=1, heads=1, head_dim=64, itemsize=2, group="kv"),
    )


@asynccontextmanager
async def in_process(
    config: CacheConfig, memory: BorrowedPool, backend: Backend, clock: VirtualClock
) -> AsyncIterator[Opened]:
    """A cache, and how often a chunk waited for credits."""
    cache = await Cache.open(config, memory, group=GROUP, backend=backend, clock=clock)
    async with cache:
        yield cache, lambda: cache.stats().traffic.credit_waits


@asynccontextmanager
async def on_a_node(
    config: CacheConfig, memory: BorrowedPool, backend: Backend, clock: VirtualClock
) -> AsyncIterator[Opened]:
    """The same of an engine and its node, which talk over a socket on one loop."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        async with serve(config, path, backend=backend, clock=clock) as node:
            cache = await NodeCache.attach(path, config, memory, group=GROUP, clock=clock)
            async with cache:
                yield cache, lambda: node.host.credit_waits


async def _serve(engine: Engine, has_flood: bool, seed: int, loads: int) -> None:  # noqa: FBT001
    random = np.random.default_rng([seed, VICTIM])
    async with asyncio.TaskGroup() as group:
        flood = group.create_task(_flood(engine, seed)) if has_flood else None
        async with asyncio.TaskGroup() as victims:
            for gap_s, prompt in _arrivals(random, GAP_S, loads):
                await asyncio.sleep(gap_s)
                victims.create_task(engine.load(2 * prompt, VICTIM))
        if flood is not None:
            flood.cancel()


async def _flood(engine: Engine, seed: int) -> None:
    random = np.random.default_rng([seed, FLOOD])
    async with asyncio.TaskGroup() as group:
        for number, (gap_s, prompt) in enumerate(_arrivals(random, FLOOD_GAP_S, 1 << 30)):
            await asyncio.sleep(gap_s)
            if number % 8 == 0:
                group.create_task(engine.store(1000 + number, FLOOD))
            group.create_task(engine.load(2 * prompt + 1, FLOOD))


def _arrivals(random: np.random.Generator, gap_s: float, count: int) -> Iterator[tuple[float, int]]:
    for _ in range(count):
        yield gap_s * float(random.uniform(0.75, 1.25)), int(random.integers(PROMPTS))


if __name__ == "__main__":
    main()
