# SPDX-License-Identifier: Apache-2.0
"""What a caller's hint is worth to a policy: perfect, as good as an AUC, useless, and wrong.

A hint is a probability, one a request, that it is continued (bodocache/replay/hints.py). The
yardstick is a two-class LRU that believes every hint (bench/_two_class.py).
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import _traces
import numpy as np
from _common import Claim, parser, write
from _two_class import two_class_lru

from bodocache import jit
from bodocache.replay import hints
from bodocache.replay.policies.model import Floats, Setting, Simulation, Touches
from bodocache.replay.policy import Policy, serve
from bodocache.replay.trace import load_trace

CAPACITIES = (1_000, 3_000, 10_000, 30_000)
AUC = 0.9
SEEDS = (1, 2, 3)
NONE, PERFECT, NOISY, USELESS, WRONG = "none", "perfect", f"auc {AUC}", "useless", "wrong"
LEAST_PERFECT = {3_000: 0.210, 10_000: 0.345}  # hit ratios on the conversation trace
LEAST_OF_GAIN = 0.5  # of the perfect hint's gain, with the noisy one
LEAST_USELESS = 0.98  # of the hits without a hint


def main() -> None:
    arguments = parser(__doc__)
    _traces.add_argument(arguments)
    chosen = arguments.parse_args()
    trace = load_trace(_traces.require(chosen.trace))
    touches = _traces.touches_of(trace)
    jit.warm()
    truth = hints.continued(touches)
    rows = [*quality_rows(truth, touches), *hit_rows(truth, touches)]
    extra = {"trace": chosen.trace.name, "touches": len(touches.ids), "requests": len(truth)}
    write(chosen.json, rows, [*claims(rows)], **extra)


def said(truth: hints.Flags, touches: Touches, seed: int) -> dict[str, Floats]:
    """The column of every hint."""
    return {
        NONE: np.full(len(truth), np.nan),
        PERFECT: hints.perfect(touches),
        NOISY: hints.noisy(truth, AUC, seed),
        USELESS: hints.useless(truth, AUC, seed),
        WRONG: 1 - hints.perfect(touches),
    }


def quality_rows(truth: hints.Flags, touches: Touches) -> Iterator[dict[str, Any]]:
    columns = said(truth, touches, SEEDS[0])
    for name, column in columns.items():
        if name != NONE:
            yield {"quality": name, "auc": round(hints.measured_auc(truth, column), 4)}
    yield {"quality": "requests continued", "share": round(float(truth.mean()), 4)}


def hit_rows(truth: hints.Flags, touches: Touches) -> Iterator[dict[str, Any]]:
    """Hits, the mean over the seeds of the hint, and in the second half of the requests alone."""
    for capacity in CAPACITIES:
        for policy, run in takers(touches, capacity).items():
            for hint in (NONE, PERFECT, NOISY, USELESS, WRONG):
                seeds = SEEDS if hint in (NOISY, USELESS) else SEEDS[:1]
                done = [run(said(truth, touches, seed)[hint]).hits for seed in seeds]
                hits = float(np.mean([found.sum() for found in done]))
                later = np.mean([found[len(truth) // 2 :].sum() for found in done])
                yield {
                    "policy": policy,
                    "hint": hint,
                    "capacity_pages": capacity,
                    "hits": round(hits),
                    "hit_ratio": round(hits / len(touches.ids), 4),
                    "hits_second_half": round(float(later)),
                }


def takers(touches: Touches, capacity: int) -> dict[str, Any]:
    """Every policy that takes hints."""

    def learned(column: Floats) -> Simulation:
        return serve(Policy.LEARNED, touches, capacity, Setting(hints=column))

    return {"two-class-lru": partial(two_class_lru, touches, capacity), "learned": learned}


def claims(rows: list[dict[str, Any]]) -> Iterator[Claim]:
    found: Mapping[tuple[str, int], dict[str, Any]] = {
        (row["hint"], row["capacity_pages"]): row for row in rows if row.get("policy") == "learned"
    }
    for capacity, least in LEAST_PERFECT.items():
        ratio = found[PERFECT, capacity]["hit_ratio"]
        yield Claim(f"perfect hint, {capacity:,} pages", ratio, f">= {least}", ratio >= least)
    for capacity in LEAST_PERFECT:
        none, noisy, most = (found[hint, capacity]["hits"] for hint in (NONE, NOISY, PERFECT))
        share = (noisy - none) / (most - none)
        name = f"hint of AUC {AUC}, {capacity:,} pages: of the perfect one's gain"
        yield Claim.at_least(name, share, LEAST_OF_GAIN, "")
    for capacity in CAPACITIES:
        share = found[USELESS, capacity]["hits"] / found[NONE, capacity]["hits"]
        name = f"useless hint, {capacity:,} pages: of the hits without"
        yield Claim.at_least(name, share, LEAST_USELESS, "")


if __name__ == "__main__":
    main()
