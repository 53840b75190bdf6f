# SPDX-License-Identifier: Apache-2.0
"""A backend with faults by plan: the n-th page read, the n-th page written, the n-th reservation.

Sweep n from 0 until no fault fires and every place a fault can fall has been tried.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from bodocache.errors import TierFull
from bodocache.io.backend import Backend, Durability, OnLanded, Status, ToldInPython, Transfer
from bodocache.pages import Reason
from bodocache.testing.wrapper import WrappedBackend


class Operation(StrEnum):
    """What a fault falls on."""

    GET = "get"  # counted in pages
    PUT = "put"  # counted in pages
    RESERVE = "reserve"  # counted in calls


@dataclass(frozen=True, slots=True)
class Fault:
    """Occurrences ``first`` to ``last`` (inclusive, from 0; None: for ever) of ``operation`` fail.

    Pages end with ``status`` and ``reason`` and never reach the inner backend; a reservation
    raises TierFull.
    """

    operation: Operation
    first: int
    last: int | None
    status: Status = Status.FAILED
    reason: Reason = Reason.IO_ERROR

    @classmethod
    def once(cls, operation: Operation, n: int) -> "Fault":
        """A transient error at occurrence ``n``."""
        return cls(operation, n, n)


class FaultyBackend(WrappedBackend):
    """Hands calls on to ``inner``, but for the faults of ``plan``; ``fired`` counts those."""

    def __init__(self, inner: Backend, plan: Sequence[Fault] = ()) -> None:
        super().__init__(inner)
        self._plan = tuple(plan)
        self._counts = dict.fromkeys(Operation, 0)
        self.fired = 0

    def reserve(self, count: int, *, after: int) -> NDArray[np.int64]:
        """Reserve, or be full."""
        statuses, _ = self._faults(Operation.RESERVE, 1)
        if statuses[0]:
            raise TierFull(f"{self.name}: {count} frames requested, refused by the fault plan")
        return super().reserve(count, after=after)

    def get(
        self,
        batch: NDArray[np.void],
        buffers: NDArray[np.uint8],
        *,
        deadline_s: float,
        on_landed: OnLanded | None = None,
    ) -> Transfer:
        """Read the pages without a fault."""
        statuses, reasons = self._faults(Operation.GET, len(batch))
        kept = np.flatnonzero(statuses == 0)
        tell = (
            None
            if on_landed is None
            else ToldInPython(lambda positions: on_landed(kept[positions]))
        )
        inner = super().get(batch[kept], buffers, deadline_s=deadline_s, on_landed=tell)
        return _FaultyTransfer(inner, statuses, reasons)

    def put(
        self,
        batch: NDArray[np.void],
        buffers: NDArray[np.uint8],
        *,
        deadline_s: float,
        durability: Durability = Durability.CACHE,
    ) -> Transfer:
        """Write the pages without a fault."""
        statuses, reasons = self._faults(Operation.PUT, len(batch))
        chosen = batch[statuses == 0]
        inner = super().put(chosen, buffers, deadline_s=deadline_s, durability=durability)
        return _FaultyTransfer(inner, statuses, reasons)

    def _faults(
        self, operation: Operation, count: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Status and reason of the next ``count`` occurrences; 0 where there is no fault."""
        occurrences = self._counts[operation] + np.arange(count)
        self._counts[operation] += count
        statuses = np.zeros(count, np.uint8)
        reasons = np.zeros(count, np.uint8)
        for fault in self._plan:
            last = np.inf if fault.last is None else fault.last
            hit = (occurrences >= fault.first) & (occurrences <= last)
            if fault.operation is operation:
                statuses[hit] = fault.status
                reasons[hit] = fault.reason
        self.fired += int(np.count_nonzero(statuses))
        return statuses, reasons


class _FaultyTransfer:
    """The inner transfer of the pages without a fault, seen as the whole batch."""

    def __init__(
        self, inner: Transfer, statuses: NDArray[np.uint8], reasons: NDArray[np.uint8]
    ) -> None:
        self._inner = inner
        self._statuses = statuses
        self._reasons = reasons
        self._sound = statuses == 0

    @property
    def statuses(self) -> NDArray[np.uint8]:
        """Status of each page of the whole batch."""
        whole = self._statuses.copy()
        whole[self._sound] = self._inner.statuses
        return whole

    @property
    def reasons(self) -> NDArray[np.uint8]:
        """Reason of each page of the whole batch."""
        whole = self._reasons.copy()
        whole[self._sound] = self._inner.reasons
        return whole

    async def progress(self) -> bool:
        """Wait for another page of the inner transfer."""
        return await self._inner.progress()

    async def finished(self) -> None:
        """Wait until every page is final."""
        await self._inner.finished()

    def abandon(self) -> None:
        """Abandon the inner transfer."""
        self._inner.abandon()

    async def drained(self) -> None:
        """Wait until the inner transfer has drained."""
        await self._inner.drained()
