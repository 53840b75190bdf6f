# SPDX-License-Identifier: Apache-2.0
"""Gather and scatter between one pair of CPU memories, checked once: 6 us a call, a launcher's 40.

For callers that move a few pages thousands of times a second between the same two pools. Only they
import this: it needs numba.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bodocache import jit
from bodocache.errors import LayoutError
from bodocache.kernels import check, cpu
from bodocache.kernels.check import pages_spec
from bodocache.kernels.runs import Runs, runs_of
from bodocache.layout import PagedMemory

IndexArray = NDArray[np.int64]
DigestArray = NDArray[np.uint64]  # [n, 2], before the key's seed

_OP = "prepared copies"


class PreparedCopies:
    """Copies between pages of ``paged`` and rows of ``pages`` (uint8[M, nbytes]), on the CPU.

    Keeps both memories alive. Each call checks that indices are in range; that targets are distinct
    is the caller's promise.
    """

    __slots__ = ("_arguments", "_gather_mode", "_kept", "_num_pages", "_num_rows", "_scatter_mode")

    def __init__(self, paged: PagedMemory, pages: torch.Tensor) -> None:
        """LayoutError where shapes, strides, dtypes or alignments do not fit, or on a GPU."""
        runs = runs_on_cpu(_OP, paged, pages)
        self._kept = (paged, pages)
        self._arguments = (runs.bases, runs.numbers, pages.data_ptr(), pages.stride(0))
        self._num_pages, self._num_rows = paged.num_pages, len(pages)
        self._gather_mode = cpu.gather_mode(runs, pages)
        self._scatter_mode = cpu.scatter_mode(runs)

    def gather(self, slots: IndexArray, rows: IndexArray) -> DigestArray:
        """Copy pages ``slots[i]`` to rows ``rows[i]``; the digests are of the bytes moved."""
        return self._move(slots, rows, self._gather_mode)

    def scatter(self, rows: IndexArray, slots: IndexArray) -> DigestArray:
        """Copy rows ``rows[i]`` to pages ``slots[i]``; the digests are of the bytes moved."""
        return self._move(slots, rows, self._scatter_mode)

    def _move(self, slots: IndexArray, rows: IndexArray, mode: int) -> DigestArray:
        bases, numbers, pages, row_stride = self._arguments
        digests = np.zeros((len(slots), 2), np.uint64)
        bounds = (self._num_pages, self._num_rows)
        if not _move_checked(
            bases, numbers, slots, rows, pages, row_stride, mode, digests, *bounds
        ):
            raise LayoutError(
                f"{_OP}: slots {slots.tolist()}, rows {rows.tolist()}: expected as many of each,"
                f" within {self._num_pages} pages and {self._num_rows} rows"
            )
        return digests


def runs_on_cpu(op: str, paged: PagedMemory, pages: torch.Tensor) -> Runs:
    """The runs of ``paged``, once ``pages`` was found to be rows of its pages in CPU memory.

    Raises:
        LayoutError: shapes, strides, dtypes or alignments do not fit, or one is on a GPU.
    """
    if paged.device.type != "cpu":
        raise LayoutError(f"{op}: memory on {paged.device}; expected the CPU")
    runs = runs_of(paged)
    check.operands(op, "paged", paged.device, pages=(pages, pages_spec("M", runs.page_nbytes)))
    return runs


_INDEX = jit.readonly("i8")


@jit.compiled(
    *(_INDEX, _INDEX, _INDEX, _INDEX, jit.i8, jit.i8, jit.i8, jit.array("u8", 2), jit.i8, jit.i8)
)
def _move_checked(  # noqa: PLR0913, PLR0917 -- an operand each
    bases: Any,
    numbers: Any,
    slots: Any,
    rows: Any,
    pages: Any,
    row_stride: Any,
    mode: Any,
    digests: Any,
    num_pages: Any,
    num_rows: Any,
) -> Any:
    """Whether every index was in range; nothing is moved otherwise."""
    if len(slots) != len(rows):
        return False
    for i in range(len(slots)):
        if not (0 <= slots[i] < num_pages and 0 <= rows[i] < num_rows):
            return False
    cpu._move(bases, numbers, slots, rows, pages, row_stride, mode, digests)  # noqa: SLF001 -- the CPU path's loop
    return True
