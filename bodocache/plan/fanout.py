# SPDX-License-Identifier: Apache-2.0
"""Fan-out: what many requests want is moved once, and named by the prefix that it belongs to.

*Single flight.* Demands for the same page on the same node and of the same kind are one; a page of
two domains has two rows, so nothing is ever shared between domains.

*Clusters.* A cluster is the shallowest prefix node that at most ``limit = max(SHARE * requests,
REQUESTS)`` of the recent requests pass through (both decayed like heat, so a page's heat is how
many pass through it). Its id is that node's row, its key on the wire. Pages above every such node
belong to none. What was above stays above until fewer than ``KEEP * limit`` pass through, so that
ids do not flap. A request brings the pages on its path up to date as it passes: no page that is
demanded now is out of date, and no others are looked at.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan import heat, order
from bodocache.plan.check import PAGES, POLICIES
from bodocache.plan.facts import FACTS
from bodocache.plan.records import ABOVE, Int

Records = NDArray[np.void]

SHARE = 0.01  # of the recent requests
REQUESTS = 4.0
KEEP = 0.5  # at 1 the ids of pages near the limit would come and go with single requests
_AHEAD = 16  # demands whose place in the table is asked for early
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio


class Passing(NamedTuple):
    """How many requests passed lately, and when that was brought up to date."""

    requests: NDArray[np.float64]  # [1]
    stamp_s: NDArray[np.float64]  # [1]


PASSING = jit.named(Passing, jit.array("f8"), jit.array("f8"))


def nobody() -> Passing:
    """Nobody has passed yet."""
    return Passing(np.zeros(1), np.zeros(1))


@jit.kernel(PASSING, POLICIES, jit.i8, jit.f8)
def count(passing: Passing, policy: Records, requests: Int, now_s: float) -> None:
    """``requests`` more have begun by ``now_s``."""
    now_s = max(now_s, passing.stamp_s[0])
    half_life_s = policy[0]["half_life_s"]
    before = heat.decayed(passing.requests[0], passing.stamp_s[0], now_s, half_life_s)
    passing.requests[0] = before + requests
    passing.stamp_s[0] = now_s


@jit.kernel(PASSING, PAGES, POLICIES, jit.array("i8"), jit.f8)
def follow(
    passing: Passing, pages: Records, policy: Records, rows: NDArray[np.int64], now_s: float
) -> None:
    """Name the cluster of ``rows``: pages of one prefix, shallow to deep, just touched."""
    if len(rows) == 0:
        return
    limit = max(SHARE * passing.requests[0], REQUESTS)
    parent = np.int64(pages[rows[0]]["parent"])
    cluster: Int = ABOVE if parent < 0 else np.int64(pages[parent]["cluster"])
    for row in rows:
        if cluster < 0:
            cluster = _named(pages, row, limit, now_s, policy[0]["half_life_s"])
        pages[row]["cluster"] = cluster


@jit.kernel(PAGES, jit.i8, jit.f8, jit.f8, jit.f8)
def _named(pages: Records, row: Int, limit: float, now_s: float, half_life_s: float) -> Int:
    """The row itself, if it is a cluster's node, or ABOVE."""
    page = pages[row]
    bound = KEEP * limit if page["cluster"] == ABOVE else limit
    if page["heat"] <= bound:
        return row
    warmth = heat.decayed(np.float64(page["heat"]), page["stamp_s"], now_s, half_life_s)
    return row if warmth <= bound else ABOVE


@jit.kernel(FACTS, jit.array("i4"), jit.array("i4"))
def join(facts: Records, table: NDArray[np.int32], leads: NDArray[np.int32]) -> None:
    """Set ``leads[i]``: the first demand that wants what demand i wants; itself where it is alone.

    ``table`` is scratch: at least ``2 ** order.table_bits(demands)`` long.
    """
    bits = order.table_bits(len(facts))
    shift, mask = np.uint64(64 - bits), (1 << bits) - 1
    table[: 1 << bits] = 0
    for i in range(len(facts)):
        soon = facts[min(i + _AHEAD, len(facts) - 1)]["key"]
        jit.prefetch(table, np.int64((soon * _MIX) >> shift))
        key = facts[i]["key"]
        at = np.int64((key * _MIX) >> shift)
        while table[at] > 0 and facts[table[at] - 1]["key"] != key:
            at = (at + 1) & mask
        if table[at] == 0:
            table[at] = i + 1
        leads[i] = table[at] - 1
