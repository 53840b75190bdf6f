# SPDX-License-Identifier: Apache-2.0
"""SGLang's host pools as pages of bytes: where the pieces of a page lie, whatever pool it is.

A pool says where a page lies (``get_page_buffer_meta``); it is asked for three pages, and between
them addresses are a straight line, or the pool is refused. So a page costs no Python, every layout
and every kind of pool is served by one piece of code, and the bytes of a page are its pieces one
after the other. Pools that cannot say are copied as the flat pages that they give and take.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from bodocache import digest
from bodocache.errors import LayoutError
from bodocache.kernels.prepared import PreparedCopies
from bodocache.layout import PIECE_ALIGNMENT, PagedMemory

SlotArray = NDArray[np.int64]
U64Array = NDArray[np.uint64]


class Copier(Protocol):
    """Moves pages between an engine's memory and rows of the node's host pool.

    Digests are u64[n, 2] over whole rows, before the key's seed, of the bytes that were moved.
    """

    def to_rows(self, slots: SlotArray, rows: SlotArray) -> U64Array:
        """Copy the engine's pages ``slots`` to ``rows``."""

    def from_rows(self, rows: SlotArray, slots: SlotArray) -> U64Array:
        """Copy ``rows`` to the engine's pages ``slots``."""


class Pages(Protocol):
    """The pages of one pool, or of one shard of it."""

    form: str  # the order of a page's bytes, for its identity
    nbytes: int  # of a page

    def copier(self, rows: torch.Tensor) -> Copier:
        """What copies to and from ``rows`` (uint8[n, >= nbytes])."""


class Part(NamedTuple):
    """Equal pieces that stand together in a page."""

    memory: PagedMemory
    first: int  # byte of the page
    nbytes: int


class PiecePages:
    """Pages whose pieces lie at addresses; ``of_pool`` finds them."""

    def __init__(self, parts: Sequence[Part], form: str) -> None:
        self.form = form
        self.parts = tuple(parts)
        self.nbytes = sum(part.nbytes for part in parts)

    @classmethod
    def of_pool(cls, pool: Any, *, splits: int = 1) -> list["PiecePages"]:
        """The pages of ``pool``; with ``splits``, those of each of as many equal ranges of heads.

        Raises:
            LayoutError: the pool's pages do not lie in a straight line, or not at multiples of 16,
                or its layout does not keep heads together.
        """
        tokens, pages = int(pool.page_size), int(pool.size) // int(pool.page_size)
        first, sizes = _page_at(pool, 0)
        step = np.zeros_like(first)
        if pages > 1:
            step = _page_at(pool, tokens)[0] - first
            last, _ = _page_at(pool, (pages - 1) * tokens)
            if (last != first + (pages - 1) * step).any():
                raise LayoutError(f"{_name(pool)}: its pages do not lie in a straight line")
        if splits > 1 and (pool.layout != "page_head" or (sizes % splits).any()):
            raise LayoutError(
                f"{_name(pool)}: heads of layout {pool.layout} in {splits} parts; only page_head"
                " keeps the heads of a page together: --hicache-mem-layout page_head"
            )
        sizes //= splits
        form = f"{pool.layout}:{'+'.join(_counted(sizes))}"
        return [
            cls(_parts(pool, first + split * sizes, sizes, step, pages), form)
            for split in range(splits)
        ]

    def copier(self, rows: torch.Tensor) -> "PieceCopier":
        """See :class:`Pages`."""
        return PieceCopier(self.parts, self.nbytes, rows)


class PieceCopier:
    """Compiled copies, at the speed of memcpy, with the digest on the way; without Python's lock.

    Of a row that is longer than a page the rest is zeros.
    """

    def __init__(self, parts: Sequence[Part], nbytes: int, rows: torch.Tensor) -> None:
        self._copies = [
            (PreparedCopies(it.memory, rows[:, it.first : it.first + it.nbytes]), it)
            for it in parts
        ]
        self._rest = rows[:, nbytes:].numpy()
        self._row_nbytes = rows.shape[1]

    def to_rows(self, slots: SlotArray, rows: SlotArray) -> U64Array:
        """See :class:`Copier`."""
        if self._rest.shape[1]:
            self._rest[rows] = 0
        return self._joined([copies.gather(slots, rows) for copies, _ in self._copies])

    def from_rows(self, rows: SlotArray, slots: SlotArray) -> U64Array:
        """See :class:`Copier`."""
        return self._joined([copies.scatter(rows, slots) for copies, _ in self._copies])

    def _joined(self, digests: list[U64Array]) -> U64Array:
        if len(digests) == 1 and not self._rest.shape[1]:
            return digests[0]
        sums = np.zeros_like(digests[0])
        for (_, part), one in zip(self._copies, digests, strict=True):
            digest.add_part(sums, one, part.first, part.nbytes)
        return digest.of_sums(sums, self._row_nbytes)


class FlatPages:
    """Pages that a pool gives and takes as flat tensors, copied once more on the way."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        page = pool.get_dummy_flat_data_page()
        self.nbytes = page.numel() * page.element_size()
        self.form = f"{pool.layout}:flat"

    def copier(self, rows: torch.Tensor) -> "TensorCopier":
        """See :class:`Pages`."""
        pool, tokens = self._pool, int(self._pool.page_size)

        def take(slot: int, page: NDArray[np.uint8]) -> None:
            flat = pool.get_dummy_flat_data_page()
            bytes_of(flat)[:] = page[: self.nbytes]
            pool.set_from_flat_data_page(slot * tokens, flat)

        return TensorCopier(
            rows, give=lambda slot: pool.get_data_page(slot * tokens, flat=True), take=take
        )


class TensorCopier:
    """Copies of pages that are tensors, one by one."""

    def __init__(
        self,
        rows: torch.Tensor,
        *,
        give: Callable[[int], torch.Tensor],
        take: Callable[[int, NDArray[np.uint8]], None],
    ) -> None:
        """``give(slot)`` is a page; ``take(slot, row)`` copies one from a row."""
        self._rows = rows.numpy()
        self._give, self._take = give, take

    @classmethod
    def of_tensors(cls, rows: torch.Tensor, pages: Sequence[torch.Tensor]) -> "TensorCopier":
        """Each of ``pages`` is one, by its index."""

        def take(slot: int, page: NDArray[np.uint8]) -> None:
            target = bytes_of(pages[slot])
            target[:] = page[: len(target)]

        return cls(rows, give=lambda slot: pages[slot], take=take)

    def to_rows(self, slots: SlotArray, rows: SlotArray) -> U64Array:
        """See :class:`Copier`."""
        for slot, row in zip(slots.tolist(), rows.tolist(), strict=True):
            page = bytes_of(self._give(slot))
            self._rows[row, : len(page)] = page
            self._rows[row, len(page) :] = 0
        return digest.digest_rows(self._rows, rows)

    def from_rows(self, rows: SlotArray, slots: SlotArray) -> U64Array:
        """See :class:`Copier`; what is digested is a copy that nobody else sees."""
        mine = self._rows[rows]
        for page, slot in zip(mine, slots.tolist(), strict=True):
            self._take(slot, page)
        return digest.digest_rows(mine, np.arange(len(mine)))


def bytes_of(page: torch.Tensor) -> NDArray[np.uint8]:
    """The memory of a contiguous tensor."""
    if not page.is_contiguous():
        raise LayoutError(f"a page of strides {page.stride()}: expected a contiguous tensor")
    flat: NDArray[np.uint8] = page.reshape(-1).view(torch.uint8).numpy()
    return flat


def page_slots(host_indices: torch.Tensor, tokens: int, pages: int) -> SlotArray:
    """The pages (page numbers) that SGLang's token slots ``host_indices`` are of.

    Raises:
        LayoutError: they are not ``pages`` whole pages.
    """
    if len(host_indices) != pages * tokens:
        raise LayoutError(
            f"host_indices: {len(host_indices)} token slots for {pages} pages of {tokens}"
        )
    first: SlotArray = host_indices[::tokens].numpy()
    if (first % tokens).any():
        raise LayoutError(f"host_indices: pages begin at {first.tolist()}; expected multiples")
    return first // tokens


def _page_at(pool: Any, token: int) -> tuple[SlotArray, SlotArray]:
    """Addresses and bytes of the pieces of the page that begins at token slot ``token``."""
    addresses, sizes = pool.get_page_buffer_meta(
        torch.arange(token, token + int(pool.page_size), dtype=torch.int64)
    )
    return np.array(addresses, np.int64), np.array(sizes, np.int64)


def _parts(
    pool: Any, first: SlotArray, sizes: SlotArray, step: SlotArray, pages: int
) -> list[Part]:
    """Pieces that are alike and stand together, as parts."""
    alike = (np.diff(sizes) == 0) & (np.diff(step) == 0)
    ends = np.append(np.flatnonzero(~alike) + 1, len(sizes))
    parts, begin, at = [], 0, 0
    for end in ends.tolist():
        nbytes = int(sizes[begin])
        memory = PagedMemory(
            bases=first[begin:end, None],
            page_stride=int(step[begin]),
            token_stride=nbytes,
            head_stride=nbytes,
            row_nbytes=nbytes,
            heads=1,
            page_tokens=1,
            num_pages=pages,
            device=torch.device("cpu"),
            owner=pool,
        )
        parts.append(Part(memory, at, (end - begin) * nbytes))
        at += parts[-1].nbytes
        begin = end
    wrong = (first % PIECE_ALIGNMENT).any() or (sizes % PIECE_ALIGNMENT).any()
    if wrong or (step % PIECE_ALIGNMENT).any():
        raise LayoutError(f"{_name(pool)}: its pieces do not lie at multiples of 16 bytes")
    return parts


def _counted(sizes: SlotArray) -> list[str]:
    """Sizes in words: "2x4096"."""
    ends = np.append(np.flatnonzero(np.diff(sizes)) + 1, len(sizes))
    counts = np.diff(np.concatenate(([0], ends)))
    return [f"{n}x{sizes[end - 1]}" for n, end in zip(counts.tolist(), ends.tolist(), strict=True)]


def _name(pool: Any) -> str:
    return type(pool).__name__
