# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N803 -- constexprs are UPPER_CASE
"""Gather pages of a pool into quantised rows and restore them, digesting the stored bytes.

``quantiser`` says what lies where in a row, ``reference.quantise`` how far values may move. The
caller owns both memories.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from bodocache.errors import LayoutError
from bodocache.kernels import check, overlap
from bodocache.kernels.check import UNIT_NBYTES, Indices
from bodocache.kernels.codes import decode_words, encode_words, inverse_of, peak_of, scale_of
from bodocache.kernels.gather import Gathered
from bodocache.kernels.heads import (
    add_sums,
    code_pointers,
    locate_head,
    paged_head,
    scale_lanes,
    unit_sums,
    value_pointers,
    word_sums,
)
from bodocache.kernels.launch import (
    LATENT_GROUP,
    SAMPLE_GROUP,
    Launch,
    device_table,
    empty_sums,
    programs,
    sample_pool,
)
from bodocache.kernels.quantiser import QuantisedForm, Quantiser
from bodocache.kernels.reference import quantise as twin
from bodocache.kernels.runs import unmerged
from bodocache.layout import LayoutKind, PagedMemory

DTYPES = (torch.bfloat16, torch.float16)
MAX_TILE_UNITS = 128  # 4 KiB of values a program: two 16-byte loads in flight per thread of 4 warps

_PLAIN = ["slots_ptr", "rows_ptr", "num_items", "row_units"]


@triton.jit(do_not_specialize=_PLAIN)  # type: ignore[untyped-decorator]
def gather_quantised_kernel(  # noqa: PLR0913, PLR0917 -- what one launch needs
    table_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    pages_ptr: tl.tensor,
    digests_ptr: tl.tensor,
    num_items: tl.tensor,
    row_units: tl.tensor,
    KV: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROW_UNITS: tl.constexpr,
    TILE_UNITS: tl.constexpr,
    FP8: tl.constexpr,
    BF16: tl.constexpr,
) -> None:
    """Head by head: page slots[i] -> row rows[i] of pages, and its sums -> digests[i]."""
    units: tl.constexpr = TOKENS * ROW_UNITS
    for item in tl.range(tl.program_id(0), num_items, tl.num_programs(0)):
        i, base, head, scale_word, code_unit = locate_head(table_ptr, item, KV, HEADS, units)
        address = paged_head(table_ptr, tl.load(slots_ptr + i).to(tl.int64), base, head)
        row_unit = tl.load(rows_ptr + i).to(tl.int64) * row_units
        unit = tl.arange(0, TILE_UNITS)
        values = value_pointers(table_ptr, address, unit, ROW_UNITS)
        words = tl.load(values, mask=(unit < units)[:, None], other=0, cache_modifier=".cg")
        peak = peak_of(words, BF16)
        for start in range(TILE_UNITS, units, TILE_UNITS):
            values = value_pointers(table_ptr, address, start + unit, ROW_UNITS)
            mask = (start + unit < units)[:, None]
            words = tl.load(values, mask=mask, other=0, cache_modifier=".cg")
            peak = tl.maximum(peak, peak_of(words, BF16))
        scale = scale_of(peak, FP8)
        lane, own = scale_lanes(base, head, KV, HEADS)
        scales = tl.where(lane == 0, scale.to(tl.int32, bitcast=True), 0)
        tl.store(pages_ptr + row_unit * 4 + scale_word + lane, scales, mask=own)
        s1, s2 = word_sums(scales, scale_word + lane)
        inverse = inverse_of(scale, FP8)
        for start in range(0, units, TILE_UNITS):
            mask = (start + unit < units)[:, None]
            if units > TILE_UNITS:  # a longer head is read twice, as a rule from L2
                values = value_pointers(table_ptr, address, start + unit, ROW_UNITS)
                words = tl.load(values, mask=mask, other=0, cache_modifier=".cg")
            codes = encode_words(words, inverse, FP8, BF16, TILE_UNITS)
            pages = code_pointers(pages_ptr, row_unit + code_unit + start + unit)
            tl.store(pages, codes, mask=mask, cache_modifier=".cs")
            tile_s1, tile_s2 = unit_sums(codes, code_unit + start + unit)  # beyond the mask: 0
            s1 += tile_s1
            s2 += tile_s2
        add_sums(digests_ptr, i, s1, s2)


@triton.jit(do_not_specialize=_PLAIN)  # type: ignore[untyped-decorator]
def scatter_quantised_kernel(  # noqa: PLR0913, PLR0917 -- what one launch needs
    table_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    rows_ptr: tl.tensor,
    pages_ptr: tl.tensor,
    digests_ptr: tl.tensor,
    num_items: tl.tensor,
    row_units: tl.tensor,
    KV: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROW_UNITS: tl.constexpr,
    TILE_UNITS: tl.constexpr,
    FP8: tl.constexpr,
    BF16: tl.constexpr,
) -> None:
    """Head by head: row rows[i] of pages -> page slots[i], and the row's sums -> digests[i]."""
    units: tl.constexpr = TOKENS * ROW_UNITS
    for item in tl.range(tl.program_id(0), num_items, tl.num_programs(0)):
        i, base, head, scale_word, code_unit = locate_head(table_ptr, item, KV, HEADS, units)
        address = paged_head(table_ptr, tl.load(slots_ptr + i).to(tl.int64), base, head)
        row_unit = tl.load(rows_ptr + i).to(tl.int64) * row_units
        lane, own = scale_lanes(base, head, KV, HEADS)
        scales = tl.load(pages_ptr + row_unit * 4 + scale_word + lane, mask=own, other=0)
        s1, s2 = word_sums(scales, scale_word + lane)
        scale = tl.sum(tl.where(lane == 0, scales, 0), 0).to(tl.float32, bitcast=True)
        unit = tl.arange(0, TILE_UNITS)
        for start in range(0, units, TILE_UNITS):
            mask = (start + unit < units)[:, None]
            pages = code_pointers(pages_ptr, row_unit + code_unit + start + unit)
            codes = tl.load(pages, mask=mask, other=0, cache_modifier=".cg")  # read once
            words = decode_words(codes, scale, FP8, BF16, TILE_UNITS)
            values = value_pointers(table_ptr, address, start + unit, ROW_UNITS)
            tl.store(values, words, mask=mask, cache_modifier=".cs")
            tile_s1, tile_s2 = unit_sums(codes, code_unit + start + unit)
            s1 += tile_s1
            s2 += tile_s2
        add_sums(digests_ptr, i, s1, s2)


def gather_quantised(
    source: PagedMemory,
    slots: Indices,
    *,
    dtype: torch.dtype,
    quantiser: Quantiser,
    layers: range | None = None,
    heads: range | None = None,
    out: torch.Tensor | None = None,
    rows: Indices | None = None,
) -> Gathered:
    """Quantise pages ``slots[i]`` of ``source``, or a part of them, to rows ``rows[i]`` of ``out``.

    Args:
        source: pool of ``dtype`` values to read; head_dim is a multiple of 16.
        slots: int32 or int64 [n]; may repeat, may be empty.
        dtype: torch.bfloat16 or torch.float16.
        quantiser: what codes are; part of the key (``Quantiser.identity`` in the root).
        layers: default all; a row then holds the blocks of these layers.
        heads: default all; blocks then hold these heads: a row is a shard's page.
        out: uint8[M, nbytes] of ``QuantisedForm.page_nbytes``, rows may be strided; default: new.
        rows: int32 or int64 [n], distinct, of ``slots``' dtype; default 0..n-1. Needs ``out``.

    Returns:
        The rows, and the digest of each page's quantised bytes, before its key's seed.

    Raises:
        LayoutError: shapes, strides, dtypes, devices, alignments or indices do not fit.
    """
    op = "gather_quantised"
    call = _call(op, source.only(layers, heads), dtype, quantiser)
    checked = check.gather(op, source, slots, rows, out, call.form.page_nbytes)
    if out is not None:
        overlap.check_rows(op, unmerged(call.memory), checked.slots, out, checked.rows)
    if not check.on_gpu(source.device):
        digests = twin.gather_quantised(call.memory, *checked, dtype=dtype, quantiser=quantiser)
        return Gathered(checked.out, digests)
    digests = empty_sums(len(checked.slots), call.form.page_nbytes, source.device)
    if len(checked.slots):
        call.launch(gather_quantised_kernel, *checked, digests).run()
    return Gathered(checked.out, digests)


def scatter_quantised(
    pages: torch.Tensor,
    destination: PagedMemory,
    slots: Indices,
    *,
    dtype: torch.dtype,
    quantiser: Quantiser,
    layers: range | None = None,
    heads: range | None = None,
    rows: Indices | None = None,
) -> torch.Tensor:
    """Restore rows ``rows[i]`` of ``pages`` to ``destination``'s pages ``slots[i]``.

    Args:
        pages: uint8[M, nbytes] as ``gather_quantised`` wrote them for these ``layers``, ``heads``,
            ``dtype`` and ``quantiser``; rows may be strided: layers are ranges of columns.
        destination: pool of ``dtype`` values to write; other layers and heads keep their bytes.
        slots: int32 or int64 [n], distinct, may be empty.
        dtype: torch.bfloat16 or torch.float16.
        quantiser: what codes are.
        layers: default all.
        heads: default all.
        rows: int32 or int64 [n] of ``slots``' dtype, may repeat; default 0..n-1.

    Returns:
        int64[n, 2]: the digest of each row's quantised bytes, before its key's seed. The caller
        compares it with the one stored before it offers the page.

    Raises:
        LayoutError: shapes, strides, dtypes, devices, alignments or indices do not fit.
    """
    op = "scatter_quantised"
    call = _call(op, destination.only(layers, heads), dtype, quantiser)
    overlap.refuse_shared(op, unmerged(call.memory))
    checked = check.scatter(op, pages, destination, slots, rows, call.form.page_nbytes)
    overlap.check_rows(op, unmerged(call.memory), checked.slots, pages, checked.rows)
    if not check.on_gpu(destination.device):
        return twin.scatter_quantised(
            pages, call.memory, *checked, dtype=dtype, quantiser=quantiser
        )
    digests = empty_sums(len(checked.slots), call.form.page_nbytes, destination.device)
    if len(checked.slots):
        call.launch(scatter_quantised_kernel, *checked, pages, digests).run()
    return digests


class _Call(NamedTuple):
    """What is the same for both launchers."""

    memory: PagedMemory  # the chosen layers
    form: QuantisedForm
    dtype: torch.dtype
    quantiser: Quantiser

    def launch(
        self,
        kernel: Any,
        slots: torch.Tensor,
        rows: torch.Tensor,
        pages: torch.Tensor,
        digests: torch.Tensor,
    ) -> Launch:
        """The launch of ``kernel`` on checked operands (n >= 1); ``digests`` holds pages' words."""
        num_items = len(slots) * self.form.layers * self.form.scales
        return Launch(
            kernel,
            programs(num_items),
            {
                # Nothing is merged: a scale belongs to a head.
                "table_ptr": device_table(unmerged(self.memory), pages.device),
                "slots_ptr": slots,
                "rows_ptr": rows,
                "pages_ptr": pages.view(torch.int32),
                "digests_ptr": digests,
                "num_items": num_items,
                "row_units": pages.stride(0) // UNIT_NBYTES,
            },
            self._constexprs(),
        )

    def _constexprs(self) -> dict[str, int]:
        row_units = self.form.head_dim // UNIT_NBYTES
        head_units = self.form.page_tokens * row_units
        return {
            "KV": self.form.kv,
            "HEADS": self.form.heads,
            "TOKENS": self.form.page_tokens,
            "ROW_UNITS": row_units,
            "TILE_UNITS": min(1 << (head_units - 1).bit_length(), MAX_TILE_UNITS),
            "FP8": int(self.quantiser == Quantiser.FP8_E4M3),
            "BF16": int(self.dtype == torch.bfloat16),
        }


def _call(op: str, memory: PagedMemory, dtype: torch.dtype, quantiser: Quantiser) -> _Call:
    if dtype not in DTYPES:
        raise LayoutError(f"{op}: dtype is {dtype}; expected bfloat16 or float16")
    if quantiser not in tuple(Quantiser):
        raise LayoutError(f"{op}: quantiser is {quantiser!r}; expected one of {list(Quantiser)}")
    return _Call(memory, QuantisedForm.of(memory), dtype, quantiser)


def specialisations() -> Iterator[tuple[str, Launch]]:
    """Every launch that the kernels are compiled for, by name; ``aot`` compiles them all.

    Heads of one tile with both index types, and a latent's of several.
    """
    for group, index in (
        (SAMPLE_GROUP, torch.int32),
        (SAMPLE_GROUP, torch.int64),
        (LATENT_GROUP, torch.int64),
    ):
        memory = sample_pool(LayoutKind.LAYER_FIRST, group)
        indices = torch.zeros(1, dtype=index)
        for dtype, quantiser in itertools.product(DTYPES, Quantiser):
            call = _call("specialisations", memory, dtype, quantiser)
            pages = torch.empty((1, call.form.page_nbytes), dtype=torch.uint8)
            sums = empty_sums(1, call.form.page_nbytes, pages.device)
            suffix = "_".join((quantiser, group.name, *(str(d)[6:] for d in (dtype, index))))
            operands = (indices, indices, pages, sums)
            yield f"quantise_{suffix}", call.launch(gather_quantised_kernel, *operands)
            yield f"restore_{suffix}", call.launch(scatter_quantised_kernel, *operands)
