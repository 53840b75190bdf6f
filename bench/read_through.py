# SPDX-License-Identifier: Apache-2.0
"""Gets of every n-th page of a run of frames: one read through the holes, against one each.

Two readers of one slab, which differ in ``read_through_nbytes`` alone, get batches of 1 MiB in
turns, each its own, digests included. ``mb_per_s`` counts wanted bytes only; ``cpu_s_per_gb`` is
the process's. Reading through a hole that is longer than the device's bytes/s over its requests/s
cannot pay.
"""

import asyncio
import itertools
import math
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _common import Claim, parser, write
from numpy.typing import NDArray

from bodocache import jit
from bodocache.clock import RealClock
from bodocache.io.backend import Status
from bodocache.io.config import OpenMode, SlabConfig
from bodocache.io.slab import SlabBackend
from bodocache.testing import NumberedPages

SLAB_NBYTES = 512 << 20
BATCH_NBYTES = 1 << 20  # wanted
CASES = ((4096, 2), (4096, 4), (16384, 2), (16384, 3), (32768, 2), (65536, 2))  # page, every n-th
ROUNDS, BATCHES = 15, 48
WAYS = ("single", "through")


async def fill(config: SlabConfig) -> NDArray[np.void]:
    """A slab of pages in the order of their frames; return their records."""
    backend = await SlabBackend.open(config, clock=RealClock())
    pages, count = NumberedPages(config.page_nbytes), config.frame_count
    batch = pages.batch(list(range(count)), backend.reserve(count, after=-1))
    buffers = pages.buffers(256)
    for first in range(0, count, 256):
        part = batch[first : first + 256]
        pages.fill(buffers, list(range(first, first + len(part))))
        part["slot"] = np.arange(len(part))
        await backend.put(part, buffers, deadline_s=math.inf).drained()
    await backend.close()
    return batch


async def read(
    backend: SlabBackend, batches: list[NDArray[np.void]], in_flight: int
) -> tuple[float, float]:
    """Seconds, and CPU seconds, of getting ``batches``."""
    waiting = iter(batches)
    buffers = [
        NumberedPages(backend.page_nbytes).buffers(len(batches[0])) for _ in range(in_flight)
    ]
    for buffer in buffers:
        buffer[:] = 1  # mapped now

    async def one_after_another(buffer: NDArray[np.uint8]) -> None:
        for batch in waiting:
            transfer = backend.get(batch, buffer, deadline_s=math.inf)
            await transfer.drained()
            assert (transfer.statuses == Status.LANDED).all()

    since_s, cpu_since_s = time.monotonic(), time.process_time()
    async with asyncio.TaskGroup() as group:
        for buffer in buffers:
            group.create_task(one_after_another(buffer))
    return time.monotonic() - since_s, time.process_time() - cpu_since_s


async def measure(folder: Path, page_nbytes: int, step: int) -> list[dict[str, Any]]:
    """Both ways over one slab, with one batch and with four at once."""
    count = SLAB_NBYTES // page_nbytes
    writer = SlabConfig(folder, 4096 + count * (page_nbytes + 512), page_nbytes, b"b" * 32)
    stored = await fill(writer)
    reader = replace(writer, mode=OpenMode.READER, read_through_nbytes=0)
    through = replace(reader, read_through_nbytes=(step - 1) * page_nbytes)
    backends = [await SlabBackend.open(config, clock=RealClock()) for config in (reader, through)]
    wanted, chance, rows = BATCH_NBYTES // page_nbytes, np.random.default_rng(step), []
    for in_flight in (1, 4):
        taken: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for turn in range(ROUNDS + 1):
            starts = chance.permutation(count // (wanted * step))
            firsts = itertools.cycle((starts * wanted * step).tolist())
            for way in WAYS[:: 1 if turn % 2 else -1]:
                batches = []
                for first in itertools.islice(firsts, BATCHES):
                    batches.append(stored[first : first + wanted * step : step].copy())
                    batches[-1]["slot"] = np.arange(wanted)
                seconds = await read(backends[WAYS.index(way)], batches, in_flight)
                if turn:  # the first is a warm-up
                    taken[way].append(seconds)
        rows.append(row_of(page_nbytes, step, in_flight, taken))
    for backend in backends:
        await backend.close()
    return rows


def row_of(
    page_nbytes: int, step: int, in_flight: int, taken: dict[str, list[tuple[float, float]]]
) -> dict[str, Any]:
    """Medians, and the middle half of the ratios of one round."""
    nbytes = BATCHES * BATCH_NBYTES
    row: dict[str, Any] = {"page_nbytes": page_nbytes, "every": step, "in_flight": in_flight}
    for way, pairs in taken.items():
        row[f"{way}_mb_per_s"] = round(nbytes / 1e6 / statistics.median(s for s, _ in pairs), 1)
        cpu_s = statistics.median(cpu_s for _, cpu_s in pairs)
        row[f"{way}_cpu_s_per_gb"] = round(cpu_s / nbytes * 1e9, 3)
    ratios = [
        one[0] / other[0] for one, other in zip(taken["single"], taken["through"], strict=True)
    ]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return row | {"ratio": round(middle, 2), "ratio_middle_half": [round(low, 2), round(high, 2)]}


async def main_async() -> list[dict[str, Any]]:
    rows = []
    for page_nbytes, step in CASES:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            rows += await measure(Path(folder), page_nbytes, step)
    return rows


def main() -> None:
    arguments = parser(__doc__).parse_args()
    jit.warm()
    rows = asyncio.run(main_async())
    worst = min(row["ratio"] for row in rows if row["page_nbytes"] * (row["every"] - 1) <= 16384)
    claims = [Claim.at_least("holes up to 16 KiB, worst case", worst, 1.0, "of single reads")]
    write(arguments.json, rows, claims, batch_nbytes=BATCH_NBYTES, rounds=ROUNDS)


if __name__ == "__main__":
    main()
