# SPDX-License-Identifier: Apache-2.0
"""The command line: ``replay``, ``trace``, ``slab``, ``node``, ``kernels``, top, why, ..."""

import asyncio
import logging
import math
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from bodocache import env
from bodocache.errors import BodoCacheError
from bodocache.kernels.targets import TARGETS
from bodocache.replay import terminal
from bodocache.replay.commands import trace_app
from bodocache.replay.policy import Policy
from bodocache.replay.shapes import WORKLOADS
from bodocache.replay.shapes import workload as named_workload
from bodocache.replay.trace import Source
from bodocache.slab_commands import slab_app
from bodocache.watch import commands as watching

app = typer.Typer(
    name="bodocache",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="A hierarchical KV cache for LLM inference.",
)
app.add_typer(trace_app, name="trace")
app.add_typer(slab_app, name="slab")
app.command(
    "top",
    epilog="Examples: [bold]bodocache top 9477[/bold]; [bold]bodocache top 9477 --once[/bold]",
)(watching.top)
app.command(
    "why",
    epilog="Examples: [bold]bodocache why 17 --at 9477[/bold];"
    " [bold]bodocache why 17 --file timeline.json[/bold];"
    " [bold]bodocache why 5f0c9a3b6d2e4f18 --at 9477[/bold]",
)(watching.explain)


# Options of one kind of replay; given to the other they would say nothing, so they are refused.
_POLICY_OPTIONS = ("policy", "capacity_pages", "bound", "curve", "policies", "writes")
_LIVE_OPTIONS = (
    *("directory", "page_bytes", "in_flight", "device_pages", "host_pages", "disk_pages"),
    *("deadline_ms", "write_through", "timeline", "metrics_port"),
)


@app.callback()
def _about() -> None:
    """Keep ``replay`` a subcommand although there are few."""


@app.command(
    epilog="Examples: [bold]bodocache replay[/bold];"
    " [bold]bodocache replay trace.jsonl --max-requests 2000 --json out.json[/bold];"
    " [bold]bodocache replay trace.jsonl --dir cache --report report.html[/bold];"
    " [bold]bodocache replay --workload agents --seed 3 --max-requests 2000[/bold];"
    " [bold]bodocache replay trace.jsonl --policy-only --policy lru --capacity-pages 10000[/bold];"
    " [bold]bodocache replay trace.jsonl --policy-only --curve --policies lru,arc,heat"
    " --report curve.html[/bold];"
    " [bold]bodocache replay trace.jsonl --policy-only --writes --capacity-pages 10000[/bold]",
)
def replay(  # noqa: PLR0913 -- each is an option of the command line
    context: typer.Context,
    trace: Annotated[
        Path | None,
        typer.Argument(help="JSON lines in Mooncake's format; default: the built-in workload."),
    ] = None,
    *,
    live: Annotated[
        bool, typer.Option("--live", help="Move real bytes, every one checked (the default).")
    ] = False,
    policy_only: Annotated[
        bool, typer.Option("--policy-only", help="Only count hits, with a compiled simulator.")
    ] = False,
    max_requests: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many requests.")
    ] = None,
    workload: Annotated[
        str | None,
        typer.Option(metavar="SHAPE", help=f"Without a trace: one of {', '.join(WORKLOADS)}."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of that workload: equal seeds, equal requests.")
    ] = None,
    policy: Annotated[
        Policy, typer.Option(help="With --policy-only: who leaves first; min is the exact optimum.")
    ] = Policy.HEAT,
    capacity_pages: Annotated[
        int | None,
        typer.Option(min=1, max=1 << 40, help="With --policy-only: pages the cache holds."),
    ] = None,
    bound: Annotated[
        bool,
        typer.Option(
            "--bound",
            help="With --policy-only: the most recompute seconds that any policy can save, too.",
        ),
    ] = False,
    curve: Annotated[
        bool,
        typer.Option(
            "--curve",
            help="With --policy-only: every capacity, from 10 pages to all, instead of one.",
        ),
    ] = False,
    writes: Annotated[
        bool,
        typer.Option(
            "--writes",
            help="With --policy-only: hits kept against pages written to a disk below a host of"
            " --capacity-pages.",
        ),
    ] = False,
    policies: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="With --curve: the policies to compare; default: all. min always."
        ),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            help="Where the disk tier lies; a second run on it starts warm. Default: a temporary"
            " folder, removed at the end.",
        ),
    ] = None,
    page_bytes: Annotated[int, typer.Option(help="Bytes of a page, a multiple of 4096.")] = 64
    << 10,
    in_flight: Annotated[int, typer.Option(min=1, help="Requests in flight at once.")] = 4,
    device_pages: Annotated[
        int | None,
        typer.Option(
            min=1, help="Default: 5 % of the distinct pages, or the longest requests in flight."
        ),
    ] = None,
    host_pages: Annotated[
        int | None,
        typer.Option(
            min=1, help="Default: 20 % of the distinct pages, or 4/3 of those longest requests."
        ),
    ] = None,
    disk_pages: Annotated[
        int | None, typer.Option(min=1, help="Default: 50 % of the distinct pages.")
    ] = None,
    deadline_ms: Annotated[
        float | None, typer.Option(min=0.0, help="A load takes no longer; what is late is a miss.")
    ] = None,
    write_through: Annotated[
        bool, typer.Option("--write-through", help="Write every page to disk, admitted or not.")
    ] = False,
    timeline: Annotated[
        Path | None,
        typer.Option(help="Write the newest requests here, for Perfetto and bodocache why."),
    ] = None,
    metrics_port: Annotated[
        int,
        typer.Option(min=0, max=65535, help="Export metrics on this port meanwhile; 0: do not."),
    ] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here; - is standard output.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write one self-contained HTML page with plots here.")
    ] = None,
) -> None:
    """Replay a trace of requests through device, host and disk, and compare with the optimum.

    Every page that a load returns is compared byte by byte with what was stored.
    """
    if live and policy_only:
        raise typer.BadParameter("choose one of --live and --policy-only")
    source: Source = trace
    if trace is not None:
        _refuse(context, ("workload", "seed"), "not with a trace")
    elif workload is not None or seed is not None:
        source = named_workload(workload or "chat", seed=seed, requests=max_requests)
    if policy_only:
        from bodocache.replay import policy_commands

        _refuse(context, _LIVE_OPTIONS, "not with --policy-only")
        if curve:
            _refuse(context, ("policy", "capacity_pages"), "not with --curve; see --policies")
            _refuse(context, ("bound", "writes"), "not with --curve: give one --capacity-pages")
            names = [*Policy] if policies is None else _chosen("--policies", policies, [*Policy])
            policy_commands.replay_curve(source, max_requests, names, json_file, report)
            return
        _refuse(context, ("policies",), "only with --curve")
        if capacity_pages is None:
            raise typer.BadParameter("--policy-only needs --capacity-pages, or --curve")
        if writes:
            _refuse(context, ("policy", "bound"), "not with --writes: the host is lru")
            policy_commands.replay_writes(source, max_requests, capacity_pages, json_file, report)
            return
        _refuse(context, ("report",), "not with --policy-only, unless with --curve or --writes")
        policy_commands.replay_policy(
            source, max_requests, policy, capacity_pages, json_file, with_bound=bound
        )
        return
    _refuse(context, _POLICY_OPTIONS, "only with --policy-only")
    from bodocache.replay.live import LiveOptions

    with _folder(directory) as folder:
        options = LiveOptions(
            directory=folder,
            page_nbytes=page_bytes,
            in_flight=in_flight,
            device_pages=device_pages,
            host_pages=host_pages,
            disk_pages=disk_pages,
            deadline_s=math.inf if deadline_ms is None else deadline_ms / 1e3,
            write_through=write_through,
            timeline=timeline,
            metrics_port=metrics_port,
        )
        _replay_live(source, max_requests, options, json_file, report)


@app.command(
    epilog="Examples: [bold]bodocache kernels[/bold];"
    " [bold]bodocache kernels --only digest --targets sm_90[/bold];"
    " [bold]bodocache kernels --targets sm_90,gfx942 --json kernels.json[/bold]",
)
def kernels(
    targets: Annotated[
        str,
        typer.Option(
            metavar="A,B",
            help="GPUs to compile for: "
            + "; ".join(f"{name} ({cards})" for name, cards in TARGETS.items())
            + ".",
        ),
    ] = ",".join(TARGETS),
    only: Annotated[
        str | None, typer.Option(metavar="A,B", help="Kernels to compile; default: all.")
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", help="Write every specialisation's figures here; - is standard output."
        ),
    ] = None,
) -> None:
    """Compile every GPU kernel as its launchers do, and show what it costs; no GPU is needed.

    Registers and spills are a thread's, shared memory is a block's. Vector is
    the narrowest access to page data, code is machine code. A kernel is unproven
    until a committed result says that it ran on that GPU and was right.

    Exit status 1 if a kernel spills, moves page data less than 16 bytes at a
    time, or does not compile.
    """
    if env.triton_interpreted():
        raise typer.BadParameter("TRITON_INTERPRET=1 is set, so Triton compiles nothing; unset it")
    chosen = _chosen("--targets", targets, TARGETS)
    console = terminal.console_beside(json_file)
    from bodocache.kernels import report as reporting

    known = reporting.known_kernels()
    wanted = known if only is None else _chosen("--only", only, known)
    with terminal.progress_bar(console) as progress:
        task = progress.add_task("compiling", total=None)
        report = reporting.compile_all(
            wanted,
            chosen,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    console.print(reporting.render(report))
    for fault in report.faults:
        console.print(f"[bold red]fault:[/bold red] {escape(fault)}", soft_wrap=True)
    for reason in report.skipped:
        console.print(f"not compiled: {escape(reason)}", soft_wrap=True)
    terminal.write_json(json_file, reporting.as_json(report))
    if report.faults:
        raise typer.Exit(1)


@app.command(epilog="Example: [bold]bodocache calibrate --device 1[/bold]")
def calibrate(
    device: Annotated[int, typer.Option(min=0, help="Index of the CUDA device.")] = 0,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write the table here too; - is standard output."),
    ] = None,
) -> None:
    """Check and time every path of copy_pages, and scoring, on a GPU, and keep the table.

    Meant to take less than 20 s. Copies in every later process choose by it, on this GPU
    under this driver. A path that moves a wrong byte, fails, crashes or hangs
    stays unproven and is not chosen. Where nothing is proven an earlier table stays, and the exit
    status is 1. On a GPU that serves one process at a time it takes longer.
    Without a table copies go through torch's own indexing.
    """
    import torch

    from bodocache.kernels import calibrate as calibration
    from bodocache.kernels import select

    console = terminal.console_beside(json_file)
    if device >= torch.cuda.device_count():
        raise typer.BadParameter(
            f"--device: {device}; this machine has {torch.cuda.device_count()} CUDA devices"
        )
    with console.status("measuring") as status:
        table, failures = calibration.calibrate(torch.device("cuda", device), note=status.update)
    for line in calibration.report(table, failures):
        console.print(escape(line), soft_wrap=True)
    kept = calibration.keep(table)
    console.print(f"kept in {kept}" if kept else calibration.NOTHING_PROVEN, soft_wrap=True)
    terminal.write_json(json_file, select.as_json(table))
    if not kept:
        raise typer.Exit(1)


@app.command(
    epilog="Example: [bold]bodocache node --config node.toml --socket /run/bodocache.sock[/bold];"
    " then, in each engine:"
    ' [bold]await NodeCache.attach(Path("/run/bodocache.sock"), config, pool)[/bold].'
    " What the file says is in docs/configuration.md; \\[node] describes the pages.",
)
def node(
    config: Annotated[
        Path, typer.Option("--config", help="TOML: identity, tiers and what a page is.")
    ],
    socket: Annotated[
        Path,
        typer.Option(
            "--socket", help="Where engines attach; who may open it may read and write every page."
        ),
    ],
) -> None:
    """Own host memory, disk and planner for all engines of this machine, until SIGTERM.

    Engines attach at the socket and map the host pool. They may come, crash and hang as
    they like: what one held is others' again, and nothing of it lands later. What is
    admitted is on disk when this ends, and is found again when it starts.

    Exit status 0 after SIGTERM or Ctrl-C; 2 if the configuration is wrong, another node
    serves the socket, or another process writes to a directory of the disk tier.
    """
    from bodocache.config import load_config
    from bodocache.node.process import run_until_told

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(run_until_told(load_config(config), socket))


def _chosen(option: str, text: str, known: Iterable[str]) -> list[str]:
    """The names in ``text``, separated by commas; end with a usage error if one is not known."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise typer.BadParameter(
            f"{option}: {', '.join(map(repr, unknown))} not known; known are {', '.join(known)}"
        )
    return names


def _refuse(context: typer.Context, names: tuple[str, ...], why: str) -> None:
    """End with a usage error if one of the options ``names`` was given."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"{parameter.opts[0]}: {why}")


def _replay_live(
    source: Source,
    max_requests: int | None,
    options: object,
    json_file: Path | None,
    report: Path | None,
) -> None:
    from bodocache.cache import warm
    from bodocache.replay import live, outcome
    from bodocache.replay.report import require_matplotlib
    from bodocache.replay.trace import load_trace

    assert isinstance(options, live.LiveOptions)
    if report is not None:
        require_matplotlib()
    console = terminal.console_beside(json_file)
    terminal.compile_first(console, warm)
    trace = load_trace(source, max_requests)
    sizes = live.sizes_for(trace, options)
    console.print(
        f"{trace.name}: {trace.num_requests:,} requests, {trace.distinct:,} distinct pages of"
        f" {options.page_nbytes:,} bytes; pages held: device {sizes.device:,}, host {sizes.host:,},"
        f" disk {sizes.disk:,}"
    )
    with terminal.progress_bar(console) as progress:
        task = progress.add_task("replaying", total=trace.num_requests)
        run = asyncio.run(
            live.replay_live(trace, options, lambda done: progress.update(task, completed=done))
        )
    console.print("measuring the disk with a plain reader, and the optimum")
    judged = outcome.judge(trace, run)
    outcome.print_summary(judged, console)
    terminal.write_json(json_file, outcome.as_json(judged))
    if options.timeline is not None:
        console.print(f"timeline: {options.timeline}; open it at ui.perfetto.dev")
    if report is not None:
        outcome.save_report(judged, report)
        console.print(f"report: {report}")
    if run.wrong_bytes:
        raise typer.Exit(1)


@contextmanager
def _folder(chosen: Path | None) -> Iterator[Path]:
    if chosen is not None:
        chosen.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield chosen
        return
    with tempfile.TemporaryDirectory(prefix="bodocache-") as folder:
        yield Path(folder)


def main() -> None:
    """Run the command line; an error is one line, and exit status 2."""
    try:
        app()
    except (BodoCacheError, OSError) as error:
        message = f"[bold red]error:[/bold red] {escape(str(error))}"
        Console(stderr=True).print(message, highlight=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
