# SPDX-License-Identifier: Apache-2.0
"""What a planning window costs on one core, and what each of its stages gains.

Windows: demands for pages of a table of 10^6, drawn anew each time, after the caches were emptied
by a walk over 64 MiB. ``chains``: requests for 25 pages of one prefix; ``scattered``: every page of
another prefix, of a cluster of its own (no real window is that bad). Four of five demands are
loads, the others writes and prefetches, each request with a deadline of its own. ``full``: beside
100 tenants whose credits suffice, two links and a record of each request that loads, so that its
cut is decided; else none of these is given. ``evicts``: host and disk have no free place, so that
for each page that goes there another is to leave (``leave``). ``cpu``: the thread's own time, for a
machine that others use too.

Stages: the conversation trace (bench/_planner_trace.py), once with all of them, then with each
switched off: ``loss`` is how the totals change by it (us_per_window falls by the stage's cost).
Credits are measured against a flood. Overlap changes no op, only when a step may start.
"""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import Claim, parser, timing, write
from _planner_trace import STAGES, Run
from numpy.typing import NDArray

from bodocache import jit
from bodocache.pages import PAGE, Tier
from bodocache.plan import evict
from bodocache.plan.records import DEMAND, LINK, POLICY, REQUEST, TENANT, Feature, OpKind
from bodocache.plan.window import Inputs, Planner
from bodocache.replay.trace import load_trace

PAGES, RUN = 1_000_000, 25
KINDS = [OpKind.LOAD] * 8 + [OpKind.WRITE, OpKind.PREFETCH]
TRACE = Path(__file__).parents[2] / "shared" / "traces" / "conversation_trace.jsonl"
WINDOWS = {1_000: 1000, 10_000: 600, 100_000: 40, 1_000_000: 12}
SMALL_WINDOWS, FLOOD_REQUESTS, TENANTS = 100_000, 60, 100
_FLUSH = np.ones(8 << 20)
FIRST = "import planner; planner.first_call()"


class Table:
    """A page table in which half the pages lie on the host and half on disk."""

    def __init__(self, chance: np.random.Generator) -> None:
        rows = np.arange(PAGES)
        self.chance, self.pages = chance, np.zeros(PAGES, PAGE)
        self.pages["depth"] = rows % RUN
        self.pages["parent"] = np.where(rows % RUN, rows - 1, -1)
        self.pages["cluster"] = rows - rows % RUN
        self.pages["nbytes"], self.pages["frame"] = 65536, rows
        self.pages["heat"], self.pages["recompute_s"] = 1.0, 0.01
        self.pages["tiers"] = np.repeat(
            np.where(chance.random(PAGES // RUN) < 0.5, Tier.HOST.bit, Tier.DISK.bit), RUN
        )
        self.queues, self.policy = evict.open_queues(PAGES), np.zeros(1, POLICY)
        self.policy["half_life_s"], self.policy["chunk_nbytes"] = 600.0, 2 << 20

    def fill(self) -> None:
        """Queue the pages where they lie; from now on there is no room for another."""
        tiers, self.pages["tiers"] = self.pages["tiers"].copy(), 0
        for tier in (Tier.HOST, Tier.DISK):
            rows = np.flatnonzero(tiers & tier.bit)
            evict.arrive(self.pages, self.queues, self.policy, rows, int(tier), 0.0)
            self.policy["capacity_pages"][0, tier] = len(rows)

    def draw(self, count: int, shape: str) -> NDArray[np.void]:
        """``count`` demands."""
        requests, made = count // RUN, np.zeros(count, DEMAND)
        if shape == "scattered":
            prefixes = self.chance.integers(0, PAGES // RUN, count)
            made["page"] = prefixes * RUN + np.arange(count) % RUN
        else:
            first = self.chance.integers(0, PAGES // RUN, requests) * RUN
            made["page"] = (first[:, None] + np.arange(RUN)).ravel()
        made["request"] = np.arange(count) // RUN
        made["kind"] = np.repeat(self.chance.choice(KINDS, requests), RUN)
        made["deadline_s"] = np.repeat(1000 + self.chance.random(requests), RUN)
        made["arrival_s"] = np.repeat(990 + np.sort(self.chance.random(requests)), RUN)
        return made

    def inputs(self, count: int, shape: str, *, full: bool) -> Inputs:
        """One window."""
        demands = self.draw(count, shape)
        bare = Inputs(demands, self.pages, self.policy)
        if not full:
            return bare
        demands["tenant"] = demands["request"] % TENANTS
        tenants, links = np.zeros(TENANTS, TENANT), np.zeros(2, LINK)
        tenants["cap"], tenants["rate"], tenants["held"] = 1 << 40, 1e9, 1 << 39
        links["rate"], links["drift"] = [20e9, 2e9], 0.05
        links["source"], links["destination"] = [Tier.HOST, Tier.DISK], [Tier.DEVICE, Tier.HOST]
        loads = np.flatnonzero(demands["kind"][::RUN] == OpKind.LOAD)
        requests = np.zeros(len(loads), REQUEST)
        requests["request"], requests["first"], requests["count"] = loads, loads * RUN, RUN
        requests["page_tokens"], requests["token_s"], requests["cut_at"] = 16, 1e-5, -1
        requests["layers"] = 32
        return bare._replace(tenants=tenants, links=links, requests=requests)


def measure_windows(
    table: Table, count: int, shape: str, *, full: bool = False, evicts: bool = False
) -> dict[str, Any]:
    planner, seconds, busy, ops, leave = Planner(), [], [], 0, 0
    for _ in range(WINDOWS[count] + 2):
        inputs = table.inputs(count, shape, full=full)
        _FLUSH.sum()
        begin, busy_begin = time.perf_counter(), time.thread_time()
        made = planner.plan(inputs, table.queues, evicts=evicts).ops
        busy.append(time.thread_time() - busy_begin)
        seconds.append(time.perf_counter() - begin)
        ops, leave = len(made), int(made["count"][made["kind"] == OpKind.EVICT].sum())
    taken, worked = timing(seconds[2:]), timing(busy[2:])
    return {
        "what": "window",
        "shape": shape,
        "full": full,
        "evicts": evicts,
        "demands": count,
        "ops": ops,
        "leave": leave,
        "windows": taken.runs,
        "p50_us": round(1e6 * taken.median_s, 1),
        "p99_us": round(1e6 * taken.p99_s, 1),
        "min_us": round(1e6 * min(seconds[2:]), 1),
        "cpu_p50_us": round(1e6 * worked.median_s, 1),
        "cpu_p99_us": round(1e6 * worked.p99_s, 1),
    }


def measure_growth(table: Table) -> dict[str, Any]:
    """Resident memory over 10^5 windows of up to 500 demands."""
    planner, windows = Planner(), [table.draw(RUN * n, "chains") for n in range(1, 21)]
    resident = []
    for i in range(SMALL_WINDOWS):
        if i in (1000, SMALL_WINDOWS - 1):
            resident.append(_resident_nbytes())
        planner.plan(Inputs(windows[i % 20], table.pages, table.policy), table.queues)
    grown = resident[1] - resident[0]
    return {"what": "growth", "windows": SMALL_WINDOWS, "resident_nbytes": grown}


def _resident_nbytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def first_call() -> None:
    """In a process of its own: print what the first window takes, and what warming took."""
    begin = time.perf_counter()
    jit.warm()
    warmed = time.perf_counter()
    table = Table(np.random.default_rng(0))
    inputs = Inputs(table.draw(10_000, "chains"), table.pages, table.policy)
    planner, called = Planner(), time.perf_counter()
    planner.plan(inputs, table.queues)
    print(time.perf_counter() - called, warmed - begin)


def measure_first_call() -> dict[str, Any]:
    command = [sys.executable, "-c", FIRST]
    told = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    ).stdout.split()
    call_s, warm_s = map(float, told)
    return {
        "what": "first call",
        "demands": 10_000,
        "call_ms": round(1e3 * call_s, 2),
        "warm_from_disk_ms": round(1e3 * warm_s, 1),
    }


def measure_stages(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        print("no conversation trace: stages are not measured", file=sys.stderr)
        return []
    trace = load_trace(path)
    whole = Run(trace, 0).run()
    rows = [{"what": "stage", "stage": "all on", **whole}]
    for stage, off in STAGES.items():
        rows.append(_loss(stage, whole, Run(trace, off).run()))
    by_heat = Run(trace, int(Feature.REUSE)).run()
    cold = Run(trace, int(Feature.REUSE), heat=False).run()
    rows.append(_loss("heat, where reuse is off", by_heat, cold))
    flooded = Run(trace, 0, flood=FLOOD_REQUESTS).run()
    rows.append({"what": "stage", "stage": "all on, flooded", **flooded})
    without = Run(trace, int(Feature.CREDITS), flood=FLOOD_REQUESTS).run()
    return [*rows, _loss("credits, flooded", flooded, without)]


def _loss(stage: str, whole: dict[str, Any], without: dict[str, Any]) -> dict[str, Any]:
    """What switching ``stage`` off changes."""
    loss = {name: round(without[name] - whole[name], 2) for name in whole}
    return {"what": "stage", "stage": stage, "off": without, "loss": loss}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("trace", nargs="?", type=Path, default=TRACE, help="a .jsonl trace")
    arguments = options.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    jit.warm()
    table = Table(np.random.default_rng(0))
    windows = [
        measure_windows(table, count, shape)
        for count in WINDOWS
        for shape in ("chains", "scattered")
    ]
    by = {(row["demands"], row["shape"]): row for row in windows}
    shapes = ("chains", "scattered")
    whole = [measure_windows(table, 10_000, shape, full=True) for shape in shapes]
    growth, first = measure_growth(table), measure_first_call()
    table.fill()
    crowded = [
        measure_windows(table, 10_000, shape, full=full, evicts=True)
        for full in (False, True)
        for shape in shapes
    ]
    claims = [
        *(
            Claim.at_most(
                f"10^4 demands, {shape}, {name}", by[10_000, shape][key] / 1e3, most, "ms"
            )
            for shape in shapes
            for name, key, most in (("p50", "p50_us", 1.5), ("p99", "p99_us", 3.0))
        ),
        *(
            Claim.at_most(f"the same, full, {name}, {row['shape']}", row[key] / 1e3, most, "ms")
            for row in whole
            for name, key, most in (("p50", "p50_us", 1.5), ("p99", "p99_us", 3.0))
        ),
        *(
            Claim.at_most(
                f"no free place, {'full' if row['full'] else 'bare'}, {row['shape']}, {name}",
                *(row[key] / 1e3, most, "ms"),
            )
            for row in crowded
            for name, key, most in (("p50", "p50_us", 3.0), ("p99", "p99_us", 6.0))
        ),
        *(
            Claim.at_most(
                f"10^6 demands, {shape}, p50", by[1_000_000, shape]["p50_us"] / 1e3, 150.0, "ms"
            )
            for shape in shapes
        ),
        Claim.at_most("first call after start", first["call_ms"], 50.0, "ms"),
        Claim.at_most("growth over 10^5 windows", growth["resident_nbytes"] / 2**20, 1.0, "MiB"),
    ]
    features = [str(feature.name) for feature in Feature]
    write(
        arguments.json,
        [*windows, *whole, *crowded, growth, first, *measure_stages(arguments.trace)],
        claims,
        features=features,
    )


if __name__ == "__main__":
    main()
