# SPDX-License-Identifier: Apache-2.0
"""The longest contiguous runs of a pool's pages, in the order of the ``page`` form.

A layout whose heads and tokens lie side by side has one run per layer per K/V; our own ``page``
layout has one per page. Fewer, longer runs are what makes a copy run at memcpy speed.
"""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bodocache.errors import LayoutError
from bodocache.kernels.check import UNIT_NBYTES
from bodocache.layout import PagedMemory


@dataclass(frozen=True, slots=True)
class Runs:
    """Run (b, t, h) of page p is at ``bases[b] + p * page_stride + t * .. + h * ..`` (bytes)."""

    bases: NDArray[np.int64]  # [B], addresses
    page_stride: int
    token_stride: int
    head_stride: int
    tokens: int
    heads: int
    run_nbytes: int
    num_pages: int
    numbers: NDArray[np.int64]  # page_stride to run_nbytes, for compiled code

    @property
    def piece_nbytes(self) -> int:
        """Bytes of a page that belong to one base."""
        return self.tokens * self.heads * self.run_nbytes

    @property
    def page_nbytes(self) -> int:
        """Bytes of a page."""
        return len(self.bases) * self.piece_nbytes

    @property
    def pool_nbytes(self) -> int:
        """Bytes of all pages."""
        return self.num_pages * self.page_nbytes

    def aligned_to(self, nbytes: int) -> bool:
        """Whether every run begins on a multiple of ``nbytes``."""
        strides = (self.page_stride, self.token_stride, self.head_stride)
        return not any(s % nbytes for s in strides) and not (self.bases % nbytes).any()


def runs_of(memory: PagedMemory, *, by_layer: bool = False) -> Runs:
    """The runs of ``memory``'s pages; ``by_layer``: none longer than one layer's K or V.

    Raises:
        LayoutError: an address, a stride or a run is not a multiple of 16 bytes.
    """
    strides = (memory.page_stride, memory.token_stride, memory.head_stride)
    shape = (memory.page_tokens, memory.heads, memory.row_nbytes, memory.num_pages)
    return _runs(memory.bases.tobytes(), strides, shape, by_layer=by_layer)


def unmerged(memory: PagedMemory) -> Runs:
    """One run per head and token of ``memory``'s pages, whatever lies side by side.

    Raises:
        LayoutError: as :func:`runs_of`.
    """
    numbers = (
        *(memory.page_stride, memory.token_stride, memory.head_stride),
        *(memory.page_tokens, memory.heads, memory.row_nbytes),
    )
    return _checked(memory.bases.ravel(), numbers, memory.num_pages)


def pair_of(
    op: str, source: PagedMemory, destination: PagedMemory, *, by_layer: bool = False
) -> tuple[Runs, Runs]:
    """The runs of two memories whose pages hold the same rows, with as many bases each.

    Raises:
        LayoutError: their pages differ in layers, K/V, tokens, heads or row length.
    """
    ours, theirs = (_rows_of(memory) for memory in (source, destination))
    if ours != theirs:
        differing = ", ".join(
            f"{name} {ours[name]} and {theirs[name]}" for name in ours if ours[name] != theirs[name]
        )
        raise LayoutError(f"{op}: pages of source and destination differ: {differing}")
    pair = runs_of(source, by_layer=by_layer), runs_of(destination, by_layer=by_layer)
    if len(pair[0].bases) != len(pair[1].bases):  # one side has whole pages in one run
        return runs_of(source, by_layer=True), runs_of(destination, by_layer=True)
    return pair


def _rows_of(memory: PagedMemory) -> dict[str, int]:
    return {
        "layers": memory.layers,
        "kv": memory.kv,
        "page_tokens": memory.page_tokens,
        "heads": memory.heads,
        "row_nbytes": memory.row_nbytes,
    }


@functools.lru_cache(maxsize=512)  # a pool has one entry per layer range in use; 4 us otherwise
def _runs(
    raw: bytes, strides: tuple[int, int, int], shape: tuple[int, int, int, int], *, by_layer: bool
) -> Runs:
    page_stride, token_stride, head_stride = strides
    tokens, heads, run, num_pages = shape
    bases = np.frombuffer(raw, np.int64)
    if heads == 1 or head_stride == run:
        run, heads, head_stride = run * heads, 1, 0
    if heads == 1 and (tokens == 1 or token_stride == run):
        run, tokens, token_stride = run * tokens, 1, 0
    if not by_layer and heads == tokens == 1 and bool((np.diff(bases) == run).all()):
        run, bases = run * len(bases), bases[:1]
    numbers = (page_stride, token_stride, head_stride, tokens, heads, run)
    return _checked(bases, numbers, num_pages)


def _checked(
    bases: NDArray[np.int64], numbers: tuple[int, int, int, int, int, int], num_pages: int
) -> Runs:
    page, token, head, tokens, heads, run = numbers
    if any(n % UNIT_NBYTES for n in (page, token, head, run)) or (bases % UNIT_NBYTES).any():
        raise LayoutError(
            f"pages of {tokens} x {heads} runs of {run} bytes, strides {page}, {token}, {head}, "
            f"first at {int(bases[0]):#x}: runs must lie and end on multiples of {UNIT_NBYTES}"
        )
    return Runs(bases, *numbers, num_pages, numbers=np.array(numbers, np.int64))
