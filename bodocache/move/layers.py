# SPDX-License-Identifier: Apache-2.0
"""Which layers of a committed load are whole, and who waits for them: coroutines and threads.

Before a layer is whole it may be *given to the device*: its copies stand in streams of the device,
which an engine's stream can wait for.
"""

import asyncio
import threading
from typing import Protocol

_Waiter = tuple[int, bool, asyncio.Future[None]]  # layer, whether given will do, whom to tell


class OnDevice(Protocol):
    """Copies that stand in a stream of the device."""

    def make_wait(self, layer: int, stream: object) -> None:
        """Let the engine's ``stream`` wait for ``layer``, which was given; the caller does not."""
        ...


class Layers:
    """Counts leading layers that are whole. The loop advances it; any thread may wait."""

    def __init__(self) -> None:
        self._whole = 0
        self._given = 0
        self._failure: Exception | None = None
        self._changed = threading.Condition()
        self._waiters: list[_Waiter] = []
        self._thread = threading.get_ident()
        self._on_device: tuple[OnDevice, ...] = ()

    @property
    def whole(self) -> int:
        """How many leading layers are whole."""
        return self._whole

    @property
    def is_loops_thread(self) -> bool:
        """Whether whoever asks runs in the loop's thread, which must not be blocked."""
        return threading.get_ident() == self._thread

    def is_decided(self, layer: int, *, given: bool = False) -> bool:
        """Whether nobody has to wait for ``layer`` here: it is there, or will not come."""
        there = self._given if given else self._whole
        return layer < there or self._failure is not None

    def advance(self, whole: int) -> None:
        """The first ``whole`` layers are there."""
        if whole > self._whole:
            self._tell(whole, max(whole, self._given), self._failure)

    def give(self, layers: int) -> None:
        """The first ``layers`` layers stand in streams of the device, or are there."""
        if layers > self._given:
            self._tell(self._whole, layers, self._failure)

    def fail(self, error: Exception) -> None:
        """What is not whole will not come: waits for it raise ``error``."""
        self._tell(self._whole, self._given, error)

    def join(self, copies: OnDevice) -> None:
        """``copies`` bring layers of some pages, until :meth:`part`."""
        self._on_device = (*self._on_device, copies)

    def part(self, copies: OnDevice) -> None:
        """All of ``copies`` have ended: no stream need wait for them."""
        self._on_device = tuple(other for other in self._on_device if other is not copies)

    async def wait(self, layer: int, *, given: bool = False) -> None:
        """Wait until ``layer`` is whole, or ``given``; or raise why it will not be."""
        if not self.is_decided(layer, given=given):
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append((layer, given, waiter))
            await waiter
        self._raise_if_missing(layer)

    def wait_here(self, layer: int, timeout_s: float | None, *, given: bool = False) -> None:
        """The same in a thread that is not the loop's. TimeoutError: it took longer."""
        with self._changed:
            is_decided = self._changed.wait_for(
                lambda: self.is_decided(layer, given=given), timeout_s
            )
            if not is_decided:
                raise TimeoutError(f"load: layer {layer} was not there within {timeout_s} s")
        self._raise_if_missing(layer)

    def make_wait(self, layer: int, stream: object) -> None:
        """Let ``stream`` wait for a layer that was given. Any thread."""
        for copies in self._on_device:
            copies.make_wait(layer, stream)

    def _tell(self, whole: int, given: int, failure: Exception | None) -> None:
        with self._changed:
            self._whole, self._given, self._failure = whole, given, failure
            self._changed.notify_all()
        waiting, self._waiters = self._waiters, []
        for one in waiting:
            layer, is_given_enough, waiter = one
            if not self.is_decided(layer, given=is_given_enough):
                self._waiters.append(one)
            elif not waiter.done():
                waiter.set_result(None)

    def _raise_if_missing(self, layer: int) -> None:
        if layer >= self._whole and self._failure is not None:
            raise self._failure
