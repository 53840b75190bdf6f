# SPDX-License-Identifier: Apache-2.0
"""A small pool of threads that do requests: reads first, each kind by deadline.

Jobs are done by threads that never leave compiled code (table.py); the rest, syncs and what went
wrong, by as many threads that run Python. Everything else here runs on the loop. Threads are ended
by :meth:`WorkerPool.stop`; one that hangs in the kernel does not keep the interpreter from exiting.
"""

import asyncio
import heapq
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from bodocache.clock import Clock
from bodocache.io import table
from bodocache.io.backend import Status
from bodocache.io.table import Table
from bodocache.io.transfer import BatchTransfer, Outcome, Request
from bodocache.pages import Reason

TABLE_ENTRIES = 512  # the others wait here: a scan of the table takes 1 us
WARNING_INTERVAL_S = 10.0  # a disk that fails would fill the log

_log = logging.getLogger(__name__)


class WorkerPool:
    """``count`` threads. A quarter of them at most write: a read that comes finds the others."""

    __slots__ = (
        *("_backlog", "_clock", "_count", "_in_table", "_loop", "_max_writing"),
        *("_outcomes", "_requests"),
        *("_suppressed", "_table", "_threads", "_warned_s", "_will_look"),
    )

    def __init__(self, count: int, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        self._clock = clock
        self._count = count
        self._loop = loop
        self._max_writing = max(1, count // 4)
        self._table = Table(self._max_writing)
        self._requests: dict[int, Request] = {}  # by id in the table, until settled
        self._outcomes: dict[int, Outcome] = {}  # of the Python threads
        self._backlog: list[tuple[bool, float, int]] = []  # a heap of those not in the table yet
        self._in_table = 0
        self._will_look = False  # for writes whose patience has ended
        self._warned_s = float("-inf")
        self._suppressed = 0
        self._threads: list[threading.Thread] = []
        self._start(_work_natively, "bodocache-io", self._table, self._requests)
        self._start(self._work, "bodocache-io-python")
        loop.add_reader(self._table.event_fd, self.settle)

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue ``requests``; those of one deadline are begun in this order."""
        ids = self._table.ids(len(requests))
        self._requests.update(zip(ids, requests, strict=True))
        for id_, request in zip(ids, requests, strict=True):
            entry = (request.writes, request.transfer.deadline_s, id_)
            heapq.heappush(self._backlog, entry)
        self._fill()

    def _fill(self) -> None:
        """Let the first of the backlog wait in the table, as many as it takes."""
        entries: list[tuple[int, int, int, int, int, int, float, float]] = []
        now_s = time.monotonic()
        while self._backlog:
            room = TABLE_ENTRIES // 2 if self._backlog[0][0] else TABLE_ENTRIES
            if self._in_table + len(entries) >= room:  # a read that comes finds some
                break
            writes, deadline_s, id_ = heapq.heappop(self._backlog)
            request = self._requests[id_]
            lane = table.NATIVE if request.job else table.PYTHON
            number = request.transfer.number
            entries.append(
                (table.WAITING, id_, number, request.job, lane, int(writes), deadline_s, now_s)
            )
            if writes and not self._will_look:
                self._will_look = True
                self._loop.call_later(table.WRITE_PATIENCE_S, self._look_again)
        if entries:
            self._in_table += len(entries)
            self._table.push(entries)

    def _look_again(self) -> None:
        self._will_look = False
        if self._in_table:
            self._table.look_again()
            if any(request.writes for request in self._requests.values()):
                self._will_look = True
                self._loop.call_later(table.WRITE_PATIENCE_S, self._look_again)

    @contextmanager
    def hold_writes(self) -> Iterator[None]:
        """Inside, no write begins."""
        self._table.allow_writing(0)
        try:
            yield
        finally:
            self._table.allow_writing(self._max_writing)

    def withdraw(self, transfer: BatchTransfer) -> list[Request]:
        """Give back the requests of ``transfer`` that no worker has begun."""
        ids = self._table.withdraw(transfer.number)
        self._in_table -= len(ids)
        ids += self._behind(lambda request: request.transfer is transfer)
        return [self._requests.pop(id_) for id_ in ids]

    def _behind(self, chosen: Callable[[Request], bool]) -> list[int]:
        """Take the chosen ones out of the backlog."""
        if not self._backlog:
            return []
        found = [id_ for _, _, id_ in self._backlog if chosen(self._requests[id_])]
        taken = set(found)
        self._backlog = [entry for entry in self._backlog if entry[2] not in taken]
        heapq.heapify(self._backlog)
        return found

    def stop(self) -> list[Request]:
        """Begin nothing more; return the requests that were still waiting."""
        ids = self._table.stop(self._count)
        self._in_table -= len(ids)
        ids += self._behind(lambda _: True)
        return [self._requests.pop(id_) for id_ in ids]

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
        ended = self._table.collect()
        self._in_table -= len(ended)
        self._fill()
        for id_ in ended:
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
