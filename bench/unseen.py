# SPDX-License-Identifier: Apache-2.0
"""Policies on traces no constant was chosen on, and beside a tenant that scans.

Workloads of every shape and of several seeds, at capacities relative to the live set: the smallest
capacity at which the optimum hits all that can be hit. Then a tenant streams ten times the capacity
once, quickly or slowly: what does it cost the others?
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import _traces
import numpy as np
from _common import Claim, parser, write

from bodocache import jit
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
MOST_BELOW, LEAST_ABOVE, MOST_LOST = 0.01, 0.05, 0.03  # relative

SCANNED_SHARES = (1 / 4, 1, 4)
SCANNED_CAPACITIES = 10  # pages of a scan: ten times the capacity
SCAN_LASTS = {"quick": 0.02, "slow": 0.5}  # of the trace's time, after a quarter of it


def main() -> None:
    arguments = parser(__doc__)
    _traces.add_argument(arguments)
    arguments.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of the workloads")
    arguments.add_argument("--requests", type=int, default=REQUESTS, help="of each workload")
    chosen = arguments.parse_args()
    _traces.require(chosen.trace)
    jit.warm()
    rows = [*unseen_rows(chosen)]
    rows += [*scan_rows(chosen.trace, chosen.requests)]
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
            hits = {
                policy.value: int(serve(policy, touches, capacity).hits.sum())
                for policy in POLICIES
            }
            yield {
                **of,
                "touches": trace.touches,
                "live_pages": live,
                "share": share,
                "capacity_pages": capacity,
                "hits": hits,
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
            yield from _scanned(name, base, alone, capacity)


def _scanned(
    name: str, base: Sequence[TraceRequest], alone: Trace, capacity: int
) -> Iterator[dict[str, Any]]:
    """What a scan of ten times the capacity costs the others, under every policy."""
    span_s, pages = float(alone.timestamps_s[-1]), SCANNED_CAPACITIES * capacity
    without = _hits_of_others(alone, capacity)
    for speed, lasts in SCAN_LASTS.items():
        scan = Scan(pages, span_s / 4, pages / (lasts * span_s))
        mixed = build_trace(name, with_scan(iter(base), scan, 512))
        beside = _hits_of_others(mixed, capacity)
        yield {
            "scanned": name,
            "scan": speed,
            "scan_pages": pages,
            "capacity_pages": capacity,
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


def claims(rows: list[dict[str, Any]]) -> Iterator[Claim]:
    unseen = [row["hits"] for row in rows if "shape" in row]
    for name, rivals in (("LRU and GDSF", RIVALS), ("LRU and all forms of GDSF", RIVALS + GDSFS)):
        worst = min(hits[JUDGED] / max(hits[rival] for rival in rivals) - 1 for hits in unseen)
        yield Claim.at_least(
            f"unseen, worst, relative to the best of {name}", worst, -MOST_BELOW, ""
        )
    above = float(np.mean([hits[JUDGED] / hits[Policy.LRU] - 1 for hits in unseen]))
    yield Claim.at_least("unseen, mean, relative to LRU", above, LEAST_ABOVE, "")
    lost = [
        1 - row["hits_beside"][JUDGED] / row["hits_alone"][JUDGED]
        for row in rows
        if "scanned" in row
    ]
    yield Claim.at_most("a scan, worst: the others' hits lost", max(lost), MOST_LOST, "")


if __name__ == "__main__":
    main()
