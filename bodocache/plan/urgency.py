# SPDX-License-Identifier: Apache-2.0
"""Which op goes first: by deadline, arrival, request, kind, then its shallowest page.

Ops that were found one after the other mostly are of one urgency (deadline, arrival, request): the
runs of equals are ranked first, then all ops by one packed key, ``rank, kind, depth``.
"""

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan import order
from bodocache.plan.records import Int

Records = NDArray[np.void]

# An op, in the order in which they are found.
FOUND = np.dtype(
    [
        ("deadline_s", "<f8"),
        ("arrival_s", "<f8"),
        ("request", "<i8"),
        ("nbytes", "<i8"),
        ("kind_depth", "<u8"),  # kind, then its shallowest page
        ("item", "<i4"),  # its first
        ("first", "<i4"),  # its place in Work.order
        ("count", "<i4"),
        ("run", "<i4"),  # found one after the other with equal deadline, arrival and request
    ]
)

# Ops of one urgency.
RUN = np.dtype([("op", "<i4"), ("rank", "<i4"), ("tied", "<i4")])


@jit.kernel(jit.array(FOUND), jit.i8, jit.array(RUN), order.PAIRS)
def rank(found: Records, count: Int, runs: Records, pairs: order.Pairs) -> None:
    """pairs.carried[0] becomes the order of the first ``count`` ops; ``runs`` is scratch."""
    num_runs = _find_runs(found, count, runs)
    _rank_runs(found, runs, num_runs, pairs)
    _order(found, count, runs, pairs)


@jit.kernel(jit.array(FOUND), jit.i8, jit.array(RUN))
def _find_runs(found: Records, count: Int, runs: Records) -> int:
    """Number the runs of ops of one urgency, as they were found; return how many."""
    num_runs = 0
    for i in range(count):
        op = found[i]
        if i == 0 or (
            op["request"] != found[i - 1]["request"]
            or op["deadline_s"] != found[i - 1]["deadline_s"]
            or op["arrival_s"] != found[i - 1]["arrival_s"]
        ):
            runs[num_runs]["op"], runs[num_runs]["tied"] = i, 0
            num_runs += 1
        op["run"] = num_runs - 1
    return num_runs


@jit.kernel(jit.array(FOUND), jit.array(RUN), jit.i8, order.PAIRS)
def _rank_runs(found: Records, runs: Records, count: Int, pairs: order.Pairs) -> None:
    """Rank the runs by deadline, then arrival, then request; equals have one rank."""
    for i in range(count):
        pairs.carried[0, i] = i
    for field in range(3):
        begin = 0
        while begin < count:
            tied, end = runs[pairs.carried[0, begin]]["tied"], begin + 1
            while end < count and runs[pairs.carried[0, end]]["tied"] == tied:
                end += 1
            if end - begin > 1:
                _part(found, runs, pairs, begin, end, field)
            begin = end
    for i in range(count):
        run = runs[pairs.carried[0, i]]
        run["rank"] = run["tied"]


@jit.kernel(jit.array(FOUND), jit.array(RUN), order.PAIRS, jit.i8, jit.i8, jit.i8)
def _part(
    found: Records, runs: Records, pairs: order.Pairs, begin: Int, end: Int, field: Int
) -> None:
    """Sort runs that are tied by the next field, and note who still is."""
    for i in range(begin, end):
        op = found[runs[pairs.carried[0, i]]["op"]]
        if field == 0:
            pairs.keys[0, i] = order.sortable(op["deadline_s"])
        elif field == 1:
            pairs.keys[0, i] = order.sortable(op["arrival_s"])
        else:
            pairs.keys[0, i] = np.uint64(op["request"])
    order.sort(pairs, begin, end)
    tied = begin
    for i in range(begin, end):
        if i > begin and pairs.keys[0, i] != pairs.keys[0, i - 1]:
            tied = i
        runs[pairs.carried[0, i]]["tied"] = tied


@jit.kernel(jit.array(FOUND), jit.i8, jit.array(RUN), order.PAIRS)
def _order(found: Records, count: Int, runs: Records, pairs: order.Pairs) -> None:
    """pairs.carried[0] becomes the order of the ops."""
    for i in range(count):
        rank = np.uint64(runs[found[i]["run"]]["rank"])
        pairs.keys[0, i] = rank << np.uint64(35) | found[i]["kind_depth"]
        pairs.carried[0, i] = i
    order.sort(pairs, 0, count)
