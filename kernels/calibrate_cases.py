# SPDX-License-Identifier: Apache-2.0
"""What calibration copies: an engine's pool by layer and whole pages, and whether bytes are right.

Every case works in the same random memories, made once; all their bytes are compared.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from bodocache.kernels.copy import PageCopy
from bodocache.kernels.reference.copy import copy_pages as twin
from bodocache.kernels.select import CopyPath, Direction
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory

PIECES_NBYTES = (128, 512, 4096, 16 << 10, 64 << 10, 256 << 10, 1 << 20)
TOTALS_NBYTES = (1 << 20, 64 << 20)
MAX_PIECES = 16 << 10  # of a copy: the copy engine takes about 1 us for each, the twins more
LAYERS = 8


@dataclass(frozen=True, slots=True)
class Grid:
    """What is measured."""

    pieces_nbytes: tuple[int, ...] = PIECES_NBYTES
    totals_nbytes: tuple[int, ...] = TOTALS_NBYTES


class Pools:
    """Random bytes, made once: memory on the device and pinned memory, and copies to compare."""

    def __init__(self, device: torch.device, nbytes: int) -> None:
        self.on_device, self.paged = (
            torch.randint(0, 256, (nbytes,), dtype=torch.uint8, device=device) for _ in range(2)
        )
        pinned = torch.cuda.is_available()
        self.host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned)
        self.device_bytes, self.paged_bytes = self.on_device.clone(), self.paged.clone()
        self.host.copy_(self.paged_bytes)
        self.expected = torch.empty_like(self.on_device)


@dataclass(frozen=True, slots=True)
class Case:
    """One direction, piece size and total: an engine's pool by layer, and whole pages elsewhere."""

    direction: Direction
    piece_nbytes: int
    num_pages: int
    pools: Pools

    @property
    def nbytes(self) -> int:
        """Bytes of a copy."""
        return self.num_pages * 2 * LAYERS * self.piece_nbytes

    def slots(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Half of all pages, in no order, on the host."""
        order = torch.randperm(2 * self.num_pages, generator=torch.Generator().manual_seed(7))
        return order[: self.num_pages].clone(), order.flip(0)[: self.num_pages].clone()

    def sides(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The memory that is read and the one that is written."""
        pools = self.pools
        if self.direction is Direction.HOST_TO_DEVICE:
            return pools.host, pools.on_device
        return pools.on_device, pools.paged if self._stays else pools.host

    def why_wrong(self, copy: Callable[[], None]) -> str | None:
        """What is wrong with the bytes that ``copy`` writes, or what it raised; None if nothing.

        All bytes of the memory count, also those outside the named slots.
        """
        pools, inwards = self.pools, self.direction is Direction.HOST_TO_DEVICE
        read, before = pools.device_bytes, pools.paged_bytes
        if inwards:
            read, before = before, read
        pools.expected.copy_(before)
        twin(*self.paged(read, pools.expected), *(s.to(read.device) for s in self.slots()))
        source, target = self.sides()
        source.copy_(read)
        target.copy_(before)
        try:
            copy()
            if read.device.type == "cuda":
                torch.cuda.synchronize(read.device)
            wrong = int((target.to(read.device) != pools.expected).sum())
        except Exception as error:  # noqa: BLE001 -- whatever it is, the path is not proven
            return f"{self.piece_nbytes} B pieces: {type(error).__name__}: {error}"
        return f"{self.piece_nbytes} B pieces: {wrong} wrong bytes" if wrong else None

    def paged(
        self, source: torch.Tensor, destination: torch.Tensor
    ) -> tuple[PagedMemory, PagedMemory]:
        """Two memories as pages of these pieces: the engine's by layer, the other one whole."""
        tokens = 16 if self.piece_nbytes >= 512 else 4
        group = Group("calibration", LAYERS, 1, self.piece_nbytes // (2 * tokens), 2)
        kinds = [LayoutKind.LAYER_FIRST, LayoutKind.PAGE]
        if self.direction is Direction.HOST_TO_DEVICE:
            kinds.reverse()
        ours, theirs = (
            PagedMemory.of_layout(memory, Layout(kind, group, tokens, 2 * self.num_pages))
            for kind, memory in zip(kinds, (source, destination), strict=True)
        )
        return ours, theirs

    @property
    def _stays(self) -> bool:
        return self.direction is Direction.WITHIN_DEVICE


def cases_of(direction: Direction, grid: Grid, pools: Pools) -> Iterator[Case]:
    """All of ``grid`` in one direction that the pools have room for."""
    for piece in grid.pieces_nbytes:
        page_nbytes = 2 * LAYERS * piece
        totals = {min(total, MAX_PIECES * piece) for total in grid.totals_nbytes}
        counts = {max(1, total // page_nbytes) for total in totals}
        for count in sorted(counts):
            if 2 * count * page_nbytes <= len(pools.host):
                yield Case(direction, piece, count, pools)


def prepared(case: Case, path: CopyPath) -> Callable[[], None]:
    """The copy, which the first call prepares: its failure is the path's."""
    made: list[Callable[[], None]] = []

    def call() -> None:
        if not made:
            made.append(partial(PageCopy(*case.paged(*case.sides()), path=path).run, *case.slots()))
        made[0]()

    return call
