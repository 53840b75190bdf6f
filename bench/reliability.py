# SPDX-License-Identifier: Apache-2.0
"""Kills and power cuts: no wrong byte, and every page that was acknowledged as durable is there.

Writers are killed with kill -9 at random moments and as they enter chosen system calls (strace);
the power of an ext4 on a loop device is cut under a writer and right after an acknowledgement. Then
everything that the slab has is read and compared. The tests run the same campaigns, shorter.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _common import Claim, parser, write
from _kills import Unavailable, chosen_kills, points, random_kills
from _oracle import Tally
from _power_cuts import cuts_after_acknowledgement, cuts_under_load

Report = Callable[[Tally], None]
Campaign = Callable[[Path, int, Report], Tally]

CAMPAIGNS: dict[str, tuple[int, Campaign]] = {  # attempts, and who makes them
    "kills at random moments": (200, lambda f, n, report: random_kills(f, n, report=report)),
    "kills at system calls": (50, lambda f, n, report: chosen_kills(f, points(n), report=report)),
    "power cuts under load": (50, lambda f, n, report: cuts_under_load(f, n, report=report)),
    "power cuts after an acknowledgement": (
        50,
        lambda f, n, report: cuts_after_acknowledgement(f, n, report=report),
    ),
}
COLUMNS = ("attempts", "pages_read", "wrong_pages", "sync_acks", "sync_lost", "cached_lost")


def run(name: str, count: int, campaign: Campaign) -> dict[str, Any]:
    """The row of one campaign."""

    def report(tally: Tally) -> None:
        print(f"\r{name}: {tally.attempts} of {count}", end="", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        try:
            tally = campaign(Path(folder), count, report)
        except Unavailable as reason:
            print(f"{name}: left out: {reason}", file=sys.stderr)
            return {"campaign": name, "left_out": str(reason)}
    print(f" in {tally.seconds:.0f} s", file=sys.stderr)
    bound = {"upper_bound_95": round(tally.upper_bound, 4)}
    return {"campaign": name, **asdict(tally), "seconds": round(tally.seconds, 1), **bound}


def claims(rows: list[dict[str, Any]]) -> list[Claim]:
    """What was promised."""
    kills, cuts = ([r for r in rows if r["campaign"].startswith(kind)] for kind in ("ki", "po"))
    return [
        Claim.at_least("kills", _sum(kills, "attempts"), 250, ""),
        Claim.at_least("power cuts", _sum(cuts, "attempts"), 100, ""),
        Claim.at_most("pages served with a wrong byte", _sum(rows, "wrong_pages"), 0, ""),
        Claim.at_most("durable pages lost", _sum(rows, "sync_lost"), 0, ""),
        Claim.at_most("acknowledged pages lost to a kill", _sum(kills, "cached_lost"), 0, ""),
    ]


def _sum(rows: list[dict[str, Any]], column: str) -> int:
    return sum(row.get(column, 0) for row in rows)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows that were measured."""
    header = f"{'':37}" + "".join(f"{column:>13}" for column in (*COLUMNS, "95 % below"))
    print(header, file=sys.stderr)
    for row in rows:
        if "left_out" not in row:
            figures = [row[column] for column in (*COLUMNS, "upper_bound_95")]
            line = f"{row['campaign']:37}" + "".join(f"{figure:>13}" for figure in figures)
            print(line, file=sys.stderr)


def main() -> None:
    """Run all campaigns and write the document."""
    arguments = parser(__doc__)
    arguments.add_argument("--share", type=float, default=1.0, help="of the attempts to make")
    options = arguments.parse_args()
    rows = []
    for name, (count, campaign) in CAMPAIGNS.items():
        rows.append(run(name, max(1, round(count * options.share)), campaign))
    show(rows)
    write(options.json, rows, claims(rows))


if __name__ == "__main__":
    main()
