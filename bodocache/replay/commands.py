# SPDX-License-Identifier: Apache-2.0
"""``bodocache trace``: generate, describe and fetch traces, from the command line."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from bodocache.replay import describe as describing
from bodocache.replay import fetch as fetching
from bodocache.replay import terminal
from bodocache.replay.requests import TraceRequest, format_request, write_trace
from bodocache.replay.shapes import WORKLOADS
from bodocache.replay.shapes import workload as named_workload
from bodocache.replay.trace import load_trace

trace_app = typer.Typer(
    name="trace",
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Traces of requests: generate one, describe one, or fetch a public one.",
)


@trace_app.command(
    "generate",
    epilog="Examples: [bold]bodocache trace generate chats.jsonl.gz --requests 5000[/bold],"
    " [bold]bodocache trace generate agents.jsonl --workload agents[/bold]",
)
def generate_command(  # noqa: PLR0913 -- each is an option of the command line
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON lines; .gz is compressed, - is stdout.")
    ],
    *,
    workload: Annotated[
        str, typer.Option(metavar="SHAPE", help=f"One of {', '.join(WORKLOADS)}.")
    ] = "chat",
    requests: Annotated[int | None, typer.Option(min=1, help="Requests to write.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Equal seeds, equal traces.")] = None,
    tenants: Annotated[
        int | None, typer.Option(min=1, help="Tenants; each has system prompts of its own.")
    ] = None,
    requests_per_s: Annotated[
        float | None, typer.Option(help="Mean arrivals a second, in the long run.")
    ] = None,
    mean_turns: Annotated[float | None, typer.Option(help="Mean turns of a conversation.")] = None,
    burst_factor: Annotated[
        float | None, typer.Option(help="How much denser arrivals are in a burst; 1: none.")
    ] = None,
    page_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens a page.")] = None,
) -> None:
    """Write a built-in workload: conversations over shared prompts of several tenants.

    The defaults are the workload's own. Those of chat are the workload that [bold]replay[/bold] and
    [bold]trace describe[/bold] take where no trace is given.
    """
    chosen = named_workload(
        workload,
        seed=seed,
        requests=requests,
        requests_per_s=requests_per_s,
        tenants=tenants,
        page_tokens=page_tokens,
        mean_turns=mean_turns,
        burst_factor=burst_factor,
    )
    if file == terminal.STANDARD_OUTPUT:
        _print_lines(chosen.requests())
        return
    written = write_trace(file, chosen.requests())
    typer.echo(f"{file}: {written:,} requests", err=True)


@trace_app.command(
    "describe",
    epilog="Examples: [bold]bodocache trace describe[/bold], "
    "[bold]bodocache trace describe mooncake-conversation.jsonl --json -[/bold]",
)
def describe_command(
    trace: Annotated[
        Path | None,
        typer.Argument(metavar="[TRACE]", help="A trace; the built-in workload if left out."),
    ] = None,
    max_requests: Annotated[
        int | None, typer.Option(min=1, help="Read no further than this many requests.")
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write JSON instead; - is stdout."),
    ] = None,
) -> None:
    """Print requests, distinct pages, the infinite-cache hit ratio and the gaps between uses.

    The infinite-cache hit ratio is the ceiling: no cache of any size hits more often.
    """
    description = describing.describe(load_trace(trace, max_requests))
    if json_file is None:
        Console().print(describing.render(description))
        return
    terminal.write_json(json_file, describing.as_json(description))


@trace_app.command(
    "fetch",
    epilog="Example: [bold]bodocache trace fetch mooncake-conversation --to traces[/bold]",
)
def fetch_command(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help=f"One of: {', '.join(sorted(fetching.NAMED))}.")
    ],
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Where NAME.jsonl goes.")] = Path(),
    url: Annotated[
        str | None, typer.Option(help="A mirror (http or https); its bytes must be the same.")
    ] = None,
) -> None:
    """Download a public trace, check its bytes, and say whose it is.

    Nothing is downloaded where the right file already lies there.
    """
    with _progress(name) as progress:
        fetched = fetching.fetch(name, to, url=url, progress=progress)
    state = "fetched" if fetched.downloaded else "already there"
    typer.echo(f"{fetched.path}: {state}, checksum right (sha256 {fetched.trace.sha256})")
    typer.echo(f"  what:    {fetched.trace.note}")
    typer.echo(f"  licence: {fetched.trace.licence}")
    typer.echo(f"  source:  {fetched.trace.url}")


def _print_lines(requests: Iterator[TraceRequest]) -> None:
    for request in requests:
        sys.stdout.write(format_request(request) + "\n")


@contextmanager
def _progress(name: str) -> Iterator[fetching.Progress]:
    """Draw a bar on stderr, where it is a terminal, from the first bytes on."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    console = Console(stderr=True)
    with Progress(*columns, TransferSpeedColumn(), console=console, transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
