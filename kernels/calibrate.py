# SPDX-License-Identifier: Apache-2.0
"""Measures every path of ``copy_pages`` on one GPU, and keeps what ``select`` chooses by.

Each path must first move every byte right; one that does not, or that raises, is left out of the
table and stays unproven. Unproven itself: it never ran on a GPU.
"""

import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from bodocache.errors import BodoCacheError
from bodocache.kernels import select
from bodocache.kernels.copy import PageCopy
from bodocache.kernels.reference.copy import copy_pages as twin
from bodocache.kernels.select import CopyPath, Direction, Measured, Table, describe
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory

PIECES_NBYTES = (1024, 4096, 16 << 10, 64 << 10, 256 << 10, 1 << 20)
TOTALS_NBYTES = (1 << 20, 64 << 20)
REPEATS = 5  # each grid point takes about 20 ms at 25 GB/s
LAYERS, PAGE_TOKENS = 8, 16

_PATHS = {
    Direction.HOST_TO_DEVICE: tuple(CopyPath),
    Direction.DEVICE_TO_HOST: tuple(CopyPath),
    Direction.WITHIN_DEVICE: (CopyPath.TORCH, CopyPath.SM, CopyPath.BULK),
}


@dataclass(frozen=True, slots=True)
class Grid:
    """What is measured."""

    pieces_nbytes: tuple[int, ...] = PIECES_NBYTES
    totals_nbytes: tuple[int, ...] = TOTALS_NBYTES


@dataclass(frozen=True, slots=True)
class Failure:
    """A path that is not proven at one point, and why."""

    direction: Direction
    path: CopyPath
    piece_nbytes: int
    why: str


Note = Callable[[str], None]


def calibrate(
    device: torch.device, *, grid: Grid | None = None, note: Note = lambda _: None
) -> tuple[Table, list[Failure]]:
    """Check and time every path on ``device``; ``note`` is told of each grid point.

    Raises:
        BodoCacheError: ``device`` is no CUDA device.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        raise BodoCacheError(f"calibrate: {device} is no CUDA device; nothing to measure here")
    own = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(own):  # the legacy one takes no batch of copies
        points, failures = measure_grid(device, grid or Grid(), note, _seconds)
    return Table(describe(device), tuple(points)), failures


def measure_grid(
    device: torch.device,
    grid: Grid,
    note: Note,
    seconds: Callable[[Callable[[], None], torch.device], float],
) -> tuple[list[Measured], list[Failure]]:
    """Points and failures of ``grid``; ``seconds`` times a call."""
    points: list[Measured] = []
    failures: list[Failure] = []
    sizes = itertools.product(Direction, grid.pieces_nbytes, grid.totals_nbytes)
    for direction, piece_nbytes, nbytes in sizes:
        note(f"{direction}: pieces of {piece_nbytes} bytes, {nbytes} in all")
        case = _Case.of(direction, piece_nbytes, nbytes, device)
        for path in _PATHS[direction]:
            copy = partial(PageCopy(case.source, case.destination, path=path).run, *case.slots)
            why = case.why_wrong(copy)
            if why is not None:
                failures.append(Failure(direction, path, piece_nbytes, why))
                continue
            rate = case.nbytes / seconds(copy, device)
            points.append(Measured(direction, path, piece_nbytes, case.nbytes, rate))
    return points, failures


@dataclass(slots=True)
class _Case:
    """One direction, piece size and total: two pools and what moves between them."""

    source: PagedMemory
    destination: PagedMemory
    memory: torch.Tensor  # of the destination
    slots: tuple[torch.Tensor, torch.Tensor]
    nbytes: int

    @classmethod
    def of(
        cls, direction: Direction, piece_nbytes: int, nbytes: int, device: torch.device
    ) -> "_Case":
        """An engine's pool by layer, whose pieces have that size, and a host pool by page."""
        group = Group("calibration", LAYERS, 1, piece_nbytes // (2 * PAGE_TOKENS), 2)
        pages = max(1, nbytes // group.page_nbytes(PAGE_TOKENS))
        kinds = [LayoutKind.LAYER_FIRST, LayoutKind.PAGE]
        devices = [device, torch.device("cpu")]
        if direction is Direction.WITHIN_DEVICE:
            devices = [device, device]
        sides = [
            _pool(kind, group, 2 * pages, where) for kind, where in zip(kinds, devices, strict=True)
        ]
        if direction is Direction.HOST_TO_DEVICE:
            sides.reverse()
        (source, _), (destination, memory) = sides
        order = torch.randperm(2 * pages, generator=torch.Generator().manual_seed(7))
        slots = (order[:pages].clone(), order.flip(0)[:pages].clone())
        return cls(source, destination, memory, slots, pages * group.page_nbytes(PAGE_TOKENS))

    def why_wrong(self, copy: Callable[[], None]) -> str | None:
        """What is wrong with the bytes that ``copy`` writes, or what it raised; None if nothing.

        Whatever lies outside the named slots counts too.
        """
        before = torch.randint_like(self.memory, 256)
        self.memory.copy_(before)
        twin(self.source, self.destination, *self.slots)
        expected = self.memory.clone()
        self.memory.copy_(before)
        try:
            copy()
            if self.memory.device.type == "cuda" or self.source.device.type == "cuda":
                torch.cuda.synchronize()
        except Exception as error:  # noqa: BLE001 -- whatever it is, the path is not proven
            return f"{type(error).__name__}: {error}"
        wrong = int((self.memory != expected).sum())
        return f"{wrong} wrong bytes" if wrong else None


def _pool(
    kind: LayoutKind, group: Group, num_pages: int, device: torch.device
) -> tuple[PagedMemory, torch.Tensor]:
    layout = Layout(kind, group, PAGE_TOKENS, num_pages)
    memory = torch.randint(0, 256, (layout.pool_nbytes,), dtype=torch.uint8, device=device)
    if device.type == "cpu" and torch.cuda.is_available():
        memory = memory.pin_memory()
    return PagedMemory.of_layout(memory, layout), memory


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    """Median of REPEATS calls, each from its submission to its end."""
    taken = []
    for _ in range(REPEATS + 1):  # the first compiles
        torch.cuda.synchronize(device)
        started_s = time.perf_counter()
        call()
        torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started_s)
    return sorted(taken[1:])[REPEATS // 2]


def main() -> int:
    """``python -m bodocache.kernels.calibrate``: what ``bodocache calibrate`` does, with no more
    than torch and triton. Prints the best path of each point; 2 where there is no GPU.
    """
    if not torch.cuda.is_available():
        sys.stderr.write("calibrate: no CUDA device\n")
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    table, failures = calibrate(device, note=lambda text: print(text, flush=True))  # noqa: T201
    for line in report(table, failures):
        print(line)  # noqa: T201 -- a command's output
    print(f"kept in {select.save_table(table)}")  # noqa: T201
    return 0


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
    return lines + [
        f"unproven: {f.direction} by {f.path}, {f.piece_nbytes} B: {f.why}" for f in failures
    ]


if __name__ == "__main__":
    sys.exit(main())
