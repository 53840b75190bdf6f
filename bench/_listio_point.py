# SPDX-License-Identifier: Apache-2.0
"""One point of the grid: its pages, where they lie in the file and in memory, and what is timed.

Every engine moves the same pages between the same memory and the same disk. Memory is in huge pages
where there are any, as a pool's is, and mapped before anything is timed.
"""

import gc
import mmap
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from bodocache.digest import digest_rows

Pages = NDArray[np.uint8]
Numbers = NDArray[np.int64]

GAP_NBYTES = 64 << 10  # between runs at least: more than a slab reads through


@dataclass(frozen=True, slots=True)
class Point:
    """``count`` pages in runs of ``run_pages`` adjacent frames, as far apart as they are long.

    Page i has the bytes ``source[slots[i]]``, lies in ``frames[i]`` and is read to
    ``target[slots[i]]``. Slots are in random order, and so are the runs.
    """

    page_nbytes: int
    run_pages: int
    frames: Numbers
    slots: Numbers
    source: Pages
    target: Pages
    digests: NDArray[np.uint64]  # [count, 2], without the seed

    @classmethod
    def of(cls, page_nbytes: int, run_pages: int, nbytes: int) -> "Point":
        """A point of about ``nbytes``: whole runs, at least two."""
        chance = np.random.default_rng(page_nbytes + run_pages)
        runs = max(2, nbytes // (page_nbytes * run_pages))
        firsts = chance.permutation(runs) * (run_pages + _gap(page_nbytes, run_pages))
        count = runs * run_pages
        slots = chance.permutation(count)
        source, target = memory(count, page_nbytes), memory(count, page_nbytes)
        source.view(np.uint64)[:] = chance.integers(1 << 63, size=source.size // 8).reshape(
            count, -1
        )
        frames = (firsts[:, None] + np.arange(run_pages)).ravel()
        digests = digest_rows(source, slots)
        return cls(page_nbytes, run_pages, frames, slots, source, target, digests)

    @property
    def count(self) -> int:
        """How many pages there are."""
        return len(self.frames)

    @property
    def frame_count(self) -> int:
        """How many frames the file needs, those between the runs included."""
        runs = self.count // self.run_pages
        return runs * (self.run_pages + _gap(self.page_nbytes, self.run_pages))

    @property
    def run_nbytes(self) -> int:
        """Bytes that are adjacent in the file."""
        return self.run_pages * self.page_nbytes

    @property
    def layout(self) -> str:
        """Its name in tables."""
        return "scattered" if self.run_pages == 1 else f"runs of {self.run_pages}"


def _gap(page_nbytes: int, run_pages: int) -> int:
    return max(run_pages, GAP_NBYTES // page_nbytes)


class Engine(Protocol):
    """One way to write the pages of a point and to read them again."""

    @property
    def name(self) -> str:
        """Its name in tables."""
        ...

    @property
    def count(self) -> int:
        """It moves the first so many pages."""
        ...

    def clear(self) -> None:
        """Forget what was written, before a write; not timed."""
        ...

    def write(self) -> None:
        """Write all pages; return when all are acknowledged."""
        ...

    def read(self) -> None:
        """Read all pages."""
        ...

    def landed(self) -> tuple[Pages, Numbers]:
        """Where the pages were read to: memory, and the row of each page in it."""
        ...

    def close(self) -> None:
        """Let go of files and threads."""
        ...


class Sample(NamedTuple):
    """One run of one engine."""

    wall_s: float
    cpu_s: float  # of all threads of this process


class Figures(NamedTuple):
    """What the runs of one engine at one point came to."""

    nbytes: int
    samples: list[Sample]

    @property
    def rates(self) -> list[float]:
        """GB/s of every run."""
        return [self.nbytes / sample.wall_s / 1e9 for sample in self.samples]

    @property
    def cpu_s_per_gb(self) -> float:
        """Median of all runs."""
        return statistics.median(sample.cpu_s for sample in self.samples) / (self.nbytes / 1e9)


def memory(count: int, nbytes: int) -> Pages:
    """u8[count, nbytes] of zeros, mapped, at a multiple of the block."""
    mapping = mmap.mmap(-1, max(1, count * nbytes))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    pages = np.frombuffer(mapping, np.uint8)[: count * nbytes].reshape(count, nbytes)
    pages[:] = 0
    return pages


def in_threads(count: int, target: Callable[..., None], *arguments: object) -> None:
    """Run ``target`` in so many threads, and wait for all."""
    threads = [threading.Thread(target=target, args=arguments) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def interval(values: Sequence[float]) -> list[float]:
    """The least and the greatest: of five runs they enclose the median 15 times in 16."""
    return [round(min(values), 3), round(max(values), 3)]


def sample(call: Callable[[], None]) -> Sample:
    """Time one call."""
    gc.collect()
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    call()
    return Sample(time.perf_counter() - wall_s, time.process_time() - cpu_s)


def in_turns(
    point: Point, engines: Sequence[Engine], *, writes: bool, repetitions: int
) -> dict[str, Figures]:
    """Every engine in turns, once to warm up and then ``repetitions`` times.

    Who begins changes from turn to turn. What one engine left to be written back is written before
    the next one starts. In the first turn of reads every byte is checked.
    """
    samples: dict[str, list[Sample]] = {engine.name: [] for engine in engines}
    for turn in range(repetitions + 1):
        shift = turn % len(engines)
        for engine in (*engines[shift:], *engines[:shift]):
            if writes:
                engine.clear()
                os.sync()
            taken = sample(engine.write if writes else engine.read)
            if turn:
                samples[engine.name].append(taken)
            elif not writes:
                _check(point, engine)
    counts = {engine.name: engine.count for engine in engines}
    return {
        name: Figures(counts[name] * point.page_nbytes, taken) for name, taken in samples.items()
    }


def _check(point: Point, engine: Engine) -> None:
    pages, rows = engine.landed()
    pages[:] = 0
    engine.read()
    pages, rows = engine.landed()
    found = digest_rows(pages, rows)
    if not (found == point.digests[: engine.count]).all():
        raise RuntimeError(f"{engine.name}: read other bytes than were written")
