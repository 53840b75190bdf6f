# SPDX-License-Identifier: Apache-2.0
"""One batch that several backends serve, as one transfer."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache.io.backend import Status, Transfer
from bodocache.pages import Reason


class Part(NamedTuple):
    """What one backend does of it."""

    transfer: Transfer
    positions: NDArray[np.int64]  # in the joined batch
    theirs: NDArray[np.int64]  # the same pages in the part's own batch
    on_final: Callable[[Transfer], None]  # told once, when all its pages are final


class JoinedTransfer:
    """Implements :class:`bodocache.io.backend.Transfer` over its parts."""

    def __init__(self, count: int, status: Status, reason: Reason) -> None:
        """Pages that no part serves have ``status`` and ``reason`` from the start."""
        self._statuses = np.full(count, status, np.uint8)
        self._reasons = np.full(count, reason, np.uint8)
        self._parts: list[Part] = []
        self._unfinished: list[Part] = []
        self._seen = count  # pages that were pending at the last progress

    def set(self, positions: NDArray[np.int64], status: Status, reason: Reason) -> None:
        """Make pages that no part serves final."""
        self._statuses[positions] = status
        self._reasons[positions] = reason

    def add(self, part: Part) -> None:
        """Let ``part`` serve its pages."""
        self._parts.append(part)
        self._unfinished.append(part)
        self._look()

    @property
    def statuses(self) -> NDArray[np.uint8]:
        """Status of each page."""
        self._look()
        return self._statuses

    @property
    def reasons(self) -> NDArray[np.uint8]:
        """Reason of each page that is final but not landed."""
        self._look()
        return self._reasons

    async def progress(self) -> bool:
        """Wait until another page is final; False once all are."""
        while (pending := self._look()) and pending == self._seen:
            await _first([part.transfer.progress() for part in self._unfinished])
        self._seen = pending
        return pending > 0

    async def finished(self) -> None:
        """Wait until every page is final."""
        for part in self._parts:
            await part.transfer.finished()
        self._look()

    def abandon(self) -> None:
        """Begin nothing more of any part."""
        for part in self._parts:
            part.transfer.abandon()
        self._look()

    async def drained(self) -> None:
        """Wait until nothing can touch the buffers any more."""
        for part in self._parts:
            await part.transfer.drained()
        self._look()

    def _look(self) -> int:
        """Take over what the parts know; return how many pages are pending."""
        pending = 0
        for part in self._unfinished:
            statuses, reasons = part.transfer.statuses, part.transfer.reasons
            self._statuses[part.positions] = statuses[part.theirs]
            self._reasons[part.positions] = reasons[part.theirs]
            pending += int(np.count_nonzero(statuses == Status.PENDING))
        ended = [p for p in self._unfinished if not (p.transfer.statuses == Status.PENDING).any()]
        self._unfinished = [part for part in self._unfinished if part not in ended]
        for part in ended:
            part.on_final(part.transfer)
        return pending


async def _first(progresses: Sequence[Coroutine[Any, Any, bool]]) -> None:
    """Wait for the first; what the others wait for goes on without them."""
    tasks = [asyncio.ensure_future(progress) for progress in progresses]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
