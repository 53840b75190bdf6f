# SPDX-License-Identifier: Apache-2.0
"""``bodocache node``, from the command line."""

import asyncio
import logging
from pathlib import Path
from typing import Annotated

import typer


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
    linger: Annotated[
        float,
        typer.Option(
            "--linger",
            min=0.0,
            help="End, too, when no engine has been attached for so many seconds; 0: never.",
        ),
    ] = 0.0,
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
    asyncio.run(run_until_told(load_config(config), socket, linger_s=linger))
