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

from bodocache import jit
from bodocache.errors import BodoCacheError, LayoutError, LeaseError, TierFull
from bodocache.layout import REGISTER_CHUNK_NBYTES, Layout, LayoutKind, PagedMemory

if TYPE_CHECKING:
    import torch

SlotArray = NDArray[np.int64]


class BorrowedPool:
    """Leases and generations over an engine's memory; the engine allocates the slots."""

    name = "engine"

    def __init__(self, memory: PagedMemory) -> None:
        self.memory = memory
        self.generation = np.zeros(memory.num_pages, np.uint32)  # counts how often a slot was freed
        # Free slots are a stack: the first _count[0] of _stack.
        self._leases = np.zeros(memory.num_pages, np.int32)
        self._taken = np.ones(memory.num_pages, np.bool_)  # by the engine
        self._stack = np.empty(memory.num_pages, np.int64)
        self._count = np.zeros(1, np.int64)

    @property
    def num_pages(self) -> int:
        """Slots of the pool."""
        return self.memory.num_pages

    @property
    def leased(self) -> int:
        """Slots under at least one lease."""
        return int(np.count_nonzero(self._leases))

    def hold(self, slots: SlotArray) -> None:
        """Take one lease on each of ``slots``; pair it with :meth:`drop`.

        Raises:
            LayoutError: a slot is beyond the pool; none is leased.
            LeaseError: a slot is free; none is leased.
        """
        wrong = _hold(slots, self._leases, self._taken)
        if wrong < 0:
            return
        if not 0 <= slots[wrong] < self.num_pages:
            raise LayoutError(f"{self.name}: slot {slots[wrong]}; the pool has {self.num_pages}")
        raise LeaseError(f"{self.name}: slot {slots[wrong]} is free; acquire it first")

    def drop(self, slots: SlotArray) -> None:
        """End one lease on each of ``slots``; a slot that was released is free with its last.

        Raises:
            LeaseError: a slot has no lease to end; none is ended.
        """
        wrong = _drop(slots, self._leases, self._taken, self._stack, self._count)
        if wrong >= 0:
            raise LeaseError(f"{self.name}: slot {slots[wrong]}: a lease ended that was not held")

    def is_taken(self, slots: SlotArray) -> NDArray[np.bool_]:
        """Whether each of ``slots`` is in use; False for one beyond the pool."""
        inside = (slots >= 0) & (slots < self.num_pages)
        taken: NDArray[np.bool_] = inside & self._taken[np.where(inside, slots, 0)]
        return taken

    @contextmanager
    def lease(self, slots: SlotArray) -> Iterator[SlotArray]:
        """Hold ``slots`` for the length of a block."""
        self.hold(slots)
        try:
            yield slots
        finally:
            self.drop(slots)


class OwnedPool(BorrowedPool):
    """A pool that owns its memory and gives out its slots.

    On the host it is one anonymous mapping, in huge pages where there are any, pinned where CUDA
    is; on a device it is one tensor. It is given back when the pool is garbage. ``memory`` (uint8,
    at least ``layout.pool_nbytes``) takes its place: a mapping that processes share.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        device: str = "cpu",
        name: str = "pool",
        memory: "torch.Tensor | None" = None,
    ) -> None:
        self.layout = layout
        self.buffer = _allocate(layout.pool_nbytes, device) if memory is None else memory
        super().__init__(PagedMemory.of_layout(self.buffer, layout))
        self.name = name
        self._taken[:] = False
        self._stack[:] = np.arange(layout.num_pages)[::-1]
        self._count[0] = layout.num_pages

    @property
    def free(self) -> int:
        """Slots that :meth:`acquire` could give now."""
        return int(self._count[0])

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
        slots = np.empty(count, np.int64)
        if not _acquire(slots, self._taken, self._stack, self._count):
            raise TierFull(
                f"{self.name}: {count} slots asked for, {self.free} of {self.num_pages} free"
                f" ({self.leased} leased); enlarge the pool or load less at once"
            )
        return slots

    def release(self, slots: SlotArray) -> None:
        """Give ``slots`` back: each is free once its last lease has ended.

        Raises:
            LeaseError: a slot is not taken, or named twice; none is released.
        """
        wrong = _release(
            slots, self._leases, self._taken, self.generation, self._stack, self._count
        )
        if wrong >= 0:
            raise LeaseError(f"{self.name}: slot {slots[wrong]} is released but not taken")


_SLOTS, _LEASES, _TAKEN, _COUNT = (
    jit.readonly("i8"),
    jit.array("i4"),
    jit.array("?"),
    jit.array("i8"),
)


@jit.compiled(_SLOTS, _LEASES, _TAKEN)
def _hold(slots: SlotArray, leases: NDArray[np.int32], taken: NDArray[np.bool_]) -> int:
    """-1, or the index of the first slot that is beyond the pool or free."""
    for i in range(len(slots)):
        if not 0 <= slots[i] < len(leases) or (not taken[slots[i]] and leases[slots[i]] == 0):
            return i
    for slot in slots:
        leases[slot] += 1
    return -1


@jit.compiled(_SLOTS, _LEASES, _TAKEN, jit.array("i8"), _COUNT)
def _drop(
    slots: SlotArray,
    leases: NDArray[np.int32],
    taken: NDArray[np.bool_],
    stack: SlotArray,
    count: NDArray[np.int64],
) -> int:
    """-1, or the index of the first slot without a lease; then nothing has changed."""
    for i in range(len(slots)):
        if not 0 <= slots[i] < len(leases) or leases[slots[i]] < 1:
            for j in range(i):
                leases[slots[j]] += 1
            return i
        leases[slots[i]] -= 1
    for slot in slots:
        if leases[slot] == 0 and not taken[slot]:
            stack[count[0]] = slot
            count[0] += 1
    return -1


@jit.compiled(jit.array("i8"), _TAKEN, jit.array("i8"), _COUNT)
def _acquire(
    slots: SlotArray, taken: NDArray[np.bool_], stack: SlotArray, count: NDArray[np.int64]
) -> bool:
    """Fill ``slots`` from the top of the stack; False, and nothing taken, where it is too short."""
    if len(slots) > count[0]:
        return False
    for i in range(len(slots)):
        count[0] -= 1
        slots[i] = stack[count[0]]
        taken[slots[i]] = True
    return True


@jit.compiled(_SLOTS, _LEASES, _TAKEN, jit.array("u4"), jit.array("i8"), _COUNT)
def _release(
    slots: SlotArray,
    leases: NDArray[np.int32],
    taken: NDArray[np.bool_],
    generation: NDArray[np.uint32],
    stack: SlotArray,
    count: NDArray[np.int64],
) -> int:
    """-1, or the index of the first slot that is not taken; then nothing has changed."""
    for i in range(len(slots)):
        if not 0 <= slots[i] < len(taken) or not taken[slots[i]]:
            for j in range(i):
                taken[slots[j]] = True
            return i
        taken[slots[i]] = False
    for slot in slots:
        generation[slot] += np.uint32(1)
        if leases[slot] == 0:
            stack[count[0]] = slot
            count[0] += 1
    return -1


def _allocate(nbytes: int, device: str) -> "torch.Tensor":
    import torch

    if device != "cpu":
        return torch.empty(nbytes, dtype=torch.uint8, device=device)
    try:
        mapping = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise BodoCacheError(
            f"{nbytes} bytes of host memory: {error}; make the pool smaller, or check `ulimit -v`"
        ) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapping.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(mapping, dtype=torch.uint8)
    if torch.cuda.is_available():
        pin(memory)
    return memory


def pin(memory: "torch.Tensor") -> None:
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
