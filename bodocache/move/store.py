# SPDX-License-Identifier: Apache-2.0
"""One store, from the call until its pages can be found, and on until they are on disk."""

import asyncio
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a store's pages once they can be found."""

    new: int  # pages that were not known before
    known: int  # pages that somebody stored already
    refused: int  # pages that no tier had room for, or whose prefix is not there


class Store:
    """A store on its way; the handle an engine holds.

    ``await store`` returns when its pages can be found: a borrowed pool's slots are the engine's
    own again. An owned pool's slots stay pinned until ``close``. ``await store.written`` returns
    when each page is on disk or was refused there; it gives the number written.
    """

    def __init__(self, *, on_close: Callable[["Store"], None]) -> None:
        loop = asyncio.get_running_loop()
        self.visible: asyncio.Future[Stored] = loop.create_future()
        self.held_rows = np.empty(0, np.int64)  # pinned until close
        self.spare_slots = np.empty(0, np.int64)  # slots that hold no page of the cache
        self.on_shown: Callable[[NDArray[np.int64], NDArray[np.int64]], None] | None = None
        self._written: asyncio.Future[int] = loop.create_future()
        self._on_close = on_close
        self._open = 0
        self._count = 0
        self._closed = False

    def __await__(self) -> Generator[object, None, Stored]:
        """Wait until the pages can be found; cancelling the wait leaves the store as it is."""
        return asyncio.shield(self.visible).__await__()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:  # a body that was cancelled is not made to wait
                await self
        finally:
            self.close()

    @property
    def written(self) -> asyncio.Future[int]:
        """Awaitable: how many of the pages reached the disk."""
        return asyncio.shield(self._written)

    def close(self) -> None:
        """The engine no longer uses the slots. Takes effect when the pages can be found."""
        if not self._closed:
            self._closed = True
            if self.visible.done():  # at once: whoever acquires next may count on the slots
                self._on_close(self)
            else:
                self.visible.add_done_callback(lambda _: self._on_close(self))

    # What follows is the orchestrator's side.

    def hold(self, rows: NDArray[np.int64], *, spare: NDArray[np.int64]) -> None:
        """``rows`` are pinned until close; ``spare`` slots will hold no page."""
        self.held_rows = rows
        self.spare(spare)

    def spare(self, slots: NDArray[np.int64]) -> None:
        """``slots`` will hold no page: they go back at close."""
        self.spare_slots = np.concatenate((self.spare_slots, slots))

    def show(self, rows: NDArray[np.int64]) -> None:
        """The new pages ``rows`` can be found; all of the prompt's are held."""
        if self.on_shown is not None:
            self.on_shown(self.held_rows, rows)

    def expect(self, pages: int) -> None:
        """``pages`` are queued for the disk."""
        self._open += pages

    def settle(self, pages: int, written: int) -> None:
        """Of the pages queued, ``pages`` are decided, ``written`` of them on disk."""
        self._open -= pages
        self._count += written
        if self._open == 0 and not self._written.done():
            self._written.set_result(self._count)
