# SPDX-License-Identifier: Apache-2.0
"""Thousands of small worlds in which everything goes wrong: bodocache/replay/simulate/faults.py.

Slow, hung, failing and restarting storage, engines that die, caches that are killed, frames whose
bytes change. A seed that fails is named, and fails again with ``--first SEED --seeds 1``. With
``--resume`` the seeds behind those that the JSON file holds already are run, and added to them;
``--minutes`` ends a run at a whole fifty of seeds.
"""

import gc
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _common import Claim, parser, write

from bodocache.cache import warm
from bodocache.replay.simulate.faults import Survival, survive

SEEDS, BATCH = 10_000, 50


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=SEEDS)
    arguments.add_argument("--first", type=int, default=0)
    arguments.add_argument("--minutes", type=float, default=float("inf"))
    arguments.add_argument("--resume", action="store_true")
    chosen = arguments.parse_args()
    row = _held(Path(chosen.json)) if chosen.resume else _nothing(chosen.first)
    warm()
    ends_s = time.monotonic() + 60 * chosen.minutes
    while row["seeds"] < chosen.seeds and time.monotonic() < ends_s:
        _run(row, min(BATCH, chosen.seeds - row["seeds"]))
        gc.collect()  # a world is a cycle, with pools of megabytes in it
        if chosen.json != "-":  # what is there when it is stopped
            _write(chosen.json, row)
    _write(chosen.json, row)


def _nothing(first: int) -> dict[str, Any]:
    return {"first": first, "seeds": 0, **asdict(Survival()), "failed": []}


def _held(file: Path) -> dict[str, Any]:
    if not file.exists():
        return _nothing(0)
    row: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["rows"][0]
    return row


def _run(row: dict[str, Any], seeds: int) -> None:
    """Add the next ``seeds`` to ``row``."""
    begin = row["first"] + row["seeds"]
    for seed in range(begin, begin + seeds):
        row["seeds"] += 1
        try:
            found = survive(seed)
        except (AssertionError, ExceptionGroup) as error:
            print(f"seed {seed}: {error}", file=sys.stderr)
            row["failed"].append(seed)
            continue
        for name, count in asdict(found).items():
            row[name] += count
        if found.wrong_pages:
            print(f"seed {seed}: {found.wrong_pages} wrong pages", file=sys.stderr)


def _write(target: str, row: dict[str, Any]) -> None:
    lost = "seeds in which a slot or a page was lost or held twice"
    claims = [
        Claim.at_most("wrong pages", row["wrong_pages"], 0, ""),
        Claim.at_most(lost, len(row["failed"]), 0, ""),
        Claim.at_least("seeds", row["seeds"], SEEDS, ""),
    ]
    write(target, [row], claims)


if __name__ == "__main__":
    main()
