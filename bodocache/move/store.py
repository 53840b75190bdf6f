# SPDX-License-Identifier: Apache-2.0
"""One store, from the call until its pages can be found, and on until they are on disk."""

import asyncio
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bodocache.errors import BodoCacheError
from bodocache.kernels.lane import Event, Stream
from bodocache.move.layers import Layers


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a store's pages once they can be found."""

    new: int  # pages that were not known before
    known: int  # pages that somebody else has stored
    refused: int  # pages that no tier had room for, or whose prefix is not there


class Abandoned(Exception):
    """A store by layer was closed before all of its layers had been computed."""


class Store:
    """A store on its way; the handle an engine holds.

    ``await store`` returns when its pages can be found: a borrowed pool's slots are the engine's
    own again. An owned pool's slots stay pinned until ``close``. ``await store.written`` returns
    when each page is on disk or was refused there; it gives the number written.

    One by layer takes each layer from the device when :meth:`layer_ready` says that it is computed,
    and is visible when it is whole. Closed before that, it has stored nothing.
    """

    def __init__(self, *, on_close: Callable[["Store"], None], layers: int = 0) -> None:
        """``layers``: of a store by layer."""
        loop = asyncio.get_running_loop()
        self.visible: asyncio.Future[Stored] = loop.create_future()
        self.held_rows = np.empty(0, np.int64)  # pinned until close
        self.spare_slots = np.empty(0, np.int64)  # slots that hold no page of the cache
        self.decided = asyncio.Event()  # set when each page has come, or will not
        self.on_shown: Callable[[NDArray[np.int64], NDArray[np.int64]], None] | None = None
        self._written: asyncio.Future[int] = loop.create_future()
        self._on_close = on_close
        self._on_visible: list[Callable[[Stored], None]] = []
        self._on_written: list[Callable[[int], None]] = []
        self._open = 0
        self._count = 0
        self._closed = False
        self._num_layers = layers
        self._ready = Layers()
        self._events: list[Event | None] = []

    def __await__(self) -> Generator[object, None, Stored]:
        """Wait until the pages can be found; cancelling the wait leaves the store as it is."""
        return asyncio.shield(self.visible).__await__()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.abandon()
        try:
            if kind is None:  # a body that was cancelled is not made to wait
                await self
        finally:
            self.close()

    @property
    def written(self) -> asyncio.Future[int]:
        """Awaitable: how many of the pages reached the disk."""
        return asyncio.shield(self._written)

    def layer_ready(self, index: int, stream: Stream | None = None) -> None:
        """Layer ``index`` of every page has been computed: it may leave the device.

        Layers come in order; the same one again is harmless. On a CUDA device it is computed when
        what ``stream`` (torch.cuda.Stream) has been given so far has ended: an event is recorded
        there. Without a stream the caller has synchronised with the kernels that wrote it.

        Raises:
            BodoCacheError: there is no such layer, one before it is missing, or this is no store by
                layer.
        """
        self.follow(index, None if stream is None else stream.record_event())

    def follow(self, index: int, event: Event | None) -> None:
        """The same, of a layer that is computed when ``event`` has passed."""
        if not 0 <= index < self._num_layers:
            raise BodoCacheError(
                f"store: layer {index} of {self._num_layers}; layers=True begins a store by layer"
            )
        if index > self._ready.whole:
            raise BodoCacheError(
                f"store: layer {index} is ready before layer {self._ready.whole}; say them in order"
            )
        if index == self._ready.whole:
            self._events.append(event)
        self._ready.advance(index + 1)

    def close(self) -> None:
        """The engine no longer uses the slots. Takes effect when the pages can be found."""
        if not self._closed:
            self._closed = True
            self.abandon()
            self.on_visible(lambda _: self._on_close(self))

    # What follows is the orchestrator's side.

    @property
    def is_by_layer(self) -> bool:
        """Whether its layers come one after the other."""
        return self._num_layers > 0

    @property
    def ready(self) -> int:
        """How many leading layers are computed, or will be when their events have passed."""
        return self._ready.whole

    @property
    def is_computed(self) -> bool:
        """Whether it needs nothing more of its engine."""
        return self._ready.whole >= self._num_layers

    async def layer(self, index: int) -> None:
        """Wait until layer ``index`` is ready. Abandoned: it will not be."""
        await self._ready.wait(index)

    def event(self, layer: int) -> Event | None:
        """After which a layer that is ready is computed; None: it is."""
        return self._events[layer]

    def abandon(self) -> None:
        """Layers that are not computed by now will not be."""
        if self.is_by_layer:
            self._ready.fail(Abandoned())

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

    def on_visible(self, callback: Callable[[Stored], None]) -> None:
        """Have ``callback`` called when its pages can be found: at once if they can."""
        if self.visible.done():
            callback(self.visible.result())
        else:
            self._on_visible.append(callback)

    def on_written(self, callback: Callable[[int], None]) -> None:
        """Have ``callback`` called with how many pages are on disk: at once if it is decided."""
        if self._written.done():
            callback(self._written.result())
        else:
            self._on_written.append(callback)

    def conclude(self, stored: Stored) -> None:
        """Its pages can be found, but for those that were refused."""
        self.visible.set_result(stored)
        for callback in self._on_visible:
            callback(stored)

    def expect(self, pages: int) -> None:
        """``pages`` are queued for the disk."""
        self._open += pages

    def settle(self, pages: int, written: int) -> None:
        """Of the pages queued, ``pages`` are decided, ``written`` of them on disk."""
        self._open -= pages
        self._count += written
        if self._open == 0 and not self._written.done():
            self._written.set_result(self._count)
            for callback in self._on_written:
                callback(self._count)
