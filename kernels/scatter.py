# SPDX-License-Identifier: Apache-2.0
"""Scatter contiguous rows into pages of a pool, with or without digesting the bytes moved.

The caller compares the digests with those stored before it offers a page to anyone.
"""

from collections.abc import Iterator

import torch

from bodocache.kernels import check, host, move, overlap
from bodocache.kernels.check import Indices
from bodocache.kernels.launch import Launch, empty_sums, sample_operands
from bodocache.kernels.reference.scatter import scatter_pages as twin
from bodocache.kernels.runs import Runs, runs_of
from bodocache.layout import PagedMemory

_OP = "scatter_pages"


def scatter_pages(
    pages: torch.Tensor,
    destination: PagedMemory,
    slots: Indices,
    *,
    layers: range | None = None,
    heads: range | None = None,
    rows: Indices | None = None,
) -> torch.Tensor:
    """Copy rows ``rows[i]`` of ``pages`` to ``destination``'s pages ``slots[i]``; return digests.

    Args:
        pages: uint8[M, nbytes] in the ``page`` form of what is moved; rows may be strided.
        destination: pool to write; what is outside ``layers`` and ``heads`` keeps its bytes.
        slots: int32 or int64 [n], distinct, may be empty.
        layers: default all.
        heads: default all.
        rows: int32 or int64 [n] of ``slots``' dtype, may repeat; default 0..n-1.

    Returns:
        int64[n, 2]: the digest of each page moved, before its key's seed (the bits of u64 words).

    Raises:
        LayoutError: shapes, strides, dtypes, devices, alignments or indices do not fit.
    """
    part = destination if layers is None and heads is None else destination.only(layers, heads)
    runs, call = _checked(_OP, pages, part, slots, rows)
    if check.on_gpu(destination.device):
        digests = empty_sums(len(call.slots), runs.page_nbytes, destination.device)
        if len(call.slots):
            launch(runs, *call, pages, digests).run()
        return digests
    if (cpu := host.compiled()) is not None:
        return cpu.scatter(runs, *call, pages)
    return twin(pages, part, *call)


def scatter_plain(
    pages: torch.Tensor,
    destination: PagedMemory,
    slots: Indices,
    *,
    layers: range | None = None,
    heads: range | None = None,
    rows: Indices | None = None,
) -> None:
    """As :func:`scatter_pages`, without digests."""
    part = destination if layers is None and heads is None else destination.only(layers, heads)
    runs, call = _checked("scatter_plain", pages, part, slots, rows)
    if check.on_gpu(destination.device):
        if len(call.slots):
            launch(runs, *call, pages, None).run()
    elif (cpu := host.compiled()) is not None:
        cpu.scatter_plain(runs, *call, pages)
    else:
        twin(pages, part, *call)


def _checked(
    op: str,
    pages: torch.Tensor,
    destination: PagedMemory,
    slots: Indices,
    rows: Indices | None,
) -> tuple[Runs, check.Scatter]:
    runs = runs_of(destination)
    overlap.refuse_shared(op, runs)
    call = check.scatter(op, pages, destination, slots, rows, runs.page_nbytes)
    overlap.check_rows(op, runs, call.slots, pages, call.rows)
    return runs, call


def launch(
    runs: Runs,
    slots: torch.Tensor,
    rows: torch.Tensor,
    pages: torch.Tensor,
    digests: torch.Tensor | None,
) -> Launch:
    """The launch that scatters checked operands (n >= 1); ``digests`` holds each page's words."""
    return move.launch(pages, runs, (rows, slots), digests)


def specialisations() -> Iterator[tuple[str, Launch]]:
    """Every launch that the kernel is compiled for, by name; ``aot`` compiles them all."""
    for suffix, runs, indices, pages, sums in sample_operands():
        operands = (runs, indices, indices, pages)
        yield f"scatter_{suffix}", launch(*operands, sums)
        if indices.dtype == torch.int64:
            yield f"scatter_plain_{suffix}", launch(*operands, None)
