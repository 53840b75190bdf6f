# SPDX-License-Identifier: Apache-2.0
"""Pools: slots for pages in device or host memory, and the leases that keep them from reuse.

An OwnedPool owns its memory; a BorrowedPool is an engine's: leases and generations are ours,
allocation is not. A slot under lease is never reused: freeing it takes effect when the last lease
ends. Both are used from one thread, the orchestrator's loop.
"""

import functools
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bodocache.errors import BodoCacheError, LayoutError, LeaseError, TierFull
from bodocache.layout import Layout, LayoutKind, PagedMemory

if TYPE_CHECKING:
    import torch

SlotArray = NDArray[np.int64]

REGISTER_CHUNK_NBYTES = (
    1 << 30
)  # one registration of >= 512 GiB fails whatever is free (vLLM 51081)


class BorrowedPool:
    """Leases and generations over an engine's memory; the engine allocates the slots."""

    def __init__(self, memory: PagedMemory) -> None:
        self.memory = memory
        self.generation = np.zeros(memory.num_pages, np.uint32)  # counts how often a slot was freed
        self._leases = np.zeros(memory.num_pages, np.int32)

    @property
    def num_pages(self) -> int:
        """Slots of the pool."""
        return self.memory.num_pages

    @property
    def leased(self) -> int:
        """Slots under at least one lease."""
        return int(np.count_nonzero(self._leases))

    def hold(self, slots: SlotArray) -> None:
        """Take one lease on each of ``slots``, all distinct; pair it with :meth:`drop`."""
        self._check(slots)
        self._leases[slots] += 1  # np.add.at would allow repeats, at 30 us a call

    def drop(self, slots: SlotArray) -> None:
        """End one lease on each of ``slots``.

        Raises:
            LeaseError: a slot has no lease to end; none is ended.
        """
        if (self._leases[slots] < 1).any():
            raise LeaseError(f"slots {slots.tolist()}: a lease ended that was not held")
        self._leases[slots] -= 1

    @contextmanager
    def lease(self, slots: SlotArray) -> Iterator[SlotArray]:
        """Hold ``slots`` for the length of a block."""
        self.hold(slots)
        try:
            yield slots
        finally:
            self.drop(slots)

    def _check(self, slots: SlotArray) -> None:
        if len(slots) and not 0 <= int(slots.min()) <= int(slots.max()) < self.num_pages:
            raise LayoutError(f"slots {slots.min()}..{slots.max()}: the pool has {self.num_pages}")


class OwnedPool(BorrowedPool):
    """A pool that owns its memory and gives out its slots.

    On the host it is one anonymous mapping, in huge pages where there are any, pinned where CUDA
    is; on a device it is one tensor. ``close`` (or garbage) gives it back.
    """

    def __init__(self, layout: Layout, *, device: str = "cpu", name: str = "pool") -> None:
        self.layout = layout
        self.name = name
        self.buffer = _allocate(layout.pool_nbytes, device)
        super().__init__(PagedMemory.of_layout(self.buffer, layout))
        self._taken = np.zeros(layout.num_pages, np.bool_)
        self._free = list(range(layout.num_pages - 1, -1, -1))

    @property
    def free(self) -> int:
        """Slots that :meth:`acquire` could give now."""
        return len(self._free)

    @functools.cached_property
    def pages(self) -> "torch.Tensor":
        """uint8[num_pages, page_nbytes]: row i is slot i. Only in the ``page`` layout.

        Raises:
            LayoutError: another layout, where a page is not contiguous.
        """
        if self.layout.kind is not LayoutKind.PAGE:
            raise LayoutError(f"{self.name}: pages are scattered in layout {self.layout.kind}")
        nbytes = self.layout.pool_nbytes
        return self.buffer[:nbytes].view(self.layout.num_pages, self.layout.page_nbytes)

    @functools.cached_property
    def rows(self) -> NDArray[np.uint8]:
        """:attr:`pages` as a NumPy array: what backends read into and write from."""
        rows: NDArray[np.uint8] = self.pages.numpy()
        return rows

    def acquire(self, count: int) -> SlotArray:
        """Take ``count`` free slots, unleased.

        Raises:
            TierFull: fewer are free; none is taken.
        """
        if count > len(self._free):
            raise TierFull(
                f"{self.name}: {count} slots asked for, {len(self._free)} of {self.num_pages} free"
                f" ({self.leased} leased); enlarge the pool or load less at once"
            )
        cut = len(self._free) - count
        slots = np.array(self._free[cut:][::-1], np.int64)
        del self._free[cut:]
        self._taken[slots] = True
        return slots

    def release(self, slots: SlotArray) -> None:
        """Give ``slots`` back: each is free once its last lease has ended.

        Raises:
            LeaseError: a slot is not taken, or named twice; none is released.
        """
        self._check(slots)
        if not self._taken[slots].all() or len(set(slots.tolist())) != len(slots):
            raise LeaseError(f"{self.name}: release of slots that are not taken")
        self._taken[slots] = False
        self.generation[slots] += 1
        self._reuse(slots[self._leases[slots] == 0])

    def drop(self, slots: SlotArray) -> None:
        """End one lease on each of ``slots``; released ones become free with their last."""
        super().drop(slots)
        ended = slots[(self._leases[slots] == 0) & ~self._taken[slots]]
        if len(ended):
            self._reuse(ended)

    def _reuse(self, slots: SlotArray) -> None:
        self._free.extend(slots.tolist())


def _allocate(nbytes: int, device: str) -> "torch.Tensor":
    import torch

    if device != "cpu":
        return torch.empty(nbytes, dtype=torch.uint8, device=device)
    mapping = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(mapping, dtype=torch.uint8)
    if torch.cuda.is_available():
        _pin(memory)
    return memory


def _pin(memory: "torch.Tensor") -> None:
    """Register host memory with CUDA, chunk by chunk.

    Raises:
        BodoCacheError: the driver refused; the message says how much was asked for.
    """
    import torch

    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    for start in range(0, memory.numel(), REGISTER_CHUNK_NBYTES):
        nbytes = min(REGISTER_CHUNK_NBYTES, memory.numel() - start)
        code = int(runtime.cudaHostRegister(memory.data_ptr() + start, nbytes, 0))
        if code:
            raise BodoCacheError(
                f"pinning {memory.numel()} bytes of host memory: CUDA error {code} at byte {start};"
                " check `ulimit -l` and free memory, or make the host tier smaller"
            )
