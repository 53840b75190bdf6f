# SPDX-License-Identifier: Apache-2.0
"""On time or not, under every policy: a grid of loads, disk rates and weathers, in virtual time.

The same orchestrator, links and planner as with real bytes (docs/simulate.md). Rates are wrong by
up to 30 % in what the planner is told. ``--requests``: of a slice; ``--whole``: three points with
all requests of the trace, too; ``--judge``: decisions of each kind that are run again the other way
at every point.
"""

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import _tardiness_plot
import _traces
from _common import Claim, parser, write

from bodocache.cache import warm
from bodocache.replay.simulate.judge import judge
from bodocache.replay.simulate.names import BASELINES, ORACLE, OURS
from bodocache.replay.simulate.outcome import figures
from bodocache.replay.simulate.policies import POLICIES
from bodocache.replay.simulate.profile import load_profile
from bodocache.replay.simulate.run import Scenario, simulate
from bodocache.replay.trace import Trace, load_trace
from bodocache.testing.pace import Weather

PROFILE = "h100-llama-3.1-8b"
LOADS = (0.2, 0.35, 0.5, 0.6)  # seconds of cold prefill a second; decode comes on top
DISKS = (1.75e9, 3.5e9, 7e9)  # bytes a second
WEATHERS = (Weather.STEADY, Weather.BURSTY, Weather.FAILING)
WHOLE = ((0.35, 7e9, Weather.BURSTY), (0.5, 3.5e9, Weather.STEADY), (0.5, 7e9, Weather.FAILING))
FIRST, REQUESTS = 6000, 1000
Point = tuple[float, float, Weather]
NAMES = (OURS, *BASELINES, ORACLE)


def main() -> None:
    arguments = parser(__doc__)
    _traces.add_argument(arguments)
    arguments.add_argument("--requests", type=int, default=REQUESTS)
    arguments.add_argument("--loads", type=float, nargs="+", default=LOADS)
    arguments.add_argument("--disks", type=float, nargs="+", default=DISKS, help="bytes a second")
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--judge", type=int, default=0, metavar="N")
    arguments.add_argument("--whole", action="store_true")
    arguments.add_argument("--plot", type=Path, help="draw the grid here (.svg or .png)")
    chosen = arguments.parse_args()
    trace = load_trace(_traces.require(chosen.trace))
    warm()
    points = list(itertools.product(chosen.loads, chosen.disks, WEATHERS))
    rows = [*grid(trace, points, chosen)]
    if chosen.whole:
        rows += [row for point in WHOLE for row in at(trace, *point, Scenario(point[0]), 0)]
    if chosen.plot:
        _tardiness_plot.draw(chosen.plot, [row for row in rows if row["is_slice"]], NAMES)
    extra = {"trace": chosen.trace.name, "profile": PROFILE, "slice": [FIRST, chosen.requests]}
    write(chosen.json, rows, [*claims(rows)], **extra)


def grid(
    trace: Trace, points: Sequence[Point], chosen: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Points are independent, and each is what it is on any number of processes."""
    with ProcessPoolExecutor(chosen.processes) as pool:
        found = [
            pool.submit(
                at, trace, *point, Scenario(point[0], FIRST, chosen.requests, seed), chosen.judge
            )
            for seed, point in enumerate(points, 1)
        ]
        for rows in found:
            yield from rows.result()


def at(
    trace: Trace, load: float, disk: float, weather: Weather, scenario: Scenario, sample: int
) -> list[dict[str, Any]]:
    """One row for each policy at one point."""
    rows = []
    profile = load_profile(PROFILE).with_storage(read_bytes_per_s=disk, weather=weather)
    for name in NAMES:
        begun_s = time.process_time()
        run = simulate(trace, profile, POLICIES[name](), scenario)
        cpu_s = time.process_time() - begun_s
        row = {
            "load": load,
            "disk_bytes_per_s": disk,
            "weather": str(weather),
            "seed": scenario.seed,
            "is_slice": scenario.requests is not None,
            "policy": name,
            **{key: _rounded(value) for key, value in figures(run).as_dict().items()},
            "cpu_s": round(cpu_s, 2),
        }
        if sample and name == OURS:
            verdict = judge(trace, profile, name, scenario, run, sample)
            row |= {key: getattr(verdict, key) for key in verdict.__dataclass_fields__}
        print(
            f"load {load:g}, disk {disk / 1e9:g} GB/s, {weather:8} {name:17}"
            f" mean {row['ttft_mean_s']:8.3f} s, on time {row['slo_attainment']:.1%},"
            f" {row['cuts']} cuts, {cpu_s:.1f} s of CPU",
            flush=True,
        )
        rows.append(row)
    return rows


def claims(rows: Sequence[dict[str, Any]]) -> Iterator[Claim]:
    points: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        key = (row["load"], row["disk_bytes_per_s"], row["weather"], row["is_slice"])
        points.setdefault(key, {})[row["policy"]] = row
    on_time = [_slo(point) for point in points.values()]
    mean_s = [_mean(point) for point in points.values()]
    yield Claim.at_most(
        "SLO attainment: most that ours lies below the best baseline at a point",
        max(best - ours for ours, best, _ in on_time),
        0.01,
        "",
    )
    yield Claim.at_most(
        "mean TTFT: most that ours lies above the best baseline at a point",
        max(ours / best - 1 for ours, best, _ in mean_s),
        0.01,
        "of it",
    )
    gaps = [(ours - best) / (top - best) for ours, best, top in on_time if top - best > 0.02]
    if gaps:
        yield Claim.at_least("SLO: least part of the oracle's gap closed", min(gaps), 0.5, "")
    spared = [
        1 - (1 - ours) / (1 - best)
        for ours, best, top in on_time
        if best < 1 and 1 - (1 - top) / (1 - best) >= 0.45
    ]
    if spared:
        yield Claim.at_least("SLO misses spared where the oracle spares 45 %", min(spared), 0.3, "")
    yield Claim.at_most("wrong pages", sum(row["wrong_pages"] for row in rows), 0, "")
    judged = [row for row in rows if "cuts_judged" in row]
    if judged:
        cuts = sum(row["cuts_judged"] for row in judged)
        false = sum(row["false_cuts"] for row in judged)
        yield Claim.at_most("false cuts", false / max(1, cuts), 0.05, f"of {cuts}")
    whole = [row["cpu_s"] for row in rows if not row["is_slice"] and row["policy"] == OURS]
    if whole:
        yield Claim.at_most("CPU of one run of the whole trace", max(whole), 60.0, "s")


def _slo(point: dict[str, dict[str, Any]]) -> tuple[float, float, float]:
    """Ours, the best baseline's and the oracle's."""
    of = {name: row["slo_attainment"] for name, row in point.items()}
    return of[OURS], max(of[name] for name in BASELINES), of[ORACLE]


def _mean(point: dict[str, dict[str, Any]]) -> tuple[float, float, float]:
    of = {name: row["ttft_mean_s"] for name, row in point.items()}
    return of[OURS], min(of[name] for name in BASELINES), of[ORACLE]


def _rounded(value: float) -> float:
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
