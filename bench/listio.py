# SPDX-License-Identifier: Apache-2.0
"""List-IO on one disk: our slab beside the raw disk, plain calls a page, NIXL, LMCache and vLLM.

Every point of the grid moves the same pages between memory and one directory, engine after engine
in turns, the first turn to warm up; medians, the least and the greatest of all repetitions. Pages
lie in runs of 16 adjacent frames or each alone, their memory in random order. All engines bypass
the page cache (O_DIRECT): every read is cold, and nothing is dropped. All but the file-per-page
peers use the same memory and the slab's own preallocated file, for two buffers or two files of one
disk differed by up to 1.9 in their rate. None syncs: a write is timed until its acknowledgement,
and what is left over is written back before the next one's turn.

ours        `SlabBackend`: get and put in batches of 1,024 pages, all at once, every digest compared
raw         large extents to and from the same memory, taken as contiguous: compiled threads (1 to
            16, 256 KiB to 4 MiB) and NIXL (uring, aio). All are tried at every point; the fastest
            three and NIXL take part in the turns, and the best median is "best raw". Writes go one
            behind the other. Pages that lie alone are extents of a page.
per page    one preadv or pwritev a page in 8 threads, of Python or of compiled code; at most
            4,096 pages
peers       aiofiles (seek and readinto a page), NIXL POSIX (one request), LMCache 0.5 LocalDisk and
            fs_native, vLLM's fs tier (Python part). File-per-page peers have no layout: they run at
            the points with runs, with 1,024 pages and 256 MiB at most, and delete between writes.
            `make peers` installs them into an environment of their own; what is missing is a row.

Rows: {direction, layout, page_nbytes, engine, nbytes, gb_per_s, interval, cpu_s_per_gb (all threads
of the process), ratio_to_best_raw (median of the ratios turn by turn), ratio_interval, is_best_raw}
or {direction, layout, page_nbytes, engine, note}; {what: "overhead above the syscalls", ...}: CPU
of the loop's thread. `--soak N` runs N operations instead, and writes what they leave behind.
"""

import argparse
import asyncio
import gc
import importlib.metadata
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import starmap
from pathlib import Path
from typing import Any, NamedTuple

import _listio_plot
from _common import Claim, parser, write
from _listio_files import FsNative, LocalDisk, VllmFs
from _listio_ours import Jobs, Slab, overhead_row
from _listio_peers import AioFiles, MissingError, Nixl
from _listio_point import Engine, Figures, Point, in_turns, interval, sample
from _listio_raw import CANDIDATE_NBYTES, Extents, PerPage, candidates, open_direct
from _listio_soak import soak

from bodocache import jit

PAGES_NBYTES = (16 << 10, 64 << 10, 256 << 10, 2 << 20)
RUN = 16
POINT_NBYTES = 256 << 20
FINALISTS = 3
OVERHEAD_ROUNDS = 30
QUICK_NBYTES = 4 << 20
PEERS = ("aiofiles", "nixl", "lmcache", "vllm")
RUNS = f"runs of {RUN}"


class Scale(NamedTuple):
    """How much is measured."""

    pages_nbytes: tuple[int, ...]
    point_nbytes: int
    repetitions: int
    rounds: int  # of the overhead


class Bench:
    """One point: its engines, open on one directory."""

    def __init__(self, point: Point, folder: Path, stack: ExitStack) -> None:
        self.point = point
        self.notes: dict[str, str] = {}
        self._stack = stack
        self.slab = self._keep(Slab(point, folder / "slab"))
        self._fd = open_direct(self.slab.path)
        stack.callback(os.close, self._fd)
        self._peers = list(self._others(folder))
        gc.freeze()  # what peers imported is not looked at before every run

    def measure(self, scale: Scale) -> Iterator[dict[str, Any]]:
        """Rows of this point; writes first, since the reads want what they wrote."""
        for writes in (True, False):
            raw = self._raw(writes=writes)
            jobs = [] if writes else [self._jobs(checks=checks) for checks in (True, False)]
            engines = [self.slab, *raw, *jobs, *self._peers]
            figures = in_turns(self.point, engines, writes=writes, repetitions=scale.repetitions)
            yield from self._rows(figures, writes=writes)
            if writes:
                self.slab.write()  # the others wrote to its file, too
        if self.point.page_nbytes == min(scale.pages_nbytes):
            for writes in (True, False):
                yield overhead_row(self.slab, self.point, writes=writes, rounds=scale.rounds)

    def _keep(self, engine: Any) -> Any:
        self._stack.callback(engine.close)
        return engine

    def _jobs(self, *, checks: bool) -> Jobs:
        return Jobs(self.point, self._fd, checks=checks)

    def _raw(self, *, writes: bool) -> list[Engine]:
        """The fastest of all candidates in one trial, and NIXL over extents."""
        tried: list[Extents] = candidates(self.point, self._fd, writes=writes)
        calls = [one.write if writes else one.read for one in tried]
        calls[0]()
        seconds = [sample(call).wall_s for call in calls]
        ranked = [tried[i] for i in sorted(range(len(tried)), key=seconds.__getitem__)]
        extent_nbytes = CANDIDATE_NBYTES[2] if writes else min(2 << 20, self.point.run_nbytes)
        made = (
            self._made(Nixl, self.point, self._fd, queue, {"extent_nbytes": extent_nbytes})
            for queue in ("uring", "aio")
        )
        return [*ranked[:FINALISTS], *(one for one in made if one)]

    def _others(self, folder: Path) -> Iterator[Engine]:
        point, fd = self.point, self._fd
        yield PerPage(point, fd, compiled=False)
        yield PerPage(point, fd, compiled=True)
        made = [
            self._made(AioFiles, point, self.slab.path),
            *(self._made(Nixl, point, fd, queue) for queue in ("uring", "aio")),
        ]
        if point.run_pages > 1:
            made += [
                self._made(kind, point, folder / kind.__name__)
                for kind in (LocalDisk, FsNative, VllmFs)
            ]
        yield from (one for one in made if one)

    def _made(self, kind: Callable[..., Any], *arguments: Any) -> Any:
        options = arguments[-1] if isinstance(arguments[-1], dict) else {}
        try:
            return self._keep(kind(*arguments[: len(arguments) - bool(options)], **options))
        except MissingError as error:
            name = getattr(kind, "name", "NIXL POSIX")
            self.notes[name] = str(error)
            return None

    def _rows(self, figures: Mapping[str, Figures], *, writes: bool) -> Iterator[dict[str, Any]]:
        where = {
            "direction": "write" if writes else "read",
            "layout": self.point.layout,
            "page_nbytes": self.point.page_nbytes,
        }
        raw = [name for name in figures if name.startswith(("raw", "per page"))]
        best = max(raw, key=lambda name: statistics.median(figures[name].rates))
        for name, taken in figures.items():
            ratios = paired(taken.rates, figures[best].rates)
            yield where | {
                "engine": name,
                "nbytes": taken.nbytes,
                "gb_per_s": round(statistics.median(taken.rates), 3),
                "interval": interval(taken.rates),
                "cpu_s_per_gb": round(taken.cpu_s_per_gb, 4),
                "ratio_to_best_raw": round(statistics.median(ratios), 3),
                "ratio_interval": interval(ratios),
                "is_best_raw": name == best,
                "rates": [round(rate, 3) for rate in taken.rates],
            }
        for name, note in self.notes.items():
            yield where | {"engine": name, "note": note}


def paired(rates: Sequence[float], others: Sequence[float]) -> list[float]:
    """Ratios turn by turn: what disturbs a turn disturbs both."""
    return [rate / other for rate, other in zip(rates, others, strict=True)]


class Table:
    """The rows, to look up what a claim needs."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = {
            (row["direction"], row["layout"], row["page_nbytes"], row["engine"]): row
            for row in rows
            if "rates" in row
        }
        self._best = {key[:3]: key[3] for key, row in self._rows.items() if row["is_best_raw"]}

    def has(self, *key: Any) -> bool:
        """Whether there is such a row."""
        return key in self._rows

    def best_raw(self, *point: Any) -> str:
        """The name of the best raw method."""
        return self._best[point]

    def ratio(self, point: tuple[Any, ...], engine: str, other: str) -> float:
        """Median of the ratios turn by turn."""
        mine, theirs = (self._rows[*point, name]["rates"] for name in (engine, other))
        return statistics.median(paired(mine, theirs))

    def cpu_ratio(self, point: tuple[Any, ...], engine: str, other: str) -> float:
        """Of CPU seconds per GB."""
        mine, theirs = (self._rows[*point, name]["cpu_s_per_gb"] for name in (engine, other))
        return float(mine / theirs)

    def coalesced(self, point: tuple[Any, ...]) -> str:
        """The fastest of the raw methods that write extents."""
        names = [key[3] for key in self._rows if key[:3] == point and key[3].startswith("raw")]
        return max(names, key=lambda name: self._rows[*point, name]["gb_per_s"])


def claims_of(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """The targets, as far as their points were measured."""
    table, made = Table(rows), []
    ours, kib = Slab.name, 1024
    for page_nbytes, layout in ((2 << 20, RUNS), (2 << 20, "scattered"), (256 << 10, RUNS)):
        point = ("read", layout, page_nbytes)
        if table.has(*point, ours):
            best = table.best_raw(*point)
            title = f"read, {page_nbytes // kib} KiB, {layout}: of the best raw ({best})"
            made.append(Claim.at_least(title, table.ratio(point, ours, best), 0.95, ""))
    point = ("write", RUNS, 64 * kib)
    if table.has(*point, ours):
        raw = table.coalesced(point)
        title = f"write, 64 KiB, {RUNS}: "
        made.append(Claim.at_least(f"{title}of {raw}", table.ratio(point, ours, raw), 0.85, ""))
        for other, times in ((LocalDisk.name, 10), (VllmFs.name, 3)):
            if table.has(*point, other):
                ratio = table.ratio(point, ours, other)
                made.append(Claim.at_least(f"{title}times {other}", ratio, times, ""))
    point = ("read", RUNS, 16 * kib)
    for kind in ("Python", "compiled") if table.has(*point, ours) else ():
        other, title = f"per page, 8 {kind} threads", f"read, 16 KiB, {RUNS}: "
        ratio, cpu = (of(point, ours, other) for of in (table.ratio, table.cpu_ratio))
        made += [
            Claim.at_least(f"{title}times preadv {other}", ratio, 3, ""),
            Claim.at_most(f"{title}CPU per GB, of preadv {other}", cpu, 0.2, ""),
        ]
    return made + list(starmap(_digest_claim, _checked(table))) + _overhead_claims(rows)


def _checked(table: Table) -> Iterator[tuple[Table, tuple[Any, ...]]]:
    for page_nbytes, layout in (
        (2 << 20, RUNS),
        (256 << 10, RUNS),
        (64 << 10, RUNS),
        (16384, RUNS),
    ):
        if table.has("read", layout, page_nbytes, Slab.name):
            yield table, ("read", layout, page_nbytes)


def _digest_claim(table: Table, point: tuple[Any, ...]) -> Claim:
    names = [f"slab's threads alone, {kind} digests" for kind in ("with", "without")]
    cost = 1 - table.ratio(point, *names)
    return Claim.at_most(f"digest, {point[2] // 1024} KiB, {point[1]}: cost", cost, 0.05, "")


def _overhead_claims(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    return [
        Claim.at_most(
            f"Python a page, {row['direction']}, {row['layout']}, batches of {row['batch_pages']}",
            *(row["loop_cpu_us_per_page"], 3, "us"),
        )
        for row in rows
        if "loop_cpu_us_per_page" in row
    ]


def run(scale: Scale, folder: Path) -> list[dict[str, Any]]:
    """All points, one after the other; each leaves nothing behind."""
    rows = []
    for page_nbytes in scale.pages_nbytes:
        for run_pages in (RUN, 1):
            point = Point.of(page_nbytes, run_pages, scale.point_nbytes)
            with tempfile.TemporaryDirectory(dir=folder) as place, ExitStack() as stack:
                for row in Bench(point, Path(place), stack).measure(scale):
                    rows.append(row)
                    print(_line(row), file=sys.stderr, flush=True)
    return rows


def _line(row: Mapping[str, Any]) -> str:
    if "loop_cpu_us_per_page" in row:
        return f"{row['direction']:6}{row['layout']:11} {row['loop_cpu_us_per_page']} us a page"
    where = f"{row['direction']:6}{row['layout']:11}{row['page_nbytes'] // 1024:5} KiB "
    if "note" in row:
        return f"{where}{row['engine']:42}{row['note']}"
    return (
        f"{where}{row['engine']:42}{row['gb_per_s']:7.3f} GB/s {row['interval']!s:16}"
        f"{row['cpu_s_per_gb']:8.3f} CPU s/GB  x{row['ratio_to_best_raw']:6.3f}"
        f"{' best raw' if row['is_best_raw'] else ''}"
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _arguments() -> argparse.Namespace:
    made = parser(__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--plot", metavar="FILE", type=Path, help="an .svg or .png of the rates")
    made.add_argument("--repetitions", type=int, default=5, help="of every engine, at least 5")
    made.add_argument("--quick", action="store_true", help="two small points: does it run?")
    made.add_argument("--soak", metavar="N", type=int, help="N operations on one slab instead")
    made.add_argument("--dir", type=Path, default=Path(), help="on the disk to measure")
    return made.parse_args()


def main() -> None:
    arguments = _arguments()
    jit.warm()
    if arguments.quick:
        scale = Scale((16 << 10, 64 << 10), QUICK_NBYTES, 2, 3)
    else:
        scale = Scale(PAGES_NBYTES, POINT_NBYTES, arguments.repetitions, OVERHEAD_ROUNDS)
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="listio-") as folder:
        if arguments.soak:
            rows, claims = asyncio.run(soak(Path(folder), arguments.soak))
        else:
            rows = run(scale, Path(folder))
            claims = claims_of(rows)
    peers = {} if arguments.soak else {"peers": {name: _version(name) for name in PEERS}}
    write(arguments.json, rows, claims, **peers)
    if arguments.plot:
        _listio_plot.draw(arguments.plot, [row for row in rows if "rates" in row], RUNS)


if __name__ == "__main__":
    main()
