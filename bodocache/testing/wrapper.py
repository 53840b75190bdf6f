# SPDX-License-Identifier: Apache-2.0
"""A backend that hands every call on: what the others here are made of."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from bodocache.io.backend import Backend, Durability, Entries, Extent, OnLanded, Transfer, Usage


class WrappedBackend:
    """Implements the contract by ``inner``, which it closes."""

    def __init__(self, inner: Backend) -> None:
        self._inner = inner

    @property
    def name(self) -> str:
        """The inner backend's name."""
        return self._inner.name

    @property
    def page_nbytes(self) -> int:
        """Bytes of one page."""
        return self._inner.page_nbytes

    @property
    def observer(self) -> Callable[[Extent], None] | None:
        """Told of every extent the inner backend completes."""
        return self._inner.observer

    @observer.setter
    def observer(self, observer: Callable[[Extent], None] | None) -> None:
        self._inner.observer = observer

    @property
    def usage(self) -> Usage:
        """How full the inner backend is."""
        return self._inner.usage

    def entries(self) -> Entries:
        """Every page of the inner backend."""
        return self._inner.entries()

    def reserve(self, count: int, *, after: int) -> NDArray[np.int64]:
        """Reserve frames of the inner backend."""
        return self._inner.reserve(count, after=after)

    def check_reserved(self, frames: NDArray[np.int64], *, idle: bool = False) -> None:
        """Hand on."""
        self._inner.check_reserved(frames, idle=idle)

    def release(self, frames: NDArray[np.int64]) -> None:
        """Release frames of the inner backend."""
        self._inner.release(frames)

    def get(
        self,
        batch: NDArray[np.void],
        buffers: NDArray[np.uint8],
        *,
        deadline_s: float,
        on_landed: OnLanded | None = None,
    ) -> Transfer:
        """Read by the inner backend."""
        return self._inner.get(batch, buffers, deadline_s=deadline_s, on_landed=on_landed)

    def put(
        self,
        batch: NDArray[np.void],
        buffers: NDArray[np.uint8],
        *,
        deadline_s: float,
        durability: Durability = Durability.CACHE,
    ) -> Transfer:
        """Write by the inner backend."""
        return self._inner.put(batch, buffers, deadline_s=deadline_s, durability=durability)

    def hold_writes(self) -> AbstractContextManager[None]:
        """Hold those of the inner backend."""
        return self._inner.hold_writes()

    async def close(self) -> None:
        """Close the inner backend."""
        await self._inner.close()
