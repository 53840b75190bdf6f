# SPDX-License-Identifier: Apache-2.0
"""One small slab, and what a test does to it while it is closed."""

import asyncio
import math
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bodocache import jit
from bodocache.clock import RealClock
from bodocache.digest import digest_rows, seeded
from bodocache.io.backend import Durability, Status
from bodocache.io.config import SlabConfig
from bodocache.io.gds.backend import GdsBackend, GdsConfig
from bodocache.io.header import HEADER, HEADER_NBYTES, SUPERBLOCK_NBYTES, checksums
from bodocache.io.slab import SlabBackend
from bodocache.testing import FakeCuFile, NumberedPages

jit.warm()  # here, not in a test: a cold compile is not part of any test's time

PAGE_NBYTES = 8192
FRAMES = 16


class Bench:
    """A slab directory with its pages; each call opens and closes it, unless it takes a backend."""

    def __init__(self, folder: Path):
        self.config = config_of(folder / "slab", FRAMES)
        self.pages = NumberedPages(PAGE_NBYTES)
        self.payload = self.config.directory / "payload.slab"
        self.headers = self.config.directory / "headers.slab"

    def run(self, scenario, **changes):
        """Run ``scenario(backend)``, with a configuration changed by ``changes``."""

        async def whole():
            backend = await SlabBackend.open(replace(self.config, **changes), clock=RealClock())
            try:
                return await scenario(backend)
            finally:
                await backend.close()

        return asyncio.run(whole())

    async def put(self, backend, numbers, durability=Durability.CACHE):
        buffers = self.pages.buffers(len(numbers))
        self.pages.fill(buffers, numbers)
        batch = self.pages.batch(numbers, backend.reserve(len(numbers), after=-1))
        transfer = backend.put(batch, buffers, deadline_s=math.inf, durability=durability)
        await transfer.drained()
        return batch, transfer

    async def get(self, backend, batch):
        """Statuses and reasons; what landed is compared with what was put."""
        buffers = self.pages.buffers(len(batch))
        transfer = backend.get(batch, buffers, deadline_s=math.inf)
        await transfer.drained()
        for i in np.flatnonzero(transfer.statuses == Status.LANDED).tolist():
            assert (
                digest_of(buffers[batch["slot"][i]], batch["key"][i]) == batch["digest"][i]
            ).all()
        return transfer.statuses.tolist(), transfer.reasons.tolist()

    def stored(self, numbers):
        """Put ``numbers`` and close; return their batch."""

        async def scenario(backend):
            return (await self.put(backend, numbers))[0]

        return self.run(scenario)

    def reasons(self, batch, **changes):
        """Open and get ``batch``; return the reasons, 0 for what landed."""

        async def scenario(backend):
            return (await self.get(backend, batch))[1]

        return self.run(scenario, **changes)

    def change_header(self, frame, change, *, sealed=True):
        """Let ``change`` alter a header on disk; ``sealed``: its checksum is made right again."""
        with self.headers.open("r+b") as file:
            file.seek(SUPERBLOCK_NBYTES + int(frame) * HEADER_NBYTES)
            row = np.frombuffer(file.read(HEADER_NBYTES), HEADER).copy()
            change(row)
            if sealed:
                row["checksum"] = checksums(row)
            file.seek(-HEADER_NBYTES, 1)
            file.write(row.tobytes())


def digest_of(payload, key):
    return seeded(digest_rows(payload[None].copy(), np.zeros(1, np.int64)), key[None])[0]


def config_of(directory, frames, page_nbytes=PAGE_NBYTES, **changes):
    frame_nbytes = -(-page_nbytes // 4096) * 4096
    capacity_nbytes = SUPERBLOCK_NBYTES + frames * (frame_nbytes + HEADER_NBYTES)
    return SlabConfig(directory, capacity_nbytes, page_nbytes, b"f" * 32, **changes)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.fixture
def open_config(tmp_path):
    """Configurations of slabs below the test's folder, by frame count."""
    return lambda frames, **changes: config_of(tmp_path / "slab", frames, **changes)


class Rig:
    """A directory and a stand-in of cuFile, which must get everything back."""

    def __init__(self, folder, frames=16, page_nbytes=PAGE_NBYTES, **changes):
        capacity_nbytes = 4096 + frames * (page_nbytes + 512)
        slab = SlabConfig(folder / "slab", capacity_nbytes, page_nbytes, b"f" * 32, **changes)
        self.config = GdsConfig(slab)
        self.pages = NumberedPages(page_nbytes)
        self.fake = FakeCuFile()

    def open(self, **changes):
        return GdsBackend.open(
            replace(self.config, **changes),
            clock=RealClock(),
            digest=digest_rows,
            library=self.fake.library,
        )

    def run(self, scenario, *faults, fake=None, **changes):
        """Run ``scenario(backend)`` with ``faults``; whatever they are, nothing leaks."""

        async def whole():
            backend = await self.open(**changes)
            try:
                return await scenario(backend)
            finally:
                self.fake.release()
                await backend.close()

        self.fake = fake or FakeCuFile(faults)
        threads = threading.active_count()
        try:
            return asyncio.run(whole())
        finally:
            assert self.fake.violations == []
            assert self.fake.leaks == []
            assert threading.active_count() == threads

    def slab(self, scenario):
        async def whole():
            backend = await SlabBackend.open(self.config.slab, clock=RealClock())
            try:
                return await scenario(backend)
            finally:
                await backend.close()

        return asyncio.run(whole())

    async def put(self, backend, numbers, durability=Durability.CACHE):
        buffers = self.pages.buffers(len(numbers))
        self.pages.fill(buffers, numbers)
        batch = self.pages.batch(numbers, backend.reserve(len(numbers), after=-1))
        transfer = backend.put(batch, buffers, deadline_s=math.inf, durability=durability)
        await transfer.drained()
        return batch, transfer

    def canaries(self, slots):
        """Buffers that hold no page: 0xA5."""
        buffers = self.pages.buffers(slots)
        buffers[:] = 0xA5
        return buffers

    async def get(self, backend, batch, deadline_s=math.inf):
        """Statuses and reasons; what landed is what was put."""
        buffers = self.canaries(len(batch))
        transfer = backend.get(batch, buffers, deadline_s=deadline_s)
        await transfer.drained()
        self.check(batch, transfer, buffers)
        return transfer.statuses.tolist(), transfer.reasons.tolist()

    def check(self, batch, transfer, buffers):
        for i in np.flatnonzero(transfer.statuses == Status.LANDED).tolist():
            number = int(batch["depth"][i])
            assert (buffers[batch["slot"][i]] == self.pages.payload(number)).all()

    def stored(self, count):
        """Put pages 0 to ``count`` - 1, page i at depth i, and close."""

        async def scenario(backend):
            return (await self.put(backend, list(range(count))))[0]

        return self.run(scenario)

    def operations(self):
        """Pages of every operation of every batch."""
        return [
            [int(row["nbytes"]) // self.pages.page_nbytes for row in batch]
            for batch in self.fake.submitted
        ]


@pytest.fixture
def rig_of(tmp_path):
    """``rig_of("place", frames=8)``: directories for GDS, each over a stand-in of its own."""
    return lambda place="gds", **options: Rig(tmp_path / place, **options)


@pytest.fixture
def rig(rig_of):
    return rig_of()
