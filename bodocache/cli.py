# SPDX-License-Identifier: Apache-2.0
"""The command line: ``replay``, ``trace``, ``slab``, ``node``, ``kernels``, top, why, ..."""

import sys

import typer
from rich.console import Console
from rich.markup import escape

from bodocache import kernel_commands
from bodocache.errors import BodoCacheError
from bodocache.node.command import node
from bodocache.replay.commands import trace_app
from bodocache.replay.replay_command import replay
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

app.command(
    "replay",
    epilog="Examples: [bold]bodocache replay[/bold];"
    " [bold]bodocache replay trace.jsonl --max-requests 2000 --json out.json[/bold];"
    " [bold]bodocache replay trace.jsonl --dir cache --report report.html[/bold];"
    " [bold]bodocache replay --workload agents --seed 3 --max-requests 2000[/bold];"
    " [bold]bodocache replay trace.jsonl --policy-only --policy lru --capacity-pages 10000[/bold];"
    " [bold]bodocache replay trace.jsonl --policy-only --curve --policies lru,arc,heat"
    " --report curve.html[/bold];"
    " [bold]bodocache replay trace.jsonl --policy-only --writes --capacity-pages 10000[/bold]",
)(replay)
app.command(
    "kernels",
    epilog="Examples: [bold]bodocache kernels[/bold];"
    " [bold]bodocache kernels --only digest --targets sm_90[/bold];"
    " [bold]bodocache kernels --targets sm_90,gfx942 --json kernels.json[/bold]",
)(kernel_commands.kernels)
app.command("calibrate", epilog="Example: [bold]bodocache calibrate --device 1[/bold]")(
    kernel_commands.calibrate
)
app.command(
    "node",
    epilog="Example: [bold]bodocache node --config node.toml --socket /run/bodocache.sock[/bold];"
    " then, in each engine:"
    ' [bold]await NodeCache.attach(Path("/run/bodocache.sock"), config, pool)[/bold].'
    " What the file says is in docs/configuration.md; \\[node] describes the pages.",
)(node)


@app.callback()
def _about() -> None:
    """Keep ``replay`` a subcommand although there are few."""


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
