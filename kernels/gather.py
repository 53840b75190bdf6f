# SPDX-License-Identifier: Apache-2.0
"""Gather pages of a pool into contiguous rows, with or without digesting them on the way.

Rows hold the ``page`` form: (layer, kv, token, head, head_dim). The caller owns both memories.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from bodocache.kernels import check, host, move, overlap
from bodocache.kernels.check import Indices
from bodocache.kernels.launch import Launch, empty_sums, sample_operands
from bodocache.kernels.reference.gather import gather_pages as twin
from bodocache.kernels.runs import Runs, runs_of
from bodocache.layout import PagedMemory

_OP = "gather_pages"


class Gathered(NamedTuple):
    """Pages in the ``page`` form, and the digest of each before its key's seed."""

    pages: torch.Tensor  # uint8[M, nbytes]
    digests: torch.Tensor  # int64[n, 2]: the bits of the u64 words s1 and s2


def gather_pages(
    source: PagedMemory,
    slots: Indices,
    *,
    layers: range | None = None,
    heads: range | None = None,
    out: torch.Tensor | None = None,
    rows: Indices | None = None,
) -> Gathered:
    """Copy pages ``slots[i]`` of ``source``, or a part of them, to rows ``rows[i]`` of ``out``.

    Args:
        source: pool to read; whole pages stay as they are.
        slots: int32 or int64 [n]; may repeat, may be empty.
        layers: default all; a page then has ``nbytes`` = what these layers hold.
        heads: default all; a rank's shard of a pool of all heads, likewise.
        out: uint8[M, nbytes], rows may be strided; default: new, [n, nbytes].
        rows: int32 or int64 [n], distinct, of ``slots``' dtype; default 0..n-1. Needs ``out``.

    Raises:
        LayoutError: shapes, strides, dtypes, devices, alignments or indices do not fit.
    """
    part = source if layers is None and heads is None else source.only(layers, heads)
    runs, call = _checked(_OP, part, slots, out, rows)
    if check.on_gpu(source.device):
        digests = empty_sums(len(call.slots), runs.page_nbytes, source.device)
        if len(call.slots):
            launch(runs, *call, digests).run()
    elif (cpu := host.compiled()) is not None:
        digests = cpu.gather(runs, *call)
    else:
        digests = twin(part, *call)
    return Gathered(call.out, digests)


def gather_plain(
    source: PagedMemory,
    slots: Indices,
    *,
    layers: range | None = None,
    heads: range | None = None,
    out: torch.Tensor | None = None,
    rows: Indices | None = None,
) -> torch.Tensor:
    """As :func:`gather_pages`, without digests: the rows alone."""
    part = source if layers is None and heads is None else source.only(layers, heads)
    runs, call = _checked("gather_plain", part, slots, out, rows)
    if check.on_gpu(source.device):
        if len(call.slots):
            launch(runs, *call, None).run()
    elif (cpu := host.compiled()) is not None:
        cpu.gather_plain(runs, *call)
    else:
        twin(part, *call)
    return call.out


def _checked(
    op: str,
    source: PagedMemory,
    slots: Indices,
    out: torch.Tensor | None,
    rows: Indices | None,
) -> tuple[Runs, check.Gather]:
    runs = runs_of(source)
    call = check.gather(op, source, slots, rows, out, runs.page_nbytes)
    if out is not None:
        overlap.check_rows(op, runs, call.slots, out, call.rows)
    return runs, call


def launch(
    runs: Runs,
    slots: torch.Tensor,
    rows: torch.Tensor,
    out: torch.Tensor,
    digests: torch.Tensor | None,
) -> Launch:
    """The launch that gathers checked operands (n >= 1); ``digests`` holds each page's words."""
    return move.launch(runs, out, (slots, rows), digests)


def specialisations() -> Iterator[tuple[str, Launch]]:
    """Every launch that the kernel is compiled for, by name; ``aot`` compiles them all."""
    for suffix, runs, indices, pages, sums in sample_operands():
        operands = (runs, indices, indices, pages)
        yield f"gather_{suffix}", launch(*operands, sums)
        if indices.dtype == torch.int64:
            yield f"gather_plain_{suffix}", launch(*operands, None)
