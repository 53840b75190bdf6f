# SPDX-License-Identifier: Apache-2.0
"""Many operations, and what is left behind: descriptors, threads, tasks, memory.

An operation is one page of a batch of 64. Puts, gets, releases and cancels in the ratio
70 : 20 : 9 : 1, by tasks that own their frames, three on a plain slab and one on a keyed one, which
share their threads. One put in eight is to survive a power cut (SYNC), one batch in eight has a
deadline, of 0 to 4 ms: some pages make it and some do not. A put takes fresh frames as long as
there are any and overwrites old ones then; a cancelled batch is abandoned as soon as it was begun.
Every page that a get reports as landed must carry the mark of the newest put to its frame, and
every page of a put that landed must be found unless the get itself was late or cancelled.
"""

import asyncio
import gc
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _common import Claim
from _listio_point import Numbers, memory

from bodocache.clock import RealClock
from bodocache.digest import digest_rows, seeded
from bodocache.io.backend import TRANSFER, Durability, Status
from bodocache.io.config import QUEUE_DEPTH, SlabConfig
from bodocache.io.slab import SlabBackend
from bodocache.io.table import WRITE_PATIENCE_S
from bodocache.io.workers import WorkerPool
from bodocache.pages import Reason

PAGE_NBYTES = 4096
FRAMES = 32768  # of both slabs together
BATCH = 64
PLAIN_TASKS, KEYED_TASKS = 3, 1
TASKS = PLAIN_TASKS + KEYED_TASKS
SYNC_SHARE = 1 / 8  # of puts
DEADLINE_SHARE, DEADLINE_S_MAX = 1 / 8, 0.004
SHARES = {"put": 0.70, "get": 0.20, "release": 0.09, "cancel": 0.01}
CHECKPOINTS = 40
RSS_SLOPE_MAX = 1.0  # bytes an operation: one megabyte in 10^6


class Counts(NamedTuple):
    """What may leak, at one moment."""

    operations: int
    fds: int
    threads: int
    tasks: int
    rss_nbytes: int


@dataclass(slots=True)
class Tally:
    """What has been done and seen so far."""

    wanted: int
    begun: int = 0
    by_kind: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SHARES, 0))
    wrong_bytes: int = 0
    lost: int = 0  # landed once, not found later
    cancelled_midway: int = 0
    late: int = 0
    synced: int = 0
    samples: list[Counts] = field(default_factory=list)

    def take(self, kind: str, count: int) -> None:
        """Note operations, and look at what may leak from time to time."""
        before, step = self.begun, self.wanted // CHECKPOINTS
        self.begun += count
        self.by_kind[kind] += count
        if before // step != self.begun // step:
            self.samples.append(counts(self.begun))


class Worker:
    """One task: its frames, and for each the mark of what was put there last (0: unknown)."""

    def __init__(self, backend: SlabBackend, tally: Tally, number: int) -> None:
        self.marks: dict[int, int] = {}
        self._backend = backend
        self._tally = tally
        self._chance = np.random.default_rng(number)
        self._buffers = memory(BATCH, PAGE_NBYTES)
        self._next_mark = 1 + (number << 40)

    async def run(self) -> None:
        """Work until all operations have been begun."""
        kinds = self._chance.choice(list(SHARES), size=1 << 16, p=list(SHARES.values()))
        turn = 0
        while self._tally.begun < self._tally.wanted:
            kind = str(kinds[turn % len(kinds)])
            turn += 1
            await getattr(self, kind)()

    async def put(self, *, abandons: bool = False) -> None:
        """Write a batch of new pages."""
        frames = self._places()
        marks = np.arange(self._next_mark, self._next_mark + len(frames))
        self._next_mark += len(frames)
        self._tally.take("cancel" if abandons else "put", len(frames))
        self._buffers.view(np.int64)[: len(frames)] = marks[:, None]
        batch = self._batch(frames, marks)
        batch["digest"] = seeded(
            digest_rows(self._buffers, batch["slot"].copy()), np.ascontiguousarray(batch["key"])
        )
        self.marks.update(dict.fromkeys(frames.tolist(), 0))
        durable = self._chance.random() < SYNC_SHARE
        transfer = self._backend.put(
            batch,
            self._buffers,
            deadline_s=self._deadline_s(),
            durability=Durability.SYNC if durable else Durability.CACHE,
        )
        if abandons:
            transfer.abandon()
        await transfer.drained()
        landed = transfer.statuses == Status.LANDED
        self._tally.late += int((transfer.reasons == Reason.LATE).sum())
        self._tally.synced += int(landed.sum()) if durable else 0
        self._tally.cancelled_midway += int((~landed).sum()) if abandons else 0
        self.marks.update(zip(frames[landed].tolist(), marks[landed].tolist(), strict=True))

    async def get(self, *, abandons: bool = False) -> None:
        """Read a batch, and look at its bytes."""
        known = [frame for frame, mark in self._some() if mark]
        frames = np.array(known, np.int64)
        marks = np.array([self.marks[frame] for frame in known], np.int64)
        self._tally.take("cancel" if abandons else "get", max(1, len(frames)))
        self._buffers[:] = 0
        batch = self._batch(frames, marks)
        transfer = self._backend.get(batch, self._buffers, deadline_s=self._deadline_s())
        if abandons:
            waiting = asyncio.create_task(transfer.finished())
            await asyncio.sleep(0)
            waiting.cancel()
            transfer.abandon()
        await transfer.drained()
        landed = transfer.statuses == Status.LANDED
        found = self._buffers.view(np.int64)[: len(frames)][landed]
        self._tally.wrong_bytes += int((found != marks[landed][:, None]).any(axis=1).sum())
        late = transfer.statuses == Status.LATE
        self._tally.lost += int((~landed & ~late).sum())
        self._tally.late += int((transfer.reasons == Reason.LATE).sum())
        self._tally.cancelled_midway += int(late.sum()) if abandons else 0

    async def release(self) -> None:
        """Give a batch of frames back."""
        frames = np.array([frame for frame, _ in self._some()], np.int64)
        self._tally.take("release", max(1, len(frames)))
        self._backend.release(frames)
        for frame in frames.tolist():
            del self.marks[frame]

    def give_back(self) -> None:
        """Release every frame."""
        self._backend.release(np.array(list(self.marks), np.int64))

    async def cancel(self) -> None:
        """Begin a get or a put and abandon it."""
        await (self.put if self._chance.random() < 0.5 else self.get)(abandons=True)

    def _deadline_s(self) -> float:
        if self._chance.random() >= DEADLINE_SHARE:
            return math.inf
        return time.monotonic() + self._chance.uniform(0, DEADLINE_S_MAX)

    def _places(self) -> Numbers:
        if self._backend.usage.free_frames >= BATCH:
            return self._backend.reserve(BATCH, after=-1)
        return np.array([frame for frame, _ in self._some()], np.int64)

    def _some(self) -> list[tuple[int, int]]:
        """A run of this task's frames with their marks, from a random one on."""
        held = list(self.marks.items())
        first = int(self._chance.integers(max(1, len(held) - BATCH + 1)))
        return held[first : first + BATCH]

    def _batch(self, frames: Numbers, marks: Numbers) -> Any:
        batch = np.zeros(len(frames), TRANSFER)
        batch["key"].view(np.int64).reshape(len(frames), 4)[:] = marks[:, None]
        batch["frame"], batch["slot"] = frames, np.arange(len(frames))
        batch["nbytes"] = PAGE_NBYTES
        return batch


def counts(operations: int) -> Counts:
    """Count what may leak, in a running loop."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return Counts(
        operations,
        len(list(Path("/proc/self/fd").iterdir())),
        len(list(Path("/proc/self/task").iterdir())),
        len(asyncio.all_tasks()),
        pages * os.sysconf("SC_PAGE_SIZE"),
    )


async def soak(folder: Path, operations: int) -> tuple[list[dict[str, Any]], list[Claim]]:
    """Rows and claims of one soak."""
    with ThreadPoolExecutor(1) as executor:  # else the loop begins threads of its own as it likes
        asyncio.get_running_loop().set_default_executor(executor)
        await asyncio.to_thread(len, "")
        return await _soak(folder, operations)


async def _soak(folder: Path, operations: int) -> tuple[list[dict[str, Any]], list[Claim]]:
    before = counts(0)
    plain, keyed = await opened(folder)
    tally, since_s = Tally(operations), time.perf_counter()
    workers = [
        Worker(plain if number < PLAIN_TASKS else keyed, tally, number) for number in range(TASKS)
    ]
    async with asyncio.TaskGroup() as group:
        for worker in workers:
            group.create_task(worker.run())
    wall_s = time.perf_counter() - since_s
    for worker in workers:
        worker.give_back()
    held = plain.usage.used_frames + keyed.usage.used_frames
    await plain.close()
    await keyed.close()
    workers.clear()
    del plain, keyed, worker  # their event descriptor goes with the last reference:
    await asyncio.sleep(2 * WRITE_PATIENCE_S)  # a timer holds one
    gc.collect()
    after = counts(tally.begun)
    row = _row(tally, wall_s) | {"before": before._asdict(), "after": after._asdict()}
    return [row, *({"what": "sample", **s._asdict()} for s in tally.samples)], [
        Claim.at_least("operations", tally.begun, operations, ""),
        Claim.at_most("pages with other bytes than were put", tally.wrong_bytes, 0, ""),
        Claim.at_most("pages lost", tally.lost, 0, ""),
        Claim.at_most("frames held after all were released", held, 0, ""),
        Claim.at_most("descriptors left", after.fds - before.fds, 0, ""),
        Claim.at_most("tasks left", after.tasks - before.tasks, 0, ""),
        Claim.at_most("threads left", after.threads - before.threads, 0, ""),
        Claim.at_most("RSS, second half", row["rss_slope"], RSS_SLOPE_MAX, "bytes an operation"),
    ]


async def opened(folder: Path) -> tuple[SlabBackend, SlabBackend]:
    """A plain slab and a keyed one, with the same threads."""
    clock = RealClock()
    pool = WorkerPool(QUEUE_DEPTH, clock, asyncio.get_running_loop())
    pool.enter()
    slabs = []
    for name, tasks, key in (("plain", PLAIN_TASKS, b""), ("keyed", KEYED_TASKS, b"k" * 32)):
        capacity_nbytes = 4096 + FRAMES * tasks // TASKS * (PAGE_NBYTES + 512)
        config = SlabConfig(folder / name, capacity_nbytes, PAGE_NBYTES, b"b" * 32, mac_key=key)
        slabs.append(await SlabBackend.open(config, clock=clock, pool=pool))
    await pool.leave()
    return slabs[0], slabs[1]


def _row(tally: Tally, wall_s: float) -> dict[str, Any]:
    half = tally.samples[len(tally.samples) // 2 :]
    places = np.array([sample.operations for sample in half], float)
    sizes = np.array([sample.rss_nbytes for sample in half], float)
    slope = float(np.polyfit(places, sizes, 1)[0]) if len(half) > 1 else 0.0
    return {
        "what": "soak",
        "page_nbytes": PAGE_NBYTES,
        "operations": tally.by_kind,
        "operations_per_s": round(tally.begun / wall_s),
        "wall_s": round(wall_s, 1),
        "cancelled_midway": tally.cancelled_midway,
        "late": tally.late,
        "synced": tally.synced,
        "wrong_bytes": tally.wrong_bytes,
        "lost": tally.lost,
        "rss_slope": round(slope, 3),
        "steady_fds": sorted({sample.fds for sample in half}),
        "steady_threads": sorted({sample.threads for sample in half}),
        "steady_tasks": sorted({sample.tasks for sample in half}),
    }
