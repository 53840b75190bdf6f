# SPDX-License-Identifier: Apache-2.0
"""Which of several engines serves a request: the one that would begin it first.

They share one cache, so that what one stored is a hit for all: no engine is nearer to a prompt's
pages than another, and the least loaded one is best.
"""

from collections.abc import Sequence

from bodocache.replay.simulate.engine import Engine
from bodocache.replay.simulate.job import Job


class Router:
    """Sends each request to the engine that has the least to do."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        """``engines``: of equals, the first is taken."""
        self._engines = engines

    async def submit(self, job: Job) -> None:
        """Give ``job`` to an engine. ConfigError: no device can hold it."""
        await self.choose().submit(job)

    def choose(self) -> Engine:
        """The engine with the fewest seconds of prefill before a request that comes now.

        Of equals, that which decodes for the fewest: each lengthens its steps.
        """
        return min(self._engines, key=lambda engine: (engine.backlog_s(), len(engine.decoding)))

    def close(self) -> None:
        """No more requests will come."""
        for engine in self._engines:
            engine.close()
