# SPDX-License-Identifier: Apache-2.0
"""Put the JSON of the benches named in BLOCKS into docs/policies.md: ``python _judged_doc.py``.

Everything between a pair of markers is written here; a test compares it with the JSON.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bodocache.replay.write_report import KEPT, NAMES, SHARES, draw
from bodocache.replay.writes import Curve

if TYPE_CHECKING:
    from bodocache.replay.tiers import When

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "bench" / "results"
PLOT = RESULTS / "writes.svg"
PAGE = REPOSITORY / "docs" / "policies.md"
SCAN_COLUMNS = ("learned", "lru", "gdsf", "perfect-lfuda", "s3-fifo", "heat")

Document = Mapping[str, Any]


def main() -> None:
    text = PAGE.read_text()
    for name in BLOCKS:
        begin, end = markers(name)
        before, after = text[: text.index(begin)], text[text.index(end) :]
        text = f"{before}{begin}\n{block(name)}\n{after}"
    PAGE.write_text(text)
    plot(_document("writes"), PLOT)


def markers(name: str) -> tuple[str, str]:
    """The comments around a block."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def block(name: str) -> str:
    """The figures of one section, and what the bench claims."""
    document = _document(name.partition(" ")[0])
    lines, claimed = BLOCKS[name]
    claims = [claim for claim in document["claims"] if claim["name"].startswith(claimed)]
    said = [_table(["claim", "measured", "target", ""], _said(claims))] if claims else []
    return "\n\n".join([*lines(document), *said])


def _said(claims: Iterable[Mapping[str, Any]]) -> Iterable[Sequence[str]]:
    for claim in claims:
        met = "met" if claim["met"] else "**not met**"
        yield claim["name"], f"{claim['measured']:g}", claim["target"], met


def _document(name: str) -> Document:
    found: Document = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    ruler = "|---" * len(head) + "|"
    return "\n".join([f"| {' | '.join(head)} |", ruler, *(f"| {' | '.join(r)} |" for r in rows)])


def _hints(document: Document) -> list[str]:
    rows = [row for row in document["rows"] if "hint" in row]
    capacities = sorted({row["capacity_pages"] for row in rows})
    found = {(row["policy"], row["hint"], row["capacity_pages"]): row for row in rows}
    aucs = {row["quality"]: f"{row['auc']:.2f}" for row in document["rows"] if "auc" in row}
    named = dict.fromkeys((row["policy"], row["hint"]) for row in rows)
    cells = (
        [
            f"`{policy}`",
            hint,
            aucs.get(hint, ""),
            *(_ratio(found[policy, hint, n]) for n in capacities),
        ]
        for policy, hint in named
    )
    head = ["hit ratio", "hint", "its AUC", *(f"{pages:,} pages" for pages in capacities)]
    return [_table(head, cells)]


def _tenants(document: Document) -> list[str]:
    rows = [row for row in document["rows"] if "speaking" in row]
    cells = (
        [row["speaking"], f"{row['share']:g}", *(f"{each:.3f}" for each in row["hits_by_silent"])]
        for row in rows
    )
    tenants = (f"tenant {number}" for number in range(1, 5))
    return [_table(["who says what", "live sets", *tenants], cells)]


def _ratio(row: Mapping[str, Any]) -> str:
    return f"{row['hit_ratio']:.4f}"


def _unseen(document: Document) -> list[str]:
    rows = [row for row in document["rows"] if "shape" in row]
    shares = sorted({row["share"] for row in rows})
    shapes = dict.fromkeys(row["shape"] for row in rows)
    cells = (
        [f"`{shape}`", *(_against([*_at(rows, "shape", shape, share)]) for share in shares)]
        for shape in shapes
    )
    head = ["capacity, of the live set", *(f"{share:g}" for share in shares)]
    words = (
        f"Hit ratio of `learned`, the mean of {len(document['environment']['seeds'])} seeds of"
        f" {document['environment']['requests']:,} requests each; and how far it is above or below"
        " the better of `lru` and `gdsf`, at the worst seed."
    )
    return [words, _table(head, cells)]


def _clocks(document: Document) -> list[str]:
    rows = [row for row in document["rows"] if "clock" in row]
    shares = sorted({row["share"] for row in rows})
    cells = (
        [f"x {clock:g}", *(_against([*_at(rows, "clock", clock, share)]) for share in shares)]
        for clock in sorted({row["clock"] for row in rows})
    )
    return [_table(["clock", *(f"{share:g} live sets" for share in shares)], cells)]


def _at(
    rows: Sequence[Mapping[str, Any]], column: str, value: object, share: float
) -> Iterable[Mapping[str, Any]]:
    return (row for row in rows if (row[column], row["share"]) == (value, share))


def _against(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    ratio = np.mean([row["hits"]["learned"] / row["touches"] for row in rows])
    hits = [row["hits"] for row in rows]
    worst = min(each["learned"] / max(each["lru"], each["gdsf"]) - 1 for each in hits)
    return f"{ratio:.4f} ({100 * worst:+.1f} %)"


def _scans(document: Document) -> list[str]:
    rows = [row for row in document["rows"] if "scanned" in row]
    cells = (
        [
            row["scanned"],
            row["scan"],
            f"{row['capacity_pages']:,}",
            *(_lost(row, p) for p in SCAN_COLUMNS),
        ]
        for row in rows
    )
    head = ["trace", "scan", "capacity", *(f"`{policy}`" for policy in SCAN_COLUMNS)]
    return ["Hits of the others that the scan costs, in %:", _table(head, cells)]


def _lost(row: Mapping[str, Any], policy: str) -> str:
    return f"{100 * (1 - row['hits_beside'][policy] / row['hits_alone'][policy]):.1f}"


def _seeds(document: Document) -> list[str]:
    rows, said = document["rows"], document["environment"]
    shapes = dict.fromkeys(row["shape"] for row in rows)
    cells = (
        [shape, f"{share:g}"]
        + [_mean_and_worst([*_at(rows, "shape", shape, share)], p) for p in ("learned", "lru")]
        for shape in shapes
        for share in sorted({row["share"] for row in rows})
    )
    words = (
        f"The same of every shape, {len(said['seeds'])} seeds of {said['requests']:,} requests,"
        " each scanned quickly and slowly. Hits of the others that the scan costs, in %, mean and"
        " worst:"
    )
    head = ["trace", "live sets", "`learned`, mean", "worst", "`lru`, mean", "worst"]
    return [words, _table(head, ([cell for each in row for cell in each.split()] for row in cells))]


def _mean_and_worst(rows: Sequence[Mapping[str, Any]], policy: str) -> str:
    lost = [
        100 * (1 - row["hits_beside"][policy] / row["hits_alone"][policy])
        for row in rows
        if row["hits_alone"][policy]
    ]
    return f"{np.mean(lost):.1f} {max(lost):.1f}"


def _late(document: Document) -> list[str]:
    rows = [row for row in document["rows"] if "comes" in row]
    cells = (
        [row["there"], row["comes"], f"{row['share']:g}"]
        + [_against_best(row[part]) for part in ("hits_late", "hits_there")]
        for row in rows
    )
    head = ["who was there", "who comes", "live sets", "hits of who comes", "of who was there"]
    return [_table(head, cells)]


def _against_best(hits: Mapping[str, int]) -> str:
    ours = hits["learned"]
    return f"{ours:,} ({100 * (ours / max(hits['lru'], hits['gdsf']) - 1):+.1f} %)"


def _writes(document: Document) -> list[str]:
    cells = (
        [
            f"`{row['rule']}`",
            row["when"],
            *(f"{100 * row['hits_kept_at'][str(share)]:.1f}" for share in SHARES),
            f"{100 * row[f'writes_for_{KEPT}']:.1f}",
        ]
        for row in document["rows"]
        if "rule" in row
    )
    there = document["environment"]
    shares = (f"{100 * share:.0f} % written" for share in SHARES)
    words = (
        f"Write-through writes {there['write_through_pages']:,} pages and keeps"
        f" {there['write_through_hits']:,} hits; the host alone has {there['host_hits']:,}. Hits"
        " kept, in % of write-through's, by pages written, in % of write-through's:"
    )
    return [words, _table(["rule", "at", *shares, f"writes for {KEPT:.0%} of the hits"], cells)]


def _elsewhere(document: Document) -> list[str]:
    rows = [row for row in document["rows"] if "elsewhere" in row]
    shares = [str(share) for share in SHARES]
    cells = (
        [
            row["elsewhere"],
            row["when"],
            f"{row['host_pages']:,}",
            f"{100 * row['host_hits_kept']:.1f}",
        ]
        + [_predicted_against(row["hits_kept_at"], share) for share in shares]
        for row in rows
    )
    head = ["workload", "at", "host pages", "kept by the host alone"]
    return [_table([*head, *(f"{100 * share:.0f} % written" for share in SHARES)], cells)]


def _predicted_against(kept: Mapping[str, Mapping[str, float]], share: str) -> str:
    ours = kept["predicted"][share]
    best = max(shares[share] for rule, shares in kept.items() if rule != "predicted")
    return f"{100 * ours:.1f} ({100 * (ours - best):+.1f})"


Lines = Callable[[Document], list[str]]
BLOCKS: dict[
    str, tuple[Lines, tuple[str, ...]]
] = {  # name -> its figures, and how its claims begin
    "hints": (_hints, ("perfect", "hint of", "useless")),
    "hints of tenants": (_tenants, ("a tenant",)),
    "unseen traces": (_unseen, ("unseen",)),
    "unseen clocks": (_clocks, ("clock",)),
    "unseen scans": (_scans, ("a scan",)),
    "scans of seeds": (_seeds, ("a scan",)),
    "unseen newcomers": (_late, ("who comes",)),
    "writes": (_writes, ("",)),
    "writes elsewhere": (_elsewhere, ()),
}


def plot(document: Document, path: Path) -> None:
    """Draw the curves of writes.json."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    whens = {name: when for when, name in NAMES.items()}
    curves: dict[tuple[str, When], Curve] = {
        (row["rule"], whens[row["when"]]): Curve(
            np.array(row["written_pages"]), np.array(row["page_hits"])
        )
        for row in document["rows"]
        if "rule" in row
    }
    there = document["environment"]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "writes"}):
        figure = Figure(figsize=(9, 6), layout="constrained")
        axes = figure.subplots()
        draw(axes, curves, there["write_through_pages"], there["write_through_hits"])
        axes.grid(visible=True, alpha=0.25)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
