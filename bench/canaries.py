# SPDX-License-Identifier: Apache-2.0
"""Does a byte land in a buffer after its release? Loads are cut at random moments, and looked at.

Pages of 4 KiB come from host memory and from a real slab to slots of an engine's own. Some reads of
the storage's threads stand still for up to 2 ms before they read, so that many are under way when
their load is cut: by its deadline, by the engine (``cut``, ``cancel``, ``close``), or because the
rest is predicted to come too late. Each time ``load.released`` has come, the slots are filled with
canaries; they are looked at when the slots are used again, 40 loads later, and when all
has drained.
"""

import asyncio
import ctypes
import random
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from _common import Claim, parser, write
from numpy.typing import NDArray

from bodocache import Cache, CacheConfig, Group, Layout, LayoutKind, Load, OwnedPool, Tier
from bodocache.clock import RealClock
from bodocache.config import (
    FeaturesConfig,
    HostConfig,
    IdentityConfig,
    PlannerConfig,
    TiersConfig,
)
from bodocache.errors import LoadFailed
from bodocache.io import libc
from bodocache.io.config import SlabConfig
from bodocache.io.slab import SlabBackend
from bodocache.layout import PagedMemory
from bodocache.pools import BorrowedPool
from bodocache.replay import payload

CUTS = 100_000
PAGES, PROMPTS, ENGINES, RING = 4, 12, 3, 48  # pages of a prompt; loads at once; sets of slots
GROUP, PAGE_TOKENS = Group("attention", layers=4, heads=1, head_dim=32, itemsize=2), 8
CANARY = np.uint64(0x5A5A5A5A5A5A5A5A)
LONGEST_S = 2e-3  # that a read stands still, and a load is left alone
SLOW_SHARE = 0.5  # of the reads
EVICTING_SHARE = 0.7  # of the loads: before them, host memory is given to nobody
PROMPT_TOKENS = np.arange(PROMPTS, dtype=np.uint32)[:, None] * np.uint32(100_000) + np.arange(
    PAGES * PAGE_TOKENS, dtype=np.uint32
)
WAYS = ("deadline", "cut", "cancel", "close", "cancel after commit", "predicted")

_preadv = ctypes.CFUNCTYPE(
    ctypes.c_ssize_t,
    *(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong),
    use_errno=True,
)


@contextmanager
def slow_reads(chance: random.Random) -> Iterator[None]:
    """Inside, some reads of the storage's threads stand still before they begin."""
    before = libc.calls.preadv
    real = _preadv(before)

    def read(fd: int, iov: int, count: int, offset: int) -> int:
        if chance.random() < SLOW_SHARE:
            time.sleep(chance.uniform(0.0, LONGEST_S))
        return real(fd, iov, count, offset)

    slow = _preadv(read)
    libc.calls.preadv = ctypes.cast(slow, ctypes.c_void_p).value
    try:
        yield
    finally:
        libc.calls.preadv = before


class Canaries:
    """Engines that begin loads over one cache, cut them, and watch their slots."""

    def __init__(self, cache: Cache, words: NDArray[np.uint64], seed: int) -> None:
        self.cuts: Counter[str] = Counter()  # loads whose rest did not come, by way
        self.undrained: Counter[str] = Counter()  # of them, those with I/O under way at the cut
        self.wrong_nbytes = self.landed_late_nbytes = self.loads = 0
        self._cache, self._words = cache, words
        orchestrator = cache._orchestrator  # noqa: SLF001 -- to leave pages on disk alone
        self._residency = orchestrator.residency
        # Loads of four such pages would always be called nearly over.
        orchestrator.decider._nearly_over = lambda _: False  # type: ignore[method-assign]  # noqa: SLF001
        self._random = random.Random(seed)
        slots = np.arange(RING * PAGES).reshape(RING, PAGES)
        self._ring = deque(slots)
        words[:] = CANARY

    async def run(self, cuts: int) -> None:
        """Go on until so many loads were cut."""
        async with asyncio.TaskGroup() as group:
            for _ in range(ENGINES):
                group.create_task(self._engine(cuts))

    async def _engine(self, cuts: int) -> None:
        while self.cuts.total() < cuts:
            slots = self._ring.popleft()
            self.look_at(slots)
            await self._one(slots)
            self._words[:, :, slots] = CANARY
            self._ring.append(slots)

    async def _one(self, slots: NDArray[np.int64]) -> None:
        chance, way = self._random, self._random.choice(WAYS)
        if chance.random() < EVICTING_SHARE:
            self._residency.evict(Tier.HOST, 4 * PAGES)
        match = await self._cache.match(PROMPT_TOKENS[chance.randrange(PROMPTS)])
        load = self._cache.load(match, slots[: match.pages], **self._said(way))
        self.loads += 1
        was_draining = await self._cut(load, way)
        try:
            loaded = await load
            pages, rest = loaded.pages, len(loaded.reasons)
        except LoadFailed as failed:
            pages, rest = failed.pages, match.pages - failed.pages
        seeds = payload.seeds(match.keys[:pages])
        self.wrong_nbytes += int(payload.count_wrong_bytes(self._words, slots[:pages], seeds))
        if rest:
            self.cuts[way] += 1
            self.undrained[way] += was_draining
        load.close()
        await load.released

    def _said(self, way: str) -> dict[str, Any]:
        chance = self._random
        if way == "deadline":
            return {"deadline_s": chance.uniform(0.0, 3 * LONGEST_S)}
        if way == "predicted":
            return {"start_s": chance.uniform(0.0, 3 * LONGEST_S)}
        if way == "cancel after commit":
            return {"compute_s": [1e-4] * GROUP.layers}
        return {}

    async def _cut(self, load: Load, way: str) -> bool:
        """Leave it alone for a while, then cut it; whether anything of it was under way then."""
        chance = self._random
        if way in ("deadline", "predicted"):
            settled: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            load.on_settled(lambda: settled.set_result(not load.released.done()))
            return await settled
        if way == "cancel after commit":
            load.commit()
        if chance.random() < 0.5:
            await asyncio.sleep(chance.uniform(0.0, LONGEST_S))
        else:
            for _ in range(chance.randrange(8)):
                await asyncio.sleep(0)
        act = {"cut": lambda: load.cut(chance.randrange(PAGES)), "close": load.close}
        act.get(way, load.cancel)()
        return not load.released.done()

    def look_at(self, slots: NDArray[np.int64]) -> None:
        """Count what is no canary any more."""
        bytes_ = self._words[:, :, slots].view(np.uint8)
        self.landed_late_nbytes += int(np.count_nonzero(bytes_ != np.uint8(0x5A)))

    def look_at_all(self) -> None:
        """The same for every set of slots: all are given back."""
        assert len(self._ring) == RING
        for slots in self._ring:
            self.look_at(slots)


async def measure(folder: Path, cuts: int, seed: int, *, predicts: bool) -> dict[str, Any]:
    """Cut so many loads; where nothing is predicted, deadlines are met by loads under way."""
    page_nbytes = GROUP.page_nbytes(PAGE_TOKENS)
    memory = OwnedPool(Layout(LayoutKind.LAYER_FIRST, GROUP, PAGE_TOKENS, (RING + 1) * PAGES))
    words = payload.words_of(memory)
    pool = BorrowedPool(PagedMemory.of_layout(memory.buffer, memory.layout))
    config = CacheConfig(
        IdentityConfig(model="bench", dtype="bytes"),
        TiersConfig(HostConfig(PROMPTS * PAGES * page_nbytes)),
        features=FeaturesConfig(admit=False, aside=False, tardiness=predicts),
        planner=PlannerConfig(recompute_s_per_token=1e-4),
    )
    slab = SlabConfig(folder, 4 * PROMPTS * PAGES * page_nbytes, page_nbytes, bytes(32))
    backend = await SlabBackend.open(slab, clock=RealClock())
    cache = await Cache.open(config, pool, group=GROUP, backend=backend)
    try:
        for tokens in PROMPT_TOKENS:
            await stored(cache, words, tokens)
        canaries = Canaries(cache, words, seed)
        begun_s = time.perf_counter()
        with slow_reads(random.Random(seed + 1)):
            await canaries.run(cuts)
        took_s = time.perf_counter() - begun_s
        decided = cache.stats().traffic.cuts
    finally:
        await cache.close()
    canaries.look_at_all()  # everything has drained
    return {
        "seed": seed,
        "predicts": predicts,
        "loads": canaries.loads,
        "cuts": canaries.cuts.total(),
        "with_reads_or_copies_under_way": canaries.undrained.total(),
        "cuts_by": dict(canaries.cuts),
        "under_way_by": dict(canaries.undrained),
        "decided_by": {why.value: count for why, count in decided.items()},
        "seconds": round(took_s, 1),
        "bytes_landed_after_release": canaries.landed_late_nbytes,
        "wrong_bytes_delivered": canaries.wrong_nbytes,
    }


async def stored(cache: Cache, words: NDArray[np.uint64], tokens: NDArray[np.uint32]) -> None:
    """Store a prompt on disk, from slots that no load uses."""
    match = await cache.match(tokens)
    slots = np.arange(PAGES) + RING * PAGES
    payload.fill(words, slots, payload.seeds(match.keys))
    async with cache.store(match, slots) as store:
        assert await store.written == PAGES


def claims(rows: list[dict[str, Any]]) -> list[Claim]:
    """What must hold of all cuts."""
    cuts, late, wrong = (
        sum(row[name] for row in rows)
        for name in ("cuts", "bytes_landed_after_release", "wrong_bytes_delivered")
    )
    return [
        Claim.at_least("cuts", cuts, CUTS, ""),
        Claim.at_most("bytes after release", late, 0, ""),
        Claim.at_most("wrong bytes delivered", wrong, 0, ""),
    ]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--cuts", type=int, default=CUTS)
    arguments.add_argument("--seed", type=int, default=13)
    chosen = arguments.parse_args()
    rows = []
    for predicts in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            work = measure(Path(folder), chosen.cuts // 2, chosen.seed, predicts=predicts)
            rows.append(asyncio.run(work))
    write(chosen.json, rows, claims(rows))


if __name__ == "__main__":
    main()
