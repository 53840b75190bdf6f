# SPDX-License-Identifier: Apache-2.0
"""Selective write-through: which pages are worth a place in a slower tier.

A page is admitted when ``(density - price) * held_s > write_s_per_byte``: what its copy there saves
(value.py) beyond what the byte displaces, while it is held, exceeds what writing it costs the link.
The price is 0 while there is room, then the density of the page that would leave the tier
next. ``held_s = P(used again) / (uses per second held)``, both learned (hazards.py); by heat, whose
density is not per second, it is 1.
A first use counts: there is no gate on hits ("admit on second sight" loses 42 % of the attainable
hits on the conversation trace). As in eviction, a page weighs as much as the densest page of the
same rows after it, and one whose parent is not admitted is not, so what is written is reachable.
"""

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan import evict, hazards, victims
from bodocache.plan.records import Int

Rows = NDArray[np.int64]

WEIGHED = np.dtype([("density", "<f8"), ("held_s", "<f8")])  # of the densest page of the chain

_WEIGHED = jit.array(WEIGHED)


@jit.kernel(
    *(evict.PAGES, evict.QUEUES, evict.POLICIES, jit.readonly("i8"), jit.i8, jit.i8),
    *(_WEIGHED, jit.array("?")),
)
def admit(
    pages: NDArray[np.void],
    queues: evict.Queues,
    policy: NDArray[np.void],
    rows: Rows,
    tier: Int,
    free_pages: Int,
    weighed: NDArray[np.void],
    admitted: NDArray[np.bool_],
) -> int:
    """Set ``admitted[i]`` where ``rows[i]`` is to be written to ``tier``; return how many.

    ``rows`` hold each chain's pages together, shallow to deep; a page that lies in the tier already
    is not to be written. ``weighed`` (WEIGHED[len(rows)]) becomes what each was weighed at, as of
    the latest time the queues were told.
    """
    _weigh(pages, queues, policy, rows, tier, weighed)
    write_s_per_byte = policy[0]["write_s_per_byte"][tier]
    full_price = victims.price(pages, queues, policy, tier, queues.clock_s[0])
    count = 0
    for i in range(len(rows)):
        parent = np.int64(pages[rows[i]]["parent"])
        follows = i > 0 and parent == rows[i - 1] and admitted[i - 1]
        reachable = parent < 0 or follows or _lies_in(pages, parent, tier)
        price = 0.0 if count < free_pages else full_price
        saved_s_per_byte = (weighed[i]["density"] - price) * weighed[i]["held_s"]
        worth = saved_s_per_byte > write_s_per_byte
        admitted[i] = worth and reachable and not _lies_in(pages, rows[i], tier)
        count += 1 if admitted[i] else 0
    return count


@jit.kernel(evict.PAGES, evict.QUEUES, evict.POLICIES, jit.readonly("i8"), jit.i8, _WEIGHED)
def _weigh(
    pages: NDArray[np.void],
    queues: evict.Queues,
    policy: NDArray[np.void],
    rows: Rows,
    tier: Int,
    weighed: NDArray[np.void],
) -> None:
    learned = evict.is_learned(policy)
    for i in range(len(rows) - 1, -1, -1):
        weighed[i]["density"] = np.exp2(evict.log_density(pages, queues, policy, rows[i], tier))
        weighed[i]["held_s"] = _held_s(queues, rows[i]) if learned else 1.0
        goes_on = i + 1 < len(rows) and np.int64(pages[rows[i + 1]]["parent"]) == rows[i]
        if goes_on and weighed[i + 1]["density"] > weighed[i]["density"]:
            weighed[i] = weighed[i + 1]


@jit.kernel(evict.QUEUES, jit.i8)
def _held_s(queues: evict.Queues, row: Int) -> float:
    """Seconds for which a page just used should be held until it is used again or given up."""
    kind, learned = np.int64(queues.memories[row]["kind"]), queues.model.hazards
    return hazards.chance(learned, kind) / hazards.score(learned, kind, 0.0)


@jit.kernel(evict.PAGES, jit.i8, jit.i8)
def _lies_in(pages: NDArray[np.void], row: Int, tier: Int) -> bool:
    return bool((np.int64(pages[row]["tiers"]) >> tier) & 1)
