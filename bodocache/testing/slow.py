# SPDX-License-Identifier: Apache-2.0
"""A backend that begins late: a slow disk, a far node, a queue before ours."""

import asyncio
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bodocache.clock import Clock
from bodocache.errors import BodoCacheError, CacheClosed
from bodocache.io.backend import Backend, Durability, OnLanded, Status, Transfer
from bodocache.pages import Reason
from bodocache.testing.wrapper import WrappedBackend


class SlowBackend(WrappedBackend):
    """Begins every get and put ``delay_s`` after it was asked to, by the event loop's clock.

    A batch whose deadline passes before that, or which is abandoned, never reaches ``inner``.
    """

    def __init__(self, inner: Backend, delay_s: float, *, clock: Clock) -> None:
        super().__init__(inner)
        self._delay_s = delay_s
        self._clock = clock
        self._is_closed = False

    def get(
        self,
        batch: NDArray[np.void],
        buffers: NDArray[np.uint8],
        *,
        deadline_s: float,
        on_landed: OnLanded | None = None,
    ) -> Transfer:
        """Read later."""
        batch = batch.copy()  # it is the caller's again when this returns
        return self._later(
            *(len(batch), deadline_s),
            lambda: self._inner.get(batch, buffers, deadline_s=deadline_s, on_landed=on_landed),
        )

    def put(
        self,
        batch: NDArray[np.void],
        buffers: NDArray[np.uint8],
        *,
        deadline_s: float,
        durability: Durability = Durability.CACHE,
    ) -> Transfer:
        """Write later."""
        batch = batch.copy()
        return self._later(
            *(len(batch), deadline_s),
            lambda: self._inner.put(batch, buffers, deadline_s=deadline_s, durability=durability),
        )

    async def close(self) -> None:
        """Close the inner backend; what has not begun by then fails."""
        self._is_closed = True
        await super().close()

    def _later(self, count: int, deadline_s: float, begin: Callable[[], Transfer]) -> Transfer:
        if self._is_closed:
            raise CacheClosed(f"{self.name}: is closed")
        left_s = deadline_s - self._clock.now_s()
        if left_s > self._delay_s:
            return _SlowTransfer(count, self._delay_s, begin)
        return _SlowTransfer(count, max(0.0, left_s), None)


class _SlowTransfer:
    """PENDING until its time has come, then the inner transfer, or LATE where there is none."""

    def __init__(self, count: int, delay_s: float, begin: Callable[[], Transfer] | None) -> None:
        loop = asyncio.get_running_loop()
        self._begin = begin
        self._inner: Transfer | None = None
        self._statuses = np.zeros(count, np.uint8)
        self._reasons = np.zeros(count, np.uint8)
        self._decided: asyncio.Future[None] = loop.create_future()
        self._timer = loop.call_later(delay_s, self._decide) if delay_s else None
        if not delay_s:
            self._decide()

    @property
    def statuses(self) -> NDArray[np.uint8]:
        """Status of each page."""
        return self._statuses if self._inner is None else self._inner.statuses

    @property
    def reasons(self) -> NDArray[np.uint8]:
        """Reason of each page."""
        return self._reasons if self._inner is None else self._inner.reasons

    async def progress(self) -> bool:
        """Wait until it has begun, then for another page."""
        await asyncio.shield(self._decided)
        return self._inner is not None and await self._inner.progress()

    async def finished(self) -> None:
        """Wait until every page is final."""
        await asyncio.shield(self._decided)
        if self._inner is not None:
            await self._inner.finished()

    def abandon(self) -> None:
        """Never begin, or abandon what has begun."""
        if self._inner is not None:
            self._inner.abandon()
        elif not self._decided.done():
            self._give_up(Reason.CANCELLED)

    async def drained(self) -> None:
        """Wait until nothing can touch the buffers any more."""
        await asyncio.shield(self._decided)
        if self._inner is not None:
            await self._inner.drained()

    def _decide(self) -> None:
        if self._begin is None:
            self._give_up(Reason.LATE)
            return
        try:
            self._inner = self._begin()
            self._decided.set_result(None)
        except BodoCacheError:  # closed meanwhile: nobody is there to raise to
            self._give_up(Reason.IO_ERROR, Status.FAILED)

    def _give_up(self, reason: Reason, status: Status = Status.LATE) -> None:
        self._statuses[:] = status
        self._reasons[:] = reason
        if self._timer is not None:
            self._timer.cancel()
        if not self._decided.done():
            self._decided.set_result(None)
