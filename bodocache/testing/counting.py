# SPDX-License-Identifier: Apache-2.0
"""A backend that counts how often each page was read."""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from bodocache.io.backend import Backend, OnLanded, ToldInPython, Transfer
from bodocache.testing.wrapper import WrappedBackend


class CountingBackend(WrappedBackend):
    """Hands every call on to ``inner``; ``reads[frame]`` is how often its page has landed.

    What is withdrawn before it begins is not read.
    """

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self.reads: Counter[int] = Counter()

    def get(
        self,
        batch: NDArray[np.void],
        buffers: NDArray[np.uint8],
        *,
        deadline_s: float,
        on_landed: OnLanded | None = None,
    ) -> Transfer:
        """Read, and count what lands."""
        frames = batch["frame"].tolist()

        def tell(positions: NDArray[np.int64]) -> None:
            self.reads.update(frames[position] for position in positions.tolist())
            if on_landed is not None:
                on_landed(positions)

        return super().get(batch, buffers, deadline_s=deadline_s, on_landed=ToldInPython(tell))
