# SPDX-License-Identifier: Apache-2.0
"""Hits kept against pages written to disk, for every admission rule: bodocache/replay/writes.py.

A host of 10,000 pages over a disk that never fills. bench/_judged_doc.py draws the plot.
"""

from collections.abc import Iterator
from typing import Any

import _traces
from _common import Claim, parser, write

from bodocache import jit
from bodocache.replay import hints, writes
from bodocache.replay.predict import reuse_chances
from bodocache.replay.tiers import When
from bodocache.replay.trace import Trace, load_trace
from bodocache.replay.write_report import KEPT, NAMES, SHARES, kept_at, needed
from bodocache.replay.writes import Curve, Rule, Writes

HOST_PAGES = 10_000
CLAIMED_SHARES = (0.5, 0.75, 0.9)  # of write-through's pages
NOT_OURS = (Rule.CHANCE, Rule.SHALLOW, Rule.SECOND_SIGHT)
FEWER = 3.0  # times, with the perfect hint, at KEPT of the hits
NOISY_AUC, SEED = 0.9, 1


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
    write(chosen.json, [*rows(measured, curves)], [*claims(measured)], **extra)


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
