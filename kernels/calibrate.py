# SPDX-License-Identifier: Apache-2.0
"""Measures every path of ``copy_pages``, and scoring, on one GPU: what ``select`` chooses by.

Each path works in a process of its own, which may crash or hang, and first has to move every byte
right, in whole memories; then it is timed, while nothing else runs. A path that fails anywhere in a
direction stays unproven there. Processes check side by side and take turns with the clock: meant to
take less than 20 s in all; one after the other, and longer, on a GPU that serves one process at a
time.
"""

import argparse
import contextlib
import fcntl
import itertools
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from bodocache.errors import BodoCacheError
from bodocache.kernels import calibrate_scoring, gpu, select
from bodocache.kernels.calibrate_cases import Case, Grid, Pools, cases_of, prepared
from bodocache.kernels.launch import MAX_PROGRAMS
from bodocache.kernels.select import CopyPath, Direction, Measured, Scored, Table, describe

REPEATS = 7
BUDGET_S = 4.0  # of the clock, for a path: what it does not get to stays unmeasured
CHECK_LIMIT_S = 20  # of a process's checks, from where it begins them
TURN_LIMIT_S = 10  # of its turn with the clock
LIMIT_S = 40  # of a process, with the turns of all others
SCORING = "scoring"

_CHILD = (  # this module, from where this process has it
    "import sys; sys.path[:] = {path!r};"
    " from bodocache.kernels.calibrate import main; sys.exit(main())"
)

_PATHS = {
    Direction.HOST_TO_DEVICE: tuple(CopyPath),
    Direction.DEVICE_TO_HOST: tuple(CopyPath),
    Direction.WITHIN_DEVICE: (CopyPath.TORCH, CopyPath.SM, CopyPath.BULK),
}


@dataclass(frozen=True, slots=True)
class Failure:
    """What is not proven, and why."""

    what: str  # a direction and a path, a path alone, or scoring
    why: str


Found = Measured | Scored | Failure
Note = Callable[[str], None]
Seconds = Callable[[Callable[[], object], torch.device], float]


def calibrate(device: torch.device, *, note: Note = lambda _: None) -> tuple[Table, list[Failure]]:
    """Check and time every path on ``device``; ``note`` is told of each that is done.

    Raises:
        BodoCacheError: ``device`` is no CUDA device, or serves one process at a time and this one
            uses CUDA.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        raise BodoCacheError(f"calibrate: {device} is no CUDA device; nothing to measure here")
    names = [*CopyPath, SCORING]
    is_exclusive = gpu.is_exclusive(device)
    if is_exclusive:
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            raise BodoCacheError(
                f"calibrate: {device} serves one process at a time (compute mode"
                " EXCLUSIVE_PROCESS) and this one may hold it; run `bodocache calibrate` by itself"
            )
        note("one process at a time (compute mode EXCLUSIVE_PROCESS): it takes longer")
    at_once = 1 if is_exclusive else len(names)
    with tempfile.NamedTemporaryFile() as turn, ThreadPoolExecutor(at_once) as threads:
        commands = [_command(name, device, turn.name) for name in names]
        said = list(threads.map(partial(measured_apart, note=note), names, commands))
    return tabled(describe(device), itertools.chain.from_iterable(said))


def tabled(device: str, found: Iterable[Found]) -> tuple[Table, list[Failure]]:
    """The table of what was found, less what cannot be trusted, and the failures."""
    items = list(found)
    failures = [item for item in items if isinstance(item, Failure)]
    failed = {failure.what for failure in failures}
    points = tuple(
        item
        for item in items
        if isinstance(item, Measured)
        and not {str(item.path), _what(item.direction, item.path)} & failed
    )
    scored = () if SCORING in failed else tuple(i for i in items if isinstance(i, Scored))
    return Table(device, points, scored), failures


def measured_apart(name: str, command: Sequence[str], *, note: Note) -> list[Found]:
    """What a process finds out about ``name``: one failure of it all where it ends badly."""
    try:
        ran = subprocess.run(  # noqa: S603 -- this module again
            command,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        note(f"{name}: hangs")
        return [Failure(name, f"in a process of its own it did not end within {LIMIT_S} s")]
    if ran.returncode == -signal.SIGALRM:
        note(f"{name}: hangs")
        why = f"it did not end its checks within {CHECK_LIMIT_S} s, or its turn in {TURN_LIMIT_S}"
        return [Failure(name, why)]
    note(f"{name}: done")
    if ran.returncode:
        last = ran.stderr.strip().splitlines()[-1:] or [""]
        return [Failure(name, f"its process ended with {ran.returncode}: {last[0][:300]}")]
    return [_parsed(line) for line in ran.stdout.splitlines() if line.startswith("{")]


def measure(
    path: CopyPath, device: torch.device, grid: Grid, seconds: Seconds, turn: Path | None = None
) -> Iterator[Found]:
    """Check ``path`` at all of ``grid``, then time it, where it was right."""
    pools = Pools(device, 2 * max(grid.totals_nbytes))
    right: list[tuple[Case, Callable[[], None]]] = []
    with turned(turn, fcntl.LOCK_SH, CHECK_LIMIT_S):
        for direction in (d for d in Direction if path in _PATHS[d]):
            cases = list(cases_of(direction, grid, pools))
            copies = [prepared(case, path) for case in cases]
            why = next(
                (w for c, copy in zip(cases, copies, strict=True) if (w := c.why_wrong(copy))), None
            )
            if why is not None:
                yield Failure(_what(direction, path), why)
            else:
                right += zip(cases, copies, strict=True)
    right.sort(key=lambda pair: pair[0].nbytes)
    with turned(turn, fcntl.LOCK_EX, TURN_LIMIT_S):
        begun_s = time.monotonic()
        for case, copy in right:
            if time.monotonic() - begun_s > BUDGET_S:
                return
            rate = case.nbytes / seconds(copy, device)
            blocks = _blocks(path, case.direction)
            yield Measured(case.direction, path, case.piece_nbytes, case.nbytes, rate, blocks)


@contextlib.contextmanager
def turned(turn: Path | None, kind: int, limit_s: int) -> Iterator[None]:
    """Beside others that hold the lock as well, or alone (LOCK_EX); without a lock, at once.

    The process that holds it for longer than ``limit_s`` ends, by SIGALRM, in whatever call it
    hangs, and its lock is free. What it waits for the lock does not count.
    """
    if turn is None:
        yield
        return
    with turn.open("rb") as file:
        fcntl.flock(file, kind)
        signal.alarm(limit_s)
        try:
            yield
        finally:
            signal.alarm(0)


def seconds_on(call: Callable[[], object], device: torch.device) -> float:
    """Median of REPEATS calls, each from its submission to its end."""
    taken = []
    for _ in range(REPEATS + 1):  # the first warms up
        torch.cuda.synchronize(device)
        started_s = time.perf_counter()
        call()
        torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started_s)
    return sorted(taken[1:])[REPEATS // 2]


def _blocks(path: CopyPath, direction: Direction) -> int:
    if path not in {CopyPath.SM, CopyPath.BULK}:
        return 0
    return MAX_PROGRAMS if direction is Direction.WITHIN_DEVICE else select.LINK_BLOCKS


def _what(direction: Direction, path: CopyPath) -> str:
    return f"{direction} by {path}"


def _parsed(line: str) -> Found:
    said = json.loads(line)
    if "why" in said:
        return Failure(said["what"], said["why"])
    return select.scored(said) if "work" in said else select.measured(said)


def _command(name: str, device: torch.device, turn: str) -> list[str]:
    options = ("--only", name, "--device", str(device.index or 0), "--turn", turn)
    return [sys.executable, "-c", _CHILD.format(path=sys.path), *options]


def keep(table: Table) -> Path | None:
    """Keep a table that proves something; None where nothing was proven: an earlier one stays."""
    return select.save_table(table) if table.points or table.scored else None


NOTHING_PROVEN = "nothing was proven: no table is kept, and an earlier one stays as it is"


def main() -> int:
    """``python -m bodocache.kernels.calibrate``: what ``bodocache calibrate`` does, with no more
    than torch and triton. Prints the best path of each point; 2 where there is no GPU, 1 where
    nothing was proven.
    """
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--device", type=int, default=0, help="index; default: 0")
    arguments.add_argument("--only", help=argparse.SUPPRESS)
    arguments.add_argument("--turn", type=Path, help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("calibrate: no CUDA device\n")
        return 2
    device = torch.device("cuda", chosen.device)
    if chosen.only is not None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # whatever the caller made of it
        torch.cuda.set_device(device)
        for found in _only(chosen.only, device, chosen.turn):
            print(json.dumps(asdict(found)), flush=True)  # noqa: T201 -- read by ``calibrate``
        return 0
    table, failures = calibrate(device, note=lambda text: print(text, flush=True))  # noqa: T201
    for line in report(table, failures):
        print(line)  # noqa: T201 -- a command's output
    kept = keep(table)
    print(f"kept in {kept}" if kept else NOTHING_PROVEN)  # noqa: T201
    return 0 if kept else 1


def _only(name: str, device: torch.device, turn: Path) -> Iterator[Found]:
    own = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(own):  # the legacy one takes no batch of copies
        if name != SCORING:
            yield from measure(CopyPath(name), device, Grid(), seconds_on, turn)
            return
        with turned(turn, fcntl.LOCK_EX, TURN_LIMIT_S):
            for found in calibrate_scoring.measure(device, seconds_on):
                yield found if isinstance(found, Scored) else Failure(SCORING, found)


def report(table: Table, failures: list[Failure]) -> list[str]:
    """Lines for a person: the best path of each point, then what is not proven and why."""
    best: dict[tuple[Direction, int, int], Measured] = {}
    for point in table.points:
        key = (point.direction, point.piece_nbytes, point.nbytes)
        if key not in best or point.bytes_per_s > best[key].bytes_per_s:
            best[key] = point
    lines = [
        f"{direction:16} {piece_nbytes:>8} B pieces {nbytes:>10} B: {point.path} "
        f"{point.bytes_per_s / 1e9:.1f} GB/s"
        for (direction, piece_nbytes, nbytes), point in sorted(best.items())
    ]
    lines += [
        f"{p.work:16} {p.num_pages:>9} pages: {p.place} {p.seconds * 1e6:.1f} us"
        for p in table.scored
    ]
    return lines + [f"unproven: {failure.what}: {failure.why}" for failure in failures]


if __name__ == "__main__":
    sys.exit(main())
