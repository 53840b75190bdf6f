# SPDX-License-Identifier: Apache-2.0
"""The clock all code takes its time from, so that a test or a simulation can own it."""

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds on a monotonic scale of its own; absolute inside one process, never on a wire."""

    def now_s(self) -> float:
        """Return the present moment in seconds."""
        ...


class RealClock:
    """The machine's monotonic clock."""

    __slots__ = ()

    now_s = staticmethod(time.monotonic)  # no call of ours around it: it is read 50 times a load


class VirtualClock:
    """A clock that stands still until somebody moves it."""

    __slots__ = ("_now_s",)

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s

    def now_s(self) -> float:
        """Return the moment the clock was last moved to."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Move on by ``seconds`` >= 0; time never runs backwards (ValueError)."""
        if not seconds >= 0:
            raise ValueError(f"clock: advance by {seconds} s; time only runs forwards")
        self._now_s += seconds
