# SPDX-License-Identifier: Apache-2.0
"""A backend that keeps what it was asked, for a test to look at."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache.io.backend import Backend, Durability, OnLanded, Transfer
from bodocache.testing.wrapper import WrappedBackend


class Call(NamedTuple):
    """One call: its verb, and its batch (get, put) or frames (reserve, release), copied."""

    verb: str
    batch: NDArray[np.void]
    frames: NDArray[np.int64]
    deadline_s: float


class RecordingBackend(WrappedBackend):
    """Hands every call on to ``inner`` and keeps it in ``calls``, in order."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self.calls: list[Call] = []

    def reserve(self, count: int, *, after: int) -> NDArray[np.int64]:
        """Record the frames that were given."""
        frames = super().reserve(count, after=after)
        self._record("reserve", frames=frames)
        return frames

    def release(self, frames: NDArray[np.int64]) -> None:
        """Record the frames that were given back."""
        super().release(frames)
        self._record("release", frames=frames)

    def get(
        self,
        batch: NDArray[np.void],
        buffers: NDArray[np.uint8],
        *,
        deadline_s: float,
        on_landed: OnLanded | None = None,
    ) -> Transfer:
        """Record the batch."""
        self._record("get", batch, deadline_s=deadline_s)
        return super().get(batch, buffers, deadline_s=deadline_s, on_landed=on_landed)

    def put(
        self,
        batch: NDArray[np.void],
        buffers: NDArray[np.uint8],
        *,
        deadline_s: float,
        durability: Durability = Durability.CACHE,
    ) -> Transfer:
        """Record the batch."""
        self._record("put", batch, deadline_s=deadline_s)
        return super().put(batch, buffers, deadline_s=deadline_s, durability=durability)

    def _record(
        self,
        verb: str,
        batch: NDArray[np.void] | None = None,
        *,
        frames: NDArray[np.int64] | None = None,
        deadline_s: float = float("inf"),
    ) -> None:
        kept = np.zeros(0, np.void) if batch is None else batch.copy()
        named = np.asarray(kept["frame"] if frames is None else frames).copy()
        self.calls.append(Call(verb, kept, named, deadline_s))
