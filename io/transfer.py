# SPDX-License-Identifier: Apache-2.0
"""One batch on its way: statuses, waiting, the deadline.

All of it belongs to the event loop. Workers see only requests; what became of a request returns to
the loop, which settles it here. Buffers are in use until the last request has been settled.
"""

import asyncio
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from bodocache.clock import Clock
from bodocache.io.backend import OnLanded, Status
from bodocache.pages import Reason

_NUMBERS = itertools.count()
_TIMER_MAX_S = 3600.0  # a later deadline is looked at again then
_PENDING = int(Status.PENDING)  # of an enum each look costs a call


class Outcome(NamedTuple):
    """What became of a request's pages: Status and Reason of each."""

    statuses: NDArray[np.uint8]
    reasons: NDArray[np.uint8]

    @classmethod
    def all(cls, count: int, status: Status, reason: Reason = Reason.NONE) -> "Outcome":
        """The same for ``count`` pages."""
        both = np.empty((2, count), np.uint8)
        both[0], both[1] = int(status), int(reason)
        return cls(both[0], both[1])


class Request(Protocol):
    """A part of a transfer that one worker does at once."""

    @property
    def transfer(self) -> "BatchTransfer":
        """The batch it is part of."""
        ...

    @property
    def positions(self) -> NDArray[np.int64]:
        """Its pages' positions in the batch."""
        ...

    @property
    def writes(self) -> bool:
        """Whether it may wait for reads."""
        ...

    @property
    def job(self) -> int:
        """Address of the JOB (jobs.py) that compiled code does, kept alive by the request; or 0."""
        ...

    def run(self) -> "Outcome | Sequence[Request]":
        """Do it, in a worker thread; or, on the loop, read what became of its job.

        Instead of an outcome it may return the requests that must be done in its place. Whatever it
        raises makes its pages FAILED.
        """
        ...

    def settle(self, outcome: Outcome) -> None:
        """Take note of ``outcome``, on the loop."""
        ...


class Written(Protocol):
    """What was written at once, as the put that it is part of sees it."""

    @property
    def positions(self) -> NDArray[np.int64]:
        """Its pages' positions in the batch."""
        ...

    @property
    def frames(self) -> NDArray[np.int64]:
        """The frames it writes."""
        ...

    @property
    def was_begun(self) -> bool:
        """Whether anything of it may have been written."""
        ...

    def publish(self, fresh: NDArray[np.bool_]) -> None:
        """Let gets find those of its pages that ``fresh`` chooses, on the loop."""
        ...


class Queue(Protocol):
    """Where requests wait for a worker."""

    def submit(self, requests: Sequence[Request]) -> None:
        """Take requests; each is run and then settled on the loop, unless it is withdrawn."""
        ...

    def withdraw(self, transfer: "BatchTransfer") -> list[Request]:
        """Give back the requests of ``transfer`` that no worker has begun."""
        ...


class BatchTransfer:
    """Implements :class:`bodocache.io.backend.Transfer` over a queue of requests.

    A transfer whose deadline has passed already is LATE from the start.
    """

    __slots__ = (
        *(
            "_clock",
            "_in_use",
            "_loop",
            "_pending",
            "_queue",
            "_seen",
            "_timer",
            "_waiters",
        ),
        *("deadline_s", "number", "on_drained", "on_landed", "on_whole", "reasons", "statuses"),
    )

    def __init__(
        self,
        count: int,
        deadline_s: float,
        clock: Clock,
        queue: Queue,
        *,
        on_landed: OnLanded | None = None,
    ) -> None:
        self.statuses = np.zeros(count, np.uint8)
        self.reasons = np.zeros(count, np.uint8)
        self.deadline_s = deadline_s
        self.number = next(_NUMBERS)
        self.on_landed = on_landed
        self.on_drained: Callable[[BatchTransfer], None] | None = None
        self.on_whole: Callable[[Sequence[Any]], None] | None = None  # instead of their settle
        self._clock = clock
        self._queue = queue
        self._loop = asyncio.get_running_loop()
        self._pending = self._seen = count
        self._in_use = 0  # requests submitted and not settled
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: list[asyncio.Future[None]] = []
        if self.is_late:
            self._finish_pending(Reason.LATE)

    @property
    def is_late(self) -> bool:
        """Whether the deadline has passed."""
        return self._clock.now_s() >= self.deadline_s

    @property
    def is_final(self) -> bool:
        """Whether every page is final."""
        return not self._pending

    @property
    def is_drained(self) -> bool:
        """Whether nothing can touch the buffers any more."""
        return not self._in_use

    def tell(self, positions: NDArray[np.int64]) -> None:
        """Tell who waits for landed pages of those at ``positions``. In the thread of a queue."""
        if self.on_landed is not None and len(positions):
            self.on_landed(positions)

    def submit(self, requests: Sequence[Request]) -> None:
        """Begin ``requests``. Once a page is final, its request must not be submitted."""
        self._in_use += len(requests)
        if self._timer is None and self._pending and math.isfinite(self.deadline_s):
            self._arm()
        self._queue.submit(requests)

    def replace(self, request: Request, requests: Sequence[Request]) -> None:
        """Do ``requests``, which have its pages among them, instead of ``request``."""
        if self.is_final:
            late = Outcome.all(len(request.positions), Status.LATE, Reason.LATE)
            self.settle(request, late)
            return
        self.submit(requests)
        self._in_use -= 1

    def settle(self, request: Request, outcome: Outcome) -> None:
        """Let ``request`` take note of its outcome, then let go of its buffers."""
        request.settle(outcome)
        self.let_go()

    def settle_whole(self, requests: Sequence[Request]) -> None:
        """Settle, at once, requests whose jobs are whole; there is an ``on_whole``.

        NumPy takes as long for one page as for a hundred: one by one, pages that lie alone cost the
        loop several times as much.
        """
        assert self.on_whole is not None
        self.on_whole(requests)
        self.let_go(len(requests))

    def hold(self) -> None:
        """It has not drained before a :meth:`let_go` more: something of it goes on."""
        self._in_use += 1

    def let_go(self, count: int = 1) -> None:
        """End so many :meth:`hold`."""
        self._in_use -= count
        if not self._in_use and self.on_drained is not None:
            self.on_drained(self)
        self._wake()

    def finish(self, positions: NDArray[np.int64], outcome: Outcome) -> NDArray[np.bool_]:
        """Make the pages at ``positions`` final; return which of them were not yet."""
        fresh: NDArray[np.bool_] = self.statuses[positions] == _PENDING
        chosen = positions[fresh]
        self.statuses[chosen] = outcome.statuses[fresh]
        self.reasons[chosen] = outcome.reasons[fresh]
        self._pending -= len(chosen)
        if not self._pending and self._timer is not None:
            self._timer.cancel()
        self._wake()
        return fresh

    async def progress(self) -> bool:
        """Wait until another page is final; False once all are."""
        while self._pending and self._pending == self._seen:
            await self._change()
        self._seen = self._pending
        return self._pending > 0

    async def finished(self) -> None:
        """Wait until every page is final."""
        while self._pending:
            await self._change()

    def abandon(self) -> None:
        """Begin nothing more: pages not yet begun are LATE, the others go on."""
        self._withdraw(Reason.CANCELLED)

    async def drained(self) -> None:
        """Wait until nothing can touch the buffers any more."""
        while self._in_use:
            await self._change()

    def _withdraw(self, reason: Reason) -> None:
        for request in self._queue.withdraw(self):
            self.settle(request, Outcome.all(len(request.positions), Status.LATE, reason))

    def _arm(self) -> None:
        delay_s = min(self.deadline_s - self._clock.now_s(), _TIMER_MAX_S)
        self._timer = self._loop.call_later(max(0.0, delay_s), self._expire)

    def _expire(self) -> None:
        if not self.is_late:  # the timer and the clock need not be the same
            self._arm()
            return
        self._finish_pending(Reason.LATE)
        self._withdraw(Reason.LATE)

    def _finish_pending(self, reason: Reason) -> None:
        pending = np.flatnonzero(self.statuses == Status.PENDING)
        self.finish(pending, Outcome.all(len(pending), Status.LATE, reason))

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _change(self) -> None:
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            self._waiters.remove(waiter)
