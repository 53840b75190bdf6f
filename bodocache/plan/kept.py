# SPDX-License-Identifier: Apache-2.0
"""Pages that are kept in a tier by nothing but pages behind them, which lie elsewhere.

Such a page's last copy lies there: who evicts it evicts those first, or nobody could reach them.
evict.py queues these pages by their last use, in a lane of each account, and whatever else keeps a
page of the tier, some leaf of the tier or one of these is in front of it: no other is to be looked
at. One that cannot go, as pins, holds, age, shares or the churn guard keep some page behind it, is
queued by when it is looked at again, so an attempt that failed is not made anew at once.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan import evict, kin, pairing, shares, victims
from bodocache.plan.evict import PageArray, PolicyArray, Queues, Rows
from bodocache.plan.records import TIERS, Int

# For each page looked at, which takes 0.08 us, or 0.35 far from the caches: one page that cannot go
# takes 4 % of the time at most.
LOOK_AGAIN_S = 1e-5
MOST = 4096  # pages looked at in one attempt; the last page's family is looked at whole

_PAGES, _QUEUES, _POLICIES, _ROWS = evict.PAGES, evict.QUEUES, evict.POLICIES, evict.ROWS


class Terms(NamedTuple):
    """On which all pages of a family may go."""

    tier: Int  # where room is made
    taker: victims.Taker
    below: float  # log2 of the density that each of them is to be below
    left: NDArray[np.int64]  # [TIERS]: pages that the churn guard lets go
    lost: NDArray[np.int64]  # [TIERS, A + 1]: pages looked at, of each account, and of all


_LOST = jit.array("i8", 2)
_TERMS = jit.named(Terms, jit.i8, victims.TAKER, jit.f8, jit.array("i8"), _LOST)


@jit.compiled(_PAGES, _QUEUES, _POLICIES, jit.i8, jit.f8, victims.TAKER, jit.f8, _ROWS)
def behind_next(
    pages: PageArray,
    queues: Queues,
    policy: PolicyArray,
    tier: Int,
    now_s: float,
    taker: victims.Taker,
    below: float,
    out: Rows,
) -> int:
    """Find the page that leaves ``tier`` next, once those behind it have left all tiers.

    Return how many these are, or 0: none can. ``out`` gets as many as it has room for, parents
    before children; nothing has left. ``below``: log2 of a density that all of them are below.
    """
    queues.clock_s[0] = max(queues.clock_s[0], now_s)
    left = np.empty(TIERS, np.int64)
    for held in range(TIERS):
        left[held] = victims.allowance(queues, policy, held, now_s)
    lost = np.empty((TIERS, len(queues.tally.parts) + 1), np.int64)
    terms = Terms(tier, taker, below, left, lost)
    looked = 0
    while looked < MOST:
        row = _first(queues, policy, terms, now_s)
        if row < 0:
            break
        lost[:] = 0
        count, stays_s = _look(pages, queues, policy, row, terms, out)
        if stays_s == -np.inf and count > 1:
            return count - 1
        looked += count
        lane = np.int64(queues.nodes[tier, row]["lane"]) - 1
        again_s = max(stays_s, now_s + LOOK_AGAIN_S * count)
        evict.put(pages, queues, row, tier, lane, again_s)
    return 0


@jit.kernel(_QUEUES, _POLICIES, _TERMS, jit.f8)
def _first(queues: Queues, policy: PolicyArray, terms: Terms, now_s: float) -> Int:
    """The one that was not used for longest, of those that the taker may have; or -1."""
    tier, taker = terms.tier, terms.taker
    capacity_pages = np.int64(policy[0]["capacity_pages"][tier])
    best: Int = -1
    best_s = now_s
    for account in range(len(queues.tally.parts)):
        row = pairing.first(queues.roots[tier], evict.kept_lane(queues, account))
        if row < 0:
            continue
        since_s = queues.nodes[tier, row]["key"]
        if since_s > best_s or (since_s == best_s and best >= 0):
            continue
        if shares.may_evict(
            queues.tally, tier, capacity_pages, taker.account, taker.promised, account
        ):
            best, best_s = row, since_s
    return best


@jit.kernel(_PAGES, _QUEUES, _POLICIES, jit.i8, _TERMS, _ROWS)
def _look(
    pages: PageArray, queues: Queues, policy: PolicyArray, top: Int, terms: Terms, out: Rows
) -> tuple[int, float]:
    """How many of ``top`` and those behind it were looked at, and until when one of them stays.

    That is now where it cannot be told, and -inf where all may go. ``out``: those behind.
    """
    now_s, count = queues.clock_s[0], 0
    row: Int = top
    while row >= 0:
        if 0 < count <= len(out):
            out[count - 1] = row
        count += 1
        if not _is_free(pages, row) or not _may_go(pages, queues, policy, row, terms):
            return count, now_s
        of_age_s = _of_age_s(pages, queues, policy, row)
        if of_age_s > now_s:
            return count, of_age_s
        row = kin.following(queues.kin, row, top)
    return count, -np.inf


@jit.kernel(_PAGES, jit.i8)
def _is_free(pages: PageArray, row: Int) -> bool:
    page = pages[row]
    is_held = False
    for tier in range(TIERS):
        is_held |= page["holds"][tier] > 0
    return bool(page["pins"] == 0 and not is_held)


@jit.kernel(_PAGES, _QUEUES, _POLICIES, jit.i8)
def _of_age_s(pages: PageArray, queues: Queues, policy: PolicyArray, row: Int) -> float:
    """When the last of its copies comes of age."""
    tiers, since_s = np.int64(pages[row]["tiers"]), -np.inf
    for tier in range(TIERS):
        if (tiers >> tier) & 1:
            since_s = max(since_s, queues.since_s[row, tier])
    return float(since_s + policy[0]["min_residence_s"])


@jit.kernel(_PAGES, _QUEUES, _POLICIES, jit.i8, _TERMS)
def _may_go(pages: PageArray, queues: Queues, policy: PolicyArray, row: Int, terms: Terms) -> bool:
    """Whether shares and the churn guard let it go as well as those looked at before.

    No owner is left with less than its share of any tier; and the taker, which makes room in one,
    has no more of others there than it lacks.
    """
    tally, taker, lost = queues.tally, terms.taker, terms.lost
    owner = evict.account_of(pages, queues, row)
    is_foreign = len(tally.parts) > 1 and taker.account not in (owner, shares.ANYBODY)
    tiers = np.int64(pages[row]["tiers"])
    for held in range(TIERS):
        if not (tiers >> held) & 1:
            continue
        lost[held, owner] += 1
        lost[held, -1] += 1
        if lost[held, -1] > terms.left[held]:
            return False
        capacity = np.int64(policy[0]["capacity_pages"][held])
        if is_foreign and shares.excess_pages(tally, held, capacity, owner) < lost[held, owner]:
            return False
        if is_foreign and held == terms.tier:
            lacks = -shares.excess_pages(tally, held, capacity, taker.account)
            if lost[held, -1] - lost[held, taker.account] > lacks - taker.promised:
                return False
    if terms.below == np.inf:
        return True
    return bool(evict.log_density(pages, queues, policy, row, terms.tier) <= terms.below)
