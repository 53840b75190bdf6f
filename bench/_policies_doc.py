# SPDX-License-Identifier: Apache-2.0
"""Put bench/results/policies.json into docs/policies.md and its plot: ``python _policies_doc.py``.

Everything between the two markers is written here; a test compares it with the JSON.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bodocache.replay.curve import Curve
from bodocache.replay.curve_report import draw
from bodocache.replay.policy import Policy

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "bench" / "results" / "policies.json"
PLOT = REPOSITORY / "bench" / "results" / "policies.svg"
PAGE = REPOSITORY / "docs" / "policies.md"
BEGIN, END = "<!-- from policies.json: begin -->", "<!-- from policies.json: end -->"

Document = Mapping[str, Any]


def main() -> None:
    document = json.loads(RESULTS.read_text())
    text = PAGE.read_text()
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    PAGE.write_text(f"{before}{BEGIN}\n{block(document)}\n{after}")
    plot(document, PLOT)


def block(document: Document) -> str:
    """All figures of the page."""
    there = document["environment"]
    words = (
        f"{there['trace']}: {there['touches']:,} page touches of {there['distinct']:,} pages;"
        f" {there['cpu']}, one core."
    )
    return "\n\n".join((words, _hits(document), _second_half(document), _speeds(document)))


def _hits(document: Document) -> str:
    rows = [row for row in document["rows"] if "hit_ratio" in row]
    capacities = sorted({row["capacity_pages"] for row in rows})
    found = {(row["policy"], row["capacity_pages"]): row for row in rows}
    speeds = {
        row["policy"]: row["touches_per_s"] for row in document["rows"] if "touches_per_s" in row
    }
    best = {
        pages: max(row["hits"] for row in rows if row["capacity_pages"] == pages and _is_fair(row))
        for pages in capacities
    }
    head = [f"{pages:,} pages" for pages in capacities]
    lines = [
        f"| hits (regret) | {' | '.join(head)} | million touches/s |",
        "|---|" + "---|" * (len(capacities) + 1),
    ]
    for policy in dict.fromkeys(row["policy"] for row in rows):
        cells = [_cell(found[policy, pages], best[pages]) for pages in capacities]
        lines.append(f"| `{policy}` | {' | '.join(cells)} | {speeds[policy] / 1e6:.1f} |")
    return "\n".join(lines)


def _second_half(document: Document) -> str:
    """Of the default policy and the best other at each capacity; then what was asked and missed."""
    rows = [row for row in document["rows"] if "second_half_hit_ratio" in row and _is_fair(row)]
    parts = []
    for pages in sorted({row["capacity_pages"] for row in rows}):
        here = [row for row in rows if row["capacity_pages"] == pages]
        of = {row["policy"]: row["second_half_hit_ratio"] for row in here}
        ours = of.pop(Policy.LEARNED)
        best = max(of, key=lambda name: of[name])
        parts.append(f"{ours:.4f} at {pages:,} ({of[best]:.4f}, `{best}`)")
    missed = [
        f"{claim['name'].removeprefix('learned, ')}, {claim['measured']:,} ({claim['target']})"
        for claim in document["claims"]
        if not claim["met"]
    ]
    short = f" Short of what was asked: {'; '.join(missed)}." if missed else ""
    return (
        "Hit ratio of `learned` on the second half of the trace, on which none of its constants was"
        f" fixed, and of the best other there: {', '.join(parts)}.{short}"
    )


def _is_fair(row: Mapping[str, Any]) -> bool:
    return bool(row["policy"] != Policy.MIN)


def _cell(row: Mapping[str, Any], best: int) -> str:
    text = f"{row['hit_ratio']:.4f} ({row['regret']:,})"
    return f"**{text}**" if _is_fair(row) and row["hits"] == best else text


def _speeds(document: Document) -> str:
    passes = [row for row in document["rows"] if "every_capacity" in row]
    each = ", ".join(f"`{row['every_capacity']}` {1000 * row['seconds']:.1f} ms" for row in passes)
    (whole,) = (row for row in document["rows"] if row.get("curve") == "all")
    return (
        f"Hits at every capacity in one pass: {each}. The whole plot below, {whole['policies']}"
        f" policies: {whole['seconds']:.0f} s on {document['environment']['cores']} cores."
    )


def plot(document: Document, path: Path) -> None:
    """Draw the curves."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    curves = {
        Policy(row["curve"]): Curve(
            one_pass=row["one_pass"],
            capacity_pages=np.array(row["capacity_pages"]),
            page_hits=np.array(row["hits"]),
        )
        for row in document["rows"]
        if "one_pass" in row
    }
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "policies"}):
        figure = Figure(figsize=(9, 6), layout="constrained")
        axes = figure.subplots()
        draw(axes, curves, document["environment"]["touches"], ink="black")
        axes.grid(visible=True, alpha=0.25)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
