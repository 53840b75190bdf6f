# SPDX-License-Identifier: Apache-2.0
"""Checks of a whole cache over a CUDA pool, with tiers on the host and below it, in memory.

An engine computes on a stream of its own, by torch's indexing alone: what it finds in each layer,
once its stream has waited for it, is compared with what was stored. On a CPU the same way is taken
between CPU pools, without streams: by our kernels in Triton's interpreter. The planner's code that
is called is compiled first: most of a minute on a machine that has none of it in its cache.
"""

import asyncio
import contextlib
import importlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _gpu_pools import Machine, Skipped, same

from bodocache.kernels import CopyPath, check
from bodocache.kernels.reference.views import page_views
from bodocache.layout import Group, Layout, LayoutKind
from bodocache.pages import Reason, Tier

NEEDED = ("numba", "pydantic")  # beyond what kernels need
CANCELS_S = (0.0, 1e-4, 3e-4, 1e-3, 2e-3, 4e-3)
CANARY = 0xA5
WAIT_S = 20.0


@dataclass(slots=True)
class House:
    """A cache, its engine's pool and stream, and the bytes of the pages that it computes."""

    machine: Machine
    cache: Any
    pool: Any
    group: Group
    views: list[torch.Tensor]  # of the pool, one for each layer's K and V
    truth: list[torch.Tensor]  # likewise, of the pages
    stream: Any
    lanes: int = 0

    @property
    def pages(self) -> int:
        """Of one prompt."""
        return len(self.truth[0])

    @property
    def copies(self) -> Any:
        """What moves pages: to say by which path."""
        return self.cache._orchestrator._copies  # noqa: SLF001 -- no door for that

    @property
    def residency(self) -> Any:
        """Where pages lie: to evict them."""
        return self.cache._orchestrator.residency  # noqa: SLF001

    def tokens(self, of: int) -> np.ndarray[Any, Any]:
        """A prompt; two of another number share nothing."""
        count = self.pages * self.pool.layout.page_tokens
        return np.arange(count, dtype=np.uint32) + np.uint32(of << 20)

    def take(self, path: CopyPath | None) -> None:
        """Let layers go by ``path`` from now on."""
        self.copies.path = path
        self.copies._of_layers.clear()  # noqa: SLF001

    def bases(self, layer: int) -> range:
        """Which views are ``layer``'s."""
        return range(layer * self.group.kv, (layer + 1) * self.group.kv)

    def on_stream(self) -> Any:
        """The engine's stream, as the current one."""
        return torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext()

    def compute(self, layer: int, slots: torch.Tensor) -> None:
        """Write ``layer`` of every page, on the engine's stream; it takes a millisecond or so."""
        with self.on_stream():
            if self.machine.real:
                torch.cuda._sleep(1_500_000)  # noqa: SLF001 -- cycles
            for base in self.bases(layer):
                self.views[base][slots] = self.truth[base]

    def read(self, load: Any, slots: torch.Tensor) -> list[torch.Tensor]:
        """Each layer as the engine's stream finds it once it has waited; in a thread."""
        found = []
        for layer in range(self.group.layers):
            load.wait_layer(layer, self.stream, timeout_s=WAIT_S)
            with self.on_stream():
                found += [self.views[base][slots].clone() for base in self.bases(layer)]
        if self.stream:
            self.stream.synchronize()
        return found

    async def store(self, of: int) -> None:
        """Compute a prompt layer by layer and store it so, until it is on disk."""
        match = await self.cache.match(self.tokens(of))
        slots = self.cache.acquire(self.pages)
        where = torch.from_numpy(slots).to(self.machine.device)
        self.machine.wait()
        store = self.cache.store(match, slots, layers=True)
        for layer in range(self.group.layers):
            self.compute(layer, where)
            store.layer_ready(layer, self.stream)
            await asyncio.sleep(0)
        stored = await store
        assert stored.new == self.pages, f"{stored}; expected {self.pages} new pages"
        store.close()
        await store.written

    async def begin(self, of: int) -> Any:
        """A load that is committed at once, of pages that lie on the host, the last on disk."""
        self.residency.empty_device()
        match = await self.cache.match(self.tokens(of))
        assert match.pages == self.pages, f"{match.pages} pages found of {self.pages}"
        load = self.cache.load(match, compute_s=[1e-3] * self.group.layers)
        load.commit()
        return load

    async def leave_on_disk(self, of: int, pages: int) -> None:
        """The last ``pages`` of a prompt lie on disk alone."""
        self.residency.empty_device()
        match = await self.cache.match(self.tokens(of))
        rows = self.residency.leading(match.keys)[-pages:]
        self.residency.drop(rows[::-1], Tier.HOST, Reason.EVICTED)
        tiers = (await self.cache.match(self.tokens(of))).tiers
        assert int((tiers == Tier.DISK).sum()) == pages, f"tiers {tiers.tolist()}"

    async def load(self, of: int) -> None:
        """Load a prompt under an engine that reads it, every byte compared."""
        load = await self.begin(of)
        slots = torch.from_numpy(load.slots.copy()).to(self.machine.device)
        found = await asyncio.to_thread(self.read, load, slots)
        loaded = await load
        assert loaded.pages == self.pages, f"{loaded.pages} of {self.pages} pages were delivered"
        for base, expected in enumerate(self.truth):
            same(found[base], expected)
        load.close()
        await load.released

    def free_slots(self) -> torch.Tensor:
        """Of the device's pool."""
        return torch.from_numpy(self.pool.free_slots()).to(self.machine.device)


@contextlib.asynccontextmanager
async def opened(machine: Machine, *, disk: bool) -> AsyncIterator[House]:
    """A cache; the host has room for all pages of two prompts."""
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise Skipped(f"a cache needs {name} ({error}); pip install {name}") from error
    from bodocache import cache
    from bodocache.clock import RealClock
    from bodocache.config import (
        CacheConfig,
        FeaturesConfig,
        HostConfig,
        IdentityConfig,
        TiersConfig,
    )
    from bodocache.pools import OwnedPool
    from bodocache.testing import MemoryBackend, MemoryDisk

    cache.warm = lambda: None  # compile what is called alone: all of it takes minutes
    group, pages = Group("cache", layers=8, heads=4, head_dim=128, itemsize=2), 256
    if not machine.real:
        group, pages = Group("cache", layers=3, heads=2, head_dim=16, itemsize=2), 12
    layout = Layout(LayoutKind.LAYER_FIRST, group, 16, pages + 8)
    pool = OwnedPool(layout, device=str(machine.device), name="device")
    pool.buffer.fill_(0)
    views = page_views(pool.memory)
    truth = [
        torch.randint(0, 256, (pages, *view.shape[1:]), dtype=torch.uint8, device=machine.device)
        for view in views
    ]
    config = CacheConfig(
        IdentityConfig(model="check", dtype="bytes"),
        TiersConfig(HostConfig(2 * pages * layout.page_nbytes)),
        features=FeaturesConfig(admit=False),
    )
    backend = None
    if disk:
        backend = MemoryBackend(MemoryDisk(layout.page_nbytes, 4 * pages), clock=RealClock())
    host = None if machine.real else as_of_a_gpu(config, pool)
    async with await cache.Cache.open(config, pool, backend=backend, host=host) as it:
        stream = torch.cuda.Stream(machine.device) if machine.real else None
        house = House(machine, it, pool, group, views, truth, stream)
        make = house.copies.make_lane

        def make_lane() -> Any:
            house.lanes += 1
            return make()

        house.copies.make_lane = make_lane
        if not machine.real:  # so few pages would all go before the commit
            link = it._orchestrator.links["host->device"]  # noqa: SLF001
            link.queue._rate = lambda: 1.0  # noqa: SLF001 -- bytes/s: a page at a time
        machine.wait()
        yield house


def as_of_a_gpu(config: Any, pool: Any) -> Any:
    """The host's side of a CPU pool, with copies on the ways that a GPU's take."""
    from bodocache import wiring
    from bodocache.move.copies import Copies, HostSide

    memory = wiring.host_pool(config, wiring.layout_of(pool, None))
    copies = Copies(pool, memory)
    copies.runs_here, copies.streams_layers, copies.pad = False, True, None
    return HostSide(memory, copies)


def paths(machine: Machine) -> tuple[CopyPath | None, ...]:
    """By which layers can go here; None: what is chosen by itself."""
    if machine.real:
        return (CopyPath.SM, CopyPath.COPY_ENGINE, None)
    return (CopyPath.SM,) if check.on_gpu(machine.device) else (None,)


def check_cache_layers(machine: Machine) -> None:
    """Layers stored behind the engine's events, and loaded under its stream: byte for byte."""
    asyncio.run(_layers(machine))


async def _layers(machine: Machine) -> None:
    async with opened(machine, disk=True) as house:
        for of, path in enumerate(paths(machine)):
            house.take(path)
            before = house.lanes
            await house.store(of)
            await house.load(of)
            await house.leave_on_disk(of, house.pages // 3)
            await house.load(of)
            lanes = house.lanes - before
            assert lanes == 3, f"path {path}: {lanes} streams; expected one each time"


def check_cache_cancel(machine: Machine) -> None:
    """Loads closed in flight, sooner and later: nothing is written after ``released``."""
    asyncio.run(_cancel(machine))


async def _cancel(machine: Machine) -> None:
    async with opened(machine, disk=False) as house:
        house.take(paths(machine)[0])
        await house.store(0)
        await house.load(0)
        for after_s in CANCELS_S:
            load = await house.begin(0)
            await load.layer(0, house.stream)
            await asyncio.sleep(after_s)
            load.close()
            await load.released
            free = house.free_slots()
            for view in house.views:
                view[free] = CANARY
            machine.wait()
            await asyncio.sleep(0.02)
            machine.wait()
            for view in house.views:
                assert bool((view[free] == CANARY).all()), (
                    f"bytes came {after_s} s and a close later"
                )
        await house.load(0)
