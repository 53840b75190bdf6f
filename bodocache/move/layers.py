# SPDX-License-Identifier: Apache-2.0
"""Which layers of a committed load are whole, and who waits for them: coroutines and threads."""

import asyncio
import threading


class Layers:
    """Counts leading layers that are whole. The loop advances it; any thread may wait."""

    def __init__(self) -> None:
        self._whole = 0
        self._failure: Exception | None = None
        self._changed = threading.Condition()
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._thread = threading.get_ident()

    @property
    def whole(self) -> int:
        """How many leading layers are whole."""
        return self._whole

    @property
    def is_loops_thread(self) -> bool:
        """Whether whoever asks runs in the loop's thread, which must not be blocked."""
        return threading.get_ident() == self._thread

    def advance(self, whole: int) -> None:
        """The first ``whole`` layers are there."""
        if whole > self._whole:
            self._tell(whole, self._failure)

    def fail(self, error: Exception) -> None:
        """What is not whole will not come: waits for it raise ``error``."""
        self._tell(self._whole, error)

    async def wait(self, layer: int) -> None:
        """Wait until ``layer`` is whole, or raise why it will not be."""
        if not self._is_decided(layer):
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append((layer, waiter))
            await waiter
        self._raise_if_missing(layer)

    def wait_here(self, layer: int, timeout_s: float | None) -> None:
        """The same in a thread that is not the loop's. TimeoutError: it took longer."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_decided(layer), timeout_s):
                raise TimeoutError(f"load: layer {layer} was not there within {timeout_s} s")
        self._raise_if_missing(layer)

    def _tell(self, whole: int, failure: Exception | None) -> None:
        with self._changed:
            self._whole, self._failure = whole, failure
            self._changed.notify_all()
        waiting, self._waiters = self._waiters, []
        for layer, waiter in waiting:
            if not self._is_decided(layer):
                self._waiters.append((layer, waiter))
            elif not waiter.done():
                waiter.set_result(None)

    def _is_decided(self, layer: int) -> bool:
        return layer < self._whole or self._failure is not None

    def _raise_if_missing(self, layer: int) -> None:
        if layer >= self._whole and self._failure is not None:
            raise self._failure
