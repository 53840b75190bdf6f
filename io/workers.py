# SPDX-License-Identifier: Apache-2.0
"""A small pool of threads that do requests: reads first, each kind by deadline.

Jobs are done by threads that never leave compiled code (table.py); the rest, syncs and what went
wrong, by as many threads that run Python. Everything else here runs on the loop. Threads are ended
by :meth:`WorkerPool.stop`; one that hangs in the kernel does not keep the interpreter from exiting.
"""

import asyncio
import heapq
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from bodocache.clock import Clock
from bodocache.io import table
from bodocache.io.backend import Status
from bodocache.io.complaints import Complaints
from bodocache.io.table import Table
from bodocache.io.transfer import BatchTransfer, Outcome, Request
from bodocache.pages import Reason

WRITES = 1  # index of what there is for reads and for writes
TABLE_ENTRIES = (384, 128)  # the others wait here: a scan of the table takes 1 us


class WorkerPool:
    """``count`` threads. A quarter of them at most write: a read that comes finds the others."""

    __slots__ = (
        *("_backlogs", "_complaints", "_count", "_holds", "_in_table", "_loop", "_max_writing"),
        *("_outcomes", "_requests"),
        *("_table", "_threads", "_will_look"),
    )

    def __init__(self, count: int, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        self._count = count
        self._loop = loop
        self._max_writing = max(1, count // 4)
        self._table = Table(self._max_writing)
        self._requests: dict[int, Request] = {}  # by id in the table, until settled
        self._outcomes: dict[int, Outcome] = {}  # of the Python threads
        # Of reads and of writes: a heap of those not in the table yet, by deadline, id and arrival.
        self._backlogs: tuple[list[tuple[float, int, float]], ...] = ([], [])
        self._in_table = [0, 0]
        self._holds = 0  # of writes
        self._will_look = False  # for writes whose patience has ended
        self._complaints = Complaints(clock)
        self._threads: list[threading.Thread] = []
        self._start(_work_natively, "bodocache-io", self._table, self._requests)
        self._start(self._work, "bodocache-io-python")
        loop.add_reader(self._table.event_fd, self.settle)

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue ``requests``; those of one deadline are begun in this order."""
        ids, since_s = self._table.ids(len(requests)), time.monotonic()
        self._requests.update(zip(ids, requests, strict=True))
        for id_, request in zip(ids, requests, strict=True):
            entry = (request.transfer.deadline_s, id_, since_s)
            heapq.heappush(self._backlogs[request.writes], entry)
        self._fill()

    def _fill(self) -> None:
        """Let the first of each backlog wait in the table, as many as it takes of its kind."""
        entries: list[tuple[int, int, int, int, int, int, float, float]] = []
        for writes, backlog in enumerate(self._backlogs):
            while backlog and self._in_table[writes] < TABLE_ENTRIES[writes]:
                deadline_s, id_, since_s = heapq.heappop(backlog)
                request = self._requests[id_]
                lane = table.NATIVE if request.job else table.PYTHON
                number = request.transfer.number
                entries.append(
                    (table.WAITING, id_, number, request.job, lane, writes, deadline_s, since_s)
                )
                self._in_table[writes] += 1
        if entries:
            self._table.push(entries)
        self._watch_writes()

    def _watch_writes(self) -> None:
        """While writes are in the table, look now and then whether one's patience has ended."""
        if self._in_table[WRITES] and not self._will_look:
            self._will_look = True
            self._loop.call_later(table.WRITE_PATIENCE_S, self._look_again)

    def _leave(self, ids: list[int]) -> list[Request]:
        """The requests of ``ids``, which have left the table; others may come in."""
        requests = [self._requests.pop(id_) for id_ in ids]
        for request in requests:
            self._in_table[request.writes] -= 1
        self._fill()
        return requests

    def _look_again(self) -> None:
        self._will_look = False
        self._allow_writing()
        self._watch_writes()

    @contextmanager
    def hold_writes(self) -> Iterator[None]:
        """Inside, no write begins. Holds may overlap."""
        self._holds += 1
        self._allow_writing()
        try:
            yield
        finally:
            self._holds -= 1
            self._allow_writing()

    def _allow_writing(self) -> None:
        self._table.allow_writing(0 if self._holds else self._max_writing)

    def withdraw(self, transfer: BatchTransfer) -> list[Request]:
        """Give back the requests of ``transfer`` that no worker has begun."""
        behind = self._behind(lambda request: request.transfer is transfer)
        return behind + self._leave(self._table.withdraw(transfer.number))

    def _behind(self, chosen: Callable[[Request], bool]) -> list[Request]:
        """Take the chosen ones out of the backlogs."""
        found = []
        for backlog in self._backlogs:
            mine = [id_ for _, id_, _ in backlog if chosen(self._requests[id_])]
            if mine:
                found += [self._requests.pop(id_) for id_ in mine]
                backlog[:] = [entry for entry in backlog if entry[1] in self._requests]
                heapq.heapify(backlog)
        return found

    def stop(self) -> list[Request]:
        """Begin nothing more; return the requests that were still waiting."""
        behind = self._behind(lambda _: True)
        return behind + self._leave(self._table.stop(self._count))

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
        ids = self._table.collect()
        for id_, request in zip(ids, self._leave(ids), strict=True):
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
            self._complaints.note(error)
            return Outcome.all(len(request.positions), Status.FAILED, Reason.IO_ERROR)


def _work_natively(shared: Table, _requests: dict[int, Request]) -> None:
    """Do native jobs. The thread holds the requests: their memory must not go before it does, even
    if the loop ends without a close.
    """
    table.work(shared)
