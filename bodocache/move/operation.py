# SPDX-License-Identifier: Apache-2.0
"""Pages that move between tiers because somebody said so, and not for a request."""

import asyncio
from collections.abc import Callable, Generator


class Operation:
    """A prefetch or a demotion on its way. ``await`` gives how many pages arrived."""

    def __init__(self) -> None:
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._on_cancel: list[Callable[[], None]] = []
        self.is_cancelled = False

    def __await__(self) -> Generator[object, None, int]:
        """Wait until it is over; cancelling the wait leaves it as it is."""
        return asyncio.shield(self._ended).__await__()

    def cancel(self) -> None:
        """Begin nothing more; what has arrived stays. Harmless when it is over."""
        self.is_cancelled = True
        while self._on_cancel:
            self._on_cancel.pop()()

    # What follows is the orchestrator's side.

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is under way any more."""
        return self._ended.done()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when it is cancelled: at once if it is."""
        if self.is_cancelled:
            callback()
        else:
            self._on_cancel.append(callback)

    def on_end(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when it is over."""
        self._ended.add_done_callback(lambda _: callback())

    def end(self, pages: int) -> None:
        """It is over: ``pages`` arrived."""
        self._on_cancel.clear()
        self._ended.set_result(pages)
