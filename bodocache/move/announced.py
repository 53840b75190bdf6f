# SPDX-License-Identifier: Apache-2.0
"""Pages that a request is computing: another that lacks them may wait for them instead.

An announcement ends with the store of its pages, with ``close``, or at its time limit: an announcer
that died holds nobody up for longer. It promises nothing: who waited looks again.
"""

import asyncio
from collections.abc import Callable
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bodocache.match import Expected

KeyArray = NDArray[np.uint8]

GRACE_S = 1.0  # of a time limit that nobody said: twice what was announced, and this


class Announcement:
    """Pages that a request is computing, until it closes them; stored, they are over anyway."""

    def __init__(
        self, keys: KeyArray, due_s: float, on_close: Callable[["Announcement"], None]
    ) -> None:
        self.due_s = due_s  # when they are meant to be found, on the cache's clock
        self.open = {key.tobytes() for key in keys}  # neither stored nor given up
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_close = on_close

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """They are not being computed any more. Twice is harmless."""
        self._on_close(self)


class Announcements:
    """Who computes which page. The loop's."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._by_key: dict[bytes, Announcement] = {}
        self._timers: dict[Announcement, asyncio.TimerHandle] = {}

    def add(self, keys: KeyArray, ready_s: float, limit_s: float) -> Announcement:
        """Pages ``keys`` are meant to be found in ``ready_s``; after ``limit_s`` it is over."""
        it = Announcement(keys, self._now_s() + ready_s, self._end)
        for key in it.open:
            other = self._by_key.get(key)
            if other is None or it.due_s < other.due_s:
                self._by_key[key] = it
        loop = asyncio.get_running_loop()
        self._timers[it] = loop.call_later(limit_s, self._end, it)
        return it

    def expected(self, keys: KeyArray) -> Expected:
        """The leading ``keys`` that are announced."""
        pages, due_s = 0, 0.0
        if self._by_key:
            for key in keys:
                it = self._by_key.get(key.tobytes())
                if it is None:
                    break
                pages, due_s = pages + 1, max(due_s, it.due_s)
        return Expected(pages, due_s)

    async def awaited(self, keys: KeyArray, until_s: float) -> bool:
        """Wait until the announcement of the first of ``keys`` is over, or until ``until_s``.

        Not where they are meant to be there later; False: there was nothing to wait for.
        """
        now_s, expected = self._now_s(), self.expected(keys)
        if not expected.pages or not max(now_s, expected.due_s) < until_s:
            return False
        first = self._by_key[keys[0].tobytes()]
        await asyncio.wait([first.over], timeout=until_s - now_s)
        return True

    def decided(self, keys: KeyArray) -> None:
        """A store of ``keys`` is visible: they can be found, or no tier had room."""
        if not self._by_key:
            return
        for key in keys:
            it = self._by_key.pop(key.tobytes(), None)
            if it is not None:
                it.open.discard(key.tobytes())
                if not it.open:
                    self._end(it)

    def close(self) -> None:
        """End all."""
        for it in list(self._timers):
            self._end(it)

    def _end(self, it: Announcement) -> None:
        timer = self._timers.pop(it, None)
        if timer is None:
            return
        timer.cancel()
        for key in it.open:
            if self._by_key.get(key) is it:
                del self._by_key[key]
        it.over.set_result(None)
