# SPDX-License-Identifier: Apache-2.0
"""Copies between the host pool and the device pool, with the digest of what was moved.

Small copies run where they are called: up to INLINE_NBYTES a copy is shorter than the hop to
another thread and back (60 us, and a wait for the interpreter's lock). Larger ones use threads.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from bodocache.kernels import gather_pages, scatter_pages
from bodocache.pools import BorrowedPool, OwnedPool, SlotArray

U64Array = NDArray[np.uint64]
T = TypeVar("T")

INLINE_NBYTES = 2 << 20  # 0.2 ms of one core: as long as the loop's own work for such a load
THREADS = 2  # copies release the interpreter's lock; more share the same memory bandwidth


class Copies:
    """Moves pages between two pools; digests are u64[n, 2], before the key's seed."""

    def __init__(self, device: BorrowedPool, host: OwnedPool) -> None:
        self._device = device.memory
        self._host = host.pages
        self._page_nbytes = host.layout.page_nbytes
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="bodocache-copy")

    def to_device(self, host_slots: SlotArray, device_slots: SlotArray) -> U64Array:
        """Copy host slots to device slots; the digests are of the bytes that were moved."""
        if self._device.device.type == "cpu":
            return _digests(scatter_pages(self._host, self._device, device_slots, rows=host_slots))
        staged = self._host[torch.from_numpy(host_slots)].to(self._device.device)
        return _digests(scatter_pages(staged, self._device, self._on_device(device_slots)))

    def to_host(self, device_slots: SlotArray, host_slots: SlotArray) -> U64Array:
        """Copy device slots to host slots; the digests are of the bytes that were moved."""
        if self._device.device.type == "cpu":
            return _digests(
                gather_pages(self._device, device_slots, out=self._host, rows=host_slots).digests
            )
        gathered = gather_pages(self._device, self._on_device(device_slots))
        self._host[torch.from_numpy(host_slots)] = gathered.pages.cpu()
        return _digests(gathered.digests)

    def runs_inline(self, pages: int) -> bool:
        """Whether a copy of ``pages`` is short enough to run on the loop."""
        return pages * self._page_nbytes <= INLINE_NBYTES

    async def run(self, pages: int, copy: Callable[[], T]) -> T:
        """Do ``copy``, which moves ``pages``: here if it is short, else in a thread."""
        return copy() if self.runs_inline(pages) else await self.in_thread(copy)

    async def in_thread(self, copy: Callable[[], T]) -> T:
        """Do ``copy`` in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, copy)

    def close(self) -> None:
        """Wait for copies under way, and end the threads."""
        self._threads.shutdown(wait=True)

    def _on_device(self, slots: SlotArray) -> torch.Tensor:
        return torch.from_numpy(slots).to(self._device.device)


def _digests(words: torch.Tensor) -> U64Array:
    return words.cpu().numpy().view(np.uint64)
