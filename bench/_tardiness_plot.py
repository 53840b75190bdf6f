# SPDX-License-Identifier: Apache-2.0
"""The plot of bench/tardiness.py: requests on time over the load, one line for each policy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = ("#aa3377", "#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#bbbbbb", "#000000")


def draw(path: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Write a panel for each disk rate and weather; the suffix of ``path`` chooses the format."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    disks = sorted({row["disk_bytes_per_s"] for row in rows})
    weathers = list(dict.fromkeys(row["weather"] for row in rows))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "tardiness"}):
        figure = Figure(figsize=(11, 9), layout="constrained")
        panels = figure.subplots(len(disks), len(weathers), sharex=True, sharey=True, squeeze=False)
        for line, disk in zip(panels, disks, strict=True):
            for axes, weather in zip(line, weathers, strict=True):
                of = [r for r in rows if (r["disk_bytes_per_s"], r["weather"]) == (disk, weather)]
                _panel(axes, of, names)
                axes.set_title(f"disk {disk / 1e9:g} GB/s, {weather}", loc="left", fontsize=10)
            line[0].set_ylabel("first tokens on time")
        for axes in panels[-1]:
            axes.set_xlabel("load, s of cold prefill a second")
        handles = panels[0][0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=4)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _panel(axes: Any, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    for name, colour in zip(names, COLOURS, strict=True):
        mine = sorted((r["load"], r["slo_attainment"]) for r in rows if r["policy"] == name)
        style = {"linewidth": 2.5} if name == names[0] else {"linewidth": 1.0}
        dashes = "--" if name == names[-1] else "-"
        axes.plot(*zip(*mine, strict=True), dashes, marker=".", color=colour, label=name, **style)
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
