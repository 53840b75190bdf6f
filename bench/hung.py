# SPDX-License-Identifier: Apache-2.0
"""Does a load end by its deadline while storage hangs, or takes 200 ms more for every operation?

Loads with deadlines of 20 to 60 ms from a real slab, and loads without one from host memory, side
by side; each second the storage goes bad, or good again. It hangs in three ways: the storage's
threads never return from a read; a FUSE file system does not answer the kernel (needs root); the
node that brings the pages is stopped by SIGSTOP. How late a load ended is told as it is, and less
what a process that only sleeps was late by at that moment: other work on the machine delays both.
"""

import asyncio
import ctypes
import gc
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from _common import Claim, parser, write
from numpy.typing import NDArray

from bodocache import Cache, CacheConfig, Group, Layout, LayoutKind, Match, OwnedPool, Tier
from bodocache.clock import RealClock
from bodocache.config import FeaturesConfig, HostConfig, IdentityConfig, TiersConfig, parse
from bodocache.io import libc
from bodocache.io.config import SlabConfig
from bodocache.io.slab import SlabBackend
from bodocache.layout import PagedMemory
from bodocache.node.client import NodeCache
from bodocache.pages import NOWHERE, Reason
from bodocache.pools import BorrowedPool
from bodocache.replay import payload

SECONDS, PHASE_S, SLOW_S = 24.0, 1.0, 0.2
GROUP, PAGE_TOKENS = Group("attention", layers=4, heads=4, head_dim=64, itemsize=2), 16  # 64 KiB
PAGES, PROMPTS, HOST_PROMPTS, ENGINES, RING = 4, 32, 4, 8, 128
DEADLINES_S = (0.02, 0.06)
TARGET_MS, BUSY_TARGET_MS, KEPT = 10.0, 25.0, 0.999
TICK_S = 0.002
SCHEDULERS = {os.SCHED_OTHER: "fair", os.SCHED_FIFO: "fifo", os.SCHED_RR: "round robin"}
SLEEPER = """
import sys, threading, time
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
print("ready", flush=True)
late = []
while not over.is_set():
    begun = time.monotonic()
    time.sleep(0.002)
    if (end := time.monotonic()) - begun > 0.003:
        late.append((begun + 0.002, end))
print(late)
"""

_preadv = ctypes.CFUNCTYPE(
    ctypes.c_ssize_t,
    *(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong),
    use_errno=True,
)


class Unavailable(Exception):
    """It cannot be made bad this way here."""


class Gate(Protocol):
    """Storage that can be made bad."""

    def set(self, *, is_bad: bool) -> None:
        """From now on."""
        ...


class Threads:
    """Reads of the storage's threads stand still: for ever, or for so long."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._good = threading.Event()
        self._good.set()
        self._before = libc.calls.preadv
        real = _preadv(self._before)

        def read(fd: int, iov: int, count: int, offset: int) -> int:
            self._good.wait(None if math.isinf(delay_s) else delay_s)
            return real(fd, iov, count, offset)

        self._fake = _preadv(read)
        libc.calls.preadv = ctypes.cast(self._fake, ctypes.c_void_p).value

    def set(self, *, is_bad: bool) -> None:
        """Let reads stand still, or go on."""
        (self._good.clear if is_bad else self._good.set)()

    def close(self) -> None:
        """Let all go on."""
        self._good.set()
        libc.calls.preadv = self._before


class Fuse:
    """A file system over ``folder``, mounted at ``point``, that stops to answer."""

    def __init__(self, folder: Path, point: Path) -> None:
        script = Path(__file__).with_name("_fuse.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(folder), str(point)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise Unavailable("FUSE cannot be mounted; see above")

    def set(self, *, is_bad: bool) -> None:
        """Let the file system hang, or answer."""
        assert self._process.stdin is not None
        self._process.stdin.write("hang\n" if is_bad else "go on\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """Unmount."""
        with self._process:  # its pipes end with it
            pass


class Stopped:
    """A process that is stopped, and goes on."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def set(self, *, is_bad: bool) -> None:
        """Stop the process, or let it go on."""
        os.kill(self._pid, signal.SIGSTOP if is_bad else signal.SIGCONT)


@contextmanager
def sleeper() -> Iterator[list[tuple[float, float]]]:
    """What is filled at the end with when a process that only sleeps was late: from, until."""
    late: list[tuple[float, float]] = []
    command = [sys.executable, "-c", SLEEPER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        yield late
        process.stdin.close()
        late += [(begun, end) for begun, end in json.loads(_as_json(process.stdout.readline()))]


def _as_json(line: str) -> str:
    return line.replace("(", "[").replace(")", "]")


@contextmanager
def frozen() -> Iterator[None]:
    """Inside, what is there is not looked at for garbage, as engines do.

    A collection of torch's 300,000 objects takes 0.1 s and more.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Engines:
    """Load from disk with deadlines, and from the host without, and note when each ended."""

    def __init__(self, cache: Cache, words: NDArray[np.uint64], matches: list[Match]) -> None:
        self.ended: list[tuple[float, float, bool, bool]] = []  # deadline, end, whole, bad storage
        self.host_s: dict[bool, list[float]] = {False: [], True: []}  # by whether storage was bad
        self.gaps_s: list[float] = []
        self.wrong_nbytes = self.starved = 0
        self.is_bad = self.is_over = False
        self._cache, self._words, self._matches = cache, words, matches
        self._random = random.Random(13)
        self._ring = deque(np.arange(RING * PAGES).reshape(RING, PAGES))
        self._here = cache._orchestrator.residency  # noqa: SLF001 -- to leave pages on disk alone
        self._has_disk = self._here.backend is not None

    async def run(self, gate: Gate, seconds: float) -> None:
        """So long, storage going bad and good in turns."""
        with frozen():
            await self._run(gate, seconds)

    async def _run(self, gate: Gate, seconds: float) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._turn(gate, seconds))
            group.create_task(self._tick())
            if self._has_disk:
                group.create_task(self._from_host())
            for _ in range(ENGINES):
                group.create_task(self._from_disk())

    async def _turn(self, gate: Gate, seconds: float) -> None:
        for turn in range(int(seconds / PHASE_S)):
            self.is_bad = bool(turn % 2)
            gate.set(is_bad=self.is_bad)
            await asyncio.sleep(PHASE_S)
        self.is_over = True
        gate.set(is_bad=False)

    async def _tick(self) -> None:
        while not self.is_over:
            begun_s = time.monotonic()
            await asyncio.sleep(TICK_S)
            self.gaps_s.append(time.monotonic() - begun_s - TICK_S)

    async def _from_host(self) -> None:
        """Loads of a prompt that lies on the host, one every 2 ms."""
        slots = np.arange(PAGES) + RING * PAGES
        while not self.is_over:
            match = self._matches[PROMPTS + self._random.randrange(HOST_PROMPTS)]
            begun_s, was_bad = time.perf_counter(), self.is_bad
            with self._cache.load(match, slots) as load:
                loaded = await load
                if was_bad is self.is_bad:
                    self.host_s[was_bad].append(time.perf_counter() - begun_s)
                self._compare(match, loaded.slots)
                assert loaded.pages == PAGES, "it lies on the host"
            await load.released
            await asyncio.sleep(TICK_S)

    async def _from_disk(self) -> None:
        while not self.is_over:
            if not self._ring:  # all are held by reads that hang
                self.starved += 1
                await asyncio.sleep(TICK_S)
                continue
            match = self._matches[self._random.randrange(PROMPTS)]
            self._leave_on_disk(match)
            await self._one(match, self._ring.popleft())
            await asyncio.sleep(TICK_S)

    async def _one(self, match: Match, slots: NDArray[np.int64]) -> None:
        within_s, was_bad = self._random.uniform(*DEADLINES_S), self.is_bad
        due_s = time.monotonic() + within_s
        load = self._cache.load(match, slots, deadline_s=within_s)
        users = [load, self]  # the slots are free when both are through with them
        load.on_released(lambda: self._leave(users, load, slots))
        loaded = await load
        self.ended.append((due_s, time.monotonic(), loaded.pages == PAGES, was_bad and self.is_bad))
        self._compare(match, loaded.slots)
        load.close()
        self._leave(users, self, slots)

    def _leave(self, users: list[object], user: object, slots: NDArray[np.int64]) -> None:
        users.remove(user)
        if not users:
            self._ring.append(slots)

    def _compare(self, match: Match, slots: NDArray[np.int64]) -> None:
        seeds = payload.seeds(match.keys[: len(slots)])
        self.wrong_nbytes += int(payload.count_wrong_bytes(self._words, slots, seeds))

    def _leave_on_disk(self, match: Match) -> None:
        if not self._has_disk:
            return
        rows, records = self._here.index.find(match.keys), self._here.table.records
        rows = rows[rows != NOWHERE]
        rows = rows[(records["pins"][rows] == 0) & (records["tiers"][rows] & Tier.HOST.bit != 0)]
        self._here.drop(rows, Tier.HOST, Reason.EVICTED)


async def stored(cache: Cache, words: NDArray[np.uint64], *, on_disk: bool) -> list[Match]:
    """Store every prompt; the matches that find them."""
    tokens = np.arange(PROMPTS + HOST_PROMPTS, dtype=np.uint32)[:, None] * np.uint32(100_000)
    tokens = tokens + np.arange(PAGES * PAGE_TOKENS, dtype=np.uint32)
    slots = np.arange(PAGES) + RING * PAGES
    for prompt in tokens:
        match = await cache.match(prompt)
        payload.fill(words, slots, payload.seeds(match.keys))
        async with cache.store(match, slots) as store:
            assert not on_disk or await store.written == PAGES
    return [await cache.match(prompt) for prompt in tokens]


def pool_of() -> tuple[BorrowedPool, NDArray[np.uint64]]:
    """An engine's own slots, and their words."""
    layout = Layout(LayoutKind.LAYER_FIRST, GROUP, PAGE_TOKENS, (RING + 1) * PAGES)
    memory = OwnedPool(layout)
    pool = BorrowedPool(PagedMemory.of_layout(memory.buffer, layout))
    return pool, payload.words_of(memory)


async def over_slab(folder: Path, gate: Callable[[], Gate], seconds: float) -> Engines:
    """Over a slab in ``folder``, in this process."""
    page_nbytes = GROUP.page_nbytes(PAGE_TOKENS)
    pages = (PROMPTS + HOST_PROMPTS) * PAGES
    pool, words = pool_of()
    config = CacheConfig(
        IdentityConfig(model="bench", dtype="bytes"),
        TiersConfig(HostConfig(2 * pages * page_nbytes)),
        features=FeaturesConfig(admit=False, aside=False, tardiness=False),
    )
    slab = SlabConfig(folder, 2 * pages * page_nbytes, page_nbytes, bytes(32))
    backend = await SlabBackend.open(slab, clock=RealClock())
    async with await Cache.open(config, pool, group=GROUP, backend=backend) as cache:
        matches = await stored(cache, words, on_disk=True)
        engines = Engines(cache, words, matches)
        await engines.run(gate(), seconds)
    return engines


def fused(folder: Path, seconds: float) -> Engines:
    """Over a slab on a file system that hangs. Its files are made before."""
    plain, point = folder / "plain", folder / "mounted"
    plain.mkdir()
    point.mkdir()
    asyncio.run(_made(plain))
    gate = Fuse(plain, point)
    try:
        return asyncio.run(over_slab(point, lambda: gate, seconds))
    finally:
        gate.close()


async def _made(folder: Path) -> None:
    page_nbytes, pages = GROUP.page_nbytes(PAGE_TOKENS), (PROMPTS + HOST_PROMPTS) * PAGES
    slab = SlabConfig(folder, 2 * pages * page_nbytes, page_nbytes, bytes(32))
    await (await SlabBackend.open(slab, clock=RealClock())).close()


def in_threads(folder: Path, seconds: float, delay_s: float) -> Engines:
    """Over a slab whose threads stand still."""
    gate = Threads(delay_s)
    try:
        return asyncio.run(over_slab(folder, lambda: gate, seconds))
    finally:
        gate.close()


def on_a_node(folder: Path, seconds: float) -> Engines:
    """Attached to a node that is stopped."""
    pages = (PROMPTS + HOST_PROMPTS) * PAGES
    sizes = {"layers": 4, "heads": 4, "head_dim": 64, "itemsize": 2, "group": "attention"}
    text = (
        '[identity]\nmodel = "bench"\ndtype = "bytes"\n[tiers.host]\n'
        f"capacity_bytes = {2 * pages * GROUP.page_nbytes(PAGE_TOKENS)}\n[node]\n"
        f"page_tokens = {PAGE_TOKENS}\n"
        + "".join(f"{name} = {json.dumps(value)}\n" for name, value in sizes.items())
    )
    (folder / "node.toml").write_text(text)
    script = Path(__file__).with_name("_node_process.py")
    command = [sys.executable, str(script), str(folder / "node.toml"), str(folder / "s")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        try:
            return asyncio.run(_attached(folder, process.pid, seconds))
        finally:
            process.send_signal(signal.SIGCONT)
            process.stdin.close()


async def _attached(folder: Path, pid: int, seconds: float) -> Engines:
    pool, words = pool_of()
    config = parse(
        CacheConfig,
        {
            "identity": {"model": "bench", "dtype": "bytes"},
            "tiers": {"host": {"capacity_bytes": 1 << 20}},
        },
    )
    async with await NodeCache.attach(folder / "s", config, pool, group=GROUP) as cache:
        engines = Engines(cache, words, await stored(cache, words, on_disk=False))
        await engines.run(Stopped(pid), seconds)
    return engines


def row_of(what: str, engines: Engines, late: list[tuple[float, float]]) -> dict[str, Any]:
    """Percentiles of one way to go bad; ``late``: of the process that only slept."""
    bad = [one for one in engines.ended if one[3]]
    lates = sorted(max(0.0, end - due) * 1e3 for due, end, _, _ in bad)
    own = sorted(max(0.0, end - due - _slept(late, due, end)) * 1e3 for due, end, _, _ in bad)
    row: dict[str, Any] = {
        "what": what,
        "loads": len(engines.ended),
        "while_bad": len(bad),
        "whole_while_bad": sum(one[2] for one in bad),
        "late_p50_ms": _at(lates, 0.5),
        "late_p999_ms": _at(lates, 0.999),
        "late_max_ms": _at(lates, 1.0),
        "own_p999_ms": _at(own, 0.999),
        "own_max_ms": _at(own, 1.0),
        "within_10_ms": _share(lates, TARGET_MS),
        "within_25_ms": _share(lates, BUSY_TARGET_MS),
        "own_within_10_ms": _share(own, TARGET_MS),
        "loop_gap_p999_ms": _at(sorted(gap * 1e3 for gap in engines.gaps_s), 0.999),
        "loop_gap_max_ms": _at(sorted(gap * 1e3 for gap in engines.gaps_s), 1.0),
        "sleeper_late_max_ms": _at(sorted((end - begun) * 1e3 for begun, end in late), 1.0),
        "waits_for_slots": engines.starved,
        "wrong_bytes": engines.wrong_nbytes,
    }
    if engines.host_s[True]:
        for name, is_bad in (("good", False), ("bad", True)):
            sample = sorted(s * 1e3 for s in engines.host_s[is_bad])
            row |= {
                f"host_p50_ms_{name}": _at(sample, 0.5),
                f"host_p99_ms_{name}": _at(sample, 0.99),
            }
    return row


def _slept(late: list[tuple[float, float]], begun_s: float, end_s: float) -> float:
    """Seconds from ``begun_s`` to ``end_s`` in which a process that wanted to wake did not."""
    first = bisect_left(late, (begun_s - 1.0, 0.0))
    return sum(
        max(0.0, min(end, end_s) - max(begun, begun_s))
        for begun, end in late[first:]
        if begun < end_s
    )


def _at(ordered: list[float], share: float) -> float:
    last = len(ordered) - 1
    return round(ordered[min(last, math.ceil(share * last))], 3) if ordered else 0.0


def _share(ordered: list[float], bound: float) -> float:
    return round(sum(one <= bound for one in ordered) / max(1, len(ordered)), 5)


def claims(rows: list[dict[str, Any]]) -> list[Claim]:
    """Of each way to go bad."""
    made = []
    for row in rows:
        what = row["what"]
        made += [
            Claim.at_least(f"ended by deadline + 10 ms, {what}", row["within_10_ms"], KEPT, ""),
            Claim.at_least(
                f"the same less what a sleeping process was late, {what}",
                *(row["own_within_10_ms"], KEPT, ""),
            ),
            Claim.at_least(f"ended by deadline + 25 ms, {what}", row["within_25_ms"], KEPT, ""),
            Claim.at_most(f"wrong bytes, {what}", row["wrong_bytes"], 0, ""),
        ]
        if "host_p99_ms_bad" in row:
            ratio = row["host_p99_ms_bad"] / row["host_p99_ms_good"]
            made.append(Claim.at_most(f"host loads' p99 over undisturbed, {what}", ratio, 1.1, ""))
    return made


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seconds", type=float, default=SECONDS, help="of each way")
    arguments.add_argument("--only", help="one of the ways")
    chosen = arguments.parse_args()
    ways: dict[str, Callable[[Path, float], Engines]] = {
        "threads that never return": lambda folder, s: in_threads(folder, s, math.inf),
        "200 ms more for each read": lambda folder, s: in_threads(folder, s, SLOW_S),
        "FUSE that does not answer": fused,
        "a node that is stopped": on_a_node,
    }
    rows = []
    for what, way in ways.items():
        if chosen.only not in (None, what):
            continue
        try:
            with tempfile.TemporaryDirectory() as folder, sleeper() as late:
                engines = way(Path(folder), chosen.seconds)
        except Unavailable as why:
            print(f"left out: {what}: {why}", file=sys.stderr)
            continue
        rows.append(row_of(what, engines, late))
    write(
        chosen.json,
        rows,
        claims(rows),
        seconds=chosen.seconds,
        scheduling=SCHEDULERS.get(os.sched_getscheduler(0), "other"),
        niceness=os.nice(0),
    )


if __name__ == "__main__":
    main()
