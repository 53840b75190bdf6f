# SPDX-License-Identifier: Apache-2.0
"""Put tardiness.json into docs/simulate.md, and draw its plot: ``python _tardiness_doc.py``.

What stands between the markers is written here; a test compares it with the JSON.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import _tardiness_plot

from bodocache.replay.simulate.names import BASELINES, ORACLE, OURS, WEATHERS

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "bench" / "results"
PLOT = RESULTS / "tardiness.svg"
PAGE = REPOSITORY / "docs" / "simulate.md"
BEGIN, END = "<!-- tardiness: begin -->", "<!-- tardiness: end -->"

Row = Mapping[str, Any]
Place = tuple[float, float]  # load, bytes a second of the disk


def main() -> None:
    document = json.loads((RESULTS / "tardiness.json").read_text())
    text = PAGE.read_text()
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    PAGE.write_text(f"{before}{BEGIN}\n{block(document)}\n{after}")
    rows = [row for row in document["rows"] if row["is_slice"]]
    _tardiness_plot.draw(PLOT, rows, (OURS, *BASELINES, ORACLE))


def block(document: Mapping[str, Any]) -> str:
    """The grid as a table, the claims, and how decisions were judged."""
    parts = [_grid(document["rows"]), _claims(document["claims"]), _judged(document["rows"])]
    return "\n\n".join(part for part in parts if part)


def _grid(rows: list[Row]) -> str:
    cells: dict[Place, dict[str, dict[str, Row]]] = {}
    for row in rows:
        if row["is_slice"]:
            place = row["load"], row["disk_bytes_per_s"]
            cells.setdefault(place, {}).setdefault(row["weather"], {})[row["policy"]] = row
    weathers = [name for name in WEATHERS if any(name in of for of in cells.values())]
    lines = [["load", "disk GB/s", *weathers]]
    for (load, disk), of in sorted(cells.items()):
        found = (_cell(of.get(weather, {})) for weather in weathers)
        lines.append([f"{load:g}", f"{disk / 1e9:g}", *found])
    return _table(lines)


def _cell(of: Mapping[str, Row]) -> str:
    """Ours against the best of the others, whichever that is in each figure; "" if not all ran."""
    if not of.keys() >= {OURS, *BASELINES, ORACLE}:
        return ""
    mean = of[OURS]["ttft_mean_s"] / min(of[name]["ttft_mean_s"] for name in BASELINES) - 1
    best = max(of[name]["slo_attainment"] for name in BASELINES)
    shares = of[OURS]["slo_attainment"], best, of[ORACLE]["slo_attainment"]
    return f"{100 * mean:+.1f} %; " + " / ".join(f"{100 * share:.1f}" for share in shares)


def _claims(claims: list[Mapping[str, Any]]) -> str:
    lines = [["claim", "measured", "target", ""]]
    for claim in claims:
        met = "met" if claim["met"] else "**not met**"
        lines.append([claim["name"], f"{claim['measured']:.3g}", claim["target"], met])
    return _table(lines)


def _judged(rows: list[Row]) -> str:
    judged = [row for row in rows if "cuts_judged" in row]
    if not judged:
        return ""
    cuts, false, others, missed = (
        sum(row[name] for row in judged)
        for name in ("cuts_judged", "false_cuts", "non_cuts_judged", "missed_cuts")
    )
    return (
        f"Of {cuts} cuts at {len(judged)} points that were run again without the cut, {false} would"
        f" have been\nbetter loaded; of {others} loads that were not cut, {missed} better cut: by"
        " the waits of all whom they delay."
    )


def _table(lines: list[list[str]]) -> str:
    head, *rows = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|---" * len(lines[0]) + "|", *rows])


if __name__ == "__main__":
    main()
