# SPDX-License-Identifier: Apache-2.0
"""Thousands of small worlds in which everything goes wrong: bodocache/replay/simulate/faults.py.

Slow, hung, failing and restarting storage, engines that die, caches that are killed, frames whose
bytes change. A seed that fails is named, and fails again with ``--first SEED --seeds 1``.
``--minutes`` ends it before all seeds have run; how many have is said.
"""

import math
import sys
import time
from dataclasses import asdict

from _common import Claim, parser, write

from bodocache.cache import warm
from bodocache.replay.simulate.faults import Survival, survive

SEEDS = 10_000


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=SEEDS)
    arguments.add_argument("--first", type=int, default=0)
    arguments.add_argument("--minutes", type=float, default=math.inf, help="begin no seed later")
    chosen = arguments.parse_args()
    warm()
    total, failed, ran = Survival(), [], 0
    ends_s = time.monotonic() + 60.0 * chosen.minutes
    for seed in range(chosen.first, chosen.first + chosen.seeds):
        if time.monotonic() > ends_s:
            break
        ran += 1
        try:
            found = survive(seed)
        except (AssertionError, ExceptionGroup) as error:
            print(f"seed {seed}: {error}", file=sys.stderr)
            failed.append(seed)
            continue
        for name, count in asdict(found).items():
            setattr(total, name, getattr(total, name) + count)
        if found.wrong_pages:
            print(f"seed {seed}: {found.wrong_pages} wrong pages", file=sys.stderr)
    rows = [{"first": chosen.first, "seeds": ran, **asdict(total), "failed": failed}]
    claims = [
        Claim.at_most("wrong pages", total.wrong_pages, 0, ""),
        Claim.at_most("seeds in which a slot or a page was lost or held twice", len(failed), 0, ""),
    ]
    write(chosen.json, rows, claims)


if __name__ == "__main__":
    main()
