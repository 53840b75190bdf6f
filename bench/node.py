# SPDX-License-Identifier: Apache-2.0
"""What does a load through a node cost beside one in-process, and whose loop stands still?

A load of pages in host memory is timed through both, in turns: match, load, await. Then the engine
serves such loads beside a thread that burns Python, and the loop that moves pages is sampled: the
engine's own in-process, the node's in its process.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import _common
import numpy as np
from _common import Claim
from _node_process import Gaps

from bodocache.cache import Cache
from bodocache.config import load_config
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory
from bodocache.node.client import NodeCache
from bodocache.pools import BorrowedPool, OwnedPool

GROUP = Group("kv", layers=8, heads=4, head_dim=64, itemsize=2)
PAGE_TOKENS = 16  # 128 KiB a page
MOST_PAGES = 64
COUNTS = (1, 16, MOST_PAGES)
LOADS = 400
GAPS_S = 20.0  # 10,000 samples: the p99.9 is the tenth longest
TOML = """
[identity]
model = "bench"
dtype = "bytes"

[tiers.host]
capacity_bytes = "64 MiB"

[node]
page_tokens = 16
layers = 8
heads = 4
head_dim = 64
itemsize = 2
group = "kv"
"""


class NodeProcess:
    """A node in a process of its own, which measures itself."""

    def __init__(self, config: Path, path: Path) -> None:
        script = Path(__file__).with_name("_node_process.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(config), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._line()

    def gaps(self, *, then: str = "rest") -> dict[str, float]:
        """Of its loop, since the last call; ``then``: "sample" on, or "rest"."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{then}\n")
        self._process.stdin.flush()
        figures: dict[str, float] = json.loads(self._line())
        return figures

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the node ended; see above")
        return line


class Engine:
    """A cache over an engine's own pool, so that every load copies."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._slots = np.arange(MOST_PAGES)

    async def store(self) -> None:
        """Store MOST_PAGES pages."""
        match = await self.cache.match(_prompt(MOST_PAGES))
        async with self.cache.store(match, self._slots):
            pass

    async def load(self, pages: int) -> float:
        """Seconds of one load of ``pages``."""
        begun_s = time.perf_counter()
        match = await self.cache.match(_prompt(pages))
        with self.cache.load(match, self._slots[:pages]) as load:
            loaded = await load
        took_s = time.perf_counter() - begun_s
        assert loaded.pages == pages, "the pages lie in host memory"
        await load.released
        return took_s


def _prompt(pages: int) -> Any:
    return np.arange(pages * PAGE_TOKENS, dtype=np.uint32)


def _pool() -> BorrowedPool:
    layout = Layout(LayoutKind.LAYER_FIRST, GROUP, PAGE_TOKENS, MOST_PAGES)
    owned = OwnedPool(layout)
    owned.buffer.random_(0, 256)
    return BorrowedPool(PagedMemory.of_layout(owned.buffer, layout))


@asynccontextmanager
async def _engines(config: Path, path: Path) -> AsyncIterator[dict[str, Engine]]:
    loaded = load_config(config)
    async with (
        await Cache.open(loaded, _pool(), group=GROUP) as here,
        await NodeCache.attach(path, loaded, _pool(), group=GROUP) as there,
    ):
        engines = {"in-process": Engine(here), "node": Engine(there)}
        for engine in engines.values():
            await engine.store()
        yield engines


async def _time_loads(engines: dict[str, Engine], node: NodeProcess) -> list[dict[str, Any]]:
    """Latency in turns; CPU time of the processes that took part, one mode after the other."""
    rows = []
    for pages in COUNTS:
        seconds: dict[str, list[float]] = {mode: [] for mode in engines}
        for turn in range(LOADS + 20):
            for mode, engine in engines.items():
                took_s = await engine.load(pages)
                if turn >= 20:  # the first ones warm caches up
                    seconds[mode].append(took_s)
        for mode, sample in seconds.items():
            timing = _common.timing(sample)
            cpu_s = await _cpu_s(engines[mode], pages, node if mode == "node" else None)
            figures = {"median_us": 1e6 * timing.median_s, "p99_us": 1e6 * timing.p99_s}
            figures |= {f"{name}_cpu_us": 1e6 * it / LOADS for name, it in cpu_s.items()}
            rows.append({"what": "load", "mode": mode, "pages": pages, **figures})
    return rows


async def _cpu_s(engine: Engine, pages: int, node: NodeProcess | None) -> dict[str, float]:
    if node is not None:
        node.gaps()
    begun_s = time.process_time()
    for _ in range(LOADS):
        await engine.load(pages)
    mine = time.process_time() - begun_s
    theirs = 0.0 if node is None else node.gaps()["cpu_s"]
    return {"engine": mine, "node": theirs}


@contextmanager
def _burning() -> Iterator[None]:
    """A thread that burns Python, as an engine's own code does."""
    over = threading.Event()

    def burn() -> None:
        count = 0
        while not over.is_set():
            count += 1

    thread = threading.Thread(target=burn)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


async def _sample(engine: Engine, gaps: Gaps) -> dict[str, float]:
    """Gaps of the loop that we run on, while the engine loads 16 pages every 5 ms or so."""
    async with asyncio.TaskGroup() as group:
        sampling = group.create_task(gaps.sample())
        ends_s = time.perf_counter() + GAPS_S
        while time.perf_counter() < ends_s:
            await engine.load(16)
            await asyncio.sleep(0.005)
        sampling.cancel()
    return gaps.take()


async def _measure(config: Path, path: Path, node: NodeProcess) -> list[dict[str, Any]]:
    async with _engines(config, path) as engines:
        rows = await _time_loads(engines, node)
        for beside in ("nothing", "a thread that burns Python"):
            for mode, engine in engines.items():
                node.gaps(then="sample")
                if beside == "nothing":
                    ours = await _sample(engine, Gaps())
                else:
                    with _burning():
                        ours = await _sample(engine, Gaps())
                figures = node.gaps() if mode == "node" else ours
                rows.append({"what": "gaps", "mode": mode, "beside": beside, **figures})
    return rows


def main() -> None:
    arguments = _common.parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config, path = Path(folder) / "node.toml", Path(folder) / "socket"
        config.write_text(TOML)
        node = NodeProcess(config, path)
        try:
            rows = asyncio.run(_measure(config, path, node))
        finally:
            node.close()
    _common.write(arguments.json, rows, _claims(rows))


def _claims(rows: list[dict[str, Any]]) -> list[Claim]:
    cpu = {
        (row["mode"], row["pages"]): row["engine_cpu_us"] + row["node_cpu_us"]
        for row in rows
        if row["what"] == "load"
    }
    more = statistics.median(cpu["node", it] - cpu["in-process", it] for it in COUNTS)
    gaps = {(row["mode"], row["beside"]): row["p99_9_ms"] for row in rows if row["what"] == "gaps"}
    burning = "a thread that burns Python"
    return [
        Claim.at_most("CPU that a load through a node takes more", more, 1000, "us"),
        *(
            Claim.at_most(f"gaps of the {mode} loop, p99.9, beside {beside}", gap, 5, "ms")
            for (mode, beside), gap in gaps.items()
            if (mode, beside) != ("in-process", burning)
        ),
    ]


if __name__ == "__main__":
    main()
