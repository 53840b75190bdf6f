# SPDX-License-Identifier: Apache-2.0
"""Curves as JSON, as a table, and as a plot beside the optimum, alone or in one HTML page.

The names of the JSON are stable; docs/replay.md lists them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from bodocache.replay.curve import Curve, Curves, grid
from bodocache.replay.policy import Policy
from bodocache.replay.report import COLOURS, INK, Plot, as_svg, new_figure, write_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN_STEPS = (1.0, 3.0)  # of a decade, in tables
MOST_SHOWN = 6  # capacities, the largest: a table of 80 columns
_DASHES = ("-", "--", ":")


def as_json(curves: Curves) -> dict[str, object]:
    """The figures under their documented names."""
    return {
        "trace": curves.trace,
        "requests": curves.requests,
        "pages_touched": curves.touches,
        "distinct_pages": curves.distinct,
        "infinite_hits": curves.infinite_hits,
        "curves": {
            policy.value: {
                "one_pass": curve.one_pass,
                "capacity_pages": curve.capacity_pages.tolist(),
                "page_hits": curve.page_hits.tolist(),
            }
            for policy, curve in curves.of.items()
        },
    }


def render(curves: Curves) -> RenderableType:
    """The table a person reads: hit ratios at round capacities, the best bold."""
    shown = grid(curves.distinct, SHOWN_STEPS)[-MOST_SHOWN:]
    table = Table(title=f"hit ratios on {escape(curves.trace)}, by pages", title_justify="left")
    table.add_column("policy", no_wrap=True)
    for pages in shown:
        table.add_column(f"{pages:,}", justify="right")
    best = {pages: _best(curves, pages) for pages in shown}
    for policy, curve in curves.of.items():
        ratios = (
            (curve.at(pages) / max(1, curves.touches), policy in best[pages]) for pages in shown
        )
        cells = (
            f"[bold]{ratio:.4f}[/bold]" if first else f"{ratio:.4f}" for ratio, first in ratios
        )
        table.add_row(policy.value, *cells)
    return table


def _best(curves: Curves, pages: int) -> set[Policy]:
    """The policies that hit most at that capacity, the optimum apart."""
    hits = {policy: c.at(pages) for policy, c in curves.of.items() if policy is not Policy.MIN}
    return {policy for policy, count in hits.items() if count == max(hits.values())}


def save_report(curves: Curves, path: Path) -> None:
    """Write one HTML page; BackendUnavailable where matplotlib is not installed."""
    summary = [
        ("requests", f"{curves.requests:,}"),
        ("pages touched", f"{curves.touches:,}"),
        ("distinct pages", f"{curves.distinct:,}"),
        ("infinite-cache hits", f"{curves.infinite_hits:,} pages"),
        ("exact at every capacity", ", ".join(p for p, c in curves.of.items() if c.one_pass)),
        ("simulated at the dots", ", ".join(p for p, c in curves.of.items() if not c.one_pass)),
    ]
    write_page(path, f"Eviction policies on {curves.trace}", summary, lambda: [_plot(curves)])


def _plot(curves: Curves) -> Plot:
    figure, axes = new_figure(height=5.2)
    draw(axes, curves.of, curves.touches)
    return Plot("Hit ratio over capacity", _words(curves), as_svg(figure, "curves"))


def draw(axes: "Axes", curves: Mapping[Policy, Curve], touches: int, ink: str = INK) -> None:
    """Draw hit ratios over capacity, the optimum as a broken line in the colour ``ink``."""
    others = [policy for policy in curves if policy is not Policy.MIN]
    looks: dict[Policy, dict[str, Any]] = {
        policy: {
            "color": COLOURS[i % len(COLOURS)],
            "ls": _DASHES[i // len(COLOURS) % len(_DASHES)],
            "lw": 1.5,
        }
        for i, policy in enumerate(others)
    }
    looks[Policy.MIN] = {"color": ink, "ls": "--", "lw": 1.8}
    for policy, look in looks.items():
        curve = curves[policy]
        marks: dict[str, Any] = {} if curve.one_pass else {"marker": "o", "ms": 2.5}
        name = "min (optimum)" if policy is Policy.MIN else policy.value
        ratios = 100 * curve.page_hits / max(1, touches)
        axes.plot(curve.capacity_pages, ratios, label=name, **look, **marks)
    axes.set(xscale="log", xlabel="capacity, pages", ylabel="hits, % of page touches")
    axes.set_ylim(0, None)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="upper left", fontsize="small")


def _words(curves: Curves) -> str:
    """The figures at capacities a reader may ask for, for one who does not see the plot."""
    shown = grid(curves.distinct, SHOWN_STEPS)[-MOST_SHOWN:]
    return " ".join(_sentence(curves, pages) for pages in shown)


def _sentence(curves: Curves, pages: int) -> str:
    least = curves.of[Policy.MIN].at(pages) / max(1, curves.touches)
    best: Sequence[Policy] = sorted(_best(curves, pages))
    if not best:
        return f"{pages:,} pages: the optimum hits {least:.1%}."
    ratio = curves.of[best[0]].at(pages) / max(1, curves.touches)
    return f"{pages:,} pages: {' and '.join(best)} {ratio:.1%}, the optimum {least:.1%}."
