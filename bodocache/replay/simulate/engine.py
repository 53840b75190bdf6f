# SPDX-License-Identifier: Apache-2.0
"""A simulated engine: continuous batching with chunked prefill, over one cache.

It computes one step at a time. A step prefills up to ``chunk_tokens`` of the requests that were
admitted, first come first served, and decodes one token of each that has its first. A request is
admitted when its policy says so and the device has room; one that waits for its load lets others
pass. Where layers of a step are still on their way, the step waits for each in turn: everything in
the batch waits with it, as on a GPU.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Protocol

import numpy as np

from bodocache.cache import Cache
from bodocache.errors import ConfigError, LoadFailed, TierFull
from bodocache.replay.simulate.job import Job
from bodocache.replay.simulate.profile import Profile
from bodocache.replay.simulate.speed import Speed

DECODE_STEPS = 64  # at most, as one event
RETRY_S = 1e-3
SETTLED_S = 30.0
BUSIEST = 0.95  # an engine's share of the time, beyond which it is taken for no more
LOADING_SHARE = 0.5  # of the device's pages: what the loads of waiting requests may take


class Policy(Protocol):
    """When loads begin, when a request may start, and what of its load it then waits for."""

    @property
    def steps_aside(self) -> bool:
        """Whether its cache may step aside (docs/orchestrator.md): others' caches do not."""
        ...

    def begin(self, engine: "Engine", job: Job) -> None:
        """Begin to load what ``job.match`` found; ``engine.poke`` when it may be ready later."""
        ...

    def is_ready(self, engine: "Engine", job: Job) -> bool:
        """Whether the engine, which has room in its next step, may start it."""
        ...

    def commit(self, engine: "Engine", job: Job) -> None:
        """It starts: set ``have``, and ``streams`` where layers are still on their way."""
        ...


class Engine:
    """Serves jobs one step at a time, until it is closed and has none left."""

    def __init__(
        self,
        cache: Cache,
        profile: Profile,
        policy: Policy,
        *,
        check: Callable[[Job], None],
        fill: Callable[[Job], None],
    ) -> None:
        """``check`` looks at the pages that a load brought, ``fill`` computes those it did not."""
        self.cache, self.profile, self.policy = cache, profile, policy
        self.speed = Speed.of(profile)
        self.waiting: list[Job] = []
        self.prefilling: list[Job] = []
        self.decoding: list[Job] = []
        self.done: list[Job] = []
        self.busy_s = self.stalled_s = 0.0
        self.free_s = 0.0  # when the step under way ends
        self.on_step: Callable[[], None] = lambda: None  # called between two steps
        self._check, self._fill = check, fill
        self._loop = asyncio.get_running_loop()
        self._poked: asyncio.Future[None] | None = None
        self._since_s = self._loop.time()
        self._arrived = 0
        self._closing = False
        self._loading = self._held = 0  # pages: of loads that wait, and of all that has begun

    async def submit(self, job: Job) -> None:
        """Take a request. ConfigError: the device cannot hold it."""
        if self._pages(job) > self.profile.device_pages:
            raise ConfigError(
                f"request {job.number}: {self._pages(job)} pages; the device has"
                f" {self.profile.device_pages}; choose a profile with more device memory"
            )
        self.waiting.append(job)
        self._arrived += 1
        await self._begin_loads()
        self.poke()

    def close(self) -> None:
        """No more requests will come."""
        self._closing = True
        self.poke()

    def die(self) -> list[Job]:
        """Let go of everything at once, as whoever runs a dead engine's cache does.

        Returns the requests that it had not finished, as they were when they came.
        """
        jobs = [*self.waiting, *self.prefilling, *self.decoding]
        for job in jobs:
            self._let_go(job)
        self.waiting, self.prefilling, self.decoding = [], [], []
        self._loading = self._held = 0
        return [job.anew() for job in jobs]

    def poke(self) -> None:
        """Something changed that the engine may wait for."""
        if self._poked is not None and not self._poked.done():
            self._poked.set_result(None)

    def poke_at(self, at_s: float) -> None:
        """Do so later."""
        self._loop.call_at(at_s, self.poke)

    def now_s(self) -> float:
        """The virtual clock."""
        return self._loop.time()

    def take(self, job: Job, pages: int) -> None:
        """Of what ``job`` matched, its load brings the leading ``pages``."""
        job.have = pages * self.profile.model.page_tokens

    def backlog_s(self, before: Job | None = None) -> float:
        """Seconds of prefill that stand before ``before`` (or a new request) can start."""
        speed = self.speed
        seconds = max(0.0, self.free_s - self._loop.time())
        for job in self.prefilling:
            seconds += speed.prefill_s(job.at, job.tokens - job.at)
        for job in self.waiting:
            if job is before:
                break
            seconds += speed.prefill_s(job.matched, job.tokens - job.matched)
        return seconds

    def behind(self, job: Job) -> float:
        """How many requests a second of compute for ``job`` delays by a second.

        Those that wait behind it, and those that will come before the engine has caught up: with w
        seconds of prefill to do, l requests a second, and an engine that is busy for a share r of
        the time, they are l w / (1 - r) (a busy period of M/G/1 that begins with w). To compute
        again what was matched adds to w, and delays those who come meanwhile by half of it.
        """
        waiting = len(self.waiting) - 1 - self.waiting.index(job)
        since_s = max(self._loop.time() - self._since_s, SETTLED_S)  # a rate takes its time
        busy = min(BUSIEST, self.busy_s / since_s)
        again_s = self.speed.prefill_s(0, job.matched)
        return waiting + self._arrived / since_s * (self.backlog_s() + again_s / 2) / (1.0 - busy)

    async def run(self) -> None:
        """Serve until closed and empty."""
        while True:
            self.on_step()
            await self._begin_loads()
            self._admit()
            if self.prefilling:
                await self._mixed_step()
            elif self.decoding:
                await self._decode()
            elif self._closing and not self.waiting:
                return
            else:
                await self._change()

    # Before a request starts

    async def _begin_loads(self) -> None:
        """Begin the loads of those who come first, as many as the device has room for.

        A request that has begun has all the room that it will need, so that none waits for another
        one's for ever.
        """
        device_pages = self.profile.device_pages
        for job in list(self.waiting):
            if job.match is not None:
                continue
            pages = self._pages(job)
            share = 1.0 if job is self.waiting[0] else LOADING_SHARE
            if self._loading + pages > share * device_pages or self._held + pages > device_pages:
                return
            self._loading, self._held = self._loading + pages, self._held + pages
            job.match = await self.cache.match_engine_keys(job.keys)
            job.matched = min(job.match.pages * self.profile.model.page_tokens, job.tokens - 1)
            job.begun_s = self._loop.time()
            self.policy.begin(self, job)

    def _pages(self, job: Job) -> int:
        """Pages that it needs on the device: its prompt's, and what it decodes into."""
        page_tokens = self.profile.model.page_tokens
        return max(len(job.keys), math.ceil((job.tokens + job.output) / page_tokens))

    def _admit(self) -> None:
        budget = self.profile.engine.chunk_tokens
        budget -= sum(job.tokens - job.at for job in self.prefilling)
        for job in list(self.waiting):
            running = len(self.prefilling) + len(self.decoding)
            if budget <= 0 or running >= self.profile.engine.max_running:
                return
            if job.match is None or not self.policy.is_ready(self, job):
                continue
            if not self._start(job):
                return
            budget -= job.tokens - job.at

    def _start(self, job: Job) -> bool:
        """Admit it, if the device has room for what it computes."""
        if not job.committed:
            self.policy.commit(self, job)
            job.committed = True
        brought = job.have // self.profile.model.page_tokens
        try:
            slots = self.cache.acquire(self._pages(job) - brought)
        except TierFull:  # what was cancelled still drains
            return False
        missing = len(job.keys) - brought
        job.slots, job.spare = slots[:missing], slots[missing:]
        self._loading -= self._pages(job)
        job.admitted_s = self._loop.time()
        job.at = min(job.have, job.tokens - 1)
        lost = job.matched - job.at
        job.cut = lost >= self.profile.model.page_tokens
        job.recompute_s = self.speed.prefill_s(job.at, lost) if lost > 0 else 0.0
        self.waiting.remove(job)
        self.prefilling.append(job)
        return True

    # Steps

    async def _mixed_step(self) -> None:
        chunk, seconds = [], 0.0
        budget = self.profile.engine.chunk_tokens
        for job in self.prefilling:
            tokens = min(budget, job.tokens - job.at)
            if not tokens:
                break
            budget -= tokens
            seconds += self.speed.prefill_s(job.at, tokens)
            chunk.append((job, tokens))
        step_s = self.speed.step_s(seconds, self._context)
        if not await self._compute(step_s, [job for job, _ in chunk if job.streams]):
            return
        self._decoded(1)
        for job, tokens in chunk:
            self._computed(job, tokens)

    async def _compute(self, step_s: float, streaming: list[Job]) -> bool:
        """Whether the step was computed; not where a load failed: it is run again without it."""
        begun_s, is_whole = self._loop.time(), True
        self.free_s = begun_s + step_s
        if streaming:
            is_whole = await self._compute_as_it_comes(step_s / self.speed.layers, streaming)
        else:
            await asyncio.sleep(step_s)
        self.busy_s += self._loop.time() - begun_s
        self.stalled_s += max(0.0, self._loop.time() - begun_s - step_s)
        return is_whole

    async def _compute_as_it_comes(self, layer_s: float, streaming: list[Job]) -> bool:
        """Layer by layer, each when every load has brought it."""
        for layer in range(self.speed.layers):
            for job in streaming:
                assert job.load is not None
                try:
                    await job.load.layer(layer)
                except LoadFailed as error:
                    await job.load.released
                    await self._do_without(job, error.pages)
                    return False
            await asyncio.sleep(layer_s)
        for job in streaming:
            job.streams = False
        return True

    async def _do_without(self, job: Job, pages: int) -> None:
        """Only the first ``pages`` of what was committed came: compute the others, too."""
        lost = job.have // self.profile.model.page_tokens - pages
        while True:
            try:
                job.slots = np.concatenate((self.cache.acquire(lost), job.slots))
                break
            except TierFull:  # the room is there when what an engine before left has drained
                await asyncio.sleep(RETRY_S)
        job.recompute_s += self.speed.prefill_s(pages, job.at - pages)
        job.streams, job.cut = False, True
        self.take(job, pages)
        job.at = job.have

    def _computed(self, job: Job, tokens: int) -> None:
        job.at += tokens
        if job.at < job.tokens:
            return
        self.prefilling.remove(job)
        job.first_token_s = self._loop.time()
        job.left = job.output - 1
        self._check(job)
        self._fill(job)
        assert job.match is not None
        if len(job.slots):
            job.store = self.cache.store(job.match, job.slots)
        if job.left > 0:
            self.decoding.append(job)
        else:
            self._end(job)

    async def _decode(self) -> None:
        """Several steps at once, until the first request ends or something happens."""
        steps = min(DECODE_STEPS, *(job.left for job in self.decoding))
        context = self._context + len(self.decoding) * steps / 2
        step_s = self.speed.step_s(0.0, context)
        begun_s = self._loop.time()
        self.free_s = begun_s + step_s
        await self._change(begun_s + steps * step_s)
        taken = min(steps, max(1, math.ceil((self._loop.time() - begun_s) / step_s - 1e-9)))
        rest_s = begun_s + taken * step_s - self._loop.time()
        if rest_s > 0:
            await asyncio.sleep(rest_s)
        self.busy_s += taken * step_s
        self._decoded(taken)

    @property
    def _context(self) -> float:
        return float(sum(job.tokens + job.output - job.left for job in self.decoding))

    def _decoded(self, steps: int) -> None:
        for job in self.decoding:
            job.left -= steps
        for job in [job for job in self.decoding if job.left <= 0]:
            self.decoding.remove(job)
            self._end(job)

    def _let_go(self, job: Job) -> None:
        if job.store is not None:
            job.store.close()
        elif len(job.slots):
            self.cache.release(job.slots)
        if job.load is not None:
            job.load.close()
        if len(job.spare):
            self.cache.release(job.spare)
        job.slots = job.spare = np.empty(0, np.int64)

    def _end(self, job: Job) -> None:
        self._let_go(job)
        self._held -= self._pages(job)
        self.done.append(job)
        self.poke()

    async def _change(self, until_s: float | None = None) -> None:
        """Wait until somebody pokes, or until ``until_s``."""
        self._poked = self._loop.create_future()
        timer = None if until_s is None else self._loop.call_at(until_s, self.poke)
        try:
            await self._poked
        finally:
            self._poked = None
            if timer is not None:
                timer.cancel()
