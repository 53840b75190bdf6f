# SPDX-License-Identifier: Apache-2.0
"""A policy that knows what the storage's link will give: a strong reference, not a bound.

It decides by the same formula as the cache (DESIGN.md, "tardiness"), with the real finish of each
possible cut in the place of a prediction, and decides anew whenever the engine could start. It does
not know which requests will come, nor what a load leaves in faster tiers for others, so a schedule
that does may be better.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bodocache.pages import Tier
from bodocache.replay.simulate.engine import Engine
from bodocache.replay.simulate.job import Job
from bodocache.testing.channel import Channel

Pages = NDArray[np.int64]
Seconds = NDArray[np.float64]


@dataclass(slots=True)
class Oracle:
    """Loads up to the best cut, given what is queued and all that the link will do."""

    steps_aside: ClassVar = False
    storage: Channel | None = None  # set by whoever builds the world, as are those who share it
    engines: Sequence[Engine] = ()

    def begin(self, engine: Engine, job: Job) -> None:
        """Load up to the best cut."""
        assert job.match is not None
        match, wait_s = job.match, engine.backlog_s(job)
        pages = self._best(engine, job, 0, wait_s)
        job.load = engine.cache.load(replace(match, pages=pages, tiers=match.tiers[:pages]))
        job.load.on_settled(engine.poke)

    def is_ready(self, engine: Engine, job: Job) -> bool:
        """When it is there, or starting with what has landed is better by now."""
        load = job.load
        assert load is not None
        return load.done or self._best(engine, job, load.landed, 0.0) <= load.landed

    def commit(self, engine: Engine, job: Job) -> None:
        """What has landed is what it brings."""
        assert job.load is not None
        job.load.cancel()
        engine.take(job, job.load.landed)

    def _best(self, engine: Engine, job: Job, landed: int, wait_s: float) -> int:
        """The pages of least T + n_waiting R."""
        assert job.match is not None
        tiers = job.match.tiers[: job.match.pages]
        if job.load is not None:
            tiers = tiers[: len(job.load.rows)]
        page_tokens, speed = engine.profile.model.page_tokens, engine.speed
        cuts = np.arange(landed, len(tiers) + 1)
        below = np.cumsum(np.concatenate(([0], tiers[landed:] == Tier.DISK)))
        finishes_s = self._finishes_s(engine, job, below)
        have = np.minimum(cuts * page_tokens, job.tokens - 1)
        left = job.tokens - have
        compute_s = speed.token_s * left + speed.slope_s * (have * left + left * left / 2)
        lost = np.maximum(job.matched - have, 0)
        lost_s = speed.token_s * lost + speed.slope_s * (have * lost + lost * lost / 2)
        cost_s = np.maximum(wait_s, finishes_s) + compute_s + engine.behind(job) * lost_s
        best: int = int(cuts[len(cuts) - 1 - int(np.argmin(cost_s[::-1]))])
        return best

    def _finishes_s(self, engine: Engine, job: Job, below: Pages) -> Seconds:
        """Seconds until each number of pages has come from the storage."""
        assert self.storage is not None, "the oracle looks at a world's storage"
        now_s, page_nbytes = engine.now_s(), engine.profile.model.page_nbytes
        ahead = sum(
            len(other.load.rows) - other.load.landed
            for one in self.engines
            for other in one.waiting
            if other.load is not None and other is not job and not other.load.done
        )
        if job.load is not None:
            ahead = 0  # its reads are under way: those before it are nearly done
        rate, latency_s = self.storage.bytes_per_s, self.storage.latency_s
        return np.array(
            [
                0.0
                if pages == 0
                else self.storage.pace.finish_s(now_s, (ahead + pages) * page_nbytes / rate)
                + latency_s
                - now_s
                for pages in below.tolist()
            ]
        )
