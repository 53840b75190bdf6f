# SPDX-License-Identifier: Apache-2.0
"""What the commands share: where words go, where JSON goes, progress, and the first compile."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

STANDARD_OUTPUT = Path("-")


def console_beside(json_file: Path | None) -> Console:
    """Where words go: not to standard output when that carries the JSON."""
    return Console(stderr=json_file == STANDARD_OUTPUT)


def write_json(path: Path | None, figures: dict[str, object]) -> None:
    """Write ``figures`` to ``path``; "-" is standard output, None is nowhere."""
    if path is None:
        return
    text = json.dumps(figures, indent=2) + "\n"
    if path == STANDARD_OUTPUT:
        sys.stdout.write(text)
    else:
        path.write_text(text)


def compile_first(console: Console, warm: Callable[[], object]) -> None:
    """Call ``warm`` and say so: a minute on the first run of a version, no time on later ones."""
    words = "compiling (a minute on the first run of a version)"
    if not console.is_terminal:
        console.print(words)
    with console.status(words):
        warm()


def progress_bar(console: Console) -> Progress:
    """A bar that counts to a total."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )
