# SPDX-License-Identifier: Apache-2.0
"""Recompute seconds that every policy saves, beside the bound on what any policy can save.

The default trace is Mooncake's conversation trace where it lies in ../shared/traces. Windows make
long traces solvable: rows say how much they loosen the bound, and what the solver takes.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _common import Claim, parser, write
from policies import CAPACITIES, CONVERSATION

from bodocache import jit
from bodocache.replay.bounds import WINDOW_REQUESTS, bound_saved_s
from bodocache.replay.policies.model import Floats, checked
from bodocache.replay.policy import Policy, Recompute, Touches, simulate
from bodocache.replay.policy_report import saved_s
from bodocache.replay.trace import load_trace

WINDOWS = (500, 1_000, 2_000, 4_000, WINDOW_REQUESTS)
MIN_GAP = 0.05  # what MIN saves can be had: the bound is not looser than this


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("trace", nargs="?", type=Path, help="a .jsonl or .jsonl.gz trace")
    chosen = arguments.parse_args()
    path = chosen.trace or CONVERSATION
    if not path.exists():
        sys.exit(f"{path.name}: not there; pass the path of a trace (bodocache trace fetch)")
    trace = load_trace(path)
    jit.warm()
    touches = checked(
        Touches(trace.pages, trace.offsets, trace.parent, trace.depth, trace.timestamps_s)
    )
    seconds = Recompute().seconds(trace.depth)
    rows = [row for capacity in CAPACITIES for row in rows_of(touches, capacity, seconds)]
    claims = [*claims_of(rows)]
    extra = {"trace": path.name, "requests": trace.num_requests}
    write(chosen.json, rows, claims, **extra, recompute=Recompute()._asdict())


def rows_of(touches: Touches, capacity: int, seconds: Floats) -> Iterator[dict[str, Any]]:
    for policy in Policy:
        saved = saved_s(simulate(policy, touches, capacity).hits)
        yield {"policy": policy.value, "capacity_pages": capacity, "saved_s": round(saved, 3)}
    for window in WINDOWS:
        begin = time.perf_counter()
        found = bound_saved_s(touches, capacity, seconds, window_requests=window)
        yield {
            "policy": "bound",
            "capacity_pages": capacity,
            "window_requests": window,
            "saved_s": round(found.saved_s, 3),
            "windows": found.windows,
            "orders": found.orders,
            "took_s": round(time.perf_counter() - begin, 3),
        }


def claims_of(rows: list[dict[str, Any]]) -> Iterator[Claim]:
    for capacity in CAPACITIES:
        here = [row for row in rows if row["capacity_pages"] == capacity]
        bounds = [row["saved_s"] for row in here if row["policy"] == "bound"]
        most = max(row["saved_s"] for row in here if row["policy"] != "bound")
        least = min(row["saved_s"] for row in here if row["policy"] == "min")
        name = f"{capacity:,} pages"
        yield Claim.at_most(f"{name}: most saved / least bound", most / min(bounds), 1, "")
        yield Claim.at_least(f"{name}: saved by min / bound", least / bounds[-1], 1 - MIN_GAP, "")


if __name__ == "__main__":
    main()
