# SPDX-License-Identifier: Apache-2.0
"""``bodocache replay TRACE --max-requests 2000``, five times: rates, hits and wrong bytes.

The default trace is Mooncake's conversation trace where it lies in ../shared/traces, else the
built-in workload. The disk tier lies in the folder for temporary files; the plain reader that its
loads are compared with reads the same extents in the same run.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _common import Claim, parser, write

CONVERSATION = Path(__file__).parents[2] / "shared" / "traces" / "conversation_trace.jsonl"
MAX_REQUESTS = 2000
RUNS = 5
TIERS = ("device", "host", "disk")
HOST_GB_PER_S = 2.0
SHARE_OF_PLAIN_READER = 0.85


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("trace", nargs="?", type=Path, help="a .jsonl or .jsonl.gz trace")
    arguments.add_argument("--max-requests", type=int, default=MAX_REQUESTS)
    chosen = arguments.parse_args()
    trace = chosen.trace or (CONVERSATION if CONVERSATION.exists() else None)
    runs = [replay(trace, chosen.max_requests) for _ in range(RUNS)]
    write(
        chosen.json,
        [{"run": number, **figures} for number, figures in enumerate(runs, 1)],
        claims(runs),
        trace=runs[0]["trace"],
        max_requests=chosen.max_requests,
        runs=RUNS,
    )


def replay(trace: Path | None, max_requests: int) -> dict[str, Any]:
    """The figures of one replay (docs/replay.md), in a process and a folder of its own."""
    command = [sys.executable, "-m", "bodocache.cli", "replay", *([str(trace)] if trace else [])]
    options = ["--max-requests", str(max_requests), "--json", "-"]
    done = subprocess.run([*command, *options], stdout=subprocess.PIPE, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def claims(runs: list[dict[str, Any]]) -> list[Claim]:
    """Hits and wrong bytes of the worst run, rates of the median one."""
    wrong = max(run["wrong_bytes"] for run in runs)
    fewest = {tier: min(run["tiers"][tier]["hits"] for run in runs) for tier in TIERS}
    host = median(runs, lambda run: run["links"]["host->device"]["gb_per_s"])
    share = median(runs, lambda run: (run["disk_reads"] or {}).get("ratio_to_plain_reader", 0.0))
    return [
        Claim("wrong bytes", wrong, "= 0", wrong == 0),
        *(Claim.at_least(f"pages hit in {tier}", fewest[tier], 1, "") for tier in TIERS),
        Claim.at_least("host loads, from call to landed", host, HOST_GB_PER_S, "GB/s"),
        Claim.at_least("disk loads, share of plain reader", share, SHARE_OF_PLAIN_READER, ""),
    ]


def median(runs: list[dict[str, Any]], figure: Callable[[dict[str, Any]], float]) -> float:
    return statistics.median(figure(run) for run in runs)


if __name__ == "__main__":
    main()
