# SPDX-License-Identifier: Apache-2.0
"""Pages a second that are merged into extents, on one core, and what plain NumPy would take.

``with_holes``: every fourth frame is wanted by nobody, and single frames are read through. The last
shape has eight deadlines, at random. NumPy's part is a stable argsort and the cuts between frames
that are not adjacent: neither limits nor holes nor deadlines.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from _common import Claim, interleaved, parser, write
from numpy.typing import NDArray

from bodocache import jit
from bodocache.io.extents import Limits, merge

PAGE_NBYTES = 65536
EXTENT_NBYTES = 2 << 20
COUNTS = (1_000, 10_000, 100_000, 1_000_000)
PAGES_PER_S = 5e6
RUN = 16


class Case(NamedTuple):
    """The columns of one batch."""

    shape: str
    with_holes: bool
    frames: NDArray[np.int64]
    addresses: NDArray[np.int64]
    deadlines_s: NDArray[np.float64]


def cases(count: int) -> Iterator[Case]:
    """Every shape, with ``count`` pages that are scattered in memory."""
    chance = np.random.default_rng(count)
    addresses = chance.permutation(count) * PAGE_NBYTES
    none = np.empty(0)
    places = np.arange(count - count % RUN).reshape(-1, RUN)
    runs = np.concatenate([chance.permutation(places).ravel(), np.arange(places.size, count)])
    for with_holes in (False, True):
        frames = np.arange(count) * 4 // 3 if with_holes else np.arange(count)
        yield Case("in order", with_holes, frames, addresses, none)
        yield Case("reversed", with_holes, frames[::-1].copy(), addresses, none)
        yield Case(f"runs of {RUN}", with_holes, frames[runs], addresses, none)
        shuffled = chance.permutation(frames)
        yield Case("shuffled", with_holes, shuffled, addresses, none)
        deadlines_s = chance.integers(0, 8, count).astype(np.float64)
        yield Case("shuffled, 8 deadlines", with_holes, shuffled, addresses, deadlines_s)


def plainly(frames: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the runs of adjacent frames begin, by NumPy alone."""
    return np.flatnonzero(np.diff(frames[np.argsort(frames, kind="stable")]) != 1)


def measure(case: Case) -> dict[str, Any]:
    hole_nbytes = PAGE_NBYTES if case.with_holes else 0
    limits = Limits(PAGE_NBYTES, PAGE_NBYTES, EXTENT_NBYTES, hole_nbytes=hole_nbytes)
    columns, count = (case.frames, case.addresses), len(case.frames)
    calls: dict[str, Callable[[], object]] = {
        "merge": lambda: merge(*columns, limits, case.deadlines_s),
        "numpy": lambda: plainly(case.frames),
    }
    timings = interleaved(calls, runs=15 if count > 10_000 else 101)
    return {
        "shape": case.shape,
        "with_holes": case.with_holes,
        "pages": count,
        "extents": len(merge(*columns, limits, case.deadlines_s).bounds) - 1,
        **{f"{name}_pages_per_s": round(count / it.median_s) for name, it in timings.items()},
        "merge_p99_us": round(1e6 * timings["merge"].p99_s, 1),
    }


def main() -> None:
    arguments = parser(__doc__).parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    jit.warm()
    rows = [measure(case) for count in COUNTS for case in cases(count)]
    claims = []
    for text, chosen in (
        ("one deadline, worst case", [r for r in rows if "deadlines" not in r["shape"]]),
        ("eight deadlines, worst case", [r for r in rows if "deadlines" in r["shape"]]),
    ):
        rate = min(row["merge_pages_per_s"] for row in chosen)
        claims.append(Claim.at_least(text, rate, PAGES_PER_S, "pages/s"))
    write(arguments.json, rows, claims, page_nbytes=PAGE_NBYTES, extent_nbytes=EXTENT_NBYTES)


if __name__ == "__main__":
    main()
