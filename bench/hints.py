# SPDX-License-Identifier: Apache-2.0
"""What a caller's hint is worth to a policy: perfect, as good as an AUC, useless, and wrong.

A hint is a probability, one a request, that it is continued (bodocache/replay/hints.py). The
yardstick is a two-class LRU that believes every hint (bench/_two_class.py). Then tenants of one
cache speak differently: what does each gain or lose?
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
from bodocache.replay.shapes import workload
from bodocache.replay.trace import load_trace

CAPACITIES = (1_000, 3_000, 10_000, 30_000)
AUC = 0.9
SEEDS = (1, 2, 3)
NONE, PERFECT, NOISY, USELESS, WRONG = "none", "perfect", f"auc {AUC}", "useless", "wrong"
LEAST_PERFECT = {3_000: 0.210, 10_000: 0.345}  # hit ratios on the conversation trace
LEAST_OF_GAIN = 0.5  # of the perfect hint's gain, with the noisy one
LEAST_USELESS = 0.98  # of the hits without a hint

TENANTS, TENANT_SEED, TENANT_REQUESTS = 4, 101, 12_000  # of the chat workload
TENANT_SHARES = (1 / 4, 1 / 2, 1)  # of the live set
ALWAYS = "the first always says yes"


def main() -> None:
    arguments = parser(__doc__)
    _traces.add_argument(arguments)
    chosen = arguments.parse_args()
    trace = load_trace(_traces.require(chosen.trace))
    touches = _traces.touches_of(trace)
    jit.warm()
    truth = hints.continued(touches)
    rows = [*quality_rows(truth, touches), *hit_rows(truth, touches), *tenant_rows()]
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


def tenant_rows() -> Iterator[dict[str, Any]]:
    """Hits of each tenant, by those it has where nobody says anything."""
    chats = workload("chat", seed=TENANT_SEED, requests=TENANT_REQUESTS, requests_per_s=2.0)
    touches = _traces.touches_of(load_trace(chats))
    live = _traces.live_pages(touches)
    for share in TENANT_SHARES:
        capacity = int(share * live)
        silent = _hits_of_tenants(touches, capacity, np.full(len(touches.tenants), np.nan))
        for speaking, column in spoken(touches).items():
            hits = _hits_of_tenants(touches, capacity, column)
            yield {
                "speaking": speaking,
                "share": share,
                "capacity_pages": capacity,
                "hits_by_silent": [round(float(ratio), 4) for ratio in hits / silent],
            }


def spoken(touches: Touches) -> dict[str, Floats]:
    """What the four tenants say; NaN: nothing."""
    truth, silence = hints.continued(touches), np.full(len(touches.tenants), np.nan)
    perfect, noisy = hints.perfect(touches), hints.noisy(truth, AUC, SEEDS[0])
    useless, yes = hints.useless(truth, AUC, SEEDS[0]), np.ones(len(truth))
    cases = {
        ALWAYS: (yes, silence, silence, silence),
        "the first is perfect": (perfect, silence, silence, silence),
        f"perfect, AUC {AUC}, useless, silent": (perfect, noisy, useless, silence),
        "the first is useless, the others perfect": (useless, perfect, perfect, perfect),
        "all are perfect": (perfect,) * TENANTS,
    }
    return {speaking: np.choose(touches.tenants, said) for speaking, said in cases.items()}


def _hits_of_tenants(touches: Touches, capacity: int, column: Floats) -> Floats:
    hits = serve(Policy.LEARNED, touches, capacity, Setting(hints=column)).hits
    return np.bincount(touches.tenants, weights=hits, minlength=TENANTS)


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
    wild = [row["hits_by_silent"] for row in rows if row.get("speaking") == ALWAYS]
    others = min(min(ratios[1:]) for ratios in wild)
    name = "a tenant that always says yes: of the others' hits, worst"
    yield Claim.at_least(name, others, LEAST_USELESS, "")


if __name__ == "__main__":
    main()
