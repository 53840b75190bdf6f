# SPDX-License-Identifier: Apache-2.0
"""The backends the contract suite runs over. A stand-in is called one in its name."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bodocache.clock import RealClock
from bodocache.digest import digest_rows
from bodocache.io.backend import Backend
from bodocache.io.config import Access, SlabConfig
from bodocache.io.gds import GdsBackend, GdsConfig
from bodocache.io.slab import SlabBackend
from bodocache.testing import (
    FakeCuFile,
    FaultyBackend,
    MemoryBackend,
    MemoryDisk,
    NumberedPages,
    RecordingBackend,
    SlowBackend,
)

FRAMES = 24
FORM = b"contract".ljust(32, b"\0")


@dataclass
class Storage:
    """A place that outlives the backends opened over it."""

    pages: NumberedPages
    open: Callable[[], Awaitable[Backend]]

    def run(self, scenario: Callable[[Backend], Awaitable[None]]) -> None:
        """Open, run the scenario, close."""

        async def whole() -> None:
            backend = await self.open()
            try:
                await scenario(backend)
            finally:
                await backend.close()

        asyncio.run(whole())


def slab(directory: Path, page_nbytes: int, access: Access = Access.DIRECT) -> Storage:
    frame_nbytes = -(-page_nbytes // 4096) * 4096
    capacity_nbytes = 4096 + FRAMES * (frame_nbytes + 512)
    config = SlabConfig(directory / "slab", capacity_nbytes, page_nbytes, FORM, access=access)

    async def open_() -> Backend:
        return await SlabBackend.open(config, clock=RealClock())

    return Storage(NumberedPages(page_nbytes), open_)


def wrapped(storage: Storage, wrap: Callable[[Backend], Backend]) -> Storage:
    async def open_() -> Backend:
        return wrap(await storage.open())

    return Storage(storage.pages, open_)


def memory() -> Storage:
    disk = MemoryDisk(4096, FRAMES)

    async def open_() -> Backend:
        return MemoryBackend(disk, clock=RealClock())

    return Storage(NumberedPages(4096), open_)


class StrictGds(GdsBackend):
    """Over a stand-in of cuFile that it never asks for anything wrong, and gives all back."""

    fake: FakeCuFile

    async def close(self) -> None:
        await super().close()
        assert self.fake.violations + self.fake.leaks == []


def gds(directory: Path, page_nbytes: int) -> Storage:
    if page_nbytes % 4096:
        pytest.skip("GDS moves whole blocks")
    capacity_nbytes = 4096 + FRAMES * (page_nbytes + 512)
    config = GdsConfig(SlabConfig(directory / "slab", capacity_nbytes, page_nbytes, FORM))

    async def open_() -> Backend:
        fake = StrictGds.fake = FakeCuFile()
        return await StrictGds.open(
            config, clock=RealClock(), digest=digest_rows, library=fake.library
        )

    return replace(slab(directory, page_nbytes), open=open_)


STORAGES: dict[str, Callable[[Path], Storage]] = {
    "slab": lambda path: slab(path, 16384),
    "slab-buffered": lambda path: slab(path, 16384, Access.BUFFERED),
    "slab-padded-frames": lambda path: slab(path, 5008),
    "slab-of-faulty": lambda path: wrapped(slab(path, 8192), FaultyBackend),
    "slab-of-slow": lambda path: wrapped(
        slab(path, 8192), lambda inner: SlowBackend(inner, 0.002, clock=RealClock())
    ),
    "slab-of-recording": lambda path: wrapped(slab(path, 8192), RecordingBackend),
    "slab-on-tmpfs": lambda path: slab(path, 16384),
    "stand-in-gds": lambda path, nbytes=16384: gds(path, nbytes),
    "stand-in-memory": lambda _: memory(),
}


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param != "slab-on-tmpfs":
        yield STORAGES[request.param](tmp_path)
        return
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no tmpfs to write to")
    path = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield STORAGES[request.param](path)
    shutil.rmtree(path)
