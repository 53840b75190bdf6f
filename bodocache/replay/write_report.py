# SPDX-License-Identifier: Apache-2.0
"""Hits kept against pages written as JSON, as a table, and as a plot in one HTML page.

The names of the JSON are stable; docs/replay.md lists them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from bodocache.replay.report import COLOURS, Plot, as_svg, new_figure, write_page
from bodocache.replay.tiers import When
from bodocache.replay.writes import Curve, Writes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHARES = (0.25, 0.5, 0.75, 0.9)  # of write-through's pages, in tables
KEPT = 0.95  # of its hits
NAMES = {When.STORE: "store", When.LEAVE: "leave"}
_DASHES = {When.STORE: "-", When.LEAVE: "--"}
_MARKERS = "os^"  # of the first six rules, of the next six, and so on


def as_json(writes: Writes) -> dict[str, object]:
    """The figures under their documented names."""
    curves: dict[str, dict[str, object]] = {}
    for (rule, when), curve in writes.of.items():
        curves.setdefault(rule.value, {})[NAMES[when]] = {
            "written_pages": curve.written.tolist(),
            "page_hits": curve.hits.tolist(),
        }
    return {
        "trace": writes.trace,
        "requests": writes.requests,
        "pages_touched": writes.touches,
        "host_pages": writes.host_pages,
        "write_through_pages": writes.through_pages,
        "write_through_hits": writes.through_hits,
        "host_hits": writes.host_hits,
        "curves": curves,
    }


def render(writes: Writes) -> RenderableType:
    """The table a person reads: of write-through's hits, those kept with fewer writes."""
    title = f"hits kept on {escape(writes.trace)}, by pages written; host {writes.host_pages:,}"
    table = Table(title=title, title_justify="left")
    table.add_column("rule", no_wrap=True)
    table.add_column("at", no_wrap=True)
    for share in SHARES:
        table.add_column(f"{share:.0%}", justify="right")
    table.add_column(f"for {KEPT:.0%}", justify="right")
    for (rule, when), curve in writes.of.items():
        kept = (f"{kept_at(writes, curve, share):.1%}" for share in SHARES)
        table.add_row(rule.value, NAMES[when], *kept, f"{needed(writes, curve):.1%}")
    return table


def kept_at(writes: Writes, curve: Curve, share: float) -> float:
    """The share of write-through's hits, with this share of its writes."""
    return curve.at(share * writes.through_pages) / max(1, writes.through_hits)


def needed(writes: Writes, curve: Curve) -> float:
    """The share of write-through's writes, for KEPT of its hits."""
    return curve.least_for(KEPT * writes.through_hits) / max(1, writes.through_pages)


def save_report(writes: Writes, path: Path) -> None:
    """Write one HTML page; BackendUnavailable where matplotlib is not installed."""
    summary = [
        ("requests", f"{writes.requests:,}"),
        ("pages touched", f"{writes.touches:,}"),
        ("host", f"{writes.host_pages:,} pages"),
        ("write-through writes", f"{writes.through_pages:,} pages"),
        ("write-through hits", f"{writes.through_hits:,} pages"),
        ("hits of the host alone", f"{writes.host_hits:,} pages"),
    ]
    write_page(path, f"Writes to disk on {writes.trace}", summary, lambda: [_plot(writes)])


def _plot(writes: Writes) -> Plot:
    figure, axes = new_figure(height=5.2)
    curves = {(rule.value, when): curve for (rule, when), curve in writes.of.items()}
    draw(axes, curves, writes.through_pages, writes.through_hits)
    return Plot("Hits kept over pages written", _words(writes), as_svg(figure, "writes"))


def draw(
    axes: "Axes", of: Mapping[tuple[str, When], Curve], through_pages: int, through_hits: int
) -> None:
    """Draw the curves; broken lines decide when a page leaves the host."""
    rules = list(dict.fromkeys(rule for rule, _ in of))
    for (rule, when), curve in of.items():
        turn, place = divmod(rules.index(rule), len(COLOURS))
        look: dict[str, Any] = {
            "color": COLOURS[place],
            "marker": _MARKERS[turn],
            "ms": 3,
            "lw": 1.2,
        }
        written, hits = 100 * curve.written / through_pages, 100 * curve.hits / through_hits
        axes.plot(written, hits, label=f"{rule}, {NAMES[when]}", ls=_DASHES[when], **look)
    axes.set(xlabel="pages written, % of write-through's", ylabel="hits kept, % of write-through's")
    axes.legend(loc="lower right", fontsize="small")


def _words(writes: Writes) -> str:
    """The figures for one who does not see the plot."""
    half = (
        f"{rule.value} ({NAMES[when]}) {kept_at(writes, curve, 0.5):.1%}"
        for (rule, when), curve in writes.of.items()
    )
    return f"With half of write-through's writes these keep of its hits: {', '.join(half)}."
