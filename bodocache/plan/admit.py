# SPDX-License-Identifier: Apache-2.0
"""Selective write-through: which pages are worth a place in a slower tier.

A page is admitted when ``density > price + write_s_per_byte``: the seconds its copy there should
save per byte (value.py) exceed what the byte displaces and what writing it costs the link.
The price is 0 while there is room, then the density of the page that would leave the tier next.
A first use counts: there is no gate on hits ("admit on second sight" loses 42 % of the attainable
hits on the conversation trace). As in eviction, a page weighs as much as the densest page of the
same rows after it, and one whose parent is not admitted is not, so what is written is reachable.
"""

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan import evict, value
from bodocache.plan.records import Int

Rows = NDArray[np.int64]


@jit.kernel(
    *(evict.PAGES, evict.QUEUES, evict.POLICIES, jit.readonly("i8"), jit.i8, jit.i8),
    *(jit.array("f8"), jit.array("?")),
)
def admit(
    pages: NDArray[np.void],
    queues: evict.Queues,
    policy: NDArray[np.void],
    rows: Rows,
    tier: Int,
    free_pages: Int,
    densities: NDArray[np.float64],
    admitted: NDArray[np.bool_],
) -> int:
    """Set ``admitted[i]`` where ``rows[i]`` is to be written to ``tier``; return how many.

    ``rows`` hold each chain's pages together, shallow to deep; a page that lies in the tier already
    is not to be written. ``densities`` (f8[len(rows)]) becomes what each was weighed at, in s/byte
    at the latest time the queues were told.
    """
    _weigh(pages, policy, rows, tier, queues.clock_s[0], densities)
    write_s_per_byte = policy[0]["write_s_per_byte"][tier]
    full_price = evict.price(pages, queues, policy, tier, queues.clock_s[0])
    count = 0
    for i in range(len(rows)):
        parent = np.int64(pages[rows[i]]["parent"])
        follows = i > 0 and parent == rows[i - 1] and admitted[i - 1]
        reachable = parent < 0 or follows or _lies_in(pages, parent, tier)
        price = 0.0 if count < free_pages else full_price
        worth = densities[i] > price + write_s_per_byte
        admitted[i] = worth and reachable and not _lies_in(pages, rows[i], tier)
        count += 1 if admitted[i] else 0
    return count


@jit.kernel(evict.PAGES, evict.POLICIES, jit.readonly("i8"), jit.i8, jit.f8, jit.array("f8"))
def _weigh(
    pages: NDArray[np.void],
    policy: NDArray[np.void],
    rows: Rows,
    tier: Int,
    now_s: float,
    densities: NDArray[np.float64],
) -> None:
    age = now_s / policy[0]["half_life_s"]
    for i in range(len(rows) - 1, -1, -1):
        densities[i] = np.exp2(value.log_density(pages, policy, rows[i], tier) - age)
        if i + 1 < len(rows) and np.int64(pages[rows[i + 1]]["parent"]) == rows[i]:
            densities[i] = max(densities[i], densities[i + 1])


@jit.kernel(evict.PAGES, jit.i8, jit.i8)
def _lies_in(pages: NDArray[np.void], row: Int, tier: Int) -> bool:
    return bool((np.int64(pages[row]["tiers"]) >> tier) & 1)
