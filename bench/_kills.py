# SPDX-License-Identifier: Apache-2.0
"""Kill -9 of a slab's writer: at any moment, or as it enters a chosen system call."""

import asyncio
import math
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from _oracle import Oracle, Tally

import bodocache

PAGE_NBYTES = (65536, 262144, 20016, 131072)  # one directory each; the third has padded frames
_IMPORTED_FROM = Path(bodocache.__file__).parents[1]  # the victims' code is ours
REACH_S = 10.0  # for a victim to come to its system call


class Unavailable(Exception):
    """This machine cannot run a campaign; the message says why."""


class Point(NamedTuple):
    """The ``when``-th time that a thread of the victim enters a system call."""

    call: str
    when: int


class Victims:
    """The process that forks victims (_victims.py)."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._orders: IO[str] = process.stdin
        self._answers: IO[str] = process.stdout

    def begin(self, order: str) -> int:
        """Start a victim; return its process id."""
        self._orders.write(order)
        self._orders.flush()
        return int(self._answers.readline())

    def has_ended(self, within_s: float) -> bool:
        """Whether the victim is dead by then."""
        return bool(select.select([self._answers], [], [], within_s)[0])

    def exit_code(self) -> int:
        """How the victim ended."""
        return int(self._answers.readline())

    def kill(self, pid: int) -> None:
        """Kill -9.

        Raises:
            RuntimeError: it was dead already.
        """
        os.kill(pid, signal.SIGKILL)
        self.expect_killed()

    def expect_killed(self) -> None:
        """Wait for the victim's end.

        Raises:
            RuntimeError: it was not killed.
        """
        code = self.exit_code()
        if code != -signal.SIGKILL:
            raise RuntimeError(f"the victim failed by itself (exit code {code})")


@contextmanager
def victims() -> Iterator[Victims]:
    """Victims, until the end of the block."""
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("_victims.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(_IMPORTED_FROM)},
    ) as process:
        try:
            yield Victims(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


def random_kills(
    folder: Path, count: int, *, seed: int = 20261124, report: Callable[[Tally], None] | None = None
) -> Tally:
    """Kill ``count`` writers: half of them at a random moment, half as soon as one writes."""
    chance, tally, begin_s = random.Random(seed), Tally(), time.monotonic()
    oracles = _oracles(folder)
    with victims() as them:
        for turn in range(count):
            oracle = oracles[turn % len(oracles)]
            pid = them.begin(oracle.order(seed + turn))
            if turn % 4:  # the others may die while they open the slab
                oracle.wait_for_the_first_write()
            time.sleep(chance.uniform(0.01, 0.08))  # the moment of death is the point
            if turn % 2:
                oracle.wait_for_a_write()
            them.kill(pid)
            _account(oracle, tally)
            tally.seconds = time.monotonic() - begin_s
            if report is not None:
                report(tally)
    return tally


def points(count: int) -> list[Point]:
    """Where to kill, evenly spread.

    A put is a pwritev of the payload and one of the headers for each extent, a durable one two
    fdatasyncs; pwrite64 are the lock's process id and the superblock of an opening.
    """
    whens = {"pwritev": range(1, 33), "fdatasync": range(1, 17), "pwrite64": (1, 2)}
    every = [Point(call, when) for call, chosen in whens.items() for when in chosen]
    step = len(every) / count
    return [every[math.ceil((i + 1) * step) - 1] for i in range(count)]


def chosen_kills(
    folder: Path,
    chosen: Sequence[Point],
    *,
    seed: int = 20261125,
    report: Callable[[Tally], None] | None = None,
) -> Tally:
    """Kill a writer at each point, before the kernel does anything for the call.

    Raises:
        Unavailable: see :func:`traced`.
    """
    tally, begin_s, oracles = Tally(), time.monotonic(), _oracles(folder)
    with victims() as them:
        for turn, point in enumerate(chosen):
            oracle = oracles[turn % len(oracles)]
            share = 1.0 if point.call == "fdatasync" else 0.3
            order = oracle.order(seed + turn, sync_share=share, queue_depth=1, waits=True)
            pid = them.begin(order)
            tally.missed += not _reaches(them, pid, point, oracle)
            _account(oracle, tally)
            tally.seconds = time.monotonic() - begin_s
            if report is not None:
                report(tally)
    return tally


def _reaches(them: Victims, pid: int, point: Point, oracle: Oracle) -> bool:
    """Let the victim begin, and die at ``point``; whether it came there. It is dead afterwards."""
    try:
        with traced(pid, f"{point.call}:signal=KILL:when={point.when}"):
            oracle.let_begin()
            if not them.has_ended(REACH_S):
                them.kill(pid)
                return False
            them.expect_killed()
            return True
    except Unavailable:
        them.kill(pid)  # it waits for ever
        raise


@contextmanager
def traced(pid: int, inject: str) -> Iterator[None]:
    """Let strace interfere with ``pid`` and its threads: ``inject`` as its -e inject wants it.

    Raises:
        Unavailable: there is no strace, or it may not trace.
    """
    if shutil.which("strace") is None:
        raise Unavailable("no strace")
    command = ["strace", "-f", "-qqq", "-o", "/dev/null", "-e", "signal=none"]
    command += ["-e", f"trace={inject.partition(':')[0]}", "-e", f"inject={inject}", "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        while _tracers_of(pid) != {tracer.pid}:
            if tracer.poll() is not None:
                raise Unavailable(f"strace: {tracer.stderr.read() if tracer.stderr else ''}")
            time.sleep(0.001)
        time.sleep(0.02)  # it has all threads by now, and lets them go on
        try:
            yield
        finally:
            tracer.terminate()  # it ends with the victim, if that is dead


def _tracers_of(pid: int) -> set[int]:
    """Who traces the threads of a process; 0 for nobody."""
    tracers = set()
    for path in Path(f"/proc/{pid}/task").glob("*/status"):
        status = path.read_text(encoding="ascii")
        field = next(l for l in status.splitlines() if l.startswith("TracerPid:"))
        tracers.add(int(field.split()[1]))
    return tracers


def _oracles(folder: Path) -> list[Oracle]:
    oracles = []
    for page_nbytes in PAGE_NBYTES:
        place = folder / str(page_nbytes)
        place.mkdir()
        oracles.append(Oracle(place / "slab", place / "ledger", page_nbytes))
    return oracles


def _account(oracle: Oracle, tally: Tally) -> None:
    tally.attempts += 1
    tally.in_flight += oracle.was_in_flight
    oracle.read_ledger(tally)
    asyncio.run(oracle.verify(tally))
