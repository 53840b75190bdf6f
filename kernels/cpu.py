# SPDX-License-Identifier: Apache-2.0
"""The CPU path of the launchers: compiled loops without the GIL, at the speed of memcpy.

Operands are checked by the launchers. A mode is a sum of bits, so that one loop serves all ops; its
branches cost nothing beside runs of kilobytes.
"""

from typing import Any

import numpy as np
import torch

from bodocache import jit
from bodocache.kernels import simd
from bodocache.kernels.runs import Runs

_SCATTER = 1  # contiguous page -> pool; otherwise pool -> contiguous page
_NARROW = 2  # runs are no multiples of 64 bytes
_STREAM = 4  # stores bypass the caches
_PLAIN = 8  # copy without a digest

# A target beyond the last-level cache misses on every store: streaming into 256 MiB moves 21 GB/s,
# plain stores 12 and libc's memcpy 14; into 4 MiB it is 28 against 47 (one Zen 4 core).
_STREAM_FROM_NBYTES = 32 << 20
_VECTOR_NBYTES = 8 * simd.WIDE
# A gather reads scattered runs: fetching the next block into L2 meanwhile lifts 64 KiB pages of 8
# runs in DRAM from 0.70 to 1.06 of memcpy's rate with huge pages, from 0.63 to 0.91 without.
_BLOCK_NBYTES = 4096
_SHORT_NBYTES = 16384  # inside longer runs hardware prefetches better than we do


def gather(runs: Runs, slots: torch.Tensor, rows: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Copy pages ``slots`` to ``rows`` of ``out``; return int64[n, 2] digests."""
    return move(runs, slots, rows, out, gather_mode(runs, out))


def scatter(
    runs: Runs, slots: torch.Tensor, rows: torch.Tensor, pages: torch.Tensor
) -> torch.Tensor:
    """Copy ``rows`` of ``pages`` to pages ``slots``; return int64[n, 2] digests."""
    return move(runs, slots, rows, pages, scatter_mode(runs))


def gather_plain(runs: Runs, slots: torch.Tensor, rows: torch.Tensor, out: torch.Tensor) -> None:
    """Copy pages ``slots`` to ``rows`` of ``out``."""
    move(runs, slots, rows, out, plain(gather_mode(runs, out)))


def scatter_plain(runs: Runs, slots: torch.Tensor, rows: torch.Tensor, pages: torch.Tensor) -> None:
    """Copy ``rows`` of ``pages`` to pages ``slots``."""
    move(runs, slots, rows, pages, plain(scatter_mode(runs)))


def copy(
    pair: tuple[Runs, Runs], source_slots: torch.Tensor, destination_slots: torch.Tensor
) -> None:
    """Copy pages ``source_slots`` of the first memory to ``destination_slots`` of the second."""
    source, destination = pair
    _copy(
        *(source.bases, source.numbers, destination.bases, destination.numbers),
        source_slots.to(torch.int64).numpy(),
        destination_slots.to(torch.int64).numpy(),
    )


def digest(pages: torch.Tensor) -> torch.Tensor:
    """Return the int64[N, 2] digests of uint8[N, nbytes] ``pages``."""
    digests = np.empty((pages.shape[0], 2), np.uint64)
    mode = _NARROW if pages.shape[1] % _VECTOR_NBYTES else 0
    _digest(pages.data_ptr(), pages.stride(0), pages.shape[1], mode, digests)
    return torch.from_numpy(digests.view(np.int64))


def move(
    runs: Runs, slots: torch.Tensor, rows: torch.Tensor, pages: torch.Tensor, mode: int
) -> torch.Tensor:
    """Copy between the pool of ``runs`` and ``pages`` as ``mode`` says; int64[n, 2] digests."""
    digests = np.zeros((len(slots), 2), np.uint64)
    _move(
        runs.bases,
        runs.numbers,
        slots.to(torch.int64).numpy(),
        rows.to(torch.int64).numpy(),
        pages.data_ptr(),
        pages.stride(0),
        mode,
        digests,
    )
    return torch.from_numpy(digests.view(np.int64))


def gather_mode(runs: Runs, out: torch.Tensor) -> int:
    """The mode of a gather into ``out``."""
    aligned = out.data_ptr() % _VECTOR_NBYTES == 0 and out.stride(0) % _VECTOR_NBYTES == 0
    return _width_mode(runs, len(out) * out.stride(0), aligned=aligned)


def scatter_mode(runs: Runs) -> int:
    """The mode of a scatter into the pool of ``runs``."""
    return _SCATTER | _width_mode(runs, runs.pool_nbytes, aligned=runs.aligned_to(_VECTOR_NBYTES))


def plain(mode: int) -> int:
    """``mode`` without the digest."""
    return mode | _PLAIN


def _width_mode(runs: Runs, target_nbytes: int, *, aligned: bool) -> int:
    if runs.run_nbytes % _VECTOR_NBYTES:
        return _NARROW
    return _STREAM if aligned and target_nbytes >= _STREAM_FROM_NBYTES else 0


@jit.compiled(jit.i8, jit.i8, jit.i8, jit.i8, jit.i8, jit.i8)
def _step(target: Any, source: Any, nbytes: Any, ahead: Any, state: Any, mode: Any) -> None:
    if mode & _NARROW:
        simd.copy_fold_narrow(target, source, nbytes, ahead, state)
    elif mode & _PLAIN:
        if mode & _STREAM:
            simd.stream(target, source, nbytes, ahead, state)
        else:
            simd.copy(target, source, nbytes, ahead, state)
    elif mode & _STREAM:
        simd.stream_fold(target, source, nbytes, ahead, state)
    else:
        simd.copy_fold(target, source, nbytes, ahead, state)


@jit.compiled(jit.i8, jit.i8, jit.i8, jit.i8, jit.i8, jit.i8)
def _run(target: Any, source: Any, nbytes: Any, ahead: Any, state: Any, mode: Any) -> None:
    """Move a run by blocks; while one moves, the next is fetched, the last time from ``ahead``."""
    done = 0
    lead = _BLOCK_NBYTES if nbytes <= _SHORT_NBYTES else 0
    while nbytes - done > _BLOCK_NBYTES:
        at = source + done
        _step(target + done, at, _BLOCK_NBYTES, at + lead, state, mode)
        done += _BLOCK_NBYTES
    _step(target + done, source + done, nbytes - done, ahead, state, mode)


@jit.compiled(jit.array("u8"), jit.i8, jit.i8, jit.array("u8"))
def _finish(state: Any, nbytes: Any, mode: Any, digest: Any) -> None:
    """Turn u64 lanes' running sums (see ``simd``) of a page into its digest."""
    lanes = simd.NARROW if mode & _NARROW else simd.WIDE
    steps, half = np.uint64(nbytes // (8 * lanes)), np.uint64(32)
    s1 = s2 = np.uint64(nbytes // 4)
    for j in range(lanes):
        q, high = state[j], state[lanes + j]
        # The sum of k * q over steps k = 0.. is steps * A - (sum of A over the steps).
        step_q = steps * q - state[2 * lanes + j]
        step_high = steps * high - state[3 * lanes + j]
        low, step_low = q - (high << half), step_q - (step_high << half)
        s1 += low + high
        s2 += np.uint64(2 * lanes) * (step_low + step_high)
        s2 += np.uint64(2 * j + 1) * low + np.uint64(2 * j + 2) * high
    digest[0], digest[1] = s1, s2


@jit.compiled(
    jit.readonly("i8"),
    jit.readonly("i8"),
    jit.readonly("i8"),
    jit.readonly("i8"),
    jit.i8,
    jit.i8,
    jit.i8,
    jit.array("u8", 2),
)
def _move(
    bases: Any,
    numbers: Any,
    slots: Any,
    rows: Any,
    pages: Any,
    row_stride: Any,
    mode: Any,
    digests: Any,
) -> None:
    state = np.empty(4 * simd.WIDE, np.uint64)
    runs = len(bases) * numbers[3] * numbers[4]
    nbytes = numbers[5]
    for i in range(len(slots)):
        state[:] = 0
        row = pages + rows[i] * row_stride
        paged = _run_address(bases, numbers, slots[i], 0)
        for r in range(runs):
            if r + 1 < runs:
                next_paged, next_row = _run_address(bases, numbers, slots[i], r + 1), row + nbytes
            else:
                j = min(i + 1, len(slots) - 1)
                next_paged = _run_address(bases, numbers, slots[j], 0)
                next_row = pages + rows[j] * row_stride
            if mode & _SCATTER:
                # Rows are long: hardware prefetches them better than we do.
                _step(paged, row, nbytes, row, state.ctypes.data, mode)
            else:
                _run(row, paged, nbytes, next_paged, state.ctypes.data, mode)
            paged, row = next_paged, next_row
        if not mode & _PLAIN:
            _finish(state, runs * nbytes, mode, digests[i])
    if mode & _STREAM:
        simd.fence()


_memcpy = jit.external("memcpy", jit.i8, jit.i8, jit.i8, jit.i8)
_INDEX = jit.readonly("i8")


@jit.compiled(_INDEX, _INDEX, _INDEX, _INDEX, _INDEX, _INDEX)
def _copy(
    bases: Any, numbers: Any, to_bases: Any, to_numbers: Any, slots: Any, to_slots: Any
) -> None:
    """Copy piece by piece, as far as a run of both sides goes."""
    run, to_run = numbers[5], to_numbers[5]
    page_nbytes = len(bases) * numbers[3] * numbers[4] * run
    for i in range(len(slots)):
        done = 0
        while done < page_nbytes:
            count = min(run - done % run, to_run - done % to_run)
            source = _run_address(bases, numbers, slots[i], done // run) + done % run
            target = _run_address(to_bases, to_numbers, to_slots[i], done // to_run)
            _memcpy(target + done % to_run, source, count)
            done += count


@jit.compiled(jit.readonly("i8"), jit.readonly("i8"), jit.i8, jit.i8)
def _run_address(bases: Any, numbers: Any, slot: Any, run: Any) -> Any:
    """Address of the ``run``-th run of page ``slot``, in the order of the page form."""
    heads = numbers[4]
    piece, head = run // heads, run % heads
    base, token = piece // numbers[3], piece % numbers[3]
    return bases[base] + slot * numbers[0] + token * numbers[1] + head * numbers[2]


@jit.compiled(jit.i8, jit.i8, jit.i8, jit.i8, jit.array("u8", 2))
def _digest(pages: Any, row_stride: Any, nbytes: Any, mode: Any, digests: Any) -> None:
    state = np.empty(4 * simd.WIDE, np.uint64)
    for i in range(len(digests)):
        state[:] = 0
        page = pages + i * row_stride
        if mode & _NARROW:
            simd.fold_narrow(page, page, nbytes, page, state.ctypes.data)
        else:
            simd.fold(page, page, nbytes, page, state.ctypes.data)
        _finish(state, nbytes, mode, digests[i])
