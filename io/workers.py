# SPDX-License-Identifier: Apache-2.0
"""A small pool of threads that do requests: reads first, each kind by deadline.

Jobs are done by threads that never leave compiled code (table.py); the rest, syncs and what went
wrong, by as many threads that run Python, started when there is some. Everything else here runs on
the loop. Threads are ended by :meth:`WorkerPool.stop`; one that hangs in the kernel does not keep
the interpreter from exiting.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence

from bodocache.clock import Clock
from bodocache.io import table
from bodocache.io.backend import Status
from bodocache.io.table import Table
from bodocache.io.transfer import BatchTransfer, Outcome, Request
from bodocache.pages import Reason

WARNING_INTERVAL_S = 10.0  # a disk that fails would fill the log

_log = logging.getLogger(__name__)


class WorkerPool:
    """``count`` threads. A quarter of them at most write: a read that comes finds the others."""

    __slots__ = (
        *("_clock", "_count", "_loop", "_outcomes", "_requests", "_runs_python", "_suppressed"),
        *("_table", "_threads", "_warned_s"),
    )

    def __init__(self, count: int, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        self._clock = clock
        self._count = count
        self._loop = loop
        self._table = Table(max(1, count // 4))
        self._requests: dict[int, Request] = {}  # by id in the table, until settled
        self._outcomes: dict[int, Outcome] = {}  # of the Python threads
        self._runs_python = False
        self._warned_s = float("-inf")
        self._suppressed = 0
        self._threads: list[threading.Thread] = []
        self._start(_work_natively, "bodocache-io", self._table, self._requests)
        loop.add_reader(self._table.event_fd, self.settle)

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue ``requests``; those of one deadline are begun in this order."""
        ids = self._table.ids(len(requests))
        self._requests.update(zip(ids, requests, strict=True))
        entries = [
            (
                *(table.WAITING, id_, request.transfer.number, request.job),
                *(table.NATIVE if request.job else table.PYTHON, int(request.writes)),
                request.transfer.deadline_s,
            )
            for id_, request in zip(ids, requests, strict=True)
        ]
        self._table.push(entries)
        if not self._runs_python and not all(request.job for request in requests):
            self._runs_python = True
            self._start(self._work, "bodocache-io-python")

    def withdraw(self, transfer: BatchTransfer) -> list[Request]:
        """Give back the requests of ``transfer`` that no worker has begun."""
        return [self._requests.pop(id_) for id_ in self._table.withdraw(transfer.number)]

    def stop(self) -> list[Request]:
        """Begin nothing more; return the requests that were still waiting."""
        return [self._requests.pop(id_) for id_ in self._table.stop(self._count)]

    def join(self) -> None:
        """Wait until every thread has ended, after :meth:`stop`. Blocks."""
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        """Settle what the threads, which have ended, had done."""
        self._loop.remove_reader(self._table.event_fd)
        self.settle()

    def settle(self) -> None:
        """Settle what is done."""
        for id_ in self._table.collect():
            request = self._requests.pop(id_)
            # What a Python thread ran has an outcome already; of a job only its record is there.
            result = self._outcomes.pop(id_, None) or self._result(request)
            if isinstance(result, Outcome):
                request.transfer.settle(request, result)
            else:
                request.transfer.replace(request, result)

    def _start(self, target: Callable[..., None], name: str, *arguments: object) -> None:
        for i in range(self._count):
            thread = threading.Thread(
                target=target, args=arguments, name=f"{name}-{i}", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def _work(self) -> None:
        """The life of a thread that runs Python."""
        while True:
            slot, id_ = table.take(self._table, table.PYTHON)
            if slot < 0:
                return
            self._outcomes[id_] = self._outcome(self._requests[id_])
            table.finish(self._table, slot)

    def _outcome(self, request: Request) -> Outcome:
        if request.transfer.is_late:  # the loop's timer may lag
            return Outcome.all(len(request.positions), Status.LATE, Reason.LATE)
        result = self._result(request)
        assert isinstance(result, Outcome), "only a job is replaced"
        return result

    def _result(self, request: Request) -> Outcome | Sequence[Request]:
        try:
            return request.run()
        except Exception as error:  # noqa: BLE001 -- nothing may vanish in a thread: it is a status
            self._warn(error)
            return Outcome.all(len(request.positions), Status.FAILED, Reason.IO_ERROR)

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


def _work_natively(shared: Table, _requests: dict[int, Request]) -> None:
    """Do native jobs. The thread holds the requests: their memory must not go before it does, even
    if the loop ends without a close.
    """
    table.work(shared)
