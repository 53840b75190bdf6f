# SPDX-License-Identifier: Apache-2.0
"""The report of a replay: one HTML page that needs nothing else, plots as SVG inside it.

Matplotlib is an optional package, imported when a report is written. Plots take the page's text
colour, so they can be read on a light and on a dark screen; each has its figures in words, too.
"""

import importlib.util
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bodocache.errors import BackendUnavailable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES_POINTS = 800  # more than a screen shows; keeps a page of a long replay below 1 MB
LEAST_MS = 1e-3  # latencies below a microsecond share the first bar of the logarithmic axis
HISTOGRAM_BARS = 40
INK = "#010203"  # stands for the page's text colour until the SVG is finished
_LOOK: Any = {  # Any: releases of matplotlib type its keys differently
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "font.size": 11.0,
    "text.parse_math": False,  # a $ in a name is a $
    "svg.fonttype": "none",  # text stays text: it can be read, searched and scaled
}
COLOURS = ("#2f7ed8", "#e8871e", "#2a9d6f", "#b455c8", "#d1495b", "#7a8b99")


class LinkBar(NamedTuple):
    """What one link carried, and how fast while it was busy (None: not measured); 10^9 bytes."""

    name: str
    gigabytes: float
    gigabytes_per_s: float | None


class HitRatioSeries(NamedTuple):
    """Cumulative hit ratios (0..1) at moments of the replay, and the optimum's at the same ones."""

    time_s: ArrayLike
    ratio: ArrayLike
    optimum_ratio: ArrayLike


@dataclass(frozen=True, slots=True)
class ReportData:
    """All a report shows. A part that is empty is left out of the page."""

    title: str
    summary: Sequence[tuple[str, str]]
    hit_ratio: HitRatioSeries
    links: Sequence[LinkBar]
    latencies_ms: Mapping[str, ArrayLike]  # by kind of operation
    misses: Mapping[str, int]  # by reason
    optimum_name: str = "exact optimum"  # or "upper bound", where pages are not equal

    def __post_init__(self) -> None:
        lengths = [len(np.atleast_1d(column)) for column in self.hit_ratio]
        if len(set(lengths)) != 1:
            raise ValueError(f"report: hit_ratio has columns of {lengths} values, expected equal")


class Plot(NamedTuple):
    """A figure of a page."""

    heading: str
    words: str  # the plot's figures, for a reader who does not see it
    svg: str


def require_matplotlib() -> None:
    """Raise BackendUnavailable where matplotlib is not installed: before the work, not after."""
    if importlib.util.find_spec("matplotlib") is None:
        raise BackendUnavailable(
            "report: matplotlib is not installed; pip install bodocache[report]"
        )


def write_report(path: Path, data: ReportData) -> None:
    """Write the page of a live replay; BackendUnavailable where matplotlib is not installed."""

    def draw() -> list[Plot]:
        drawn = (_hit_ratio(data), _links(data), _latencies(data), _misses(data))
        return [plot for plot in drawn if plot]

    write_page(path, data.title, data.summary, draw)


def write_page(
    path: Path,
    title: str,
    summary: Sequence[tuple[str, str]],
    draw: Callable[[], Sequence[Plot]],
) -> None:
    """Write a page of the plots that ``draw`` makes, in the look of all reports.

    BackendUnavailable where matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib as mpl

    with mpl.rc_context(_LOOK):
        plots = draw()
    path.write_text(_page(title, summary, plots), encoding="utf-8")


def _hit_ratio(data: ReportData) -> Plot | None:
    time_s, ratio, optimum = (np.asarray(c, dtype=np.float64) for c in data.hit_ratio)
    if not len(time_s):
        return None
    kept = np.unique(np.linspace(0, len(time_s) - 1, SERIES_POINTS).astype(np.int64))
    figure, axes = new_figure()
    axes.plot(time_s[kept], 100 * optimum[kept], "--", color=INK, lw=1.2, label=data.optimum_name)
    axes.plot(time_s[kept], 100 * ratio[kept], color=COLOURS[0], lw=1.8, label="this replay")
    axes.set(xlabel="seconds", ylabel="hits so far, %", ylim=(0, None))
    axes.legend(loc="lower right")
    words = (
        f"At the end {ratio[-1]:.1%} of page touches hit; "
        f"the {data.optimum_name} for this capacity is {optimum[-1]:.1%}."
    )
    return Plot("Hit ratio over time", words, as_svg(figure, "hits"))


def _links(data: ReportData) -> Plot | None:
    if not data.links:
        return None
    notes = [_link_note(link) for link in data.links]
    names, amounts = [link.name for link in data.links], [link.gigabytes for link in data.links]
    figure = _bars(names, amounts, notes, "GB")
    words = "; ".join(f"{name}: {note}" for name, note in zip(names, notes, strict=True)) + "."
    return Plot("Bytes per link", words, as_svg(figure, "links"))


def _link_note(link: LinkBar) -> str:
    rate = "" if link.gigabytes_per_s is None else f" at {link.gigabytes_per_s:.3g} GB/s"
    return f"{link.gigabytes:.3g} GB{rate}"


def _latencies(data: ReportData) -> Plot | None:
    kinds = {kind: _finite(values) for kind, values in data.latencies_ms.items()}
    kinds = {kind: values for kind, values in kinds.items() if len(values)}
    if not kinds:
        return None
    least = min(values.min() for values in kinds.values())
    most = max(values.max() for values in kinds.values())
    # Whole decades: at least two ticks have a label, however close the latencies are.
    decades = (10.0 ** np.floor(np.log10(least)), 10.0 ** np.floor(np.log10(most) + 1))
    edges = np.geomspace(*decades, HISTOGRAM_BARS + 1)
    figure, axes = new_figure()
    for (kind, values), colour in zip(kinds.items(), cycle(COLOURS), strict=False):
        counts, _ = np.histogram(values, edges)
        axes.stairs(counts, edges, fill=True, color=colour, alpha=0.2)
        axes.stairs(counts, edges, color=colour, lw=1.5, label=kind)
    axes.set(xscale="log", xlim=decades, xlabel="milliseconds", ylabel="operations")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.legend(loc="upper right")
    words = "; ".join(_latency_words(*pair) for pair in kinds.items()) + "."
    return Plot("Latency", words, as_svg(figure, "latency"))


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64).ravel()
    return np.maximum(array[np.isfinite(array)], LEAST_MS)


def _latency_words(kind: str, values: NDArray[np.float64]) -> str:
    p50, p99 = np.percentile(values, [50, 99])
    return f"{kind}: {len(values):,} operations, median {p50:.3g} ms, p99 {p99:.3g} ms"


def _misses(data: ReportData) -> Plot | None:
    reasons = sorted(data.misses.items(), key=lambda pair: -pair[1])
    if not reasons:
        return None
    names, counts = [name for name, _ in reasons], [count for _, count in reasons]
    total = max(1, sum(counts))
    notes = [f"{count:,} ({count / total:.0%})" for count in counts]
    figure = _bars(names, [float(count) for count in counts], notes, "pages")
    words = "; ".join(f"{name}: {note}" for name, note in zip(names, notes, strict=True)) + "."
    return Plot("Misses by reason", words, as_svg(figure, "misses"))


def _bars(
    names: Sequence[str], amounts: Sequence[float], notes: Sequence[str], unit: str
) -> "Figure":
    figure, axes = new_figure(height=0.9 + 0.38 * len(names))
    bars = axes.barh(range(len(names)), amounts, color=COLOURS[0], height=0.62)
    axes.bar_label(bars, notes, padding=4)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35 * max(*amounts, 1e-9))  # room for the words behind the longest bar
    axes.set_xlabel(unit)
    return figure


def new_figure(height: float = 3.2) -> "tuple[Figure, Axes]":
    """Return a figure of our own: pyplot would keep it, and ask for a screen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, height), layout="constrained")
    axes = figure.subplots()
    return figure, axes


def as_svg(figure: "Figure", name: str) -> str:
    """Return a bare <svg>: text as text, no metadata, ids that no other plot of the page has."""
    import matplotlib as mpl

    with io.StringIO() as buffer, mpl.rc_context({"svg.hashsalt": name}):
        unsaid = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=unsaid)
        svg = buffer.getvalue()
    bare = svg[svg.index("<svg") :]
    bare = re.sub(r"<metadata>.*?</metadata>", "", bare, flags=re.DOTALL)
    bare = re.sub(r'<g id="[^"]*"', "<g", bare)
    return bare.replace("<svg ", '<svg aria-hidden="true" ', 1).replace(INK, "currentColor")


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --faint: #d8dee4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --paper: #14181d; --faint: #363d45; }
}
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; }
th, td { padding: .3rem 1.2rem .3rem 0; border-bottom: 1px solid var(--faint); }
th { text-align: left; font-weight: 500; } td { font-variant-numeric: tabular-nums; }
figure { margin: 0; } figure svg { width: 100%; height: auto; color: var(--ink); }
figure svg text { font-family: system-ui, sans-serif !important; }
figcaption { font-size: .92rem; opacity: .85; }
"""


def _page(title: str, summary: Sequence[tuple[str, str]], plots: Sequence[Plot]) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{escape(label)}</th><td>{escape(value)}</td></tr>'
        for label, value in summary
    )
    figures = "\n".join(
        f"<section><h2>{escape(plot.heading)}</h2>\n<figure>{plot.svg}"
        f"<figcaption>{escape(plot.words)}</figcaption></figure></section>"
        for plot in plots
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<table>
{rows}
</table>
{figures}
</main>
</body>
</html>
"""
