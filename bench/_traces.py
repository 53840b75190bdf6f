# SPDX-License-Identifier: Apache-2.0
"""The traces that policies are judged on, as columns, and how large their live set is."""

import argparse
import sys
from pathlib import Path

import numpy as np

from bodocache.replay.policies.minimum import minimum_curve
from bodocache.replay.policies.model import Touches, checked
from bodocache.replay.trace import Trace

CONVERSATION = Path(__file__).parents[2] / "shared" / "traces" / "conversation_trace.jsonl"


def add_argument(arguments: argparse.ArgumentParser) -> None:
    """Take the trace as an argument; the conversation trace where it is left out."""
    arguments.add_argument(
        "trace", nargs="?", type=Path, default=CONVERSATION, help="a .jsonl or .jsonl.gz trace"
    )


def require(path: Path) -> Path:
    """The path, or the end of the script where nothing lies there."""
    if not path.exists():
        sys.exit(f"{path.name}: not there; pass the path of a trace (bodocache trace fetch)")
    return path


def touches_of(trace: Trace) -> Touches:
    """The columns of a trace that policies are given."""
    columns = trace.pages, trace.offsets, trace.parent, trace.depth, trace.timestamps_s
    return checked(Touches(*columns, trace.tenants))


def live_pages(touches: Touches) -> int:
    """The smallest capacity at which the optimum hits all that can be hit."""
    curve = minimum_curve(touches)
    return int(np.searchsorted(curve, curve[-1]))
