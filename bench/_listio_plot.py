# SPDX-License-Identifier: Apache-2.0
"""The plot of a run: GB/s over page size, one line an engine, with the interval of its runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OURS = "bodocache slab"
COLOURS = (
    "#555555",
    "#4477aa",
    "#66ccee",
    "#228833",
    "#ccbb44",
    "#aa3377",
    "#ee6677",
    "#994455",
    "#000000",
)
BEST_RAW = "best raw method"


def draw(path: Path, rows: Sequence[Mapping[str, Any]], runs: str) -> None:
    """Write one panel for each direction and layout; the suffix of ``path`` chooses the format."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(11, 8), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    names = _names(rows)
    for line, direction in zip(panels, ("write", "read"), strict=True):
        for axes, layout in zip(line, (runs, "scattered"), strict=True):
            chosen = [r for r in rows if (r["direction"], r["layout"]) == (direction, layout)]
            _panel(axes, chosen, names)
            axes.set_title(f"{direction}, {layout}", loc="left", fontsize=10)
        line[0].set_ylabel("GB/s")
    for axes in panels[1]:
        axes.set_xlabel("page, KiB")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, metadata=metadata)


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Ours and the best raw method first; raw methods that are not the best have no line."""
    seen = dict.fromkeys(row["engine"] for row in rows)
    left_out = ("raw", "slab's threads")
    return [OURS, BEST_RAW, *(n for n in seen if n != OURS and not n.startswith(left_out))]


def _panel(axes: Any, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    for i, name in enumerate(names):
        is_best = name == BEST_RAW
        mine = [row for row in rows if (row["is_best_raw"] if is_best else row["engine"] == name)]
        pages = [row["page_nbytes"] / 1024 for row in mine]
        rates = [row["gb_per_s"] for row in mine]
        spread = [
            [row["gb_per_s"] - row["interval"][0] for row in mine],
            [row["interval"][1] - row["gb_per_s"] for row in mine],
        ]
        look = (
            {"color": "#cc3311", "lw": 2.4}
            if name == OURS
            else {"color": COLOURS[(i - 1) % len(COLOURS)]}
        )
        style = "--" if is_best else "-"
        axes.errorbar(pages, rates, spread, label=name, ls=style, marker="o", ms=3, **look)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    pages = sorted({row["page_nbytes"] // 1024 for row in rows})
    axes.set_xticks(pages, [f"{page:g}" for page in pages])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(visible=True, alpha=0.25)
