# SPDX-License-Identifier: Apache-2.0
"""Shares: how much of a tier a tenant may take, and from whom.

A tenant may always use room that is free and replace pages of its own. Pages of others it may evict
only while it has less than its share of the tier, and only of those who have more than theirs. All
shares together are at most the tier, so one that floods the cache takes nothing from those within
theirs. Tenants without a share of their own have one *account* together: what the shares leave.
Where nobody has a share all pages are of one account, and nothing is asked.

A page is its owner's whose store brought it (``PAGE.tenant``), also where others use it. A page
that others' pages lie behind is no leaf: it cannot go, so who is owed room may find none for now.
``used`` counts pages that have come. Room that was taken for what is still on its way is counted by
who takes it (move/promises.py): it takes away from what an account lacks, and nobody is robbed for
it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.records import TIERS, Int

Ids = NDArray[np.int64]

ANYBODY = -1  # a taker who may evict pages of every account


class Tally(NamedTuple):
    """A accounts, row 0 being everybody without a share, and the pages of each."""

    tenants: Ids  # [A] ascending; [0]: -1
    parts: NDArray[np.float64]  # [A] of each tier
    used: Ids  # [TIERS, A] pages


def open_tally(parts: Mapping[int, float] | None = None) -> Tally:
    """Nobody has a page yet; ``parts``: the share of each tenant that has one.

    Raises:
        ValueError: a share is not above 0, or all are more than 1 together.
    """
    parts = {} if parts is None else parts
    wrong = [tenant for tenant, part in parts.items() if not 0.0 < part <= 1.0]
    if wrong or sum(parts.values()) > 1.0 + 1e-9:
        raise ValueError(f"shares {dict(parts)}: each must be above 0, and all together 1 at most")
    tenants = sorted(parts)
    rest = max(0.0, 1.0 - sum(parts.values()))
    return Tally(
        np.array([-1, *tenants], np.int64),
        np.array([rest, *(parts[tenant] for tenant in tenants)]),
        np.zeros((TIERS, 1 + len(tenants)), np.int64),
    )


def of_tenants(tenants: NDArray[Any]) -> Tally:
    """The same for the tenants' table of windows (TENANT): a tenant's number is its row."""
    shares = tenants["share"]
    return open_tally({int(row): float(shares[row]) for row in np.flatnonzero(shares > 0)})


def other_than(tally: Tally, tenants: NDArray[Any]) -> int:
    """The first tenant whose share in the table is not its share of ``tally``, or -1.

    It may be behind the table's end: a tenant that is not in it has no share there.
    """
    parts = np.zeros(len(tenants))
    known = tally.tenants[1:] < len(tenants)
    parts[tally.tenants[1:][known]] = tally.parts[1:][known]
    differ = np.flatnonzero(parts != tenants["share"])
    unknown = tally.tenants[1:][~known]
    return int(differ[0]) if len(differ) else int(unknown[0]) if len(unknown) else -1


TALLY = jit.named(Tally, jit.array("i8"), jit.array("f8"), jit.array("i8", 2))


@jit.kernel(TALLY, jit.i8)
def account_of(tally: Tally, tenant: Int) -> Int:
    """The account that pages of ``tenant`` are of."""
    low: Int = 1
    high: Int = len(tally.tenants)
    while low < high:
        middle = (low + high) // 2
        if tally.tenants[middle] < tenant:
            low = middle + 1
        else:
            high = middle
    return low if low < len(tally.tenants) and tally.tenants[low] == tenant else 0


@jit.kernel(jit.f8, jit.i8)
def pages_of(part: float, capacity_pages: Int) -> Int:
    """Whole pages of a share of a tier."""
    return np.int64(part * capacity_pages + 1e-9)  # .8 of 10 is 8, of floats, too


@jit.kernel(TALLY, jit.i8, jit.i8, jit.i8)
def excess_pages(tally: Tally, tier: Int, capacity_pages: Int, account: Int) -> Int:
    """What the account uses of the tier above its share; below 0: what it lacks of it."""
    return np.int64(tally.used[tier, account] - pages_of(tally.parts[account], capacity_pages))


@jit.kernel(TALLY, jit.i8, jit.i8, jit.i8, jit.i8, jit.i8)
def may_evict(
    tally: Tally, tier: Int, capacity_pages: Int, taker: Int, promised: Int, owner: Int
) -> bool:
    """Whether a page of account ``owner`` may leave the tier for one of ``taker``.

    ``promised``: pages for which the taker has room already and that have not come yet.
    """
    if taker in (owner, ANYBODY):
        return True
    lacks = -excess_pages(tally, tier, capacity_pages, taker) - promised
    return bool(lacks > 0 and excess_pages(tally, tier, capacity_pages, owner) > 0)
