# SPDX-License-Identifier: Apache-2.0
"""Hits kept against pages written to disk, for every admission rule: bodocache/replay/writes.py.

A host of 10,000 pages over a disk that never fills; and generated workloads, with a host of half a
live set, where nothing is claimed. bench/_judged_doc.py draws the plot.
"""

from collections.abc import Iterator
from typing import Any

import _traces
from _common import Claim, parser, write

from bodocache import jit
from bodocache.replay import hints, writes
from bodocache.replay.predict import reuse_chances
from bodocache.replay.shapes import workload
from bodocache.replay.tiers import When
from bodocache.replay.trace import Trace, load_trace
from bodocache.replay.write_report import KEPT, NAMES, SHARES, kept_at, needed
from bodocache.replay.writes import Curve, Rule, Writes

HOST_PAGES = 10_000
CLAIMED_SHARES = (0.5, 0.75, 0.9)  # of write-through's pages
NOT_OURS = (Rule.CHANCE, Rule.SHALLOW, Rule.SECOND_SIGHT)
FEWER = 3.0  # times, with the perfect hint, at KEPT of the hits
NOISY_AUC, SEED = 0.9, 1
ELSEWHERE = ("chat", "documents", "agents", "tenants")
ELSEWHERE_REQUESTS = 6_000


def main() -> None:
    arguments = parser(__doc__)
    _traces.add_argument(arguments)
    chosen = arguments.parse_args()
    trace = load_trace(_traces.require(chosen.trace))
    jit.warm()
    measured = writes.measure(trace, HOST_PAGES)
    curves = {(rule.value, when): curve for (rule, when), curve in measured.of.items()}
    curves |= hinted_curves(trace)
    extra = {
        "trace": chosen.trace.name,
        "touches": measured.touches,
        "host_pages": HOST_PAGES,
        "write_through_pages": measured.through_pages,
        "write_through_hits": measured.through_hits,
        "host_hits": measured.host_hits,
    }
    found = [*rows(measured, curves), *elsewhere_rows()]
    write(chosen.json, found, [*claims(measured)], **extra)


def hinted_curves(trace: Trace) -> dict[tuple[str, When], Curve]:
    touches = _traces.touches_of(trace)
    said = hints.noisy(hints.continued(touches), NOISY_AUC, SEED)
    worths = {
        f"hint of AUC {NOISY_AUC}": writes.a_touch(touches, said),
        f"predicted, hint of AUC {NOISY_AUC}": reuse_chances(touches, said),
        "predicted, perfect hint": reuse_chances(touches, hints.perfect(touches)),
    }
    return {
        (name, when): writes.curve(touches, HOST_PAGES, worth, when)
        for name, worth in worths.items()
        for when in When
    }


def rows(measured: Writes, curves: dict[tuple[str, When], Curve]) -> Iterator[dict[str, Any]]:
    for (rule, when), curve in curves.items():
        kept = {f"{share}": round(kept_at(measured, curve, share), 4) for share in SHARES}
        yield {
            "rule": rule,
            "when": NAMES[when],
            "hits_kept_at": kept,
            f"writes_for_{KEPT}": round(needed(measured, curve), 4),
            "written_pages": curve.written.tolist(),
            "page_hits": curve.hits.tolist(),
        }


def elsewhere_rows() -> Iterator[dict[str, Any]]:
    for shape in ELSEWHERE:
        trace = load_trace(workload(shape, seed=101, requests=ELSEWHERE_REQUESTS))
        host_pages = _traces.live_pages(_traces.touches_of(trace)) // 2
        measured = writes.measure(trace, host_pages, [*NOT_OURS, Rule.PREDICTED])
        for when in When:
            yield {
                "elsewhere": shape,
                "when": NAMES[when],
                "host_pages": host_pages,
                "host_hits_kept": round(measured.host_hits / measured.through_hits, 4),
                "hits_kept_at": {
                    rule.value: {
                        f"{share}": round(kept_at(measured, measured.of[rule, when], share), 4)
                        for share in SHARES
                    }
                    for rule in (*NOT_OURS, Rule.PREDICTED)
                },
            }


def claims(measured: Writes) -> Iterator[Claim]:
    for when in When:
        for share in CLAIMED_SHARES:
            ours = 100 * kept_at(measured, measured.of[Rule.PREDICTED, when], share)
            best = max(kept_at(measured, measured.of[rule, when], share) for rule in NOT_OURS)
            unit = "% (the best rule that is not ours)"
            name = f"predicted, {NAMES[when]}: hits kept with {share:.0%} of the writes"
            yield Claim.at_least(name, ours, round(100 * best, 2), unit)
    for when in When:
        fewer = 1 / needed(measured, measured.of[Rule.PERFECT_HINT, when])
        name = f"perfect hint, {NAMES[when]}: times fewer writes for {KEPT:.0%} of the hits"
        yield Claim.at_least(name, fewer, FEWER, "x")


if __name__ == "__main__":
    main()
