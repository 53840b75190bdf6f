# SPDX-License-Identifier: Apache-2.0
"""Everything around simulated engines: pools, links, storage and the cache over them.

Several engines share the cache: to it their devices are one, behind one link as fast as theirs
together (docs/simulate.md says what that leaves out). The cache is told rates that are wrong by up
to ``wrong_by``, as an operator's would be; what it learns from what moves is its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bodocache.cache import Cache
from bodocache.clock import VirtualClock
from bodocache.config import CacheConfig, parse
from bodocache.identity import KeyChain
from bodocache.io.backend import TRANSFER
from bodocache.layout import Layout, LayoutKind
from bodocache.move.copies import HostSide
from bodocache.replay.simulate.job import Job
from bodocache.replay.simulate.profile import Profile
from bodocache.replay.simulate.speed import Speed
from bodocache.replay.trace import Trace
from bodocache.testing.channel import Channel
from bodocache.testing.pace import Pace, Weather
from bodocache.testing.simulated import (
    SimulatedBackend,
    SimulatedCopies,
    SimulatedDisk,
    SimulatedPool,
)

U64Array = NDArray[np.uint64]


def contents(keys: NDArray[np.uint8]) -> U64Array:
    """What the pages of ``keys`` (u8[N, 32]) hold: u64[N, 2], all different."""
    return np.ascontiguousarray(keys[:, 16:]).view("<u8")


@dataclass(slots=True)
class World:
    """The parts of one simulation."""

    profile: Profile
    clock: VirtualClock
    device: SimulatedPool
    host: SimulatedPool
    disk: SimulatedDisk
    down: Channel  # host -> device
    up: Channel  # device -> host
    storage: Channel
    config: CacheConfig
    wrong_pages: int = 0
    backend: SimulatedBackend | None = None  # of the cache that was opened last

    @classmethod
    def build(
        cls,
        profile: Profile,
        clock: VirtualClock,
        seed: int,
        *,
        wrong_by: float,
        write_through: bool = False,
        steps_aside: bool = True,
    ) -> "World":
        """A world in which nothing has happened yet; ``write_through``: admission is off."""
        features = {"admit": not write_through, "aside": steps_aside}
        model, host, storage = profile.model, profile.host, profile.storage
        engines = profile.engines.count
        device_pages = engines * profile.device_pages
        layout = Layout(LayoutKind.LAYER_FIRST, model.group, model.page_tokens, device_pages)
        host_layout = Layout(LayoutKind.PAGE, model.group, model.page_tokens, profile.host_pages)
        return cls(
            profile=profile,
            clock=clock,
            device=SimulatedPool(layout, name="device"),
            host=SimulatedPool(host_layout, name="host"),
            disk=SimulatedDisk(profile.storage_pages),
            down=Channel(
                engines * host.to_device.bytes_per_s,
                latency_s=host.to_device.latency_s,
                pace=Pace(Weather.STEADY, seed + 1),
            ),
            up=Channel(
                engines * host.from_device.bytes_per_s,
                latency_s=host.from_device.latency_s,
                pace=Pace(Weather.STEADY, seed + 2),
            ),
            storage=Channel(
                storage.read.bytes_per_s,
                latency_s=storage.read.latency_s,
                per_piece_s=storage.op_s,
                write_bytes_per_s=storage.write_bytes_per_s,
                pace=Pace(storage.weather, seed),
            ),
            config=_config(profile, seed, wrong_by, features),
        )

    async def open(self) -> Cache:
        """Open a cache over what is there; what an earlier one left on disk is found."""
        backend = SimulatedBackend(
            self.disk,
            self.profile.model.page_nbytes,
            channel=self.storage,
            clock=self.clock,
            op_nbytes=self.profile.storage.op_bytes,
            onward=self.down,
        )
        self.backend = backend
        copies = SimulatedCopies(self.device, self.host, down=self.down, up=self.up)
        return await Cache.open(
            self.config,
            self.device,
            backend=backend,
            clock=self.clock,
            host=HostSide(self.host, copies),
        )

    def fill(self, job: Job) -> None:
        """Compute the pages that ``job`` did not get."""
        assert job.match is not None
        missing = job.match.keys[len(job.match.keys) - len(job.slots) :]
        self.device.words[job.slots] = contents(missing)

    def check(self, job: Job) -> None:
        """Compare what ``job`` got with what was stored."""
        pages = job.have // self.profile.model.page_tokens
        if job.load is None or not pages:
            return
        assert job.match is not None
        slots = job.load.slots[:pages]
        wrong = (self.device.words[slots] != contents(job.match.keys[:pages])).any(axis=1)
        self.wrong_pages += int(wrong.sum())

    def stock(self, chain: KeyChain, trace: Trace, first: int) -> int:
        """Put on disk what the requests before ``first`` would have left there; returns the pages.

        The pages touched last, as many as it holds: a page is touched with all before it, so none
        lies there without its prefix.
        """
        touched = trace.pages[: trace.offsets[first]]
        newest_first = np.flip(touched)
        pages, index = np.unique(newest_first, return_index=True)
        kept = pages[np.argsort(index, kind="stable")][: len(self.disk.words)]
        kept.sort()  # parents have lower numbers
        parent = trace.parent[kept]
        known = np.isin(parent, kept) | (parent < 0)
        while not known.all():  # ties of one request: its deeper pages may have pushed out others
            kept = kept[known]
            parent = trace.parent[kept]
            known = np.isin(parent, kept) | (parent < 0)
        keys = chain.engine_keys(engine_keys(kept))
        batch = np.zeros(len(kept), TRANSFER)
        batch["key"] = keys
        batch["parent"][parent >= 0] = keys[np.searchsorted(kept, parent[parent >= 0])]
        batch["depth"] = trace.depth[kept]
        words = contents(keys)
        batch["digest"] = words + np.ascontiguousarray(keys[:, :16]).view("<u8")
        frames = np.arange(len(kept))
        self.disk.words[frames] = words
        self.disk.columns.fill(frames, batch, np.ones(len(kept), np.uint64))
        return len(kept)


def engine_keys(pages: Sequence[int] | NDArray[np.int64]) -> list[bytes]:
    """The keys of an engine whose page numbers are already chained, as a trace's are."""
    packed = np.asarray(pages).astype("<i8").tobytes()
    return [packed[i : i + 8] for i in range(0, len(packed), 8)]


def _config(profile: Profile, seed: int, wrong_by: float, features: dict[str, bool]) -> CacheConfig:
    """What the operator says of this world."""
    random = np.random.default_rng([seed, 0xC0F])
    speed, host, storage = Speed.of(profile), profile.host, profile.storage

    def told(value: float) -> float:
        return value * (1.0 + wrong_by * float(random.uniform(-1.0, 1.0)))

    values: dict[str, Any] = {
        "identity": {"model": profile.model.name, "dtype": "simulated"},
        "tiers": {"host": {"capacity_bytes": 1}},  # the pool is given
        "features": features,
        "planner": {
            "recompute_s_per_token": told(speed.token_s),
            "recompute_slope_s": told(speed.slope_s),
            "host_bytes_per_s": told(profile.engines.count * host.to_device.bytes_per_s),
            "disk_bytes_per_s": told(storage.read.bytes_per_s),
            "disk_write_bytes_per_s": told(storage.write_bytes_per_s),
            "disk_latency_s": max(1e-6, storage.read.latency_s),
        },
    }
    return parse(CacheConfig, values, source="simulation")
