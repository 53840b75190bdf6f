# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N803 -- constexprs are UPPER_CASE
"""Scatter contiguous rows into pages of a pool, and digest the bytes moved.

The caller compares the digests with those stored before it offers a page to anyone.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from bodocache.kernels import check, host
from bodocache.kernels.check import INDICES, UNIT_NBYTES, Indices, pages_spec
from bodocache.kernels.launch import (
    Launch,
    device_table,
    empty_sums,
    programs,
    run_constexprs,
    sample_operands,
    tiles,
)
from bodocache.kernels.reference.scatter import scatter_pages as twin
from bodocache.kernels.runs import Runs, runs_of
from bodocache.kernels.tile import add_digest, locate, paged_pointers, row_pointers
from bodocache.layout import PagedMemory

_OP = "scatter_pages"


@triton.jit(do_not_specialize=["slots_ptr", "rows_ptr", "num_tiles", "row_units"])  # type: ignore[untyped-decorator]
def scatter_kernel(  # noqa: PLR0913, PLR0917 -- what one launch needs
    table_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    pages_ptr: tl.tensor,
    digests_ptr: tl.tensor,
    num_tiles: tl.tensor,
    row_units: tl.tensor,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    RUN_UNITS: tl.constexpr,
    TILE_UNITS: tl.constexpr,
) -> None:
    """Tile by tile: row rows[i] of pages -> page slots[i], and its sums -> digests[i]."""
    for item in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        i, base, unit, mask = locate(table_ptr, item, TOKENS, HEADS, RUN_UNITS, TILE_UNITS)
        slot = tl.load(slots_ptr + i).to(tl.int64)
        row = tl.load(rows_ptr + i).to(tl.int64)
        page_unit = base * (TOKENS * HEADS * RUN_UNITS) + unit
        pages = row_pointers(pages_ptr, row * row_units + page_unit)
        words = tl.load(pages, mask=mask, other=0, cache_modifier=".cg")  # read once: not in L1
        paged = paged_pointers(table_ptr, slot, base, unit, TOKENS, HEADS, RUN_UNITS)
        tl.store(paged, words, mask=mask, cache_modifier=".cs")
        add_digest(digests_ptr, i, words, page_unit)


def scatter_pages(
    pages: torch.Tensor,
    destination: PagedMemory,
    slots: Indices,
    *,
    layers: range | None = None,
    rows: Indices | None = None,
) -> torch.Tensor:
    """Copy rows ``rows[i]`` of ``pages`` to ``destination``'s pages ``slots[i]``; return digests.

    Args:
        pages: uint8[M, nbytes] in the ``page`` form of ``layers``; rows may be strided.
        destination: pool to write; layers outside ``layers`` keep their bytes.
        slots: int32 or int64 [n], distinct, may be empty.
        layers: default all.
        rows: int32 or int64 [n] of ``slots``' dtype, may repeat; default 0..n-1.

    Returns:
        int64[n, 2]: the digest of each page moved, before its key's seed (the bits of u64 words).

    Raises:
        LayoutError: shapes, strides, dtypes, devices, alignments or indices do not fit.
    """
    runs = runs_of(destination if layers is None else destination.only(layers))
    slots = check.index_tensor(_OP, "slots", slots)
    chosen = check.row_tensor(_OP, rows, slots, pages, "pages")
    check.operands(
        _OP,
        "destination",
        destination.device,
        slots=(slots, INDICES),
        rows=(chosen, INDICES),
        pages=(pages, pages_spec("M", runs.page_nbytes)),
    )
    check.distinct_in_range(_OP, "slots", slots, destination.num_pages, "destination")
    if rows is not None:
        check.in_range(_OP, "rows", chosen, len(pages), "pages")
    if check.on_gpu(destination.device):
        digests = empty_sums(len(slots), runs.page_nbytes, destination.device)
        if len(slots):
            launch(runs, slots, chosen, pages, digests).run()
        return digests
    if (cpu := host.compiled()) is not None:
        return cpu.scatter(runs, slots, chosen, pages)
    return twin(pages, destination.only(layers), slots, chosen)


def launch(
    runs: Runs, slots: torch.Tensor, rows: torch.Tensor, pages: torch.Tensor, digests: torch.Tensor
) -> Launch:
    """The launch that scatters checked operands (n >= 1); ``digests`` holds each page's words."""
    num_tiles = len(slots) * len(runs.bases) * tiles(runs.piece_nbytes)
    return Launch(
        scatter_kernel,
        programs(num_tiles),
        {
            "table_ptr": device_table(runs, pages.device),
            "slots_ptr": slots,
            "rows_ptr": rows,
            "pages_ptr": pages.view(torch.int32),
            "digests_ptr": digests,
            "num_tiles": num_tiles,
            "row_units": pages.stride(0) // UNIT_NBYTES,
        },
        run_constexprs(runs),
    )


def specialisations() -> Iterator[tuple[str, Launch]]:
    """Every launch that the kernel is compiled for, by name; ``aot`` compiles them all."""
    for suffix, runs, indices, pages, sums in sample_operands():
        yield f"scatter_{suffix}", launch(runs, indices, indices, pages, sums)
