# SPDX-License-Identifier: Apache-2.0
"""A small pool of threads that do requests: reads first, each kind by deadline.

Threads are started with the pool and joined by :meth:`WorkerPool.join`. The loop hears of
completed requests by one call for as many as there are by then, not by one call for each.
"""

import asyncio
import heapq
import logging
import threading
from collections import deque
from collections.abc import Sequence

from bodocache.clock import Clock
from bodocache.io.backend import Status
from bodocache.io.transfer import BatchTransfer, Outcome, Request
from bodocache.pages import Reason

WARNING_INTERVAL_S = 10.0  # a disk that fails would fill the log

_log = logging.getLogger(__name__)
_Queued = tuple[float, int, Request]  # deadline, order of arrival


class WorkerPool:
    """``count`` threads. Half of them at most write, so that a read never waits for all."""

    __slots__ = (
        *("_announced", "_clock", "_done", "_loop", "_max_writing", "_order", "_ready", "_reads"),
        *("_stopped", "_suppressed", "_threads", "_warned_s", "_writes", "_writing"),
    )

    def __init__(self, count: int, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        self._clock = clock
        self._loop = loop
        self._ready = threading.Condition()
        self._reads: list[_Queued] = []
        self._writes: list[_Queued] = []
        self._order = 0
        self._writing = 0
        self._max_writing = max(1, count // 2)
        self._done: deque[tuple[Request, Outcome]] = deque()
        self._announced = False
        self._stopped = False
        self._warned_s = float("-inf")
        self._suppressed = 0
        self._threads = [
            threading.Thread(target=self._work, name=f"bodocache-io-{i}", daemon=True)
            for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue ``requests``; those of one deadline are begun in this order."""
        with self._ready:
            for request in requests:
                self._order += 1
                entry = (request.transfer.deadline_s, self._order, request)
                heapq.heappush(self._writes if request.writes else self._reads, entry)
            self._ready.notify(len(requests))

    def withdraw(self, transfer: BatchTransfer) -> list[Request]:
        """Give back the requests of ``transfer`` that no worker has begun."""
        withdrawn = []
        with self._ready:
            for queue in (self._reads, self._writes):
                mine = [entry[2] for entry in queue if entry[2].transfer is transfer]
                if mine:
                    queue[:] = [entry for entry in queue if entry[2].transfer is not transfer]
                    heapq.heapify(queue)
                    withdrawn += mine
        return withdrawn

    def stop(self) -> list[Request]:
        """Begin nothing more; return the requests that were still waiting."""
        with self._ready:
            self._stopped = True
            waiting = [entry[2] for entry in self._reads + self._writes]
            self._reads.clear()
            self._writes.clear()
            self._ready.notify_all()
        return waiting

    def join(self) -> None:
        """Wait until every thread has ended, after :meth:`stop`. Blocks."""
        for thread in self._threads:
            thread.join()

    def settle(self) -> None:
        """Settle what is done. On the loop."""
        self._announced = False  # first: whoever appends from now on announces again
        while self._done:
            request, outcome = self._done.popleft()
            request.transfer.settle(request, outcome)

    def _work(self) -> None:
        while (request := self._next()) is not None:
            outcome = self._outcome(request)
            if request.writes:
                self._end_writing()
            self._done.append((request, outcome))
            del request
            self._announce()

    def _next(self) -> Request | None:
        with self._ready:
            while not self._stopped:
                if self._reads:
                    return heapq.heappop(self._reads)[2]
                if self._writes and self._writing < self._max_writing:
                    self._writing += 1
                    return heapq.heappop(self._writes)[2]
                self._ready.wait()
        return None

    def _end_writing(self) -> None:
        with self._ready:
            self._writing -= 1
            if self._writes:
                self._ready.notify()

    def _outcome(self, request: Request) -> Outcome:
        count = len(request.positions)
        if request.transfer.is_late:  # the loop's timer may lag
            return Outcome.all(count, Status.LATE, Reason.LATE)
        try:
            return request.transfer.run(request)
        except Exception as error:  # noqa: BLE001 -- nothing may vanish in a thread: it is a status
            self._warn(error)
            return Outcome.all(count, Status.FAILED, Reason.IO_ERROR)

    def _announce(self) -> None:
        if self._announced:
            return
        self._announced = True
        try:
            self._loop.call_soon_threadsafe(self.settle)
        except RuntimeError:  # the loop was closed with I/O in flight: nobody waits any more
            _log.warning("storage: the event loop was closed before its transfers had drained")

    def _warn(self, error: Exception) -> None:
        now_s = self._clock.now_s()
        if now_s - self._warned_s < WARNING_INTERVAL_S:
            self._suppressed += 1
            return
        unexpected = None if isinstance(error, OSError) else error
        _log.warning(
            "storage: %s: %s (%d more since the last warning)",
            *(type(error).__name__, error, self._suppressed),
            exc_info=unexpected,
        )
        self._warned_s = now_s
        self._suppressed = 0
