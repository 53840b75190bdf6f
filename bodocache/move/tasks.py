# SPDX-License-Identifier: Apache-2.0
"""A task group that outlives the call that opened it, for as long as the cache is open."""

import asyncio
import logging
from collections.abc import Coroutine

_log = logging.getLogger(__name__)


class Nursery:
    """Runs the cache's background tasks. A task that fails is logged and counted; others go on."""

    def __init__(self) -> None:
        self.failures = 0
        self._group = asyncio.TaskGroup()
        self._stop = asyncio.Event()
        self._ready = asyncio.Event()

    async def open(self) -> None:
        """Begin to accept tasks."""
        # The one bare task of the package: a TaskGroup must be entered and left by the same task,
        # and a cache may be opened and closed by two.
        self._runner = asyncio.get_running_loop().create_task(self._run())
        try:
            await self._ready.wait()
        except BaseException:  # cancelled: nobody would end it
            await self.close()
            raise

    def spawn(self, work: Coroutine[object, object, None]) -> None:
        """Run ``work`` in the background."""
        self._group.create_task(self._guard(work))

    async def close(self) -> None:
        """Wait for every task to end; whoever closes has told them to."""
        self._stop.set()
        await asyncio.shield(self._runner)  # a cancelled close must not cancel copies under way

    async def _run(self) -> None:
        async with self._group:
            self._ready.set()
            await self._stop.wait()

    async def _guard(self, work: Coroutine[object, object, None]) -> None:
        try:
            await work
        except Exception:  # noqa: BLE001 -- logged and counted: one task must not end the others
            self.failures += 1
            _log.exception("a background task of the cache failed")
