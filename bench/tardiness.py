# SPDX-License-Identifier: Apache-2.0
"""On time or not, under every policy: a grid of loads, disk rates and weathers, in virtual time.

The same orchestrator, links and planner as with real bytes (docs/simulate.md). Rates are wrong by
up to 30 % in what the planner is told. ``--requests``: of a slice; ``--whole``: three points with
all requests of the trace, too; ``--judge``: decisions of each kind that are run again the other way
at every point.

The file is written after every point. With ``--resume`` what it holds is not run again, so that a
grid can be run in parts; ``--loads`` and ``--disks`` choose some, ``--minutes`` ends a part. Points
that it holds and that were not judged are judged then, if that is asked for. ``_tardiness_doc.py``
puts it into docs/simulate.md.
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
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
Row = dict[str, Any]
NAMES = (OURS, *BASELINES, ORACLE)


@dataclass(frozen=True, slots=True)
class Point:
    """Where all policies are compared; ``requests`` None: all of the trace."""

    load: float
    disk: float
    weather: Weather
    seed: int
    first: int
    requests: int | None

    @property
    def key(self) -> tuple[object, ...]:
        """What its rows say."""
        return self.load, self.disk, str(self.weather), self.requests is not None

    @property
    def scenario(self) -> Scenario:
        """What is run there."""
        return Scenario(self.load, self.first, self.requests, self.seed)


def main() -> None:
    arguments = parser(__doc__)
    _traces.add_argument(arguments)
    arguments.add_argument("--requests", type=int, default=REQUESTS)
    arguments.add_argument("--loads", type=float, nargs="+", default=LOADS)
    arguments.add_argument("--disks", type=float, nargs="+", default=DISKS, help="bytes a second")
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--judge", type=int, default=0, metavar="N")
    arguments.add_argument("--whole", action="store_true")
    arguments.add_argument("--resume", action="store_true", help="keep what --json FILE holds")
    arguments.add_argument("--minutes", type=float, default=math.inf, help="begin no point later")
    arguments.add_argument("--plot", type=Path, help="draw the grid here (.svg or .png)")
    chosen = arguments.parse_args()
    trace = load_trace(_traces.require(chosen.trace))
    warm()
    rows = _kept(Path(chosen.json)) if chosen.resume else []
    extra = {"trace": chosen.trace.name, "profile": PROFILE, "slice": [FIRST, chosen.requests]}
    for more in run(trace, points(chosen), rows, chosen):
        again = {_place(row) for row in more}
        rows = sorted([*(row for row in rows if _place(row) not in again), *more], key=_place)
        write(chosen.json, rows, [*claims(rows)], **extra)
    if chosen.plot:
        _tardiness_plot.draw(chosen.plot, [row for row in rows if row["is_slice"]], NAMES)
    write(chosen.json, rows, [*claims(rows)], **extra)


def points(chosen: argparse.Namespace) -> list[Point]:
    """The grid; each point has a seed of its own, whichever are chosen."""
    grid = [*itertools.product(LOADS, DISKS, WEATHERS)]
    asked = itertools.product(chosen.loads, chosen.disks, WEATHERS)
    found = [
        Point(*at, grid.index(at) + 1 if at in grid else 0, FIRST, chosen.requests) for at in asked
    ]
    return found + [Point(*at, 0, 0, None) for at in WHOLE if chosen.whole]


def run(
    trace: Trace, asked: Sequence[Point], rows: Sequence[Row], chosen: argparse.Namespace
) -> Iterator[list[Row]]:
    """The rows that are missing, point by point: each is what it is on any number of processes."""
    ends_s = time.monotonic() + 60.0 * chosen.minutes
    there = {(*_key(row), row["policy"]) for row in rows if not (chosen.judge and _is_open(row))}
    with ProcessPoolExecutor(chosen.processes) as pool:
        found = []
        for point in asked:
            names = [name for name in NAMES if (*point.key, name) not in there]
            if names:
                found.append(pool.submit(at, trace, point, names, chosen.judge, ends_s))
        for one in as_completed(found):
            if one.result():
                yield one.result()


def at(trace: Trace, point: Point, names: Sequence[str], sample: int, ends_s: float) -> list[Row]:
    """One row for each policy at one point; none after ``ends_s``."""
    rows: list[Row] = []
    profile = load_profile(PROFILE)
    profile = profile.with_storage(read_bytes_per_s=point.disk, weather=point.weather)
    for name in names if time.monotonic() < ends_s else ():
        begun_s = time.process_time()
        run = simulate(trace, profile, POLICIES[name](), point.scenario)
        cpu_s = time.process_time() - begun_s
        row: Row = {
            "load": point.load,
            "disk_bytes_per_s": point.disk,
            "weather": str(point.weather),
            "seed": point.seed,
            "is_slice": point.requests is not None,
            "policy": name,
            **{key: _rounded(value) for key, value in figures(run).as_dict().items()},
            "cpu_s": round(cpu_s, 2),
        }
        if sample and name == OURS and point.requests is not None:
            verdict = judge(trace, profile, name, point.scenario, run, sample)
            row |= {key: getattr(verdict, key) for key in verdict.__dataclass_fields__}
        print(
            f"load {point.load:g}, disk {point.disk / 1e9:g} GB/s, {point.weather:8} {name:17}"
            f" mean {row['ttft_mean_s']:8.3f} s, on time {row['slo_attainment']:.1%},"
            f" {row['cuts']} cuts, {cpu_s:.1f} s of CPU",
            flush=True,
        )
        rows.append(row)
    return rows


def _kept(file: Path) -> list[Row]:
    """The rows of an earlier part; none where there is no file."""
    if not file.exists():
        return []
    rows: list[Row] = json.loads(file.read_text(encoding="utf-8"))["rows"]
    return rows


def _key(row: Row) -> tuple[object, ...]:
    return row["load"], row["disk_bytes_per_s"], row["weather"], row["is_slice"]


def _is_open(row: Row) -> bool:
    """Whether its decisions can be judged, and were not."""
    return row["policy"] == OURS and row["is_slice"] and "cuts_judged" not in row


def _place(row: Row) -> tuple[object, ...]:
    """Where it stands among the rows, in whatever parts they were run."""
    weather = WEATHERS.index(Weather(row["weather"]))
    where = row["load"], row["disk_bytes_per_s"], weather
    return not row["is_slice"], *where, NAMES.index(row["policy"])


def claims(rows: Sequence[Row]) -> Iterator[Claim]:
    points: dict[tuple[object, ...], dict[str, Row]] = {}
    for row in rows:
        points.setdefault(_key(row), {})[row["policy"]] = row
    points = {key: of for key, of in points.items() if of.keys() >= {*NAMES}}
    if not points:
        return
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


def _slo(point: dict[str, Row]) -> tuple[float, float, float]:
    """Ours, the best baseline's and the oracle's."""
    of = {name: row["slo_attainment"] for name, row in point.items()}
    return of[OURS], max(of[name] for name in BASELINES), of[ORACLE]


def _mean(point: dict[str, Row]) -> tuple[float, float, float]:
    of = {name: row["ttft_mean_s"] for name, row in point.items()}
    return of[OURS], min(of[name] for name in BASELINES), of[ORACLE]


def _rounded(value: float) -> float:
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
