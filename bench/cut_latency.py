# SPDX-License-Identifier: Apache-2.0
"""How long after the prediction turns against a load under way is it cut? In virtual time.

A cache over simulated storage whose weather changes every few loads: bursts of others' work, a
walk, outages. Beside it the same prediction is made every 0.1 ms, and noted when it first wants a
load cut, and keeps to it until it is. Without that probe every load ends at the same moment.
"""

import asyncio
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from _common import Claim, parser, write

from bodocache.cache import Cache, warm
from bodocache.clock import VirtualClock
from bodocache.move.choice import Proposal, Why
from bodocache.move.load import Load
from bodocache.move.queue import CHUNK_S
from bodocache.pages import Tier
from bodocache.replay.simulate.profile import (
    EngineProfile,
    HostProfile,
    LinkProfile,
    ModelProfile,
    Profile,
    StorageProfile,
    TargetProfile,
)
from bodocache.replay.simulate.world import World, contents, engine_keys
from bodocache.testing.channel import Channel, Piece
from bodocache.testing.loop import run_virtual
from bodocache.testing.pace import Pace, Weather

SEEDS, LOADS, PAGES, PROMPTS = 20, 100, 300, 4
RATE, OP_NBYTES, PROBE_S, BOUND_S = 2e9, 2 << 20, 1e-4, CHUNK_S + 1e-3
WEATHERS = (Weather.BURSTY, Weather.DRIFTING, Weather.FAILING)
HASTE = 20.0  # bursts of 40 ms every 150 ms
MODEL = ModelProfile("small", 1e9, int(2e9), 8, 8, 64, 2, 4, 64, 2, 16)  # 128 KiB a page


class Probe:
    """Asks the decider's own outlook, and changes nothing."""

    def __init__(self, cache: Cache) -> None:
        self.late_s: list[tuple[float, float]] = []  # of each cut: after its turn, and the chunk
        self.chunks_s: list[list[float]] = []  # when each was begun and had ended; inf: not yet
        self.turned_s: dict[Load, float] = {}
        self._now_s = cache._orchestrator.now_s  # noqa: SLF001
        self._decider: Any = cache._orchestrator.decider  # noqa: SLF001 -- it looks inside

    def decide(self, load: Load, proposal: Proposal) -> int:
        """As the decider would by itself; notes when it did."""
        if proposal.why is Why.TARDY:
            now_s = self._now_s()
            turned_s = self.turned_s.pop(load, now_s)
            self.late_s.append((now_s - turned_s, self._chunk_s(turned_s)))
        return proposal.pages

    def watch(self, channel: Channel) -> None:
        """Note how long the chunks of ``channel`` take."""
        serve = channel._serve  # noqa: SLF001

        def noting(piece: Piece) -> None:
            chunk_s, end = [self._now_s(), math.inf], piece.on_end
            self.chunks_s.append(chunk_s)

            def ended(has_failed: bool) -> None:  # noqa: FBT001 -- as a channel calls it
                chunk_s[1] = self._now_s()
                end(has_failed)

            piece.on_end = ended
            serve(piece)

        channel._serve = noting  # type: ignore[method-assign]  # noqa: SLF001

    def _chunk_s(self, at_s: float) -> float:
        """How long the chunk took that was under way at ``at_s``, or has until now; 0: none was."""
        begun_s, ended_s = next(it for it in reversed(self.chunks_s) if it[0] <= at_s)
        return min(ended_s, self._now_s()) - begun_s if at_s <= ended_s else 0.0

    def look(self) -> None:
        """Note which loads the prediction would have cut as of now."""
        decider, now_s = self._decider, self._now_s()
        watched = list(decider._watched.values())  # noqa: SLF001
        for one, choice in zip(watched, decider._outlook.look(watched, now_s), strict=True):  # noqa: SLF001
            if choice is None or not one.is_begun:
                continue
            wants_cut = choice.cut_at >= 0 or not choice.is_whole
            if wants_cut and not decider._nearly_over(one):  # noqa: SLF001
                self.turned_s.setdefault(one.load, now_s)
            else:
                self.turned_s.pop(one.load, None)

    async def run(self) -> None:
        """Look now and then, for ever."""
        while True:
            self.look()
            await asyncio.sleep(PROBE_S)


def profile(weather: Weather) -> Profile:
    """A small model, whose pages take as long to compute as to read, 65 us."""
    pages = PROMPTS * PAGES
    engine = EngineProfile(
        gpus=1,
        peak_flops=1e15,
        mfu=0.5,
        hbm_bytes=MODEL.weight_bytes + 2 * PAGES * MODEL.page_nbytes,
        hbm_share=1.0,
        hbm_bytes_per_s=1e12,
    )
    link = LinkProfile(50e9, 1e-5)
    host = HostProfile(2 * pages * MODEL.page_nbytes, link, link)
    storage = StorageProfile(
        capacity_bytes=2 * pages * MODEL.page_nbytes,
        read=LinkProfile(RATE, 1e-4),
        write_bytes_per_s=RATE,
        op_bytes=OP_NBYTES,
        weather=weather,
    )
    return Profile(MODEL, engine, host, storage, TargetProfile(0.5, 1.0))


def simulate(
    weather: Weather, seed: int, *, probes: bool
) -> tuple[list[tuple[float, float]], list[float]]:
    """How late each cut was decided, and when each load had ended."""
    clock = VirtualClock()
    world = World.build(profile(Weather.STEADY), clock, seed, wrong_by=0.0, write_through=True)
    return run_virtual(_run(world, weather, seed, probes=probes), clock)


async def _run(
    world: World, weather: Weather, seed: int, *, probes: bool
) -> tuple[list[tuple[float, float]], list[float]]:
    random = np.random.default_rng([seed, 0xC07])
    ended_s: list[float] = []
    async with await world.open() as cache:
        probe = Probe(cache)
        cache._orchestrator.decider.consult(probe.decide)  # noqa: SLF001
        for prompt in range(PROMPTS):
            await _store(world, cache, _keys(prompt))
        for turn in range(3):  # the link is learned while it is calm
            await _load(world, cache, _keys(turn % PROMPTS), None)
        world.storage.pace = Pace(weather, seed, haste=HASTE)
        probe.watch(world.storage)
        watching = asyncio.ensure_future(probe.run()) if probes else None
        for _ in range(LOADS):
            prompt, start_s = int(random.integers(PROMPTS)), float(random.uniform(0.0, 0.04))
            await _load(world, cache, _keys(prompt), start_s)
            ended_s.append(world.clock.now_s())
        if watching is not None:
            watching.cancel()
    assert not world.wrong_pages
    return probe.late_s, ended_s


def _keys(prompt: int) -> list[bytes]:
    return engine_keys(prompt * 10_000 + np.arange(PAGES))


async def _store(world: World, cache: Cache, keys: list[bytes]) -> None:
    match = await cache.match_engine_keys(keys)
    slots = cache.acquire(PAGES)
    world.device.words[slots] = contents(match.keys)
    async with cache.store(match, slots) as store:
        await store.written


async def _load(world: World, cache: Cache, keys: list[bytes], start_s: float | None) -> None:
    """Load a prompt that lies on disk alone, and compare."""
    residency = cache._orchestrator.residency  # noqa: SLF001
    for tier in (Tier.DEVICE, Tier.HOST):
        residency.evict(tier, 1 << 20)
    match = await cache.match_engine_keys(keys)
    with cache.load(match, start_s=start_s) as load:
        loaded = await load
        expected = contents(match.keys[: loaded.pages])
        world.wrong_pages += int((world.device.words[loaded.slots] != expected).any(axis=1).sum())
    await load.released


def row_of(
    weather: Weather, seeds: int, simulated: Callable[..., Any] = simulate
) -> dict[str, Any]:
    """What the cuts of so many seeds came to."""
    late_s, is_same = [], True
    for seed in range(seeds):
        found, ended_s = simulated(weather, seed, probes=True)
        late_s += found
        if not seed:  # sums of other steps differ in their last bits
            is_same = np.allclose(ended_s, simulated(weather, seed, probes=False)[1], atol=1e-6)
    ordered = sorted(1e3 * after for after, _ in late_s) or [0.0]
    last = len(ordered) - 1
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {
        "weather": weather.value,
        "seeds": seeds,
        "loads": seeds * LOADS,
        "cuts": len(late_s),
        **{f"{name}_ms": round(ordered[math.ceil(it * last)], 3) for name, it in at.items()},
        "within_2_and_1_ms": _share(after <= BOUND_S + PROBE_S for after, _ in late_s),
        "within_its_chunk_and_1_ms": _share(
            after <= chunk + 1e-3 + PROBE_S for after, chunk in late_s
        ),
        "longest_chunk_ms": round(1e3 * max([chunk for _, chunk in late_s], default=0.0), 3),
        "probe_changes_nothing": is_same,
    }


def _share(of: Iterable[bool]) -> float:
    found = list(of)
    return round(sum(found) / max(1, len(found)), 4)


def claims(rows: list[dict[str, Any]]) -> list[Claim]:
    """Of each weather: by the chunk under way at the turn, and by a link's chunk of 2 ms."""
    return [
        claim
        for row in rows
        for claim in (
            Claim.at_least(
                f"decided within the chunk under way and 1 ms of the turn, {row['weather']}",
                *(row["within_its_chunk_and_1_ms"], 1.0, "of the cuts"),
            ),
            Claim.at_most(
                f"longest after the turn, {row['weather']}", row["max_ms"], 1e3 * BOUND_S, "ms"
            ),
        )
    ]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=SEEDS)
    chosen = arguments.parse_args()
    warm()
    rows = [row_of(weather, chosen.seeds) for weather in WEATHERS]
    write(chosen.json, rows, claims(rows))


if __name__ == "__main__":
    main()
