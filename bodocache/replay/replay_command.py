# SPDX-License-Identifier: Apache-2.0
"""``bodocache replay``, from the command line: live, simulated, or a policy alone."""

import asyncio
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from bodocache.options import chosen_names, refuse
from bodocache.replay import terminal
from bodocache.replay.policy import Policy
from bodocache.replay.shapes import WORKLOADS
from bodocache.replay.shapes import workload as named_workload
from bodocache.replay.simulate.names import BASELINES, ORACLE, OURS, WEATHERS, shipped
from bodocache.replay.trace import Source

# Options of one kind of replay; given to the other they would say nothing, so they are refused.
_POLICY_OPTIONS = ("policy", "capacity_pages", "bound", "curve", "policies", "writes")
_LIVE_OPTIONS = (
    *("directory", "page_bytes", "in_flight", "device_pages", "host_pages", "disk_pages"),
    *("deadline_ms", "write_through", "timeline", "metrics_port"),
)
_OTHERS = (*BASELINES, ORACLE)
_SIMULATE_OPTIONS = ("load", "engines", "weather", "against", "first")


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
    simulate: Annotated[
        str | None,
        typer.Option(
            metavar="PROFILE",
            help="Simulate an engine, its links and storage on a virtual clock: a TOML file, or one"
            f" of {', '.join(shipped())}.",
        ),
    ] = None,
    load: Annotated[
        float,
        typer.Option(
            help="With --simulate: seconds of prefill without a cache, each second and engine."
        ),
    ] = 0.6,
    engines: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="With --simulate: engines that share the cache; default: the profile's.",
        ),
    ] = None,
    weather: Annotated[
        str | None,
        typer.Option(
            metavar="W", help=f"With --simulate: the storage's rate: {', '.join(WEATHERS)}."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help=f"With --simulate: policies beside ours: {', '.join(_OTHERS)}; or all.",
        ),
    ] = None,
    first: Annotated[
        int,
        typer.Option(min=0, help="With --simulate: begin at this request, the disk warm."),
    ] = 0,
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
    if live + policy_only + (simulate is not None) > 1:
        raise typer.BadParameter("choose one of --live, --policy-only and --simulate")
    source: Source = trace
    if trace is not None:
        of_workload = ("workload",) if simulate is not None else ("workload", "seed")
        refuse(context, of_workload, "not with a trace")
    elif workload is not None or seed is not None:
        source = named_workload(workload or "chat", seed=seed, requests=max_requests)
    if simulate is not None:
        refuse(context, (*_LIVE_OPTIONS, *_POLICY_OPTIONS, "report"), "not with --simulate")
        asked = ",".join(_OTHERS) if against == "all" else against
        beside = [] if asked is None else chosen_names("--against", asked, _OTHERS)
        chosen = _Simulation(
            simulate, load, first, max_requests, seed or 0, weather, engines, beside
        )
        _replay_simulated(source, chosen, json_file)
        return
    refuse(context, _SIMULATE_OPTIONS, "only with --simulate")
    if policy_only:
        from bodocache.replay import policy_commands

        refuse(context, _LIVE_OPTIONS, "not with --policy-only")
        if curve:
            refuse(context, ("policy", "capacity_pages"), "not with --curve; see --policies")
            refuse(context, ("bound", "writes"), "not with --curve: give one --capacity-pages")
            names = (
                [*Policy] if policies is None else chosen_names("--policies", policies, [*Policy])
            )
            policy_commands.replay_curve(source, max_requests, names, json_file, report)
            return
        refuse(context, ("policies",), "only with --curve")
        if capacity_pages is None:
            raise typer.BadParameter("--policy-only needs --capacity-pages, or --curve")
        if writes:
            refuse(context, ("policy", "bound"), "not with --writes: the host is lru")
            policy_commands.replay_writes(source, max_requests, capacity_pages, json_file, report)
            return
        refuse(context, ("report",), "not with --policy-only, unless with --curve or --writes")
        policy_commands.replay_policy(
            source, max_requests, policy, capacity_pages, json_file, with_bound=bound
        )
        return
    refuse(context, _POLICY_OPTIONS, "only with --policy-only")
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


class _Simulation(NamedTuple):
    """What the command line says of a simulation."""

    profile: str
    load: float
    first: int
    requests: int | None
    seed: int
    weather: str | None
    engines: int | None
    beside: Sequence[str]  # policies


def _replay_simulated(source: Source, said: _Simulation, json_file: Path | None) -> None:
    from bodocache.replay.simulate.command import replay_simulated
    from bodocache.replay.simulate.run import Scenario

    if said.weather is not None:
        chosen_names("--weather", said.weather, WEATHERS)
    scenario = Scenario(said.load, said.first, said.requests, said.seed)
    policies = [OURS, *said.beside]
    if not replay_simulated(
        *(source, said.profile, policies, scenario, said.weather, said.engines, json_file)
    ):
        raise typer.Exit(1)


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
