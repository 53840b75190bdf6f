# SPDX-License-Identifier: Apache-2.0
"""The node's disk, as an engine predicts it: from what came to it, or what the node says."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bodocache.move.link import Link
from bodocache.move.rate import Estimate


def told_of(link: Link, queued_nbytes: int) -> NDArray[np.float64]:
    """Rate, spread, drift and queue of a link, for :meth:`FarLink.hear`; none: never measured."""
    record = link.record(queued_nbytes)
    if record is None:
        return np.empty(0)
    return np.array([float(record[0][it]) for it in ("rate", "spread", "drift", "queued_nbytes")])


class FarLink(Link):
    """A link whose other users are elsewhere.

    Its own rate, once known, has their share in it; before that, it is as fast as it was said to
    be, behind what they had queued then and cannot have moved since.
    """

    __slots__ = ("_purses", "_queued_nbytes", "_told", "_told_s", "rationed")

    def __init__(self, name: str, *, now_s: Callable[[], float]) -> None:
        super().__init__(name, now_s=now_s)
        self._told: Estimate | None = None
        self._queued_nbytes = self._told_s = 0.0
        self._purses: dict[int, tuple[float, float, float]] = {}  # by tenant: bytes, bytes/s, when
        # What waits for credits comes at their rate, which says nothing of the disk.
        self.rationed = Link(f"{name} by credits", now_s=now_s, beside=self)

    def of(self, tenant: int) -> Link:
        """What loads of ``tenant`` are awaited from."""
        return self.rationed if tenant in self._purses else self

    def hear_credits(self, tenant: int, told: NDArray[np.float64]) -> None:
        """What the node says of the credits of ``tenant``: what it can have now, what it earns."""
        if len(told):
            held, rate = told.tolist()
            self._purses[tenant] = held, rate, self._now_s()

    def payable_nbytes(self, tenant: int, until_s: float) -> float:
        """As there, by what the node said: what was asked for since then is not counted."""
        if tenant not in self._purses:
            return np.inf
        held, rate, told_s = self._purses[tenant]
        return held + rate * (until_s - told_s)

    def hear(self, told: NDArray[np.float64]) -> None:
        """What the node says of it (:func:`told_of`)."""
        if len(told):
            rate, spread, drift, self._queued_nbytes = told.tolist()
            self._told, self._told_s = Estimate(rate, spread, drift), self._now_s()

    def estimate(self, nbytes: int | None = None) -> Estimate | None:
        """As there; what was said, while nothing else is known."""
        return super().estimate(nbytes) or self._told

    def lag_s(self) -> float:
        """As there; while others' bytes should move, nothing of ours is late."""
        lag_s = super().lag_s()
        if self._told is None or not lag_s:
            return lag_s
        begins_s = self._told_s + self._queued_nbytes / self._told.rate
        return max(0.0, lag_s - max(0.0, begins_s - self.rate.since_s))

    def record(self, queued_nbytes: int, nbytes: int | None = None) -> NDArray[np.void] | None:
        """As there, behind what others had queued."""
        others = 0
        if self._told is not None:
            moved = self._told.rate * (self._now_s() - self._told_s)
            others = int(max(0.0, self._queued_nbytes - moved))
        return super().record(queued_nbytes + others, nbytes)
