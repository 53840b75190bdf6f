# SPDX-License-Identifier: Apache-2.0
"""Hits of every eviction policy over capacity, beside the exact optimum, and touches per second.

The default trace is Mooncake's conversation trace where it lies in ../shared/traces; the exact
figures are claimed for it alone. bench/_policies_doc.py puts the results into docs/policies.md.
"""

import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from _common import Claim, interleaved, parser, write

from bodocache import jit
from bodocache.plan.optimum import infinite_hits
from bodocache.replay.curve import grid, measure
from bodocache.replay.policies.model import checked
from bodocache.replay.policy import CURVES, HALF_LIFE_S, Policy, Recompute, Touches, simulate
from bodocache.replay.trace import Trace, load_trace

CONVERSATION = Path(__file__).parents[2] / "shared" / "traces" / "conversation_trace.jsonl"
CAPACITIES = (1_000, 3_000, 10_000, 30_000, 100_000)
KNOWN = {
    (Policy.LRU, 3_000): 18_850,
    (Policy.LRU, 10_000): 61_046,
    (Policy.PERFECT_LFU, 1_000): 22_320,
    (Policy.MIN, 3_000): 84_953,
    (Policy.MIN, 10_000): 105_710,
}
STRETCH = {3_000: 0.145, 10_000: 0.250, 30_000: 0.342}  # hits per touch asked of the default policy
TIMED_PAGES = 3_000
TOUCHES_PER_S = {Policy.LRU: 20e6, Policy.HEAT: 5e6}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("trace", nargs="?", type=Path, help="a .jsonl or .jsonl.gz trace")
    chosen = arguments.parse_args()
    path = chosen.trace or CONVERSATION
    if not path.exists():
        sys.exit(f"{path.name}: not there; pass the path of a trace (bodocache trace fetch)")
    trace = load_trace(path)
    touches = Touches(trace.pages, trace.offsets, trace.parent, trace.depth, trace.timestamps_s)
    begin = time.perf_counter()
    jit.warm()
    compile_s = time.perf_counter() - begin
    rows = [*hit_rows(touches)]
    curves, speeds = [*curve_rows(trace)], [*speed_rows(touches)]
    claims = (
        [*known_claims(rows), *asked_claims(rows, len(touches.ids))]
        if path.name == CONVERSATION.name
        else []
    )
    claims += [
        Claim.at_least(f"{policy}: one core", row["touches_per_s"], least, "touches/s")
        for policy, least in TOUCHES_PER_S.items()
        for row in speeds
        if row.get("policy") == policy
    ]
    extra = {"trace": path.name, "touches": len(touches.ids), "distinct": len(touches.parents)}
    model = {"half_life_s": HALF_LIFE_S, "recompute": Recompute()._asdict()}
    extra |= {"compile_s": round(compile_s, 2)}
    write(chosen.json, rows + curves + speeds, claims, **extra, **model)


def hit_rows(touches: Touches) -> Iterator[dict[str, Any]]:
    """Of the whole trace, and of its second half, on which no constant was fixed."""
    half = (len(touches.offsets) - 1) // 2
    in_half = len(touches.ids) - int(touches.offsets[half])
    for capacity in CAPACITIES:
        done = {policy: simulate(policy, touches, capacity) for policy in Policy}
        most = int(done[Policy.MIN].hits.sum())
        for policy, result in done.items():
            hits = int(result.hits.sum())
            yield {
                "policy": policy.value,
                "capacity_pages": capacity,
                "hits": hits,
                "hit_ratio": round(hits / len(touches.ids), 4),
                "second_half_hit_ratio": round(int(result.hits[half:].sum()) / in_half, 4),
                "regret": most - hits,
                "inserted": result.inserted,
            }
    endless = infinite_hits(touches.ids, touches.offsets, len(touches.parents))
    yield {"policy": "infinite", "capacity_pages": None, "hits": int(endless.sum())}


def curve_rows(trace: Trace) -> Iterator[dict[str, Any]]:
    """Hits at every capacity of the coarse grid, and the seconds of the whole run."""
    begin = time.perf_counter()
    curves = measure(trace, [*Policy])
    seconds = time.perf_counter() - begin
    capacities = grid(trace.distinct)
    yield {"curve": "all", "policies": len(curves.of), "seconds": round(seconds, 2)}
    for policy, curve in curves.of.items():
        yield {
            "curve": policy.value,
            "one_pass": curve.one_pass,
            "capacity_pages": capacities,
            "hits": [curve.at(pages) for pages in capacities],
        }


def speed_rows(touches: Touches) -> Iterator[dict[str, Any]]:
    """Whole calls at 3,000 pages, set-up included; and of those that give all capacities."""
    calls = {policy: partial(simulate, policy, touches, TIMED_PAGES) for policy in Policy}
    for policy, timing in interleaved(calls, runs=15).items():
        yield {
            "policy": policy,
            "capacity_pages": TIMED_PAGES,
            "touches_per_s": round(len(touches.ids) / timing.median_s),
            "touches_per_s_p99": round(len(touches.ids) / timing.p99_s),
        }
    columns = checked(touches)
    passes = {policy: partial(one_pass, columns) for policy, one_pass in CURVES.items()}
    for policy, timing in interleaved(passes, runs=5).items():
        yield {"every_capacity": policy, "seconds": round(timing.median_s, 4)}


def known_claims(rows: list[dict[str, Any]]) -> Iterator[Claim]:
    found = {(row["policy"], row["capacity_pages"]): row["hits"] for row in rows}
    for (policy, capacity), hits in KNOWN.items():
        measured = found[policy, capacity]
        yield Claim(f"{policy}: hits at {capacity:,}", measured, f"= {hits}", measured == hits)
    measured = found["infinite", None]
    yield Claim("infinite: hits", measured, "= 105710", measured == 105_710)


def asked_claims(rows: list[dict[str, Any]], touches: int) -> Iterator[Claim]:
    """The default policy against the best of all others at each capacity, and its stretch."""
    for capacity in CAPACITIES:
        of = {row["policy"]: row for row in rows if row["capacity_pages"] == capacity}
        ours = of[Policy.LEARNED.value]
        others = set(of) - {Policy.LEARNED, Policy.MIN}
        best = max(of[name]["hits"] for name in others)
        at = f"learned, {capacity:,} pages"
        yield Claim.at_least(f"{at}: hits, the best of all others", ours["hits"], best, "")
        if capacity in STRETCH:
            ratio = ours["hits"] / touches
            yield Claim(
                f"{at}: stretch",
                round(ratio, 4),
                f">= {STRETCH[capacity]}",
                ratio >= STRETCH[capacity],
            )


if __name__ == "__main__":
    main()
