# SPDX-License-Identifier: Apache-2.0
"""What a model keeps (groups), and where the pieces of its pages lie in memory (layouts).

Kernels and backends never see a layout: they see a :class:`PagedMemory` (addresses and strides) or
the pieces of one page. Nothing here owns memory, but a PagedMemory keeps its owner alive.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache.errors import LayoutError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

PIECE_ALIGNMENT = 16  # bytes; what one GPU thread moves at a time
# Host memory is registered with CUDA in chunks: one of 512 GiB fails whatever is free (vLLM 51081).
REGISTER_CHUNK_NBYTES = 1 << 30


class RuleKind(StrEnum):
    """Which pages of a group a prefix of n tokens needs."""

    ALL = "all"
    WINDOW = "window"
    POINT = "point"


@dataclass(frozen=True, slots=True)
class Rule:
    """A group's restore rule: every page, those of the last ``window_tokens``, or one snapshot."""

    kind: RuleKind = RuleKind.ALL
    window_tokens: int = 0

    def __post_init__(self) -> None:
        if (self.kind is RuleKind.WINDOW) != (self.window_tokens > 0):
            raise LayoutError(
                f"rule {self.kind}: window_tokens={self.window_tokens}; "
                "positive for window, 0 for the others"
            )


ALL = Rule()
POINT = Rule(RuleKind.POINT)


def window(tokens: int) -> Rule:
    """The rule of sliding-window attention over the last ``tokens`` tokens."""
    return Rule(RuleKind.WINDOW, tokens)


@dataclass(frozen=True, slots=True)
class Group:
    """One kind of state a model keeps, or a shard's part of it.

    ``kv`` is 2 for keys and values, 1 for one tensor (MLA's latent: heads=1, head_dim=latent_dim).
    Dtypes count by ``itemsize`` in bytes: pages are bytes.
    """

    name: str
    layers: int
    heads: int
    head_dim: int
    itemsize: int
    kv: int = 2
    rule: Rule = ALL

    def __post_init__(self) -> None:
        for field in ("layers", "heads", "head_dim", "itemsize"):
            if getattr(self, field) < 1:
                raise LayoutError(
                    f"group {self.name}: {field}={getattr(self, field)}; must be >= 1"
                )
        if self.kv not in (1, 2):
            raise LayoutError(f"group {self.name}: kv={self.kv}; 2 (K and V) or 1 (one tensor)")

    @property
    def row_nbytes(self) -> int:
        """Bytes of one head of one token of one layer, K or V."""
        return self.head_dim * self.itemsize

    def layer_nbytes(self, page_tokens: int) -> int:
        """Bytes of one layer of one page, K and V together."""
        return self.kv * page_tokens * self.heads * self.row_nbytes

    def page_nbytes(self, page_tokens: int) -> int:
        """Bytes of one page."""
        return self.layers * self.layer_nbytes(page_tokens)


@dataclass(frozen=True, slots=True)
class KVShape:
    """The groups of a model and the tokens of a page, the same for all of them."""

    page_tokens: int
    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        if self.page_tokens < 1 or not self.groups:
            raise LayoutError(f"shape: page_tokens={self.page_tokens}, {len(self.groups)} groups")
        if len({group.name for group in self.groups}) != len(self.groups):
            raise LayoutError(f"shape: group names repeat: {[g.name for g in self.groups]}")


class LayoutKind(StrEnum):
    """The orders of a pool's dimensions; HiCache's names, and our own ``page``."""

    LAYER_FIRST = "layer_first"  # (2, L, S, H, D): an engine's device tensors
    PAGE_FIRST = "page_first"  # (2, S, L, H, D)
    PAGE_FIRST_DIRECT = "page_first_direct"  # (2, N, L, P, H, D)
    PAGE_HEAD = "page_head"  # (2, N, H, P, L, D)
    PAGE = "page"  # (N, L, 2, P, H, D): one piece per page


# Dimensions from outermost to innermost; D is always last. S = N * P, so "N" above "P" below.
_ORDERS = {
    LayoutKind.LAYER_FIRST: "kv layer page token head",
    LayoutKind.PAGE_FIRST: "kv page token layer head",
    LayoutKind.PAGE_FIRST_DIRECT: "kv page layer token head",
    LayoutKind.PAGE_HEAD: "kv page head token layer",
    LayoutKind.PAGE: "page layer kv token head",
}


class Strides(NamedTuple):
    """Bytes from one index to the next, per dimension."""

    page: int
    layer: int
    kv: int
    token: int
    head: int


class Piece(NamedTuple):
    """Contiguous bytes of one page: the offset of their first byte in the pool, and how many."""

    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the pieces of ``num_pages`` pages of one group lie in one pool."""

    kind: LayoutKind
    group: Group
    page_tokens: int
    num_pages: int

    def __post_init__(self) -> None:
        if self.page_tokens < 1 or self.num_pages < 1:
            raise LayoutError(f"layout: page_tokens={self.page_tokens}, num_pages={self.num_pages}")
        if self.page_nbytes % PIECE_ALIGNMENT:
            raise LayoutError(f"layout: {self.page_nbytes} bytes a page; must be a multiple of 16")

    @property
    def page_nbytes(self) -> int:
        """Bytes of one page."""
        return self.group.page_nbytes(self.page_tokens)

    @property
    def pool_nbytes(self) -> int:
        """Bytes of the whole pool."""
        return self.num_pages * self.page_nbytes

    @property
    def strides(self) -> Strides:
        """Byte strides of every dimension."""
        extents = self._extents()
        stride, strides = self.group.row_nbytes, {}
        for dim in reversed(_ORDERS[self.kind].split()):
            strides[dim] = stride
            stride *= extents[dim]
        return Strides(**strides)

    def pieces(
        self, page: int, layers: range | None = None, heads: range | None = None
    ) -> list[Piece]:
        """The pieces of ``page``'s layers and heads (default: all), by ascending offset."""
        if not 0 <= page < self.num_pages:
            raise LayoutError(f"page {page}: the pool has {self.num_pages}")
        strides, extents = self.strides, self._extents()
        chosen = {dim: range(extents[dim]) for dim in extents}
        chosen["page"] = range(page, page + 1)
        chosen["layer"] = within(layers, self.group.layers, "layers")
        chosen["head"] = within(heads, self.group.heads, "heads")
        offsets = np.zeros(1, np.int64)
        for dim in _ORDERS[self.kind].split():
            steps = np.arange(chosen[dim].start, chosen[dim].stop) * getattr(strides, dim)
            offsets = (offsets[:, None] + steps).ravel()
        return _merged(offsets, self.group.row_nbytes)

    def _extents(self) -> dict[str, int]:
        group = self.group
        return {
            "page": self.num_pages,
            "layer": group.layers,
            "kv": group.kv,
            "token": self.page_tokens,
            "head": group.heads,
        }


@dataclass(frozen=True, slots=True)
class PagedMemory:
    """The memory of a pool as kernels see it; layers may be tensors of their own.

    The row (layer l, kv j, page p, token t, head h) lies at address
    ``bases[l, j] + p * page_stride + t * token_stride + h * head_stride`` and has ``row_nbytes``.
    """

    bases: NDArray[np.int64]  # [layers, kv], addresses
    page_stride: int
    token_stride: int
    head_stride: int
    row_nbytes: int
    heads: int
    page_tokens: int
    num_pages: int
    device: "torch.device"
    owner: object  # keeps the memory alive

    @classmethod
    def of_layout(cls, memory: "torch.Tensor", layout: Layout) -> "PagedMemory":
        """See a flat uint8 tensor of ``layout.pool_nbytes`` as pages.

        Raises:
            LayoutError: the tensor is too small, not uint8, not contiguous or not 16-byte aligned.
        """
        if memory.element_size() != 1 or not memory.is_contiguous():
            raise LayoutError(f"memory: expected contiguous bytes, got {memory.dtype}")
        if memory.numel() < layout.pool_nbytes:
            raise LayoutError(f"memory: {memory.numel()} bytes; {layout.pool_nbytes} needed")
        if memory.data_ptr() % PIECE_ALIGNMENT:
            raise LayoutError(f"memory: address {memory.data_ptr():#x}; must be 16-byte aligned")
        group, strides = layout.group, layout.strides
        bases = (
            memory.data_ptr()
            + np.arange(group.layers, dtype=np.int64)[:, None] * strides.layer
            + np.arange(group.kv, dtype=np.int64) * strides.kv
        )
        return cls(
            bases=bases,
            page_stride=strides.page,
            token_stride=strides.token,
            head_stride=strides.head,
            row_nbytes=group.row_nbytes,
            heads=group.heads,
            page_tokens=layout.page_tokens,
            num_pages=layout.num_pages,
            device=memory.device,
            owner=memory,
        )

    @classmethod
    def of_layers(
        cls,
        keys: "Sequence[torch.Tensor]",
        values: "Sequence[torch.Tensor] | None",
        page_tokens: int,
    ) -> "PagedMemory":
        """See an engine's per-layer tensors (slots * page_tokens, heads, head_dim) as pages.

        ``values`` is None for MLA. All tensors share shape, strides, dtype and device.

        Raises:
            LayoutError: tensors differ, or heads are not contiguous rows of a multiple of 16 bytes.
        """
        if not keys or page_tokens < 1:
            raise LayoutError(f"{len(keys)} layers, pages of {page_tokens} tokens; expected some")
        first = keys[0]
        columns = [list(keys)] if values is None else [list(keys), list(values)]
        for tensor in (t for column in columns for t in column):
            if (tensor.shape, tensor.stride(), tensor.dtype, tensor.device) != (
                first.shape,
                first.stride(),
                first.dtype,
                first.device,
            ):
                raise LayoutError(
                    f"layers differ: {list(tensor.shape)} {tensor.dtype} on {tensor.device}"
                    f" against {list(first.shape)} {first.dtype} on {first.device}"
                )
        if first.ndim != 3 or first.stride(2) != 1 or first.shape[0] % page_tokens:
            raise LayoutError(
                f"layer tensor {list(first.shape)}: expected contiguous rows in"
                f" (slots * {page_tokens}, heads, head_dim)"
            )
        if len({len(column) for column in columns}) != 1:
            raise LayoutError(f"{len(keys)} key layers, {len(columns[-1])} value layers")
        itemsize = first.element_size()
        return cls(
            bases=np.array(
                [[c[l].data_ptr() for c in columns] for l in range(len(keys))], np.int64
            ),
            page_stride=first.stride(0) * itemsize * page_tokens,
            token_stride=first.stride(0) * itemsize,
            head_stride=first.stride(1) * itemsize,
            row_nbytes=first.shape[2] * itemsize,
            heads=first.shape[1],
            page_tokens=page_tokens,
            num_pages=first.shape[0] // page_tokens,
            device=first.device,
            owner=columns,
        )

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.bases)

    @property
    def kv(self) -> int:
        """2 for K and V, 1 for one tensor."""
        return int(self.bases.shape[1])

    @property
    def page_nbytes(self) -> int:
        """Bytes of one page, without gaps."""
        rows = int(self.bases.size) * self.page_tokens * self.heads
        return rows * self.row_nbytes

    def tensors(self) -> "list[torch.Tensor]":
        """The tensors that own the memory."""
        return list(self.each_tensor())

    def each_tensor(self) -> "Iterator[torch.Tensor]":
        """The tensors that own the memory, one by one."""
        return _tensors(self.owner)

    def only(self, layers: range | None = None, heads: range | None = None) -> "PagedMemory":
        """The same pages, restricted to a range of layers and of heads (default: all)."""
        rows = within(layers, self.layers, "layers")
        columns = within(heads, self.heads, "heads")
        return replace(
            self,
            bases=self.bases[rows.start : rows.stop] + columns.start * self.head_stride,
            heads=len(columns),
        )


def _tensors(owner: object) -> "Iterator[torch.Tensor]":
    import torch

    if isinstance(owner, torch.Tensor):
        yield owner
    elif isinstance(owner, list | tuple):
        for part in owner:
            yield from _tensors(part)


def within(chosen: range | None, count: int, what: str) -> range:
    """``chosen`` or all of ``count``; LayoutError if it is empty, strided or out of range."""
    if chosen is None:
        return range(count)
    if (
        not isinstance(chosen, range)
        or chosen.step != 1
        or not 0 <= chosen.start < chosen.stop <= count
    ):
        raise LayoutError(f"{what} {chosen}: expected a non-empty range within 0..{count}")
    return chosen


def _merged(offsets: NDArray[np.int64], nbytes: int) -> list[Piece]:
    """Merge rows of ``nbytes`` at ``offsets`` into the longest contiguous pieces."""
    offsets = np.sort(offsets)
    breaks = np.flatnonzero(np.diff(offsets) != nbytes) + 1
    starts = np.concatenate(([0], breaks))
    counts = np.diff(np.concatenate((starts, [len(offsets)])))
    return [Piece(int(offsets[s]), int(c) * nbytes) for s, c in zip(starts, counts, strict=True)]
