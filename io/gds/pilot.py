# SPDX-License-Identifier: Apache-2.0
"""The two threads of a GDS backend: one makes every call of cuFile, the other touches the files.

A call of cuFile may block, and a digest waits for the GPU: neither ever runs on the loop. Headers
and syncs have a thread of their own, so that a sync delays no read. A thread that hangs in the
library does not keep the interpreter from exiting.
"""

import asyncio
import os
import threading
import time
from functools import partial

from bodocache.clock import Clock
from bodocache.io.backend import Status
from bodocache.io.complaints import Complaints
from bodocache.io.config import BLOCK_NBYTES
from bodocache.io.gds.cufile import Library, OpStatus
from bodocache.io.gds.flights import Event, Flight, Session
from bodocache.io.gds.operations import GdsRead, Operation, check
from bodocache.io.gds.queue import GdsQueue
from bodocache.io.transfer import Outcome
from bodocache.pages import Reason

POLL_S = 0.001  # of all batches in flight together: what a new one waits for at most
LOST_POLL_S = 0.1  # of batches that the library answers errors about


class Pilot:
    """Does what waits in a :class:`GdsQueue`."""

    def __init__(self, queue: GdsQueue, library: Library, clock: Clock) -> None:
        self._queue = queue
        self._library = library
        self._clock = clock
        self._complaints = Complaints(clock)
        self._threads: list[threading.Thread] = []
        self._has_landed = False  # nothing comes for the files any more

    async def start(self, fd: int, *, compat: bool) -> None:
        """Open the driver and register ``fd``, in the thread that will use them.

        Raises:
            Exception: whatever the library says; the threads end.
        """
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def fly() -> None:
            self._fly(fd, compat, opened)

        for target, name in ((fly, "bodocache-gds"), (self._write_files, "bodocache-gds-files")):
            thread = threading.Thread(target=target, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        await opened

    def join(self) -> None:
        """Wait until all that was in flight has ended, after the queue's stop. Blocks."""
        for thread in self._threads:
            thread.join()

    def _fly(self, fd: int, compat: bool, opened: "asyncio.Future[None]") -> None:  # noqa: FBT001
        """The whole life of cuFile's thread."""
        session = Session(self._library.cufile)
        try:
            self._library.bind()
            session.open(fd, compat=compat)
        except Exception as error:  # noqa: BLE001 -- raised where the backend is opened
            self._queue.tell_loop(partial(_answer, opened, error))
        else:
            self._queue.tell_loop(partial(_answer, opened, None))
            while self._queue.wait():
                self._begin(session)
                self._look(session)
        try:
            session.close()
        except Exception as error:  # noqa: BLE001 -- closing goes on
            self._note(error)
        with self._queue.changed:
            self._has_landed = True
            self._queue.changed.notify_all()

    def _begin(self, session: Session) -> None:
        """Submit all that may begin."""
        while (flight := self._queue.take()) is not None:
            if flight.transfer.is_late:  # the loop's timer may lag
                self._give_back(session, flight, Status.LATE, Reason.LATE)
                continue
            for operation in flight.operations.values():
                operation.started_s = operation.started_s or self._clock.now_s()
            try:
                session.begin(flight)
            except Exception as error:  # noqa: BLE001 -- nothing may vanish in a thread
                self._lose(flight, error)
                if not flight.handle:  # it never came to a submit
                    self._give_back(session, flight, Status.FAILED, Reason.IO_ERROR)

    def _look(self, session: Session) -> None:
        """See what has ended of every batch in flight."""
        flights = list(self._queue.flights)
        started_s = time.monotonic()
        ended = 0
        for flight in flights:
            if flight.look_at_s <= started_s:
                ended += self._advance(session, flight, POLL_S / len(flights))
        rest_s = started_s + POLL_S - time.monotonic()
        if flights and not ended and rest_s > 0:  # nothing, and nobody waited for it
            with self._queue.changed:
                self._queue.changed.wait(rest_s)

    def _advance(self, session: Session, flight: Flight, timeout_s: float) -> int:
        """See what has ended of ``flight``: how many operations."""
        if flight.is_unwanted and not flight.was_cancelled:
            session.cancel(flight)
        try:
            events = session.poll(flight, timeout_s if flight.is_begun else LOST_POLL_S)
        except Exception as error:  # noqa: BLE001 -- nothing may vanish in a thread
            events = []
            if not flight.is_lost:
                self._lose(flight, error)
        if flight.is_lost:
            flight.look_at_s = time.monotonic() + LOST_POLL_S
            for event in events:
                self._settle(event.operation, Status.FAILED, Reason.IO_ERROR)
        else:
            self._conclude(flight, events)
        if not flight.operations or not (flight.is_begun or events):
            # All have ended; or a submit failed, and nothing came of it for as long as we look.
            self._give_back(session, flight, Status.FAILED, Reason.IO_ERROR)
        return len(events)

    def _lose(self, flight: Flight, error: Exception) -> None:
        """Its pages have failed, but its memory stays the library's until that says otherwise."""
        self._note(error)
        flight.is_lost, flight.is_clean = True, False
        for operation in flight.operations.values():
            self._queue.tell_loop(partial(_fail, operation))

    def _give_back(self, session: Session, flight: Flight, status: Status, reason: Reason) -> None:
        """Nothing of ``flight`` is in flight: settle all of it."""
        session.end(flight)
        self._queue.retire(flight)
        for operation in flight.operations.values():
            self._settle(operation, status, reason)

    def _conclude(self, flight: Flight, events: list[Event]) -> None:
        """Find out what became of the pages of ``events``."""
        read: list[GdsRead] = []
        for event in events:
            operation = event.operation
            operation.finished_s = self._clock.now_s()
            flight.is_clean &= event.status is OpStatus.COMPLETE
            if event.status is OpStatus.CANCELED and flight.was_cancelled:
                self._settle(operation, Status.LATE, Reason.CANCELLED)
            elif event.status is not OpStatus.COMPLETE or not 0 <= event.result <= operation.rest:
                self._fail(flight, event)
            else:
                operation.moved += event.result
                if _has_more(operation, event.result) and not flight.is_unwanted:
                    self._queue.put_back(operation)
                elif isinstance(operation, GdsRead):
                    read.append(operation)
                elif operation.rest:
                    self._fail(flight, event)
                else:
                    self._queue.hand_to_files(operation)
        if read:
            self._check(read)

    def _check(self, read: list[GdsRead]) -> None:
        try:
            outcomes = check(read)
        except Exception as error:  # noqa: BLE001 -- nothing may vanish in a thread
            self._note(error)
            for operation in read:
                self._settle(operation, Status.FAILED, Reason.IO_ERROR)
            return
        for operation, outcome in zip(read, outcomes, strict=True):
            self._queue.settle_later(operation, outcome)

    def _fail(self, flight: Flight, event: Event) -> None:
        """An operation that failed: of a read, each page has a try of its own."""
        operation = event.operation
        has_neighbours = isinstance(operation, GdsRead) and len(operation.positions) > 1
        if isinstance(operation, GdsRead) and has_neighbours and not flight.is_unwanted:
            self._queue.settle_later(operation, operation.one_by_one())
            return
        path = operation.shared.medium.payload.path
        said = f"{event.result} of {operation.rest} bytes"
        if event.status is OpStatus.FAILED and event.result < 0:
            said = os.strerror(-event.result)
        self._note(OSError(f"{path}: {event.status.name} at {operation.offset}: {said}"))
        self._settle(operation, Status.FAILED, Reason.IO_ERROR)

    def _settle(self, operation: Operation, status: Status, reason: Reason) -> None:
        self._queue.settle_later(operation, Outcome.all(len(operation.positions), status, reason))

    def _note(self, error: Exception) -> None:
        self._complaints.note(error, self._library.cufile.cuFileError)

    def _write_files(self) -> None:
        """The whole life of the files' thread."""
        queue = self._queue
        while True:
            with queue.changed:
                queue.changed.wait_for(lambda: queue.for_files or self._has_landed)
                if not queue.for_files:
                    return
                request = queue.for_files.popleft()
            count = len(request.positions)
            if request.transfer.is_late:
                queue.settle_later(request, Outcome.all(count, Status.LATE, Reason.LATE))
                continue
            try:
                queue.settle_later(request, request.run())
            except Exception as error:  # noqa: BLE001 -- nothing may vanish in a thread
                self._note(error)
                queue.settle_later(request, Outcome.all(count, Status.FAILED, Reason.IO_ERROR))


def _has_more(operation: Operation, result: int) -> bool:
    """Whether another call may move the rest: something was moved, up to a block's end."""
    return operation.rest > 0 and result > 0 and result % BLOCK_NBYTES == 0


def _answer(opened: "asyncio.Future[None]", error: Exception | None) -> None:
    """Tell who opens, if somebody still waits."""
    if opened.cancelled():
        return
    if error is None:
        opened.set_result(None)
    else:
        opened.set_exception(error)


def _fail(operation: Operation) -> None:
    """Make its pages final, on the loop; it is settled later."""
    failed = Outcome.all(len(operation.positions), Status.FAILED, Reason.IO_ERROR)
    operation.transfer.finish(operation.positions, failed)
