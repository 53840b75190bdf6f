# SPDX-License-Identifier: Apache-2.0
"""``bodocache replay --simulate PROFILE``: run, and print every policy's figures in one table."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from bodocache.cache import warm
from bodocache.replay import terminal
from bodocache.replay.simulate.outcome import Figures, figures
from bodocache.replay.simulate.policies import POLICIES
from bodocache.replay.simulate.profile import load_profile
from bodocache.replay.simulate.run import Scenario, simulate
from bodocache.replay.trace import Source, load_trace
from bodocache.testing.pace import Weather


def replay_simulated(
    source: Source,
    profile_name: str,
    policies: Sequence[str],
    scenario: Scenario,
    weather: str | None,
    engines: int | None,
    json_file: Path | None,
) -> bool:
    """Run ``scenario`` under each of ``policies``; whether no page of any run was wrong.

    ``weather`` and ``engines``: instead of the profile's.
    """
    profile = load_profile(profile_name).with_storage(
        weather=None if weather is None else Weather(weather)
    )
    if engines is not None:
        profile = profile.with_engines(engines)
    console = terminal.console_beside(json_file)
    terminal.compile_first(console, warm)
    last = None if scenario.requests is None else scenario.first + scenario.requests
    trace = load_trace(source, last)
    console.print(
        f"{trace.name}, simulated: {profile.model.name}, {profile.engines.count} engines of"
        f" {profile.engine.gpus} GPUs, load {scenario.load:g}, storage"
        f" {profile.storage.weather} at {profile.storage.read.bytes_per_s / 1e9:g} GB/s; pages of"
        f" {profile.model.page_nbytes:,} bytes held: each device {profile.device_pages:,}, host"
        f" {profile.host_pages:,}, storage {profile.storage_pages:,}"
    )
    found = {}
    with terminal.progress_bar(console) as progress:
        for name in progress.track(policies, description="simulating"):
            found[name] = figures(simulate(trace, profile, POLICIES[name](), scenario))
    console.print(_table(found))
    terminal.write_json(
        json_file, _as_json(trace.name, profile_name, profile.engines.count, scenario, found)
    )
    return not any(figure.wrong_pages for figure in found.values())


def _table(found: dict[str, Figures]) -> Table:
    table = Table("policy", *(name for name, _ in _COLUMNS))
    for name, figure in found.items():
        table.add_row(name, *(form(figure) for _, form in _COLUMNS))
    return table


_COLUMNS: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("TTFT mean", lambda f: f"{f.ttft_mean_s:.3f} s"),
    ("p50", lambda f: f"{f.ttft_p50_s:.3f} s"),
    ("p90", lambda f: f"{f.ttft_p90_s:.3f} s"),
    ("p99", lambda f: f"{f.ttft_p99_s:.3f} s"),
    ("on time", lambda f: f"{f.slo_attainment:.1%}"),
    ("brought", lambda f: f"{f.brought_share:.1%}"),
    ("recomputed", lambda f: f"{f.recompute_s:.1f} s"),
    ("cuts", lambda f: f"{f.cuts:,}"),
    ("moved", lambda f: f"{f.moved_nbytes / 1e9:,.0f} GB"),
    ("wasted", lambda f: f"{f.wasted_nbytes / 1e9:,.1f} GB"),
    ("wrong pages", lambda f: f"{f.wrong_pages}"),
)


def _as_json(
    trace: str, profile: str, engines: int, scenario: Scenario, found: dict[str, Figures]
) -> dict[str, Any]:
    return {
        "trace": trace,
        "profile": profile,
        "engines": engines,
        "scenario": asdict(scenario),
        "policies": {name: figure.as_dict() for name, figure in found.items()},
    }
