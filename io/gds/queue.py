# SPDX-License-Identifier: Apache-2.0
"""What waits for cuFile and what is in flight; shared by the loop and the threads of pilot.py.

Reads go first, each kind by deadline, and at most half of the batches write. A write that has
waited for WRITE_PATIENCE_S takes turns with reads.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from bodocache.io.backend import Status
from bodocache.io.gds.cufile import BATCH_LIMIT
from bodocache.io.gds.flights import Flight
from bodocache.io.gds.operations import Operation
from bodocache.io.table import WRITE_PATIENCE_S
from bodocache.io.transfer import BatchTransfer, Outcome, Request
from bodocache.pages import Reason


class _Line:
    """What waits of one transfer, in its order."""

    __slots__ = ("operations", "since_s", "transfer")

    def __init__(self, transfer: BatchTransfer) -> None:
        self.transfer = transfer
        self.operations: deque[Operation] = deque()
        self.since_s = time.monotonic()

    @property
    def rank(self) -> tuple[float, int]:
        """The lowest goes first."""
        return self.transfer.deadline_s, self.transfer.number


class GdsQueue:
    """Implements :class:`bodocache.io.transfer.Queue`; at most ``depth`` batches are in flight.

    ``changed`` guards everything here; threads wait for it.
    """

    def __init__(self, depth: int, batch_nbytes: int) -> None:
        """A batch holds as many operations as ``batch_nbytes`` bytes take, but one at least."""
        self.changed = threading.Condition()
        self.flights: list[Flight] = []
        self.for_files: deque[Request] = deque()  # headers and syncs
        self.is_stopped = False
        self._depth = depth
        self._max_writing = max(1, depth // 2)  # a read that comes finds the others
        self._batch_nbytes = batch_nbytes
        self._loop = asyncio.get_running_loop()
        self._lines: tuple[dict[int, _Line], dict[int, _Line]] = ({}, {})  # reads, writes
        self._holds = 0  # of writes
        self._wrote_last = False
        self._results: deque[Callable[[], object]] = deque()  # for the loop

    # On the loop.

    def submit(self, requests: Sequence[Request]) -> None:
        """Let ``requests`` wait: operations for cuFile, all others for the files' thread."""
        with self.changed:
            for request in requests:
                if isinstance(request, Operation):
                    self._line_of(request).operations.append(request)
                else:
                    self.for_files.append(request)
            self.changed.notify_all()

    def withdraw(self, transfer: BatchTransfer) -> list[Request]:
        """Give back the requests that nothing has begun; what is in flight is asked to end."""
        with self.changed:
            withdrawn = self._take_out(lambda request: request.transfer is transfer)
            for flight in self.flights:
                flight.is_unwanted |= flight.transfer is transfer
            self.changed.notify_all()
        return withdrawn

    def stop(self) -> list[Request]:
        """Begin nothing more; give back what waits. Headers of what was written are no new work."""
        with self.changed:
            self.is_stopped = True
            begun = [request for request in self.for_files if isinstance(request, Operation)]
            withdrawn = self._take_out(lambda request: request not in begun)
            self.changed.notify_all()
        return withdrawn

    @contextmanager
    def hold_writes(self) -> Iterator[None]:
        """Inside, no write begins. Holds may overlap."""
        self._hold(1)
        try:
            yield
        finally:
            self._hold(-1)

    def settle(self) -> None:
        """Do what the threads have left for the loop."""
        while self._results:
            self._results.popleft()()

    def _hold(self, change: int) -> None:
        with self.changed:
            self._holds += change
            self.changed.notify_all()

    def _take_out(self, chosen: Callable[[Request], bool]) -> list[Request]:
        out: list[Request] = []
        for lines in self._lines:
            for number in [n for n, line in lines.items() if chosen(line.operations[0])]:
                out += lines.pop(number).operations
        out += [request for request in self.for_files if chosen(request)]
        kept = [request for request in self.for_files if not chosen(request)]
        self.for_files.clear()
        self.for_files.extend(kept)
        return out

    # In a thread.

    def take(self) -> Flight | None:
        """What may begin now and should first, among the flights from now on; or None."""
        with self.changed:
            line = self._first()
            if line is None or self.is_stopped or len(self.flights) >= self._depth:
                return None
            chosen = [line.operations.popleft()]
            room = self._batch_nbytes - chosen[0].rest
            while line.operations and len(chosen) < BATCH_LIMIT:
                room -= line.operations[0].rest
                if room < 0:
                    break
                chosen.append(line.operations.popleft())
            self._wrote_last = chosen[0].writes
            if not line.operations:
                del self._lines[self._wrote_last][line.transfer.number]
            self.flights.append(Flight(line.transfer, chosen))
            return self.flights[-1]

    def wait(self) -> bool:
        """Wait until something is in flight or may begin; False once nothing will be."""
        with self.changed:
            self.changed.wait_for(
                lambda: self.flights or self.is_stopped or self._first() is not None
            )
            return bool(self.flights) or not self.is_stopped

    def retire(self, flight: Flight) -> None:
        """Nothing of ``flight`` is in flight any more."""
        with self.changed:
            self.flights.remove(flight)

    def put_back(self, operation: Operation) -> None:
        """Let the rest of ``operation`` go first of its transfer; LATE if nothing begins now."""
        with self.changed:
            if not self.is_stopped:
                self._line_of(operation).operations.appendleft(operation)
                return
        late = Outcome.all(len(operation.positions), Status.LATE, Reason.CANCELLED)
        self.settle_later(operation, late)

    def hand_to_files(self, request: Request) -> None:
        """Let the files' thread run ``request``."""
        with self.changed:
            self.for_files.append(request)
            self.changed.notify_all()

    def settle_later(self, request: Request, result: Outcome | Sequence[Request]) -> None:
        """Settle ``request``, or put others in its place, on the loop."""
        if isinstance(result, Outcome):
            self.tell_loop(lambda: request.transfer.settle(request, result))
        else:
            self.tell_loop(lambda: request.transfer.replace(request, result))

    def tell_loop(self, result: Callable[[], object]) -> None:
        """Call ``result`` on the loop."""
        self._results.append(result)
        with suppress(RuntimeError):  # the loop has ended without a close
            self._loop.call_soon_threadsafe(self.settle)

    def _line_of(self, operation: Operation) -> _Line:
        lines, transfer = self._lines[operation.writes], operation.transfer
        return lines.setdefault(transfer.number, _Line(transfer))

    def _first(self) -> _Line | None:
        """The line to take from next."""
        reads, writes = (
            min(lines.values(), key=lambda line: line.rank, default=None) for lines in self._lines
        )
        writing = sum(flight.writes for flight in self.flights)
        if writes is None or self._holds or writing >= self._max_writing:
            return reads
        is_old = time.monotonic() - writes.since_s >= WRITE_PATIENCE_S
        return writes if reads is None or (is_old and not self._wrote_last) else reads
