# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N803 -- constexprs are UPPER_CASE
"""Gather pages of a pool into contiguous rows, and digest them on the way.

Rows hold the ``page`` form: (layer, kv, token, head, head_dim). The caller owns both memories.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from bodocache.errors import LayoutError
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
from bodocache.kernels.reference.gather import gather_pages as twin
from bodocache.kernels.runs import Runs, runs_of
from bodocache.kernels.tile import add_digest, locate, paged_pointers, row_pointers
from bodocache.layout import PagedMemory

_OP = "gather_pages"


class Gathered(NamedTuple):
    """Pages in the ``page`` form, and the digest of each before its key's seed."""

    pages: torch.Tensor  # uint8[M, nbytes]
    digests: torch.Tensor  # int64[n, 2]: the bits of the u64 words s1 and s2


@triton.jit(do_not_specialize=["slots_ptr", "rows_ptr", "num_tiles", "row_units"])  # type: ignore[untyped-decorator]
def gather_kernel(  # noqa: PLR0913, PLR0917 -- what one launch needs
    table_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    out_ptr: tl.tensor,
    digests_ptr: tl.tensor,
    num_tiles: tl.tensor,
    row_units: tl.tensor,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    RUN_UNITS: tl.constexpr,
    TILE_UNITS: tl.constexpr,
) -> None:
    """Tile by tile: page slots[i] -> row rows[i] of out, and its sums -> digests[i]."""
    for item in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        i, base, unit, mask = locate(table_ptr, item, TOKENS, HEADS, RUN_UNITS, TILE_UNITS)
        slot = tl.load(slots_ptr + i).to(tl.int64)
        row = tl.load(rows_ptr + i).to(tl.int64)
        paged = paged_pointers(table_ptr, slot, base, unit, TOKENS, HEADS, RUN_UNITS)
        page_unit = base * (TOKENS * HEADS * RUN_UNITS) + unit
        words = tl.load(paged, mask=mask, other=0, cache_modifier=".cg")  # read once: not in L1
        out = row_pointers(out_ptr, row * row_units + page_unit)
        tl.store(out, words, mask=mask, cache_modifier=".cs")
        add_digest(digests_ptr, i, words, page_unit)


def gather_pages(
    source: PagedMemory,
    slots: Indices,
    *,
    layers: range | None = None,
    out: torch.Tensor | None = None,
    rows: Indices | None = None,
) -> Gathered:
    """Copy pages ``slots[i]`` of ``source``, or ``layers`` of them, to rows ``rows[i]`` of ``out``.

    Args:
        source: pool to read; whole pages stay as they are.
        slots: int32 or int64 [n]; may repeat, may be empty.
        layers: default all; a page then has ``nbytes`` = what these layers hold.
        out: uint8[M, nbytes], rows may be strided; default: new, [n, nbytes].
        rows: int32 or int64 [n], distinct, of ``slots``' dtype; default 0..n-1. Needs ``out``.

    Raises:
        LayoutError: shapes, strides, dtypes, devices, alignments or indices do not fit.
    """
    runs = runs_of(source if layers is None else source.only(layers))
    slots = check.index_tensor(_OP, "slots", slots)
    if out is None:
        if rows is not None:
            raise LayoutError(f"{_OP}: rows are given without out; expected the pages they index")
        out = torch.empty((len(slots), runs.page_nbytes), dtype=torch.uint8, device=source.device)
    chosen = check.row_tensor(_OP, rows, slots, out, "out")
    check.operands(
        _OP,
        "source",
        source.device,
        slots=(slots, INDICES),
        rows=(chosen, INDICES),
        out=(out, pages_spec("M", runs.page_nbytes)),
    )
    check.in_range(_OP, "slots", slots, source.num_pages, "source")
    if rows is not None:
        check.distinct_in_range(_OP, "rows", chosen, len(out), "out")
    if check.on_gpu(source.device):
        digests = empty_sums(len(slots), runs.page_nbytes, source.device)
        if len(slots):
            launch(runs, slots, chosen, out, digests).run()
    elif (cpu := host.compiled()) is not None:
        digests = cpu.gather(runs, slots, chosen, out)
    else:
        digests = twin(source.only(layers), slots, chosen, out)
    return Gathered(out, digests)


def launch(
    runs: Runs, slots: torch.Tensor, rows: torch.Tensor, out: torch.Tensor, digests: torch.Tensor
) -> Launch:
    """The launch that gathers checked operands (n >= 1); ``digests`` holds each page's words."""
    num_tiles = len(slots) * len(runs.bases) * tiles(runs.piece_nbytes)
    return Launch(
        gather_kernel,
        programs(num_tiles),
        {
            "table_ptr": device_table(runs, out.device),
            "slots_ptr": slots,
            "rows_ptr": rows,
            "out_ptr": out.view(torch.int32),
            "digests_ptr": digests,
            "num_tiles": num_tiles,
            "row_units": out.stride(0) // UNIT_NBYTES,
        },
        run_constexprs(runs),
    )


def specialisations() -> Iterator[tuple[str, Launch]]:
    """Every launch that the kernel is compiled for, by name; ``aot`` compiles them all."""
    for suffix, runs, indices, pages, sums in sample_operands():
        yield f"gather_{suffix}", launch(runs, indices, indices, pages, sums)
