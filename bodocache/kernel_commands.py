# SPDX-License-Identifier: Apache-2.0
"""``bodocache kernels`` and ``bodocache calibrate``, from the command line."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from bodocache import env
from bodocache.kernels.targets import TARGETS
from bodocache.options import chosen_names
from bodocache.replay import terminal


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
    chosen = chosen_names("--targets", targets, TARGETS)
    console = terminal.console_beside(json_file)
    from bodocache.kernels import report as reporting

    known = reporting.known_kernels()
    wanted = known if only is None else chosen_names("--only", only, known)
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
