# SPDX-License-Identifier: Apache-2.0
"""Hits of the policy that learns: whole trace and second half, each ingredient off, and hints.

Its constants were fixed on generated traces and on the first half of the conversation trace, so the
second half is what it had not seen. A variant replaces functions or constants before anything is
compiled, in a process of its own with a folder of its own for compiled code.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _common import Claim, interleaved, parser, write

from bodocache import jit
from bodocache.plan import hazards, reuse
from bodocache.plan.hazards import HAZARDS
from bodocache.replay.policies import learned
from bodocache.replay.policies.model import TOUCHES  # noqa: F401 -- compiled with the kernels
from bodocache.replay.policy import Policy, Touches, simulate
from bodocache.replay.trace import load_trace

CONVERSATION = Path(__file__).parents[2] / "shared" / "traces" / "conversation_trace.jsonl"
CAPACITIES = (1_000, 3_000, 10_000, 30_000, 100_000)
FLOOR = {1_000: 0.0774, 3_000: 0.1325, 10_000: 0.2332, 30_000: 0.3308, 100_000: 0.3637}
STRETCH = {3_000: 0.145, 10_000: 0.250, 30_000: 0.342}
# Neighbouring capacities: one conversation more or less moves a single figure by 0.001.
NEAR = (800, 1_000, 1_250, 2_400, 3_000, 3_750, 8_000, 10_000, 12_500, 24_000, 30_000, 37_500)
HINTED = (3_000, 10_000)
HINT_FLOOR = {3_000: 0.210, 10_000: 0.345}
SEEDS = range(5)
BEST_SIMPLE = [
    policy for policy in Policy if policy not in {Policy.LEARNED, Policy.HEAT, Policy.MIN}
]
MICROSECONDS = 2.0


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("trace", nargs="?", type=Path, default=CONVERSATION)
    arguments.add_argument("--without", choices=WITHOUT, help="measure this variant alone")
    chosen = arguments.parse_args()
    if not chosen.trace.exists():
        sys.exit(f"{chosen.trace.name}: not there (bodocache trace fetch)")
    trace = load_trace(chosen.trace)
    columns = (trace.pages, trace.offsets, trace.parent, trace.depth, trace.timestamps_s)
    touches = Touches(*columns, trace.tenants)
    if chosen.without:
        WITHOUT[chosen.without]()
        jit.warm()
        print(json.dumps([*near_rows(touches, chosen.without)]))
        return
    begin = time.perf_counter()
    jit.warm()
    compile_s = round(time.perf_counter() - begin, 2)
    rows = [*hit_rows(touches)]
    claims = [*floor_claims(rows)]
    rows += near_rows(touches, "nothing")
    for name in WITHOUT:
        rows += variant_rows(chosen.trace, name)
    hinted = [*hint_rows(touches)]
    timed = [*time_rows(touches)]
    claims += [*hint_claims(hinted), *time_claims(timed)]
    write(chosen.json, rows + hinted + timed, claims, trace=chosen.trace.name, compile_s=compile_s)


def half(touches: Touches) -> int:
    """The first request of the second half of the touches."""
    return int(np.searchsorted(touches.offsets, len(touches.ids) // 2))


def ratios(touches: Touches, hits: Any) -> dict[str, float]:
    """Hit ratio of the whole trace and of each half; the second finds the tier warm."""
    cut = half(touches)
    at = int(touches.offsets[cut])
    return {
        "hit_ratio": round(float(hits.sum() / len(touches.ids)), 4),
        "first_half": round(float(hits[:cut].sum() / at), 4),
        "second_half": round(float(hits[cut:].sum() / (len(touches.ids) - at)), 4),
    }


def hit_rows(touches: Touches) -> Iterator[dict[str, Any]]:
    """Every policy: the best simple one is the floor at each capacity and on each half."""
    for capacity in CAPACITIES:
        for policy in (Policy.LEARNED, Policy.MIN, *BEST_SIMPLE):
            done = simulate(policy, touches, capacity)
            yield {
                "policy": policy.value,
                "capacity_pages": capacity,
                "hits": int(done.hits.sum()),
                **ratios(touches, done.hits),
                "inserted": done.inserted,
            }


def near_rows(touches: Touches, without: str) -> Iterator[dict[str, Any]]:
    """Means over three capacities around each of four."""
    found = [ratios(touches, simulate(Policy.LEARNED, touches, pages).hits) for pages in NEAR]
    for at in range(0, len(NEAR), 3):
        means = {
            name: round(statistics.mean(each[name] for each in found[at : at + 3]), 4)
            for name in found[0]
        }
        yield {"without": without, "capacities_pages": NEAR[at : at + 3], **means}


def variant_rows(path: Path, name: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, __file__, str(path), "--without", name],
            env={**os.environ, "NUMBA_CACHE_DIR": folder},
            check=True,
            capture_output=True,
        )
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def floor_claims(rows: list[dict[str, Any]]) -> Iterator[Claim]:
    found = {(row["policy"], row["capacity_pages"]): row for row in rows}
    for capacity, floor in FLOOR.items():
        measured = found[Policy.LEARNED, capacity]["hit_ratio"]
        yield Claim.at_least(f"hit ratio at {capacity:,}", measured, floor, "(floor)")
    for capacity, floor in STRETCH.items():
        measured = found[Policy.LEARNED, capacity]["hit_ratio"]
        yield Claim.at_least(f"hit ratio at {capacity:,}", measured, floor, "(stretch)")
    for capacity in CAPACITIES:
        best = max(found[policy, capacity]["second_half"] for policy in BEST_SIMPLE)
        measured = found[Policy.LEARNED, capacity]["second_half"]
        yield Claim.at_least(
            f"second half at {capacity:,}", measured, best, "(best simple policy there)"
        )


# -- hints -----------------------------------------------------------------------------------------


def goes_on(touches: Touches) -> Any:
    """Whether each request's last-but-one page is touched again."""
    later, found = set(), np.zeros(len(touches.timestamps_s), bool)
    for request in range(len(found) - 1, -1, -1):
        rows = touches.ids[touches.offsets[request] : touches.offsets[request + 1]].tolist()
        found[request] = len(rows) > 1 and rows[-2] in later
        later.update(rows)
    return found


def hint_of(truth: Any, auc: float, seed: int) -> Any:
    """The probability by Bayes' rule from a normal score of that AUC; 0.5: chance alone."""
    rng = np.random.default_rng(seed)
    if auc == 0.5:
        return rng.random(len(truth))
    if auc == 1.0:
        return truth.astype(np.float64)
    apart = 2**0.5 * statistics.NormalDist().inv_cdf(auc)
    seen = rng.standard_normal(len(truth)) + apart * truth
    odds = np.exp(apart * seen - apart**2 / 2) * truth.mean() / (1 - truth.mean())
    return odds / (1 + odds)


def hint_rows(touches: Touches) -> Iterator[dict[str, Any]]:
    truth = goes_on(touches)
    for capacity in CAPACITIES:
        plain = simulate(Policy.LEARNED, touches, capacity).hits
        yield {"hint_auc": None, "capacity_pages": capacity, **ratios(touches, plain)}
        for auc in (1.0, 0.9, 0.5):
            for seed in SEEDS if auc < 1.0 else (0,):
                hints = hint_of(truth, auc, seed)
                done = simulate(Policy.LEARNED, touches, capacity, hints=hints)
                yield {
                    "hint_auc": auc,
                    "seed": seed,
                    "capacity_pages": capacity,
                    **ratios(touches, done.hits),
                }


def hint_claims(rows: list[dict[str, Any]]) -> Iterator[Claim]:
    found: dict[tuple[float | None, int], list[float]] = {}
    for row in rows:
        key = row["hint_auc"], row["capacity_pages"]
        found.setdefault(key, []).append(row["hit_ratio"])
    for capacity, floor in HINT_FLOOR.items():
        measured = found[1.0, capacity][0]
        yield Claim.at_least(f"perfect hint at {capacity:,}", measured, floor, "")
    for capacity in HINTED:
        (plain,), (perfect,) = found[None, capacity], found[1.0, capacity]
        part = (statistics.mean(found[0.9, capacity]) - plain) / (perfect - plain)
        yield Claim.at_least(f"AUC 0.9 at {capacity:,}", part, 0.5, "of the perfect hint's gain")
    for capacity in CAPACITIES:
        least = statistics.mean(found[0.5, capacity]) / found[None, capacity][0]
        yield Claim.at_least(f"AUC 0.5 at {capacity:,}", least, 0.98, "of the hits without a hint")


# -- time ------------------------------------------------------------------------------------------


def time_rows(touches: Touches) -> Iterator[dict[str, Any]]:
    calls = {
        str(pages): partial(simulate, Policy.LEARNED, touches, pages)
        for pages in (3_000, 30_000, 100_000)
    }
    for pages, timing in interleaved(calls, runs=7, warmups=1).items():
        yield {
            "timed_at_pages": int(pages),
            "us_a_page": round(1e6 * timing.median_s / len(touches.ids), 3),
            "us_a_page_p99": round(1e6 * timing.p99_s / len(touches.ids), 3),
        }


def time_claims(rows: list[dict[str, Any]]) -> Iterator[Claim]:
    slowest = max(row["us_a_page"] for row in rows)
    yield Claim.at_most("a page touched, slowest capacity", slowest, MICROSECONDS, "us")


# -- variants: what each ingredient brings ---------------------------------------------------------


@jit.kernel(learned._LEARNED, jit.readonly("i8"), jit.f8)  # noqa: SLF001
def _weigh_all_alike(cache: Any, rows: Any, now_s: float) -> None:
    cache.wanted[: len(rows)] = np.inf
    for kind in range(len(cache.roots)):
        learned._find_least(cache, kind, now_s)  # noqa: SLF001


@jit.kernel(HAZARDS, jit.i8)
def _hazard_now(table: Any, start: int) -> float:
    width_s = table.edges[start + 1] - table.edges[start]
    return float(table.hazard[start] / width_s)


@jit.kernel(jit.i8)
def _one_shape(_: int) -> int:
    return 0


@jit.kernel(jit.i8, jit.i8, jit.f8)
def _base_without_use(shape: int, uses: int, mean_gap: float) -> int:  # noqa: ARG001
    return reuse._OTHERS + shape * reuse._PER_SHAPE  # noqa: SLF001


def _believe_nothing() -> Any:
    prior, family = BELIEFS()
    return np.full_like(prior, 0.01), family


BELIEFS = reuse._beliefs  # noqa: SLF001


def _set(module: Any, name: str, value: object) -> Callable[[], None]:
    return lambda: setattr(module, name, value)


WITHOUT: dict[str, Callable[[], None]] = {
    "admission": _set(learned, "_weigh", _weigh_all_alike),
    "best horizon (hazard now instead)": _set(hazards, "_index", _hazard_now),
    "neighbouring bins": _set(hazards, "NEIGHBOUR", 0.0),
    "family": _set(hazards, "CLASS_WEIGHT", 1e-9),
    "beliefs": _set(reuse, "_beliefs", _believe_nothing),
    "new pages": _set(reuse, "_shape", _one_shape),
    "uses and gaps": _set(reuse, "_base", _base_without_use),
    "65,536 ghosts": _set(learned, "GHOSTS", 0),
}


if __name__ == "__main__":
    main()
