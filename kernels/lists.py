# SPDX-License-Identifier: Apache-2.0
"""Lists of pages in compiled code: whether they fit, and the runs that their copies make.

What ``check`` and ``copy_engine`` say in NumPy, in 1 us a call instead of 10 to 20. Needs numba.
"""

from typing import Any

import numpy as np
import torch

from bodocache import jit

_INDEX = jit.readonly("i8")
_CPU = -1  # as a device
_SHORT = 32  # pairs of indices are compared one by one up to here; sorting allocates


def fit(ours: torch.Tensor, theirs: torch.Tensor, num_ours: int, num_theirs: int) -> bool:
    """Whether int32 or int64 lists of one dtype lie on the CPU, as long as each other, contiguous,
    in range, and ``theirs`` distinct, too.
    """
    plain = (
        ours.get_device() == theirs.get_device() == _CPU
        and ours.dtype in (torch.int32, torch.int64)
        and ours.dim() == theirs.dim() == 1
        and len(ours) == len(theirs) > 0
        and ours.is_contiguous()
        and theirs.is_contiguous()
    )
    if not plain:
        return False
    left, right = (index.numpy().astype(np.int64, copy=False) for index in (ours, theirs))
    return bool(_fit(left, right, num_ours, num_theirs))


@jit.compiled(_INDEX, _INDEX, jit.i8, jit.i8)
def _fit(ours: Any, theirs: Any, num_ours: Any, num_theirs: Any) -> Any:
    count = len(ours)
    for i in range(count):
        if not (0 <= ours[i] < num_ours and 0 <= theirs[i] < num_theirs):
            return False
    if count <= _SHORT:
        for i in range(count):
            for j in range(i):
                if theirs[i] == theirs[j]:
                    return False
        return True
    in_order = np.sort(theirs)
    return not (in_order[1:] == in_order[:-1]).any()


@jit.compiled(
    *(jit.i8, jit.readonly("i8", 2), jit.readonly("i8", 2), jit.i8, jit.i8),
    *(_INDEX, _INDEX, _INDEX, _INDEX, jit.array("i8", 2)),
)
def merge(  # noqa: PLR0913, PLR0917 -- an operand each
    step: Any,
    source_pieces: Any,
    target_pieces: Any,
    source_stride: Any,
    target_stride: Any,
    source_slots: Any,
    target_slots: Any,
    source_bounds: Any,
    target_bounds: Any,
    out: Any,
) -> Any:
    """Write ``copy_engine.merged``'s runs, cut at bounds, to out[3, n]; how many, -1 if too many.

    Pieces are [bases, pieces of a base]; bounds ascend.
    """
    order = np.argsort(source_slots, kind="mergesort")
    count, most = 0, out.shape[1]
    source, target, nbytes = 0, 0, 0
    for base in range(source_pieces.shape[0]):
        for position in order:
            ours = source_slots[position] * source_stride
            theirs = target_slots[position] * target_stride
            for piece in range(source_pieces.shape[1]):
                begin = source_pieces[base, piece] + ours
                end = target_pieces[base, piece] + theirs
                if nbytes and begin == source + nbytes and end == target + nbytes:
                    nbytes += step
                    continue
                count = _emit(
                    out, count, most, source, target, nbytes, source_bounds, target_bounds
                )
                if count < 0:
                    return -1
                source, target, nbytes = begin, end, step
    return _emit(out, count, most, source, target, nbytes, source_bounds, target_bounds)


@jit.kernel(jit.array("i8", 2), *(jit.i8,) * 5, _INDEX, _INDEX)
def _emit(
    out: Any,
    count: Any,
    most: Any,
    source: Any,
    target: Any,
    nbytes: Any,
    source_bounds: Any,
    target_bounds: Any,
) -> Any:
    """Write one run, or its parts; the new count, -1 where there is no room."""
    while nbytes > 0:
        part = _until_bound(source, nbytes, source_bounds)
        part = _until_bound(target, part, target_bounds)
        if count == most:
            return -1
        out[0, count], out[1, count], out[2, count] = source, target, part
        count += 1
        source += part
        target += part
        nbytes -= part
    return count


@jit.kernel(jit.i8, jit.i8, _INDEX)
def _until_bound(start: Any, nbytes: Any, bounds: Any) -> Any:
    """Bytes from ``start`` to the next bound behind it, at most ``nbytes``."""
    if len(bounds):
        following = np.searchsorted(bounds, start, side="right")
        if following < len(bounds):
            return min(nbytes, bounds[following] - start)
    return nbytes
