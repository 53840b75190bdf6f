# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N803 -- constexprs are UPPER_CASE
"""The one kernel that moves pages: between two pools, or a pool and contiguous rows.

Its threads see rows of 16-byte units: a row is a page, or one layer of it where sums are wanted by
layer. Small rows share a tile, large ones are cut into several, so that every thread has a unit.
Only launchers call this; operands are checked there.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

from bodocache.kernels.check import UNIT_NBYTES
from bodocache.kernels.launch import MAX_PROGRAMS, TILE_UNITS, Launch, device_table
from bodocache.kernels.runs import Runs
from bodocache.kernels.tile import add_sums, paged_pointers, row_pointers


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=[  # parts of index lists and counts of any alignment: compiled once
        *("from_slots_ptr", "to_slots_ptr", "sums_ptr", "num_rows", "from_units", "to_units")
    ]
)
def move_kernel(  # noqa: PLR0913, PLR0917 -- what one launch needs
    from_ptr: tl.tensor,
    to_ptr: tl.tensor,
    from_slots_ptr: tl.tensor,
    to_slots_ptr: tl.tensor,
    sums_ptr: tl.tensor,
    num_rows: tl.tensor,
    from_units: tl.tensor,
    to_units: tl.tensor,
    FROM_POOL: tl.constexpr,
    FROM_TOKENS: tl.constexpr,
    FROM_HEADS: tl.constexpr,
    FROM_RUN: tl.constexpr,
    TO_POOL: tl.constexpr,
    TO_TOKENS: tl.constexpr,
    TO_HEADS: tl.constexpr,
    TO_RUN: tl.constexpr,
    PIECE_UNITS: tl.constexpr,
    BASES: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    SUMS: tl.constexpr,
) -> None:
    """Move rows: row r is part ``r % PARTS`` of page i = ``r // PARTS``, ``BASES`` pieces of it.

    From page ``from_slots[i]`` to page ``to_slots[i]``. A pool is given by its table, a page matrix
    by its address and the units from row to row.
    """
    row_units: tl.constexpr = BASES * PIECE_UNITS
    row_tiles: tl.constexpr = (row_units + UNITS - 1) // UNITS
    num_tiles = tl.cdiv(num_rows, ROWS) * row_tiles
    for item in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        row = (item // row_tiles) * ROWS + tl.arange(0, ROWS)
        unit = ((item % row_tiles) * UNITS + tl.arange(0, UNITS))[None, :]
        live = row < num_rows
        page = row // PARTS
        part = (row % PARTS)[:, None]
        mask = live[:, None] & (unit < row_units)
        base = part * BASES + unit // PIECE_UNITS
        inner = unit % PIECE_UNITS
        from_slot = tl.load(from_slots_ptr + page, mask=live, other=0).to(tl.int64)[:, None]
        to_slot = tl.load(to_slots_ptr + page, mask=live, other=0).to(tl.int64)[:, None]
        if FROM_POOL:
            source = paged_pointers(
                from_ptr, from_slot, base, inner, mask, FROM_TOKENS, FROM_HEADS, FROM_RUN
            )
        else:
            source = row_pointers(from_ptr, from_slot * from_units + part * row_units + unit)
        if TO_POOL:
            target = paged_pointers(to_ptr, to_slot, base, inner, mask, TO_TOKENS, TO_HEADS, TO_RUN)
        else:
            target = row_pointers(to_ptr, to_slot * to_units + part * row_units + unit)
        # Each byte is read and written once: it stays out of L1, and leaves L2 first.
        words = tl.load(source, mask=mask[:, :, None], other=0, cache_modifier=".cg")
        tl.store(target, words, mask=mask[:, :, None], cache_modifier=".cs")
        if SUMS:
            add_sums(sums_ptr, row, live, words, unit)


@dataclass(frozen=True, slots=True)
class Grid:
    """How many programs share the work, and how much of it each has in flight."""

    programs: int = MAX_PROGRAMS
    tile_units: int = TILE_UNITS
    num_warps: int = 4


DEVICE_GRID = Grid()


def link_grid(blocks: int, *, to_host: bool) -> Grid:
    """For a copy over a link: what fills it from four programs on, for pieces of 512 bytes, too.

    Reads of the host are answered after 1.3 us or so: four programs have 128 KiB of them in flight.
    Of writes half as much fills the link, and more would stand in the way of whatever else runs
    (H100, bench/gpu_tune.py).
    """
    return Grid(blocks, 1024, 8) if to_host else Grid(blocks, 2048, 16)


def launch(
    source: Runs | torch.Tensor,
    target: Runs | torch.Tensor,
    slots: tuple[torch.Tensor, torch.Tensor],
    sums: torch.Tensor | None,
    *,
    parts: int = 1,
    grid: Grid = DEVICE_GRID,
) -> Launch:
    """The launch that moves pages ``slots[0]`` of ``source`` to ``slots[1]`` of ``target``.

    Args:
        source: a pool's runs, or uint8[M, nbytes] rows in the page form; at least one side is runs.
        target: likewise; two pools have as many bases.
        slots: indices of both sides, [n] with n >= 1, of one dtype, on the device that runs this.
        sums: int64[n * parts, 2] to which the raw sums of each part are added, or None.
        parts: equal parts of a page, as many as its bases allow.
        grid: how the work is shared.
    """
    runs = source if isinstance(source, Runs) else target
    assert isinstance(runs, Runs), "one side is a pool"
    piece_units, bases = runs.piece_nbytes // UNIT_NBYTES, len(runs.bases) // parts
    num_rows, device = len(slots[0]) * parts, slots[0].device
    units = min(grid.tile_units, triton.next_power_of_2(bases * piece_units))
    rows = grid.tile_units // units
    tiles = -(-num_rows // rows) * -(-bases * piece_units // units)
    return Launch(
        move_kernel,
        min(tiles, grid.programs),
        {
            "from_ptr": _operand(source, device),
            "to_ptr": _operand(target, device),
            "from_slots_ptr": slots[0],
            "to_slots_ptr": slots[1],
            "sums_ptr": slots[0] if sums is None else sums,
            "num_rows": num_rows,
            "from_units": _row_units(source),
            "to_units": _row_units(target),
        },
        {
            **_constexprs("FROM", source),
            **_constexprs("TO", target),
            "PIECE_UNITS": piece_units,
            "BASES": bases,
            "PARTS": parts,
            "ROWS": rows,
            "UNITS": units,
            "SUMS": int(sums is not None),
        },
        num_warps=grid.num_warps,
    )


def again(launch: Launch, slots: tuple[torch.Tensor, torch.Tensor], grid: Grid) -> Launch:
    """``launch`` for other pages, without sums or parts."""
    num_rows = len(slots[0])
    return Launch(
        launch.kernel,
        _programs(launch, num_rows, grid),
        {
            **launch.arguments,
            "from_slots_ptr": slots[0],
            "to_slots_ptr": slots[1],
            "sums_ptr": slots[0],
            "num_rows": num_rows,
        },
        launch.constexprs,
        num_warps=launch.num_warps,
    )


def _programs(launch: Launch, num_rows: int, grid: Grid) -> int:
    """How many programs share ``num_rows`` of ``launch``'s rows."""
    fixed = launch.constexprs
    row_tiles = -(-fixed["BASES"] * fixed["PIECE_UNITS"] // fixed["UNITS"])
    return min(-(-num_rows // fixed["ROWS"]) * row_tiles, grid.programs)


class Repeat:
    """The launch of one pair of pools for ever other pages: what is left is their numbers."""

    __slots__ = ("_dtype", "_grid", "_head", "_launch", "_loaded", "_tail")

    def __init__(self, launch: Launch, grid: Grid) -> None:
        """``launch``: without sums or parts."""
        self._launch, self._grid, self._loaded = launch, grid, launch.loaded()
        slots = launch.arguments["from_slots_ptr"]
        assert isinstance(slots, torch.Tensor)
        self._dtype = slots.dtype
        values = launch.values()
        self._head, self._tail = values[:2], values[-2:]

    def run(self, source_slots: torch.Tensor, destination_slots: torch.Tensor) -> None:
        """Launch for checked indices (n >= 1) on the device."""
        if self._loaded is None or source_slots.dtype != self._dtype:
            again(self._launch, (source_slots, destination_slots), self._grid).run()
            return
        count, ours = len(source_slots), source_slots.data_ptr()
        values = (*self._head, ours, destination_slots.data_ptr(), ours, count, *self._tail)
        self._loaded.launch(_programs(self._launch, count, self._grid), values)


def warm(launch: Launch) -> None:
    """Compile and load what ``launch`` runs, once a process, by a launch that has no rows.

    Loading code may wait for all streams of the device: not between a commit and its layers.
    """
    tensors = [a for a in launch.arguments.values() if isinstance(a, torch.Tensor)]
    key = (
        *(launch.num_warps, tensors[0].device, *(tensor.dtype for tensor in tensors)),
        *launch.constexprs.items(),
    )
    if key not in _warm:
        replace(launch, num_programs=1, arguments={**launch.arguments, "num_rows": 0}).run()
        _warm.add(key)


_warm: set[tuple[object, ...]] = set()


def _operand(side: Runs | torch.Tensor, device: torch.device) -> torch.Tensor:
    return device_table(side, device) if isinstance(side, Runs) else side.view(torch.int32)


def _row_units(side: Runs | torch.Tensor) -> int:
    return 0 if isinstance(side, Runs) else side.stride(0) // UNIT_NBYTES


def _constexprs(name: str, side: Runs | torch.Tensor) -> dict[str, int]:
    if isinstance(side, Runs):
        run_units = side.run_nbytes // UNIT_NBYTES
        values = {"POOL": 1, "TOKENS": side.tokens, "HEADS": side.heads, "RUN": run_units}
    else:
        values = {"POOL": 0, "TOKENS": 1, "HEADS": 1, "RUN": 1}
    return {f"{name}_{key}": value for key, value in values.items()}
