# SPDX-License-Identifier: Apache-2.0
"""An event loop in virtual time: nothing waits, and one seed gives one run, bit for bit.

Where nothing is ready the clock jumps to the next timer. There are no threads and files in it, and
sockets only where asked for: what is meant for an executor runs at once, and takes no time.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from bodocache.clock import VirtualClock
from bodocache.errors import Deadlock

T = TypeVar("T")


class _Virtual(asyncio.BaseEventLoop):
    """One thread, on ``clock``."""

    clock: VirtualClock

    def time(self) -> float:
        """The clock's seconds."""
        return self.clock.now_s()

    def run_in_executor(  # type: ignore[override]
        self,
        executor: object,  # noqa: ARG002 -- no threads here
        func: Callable[..., T],
        *args: Any,
    ) -> "asyncio.Future[T]":
        """Call ``func`` here and now."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 -- it is raised where the future is awaited
            future.set_exception(error)
        return future

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        """There is one thread."""
        return self.call_soon(callback, *args, context=context)


class VirtualLoop(_Virtual):
    """Runs coroutines on ``clock``; :class:`Deadlock` where all wait and no timer is set."""

    def __init__(self, clock: VirtualClock | None = None) -> None:
        super().__init__()
        self.clock = VirtualClock() if clock is None else clock
        self._selector = _Jump(self.clock)

    def _process_events(self, event_list: list[object]) -> None:
        """There are none: BaseEventLoop asks."""


class _Jump:
    """In a selector's place: waiting for a timeout moves the clock by it."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock

    def select(self, timeout_s: float | None) -> list[object]:
        if timeout_s is None:
            raise Deadlock(
                f"at {self._clock.now_s():.6f} s of virtual time every task waits, and no timer is"
                " set: what they wait for never comes"
            )
        self._clock.advance(max(0.0, timeout_s))
        return []


class VirtualSocketLoop(_Virtual, asyncio.SelectorEventLoop):
    """The same for who talks over sockets, to itself: a node and its engines, say.

    What was sent is there at once, so time moves on only where nothing is left to be read.
    """

    def __init__(self, clock: VirtualClock | None = None) -> None:
        self.clock = VirtualClock() if clock is None else clock
        super().__init__(_JumpOrRead(self.clock))


class _JumpOrRead(selectors.DefaultSelector):
    """Waits for nobody: where no socket is ready, the clock is moved."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._jump = _Jump(clock)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            self._jump.select(timeout)
        return ready


def run_virtual(
    work: Coroutine[Any, Any, T],
    clock: VirtualClock | None = None,
    loop: Callable[[VirtualClock | None], asyncio.AbstractEventLoop] = VirtualLoop,
) -> T:
    """Run ``work`` to its end in virtual time, as ``asyncio.run`` does in real time."""
    with asyncio.Runner(loop_factory=lambda: loop(clock)) as runner:
        return runner.run(work)
