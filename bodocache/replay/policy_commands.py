# SPDX-License-Identifier: Apache-2.0
"""``bodocache replay --policy-only``: read, compile, simulate, print what was asked for."""

from collections.abc import Sequence
from pathlib import Path

from bodocache import jit
from bodocache.replay import curve_report, policy_report, terminal, write_report, writes
from bodocache.replay.bounds import require_scipy
from bodocache.replay.curve import measure
from bodocache.replay.policy import Policy
from bodocache.replay.report import require_matplotlib
from bodocache.replay.trace import Source, load_trace


def replay_policy(
    source: Source,
    max_requests: int | None,
    policy: Policy,
    capacity_pages: int,
    json_file: Path | None,
    *,
    with_bound: bool,
) -> None:
    """One policy at one capacity."""
    if with_bound:
        require_scipy()
    console = terminal.console_beside(json_file)
    terminal.compile_first(console, jit.warm)
    trace = load_trace(source, max_requests)
    outcome = policy_report.replay_policy(trace, policy, capacity_pages, with_bound=with_bound)
    console.print(policy_report.render(outcome))
    terminal.write_json(json_file, policy_report.as_json(outcome))


def replay_curve(
    source: Source,
    max_requests: int | None,
    policies: Sequence[str],
    json_file: Path | None,
    report: Path | None,
) -> None:
    """Several policies at all capacities; ``report`` is one HTML page with a plot."""
    if report is not None:
        require_matplotlib()
    console = terminal.console_beside(json_file)
    terminal.compile_first(console, jit.warm)
    trace = load_trace(source, max_requests)
    with terminal.progress_bar(console) as progress:
        task = progress.add_task("simulating", total=None)
        curves = measure(
            trace,
            [Policy(name) for name in policies],
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    console.print(curve_report.render(curves))
    terminal.write_json(json_file, curve_report.as_json(curves))
    if report is not None:
        curve_report.save_report(curves, report)
        console.print(f"report: {report}", soft_wrap=True)


def replay_writes(
    source: Source,
    max_requests: int | None,
    host_pages: int,
    json_file: Path | None,
    report: Path | None,
) -> None:
    """Hits kept against pages written to a disk below the host; ``report`` is one HTML page."""
    if report is not None:
        require_matplotlib()
    console = terminal.console_beside(json_file)
    terminal.compile_first(console, jit.warm)
    found = writes.measure(load_trace(source, max_requests), host_pages)
    console.print(write_report.render(found))
    terminal.write_json(json_file, write_report.as_json(found))
    if report is not None:
        write_report.save_report(found, report)
        console.print(f"report: {report}", soft_wrap=True)
