# SPDX-License-Identifier: Apache-2.0
"""A cache on tiny pools, an engine that computes pages from their keys, and what must hold after.

A page's bytes follow from its key alone, so a wrong byte needs no record of what was stored.
"""

import asyncio
import threading
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

import numpy as np
import pytest

from bodocache import jit
from bodocache.cache import Cache
from bodocache.clock import RealClock
from bodocache.config import (
    CacheConfig,
    FeaturesConfig,
    HintsConfig,
    HostConfig,
    IdentityConfig,
    TenantsConfig,
    TiersConfig,
)
from bodocache.digest import digest_rows, seeded
from bodocache.errors import BackendError
from bodocache.kernels.host import compiled as host_path
from bodocache.kernels.lane import HostLane
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory
from bodocache.match import Match
from bodocache.move.copies import Copies, HostSide
from bodocache.move.ticket import Priority
from bodocache.pages import NOWHERE, Tier
from bodocache.pools import BorrowedPool, OwnedPool
from bodocache.replay import payload
from bodocache.testing import MemoryBackend, MemoryDisk
from bodocache.wiring import host_pool, layout_of

host_path()
jit.warm()  # here, not in a test: a cold compile is not part of any test's time

GROUP = Group("kv", layers=4, heads=1, head_dim=32, itemsize=2)
PAGE_TOKENS = 8
PAGE_NBYTES = GROUP.page_nbytes(PAGE_TOKENS)
COLUMNS = {Tier.DEVICE: "device_slot", Tier.HOST: "host_slot", Tier.DISK: "frame"}


class Valve:
    """A backend's queue that a test shuts: what came then is in flight, and cannot be withdrawn."""

    def __init__(self):
        self.is_shut = False
        self.in_flight = []

    def submit(self, requests):
        self.in_flight += requests
        if not self.is_shut:
            asyncio.get_running_loop().call_soon(self.flow)

    def withdraw(self, _):
        return []

    def stop(self):
        return []

    def flow(self):
        """Do all that is in flight."""
        while self.in_flight:
            self.flow_one()

    def flow_one(self):
        request = self.in_flight.pop(0)
        request.transfer.settle(request, request.run())

    def open(self):
        self.is_shut = False
        self.flow()


class SlowLane(HostLane):
    """A stream of the device that gets on when a test says so; ``steps`` is what it was given."""

    def __init__(self, *, is_shut):
        self.is_shut, self.steps, self.done, self.refuses_from = is_shut, [], 0, None

    def submit(self, copy, _path, source_slots, destination_slots):
        if self.refuses_from is not None and len(self.steps) >= self.refuses_from:
            raise BackendError("cuLaunchKernel: refused")
        self._give(lambda: copy.copy_on_host(source_slots, destination_slots))

    def run(self, work):
        self._give(work)

    def follow(self, event):
        self._give(event)

    def mark(self):
        return Passed(self, len(self.steps))

    def make_wait(self, stream, mark):
        stream.waits.append(mark)

    def drain(self):
        self.flow(len(self.steps))

    def _give(self, step):
        self.steps.append(step)
        if not self.is_shut:
            self.drain()

    def flow(self, count):
        """Do the next ``count`` steps."""
        for step in self.steps[self.done : self.done + count]:
            step()
            self.done += 1


class Passed:
    """A point in the work of a lane."""

    def __init__(self, lane, place):
        self._lane, self._place = lane, place

    @property
    def passed(self):
        return self._lane.done >= self._place


class EngineStream:
    """A stream of the engine's: notes what it was made to wait for; its events are logged."""

    def __init__(self):
        self.waits, self.passed = [], []

    def record_event(self):
        number = len(self.passed)
        self.passed.append(False)
        return lambda: self.passed.__setitem__(number, True)


class StreamedCopies(Copies):
    """Copies between CPU pools on the ways that a GPU's take: in the thread, and on lanes."""

    def __init__(self, device, host):
        super().__init__(device, host)
        self.runs_here, self.streams_layers, self.pad = False, True, None
        self.lanes, self.is_shut, self.refuses_from = [], False, None

    def make_lane(self):
        lane = SlowLane(is_shut=self.is_shut)
        lane.refuses_from = self.refuses_from
        self.lanes.append(lane)
        return lane


class Standing:
    """Work that fills the link and does not end."""

    left_nbytes = 1 << 30
    has_begun = False

    def begin(self, _):
        begun, self.has_begun = self.has_begun, True
        return 0 if begun else self.left_nbytes

    def withdraw(self):
        pass


class House:
    """One cache with its pools and disk, and the engine it serves."""

    def __init__(
        self,
        device,
        host,
        disk,
        wrap,
        *,
        clock=None,
        hints=None,
        shares=None,
        tenants=None,
        features=None,
        streams=False,
    ):
        self.streams = streams
        self.clock = clock or RealClock()
        self.hints = hints or HintsConfig()
        self.tenants = tenants or TenantsConfig(shares or {})
        self.features = features or FeaturesConfig()
        self.engine_pool = OwnedPool(
            Layout(LayoutKind.LAYER_FIRST, GROUP, PAGE_TOKENS, device), name="device"
        )
        self.pool = self.engine_pool
        self.words = payload.words_of(self.engine_pool)
        self.disk = MemoryDisk(PAGE_NBYTES, disk) if isinstance(disk, int) else disk  # or kept
        self.disk = self.disk if disk else None
        self.valve = Valve()
        self.backend = wrap(self.memory_backend()) if disk else None
        self.host_pages = host

    def memory_backend(self):
        backend = MemoryBackend(self.disk, clock=RealClock())
        backend._queue = self.valve
        return backend

    def borrow(self):
        """Let the engine give out the slots."""
        memory = PagedMemory.of_layout(self.engine_pool.buffer, self.engine_pool.layout)
        self.pool = BorrowedPool(memory)

    async def open(self, admit):
        config = CacheConfig(
            IdentityConfig(model="m", dtype="bytes"),
            TiersConfig(HostConfig(self.host_pages * PAGE_NBYTES)),
            features=replace(self.features, admit=admit),
            hints=self.hints,
            tenants=self.tenants,
        )
        host = None
        if self.streams:
            pool = host_pool(config, layout_of(self.pool, GROUP))
            host = HostSide(pool, StreamedCopies(self.pool, pool))
        self.cache = await Cache.open(
            config, self.pool, group=GROUP, backend=self.backend, clock=self.clock, host=host
        )
        self.orchestrator = self.cache._orchestrator
        self.residency = self.orchestrator.residency
        self.host = self.residency.host

    # What an engine does

    def slots(self, count, tenant=0):
        """Device slots, from whoever gives them out."""
        if self.pool is self.engine_pool:
            return self.cache.acquire(count, tenant=tenant)
        return self.engine_pool.acquire(count)

    async def compute(self, tokens, have=0):
        """Begin to store what of ``tokens``, or of a match, is behind the first ``have`` pages."""
        match = tokens if isinstance(tokens, Match) else await self.cache.match(tokens)
        missing = match.keys[have:]
        slots = self.slots(len(missing), match.said.tenant)
        self.fill(slots, missing)
        return self.cache.store(match, slots)

    def fill(self, slots, keys):
        """Compute the pages of ``keys`` into device ``slots``."""
        payload.fill(self.words, slots, payload.seeds(keys))

    async def put(self, tokens):
        """Compute and store all of ``tokens``, until it is on disk; what became of it."""
        store = await self.compute(tokens)
        stored = await store
        store.close()
        await store.written
        return stored

    async def get(self, tokens, **options):
        """Load ``tokens``, compare every byte, close; what was delivered."""
        match = await self.cache.match(tokens)
        with self.cache.load(match, **options) as load:
            loaded = await load
            assert self.wrong_bytes(match.keys, loaded) == 0
        await load.released
        return loaded

    async def serve(self, tokens, **said):
        """One request as an engine makes it; how many pages came from the cache."""
        match = await self.cache.match(tokens, **said)
        with self.cache.load(match) as load:
            loaded = await load
            assert self.wrong_bytes(match.keys, loaded) == 0
            store = await self.compute(match, have=loaded.pages)
        await store
        store.close()
        await store.written
        return loaded.pages

    async def crowd_out(self, prompt, pages=4, rounds=8):
        """Others use every tier more than it holds, twice, so that they are hotter."""
        for of in range(50, 50 + rounds):
            for _ in range(2):
                await self.serve(prompt(pages, of=of))

    async def pages_of(self, tokens):
        """How many leading pages of ``tokens`` can be restored."""
        return (await self.cache.match(tokens)).pages

    async def begin(self, tokens, **options):
        """A load on its way."""
        return self.cache.load(await self.cache.match(tokens), **options)

    @contextmanager
    def busy_disk(self):
        """Inside, a load that never moves has its turn on the disk."""
        with self.busy("host->disk"):
            yield

    @contextmanager
    def busy(self, link):
        """The same on any link."""
        queue = self.orchestrator._links[link].queue
        ticket = queue.enter(Standing(), Priority.LOAD, deadline_s=0.0)
        queue.start(ticket)
        try:
            yield
        finally:
            queue.done(ticket, Standing.left_nbytes)
            queue.leave(ticket)

    def wrong_bytes(self, keys, loaded):
        return payload.count_wrong_bytes(
            self.words, loaded.slots, payload.seeds(keys[: loaded.pages])
        )

    def leave_on(self, tier):
        """Evict all that may go from every tier above ``tier``."""
        for faster in (Tier.DEVICE, Tier.HOST)[:tier]:
            self.residency.evict(faster, 1 << 12)

    async def tiers(self, tokens):
        return (await self.cache.match(tokens)).tiers.tolist()

    # What must hold when nothing is under way

    def check(self, *, failures=0):
        self.check_idle(failures)
        for tier in COLUMNS if self.pool is self.engine_pool else (Tier.HOST, Tier.DISK):
            if tier is not Tier.DISK or self.disk is not None:
                self.check_tier(tier)
        self.check_family()

    def check_idle(self, failures):
        orchestrator, records = self.orchestrator, self.residency.table.records
        assert records["pins"].sum() == 0
        assert (self.pool.leased, self.host.leased) == (0, 0)
        assert not orchestrator._loader._live
        assert not orchestrator._storer._live
        assert {link.in_flight for link in orchestrator._links.values()} == {0}
        assert orchestrator._nursery.failures == failures
        promises = self.residency._promises
        assert promises is None or not promises.pages.any()

    def check_tier(self, tier):
        """Each slot or frame that is taken holds one page, whose bytes are right."""
        table = self.residency.table
        rows = np.flatnonzero(table.records["tiers"] & tier.bit)
        places = table.records[COLUMNS[tier]]
        taken = {
            Tier.DEVICE: lambda: self.pool.num_pages - self.engine_pool.free,
            Tier.HOST: lambda: self.host.num_pages - self.host.free,
            Tier.DISK: lambda: self.backend.usage.used_frames,
        }
        assert len(set(places[rows].tolist())) == len(rows) == taken[tier](), tier
        assert (np.delete(places, rows) == NOWHERE)[: table._used - len(rows)].all()
        assert (self.residency.index.find(table.keys[rows]) == rows).all()
        assert self.digests_hold(tier, rows)

    def digests_hold(self, tier, rows):
        table = self.residency.table
        places = table.records[COLUMNS[tier]][rows].astype(np.int64)
        if tier is Tier.DEVICE:
            seeds = payload.seeds(table.keys[rows])
            return payload.count_wrong_bytes(self.words, places, seeds) == 0
        pages = self.host.rows if tier is Tier.HOST else self.disk.pages
        return (seeded(digest_rows(pages, places), table.keys[rows]) == table.digests[rows]).all()

    def check_family(self):
        """Counts of children are what a recount gives."""
        records = self.residency.table.records
        rows = np.flatnonzero(records["tiers"])
        parents = records["parent"][rows]
        rows, parents = rows[parents != NOWHERE], parents[parents != NOWHERE]
        descended = np.bincount(parents, minlength=len(records))
        assert (records["descended"] == descended).all()


@pytest.fixture
def another_house():
    """The same for several in one loop: what each leaves behind is not looked at."""

    @asynccontextmanager
    async def opened(**options):
        it = House(8, 8, 32, lambda backend: backend, **options)
        await it.open(admit=False)
        try:
            yield it
        finally:
            it.valve.open()
            await it.cache.close()

    return opened


@pytest.fixture
def house():
    """``async with house(device=8, ...) as it``: opened, closed at the end, nothing left behind."""

    @asynccontextmanager
    async def opened(
        *,
        device=8,
        host=8,
        disk=32,
        admit=False,
        wrap=lambda backend: backend,
        borrowed=False,
        failures=0,
        **options,
    ):
        it = House(device, host, disk, wrap, **options)
        if borrowed:
            it.borrow()
        threads = set(threading.enumerate())
        await it.open(admit)
        try:
            yield it
        finally:
            it.valve.open()  # a test that failed ends, too
        await it.cache.close()
        it.check(failures=failures)
        assert {t for t in set(threading.enumerate()) - threads if "asyncio" not in t.name} == set()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    return opened


@pytest.fixture
def engine_stream():
    """``engine_stream()``: another stream of the engine's."""
    return EngineStream


@pytest.fixture
def prompt():
    """``prompt(n, of=k)``: n pages of tokens; two with another ``of`` share nothing."""
    return make_prompt


def make_prompt(pages, of=0):
    return np.arange(pages * PAGE_TOKENS, dtype=np.uint32) + np.uint32(of * 100_000)
