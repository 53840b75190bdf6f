# SPDX-License-Identifier: Apache-2.0
"""The backends the contract suite runs over. A stand-in is called one in its name."""

import asyncio
import gc
import itertools
import math
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from bodocache import jit
from bodocache.clock import RealClock
from bodocache.digest import digest_rows
from bodocache.io.backend import Backend, Durability, Status
from bodocache.io.config import Access, SlabConfig
from bodocache.io.gds.backend import GdsBackend, GdsConfig
from bodocache.io.header import HEADER, HEADER_NBYTES, SUPERBLOCK_NBYTES, checksums
from bodocache.io.slab import SlabBackend
from bodocache.io.spread import SpreadBackend
from bodocache.testing import (
    FakeCuFile,
    FaultyBackend,
    MemoryBackend,
    MemoryDisk,
    NumberedPages,
    RecordingBackend,
    SlowBackend,
)

jit.warm()  # here, not in a test: a cold compile is not part of any test's time

FRAMES = 24
FORM = b"contract".ljust(32, b"\0")


class SlabFrames:
    """The frames of a slab directory, as somebody else would change them."""

    def __init__(self, directory: Path, frame_nbytes: int) -> None:
        self._payload = directory / "payload.slab"
        self._headers = directory / "headers.slab"
        self._frame_nbytes = frame_nbytes

    def read(self, frame, nbytes):
        with self._payload.open("rb") as file:
            return os.pread(file.fileno(), nbytes, frame * self._frame_nbytes)

    def write(self, frame, data, *, at=0):
        with self._payload.open("r+b") as file:
            os.pwrite(file.fileno(), data, frame * self._frame_nbytes + at)

    def truncate(self, frames):
        """Keep so many frames, and one byte of the next."""
        os.truncate(self._payload, frames * self._frame_nbytes + 1)

    def pass_off(self, frame, other, nbytes):
        """Let ``frame`` say that it holds its page, with the bytes and the digest of ``other``'s.

        Seen when the slab is opened anew.
        """
        self.write(frame, self.read(other, nbytes))
        with self._headers.open("r+b") as file:
            rows = np.frombuffer(file.read()[SUPERBLOCK_NBYTES:], HEADER).copy()
            rows["digest"][frame] = rows["digest"][other]
            rows["checksum"] = checksums(rows)
            os.pwrite(
                file.fileno(),
                rows[frame].tobytes(),
                SUPERBLOCK_NBYTES + int(frame) * HEADER_NBYTES,
            )


class MemoryFrames:
    """The frames of a disk in memory, as somebody else would change them."""

    def __init__(self, disk: MemoryDisk) -> None:
        self._disk = disk

    def read(self, frame, nbytes):
        return self._disk.pages[frame, :nbytes].tobytes()

    def write(self, frame, data, *, at=0):
        self._disk.pages[frame, at : at + len(data)] = np.frombuffer(data, np.uint8)

    def truncate(self, _):
        pytest.skip("memory has no end that could move")

    def pass_off(self, frame, other, nbytes):
        self.write(frame, self.read(other, nbytes))
        self._disk.columns.digests[frame] = self._disk.columns.digests[other]


@dataclass
class Storage:
    """A place that outlives the backends opened over it."""

    pages: NumberedPages
    open: Callable[[], Awaitable[Backend]]
    frames: SlabFrames | MemoryFrames | None = None  # for a test to damage, or unknown
    canary: int = 0xA5  # every byte of a buffer that nothing was read into

    def run(self, scenario: Callable[[Backend], Awaitable[None]]) -> None:
        """Open, run the scenario, close."""

        async def whole() -> None:
            backend = await self.open()
            try:
                await scenario(backend)
            finally:
                await backend.close()

        asyncio.run(whole())

    def canaries(self, slots: int):
        """Buffers that hold no page."""
        buffers = self.pages.buffers(slots)
        buffers[:] = self.canary
        return buffers

    def of(self, numbers: list[int]):
        """Buffers that hold pages."""
        buffers = self.pages.buffers(len(numbers))
        self.pages.fill(buffers, numbers)
        return buffers

    async def put(self, backend, numbers, *, durability=Durability.CACHE):
        """Store pages in new frames; return their batch."""
        batch = self.pages.batch(numbers, backend.reserve(len(numbers), after=-1))
        transfer = backend.put(batch, self.of(numbers), deadline_s=math.inf, durability=durability)
        await transfer.drained()
        assert transfer.statuses.tolist() == [Status.LANDED] * len(numbers)
        return batch

    async def get(self, backend, batch, *, deadline_s=math.inf):
        """Statuses and reasons, and the buffers, canaries before."""
        buffers = self.canaries(len(batch))
        transfer = backend.get(batch, buffers, deadline_s=deadline_s)
        await transfer.finished()
        await transfer.drained()
        return transfer.statuses.copy(), transfer.reasons.copy(), buffers

    def wrong(self, numbers, statuses, buffers):
        """Those of ``numbers`` that landed (page i in slot i) with other bytes than theirs."""
        landed = np.flatnonzero(statuses == Status.LANDED).tolist()
        return [numbers[i] for i in landed if (buffers[i] != self.pages.payload(numbers[i])).any()]


def slab(
    directory: Path, page_nbytes: int, access: Access = Access.DIRECT, frames: int = FRAMES
) -> Storage:
    frame_nbytes = -(-page_nbytes // 4096) * 4096
    capacity_nbytes = 4096 + frames * (frame_nbytes + 512)
    config = SlabConfig(directory / "slab", capacity_nbytes, page_nbytes, FORM, access=access)

    async def open_() -> Backend:
        return await SlabBackend.open(config, clock=RealClock())

    frames = SlabFrames(config.directory, config.frame_nbytes)
    return Storage(NumberedPages(page_nbytes), open_, frames)


def wrapped(storage: Storage, wrap: Callable[[Backend], Backend]) -> Storage:
    async def open_() -> Backend:
        return wrap(await storage.open())

    return replace(storage, open=open_)


def memory(page_nbytes: int) -> Storage:
    disk = MemoryDisk(page_nbytes, FRAMES)

    async def open_() -> Backend:
        return MemoryBackend(disk, clock=RealClock())

    return Storage(NumberedPages(page_nbytes), open_, MemoryFrames(disk))


def spread(path: Path, members: int, page_nbytes: int) -> Storage:
    slabs = [slab(path / str(i), page_nbytes, frames=FRAMES // 2) for i in range(members)]

    async def open_() -> Backend:
        return await SpreadBackend.open([one.open for one in slabs], clock=RealClock())

    return Storage(NumberedPages(page_nbytes), open_)


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


STORAGES: dict[str, Callable[..., Storage]] = {  # of a folder and, or not, a page size
    "slab": lambda path, nbytes=16384: slab(path, nbytes),
    "slab-buffered": lambda path, nbytes=16384: slab(path, nbytes, Access.BUFFERED),
    "slab-padded-frames": lambda path, nbytes=5008: slab(path, nbytes),
    "slab-of-faulty": lambda path, nbytes=8192: wrapped(slab(path, nbytes), FaultyBackend),
    "slab-of-slow": lambda path, nbytes=8192: wrapped(
        slab(path, nbytes), lambda inner: SlowBackend(inner, 0.002, clock=RealClock())
    ),
    "slab-of-recording": lambda path, nbytes=8192: wrapped(slab(path, nbytes), RecordingBackend),
    "spread-of-two-slabs": lambda path, nbytes=16384: spread(path, 2, nbytes),
    "spread-of-three-slabs": lambda path, nbytes=16384: spread(path, 3, nbytes),
    "slab-on-tmpfs": lambda path, nbytes=16384: slab(path, nbytes),
    "stand-in-gds": lambda path, nbytes=16384: gds(path, nbytes),
    "stand-in-memory": lambda _, nbytes=4096: memory(nbytes),
}


@pytest.fixture(params=STORAGES)
def storage_of(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Storage]]:
    """``storage_of()`` or ``storage_of(page_nbytes)``: each a place of its own."""
    folder = tmp_path
    if request.param == "slab-on-tmpfs":
        if not os.access("/dev/shm", os.W_OK):
            pytest.skip("no tmpfs to write to")
        folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    made = itertools.count()

    def make(*page_nbytes: int) -> Storage:
        place = folder / f"place-{next(made)}"
        place.mkdir()
        return STORAGES[request.param](place, *page_nbytes)

    yield make
    if folder != tmp_path:
        shutil.rmtree(folder)


@pytest.fixture
def storage(storage_of: Callable[..., Storage]) -> Storage:
    return storage_of()


@pytest.fixture
def open_files() -> Iterator[Callable[[], list[int]]]:
    """``open_files()``: this process's descriptors, but for those that only garbage holds."""
    gc.collect()
    gc.freeze()  # what is old by now is not looked at again: 0.1 s each time

    def find() -> list[int]:
        gc.collect()
        return sorted(int(path.name) for path in Path("/proc/self/fd").iterdir())

    yield find
    gc.unfreeze()
