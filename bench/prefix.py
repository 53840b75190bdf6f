# SPDX-License-Identifier: Apache-2.0
"""Page look-ups, insertions and removals a second of the prefix index, in batches, on one core.

The index holds a million pages, far beyond the caches; batches are in random order and come
round again after all the others. Beside it, in turns: a Python dict from key bytes to rows.
"""

import os
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any, NamedTuple, TypeVar

import _common
import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.pages import PageTable
from bodocache.prefix import PrefixIndex

PAGES = 1_000_000
BATCHES = (16, 256, 4096)
CLAIMED_BATCH = 256  # a prompt of 131,072 tokens in pages of 512
LOOKUPS_PER_S = 1e6
RUNS, ROUNDS = 31, 20  # each run is so many batches, so that the clock does not matter


Keys = TypeVar("Keys", NDArray[np.uint8], list[bytes])
Batches = Iterator[NDArray[np.uint8]]


class Case(NamedTuple):
    """A full index and the plain dict, and batches that come round again after all the others."""

    index: PrefixIndex
    plain: dict[bytes, int]
    leading: Batches  # each call has batches of its own: nobody warms the caches for another
    find: Batches
    absent: Batches
    as_bytes: Iterator[list[bytes]]  # for the dict
    fresh: list[NDArray[np.int64]]  # rows that come and go


def main() -> None:
    arguments = _common.parser(__doc__).parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    jit.warm()
    rows = [row for batch in BATCHES for row in measure(batch)]
    rate = {(row["batch"], row["call"]): row["pages_per_s"] for row in rows}
    claims = [
        _common.Claim.at_least(
            f"{call} in batches of {CLAIMED_BATCH}",
            rate[CLAIMED_BATCH, call],
            LOOKUPS_PER_S,
            "pages/s",
        )
        for call in ("leading", "find", "find_absent")
    ]
    _common.write(arguments.json, rows, claims, seed=0, pages=PAGES)


def case(batch: int) -> Case:
    rng = np.random.default_rng(0)
    table = PageTable(PAGES + ROUNDS * batch)
    rows = table.add(rng.integers(0, 256, (PAGES, 32), np.uint8))
    index = PrefixIndex(table)
    index.insert(rows)
    return Case(
        index,
        {key.tobytes(): row for row, key in enumerate(table.keys[rows])},
        batches(table.keys[rng.permutation(rows)], batch),
        batches(table.keys[rng.permutation(rows)], batch),
        batches(rng.integers(0, 256, (PAGES, 32), np.uint8), batch),
        batches([key.tobytes() for key in table.keys[rng.permutation(rows)]], batch),
        [table.add(rng.integers(0, 256, (batch, 32), np.uint8)) for _ in range(ROUNDS)],
    )


def batches(keys: Keys, batch: int) -> Iterator[Keys]:
    return cycle(keys[begin : begin + batch] for begin in range(0, PAGES - batch + 1, batch))


def measure(batch: int) -> list[dict[str, Any]]:
    """One row per call, in turns: what insert brings, remove takes away."""
    timed = _common.interleaved(calls(case(batch)), runs=RUNS)
    return [
        {
            "batch": batch,
            "call": name,
            "pages_per_s": round(ROUNDS * batch / timing.median_s),
            "pages_per_s_p99": round(ROUNDS * batch / timing.p99_s),
            "us_per_batch": round(timing.median_s / ROUNDS * 1e6, 2),
        }
        for name, timing in timed.items()
    ]


def calls(c: Case) -> dict[str, Callable[[], object]]:
    look_up = c.plain.get
    return {
        "insert": lambda: [c.index.insert(rows) for rows in c.fresh],
        "leading": lambda: [c.index.leading(keys) for keys in islice(c.leading, ROUNDS)],
        "find": lambda: [c.index.find(keys) for keys in islice(c.find, ROUNDS)],
        "find_absent": lambda: [c.index.find(keys) for keys in islice(c.absent, ROUNDS)],
        "dict": lambda: [[look_up(key) for key in keys] for keys in islice(c.as_bytes, ROUNDS)],
        "remove": lambda: [c.index.remove(rows) for rows in c.fresh],
    }


if __name__ == "__main__":
    main()
