# SPDX-License-Identifier: Apache-2.0
"""Cancels a coroutine in each of its waits in turn, to see what it leaves behind."""

import asyncio
import itertools
from collections.abc import Awaitable, Generator
from enum import StrEnum
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Moment(StrEnum):
    """When in a wait the cancel comes."""

    WAITING = "waiting"  # what it waits for is cancelled with it
    ENDING = "ending"  # what it waited for is there, and is lost with it


class Cancelled(Generic[T]):
    """Awaits ``work``, and cancels it in its wait number ``at``, as a task's cancel would."""

    def __init__(self, work: Awaitable[T], at: int, moment: Moment = Moment.WAITING) -> None:
        self.fired = False
        self._work, self._at, self._moment = work, at, moment

    def __await__(self) -> Generator[Any, Any, T]:
        """CancelledError where ``work`` let it pass; its result where there was no such wait."""
        steps, error = self._work.__await__(), None
        for turn in itertools.count():
            try:
                waited_for = next(steps) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            is_now, error = turn == self._at, None
            self.fired |= is_now
            if is_now and self._moment is Moment.WAITING and waited_for is not None:
                waited_for.cancel()
            try:
                yield waited_for
            except BaseException as thrown:  # noqa: BLE001 -- the coroutine's to catch, not ours
                error = thrown
            if is_now and error is None:
                error = asyncio.CancelledError()
        raise AssertionError("count has no end")


async def cancel_at(work: Awaitable[object], at: int, moment: Moment = Moment.WAITING) -> bool:
    """Whether ``work`` has a wait number ``at``; there it was cancelled."""
    wait = Cancelled(work, at, moment)
    try:
        await wait
    except asyncio.CancelledError:
        assert wait.fired, "cancelled by somebody else"
    return wait.fired
