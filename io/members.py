# SPDX-License-Identifier: Apache-2.0
"""One of several backends that serve as one (spread.py), and whether it is in service.

Reads and writes are judged apart: a full disk can be read. What keeps failing, or hangs, rests for
a while, then is tried again; each trial that fails doubles the rest.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import numpy as np

from bodocache.clock import Clock
from bodocache.errors import BackendError, BackendLocked
from bodocache.io.backend import Backend, Status, Transfer
from bodocache.pages import Reason

FAILURES = 3  # batches that fail one after another take a member out of service
FIRST_REST_S, LONGEST_REST_S = 1.0, 60.0  # out of service; each failed trial doubles it
PUT_HANGS_S = 10.0  # a put of which nothing has come
HANGS_S = 2.0  # a batch that has not drained so long after its deadline: the device hangs

_log = logging.getLogger(__name__)

Opener = Callable[[], Awaitable[Backend]]


class Circuit:
    """Whether one kind of work is in service: out after FAILURES in a row, for a while."""

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock = clock
        self._name = name
        self._failures = 0
        self._successes = 0  # batches that have ended well
        self._looks: set[asyncio.TimerHandle] = set()
        self._watching: set[asyncio.Task[None]] = set()
        self._rest_s = FIRST_REST_S
        self._back_s = -np.inf  # when it may be tried again

    @property
    def serves(self) -> bool:
        """Whether it is in service, or may be tried again."""
        return self._clock.now_s() >= self._back_s

    def rest_s(self) -> float:
        """Seconds to wait before the next trial; the one after waits twice as long."""
        rest_s, self._rest_s = self._rest_s, min(2 * self._rest_s, LONGEST_REST_S)
        return rest_s

    def succeed(self) -> None:
        """A batch of its has ended well."""
        self._failures, self._rest_s = 0, FIRST_REST_S
        self._successes += 1

    def fail(self, times: int = 1) -> None:
        """A batch of its has failed."""
        self._failures += times
        if self._failures >= FAILURES and self.serves:
            rest_s = self.rest_s()
            self._back_s = self._clock.now_s() + rest_s
            _log.warning("storage: %s: out of service for %g s", self._name, rest_s)

    def note(self, transfer: Transfer) -> None:
        """Judge a batch that has ended: failed is one without a page landed."""
        failed = (transfer.statuses == Status.FAILED) & (transfer.reasons == Reason.IO_ERROR)
        if (transfer.statuses == Status.LANDED).any():
            self.succeed()
        elif failed.any():
            self.fail()
        elif (transfer.reasons == Reason.LATE).any():
            watching = asyncio.ensure_future(self._watch(transfer))
            self._watching.add(watching)
            watching.add_done_callback(self._watching.discard)

    def watch_put(self, transfer: Transfer) -> None:
        """Puts may have no deadline: one that nothing has come of, nor of any since, hangs."""
        before = self._successes

        def look() -> None:
            self._looks.discard(handle)
            if (transfer.statuses == Status.PENDING).any() and self._successes == before:
                self.fail(FAILURES)

        handle = asyncio.get_running_loop().call_later(PUT_HANGS_S, look)
        self._looks.add(handle)

    async def close(self) -> None:
        """Watch nothing more."""
        for look in self._looks:
            look.cancel()
        for watching in self._watching:
            watching.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)

    async def _watch(self, transfer: Transfer) -> None:
        """Nothing landed by the deadline: a busy device ends what it has begun, no hanging one."""
        try:
            await asyncio.wait_for(transfer.drained(), HANGS_S)
        except TimeoutError:
            self.fail(FAILURES)


class Member:
    """One backend, and what of it is in service: a full disk can still be read."""

    def __init__(self, number: int, opener: Opener, clock: Clock) -> None:
        self.number = number
        self._opener = opener
        self.backend: Backend | None = None
        self.reads = Circuit(clock, f"reads of directory {number}")
        self.writes = Circuit(clock, f"writes to directory {number}")

    @property
    def readable(self) -> Backend | None:
        """The backend, if it may be read."""
        return self.backend if self.reads.serves else None

    @property
    def writable(self) -> Backend | None:
        """The backend, if pages may be placed there."""
        return self.readable if self.writes.serves else None

    async def try_open(self) -> BackendError | OSError | None:
        """Open it; the error where that failed, but for one that a person must look at."""
        try:
            self.backend = await self._opener()
        except BackendLocked:
            raise
        except (BackendError, OSError) as error:
            _log.warning("storage: directory %d cannot be opened: %s", self.number, error)
            return error
        return None

    async def close(self) -> None:
        """Close it; twice is harmless."""
        await self.reads.close()
        await self.writes.close()
        if self.backend is not None:
            await self.backend.close()
