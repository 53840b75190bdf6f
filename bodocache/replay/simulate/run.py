# SPDX-License-Identifier: Apache-2.0
"""Runs a slice of a trace through simulated engines, at a chosen load, over a chosen link."""

import asyncio
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bodocache.cache import CacheStats
from bodocache.clock import VirtualClock
from bodocache.errors import BodoCacheError, ConfigError
from bodocache.identity import KeyChain
from bodocache.replay.simulate.engine import Engine, Policy
from bodocache.replay.simulate.job import Job
from bodocache.replay.simulate.oracle import Oracle
from bodocache.replay.simulate.profile import Profile
from bodocache.replay.simulate.router import Router
from bodocache.replay.simulate.speed import Speed
from bodocache.replay.simulate.world import World, engine_keys
from bodocache.replay.trace import Trace
from bodocache.testing.loop import run_virtual
from bodocache.wiring import layout_of, root_of

BUCKET_S = 3.0  # arrivals of the public trace are given in steps of so many seconds


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is run. One scenario is one run, bit for bit."""

    load: float = 0.7  # seconds of cold prefill that arrive a second, for each engine
    first: int = 0  # request of the trace
    requests: int | None = None  # default: all behind ``first``
    seed: int = 0
    stop_after: int | None = None  # requests; the run is the same as far as it goes
    wrong_by: float = 0.3  # what the planner is told may be off by so much

    def __post_init__(self) -> None:
        if not self.load > 0:
            raise ConfigError(f"load = {self.load}: expected seconds of work a second, above 0")
        if not 0 <= self.wrong_by < 1:
            raise ConfigError(f"wrong_by = {self.wrong_by}: expected a share from 0 to below 1")


@dataclass(slots=True, repr=False)  # asyncio shows results, and this one is long
class Run:
    """What became of one scenario."""

    jobs: list[Job]  # in trace order
    page_nbytes: int
    engines: int
    seconds: float  # of virtual time, from the first arrival to the last token
    busy_s: float  # of all engines
    stalled_s: float  # of those, waiting for layers
    wrong_pages: int
    stats: CacheStats
    link_nbytes: dict[str, int] = field(default_factory=dict)  # moved, by link


def simulate(trace: Trace, profile: Profile, policy: Policy, scenario: Scenario) -> Run:
    """Run ``scenario`` in virtual time."""
    clock = VirtualClock()
    return run_virtual(_run(trace, profile, policy, scenario, clock), clock)


def arrivals_s(trace: Trace, profile: Profile, scenario: Scenario) -> NDArray[np.float64]:
    """When each request of the slice arrives: spread inside its bucket, stretched to the load."""
    chosen = _chosen(trace, scenario)
    random = np.random.default_rng([scenario.seed, 0xA44])
    at_s = trace.timestamps_s[chosen] + random.uniform(0.0, BUCKET_S, len(chosen))
    at_s = np.sort(at_s) - at_s.min()
    speed = Speed.of(profile)
    cold_s = sum(speed.prefill_s(0, int(n)) for n in trace.input_lengths[chosen])
    lasts_s = max(float(at_s[-1]), BUCKET_S)
    arriving = scenario.load * profile.engines.count
    stretched: NDArray[np.float64] = at_s * (cold_s / arriving / lasts_s)
    return stretched


async def _run(
    trace: Trace, profile: Profile, policy: Policy, scenario: Scenario, clock: VirtualClock
) -> Run:
    jobs = _jobs(trace, profile, scenario)[: scenario.stop_after]
    world = World.build(
        *(profile, clock, scenario.seed),
        wrong_by=scenario.wrong_by,
        steps_aside=policy.steps_aside,
    )
    root = root_of(world.config, layout_of(world.device, None))
    world.stock(KeyChain(world.config.identity.tenant_domain, root), trace, scenario.first)
    async with await world.open() as cache:
        engines = [
            Engine(cache, profile, policy, check=world.check, fill=world.fill)
            for _ in range(profile.engines.count)
        ]
        if isinstance(policy, Oracle):
            policy.storage, policy.engines = world.storage, engines
        try:
            async with asyncio.TaskGroup() as group:
                for engine in engines:
                    group.create_task(engine.run())
                group.create_task(_send(Router(engines), jobs))
        except* BodoCacheError as errors:
            raise errors.exceptions[0] from None
        served_s, stats = clock.now_s(), cache.stats()
    return Run(
        jobs=jobs,
        page_nbytes=profile.model.page_nbytes,
        engines=profile.engines.count,
        seconds=served_s,
        busy_s=sum(engine.busy_s for engine in engines),
        stalled_s=sum(engine.stalled_s for engine in engines),
        wrong_pages=world.wrong_pages,
        stats=stats,
        link_nbytes={
            "host->device": world.down.nbytes,
            "device->host": world.up.nbytes,
            "storage": world.storage.nbytes,
        },
    )


async def _send(router: Router, jobs: list[Job]) -> None:
    loop = asyncio.get_running_loop()
    for job in jobs:
        await asyncio.sleep(job.arrived_s - loop.time())
        await router.submit(job)
    router.close()


def _jobs(trace: Trace, profile: Profile, scenario: Scenario) -> list[Job]:
    speed, target = Speed.of(profile), profile.target
    jobs = []
    for request, at_s in zip(
        _chosen(trace, scenario).tolist(),
        arrivals_s(trace, profile, scenario).tolist(),
        strict=True,
    ):
        pages = trace.pages[trace.offsets[request] : trace.offsets[request + 1]]
        tokens = int(trace.input_lengths[request])
        cold_s = speed.prefill_s(0, tokens)
        jobs.append(
            Job(
                number=request,
                arrived_s=at_s,
                tokens=tokens,
                output=max(1, int(trace.output_lengths[request])),
                keys=engine_keys(pages),
                due_s=at_s + target.base_s + target.cold_factor * cold_s,
                cold_s=cold_s,
            )
        )
    return jobs


def _chosen(trace: Trace, scenario: Scenario) -> NDArray[np.int64]:
    last = trace.num_requests
    if scenario.requests is not None:
        last = min(last, scenario.first + scenario.requests)
    if not 0 <= scenario.first < last:
        raise ConfigError(
            f"first = {scenario.first}: the trace has {trace.num_requests} requests, from 0"
        )
    return np.arange(scenario.first, last)
