# SPDX-License-Identifier: Apache-2.0
"""A small pool of threads that do requests: reads first, each kind by deadline.

Jobs are done by threads that never leave compiled code (table.py); the rest, syncs and what went
wrong, by as many threads that run Python. Everything else here runs on the loop. Threads are ended
by :meth:`WorkerPool.stop`; one that hangs in the kernel does not keep the interpreter from exiting.
"""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from bodocache.clock import Clock
from bodocache.io import table
from bodocache.io.backend import Status
from bodocache.io.backlog import Backlog
from bodocache.io.complaints import Complaints
from bodocache.io.jobs import are_whole
from bodocache.io.table import Table
from bodocache.io.transfer import BatchTransfer, Outcome, Request
from bodocache.pages import Reason

WRITES = 1  # index of what there is for reads and for writes
TABLE_ENTRIES = (384, 128)  # the others wait here: a scan of the table takes 1 us


class WorkerPool:
    """``count`` threads. Half of them at most write: a read that comes finds the others."""

    __slots__ = (
        *("_backlogs", "_complaints", "_count", "_holds", "_in_table", "_loop", "_max_writing"),
        *("_outcomes", "_requests"),
        *("_table", "_threads", "_users", "_will_look"),
    )

    def __init__(self, count: int, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        self._count = count
        self._loop = loop
        self._max_writing = max(1, count // 2)
        self._table = Table(self._max_writing)
        self._requests: dict[int, Request] = {}  # by id in the table, until settled
        self._outcomes: dict[int, Outcome | Sequence[Request]] = {}  # of the Python threads
        self._backlogs = (Backlog(), Backlog())  # of reads and of writes: not in the table yet
        self._in_table = [0, 0]
        self._holds = 0  # of writes
        self._users = 0  # backends
        self._will_look = False  # for writes whose patience has ended
        self._complaints = Complaints(clock)
        self._threads: list[threading.Thread] = []
        try:
            self._start(_work_natively, "bodocache-io", self._table, self._requests)
            self._start(self._work, "bodocache-io-python")
            loop.add_reader(self._table.event_fd, self.settle)
        except (RuntimeError, OSError):  # no thread to be had: end those that there are
            self.stop()
            self.join()
            raise

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue ``requests``; those of one deadline are begun in this order."""
        for (transfer, writes), group in itertools.groupby(requests, _kind):
            same = list(group)
            ids = self._table.ids(len(same))
            self._requests.update(zip(ids, same, strict=True))
            rows = np.zeros(len(same), table.ENTRY)
            rows["state"], rows["id"], rows["batch"] = table.WAITING, ids, transfer.number
            rows["job"] = [request.job for request in same]
            rows["lane"] = np.where(rows["job"], table.NATIVE, table.PYTHON)
            rows["writes"], rows["deadline_s"] = writes, transfer.deadline_s
            rows["since_s"] = time.monotonic()
            self._backlogs[writes].push(rows)
        self._fill()

    def _fill(self) -> None:
        """Let the first of each backlog wait in the table, as many as it takes of its kind."""
        rows = []
        for writes, backlog in enumerate(self._backlogs):
            taken = backlog.pop(TABLE_ENTRIES[writes] - self._in_table[writes])
            self._in_table[writes] += sum(map(len, taken))
            rows += taken
        if rows:
            self._table.push(np.concatenate(rows))
        self._watch_writes()

    def _watch_writes(self) -> None:
        """While writes are in the table, look now and then whether one's patience has ended."""
        if self._in_table[WRITES] and not self._will_look:
            self._will_look = True
            self._loop.call_later(table.WRITE_PATIENCE_S, self._look_again)

    def _leave(self, ids: list[int]) -> list[Request]:
        """The requests of ``ids``, which have left the table; others may come in."""
        requests = [self._requests.pop(id_) for id_ in ids]
        writing = sum([request.writes for request in requests])
        self._in_table[WRITES] -= writing
        self._in_table[not WRITES] -= len(requests) - writing
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
        behind = self._behind(transfer.number)
        return behind + self._leave(self._table.withdraw(transfer.number))

    def _behind(self, batch: int) -> list[Request]:
        """Take the requests of ``batch`` out of the backlogs, -1 for all."""
        ids = [id_ for backlog in self._backlogs for id_ in backlog.withdraw(batch)]
        return [self._requests.pop(id_) for id_ in ids]

    def enter(self) -> None:
        """One more backend uses the pool."""
        self._users += 1

    async def leave(self) -> None:
        """A backend whose transfers have drained is closed; the last one ends the threads."""
        self._users -= 1
        if not self._users:
            self.stop()
            await asyncio.to_thread(self.join)
            self.close()

    def stop(self) -> list[Request]:
        """Begin nothing more; return the requests that were still waiting."""
        behind = self._behind(-1)
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
        requests = self._leave(ids)
        whole = are_whole([request.job for request in requests])
        joined: dict[BatchTransfer, list[Request]] = {}
        for id_, request, is_whole in zip(ids, requests, whole, strict=True):
            if is_whole and request.transfer.on_whole is not None:
                joined.setdefault(request.transfer, []).append(request)
            else:
                self._settle(id_, request)
        for transfer, together in joined.items():
            transfer.settle_whole(together)

    def _settle(self, id_: int, request: Request) -> None:
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

    def _outcome(self, request: Request) -> Outcome | Sequence[Request]:
        if request.transfer.is_late:  # the loop's timer may lag
            return Outcome.all(len(request.positions), Status.LATE, Reason.LATE)
        return self._result(request)

    def _result(self, request: Request) -> Outcome | Sequence[Request]:
        try:
            return request.run()
        except Exception as error:  # noqa: BLE001 -- nothing may vanish in a thread: it is a status
            self._complaints.note(error)
            return Outcome.all(len(request.positions), Status.FAILED, Reason.IO_ERROR)


def _kind(request: Request) -> tuple[BatchTransfer, bool]:
    return request.transfer, request.writes


def _work_natively(shared: Table, _requests: dict[int, Request]) -> None:
    """Do native jobs. The thread holds the requests: their memory must not go before it does, even
    if the loop ends without a close.
    """
    table.work(shared)
