# SPDX-License-Identifier: Apache-2.0
"""``bodocache slab``: check, measure and trim a slab directory, from the command line."""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bodocache import jit
from bodocache.config import sized
from bodocache.io import check as checking
from bodocache.io import figures as measuring
from bodocache.io.check import Checked, Damaged
from bodocache.io.config import OpenMode
from bodocache.io.figures import Figures, Histogram
from bodocache.io.trim import Plan, Trim
from bodocache.pages import Reason
from bodocache.replay import terminal

slab_app = typer.Typer(
    name="slab",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Look after a slab: the directory where a cache's disk tier lies.",
)

KEY_SHOWN_NBYTES = 8
DAMAGED_SHOWN = 20  # frames; --json has all

Directory = Annotated[
    Path, typer.Argument(metavar="DIR", help="The slab's directory; its superblock says the rest.")
]
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the figures here; - is standard output."),
]


def _size(text: str) -> int:
    """Bytes of an option."""
    try:
        return sized(int(text) if text.isdecimal() else text)
    except ValueError as error:
        raise typer.BadParameter(f"{text}: {error}") from error


@slab_app.command(
    "check",
    epilog="Examples: [bold]bodocache slab check /cache[/bold],"
    " [bold]bodocache slab check /cache --json check.json[/bold]",
)
def check_command(directory: Directory, json_file: JsonFile = None) -> None:
    """Read every header and every payload, and compare each page with its digest.

    Nothing is changed, and a cache may be running on the directory: a page that
    it overwrites meanwhile is counted as changed, not as damaged. After a power
    cut or a kill some frames may be damaged; a cache finds them out when it reads
    them, and computes those pages again.

    Exit status 1 if a frame claims to hold a page and does not.
    """
    console = terminal.console_beside(json_file)
    terminal.compile_first(console, jit.warm)
    with terminal.progress_bar(console) as progress:
        task = progress.add_task("checking", total=None)
        checked = asyncio.run(
            checking.check(
                directory,
                lambda done, total: progress.update(task, completed=done, total=total),
            )
        )
    console.print(_render_checked(checked))
    for damaged in checked.damaged[:DAMAGED_SHOWN]:
        console.print(
            f"[bold red]damaged:[/bold red] frame {damaged.frame}: {_words(damaged.reason)},"
            f" key {_shown(damaged)}...",
            highlight=False,
        )
    if len(checked.damaged) > DAMAGED_SHOWN:
        console.print(f"and {len(checked.damaged) - DAMAGED_SHOWN:,} more; --json FILE has all")
    terminal.write_json(json_file, _checked_json(checked))
    if checked.damaged:
        raise typer.Exit(1)


@slab_app.command(
    "stats",
    epilog="Examples: [bold]bodocache slab stats /cache[/bold],"
    " [bold]bodocache slab stats /cache --json -[/bold]",
)
def stats_command(directory: Directory, json_file: JsonFile = None) -> None:
    """Show how full a slab is, how its pages lie, how deep and how old they are.

    Only headers are read, and a cache may be running on the directory; pages
    that it has released count until their frames are written again. Age counts
    pages written since. Adjacent pages of one prefix are read at once.
    """
    console = terminal.console_beside(json_file)
    terminal.compile_first(console, jit.warm)
    figures = measuring.measure(directory)
    for table in _render_figures(figures):
        console.print(table)
    terminal.write_json(json_file, _figures_json(figures))


@slab_app.command(
    "trim",
    epilog="Examples: [bold]bodocache slab trim /cache --dry-run[/bold],"
    " [bold]bodocache slab trim /cache[/bold],"
    ' [bold]bodocache slab trim /cache --to "50 GiB"[/bold]',
)
def trim_command(
    directory: Directory,
    *,
    to: Annotated[
        int | None,
        typer.Option(
            parser=_size,
            metavar="SIZE",
            help='Shrink the capacity to this, bytes or "8 GiB"; pages that lie beyond are lost.',
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would happen; works beside a cache.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask before pages are lost.")
    ] = False,
) -> None:
    """Give the disk space of empty frames back; no cache may be running on the directory.

    The files keep their length, with holes where frames hold nothing. A cache
    that opens the directory again fills the holes as it writes, and no sooner:
    until then others may take that space, and its writes then fail. With --to
    the files get shorter. Give the cache that capacity too, or it makes them as
    long again when it opens them.
    """
    console = Console()
    mode = OpenMode.READER if dry_run else OpenMode.KEEPER
    with Trim(directory, to_nbytes=to, mode=mode) as trim:
        plan = trim.plan
        console.print(_render_plan(plan))
        if dry_run:
            freed = max(0, plan.nbytes_on_disk - plan.kept_nbytes)
            console.print(f"dry run: about {freed:,} bytes would be freed")
            return
        if plan.lost and not yes:
            typer.confirm(
                f"{plan.lost:,} pages lie beyond {plan.new_capacity_nbytes:,} bytes and are lost."
                " Go on?",
                abort=True,
            )
        console.print(f"{trim.run():,} bytes freed")


def _render_checked(checked: Checked) -> Table:
    table = _table("frames")
    table.add_row("whole pages", f"{checked.whole:,}")
    table.add_row("older copies of pages", f"{checked.duplicates:,}")
    table.add_row("changed while reading", f"{checked.changed:,}")
    for reason, count in checked.reasons.items():
        table.add_row(_words(reason), f"{count:,}")
    table.add_row("all", f"{checked.frames:,}")
    rate = checked.nbytes / max(checked.seconds, 1e-9) / 1e9
    table.add_row("bytes read", f"{checked.nbytes:,} in {checked.seconds:.1f} s, {rate:.2f} GB/s")
    return table


def _checked_json(checked: Checked) -> dict[str, object]:
    return asdict(checked) | {
        "reasons": _reasons_json(checked.reasons),
        "damaged": [
            {"frame": it.frame, "reason": it.reason.name.lower(), "key": _shown(it)}
            for it in checked.damaged
        ],
    }


def _render_figures(figures: Figures) -> list[Table]:
    block, table = figures.superblock, _table("pages")
    table.add_row("pages", f"{figures.pages:,} of {block.frame_count:,} ({figures.fill:.1%})")
    for reason, count in figures.reasons.items():
        table.add_row(f"no page: {_words(reason)}", f"{count:,}")
    table.add_row("bytes of a page, of its frame", f"{block.page_nbytes:,}, {block.frame_nbytes:,}")
    table.add_row("bytes on disk", f"{figures.nbytes_on_disk:,}")
    table.add_row("capacity, bytes", f"{figures.capacity_nbytes:,}")
    table.add_row("first pages of a prompt", f"{figures.first_pages:,}")
    table.add_row("without the page before them", f"{figures.orphans:,}")
    table.add_row(
        "right behind the page before them",
        f"{figures.adjacent:,} of {figures.children:,} ({figures.adjacent_share:.1%})",
    )
    table.add_row("adjacent pages of a prefix, mean", f"{figures.extent_pages:.2f}")
    table.add_row("pages ever written", f"{figures.generation:,}")
    table.add_row("format version", str(block.version))
    table.add_row("form", f"{block.form[:8].hex()}...")
    return [
        table,
        _render_histogram("free runs by frames", figures.free_runs),
        _render_histogram("pages by depth", figures.depths),
        _render_histogram("pages by pages written since", figures.ages),
    ]


def _figures_json(figures: Figures) -> dict[str, object]:
    block = figures.superblock
    return {
        "pages": figures.pages,
        "frames": block.frame_count,
        "fill": figures.fill,
        "reasons": _reasons_json(figures.reasons),
        "page_nbytes": block.page_nbytes,
        "frame_nbytes": block.frame_nbytes,
        "nbytes_on_disk": figures.nbytes_on_disk,
        "capacity_nbytes": figures.capacity_nbytes,
        "first_pages": figures.first_pages,
        "orphans": figures.orphans,
        "children": figures.children,
        "adjacent": figures.adjacent,
        "adjacent_share": figures.adjacent_share,
        "extent_pages": figures.extent_pages,
        "free_runs": _histogram_json(figures.free_runs),
        "depths": _histogram_json(figures.depths),
        "ages": _histogram_json(figures.ages),
        "generation": figures.generation,
        "version": block.version,
        "form": block.form.hex(),
        "slab": block.slab.hex(),
    }


def _render_plan(plan: Plan) -> Table:
    table = _table("trim")
    table.add_row("capacity, bytes", f"{plan.capacity_nbytes:,} -> {plan.new_capacity_nbytes:,}")
    table.add_row("frames", f"{plan.frames:,} -> {plan.new_frames:,}")
    table.add_row("pages lost", f"{plan.lost:,}")
    table.add_row("empty frames that get a hole", f"{plan.empty:,}")
    table.add_row("headers of empty frames erased", f"{plan.erased:,}")
    table.add_row("bytes on disk now", f"{plan.nbytes_on_disk:,}")
    return table


def _render_histogram(title: str, histogram: Histogram) -> Table:
    table, most = _table(title), max(histogram.counts, default=0)
    for low, count in zip(histogram.lows, histogram.counts, strict=True):
        if count:
            label = str(low) if low < 2 else f"{low:,} to {2 * low - 1:,}"
            table.add_row(label, f"{count:,}", "█" * max(1, round(30 * count / most)))
    return table


def _histogram_json(histogram: Histogram) -> list[dict[str, int]]:
    return [
        {"from": low, "to": max(0, 2 * low - 1), "count": count}
        for low, count in zip(histogram.lows, histogram.counts, strict=True)
    ]


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    table.add_column()
    table.add_column(justify="right", overflow="fold")
    return table


def _reasons_json(reasons: dict[Reason, int]) -> dict[str, int]:
    return {reason.name.lower(): count for reason, count in reasons.items()}


def _words(reason: Reason) -> str:
    return "superseded" if reason is Reason.EVICTED else reason.name.lower().replace("_", " ")


def _shown(damaged: Damaged) -> str:
    return damaged.key[:KEY_SHOWN_NBYTES].hex()
