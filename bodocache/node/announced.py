# SPDX-License-Identifier: Apache-2.0
"""Announcements of an engine on a node: other engines hear of them, and it hears of theirs.

The node keeps them all. They end with their store, with ``close``, at their time limit, and with
the epoch of the engine that made them.
"""

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Any, Protocol

from bodocache.move.announced import Announcement, Announcements, KeyArray
from bodocache.node import messages


class Teller(Protocol):
    """What sends messages to the node, if there is one."""

    def tell(self, message: Any) -> None:
        """Send a note."""

    def note(self, message: Any) -> "asyncio.Future[Any] | None":
        """Send a request; its answer."""
        ...


class NodeAnnouncements(Announcements):
    """What this engine has announced."""

    def __init__(self, node: Teller, now_s: Callable[[], float]) -> None:
        super().__init__(now_s)
        self._node = node
        self._numbers = count(1)
        self._told: dict[Announcement, int] = {}

    def add(self, keys: KeyArray, ready_s: float, limit_s: float) -> Announcement:
        """As there; the node is told."""
        it, number = super().add(keys, ready_s, limit_s), next(self._numbers)
        self._told[it] = number
        self._node.tell(messages.Announce(number, ready_s, limit_s, keys))
        return it

    async def awaited(self, keys: KeyArray, until_s: float) -> bool:
        """As there, of pages that any engine has announced."""
        within_s = until_s - self._now_s()
        answer = self._node.note(messages.Await(within_s, keys)) if within_s > 0 else None
        if answer is None:
            return False
        await asyncio.wait([answer], timeout=within_s)
        if not answer.done():
            return True
        return answer.exception() is None and bool(answer.result().was_there)

    def _end(self, it: Announcement) -> None:
        super()._end(it)
        number = self._told.pop(it, None)
        if number is not None:
            self._node.tell(messages.Withdraw(number))
