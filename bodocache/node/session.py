# SPDX-License-Identifier: Apache-2.0
"""One engine at a node: its epoch, what it holds, and how it loses it.

An engine that is silent for too long, or whose connection ends, is *fenced*: its epoch is over, and
what it held for reading goes back at once. Slots that it may still write to are kept in quarantine
until it says that it does not (Resume, Bye) or its process is gone.
"""

import numpy as np

from bodocache.hints.actions import Operation  # noqa: TC001 -- as the others
from bodocache.hints.reuse import REQUESTS_PER_ENGINE
from bodocache.move.announced import Announcement  # noqa: TC001
from bodocache.move.residency import KeyArray, RowArray, SlotArray
from bodocache.move.ticket import Ticket
from bodocache.node.fetches import Fetcher
from bodocache.node.reading import Fetch  # noqa: TC001 -- as the others
from bodocache.node.stages import Stage, Stager

PROMPTS_KEPT = 64  # of one engine, between a match and its load


class Session:
    """What one engine holds."""

    def __init__(self, epoch: int, pid: int, fetcher: Fetcher, stager: Stager) -> None:
        self.epoch = epoch
        self.pid = pid
        self.version = 0  # of its weights
        self.is_fenced = False
        self.fetches: dict[int, Fetch] = {}
        self.stages: dict[int, Stage] = {}
        self.operations: dict[int, Operation] = {}  # prefetches and demotions under way
        self.announcements: dict[int, Announcement] = {}
        self._prompts: dict[int, KeyArray] = {}  # of the newest matches, by number
        self._ending: list[Fetch] = []  # whose reads have not drained
        self._fetcher = fetcher
        self._stager = stager
        self._quarantine: list[SlotArray] = []

    @property
    def quarantined(self) -> int:
        """Slots that it may still write to, though it was fenced."""
        return sum(map(len, self._quarantine))

    def matched(self, request: int, keys: KeyArray) -> None:
        """``keys`` are the prompt of match ``request``."""
        self._prompts.pop(request, None)
        self._prompts[request] = keys
        while len(self._prompts) > PROMPTS_KEPT:
            del self._prompts[next(iter(self._prompts))]

    def prompt_of(self, request: int, pages: KeyArray) -> KeyArray:
        """The prompt of match ``request``, of which ``pages`` are loaded; these if it is gone."""
        prompt = self._prompts.get(request % REQUESTS_PER_ENGINE, pages)
        return prompt if np.array_equal(prompt[: len(pages)], pages) else pages

    def end_fetch(self, number: int, bad: RowArray) -> None:
        """A load needs its slots no more."""
        fetch = self.fetches.pop(number, None)
        if fetch is not None:
            self._fetcher.end(fetch, bad)
            self._ending = [it for it in (*self._ending, fetch) if not it.is_over.is_set()]

    @property
    def tickets(self) -> set[Ticket | None]:
        """Of its loads in the disk's queue."""
        return {it.ticket for fetch in self.fetches.values() for it in fetch.readings}

    async def drained(self) -> None:
        """Wait, once it is fenced and free, until the node holds nothing of it."""
        for fetch in self._ending:
            await fetch.is_over.wait()

    def fence(self) -> None:
        """Its epoch is over; twice is harmless."""
        self.is_fenced = True
        for number in list(self.fetches):
            self.end_fetch(number, np.empty(0, np.int64))
        for stage in self.stages.values():
            if not stage.is_over:
                self._quarantine.append(self._stager.take_over(stage))
        self.stages.clear()
        for announcement in self.announcements.values():
            announcement.close()
        self.announcements.clear()
        for operation in list(self.operations.values()):
            operation.cancel()
        self.operations.clear()

    def resume(self, epoch: int) -> None:
        """It writes no more to what it held, and goes on in ``epoch``."""
        self.fence()
        self.free()
        self.epoch, self.is_fenced = epoch, False

    def free(self) -> None:
        """Nothing of it writes any more: quarantined slots are anybody's."""
        while self._quarantine:
            self._stager.free(self._quarantine.pop())
