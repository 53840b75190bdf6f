# SPDX-License-Identifier: Apache-2.0
"""One load, from the call until its pages landed; the handle an engine holds.

The handle owns a pin on every page it delivered until ``close``. Its slots belong to the I/O until
``released``, whether the load finished, was late or was cancelled.
"""

import asyncio
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bodocache.move.timeline import Event, Note, no_note
from bodocache.pages import Reason, Tier

RowArray = NDArray[np.int64]

_LANDED = int(Event.LANDED)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load delivered: ``slots[i]`` of the device pool holds page i, verified."""

    pages: int
    slots: NDArray[np.int64]
    recompute: range  # tokens, of those matched, that the engine must compute itself
    reasons: NDArray[np.uint8]  # Reason of each matched page that was not delivered


class Load:
    """A load on its way. ``await load`` gives what it delivered, at the latest at its deadline."""

    def __init__(
        self,
        *,
        rows: RowArray,
        slots: NDArray[np.int64],
        page_tokens: int,
        begun_s: float,
        deadline_s: float,
        on_close: Callable[["Load"], None],
    ) -> None:
        self.rows = rows
        self.slots = slots
        self.begun_s = begun_s
        self.deadline_s = deadline_s
        self.note: Note = no_note  # of the timeline
        self.parts = 0  # parts that may still write to our slots
        self._page_tokens = page_tokens
        self._arrived = np.zeros(len(rows), np.bool_)
        self._came_from = np.zeros(len(rows), np.uint8)
        self._reasons = np.full(len(rows), Reason.LATE, np.uint8)
        self._on_close = on_close
        self._on_cancel: list[Callable[[], None]] = []
        self._on_settled: list[Callable[[], None]] = []
        loop = asyncio.get_running_loop()
        self._result: asyncio.Future[Loaded] = loop.create_future()
        self._released: asyncio.Future[None] = loop.create_future()
        self._closed = False

    def __await__(self) -> Generator[object, None, Loaded]:
        """Wait for the result; cancelling the wait leaves the load as it is."""
        return asyncio.shield(self._result).__await__()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def done(self) -> bool:
        """Whether the result is final."""
        return self._result.done()

    @property
    def landed(self) -> int:
        """Whole pages, from the first on, that are in their slots and verified."""
        if self._result.done():
            return self._result.result().pages
        return self._leading()

    @property
    def recompute(self) -> range:
        """The tokens, of those matched, that did not land; final once the load is done."""
        return range(self.landed * self._page_tokens, len(self.rows) * self._page_tokens)

    @property
    def hits(self) -> NDArray[np.int64]:
        """Pages delivered, by the Tier they came from; final once the load is done."""
        return np.bincount(self._came_from[: self.landed], minlength=len(Tier))

    @property
    def reasons(self) -> NDArray[np.uint8]:
        """Reason of each page that did not land; final once the load is done."""
        return self._reasons[self.landed :]

    @property
    def released(self) -> asyncio.Future[None]:
        """Awaitable: from then on nothing writes to the load's slots."""
        return asyncio.shield(self._released)

    def cancel(self) -> None:
        """Begin nothing more; what has landed is the result. Harmless when done."""
        if not self.done:
            self._reasons[~self._arrived] = Reason.CANCELLED
            self.settle()
        self.abandon()

    def close(self) -> None:
        """The engine no longer needs the pages: they may be evicted. Cancels a load under way."""
        if not self._closed:
            self._closed = True
            self.cancel()
            self._on_close(self)

    # What follows is the orchestrator's side.

    def on_cancel(self, abandon: Callable[[], None]) -> None:
        """Have ``abandon`` called when the rest of the load is no longer wanted."""
        self._on_cancel.append(abandon)

    def on_settled(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when the result is final: at once if it is."""
        if self.done:
            callback()
        else:
            self._on_settled.append(callback)

    def abandon(self) -> None:
        """Tell the parts under way to begin nothing more."""
        while self._on_cancel:
            self._on_cancel.pop()()

    def arrive(self, positions: RowArray, source: Tier) -> None:
        """The pages at ``positions`` are in their slots and verified; they came from ``source``."""
        if not self.done:
            self._arrived[positions] = True
            self._came_from[positions] = source
            if len(positions):
                self.note(_LANDED, source, len(positions))

    def fail(self, positions: RowArray, reasons: NDArray[np.uint8]) -> None:
        """The pages at ``positions`` will not come."""
        if not self.done:
            self._reasons[positions] = reasons

    def begin_part(self) -> None:
        """One more part of the load may write to its slots."""
        self.parts += 1

    def end_part(self) -> None:
        """A part has drained; with the last one the load is settled and its slots are free."""
        self.parts -= 1
        if self.parts == 0:
            self.settle()
            self._released.set_result(None)

    def settle(self) -> None:
        """Fix the result: the leading pages that are there now."""
        if self.done:
            return
        pages = self._leading()
        self._reasons[self._arrived] = Reason.UNREACHABLE  # those behind one that did not come
        self._result.set_result(
            Loaded(
                pages=pages,
                slots=self.slots[:pages],
                recompute=range(pages * self._page_tokens, len(self.rows) * self._page_tokens),
                reasons=self._reasons[pages:].copy(),
            )
        )
        for callback in self._on_settled:
            callback()

    def _leading(self) -> int:
        missing = np.flatnonzero(~self._arrived)
        return int(missing[0]) if len(missing) else len(self.rows)
