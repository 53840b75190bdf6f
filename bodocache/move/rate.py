# SPDX-License-Identifier: Apache-2.0
"""What a link really gives, learned from what it completed: rate, spread and drift.

What the link takes for one chunk of x bytes is the time since it completed the chunk before, or
since it became busy. It is modelled (plan/tardiness.py) as

    t = x / rate * (1 + drift * N) + spread * sqrt(x) * n

with n new for each chunk and N for each block of 32 chunks. After a block of X bytes in T seconds:

    spread^2 = mean of (t - x T / X)^2 / x, by 31/32          within it, so that no drift is in it
    drift^2  = mean of ((T - X / rate) rate / X)^2 - spread^2 rate^2 / X,       rate: before it
    rate     = sum of X / sum of T

each averaged over blocks, of which the newest weighs 1/k (the k-th) but at least a tenth. Each
class of chunk sizes learns by itself: what a small chunk costs says little of what a large one
does.

A rate is of the last hundreds of chunks. What a burst of others' work leaves of it is in the *lag*:
the seconds by which chunks have come later than the rate says, since one was last on time.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass

BLOCK_CHUNKS = 32
NEWEST_WEIGHT = 0.1  # of the newest block, once there are ten: 320 chunks of 2 ms are 0.6 s
SLOW = 1.5  # times what the rate says, and a chunk is not on time
CLASSES_NBYTES = (64 << 10, 1 << 20)  # where one class of sizes ends and the next begins
_CLASSES = len(CLASSES_NBYTES) + 1
_NEAREST: tuple[tuple[int, ...], ...] = tuple(
    (*range(k, _CLASSES), *range(k - 1, -1, -1)) for k in range(_CLASSES)
)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A link as plan/tardiness.py takes it."""

    rate: float  # bytes/s
    spread: float  # s/sqrt(byte)
    drift: float  # relative error of the rate


class LinkRate:
    """Learns an :class:`Estimate` for each class of sizes. Used from the orchestrator's loop."""

    __slots__ = ("_classes", "_since_s", "lag_s")

    def __init__(self) -> None:
        self._since_s = 0.0
        self.lag_s = 0.0
        self._classes = [_Class() for _ in range(_CLASSES)]

    def resume(self, now_s: float) -> None:
        """The link was idle and is busy from now on."""
        self.lag_s = max(0.0, self.lag_s - (now_s - self._since_s))
        self._since_s = now_s

    @property
    def since_s(self) -> float:
        """When it last completed a chunk, or became busy."""
        return self._since_s

    def add(self, now_s: float, nbytes: int, called_s: float = -math.inf) -> None:
        """A chunk of ``nbytes`` was over at ``now_s``. One that failed (0 bytes) says nothing.

        Until it was called for, at ``called_s``, the link may have had nothing to do. Chunks may be
        told in another order than they ended.
        """
        taken_s = max(0.0, now_s - max(self._since_s, called_s))
        self._since_s = max(self._since_s, now_s)
        if nbytes:
            self._note_lag(taken_s, nbytes)
            self._classes[bisect_right(CLASSES_NBYTES, nbytes)].add(taken_s, nbytes)

    def _note_lag(self, taken_s: float, nbytes: int) -> None:
        known = self.estimate(nbytes)
        expected_s = taken_s if known is None else nbytes / known.rate
        self.lag_s = self.lag_s + taken_s - expected_s if taken_s > SLOW * expected_s else 0.0

    def estimate(self, nbytes: int | None = None) -> Estimate | None:
        """What is known for ``nbytes`` (None: many), or None before a first block is complete.

        Where its own class is not known: the nearest, of larger chunks if there is one.
        """
        first = len(CLASSES_NBYTES) if nbytes is None else bisect_right(CLASSES_NBYTES, nbytes)
        for k in _NEAREST[first]:
            if (known := self._classes[k].known) is not None:
                return known
        return None


class _Class:
    """Learns from chunks of about one size."""

    __slots__ = ("_block", "_blocks", "_drift2", "_nbytes", "_seconds", "_spread2", "known")

    def __init__(self) -> None:
        self.known: Estimate | None = None  # once a block is complete
        self._block: list[tuple[float, int]] = []  # seconds and bytes of its chunks
        self._blocks = 0
        self._nbytes = self._seconds = 0.0  # of a block, on average
        self._spread2 = self._drift2 = 0.0

    def add(self, taken_s: float, nbytes: int) -> None:
        self._block.append((taken_s, nbytes))
        if len(self._block) == BLOCK_CHUNKS:
            self._learn()
            self._block.clear()

    def _learn(self) -> None:
        seconds = sum(taken_s for taken_s, _ in self._block)
        total = sum(nbytes for _, nbytes in self._block)
        if seconds <= 0.0:  # a clock too coarse for such a block
            return
        self._blocks += 1
        weight = max(1.0 / self._blocks, NEWEST_WEIGHT)
        inverse = seconds / total
        squares = sum((taken_s - n * inverse) ** 2 / n for taken_s, n in self._block)
        self._spread2 += weight * (squares / (BLOCK_CHUNKS - 1) - self._spread2)
        if self._blocks > 1:
            rate = self._nbytes / self._seconds
            error2 = (seconds * rate / total - 1.0) ** 2 - self._spread2 * rate**2 / total
            self._drift2 = max(0.0, self._drift2 + weight * (error2 - self._drift2))
        self._nbytes += weight * (total - self._nbytes)
        self._seconds += weight * (seconds - self._seconds)
        rate = self._nbytes / self._seconds
        self.known = Estimate(rate, self._spread2**0.5, self._drift2**0.5)
