# SPDX-License-Identifier: Apache-2.0
"""Small worlds in which everything goes wrong, each from one seed.

Storage that is slow, hangs, fails or comes back; engines that die in the middle; caches that are
closed, or killed, and opened anew over what is on disk; frames whose bytes change. At every step
nothing may be lost or held twice, and no page may be wrong. A seed that fails fails every time.
"""

import asyncio
from dataclasses import dataclass, replace

import numpy as np

from bodocache.cache import Cache
from bodocache.clock import VirtualClock
from bodocache.move.residency import Residency
from bodocache.replay.simulate.engine import Engine
from bodocache.replay.simulate.job import Job
from bodocache.replay.simulate.names import BASELINES, OURS
from bodocache.replay.simulate.policies import POLICIES
from bodocache.replay.simulate.profile import (
    EngineProfile,
    HostProfile,
    LinkProfile,
    ModelProfile,
    Profile,
    StorageProfile,
    TargetProfile,
)
from bodocache.replay.simulate.run import BUCKET_S
from bodocache.replay.simulate.speed import Speed
from bodocache.replay.simulate.world import World, engine_keys
from bodocache.testing.conservation import check_conservation
from bodocache.testing.loop import run_virtual
from bodocache.testing.pace import Pace, Weather
from bodocache.testing.simulated import SimulatedDisk

REQUESTS, PREFIXES, LONGEST_PAGES = 24, 4, 10
LIVES = 3  # of the cache, over one disk
PAGE_TOKENS = 512
HASTE = 20.0  # these worlds last for seconds


@dataclass(slots=True)
class Survival:
    """What one seed came to."""

    served: int = 0
    deaths: int = 0  # of engines
    kills: int = 0  # of caches
    damaged_frames: int = 0
    failures: int = 0  # storage operations that ended with an error
    brought_pages: int = 0
    wrong_pages: int = 0
    steps: int = 0


def survive(seed: int) -> Survival:
    """Run the world of ``seed``; AssertionError where something was lost or held twice."""
    random = np.random.default_rng([seed, 0xFA17])
    found, disk = Survival(), None
    for life in range(LIVES):
        clock = VirtualClock()
        number = seed * LIVES + life
        world = World.build(_profile(random), clock, number, wrong_by=0.5, write_through=True)
        world.storage.pace = Pace(world.storage.pace.weather, number, haste=HASTE)
        if disk is not None:
            world.disk = disk
            _damage(world, random, found)
        disk = run_virtual(_live(world, random, found, is_killed=life + 1 < LIVES), clock)
        found.wrong_pages += world.wrong_pages
        found.failures += world.backend.failures if world.backend else 0
    return found


async def _live(
    world: World, random: np.random.Generator, found: Survival, *, is_killed: bool
) -> SimulatedDisk:
    """Serve requests until all are done, or until it is killed; what is on disk then."""
    cache = await world.open()
    names = (OURS, *BASELINES)
    policy = POLICIES[names[int(random.integers(len(names)))]]()
    jobs = _jobs(world.profile, random)
    ends_s = float(random.uniform(0.0, jobs[-1].arrived_s)) if is_killed else None
    try:
        async with asyncio.timeout_at(ends_s):
            while jobs:
                engine = Engine(cache, world.profile, policy, check=world.check, fill=world.fill)
                jobs = await _until_it_dies(cache, engine, jobs, random, found)
    except TimeoutError:
        found.kills += 1
    disk = world.disk.as_it_is()
    await cache.close()  # what it does from now on is not on that disk
    residency = _residency(cache)
    check_conservation(residency, np.empty(0, np.int64))
    assert residency.device.leased == residency.host.leased == 0, "leases are left after the end"
    return disk


async def _until_it_dies(
    cache: Cache, engine: Engine, jobs: list[Job], random: np.random.Generator, found: Survival
) -> list[Job]:
    """Serve ``jobs``; returns those that an engine which died leaves to the next."""

    def look() -> None:
        found.steps += 1
        open_jobs = [*engine.prefilling, *engine.decoding]
        held = [job.spare for job in open_jobs]
        held += [job.slots for job in open_jobs if job.store is None]
        check_conservation(_residency(cache), np.concatenate([np.empty(0, np.int64), *held]))

    engine.on_step = look
    loop = asyncio.get_running_loop()
    lasts_s = float(random.exponential(4.0 * BUCKET_S))
    unsent = list(jobs)

    async def send() -> None:
        while unsent:
            await asyncio.sleep(max(0.0, unsent[0].arrived_s - loop.time()))
            await engine.submit(unsent.pop(0))
        engine.close()

    left: list[Job] = []
    try:
        async with asyncio.timeout(lasts_s), asyncio.TaskGroup() as group:
            group.create_task(engine.run())
            group.create_task(send())
    except TimeoutError:
        found.deaths += 1
        left = engine.die() + unsent
    except asyncio.CancelledError:
        engine.die()
        raise
    found.served += len(engine.done)
    found.brought_pages += sum(job.have // PAGE_TOKENS for job in engine.done)
    return left


def _residency(cache: Cache) -> Residency:
    return cache._orchestrator.residency  # noqa: SLF001 -- a simulation looks inside


def _damage(world: World, random: np.random.Generator, found: Survival) -> None:
    """Change the bytes of some frames: bits flip, writes go astray."""
    frames = np.flatnonzero(random.random(len(world.disk.words)) < 0.05)
    world.disk.words[frames] += np.uint64(1 + int(random.integers(1 << 60)))
    found.damaged_frames += len(frames)


def _jobs(profile: Profile, random: np.random.Generator) -> list[Job]:
    """Requests over a few prefixes, which come in bursts."""
    speed, jobs, at_s = Speed.of(profile), [], 0.0
    for number in range(REQUESTS):
        at_s += float(random.exponential(0.3)) if random.random() < 0.5 else 0.0
        prefix, pages = int(random.integers(PREFIXES)), int(random.integers(1, LONGEST_PAGES + 1))
        shared = int(random.integers(pages + 1))
        own = 1_000_000 * (number + 1) + int(random.integers(1000)) * 100
        ids = [1000 * prefix + i if i < shared else own + i for i in range(pages)]
        tokens = pages * PAGE_TOKENS - int(random.integers(PAGE_TOKENS))
        cold_s = speed.prefill_s(0, tokens)
        due_s = at_s + 0.5 + cold_s
        jobs.append(
            Job(
                number,
                at_s,
                tokens,
                int(random.integers(1, 50)),
                engine_keys(ids),
                due_s=due_s,
                cold_s=cold_s,
            )
        )
    return jobs


def _profile(random: np.random.Generator) -> Profile:
    """A small model on a small machine, with storage in some weather."""
    model = ModelProfile("small", 1e9, int(2e9), 4, 8, 64, 2, 2, 64, 2, PAGE_TOKENS)
    pages_nbytes = int(random.integers(2 * LONGEST_PAGES + 4, 60)) * model.page_nbytes
    engine = EngineProfile(
        gpus=1,
        peak_flops=1e14,
        mfu=0.5,
        hbm_bytes=model.weight_bytes + pages_nbytes,
        hbm_share=1.0,
        hbm_bytes_per_s=1e12,
        chunk_tokens=2048,
        max_running=int(random.integers(1, 8)),
    )
    link = LinkProfile(1e9, 1e-5)
    weather = Weather(list(Weather)[int(random.integers(len(Weather)))])
    storage = StorageProfile(
        capacity_bytes=int(random.integers(20, 120)) * model.page_nbytes,
        read=LinkProfile(float(random.uniform(2e6, 2e8)), 1e-4),
        write_bytes_per_s=float(random.uniform(2e6, 2e8)),
        weather=weather,
    )
    host = HostProfile(int(random.integers(20, 80)) * model.page_nbytes, link, replace(link))
    return Profile(model, engine, host, storage, TargetProfile(0.5, 1.0))
