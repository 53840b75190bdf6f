# SPDX-License-Identifier: Apache-2.0
"""Reading every page of a slab on disk, beside a running writer if there is one.

Pages are read as a get reads them: O_DIRECT, in extents, in the threads of a reader. What fails is
looked at again for as long as a write may take: a frame that a writer overwrites meanwhile, first
its payload and then its header, is not damage.
"""

import asyncio
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bodocache.clock import RealClock
from bodocache.digest import digest_rows, seeded
from bodocache.errors import BackendError
from bodocache.io import header
from bodocache.io.backend import TRANSFER, Status
from bodocache.io.directory import SCAN_ROWS, OpenSlab
from bodocache.io.found import open_found, read_superblock
from bodocache.io.header import HEADER, HEADER_NBYTES, SUPERBLOCK_NBYTES
from bodocache.io.medium import scratch
from bodocache.io.slab import SlabBackend
from bodocache.io.workers import WorkerPool
from bodocache.pages import Reason

BATCH_NBYTES = 16 << 20  # of a get; as many gets as IN_FLIGHT at once
IN_FLIGHT = 2
LOOKS, LOOK_S = 20, 0.05  # a second in all: what a write takes on a disk that works
DAMAGE = (Reason.CORRUPT, Reason.FOREIGN, Reason.TRUNCATED, Reason.IO_ERROR)


@dataclass(frozen=True, slots=True)
class Damaged:
    """A frame that claims to hold a page and does not."""

    frame: int
    reason: Reason
    key: bytes  # what its header names, right or wrong


@dataclass(frozen=True, slots=True)
class Checked:
    """What there is in a slab; each frame is counted once."""

    frames: int
    whole: int  # pages that a get would find, whole
    duplicates: int  # older copies of pages, whole
    changed: int  # overwritten while the check was reading
    reasons: dict[Reason, int]  # frames that hold no page
    damaged: list[Damaged]  # by frame; counted under their reasons, too
    nbytes: int  # of payload that was read
    seconds: float


async def check(directory: Path, on_progress: Callable[[int, int], None]) -> Checked:
    """Read all headers and payloads of the slab in ``directory``; changes nothing.

    ``on_progress`` is told how many pages of how many have been read. Memory: 32 MiB, and what a
    reader has.

    Raises:
        BackendError: there is no slab, or it was made anew meanwhile.
    """
    since_s = time.monotonic()
    config, slab = open_found(directory)
    columns = slab.columns
    duplicates = np.flatnonzero(columns.reasons == Reason.EVICTED)
    columns.invalidate(duplicates, Reason.NONE)  # as readable as any
    claimed = np.flatnonzero(columns.reasons == Reason.NONE)
    generations = columns.generations.copy()
    clock = RealClock()
    pool = WorkerPool(config.queue_depth, clock, asyncio.get_running_loop())
    backend = SlabBackend(config, slab, clock=clock, pool=pool)
    try:
        await _read(backend, slab, claimed, on_progress)
        suspects = np.flatnonzero(np.isin(columns.reasons, DAMAGE))
        damaged, changed = await _look_again(slab, suspects, generations)
        if read_superblock(directory).slab != slab.superblock.slab:
            raise BackendError(f"slab {directory}: it was made anew while it was checked")
    finally:
        await backend.close()
    columns.invalidate(np.array(changed, np.int64), Reason.NONE)
    found, counts = np.unique(columns.reasons, return_counts=True)
    reasons = {Reason(r): n for r, n in zip(found.tolist(), counts.tolist(), strict=True)}
    readable = reasons.pop(Reason.NONE, 0) - len(changed)
    old = int((columns.reasons[np.setdiff1d(duplicates, changed)] == Reason.NONE).sum())
    nbytes = len(claimed) * slab.superblock.page_nbytes
    return Checked(
        *(len(columns.reasons), readable - old, old, len(changed), reasons, damaged, nbytes),
        time.monotonic() - since_s,
    )


async def _read(
    backend: SlabBackend,
    slab: OpenSlab,
    frames: NDArray[np.int64],
    on_progress: Callable[[int, int], None],
) -> None:
    """Get the pages of ``frames``; the columns then say what became of each."""
    page_nbytes, done = slab.superblock.page_nbytes, 0
    slots = max(1, min(BATCH_NBYTES // page_nbytes, len(frames)))
    parts: Iterator[NDArray[np.int64]] = iter(
        frames[first : first + slots] for first in range(0, len(frames), slots)
    )

    async def one_after_another() -> None:
        nonlocal done
        buffers = scratch(slots * page_nbytes).reshape(slots, page_nbytes)
        for part in parts:
            batch = np.zeros(len(part), TRANSFER)
            batch["key"], batch["frame"] = slab.columns.keys[part], part
            batch["slot"], batch["nbytes"] = np.arange(len(part)), page_nbytes
            transfer = backend.get(batch, buffers, deadline_s=math.inf)
            await transfer.drained()
            failed = transfer.statuses == Status.FAILED  # what the digest found is there already
            slab.columns.invalidate(part[failed], Reason.IO_ERROR)
            done += len(part)
            on_progress(done, len(frames))

    on_progress(0, len(frames))
    if not len(frames):
        return
    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(one_after_another())


async def _look_again(
    slab: OpenSlab, suspects: NDArray[np.int64], generations: NDArray[np.uint64]
) -> tuple[list[Damaged], list[int]]:
    """Part ``suspects`` into what is damaged for good, and frames that changed.

    Each is read once more, and again whenever its header has become another.
    """
    seen = await asyncio.to_thread(_checksums, slab, suspects)
    looked_at, changed = suspects, set[int]()
    for look in range(LOOKS):
        if look:
            await asyncio.sleep(LOOK_S)
            now = await asyncio.to_thread(_checksums, slab, suspects)
            looked_at, seen = suspects[(now != seen).any(axis=1)], now
        changed |= await asyncio.to_thread(_those_changed, slab, looked_at, generations)
        if len(changed) == len(suspects):
            break
    left = [frame for frame in suspects.tolist() if frame not in changed]
    rows = [_header(slab, frame)["key"].tobytes() for frame in left]
    return [
        Damaged(frame, Reason(slab.columns.reasons[frame]), key)
        for frame, key in zip(left, rows, strict=True)
    ], sorted(changed)


def _those_changed(
    slab: OpenSlab, frames: NDArray[np.int64], generations: NDArray[np.uint64]
) -> set[int]:
    return {f for f in frames.tolist() if _has_changed(slab, f, int(generations[f]))}


def _checksums(slab: OpenSlab, frames: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Those of the headers of ``frames``, which rise, on disk now: u64[n, 2]."""
    found = np.zeros((len(frames), 2), np.uint64)
    for first in range(0, len(slab.columns.reasons), SCAN_ROWS):
        chosen = slice(*np.searchsorted(frames, (first, first + SCAN_ROWS)))
        if chosen.start == chosen.stop:
            continue
        offset = SUPERBLOCK_NBYTES + first * HEADER_NBYTES
        data = os.pread(slab.headers.fd, SCAN_ROWS * HEADER_NBYTES, offset)
        rows = np.frombuffer(data, HEADER, count=len(data) // HEADER_NBYTES)
        there = frames[chosen] - first < len(rows)
        found[chosen][there] = rows["checksum"][frames[chosen][there] - first]
    return found


def _has_changed(slab: OpenSlab, frame: int, generation: int) -> bool:
    """Whether a frame that was wrong holds another page by now, the same one whole, or nothing.

    A page that could not be read at first is not whole, even if it can be now.
    """
    row = _header(slab, frame)
    reason = header.judge(row, frame, slab.superblock)[0]
    if reason != Reason.NONE:
        return bool(reason == Reason.NEVER_STORED)
    if row["generation"][0] != generation:
        return True
    if slab.columns.reasons[frame] == Reason.IO_ERROR:
        return False
    nbytes = slab.superblock.page_nbytes
    try:
        data = os.pread(slab.payload.fd, nbytes, frame * slab.superblock.frame_nbytes)
    except OSError:
        return False
    if len(data) < nbytes:
        return False
    page = np.frombuffer(data, np.uint8)[None]
    digest = seeded(digest_rows(page, np.zeros(1, np.int64)), row["key"])
    return bool((digest == row["digest"]).all())


def _header(slab: OpenSlab, frame: int) -> NDArray[np.void]:
    """The header of ``frame`` on disk now: HEADER[1], zeros where the file ends before it."""
    data = os.pread(slab.headers.fd, HEADER_NBYTES, SUPERBLOCK_NBYTES + frame * HEADER_NBYTES)
    return np.frombuffer(data.ljust(HEADER_NBYTES, b"\0"), HEADER)
