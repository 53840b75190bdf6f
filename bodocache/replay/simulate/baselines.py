# SPDX-License-Identifier: Apache-2.0
"""What others do with a load that takes long, as policies of a simulated engine.

All of them load through the same cache, over the same links. None predicts: ``Patience`` says how
long a request waits, and what it does then.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from bodocache.match import Match
from bodocache.pages import Tier
from bodocache.replay.simulate.engine import Engine
from bodocache.replay.simulate.job import Job

STATIC_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Patience:
    """Load all that was matched; start when it is there, or ``timeout_s(job)`` after it began.

    What has not landed by then is computed. With a timeout of 0 a request starts as soon as the
    engine has room for it.
    """

    steps_aside: ClassVar = False
    timeout_s: Callable[[int, int], float]  # of matched pages, page_tokens

    def begin(self, engine: Engine, job: Job) -> None:
        """Begin at once, whatever the links do."""
        assert job.match is not None
        job.load = engine.cache.load(job.match)
        job.load.on_settled(engine.poke)
        wait_s = self._wait_s(engine, job)
        if 0 < wait_s < math.inf:
            engine.poke_at(job.begun_s + wait_s)

    def is_ready(self, engine: Engine, job: Job) -> bool:
        """Whether it is there, or its time is over."""
        assert job.load is not None
        return job.load.done or engine.now_s() >= job.begun_s + self._wait_s(engine, job)

    def commit(self, engine: Engine, job: Job) -> None:
        """What has landed is what it brings."""
        assert job.load is not None
        job.load.cancel()
        engine.take(job, job.load.landed)

    def _wait_s(self, engine: Engine, job: Job) -> float:
        assert job.match is not None
        return self.timeout_s(job.match.pages, engine.profile.model.page_tokens)


@dataclass(frozen=True, slots=True)
class Recompute:
    """Never load: what lies on the device is used, all else is computed again."""

    steps_aside: ClassVar = False

    def begin(self, engine: Engine, job: Job) -> None:
        """Hold the leading pages that lie on the device."""
        assert job.match is not None
        job.load = engine.cache.load(on_device(job.match))

    def is_ready(self, engine: Engine, job: Job) -> bool:  # noqa: ARG002 -- one signature
        """At once."""
        return True

    def commit(self, engine: Engine, job: Job) -> None:
        """What lay on the device."""
        assert job.load is not None
        engine.take(job, job.load.landed)


@dataclass(frozen=True, slots=True)
class Always:
    """Start at once and wait inside the step for the whole load."""

    steps_aside: ClassVar = False

    def begin(self, engine: Engine, job: Job) -> None:
        """Load all of it; it is awaited in the step."""
        assert job.match is not None
        speed = engine.speed
        new_s = speed.prefill_s(job.matched, job.tokens - job.matched)
        each_s = [new_s / speed.layers] * speed.layers
        job.load = engine.cache.load(job.match, compute_s=each_s)
        job.load.on_settled(engine.poke)

    def is_ready(self, engine: Engine, job: Job) -> bool:  # noqa: ARG002 -- one signature
        """At once."""
        return True

    def commit(self, engine: Engine, job: Job) -> None:
        """All that may still come."""
        assert job.load is not None
        committed = job.load.commit()
        job.streams = not job.load.done
        engine.take(job, len(committed) // engine.profile.model.page_tokens)


def on_device(match: Match) -> Match:
    """Of ``match``, the leading pages that lie on the device."""
    elsewhere = np.flatnonzero(match.tiers[: match.pages] != Tier.DEVICE)
    pages = int(elsewhere[0]) if len(elsewhere) else match.pages
    return replace(match, pages=pages, tiers=match.tiers[:pages])


def sglang_timeout_s(pages: int, page_tokens: int) -> float:
    """SGLang's prefetch timeout: 1.0 s and 0.25 s for every 1,024 tokens."""
    return 1.0 + pages * page_tokens / 1024 * 0.25


WAIT_COMPLETE = Patience(lambda _pages, _page_tokens: math.inf)
BEST_EFFORT = Patience(lambda _pages, _page_tokens: 0.0)
TIMEOUT = Patience(sglang_timeout_s)
STATIC_TIMEOUT = Patience(lambda _pages, _page_tokens: STATIC_TIMEOUT_S)
LOAD_ALWAYS = Always()
RECOMPUTE_ALWAYS = Recompute()
