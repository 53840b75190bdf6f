# SPDX-License-Identifier: Apache-2.0
"""Decides loads: whether, from where, how much of it, and when it has taken too long."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bodocache.move.load import Load
from bodocache.move.part import Part


class Decider:
    """Looks at loads whose engines said when they need them."""

    def __init__(self, *, now_s: Callable[[], float]) -> None:
        self._now_s = now_s

    def before_first_byte(
        self, load: Load, wanted: NDArray[np.int64], sources: NDArray[np.int64]
    ) -> None:
        """Cut what would come later than the engine computes it."""

    def watch(self, part: Part) -> None:
        """``part`` waits for its turn."""

    def progress(self, part: Part) -> None:
        """Something of ``part`` has arrived."""

    def too_late(self, load: Load) -> None:
        """The deadline has passed."""
        load.settle()
        load.abandon()

    def backend_deadline_s(self, load: Load) -> float:
        """When storage gives up by itself."""
        return load.deadline_s

    def close(self) -> None:
        """Look no more."""
