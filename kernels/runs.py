# SPDX-License-Identifier: Apache-2.0
"""The longest contiguous runs of a pool's pages, in the order of the ``page`` form.

A layout whose heads and tokens lie side by side has one run per layer per K/V; our own ``page``
layout has one per page. Fewer, longer runs are what makes a copy run at memcpy speed.
"""

import weakref
from dataclasses import dataclass, field, replace

import numpy as np
import torch
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
    offsets: NDArray[np.int64]  # [tokens * heads], of the runs of one base
    first: int  # address of all pages' first byte
    end: int  # behind their last one
    shares_bytes: bool  # pages, or runs of one, share some: such a memory is not written
    # What ``launch.device_table`` made of them: kernels in flight and captured graphs read it.
    tables: dict[torch.device, torch.Tensor] = field(default_factory=dict, repr=False)

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


_Key = tuple[bytes, tuple[int, ...], tuple[int, ...], int]
# By id of the tensor that owns a memory: what was found out about it, until that tensor is gone.
_known: dict[int, dict[_Key, Runs]] = {}
_MERGED, _BY_LAYER, _UNMERGED = range(3)


def runs_of(memory: PagedMemory, *, by_layer: bool = False) -> Runs:
    """The runs of ``memory``'s pages; ``by_layer``: none longer than one layer's K or V.

    They, and their tables on devices, live as long as the memory's first tensor.

    Raises:
        LayoutError: an address, a stride or a run is not a multiple of 16 bytes.
    """
    return _found(memory, _BY_LAYER if by_layer else _MERGED)


def unmerged(memory: PagedMemory) -> Runs:
    """One run per head and token of ``memory``'s pages, whatever lies side by side.

    Raises:
        LayoutError: as :func:`runs_of`.
    """
    return _found(memory, _UNMERGED)


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


def _found(memory: PagedMemory, form: int) -> Runs:
    strides = (memory.page_stride, memory.token_stride, memory.head_stride)
    shape = (memory.page_tokens, memory.heads, memory.row_nbytes, memory.num_pages)
    key = (memory.bases.tobytes(), strides, shape, form)
    known = _known_of(memory)
    found = known.get(key)  # one entry per range of layers or heads in use; 4 us otherwise
    if found is None:
        found = known.setdefault(key, _made(memory, form))
    return found


def _known_of(memory: PagedMemory) -> dict[_Key, Runs]:
    owner = next(memory.each_tensor(), None)
    if owner is None:  # memory that no tensor owns: nothing says when it is gone
        return {}
    known = _known.get(id(owner))
    if known is None:
        known = _known.setdefault(id(owner), {})
        weakref.finalize(owner, _known.pop, id(owner), None).atexit = False
    return known


def _made(memory: PagedMemory, form: int) -> Runs:
    bases = memory.bases.ravel()
    page_stride, token_stride = memory.page_stride, memory.token_stride
    head_stride, tokens = memory.head_stride, memory.page_tokens
    heads, run = memory.heads, memory.row_nbytes
    if form != _UNMERGED:
        if heads == 1 or head_stride == run:
            run, heads, head_stride = run * heads, 1, 0
        if heads == 1 and (tokens == 1 or token_stride == run):
            run, tokens, token_stride = run * tokens, 1, 0
        if form == _MERGED and heads == tokens == 1 and bool((np.diff(bases) == run).all()):
            run, bases = run * len(bases), bases[:1]
    numbers = (page_stride, token_stride, head_stride, tokens, heads, run)
    return _checked(bases.copy(), numbers, memory.num_pages)


def _checked(
    bases: NDArray[np.int64], numbers: tuple[int, int, int, int, int, int], num_pages: int
) -> Runs:
    page, token, head, tokens, heads, run = numbers
    if any(n % UNIT_NBYTES for n in (page, token, head, run)) or (bases % UNIT_NBYTES).any():
        raise LayoutError(
            f"pages of {tokens} x {heads} runs of {run} bytes, strides {page}, {token}, {head}, "
            f"first at {int(bases[0]):#x}: runs must lie and end on multiples of {UNIT_NBYTES}"
        )
    offsets = (np.arange(tokens)[:, None] * token + np.arange(heads) * head).ravel()
    span = int(offsets[-1]) + run
    runs = Runs(
        *(bases, *numbers, num_pages),
        numbers=np.array(numbers, np.int64),
        offsets=offsets,
        first=int(bases.min()),
        end=int(bases.max()) + span + max(0, num_pages - 1) * page,
        shares_bytes=False,
    )
    return replace(runs, shares_bytes=_shares_bytes(runs))


def meet(ours: Runs, theirs: Runs, pages: range) -> bool:
    """Whether runs of two memories of one page stride share bytes.

    ``pages``: by how many the page of ``theirs`` may come later. By the differences of bases,
    tokens and heads: it takes as long for any number of pages.
    """
    if not pages:
        return False
    within = _differences(ours, theirs)
    apart = np.unique(ours.bases[:, None] - theirs.bases)
    spans = int(within[-1]) + ours.run_nbytes, theirs.run_nbytes - int(within[0])
    apart = apart[_meet_some_page(apart, ours.page_stride, pages, *spans)]
    runs = ours.run_nbytes, theirs.run_nbytes
    return any(
        _meet_some_page(part[:, None] + within, ours.page_stride, pages, *runs).any()
        for part in np.array_split(apart, 1 + len(apart) * len(within) // _AT_ONCE)
    )


_AT_ONCE = 1 << 20  # differences: 8 MiB


def _differences(ours: Runs, theirs: Runs) -> NDArray[np.int64]:
    """How far a run of ``ours`` lies behind one of ``theirs`` that has the same base; sorted."""
    tokens, heads = (
        np.unique((np.arange(n) * stride)[:, None] - np.arange(m) * other)
        for n, stride, m, other in (
            (ours.tokens, ours.token_stride, theirs.tokens, theirs.token_stride),
            (ours.heads, ours.head_stride, theirs.heads, theirs.head_stride),
        )
    )
    return np.unique(tokens[:, None] + heads)


def _meet_some_page(
    behind: NDArray[np.int64], stride: int, pages: range, nbytes: int, other_nbytes: int
) -> NDArray[np.bool_]:
    """Where ``-nbytes < behind - page * stride < other_nbytes`` for one of ``pages``."""
    if not stride:
        return (behind > -nbytes) & (behind < other_nbytes)
    least = np.maximum(-((other_nbytes - 1 - behind) // stride), pages.start)
    return least <= np.minimum((behind + nbytes - 1) // stride, pages.stop - 1)


def _shares_bytes(runs: Runs) -> bool:
    within = np.sort((runs.bases[:, None] + runs.offsets).ravel())
    if (np.diff(within) < runs.run_nbytes).any():
        return True
    return meet(runs, runs, range(1, runs.num_pages))
