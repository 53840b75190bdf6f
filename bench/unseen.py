# SPDX-License-Identifier: Apache-2.0
"""Policies on traces no constant was chosen on, and beside a tenant that scans or comes late.

Workloads of every shape and of several seeds, at capacities relative to the live set: the smallest
capacity at which the optimum hits all that can be hit. The trace itself with a clock that runs
slower or faster. Then a tenant streams ten times the capacity once, quickly or slowly: what does it
cost the others? And a tenant whose pages are used again comes late: is a full tier open to it?
"""

import argparse
import heapq
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import _traces
import numpy as np
from _common import Claim, parser, write

from bodocache import jit
from bodocache.replay.policies.model import Touches, checked
from bodocache.replay.policy import Policy, serve
from bodocache.replay.requests import TraceRequest, read_trace
from bodocache.replay.shapes import SCANNER, WORKLOADS, Scan, with_scan, workload
from bodocache.replay.trace import Trace, build_trace, load_trace

SEEDS = (101, 202, 303)
REQUESTS = 6_000
SHARES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4)  # of the live set
JUDGED = Policy.LEARNED
RIVALS = (Policy.LRU, Policy.GDSF)
GDSFS = (Policy.LFUDA, Policy.PERFECT_LFUDA, Policy.PERFECT_GDSF)  # GDSF's other forms
OTHERS = (Policy.HEAT, Policy.LHD, Policy.S3_FIFO)
POLICIES = (JUDGED, *RIVALS, *GDSFS, *OTHERS, Policy.MIN)
MOST_BELOW, LEAST_ABOVE, MOST_LOST = 1.0, 5.0, 3.0  # %, relative

CLOCKS = (0.01, 0.1, 1, 10, 100)  # seconds for each of the trace's
CLOCK_SHARES = (1 / 4, 1, 4)

SCANNED_SHARES = (1 / 4, 1, 4)
SCANNED_CAPACITIES = 10  # pages of a scan: ten times the capacity
LATE = "late"
LATE_SHARES = (1 / 4, 1, 2)
LATE_PAIRS = (
    ("chat", "chat"),
    ("documents", "chat"),
    ("chat", "documents"),
    ("agents", "documents"),
)  # who was there, who comes after half of the time
SCAN_LASTS = {"quick": 0.02, "slow": 0.5}  # of the trace's time, after a quarter of it


def main() -> None:
    arguments = parser(__doc__)
    _traces.add_argument(arguments)
    arguments.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of the workloads")
    arguments.add_argument("--requests", type=int, default=REQUESTS, help="of each workload")
    chosen = arguments.parse_args()
    _traces.require(chosen.trace)
    jit.warm()
    rows = [*unseen_rows(chosen), *clock_rows(chosen.trace)]
    rows += [*scan_rows(chosen.trace, chosen.requests), *late_rows(chosen.requests)]
    extra = {"trace": chosen.trace.name, "requests": chosen.requests, "seeds": [*chosen.seeds]}
    write(chosen.json, rows, [*claims(rows)], **extra)


def unseen_rows(chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for shape in WORKLOADS:
        for seed in chosen.seeds:
            trace = load_trace(workload(shape, seed=seed, requests=chosen.requests))
            yield from _capacity_rows(trace, {"shape": shape, "seed": seed})


def _capacity_rows(trace: Trace, of: dict[str, Any]) -> Iterator[dict[str, Any]]:
    touches = _traces.touches_of(trace)
    live, longest = _traces.live_pages(touches), np.diff(touches.offsets).max()
    for share in SHARES:
        capacity = int(share * live)
        if longest <= capacity < trace.distinct:
            yield {
                **of,
                "touches": trace.touches,
                "live_pages": live,
                "share": share,
                "capacity_pages": capacity,
                "hits": _hits(touches, capacity),
            }


def _hits(touches: Touches, capacity: int) -> dict[str, int]:
    return {policy.value: int(serve(policy, touches, capacity).hits.sum()) for policy in POLICIES}


def clock_rows(path: Path) -> Iterator[dict[str, Any]]:
    touches = _traces.touches_of(load_trace(path))
    live = _traces.live_pages(touches)
    for clock in CLOCKS:
        run = checked(touches._replace(timestamps_s=touches.timestamps_s * clock))
        for share in CLOCK_SHARES:
            capacity = int(share * live)
            yield {
                "clock": clock,
                "touches": len(touches.ids),
                "share": share,
                "capacity_pages": capacity,
                "hits": _hits(run, capacity),
            }


def scan_rows(path: Path, requests: int) -> Iterator[dict[str, Any]]:
    named = {
        shape: [*workload(shape, seed=SEEDS[0], requests=requests).requests()]
        for shape in ("chat", "documents", "agents")
    }
    for name, base in {"conversation": [*read_trace(path)], **named}.items():
        alone = build_trace(name, base)
        live = _traces.live_pages(_traces.touches_of(alone))
        for share in SCANNED_SHARES:
            capacity = min(int(share * live), alone.distinct - 1)
            of = {"scanned": name, "share": share, "capacity_pages": capacity}
            yield from _scanned(of, base, alone)


def _scanned(
    of: dict[str, Any], base: Sequence[TraceRequest], alone: Trace
) -> Iterator[dict[str, Any]]:
    """What a scan of ten times the capacity costs the others, under every policy."""
    capacity = of["capacity_pages"]
    span_s, pages = float(alone.timestamps_s[-1]), SCANNED_CAPACITIES * capacity
    without = _hits_of_others(alone, capacity)
    for speed, lasts in SCAN_LASTS.items():
        scan = Scan(pages, span_s / 4, pages / (lasts * span_s))
        mixed = build_trace(of["scanned"], with_scan(iter(base), scan, 512))
        beside = _hits_of_others(mixed, capacity)
        yield {
            **of,
            "scan": speed,
            "scan_pages": pages,
            "hits_alone": without,
            "hits_beside": beside,
        }


def _hits_of_others(trace: Trace, capacity: int) -> dict[str, int]:
    touches = _traces.touches_of(trace)
    names = np.array([name != SCANNER for name in trace.tenant_names])
    others = names[trace.tenants]
    return {
        policy.value: int(serve(policy, touches, capacity).hits[others].sum())
        for policy in POLICIES
    }


def late_rows(requests: int) -> Iterator[dict[str, Any]]:
    for first, second in LATE_PAIRS:
        base = [*workload(first, seed=SEEDS[0], requests=requests).requests()]
        comes = workload(second, seed=SEEDS[1], requests=requests // 2).requests()
        shift = base[-1].timestamp_ms // 2, max(max(each.hash_ids) for each in base) + 1
        moved = (_moved(request, *shift) for request in comes)
        both = heapq.merge(base, moved, key=lambda request: request.timestamp_ms)
        trace = build_trace(first, both)
        touches = _traces.touches_of(trace)
        is_late = np.array([name == LATE for name in trace.tenant_names])[trace.tenants]
        live = _traces.live_pages(touches)
        for share in LATE_SHARES:
            found = [serve(policy, touches, int(share * live)).hits for policy in POLICIES]
            yield {
                "there": first,
                "comes": second,
                "share": share,
                "capacity_pages": int(share * live),
                "hits_late": _sums(found, is_late),
                "hits_there": _sums(found, ~is_late),
            }


def _moved(request: TraceRequest, later_ms: int, above: int) -> TraceRequest:
    ids = tuple(above + each for each in request.hash_ids)
    at_ms = request.timestamp_ms + later_ms
    return TraceRequest(at_ms, request.input_length, request.output_length, ids, LATE)


def _sums(found: Sequence[Any], chosen: Any) -> dict[str, int]:
    pairs = zip(POLICIES, found, strict=True)
    return {policy.value: int(hits[chosen].sum()) for policy, hits in pairs}


def claims(rows: list[dict[str, Any]]) -> Iterator[Claim]:
    unseen = [row["hits"] for row in rows if "shape" in row]
    for name, rivals in (("LRU and GDSF", RIVALS), ("LRU and all forms of GDSF", RIVALS + GDSFS)):
        worst = min(_against(hits, rivals) for hits in unseen)
        claim = f"unseen, worst, relative to the best of {name}"
        yield Claim.at_least(claim, worst, -MOST_BELOW, "%")
    above = float(np.mean([_against(hits, (Policy.LRU,)) for hits in unseen]))
    yield Claim.at_least("unseen, mean, relative to LRU", above, LEAST_ABOVE, "%")
    clocks = {row["clock"] for row in rows if "clock" in row}
    for clock in sorted(clocks):
        hits = [row["hits"] for row in rows if row.get("clock") == clock]
        worst = min(_against(each, RIVALS) for each in hits)
        name = f"clock x {clock:g}, worst, relative to the best of LRU and GDSF"
        yield Claim.at_least(name, worst, -MOST_BELOW, "%")
    for share in SCANNED_SHARES:
        lost = max(_lost(row) for row in rows if "scanned" in row and row["share"] == share)
        name = f"a scan, {share:g} live sets: the others' hits lost, worst"
        yield Claim.at_most(name, lost, MOST_LOST, "%")
    late = min(_against(row["hits_late"], RIVALS) for row in rows if "comes" in row)
    name = "who comes late, worst, relative to the best of LRU and GDSF"
    yield Claim.at_least(name, late, -MOST_BELOW, "%")


def _against(hits: dict[str, int], rivals: Sequence[Policy]) -> float:
    """How far above the best of them, in %."""
    return 100 * (hits[JUDGED] / max(hits[rival] for rival in rivals) - 1)


def _lost(row: dict[str, Any]) -> float:
    return float(100 * (1 - row["hits_beside"][JUDGED] / row["hits_alone"][JUDGED]))


if __name__ == "__main__":
    main()
