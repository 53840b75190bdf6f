# SPDX-License-Identifier: Apache-2.0
"""``bodocache top`` and ``bodocache why``, from the command line."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape

from bodocache.errors import WatchError
from bodocache.watch import attach

if TYPE_CHECKING:
    from bodocache.watch.top import Frame

At = Annotated[
    str,
    typer.Argument(
        metavar="AT", help="Where the cache exports: a port (9477) or a URL on loopback."
    ),
]


def top(
    at: At,
    *,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two frames.")] = 1.0,
) -> None:
    """Watch a running cache: tiers, links, misses and cuts by reason, loads in flight.

    The cache, or its node, exports its metrics on loopback when its configuration says [metrics]
    port, or when it is a replay with --metrics-port. Rates are since the frame before; Ctrl-C ends.
    """
    from bodocache.watch.top import render

    frame = _frame(at)
    console = Console()
    if once:
        console.print(render(frame))
        return
    with Live(render(frame), console=console, screen=console.is_terminal) as live:
        try:
            while True:
                time.sleep(interval)
                before, frame = frame, _frame(at)
                live.update(render(frame, before), refresh=True)
        except KeyboardInterrupt:
            return


def explain(
    asked: Annotated[
        str,
        typer.Argument(
            metavar="REQUEST|KEY",
            help="A request's number or session, or 16 or more hex digits of a page's key.",
        ),
    ],
    *,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="What replay --timeline or the cache wrote."),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="AT", help="A running cache: its port or URL, as for top."),
    ] = None,
) -> None:
    """Explain why pages of a request were misses or came late, or where one page is.

    Requests are numbered by their match (match.said.request); the timeline shows the numbers. The
    newest 1,024 are remembered.
    """
    if (file is None) == (at is None):
        raise typer.BadParameter("give one of --file FILE and --at PORT: where to look it up")
    console = Console()
    for line in _lines(asked, file, at):
        console.print(escape(line), soft_wrap=True, highlight=False)


def _lines(asked: str, file: Path | None, at: str | None) -> list[str]:
    from bodocache.watch import recording, why

    if file is not None:
        return list(why.explain(recording.read(file), asked))
    assert at is not None
    ours = recording.checked(attach.fetch_json(at, "/timeline"), at)
    try:
        return list(why.explain(ours, asked))
    except WatchError:
        if not why.is_key(asked):
            raise
    pages = attach.fetch_json(at, f"/page?key={asked}")  # of no request that is remembered
    if not pages["pages"]:
        raise WatchError(f"key {asked}: not known: never stored, or forgotten since")
    return [
        f"page {key}: {why.explain_page(page, pages['taken_s'])}"
        for key, page in pages["pages"].items()
    ]


def _frame(at: str) -> "Frame":
    from bodocache.watch.top import Frame

    return Frame.parsed(attach.fetch(at, "/metrics").decode(), time.monotonic())
