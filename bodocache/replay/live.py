# SPDX-License-Identifier: Apache-2.0
"""Replay with real bytes: an engine that computes pages, and a cache that moves them.

Several requests are in flight, begun in trace order. Each loads what the cache holds of its prompt,
checks every byte, computes the rest (bytes that follow from the keys) and stores it.
"""

import asyncio
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from bodocache.cache import Cache, CacheStats
from bodocache.config import CacheConfig, parse
from bodocache.errors import BodoCacheError, ConfigError, TierFull
from bodocache.io.backend import Extent
from bodocache.io.config import BLOCK_NBYTES, CHUNK_NBYTES, QUEUE_DEPTH
from bodocache.io.header import HEADER_NBYTES, SUPERBLOCK_NBYTES
from bodocache.layout import Group, Layout, LayoutKind
from bodocache.match import Match
from bodocache.pools import OwnedPool
from bodocache.replay import payload
from bodocache.replay.plain_reader import READ_AT_MOST_NBYTES, PlainReader, Rate, Read
from bodocache.replay.trace import Trace

T = TypeVar("T")

PAGE_UNIT_NBYTES = 4096  # 4 layers x K and V x 8 tokens x 1 head x 32 values x 2 bytes
DEVICE_SHARE, HOST_SHARE, DISK_SHARE = 0.05, 0.20, 0.50  # of the distinct pages
LONGEST_REQUESTS = 4
PAGE_TOKENS = 8
TOKENS_SCALE = 512 / PAGE_TOKENS  # tokens that a page of a trace stands for, over those it has here
RECOMPUTE_S_PER_TOKEN, RECOMPUTE_SLOPE_S = 20e-6, 1e-9  # an 8B-class model on one Hopper GPU
HOST_BACKLOG = 4 / 3  # a quarter of the host pool may wait for the disk


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """How to replay. Pages left at None follow from the trace."""

    directory: Path
    page_nbytes: int = 64 << 10
    in_flight: int = LONGEST_REQUESTS
    device_pages: int | None = None
    host_pages: int | None = None
    disk_pages: int | None = None
    deadline_s: float = math.inf
    write_through: bool = False  # to disk, whatever admission says
    timeline: Path | None = None  # where the newest requests are written at the end
    metrics_port: int = 0  # of loopback, where metrics are exported meanwhile; 0: nowhere

    def __post_init__(self) -> None:
        if self.page_nbytes < 1 or self.page_nbytes % PAGE_UNIT_NBYTES:
            raise ConfigError(
                f"page-bytes = {self.page_nbytes}: expected a multiple of {PAGE_UNIT_NBYTES}"
            )
        if self.in_flight < 1:
            raise ConfigError(f"in-flight = {self.in_flight}: expected at least 1")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Pages each tier holds."""

    device: int
    host: int
    disk: int

    @property
    def total(self) -> int:
        """Pages of all tiers together: what the optimum is given."""
        return self.device + self.host + self.disk


@dataclass(slots=True)
class LiveRun:
    """What one replay did; the summary is made of it."""

    sizes: Sizes
    page_nbytes: int
    recovered: NDArray[np.bool_]  # per distinct page: whether it was on disk at the start
    hits: NDArray[np.int64]  # per request
    load_s: NDArray[np.float64]  # per request: from call to landed
    extents: list[Extent] = field(default_factory=list)
    plain_reads: Rate = field(default_factory=lambda: Rate(0, 0.0, 0.0))  # of the same extents
    wrong_bytes: int = 0
    seconds: float = 0.0
    stats: CacheStats | None = None

    @property
    def host_nbytes(self) -> int:
        """Bytes of the host tier."""
        return self.sizes.host * self.page_nbytes


def sizes_for(trace: Trace, options: LiveOptions) -> Sizes:
    """Pages per tier: shares of the distinct pages, but room for the longest requests in flight."""
    lengths = np.sort(np.diff(trace.offsets))[::-1]
    longest = int(lengths[: max(LONGEST_REQUESTS, options.in_flight)].sum())
    distinct = trace.distinct
    return Sizes(
        device=options.device_pages or max(math.ceil(DEVICE_SHARE * distinct), longest),
        host=options.host_pages
        or max(math.ceil(HOST_SHARE * distinct), math.ceil(HOST_BACKLOG * longest)),
        disk=options.disk_pages or max(1, math.ceil(DISK_SHARE * distinct)),
    )


async def replay_live(
    trace: Trace, options: LiveOptions, on_request: Callable[[int], None] = lambda _: None
) -> LiveRun:
    """Replay ``trace``; ``on_request`` is told the number of requests done.

    Raises:
        ConfigError: the tiers do not fit this machine.
        BackendLocked: another process uses the directory.
    """
    sizes = sizes_for(trace, options)
    pool = _device_pool(sizes.device, options.page_nbytes)
    requests = trace.num_requests
    run = LiveRun(
        *(sizes, options.page_nbytes, np.zeros(trace.distinct, np.bool_)),
        *(np.zeros(requests, np.int64), np.zeros(requests)),
    )
    async with await Cache.open(
        _config(trace, options, sizes), pool, on_extent=run.extents.append
    ) as cache:
        run.recovered = await cache.holds_engine_keys(_engine_keys(np.arange(trace.distinct)))
        with (
            ThreadPoolExecutor(1, "engine") as engine,
            PlainReader(
                QUEUE_DEPTH,
                memory_nbytes=run.host_nbytes,
                largest=max(CHUNK_NBYTES, options.page_nbytes),
            ) as plain,
        ):
            await _Engine(trace, cache, pool, options, run, engine, plain).replay(on_request)
        run.plain_reads = plain.rate
        run.stats = cache.stats()
        if options.timeline is not None:
            cache.timeline().write(options.timeline)
    return run


class _Engine:
    """Stands for an engine: computes pages on one thread, as a GPU would on one device."""

    def __init__(
        self,
        trace: Trace,
        cache: Cache,
        pool: OwnedPool,
        options: LiveOptions,
        run: LiveRun,
        executor: ThreadPoolExecutor,
        plain: PlainReader,
    ) -> None:
        self._trace, self._cache, self._options, self._run = trace, cache, options, run
        self._words = payload.words_of(pool)
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self._done = 0
        self._plain = plain
        self._compared = 0  # extents that the plain reader has seen
        self._loading = 0  # loads under way
        self._active = 0  # requests under way
        self._waiting = 0  # of those, how many wait for device slots

    async def replay(self, on_request: Callable[[int], None]) -> None:
        """Serve every request, ``in_flight`` at a time."""
        waiting = iter(range(self._trace.num_requests))
        started_s = self._loop.time()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._options.in_flight):
                    group.create_task(self._serve(waiting, on_request))
        except* BodoCacheError as errors:
            raise errors.exceptions[0] from None  # the others follow from the first
        self._read_again()
        self._run.seconds = self._loop.time() - started_s - self._plain.rate.seconds

    async def _serve(self, waiting: Iterator[int], on_request: Callable[[int], None]) -> None:
        for request in waiting:
            self._active += 1
            try:
                await self._one(request)
            finally:
                self._active -= 1
            self._done += 1
            on_request(self._done)

    async def _one(self, request: int) -> None:
        first, last = self._trace.offsets[request : request + 2]
        match = await self._cache.match_engine_keys(_engine_keys(self._trace.pages[first:last]))
        begun_s = self._loop.time()
        self._loading += 1
        with self._cache.load(match, deadline_s=self._options.deadline_s) as load:
            with self._cache.hold_writes():  # none slips in before the plain reader
                loaded = await load
                self._run.load_s[request] = self._loop.time() - begun_s
                await load.released
                self._loading -= 1
                self._read_again()
            self._run.hits[request] = loaded.pages
            await self._check(match, loaded.slots)
            await self._compute(match, loaded.pages)

    def _read_again(self) -> None:
        """Read what loads read since the last time, with the plain reader, if no load is under way.

        No write has begun since the load did. All but the engine stands still meanwhile.
        """
        if self._loading or self._plain.rate.nbytes >= READ_AT_MOST_NBYTES:
            return
        reads = [e for e in self._run.extents[self._compared :] if not e.writes]
        self._compared = len(self._run.extents)
        reads.sort(key=lambda extent: extent.batch)
        try:
            for _, load in groupby(reads, key=lambda extent: extent.batch):
                self._plain.read([Read(e.path, e.offset, e.nbytes) for e in load])
        except OSError as error:
            raise BodoCacheError(f"plain reader: {error}") from error

    async def _check(self, match: Match, slots: NDArray[np.int64]) -> None:
        if len(slots):
            seeds = payload.seeds(match.keys[: len(slots)])
            self._run.wrong_bytes += await self._on_engine(
                payload.count_wrong_bytes, self._words, slots, seeds
            )

    async def _compute(self, match: Match, have: int) -> None:
        missing = match.keys[have:]
        if not len(missing):
            return
        slots = await self._room_for(len(missing))
        if slots is None:
            return
        await self._on_engine(payload.fill, self._words, slots, payload.seeds(missing))
        async with self._cache.store(match, slots):
            pass  # a real engine would decode here, reading its pages

    async def _room_for(self, count: int) -> NDArray[np.int64] | None:
        """Device slots to compute in. Two requests with the same pages hold them twice for a while:
        one waits for the other, and where all wait, this one's pages are not stored.
        """
        self._waiting += 1
        try:
            while True:
                try:
                    return self._cache.acquire(count)
                except TierFull:
                    if self._active == 1:
                        raise
                    if self._waiting == self._active:
                        return None
                await asyncio.sleep(0.001)
        finally:
            self._waiting -= 1

    async def _on_engine(self, work: Callable[..., T], *arguments: NDArray[np.generic]) -> T:
        return await self._loop.run_in_executor(self._executor, work, *arguments)


def _engine_keys(pages: NDArray[np.int64]) -> list[bytes]:
    """The keys of an engine whose page numbers are already chained, as a trace's are."""
    packed = pages.astype("<i8").tobytes()
    return [packed[i : i + 8] for i in range(0, len(packed), 8)]


def _device_pool(num_pages: int, page_nbytes: int) -> OwnedPool:
    group = Group("kv", layers=4, heads=page_nbytes // PAGE_UNIT_NBYTES, head_dim=32, itemsize=2)
    layout = Layout(LayoutKind.LAYER_FIRST, group, page_tokens=PAGE_TOKENS, num_pages=num_pages)
    return OwnedPool(layout, name="device")


def _config(trace: Trace, options: LiveOptions, sizes: Sizes) -> CacheConfig:
    values = {
        "identity": {"model": f"replay of {trace.name}", "dtype": "bytes"},
        "tiers": {
            "host": {"capacity_bytes": sizes.host * options.page_nbytes},
            "disk": {
                "directories": [options.directory],
                "capacity_bytes": _slab_nbytes(sizes.disk, options.page_nbytes),
            },
        },
        "planner": {
            # A page of a trace stands for 512 tokens, whatever its bytes are here.
            "recompute_s_per_token": RECOMPUTE_S_PER_TOKEN * TOKENS_SCALE,
            "recompute_slope_s": RECOMPUTE_SLOPE_S * TOKENS_SCALE**2,
        },
        "features": {"admit": not options.write_through},
        "metrics": {"port": options.metrics_port},
    }
    return parse(CacheConfig, values, source="replay")


def _slab_nbytes(pages: int, page_nbytes: int) -> int:
    """What the slab needs on disk for ``pages`` pages, headers included."""
    frame_nbytes = -(-page_nbytes // BLOCK_NBYTES) * BLOCK_NBYTES
    return SUPERBLOCK_NBYTES + pages * (frame_nbytes + HEADER_NBYTES)
