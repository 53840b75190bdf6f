# SPDX-License-Identifier: Apache-2.0
"""Whether what a call reads and what it writes lie apart, by ranges of bytes.

Two memories are compared once, which nearly always says that they are. Only where they may not be
are the pages of a call looked at, piece by piece; like all indices, those on a GPU only in debug
mode.
"""

from enum import Enum

import numpy as np
import torch
from numpy.typing import NDArray

from bodocache.errors import LayoutError
from bodocache.kernels import check
from bodocache.kernels.runs import Runs, meet

_Starts = NDArray[np.int64]


class Relation(Enum):
    """Of the pages of two memories."""

    APART = "apart"  # whatever the pages
    SAME = "same"  # equal indices name the same bytes, others share none
    MIXED = "mixed"  # it depends on the pages


def relation(ours: Runs, theirs: Runs) -> Relation:
    """How two memories of one device lie to each other."""
    if ours.end <= theirs.first or theirs.end <= ours.first:
        return Relation.APART
    if ours.page_stride != theirs.page_stride:
        return Relation.MIXED
    if _equal(ours, theirs):
        return Relation.MIXED if ours.shares_bytes else Relation.SAME
    pages = range(1 - ours.num_pages, theirs.num_pages)
    return Relation.MIXED if meet(ours, theirs, pages) else Relation.APART


def check_pages(op: str, ours: Runs, slots: torch.Tensor, theirs: Runs, to: torch.Tensor) -> None:
    """Raise LayoutError if a page that is read and one that is written share bytes."""
    if check.is_checked(slots) and check.is_checked(to):
        read, written = (_starts(r, i) for r, i in ((ours, slots), (theirs, to)))
        _refuse(op, "source", read, ours.run_nbytes, "destination", written, theirs.run_nbytes)


def check_rows(
    op: str, runs: Runs, slots: torch.Tensor, pages: torch.Tensor, rows: torch.Tensor
) -> None:
    """Raise LayoutError if pages ``slots`` of a memory share bytes with ``rows`` of ``pages``."""
    first, stride, nbytes = pages.data_ptr(), pages.stride(0), pages.shape[1]
    if first >= runs.end or first + (len(pages) - 1) * stride + nbytes <= runs.first:
        return
    if check.is_checked(slots) and check.is_checked(rows):
        places = first + np.unique(rows.cpu().numpy()).astype(np.int64) * stride
        _refuse(op, "the pool", _starts(runs, slots), runs.run_nbytes, "the rows", places, nbytes)


def refuse_shared(op: str, runs: Runs) -> None:
    """Raise LayoutError if pages of a memory to be written share bytes with each other."""
    if runs.shares_bytes:
        raise LayoutError(
            f"{op}: pages of destination share bytes: {len(runs.bases)} pieces of {runs.tokens} x"
            f" {runs.heads} runs of {runs.run_nbytes} bytes, a page every {runs.page_stride}, a"
            f" token every {runs.token_stride}, a head every {runs.head_stride}"
        )


def _equal(ours: Runs, theirs: Runs) -> bool:
    return np.array_equal(ours.numbers, theirs.numbers) and np.array_equal(ours.bases, theirs.bases)


def _starts(runs: Runs, slots: torch.Tensor) -> _Starts:
    """The first byte of every run of pages ``slots``."""
    pages = np.unique(slots.cpu().numpy()).astype(np.int64) * runs.page_stride
    starts: _Starts = (runs.bases[:, None] + runs.offsets).ravel() + pages[:, None]
    return starts.ravel()


def _refuse(
    op: str,
    name: str,
    read: _Starts,
    nbytes: int,
    other: str,
    written: _Starts,
    other_nbytes: int,
) -> None:
    if _meet(read, nbytes, np.sort(written), other_nbytes):
        raise LayoutError(
            f"{op}: pages of {name} and of {other} share bytes between {int(read.min()):#x} and"
            f" {int(read.max()) + nbytes:#x}; a byte is read or written, not both"
        )


def _meet(starts: _Starts, nbytes: int, others: _Starts, other_nbytes: int) -> bool:
    """Whether a range of ``nbytes`` meets one of the sorted ``others``, which lie apart."""
    before = np.searchsorted(others, starts + nbytes) - 1  # the last that begins before the end
    behind = others[np.maximum(before, 0)] + other_nbytes
    return bool(((before >= 0) & (behind > starts)).any())
