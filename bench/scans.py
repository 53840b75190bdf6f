# SPDX-License-Identifier: Apache-2.0
"""What a tenant that streams ten times the capacity costs the others: every shape, several seeds.

As in bench/unseen.py, which compares more policies at one seed: the scan comes after a quarter of
the trace, quickly or slowly, and what the others hit is compared with what they hit without it.
The worst of a shape is what is claimed, not the mean.
"""

from collections.abc import Iterator
from typing import Any

import _traces
import numpy as np
from _common import Claim, parser, write

from bodocache import jit
from bodocache.replay.policy import Policy, serve
from bodocache.replay.shapes import SCANNER, Scan, with_scan, workload
from bodocache.replay.trace import Trace, build_trace

SEEDS = (101, 202, 303, 404)
SHAPES = ("chat", "tenants", "documents", "agents")
REQUESTS = 6_000
SHARES = (1 / 4, 1, 2, 4)  # capacity, of the live set
POLICIES = (Policy.LEARNED, Policy.LRU)
SCANNED_CAPACITIES = 10
SCAN_LASTS = {"quick": 0.02, "slow": 0.5}  # of the trace's time, after a quarter of it
MOST_LOST = 3.0  # % of the others' hits


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments.add_argument("--requests", type=int, default=REQUESTS)
    chosen = arguments.parse_args()
    jit.warm()
    rows = [
        row
        for shape in SHAPES
        for seed in chosen.seeds
        for row in scan_rows(shape, seed, chosen.requests)
    ]
    write(chosen.json, rows, [*claims(rows)], requests=chosen.requests, seeds=[*chosen.seeds])


def scan_rows(shape: str, seed: int, requests: int) -> Iterator[dict[str, Any]]:
    """At each capacity, quickly and slowly."""
    base = [*workload(shape, seed=seed, requests=requests).requests()]
    alone = build_trace(shape, base)
    live, span_s = _traces.live_pages(_traces.touches_of(alone)), float(alone.timestamps_s[-1])
    for share in SHARES:
        capacity = min(int(share * live), alone.distinct - 1)
        without = hits_of_others(alone, capacity)
        for speed, lasts in SCAN_LASTS.items():
            pages = SCANNED_CAPACITIES * capacity
            scan = Scan(pages, span_s / 4, pages / (lasts * span_s))
            mixed = build_trace(shape, with_scan(iter(base), scan, 512))
            yield {
                "shape": shape,
                "seed": seed,
                "share": share,
                "capacity_pages": capacity,
                "scan": speed,
                "hits_alone": without,
                "hits_beside": hits_of_others(mixed, capacity),
            }


def hits_of_others(trace: Trace, capacity: int) -> dict[str, int]:
    """By policy."""
    touches = _traces.touches_of(trace)
    others = np.array([name != SCANNER for name in trace.tenant_names])[trace.tenants]
    return {
        policy.value: int(serve(policy, touches, capacity).hits[others].sum())
        for policy in POLICIES
    }


def claims(rows: list[dict[str, Any]]) -> Iterator[Claim]:
    """The worst of each shape."""
    for shape in SHAPES:
        worst = max(
            100 * (1 - row["hits_beside"]["learned"] / row["hits_alone"]["learned"])
            for row in rows
            if row["shape"] == shape
        )
        yield Claim.at_most(
            f"a scan of {shape}: the others' hits lost, worst", worst, MOST_LOST, "%"
        )


if __name__ == "__main__":
    main()
