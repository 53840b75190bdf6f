# SPDX-License-Identifier: Apache-2.0
"""What hints keep from eviction, for how long, and how much of a tier each tenant may keep.

All tenants together hold at most ``max_held_share`` of a tier, and each of them at most that share
divided by the tenants seen (but no less than 1/FEWEST_PARTS of it). Beyond its own share of the
tier (plan/shares.py) a tenant holds nothing of what others are sure of. What is beyond is clipped
from the end of the chain. A page that several holds of a tenant keep is charged to it once. Holds
that had their time end before anything is evicted.

Rows are not pinned: a copy that fails its check goes all the same. Each is remembered with the
first word of its key, so that a row which is another page's by now is left alone.
"""

import heapq
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from itertools import count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache.move import marks
from bodocache.move.residency import Residency, RowArray
from bodocache.pages import Tier
from bodocache.plan import shares

Times = NDArray[np.float64]

FEWEST_PARTS = 64  # a tenant's part of what may be held is at least 1/64, however many there are
KEPT_HOLDS = 32_768  # of all tenants, a part for each; a page's record counts up to 65,535
KEPT_TENANTS = 4096  # whose part is set apart; the least recently seen are forgotten


class Kind(Enum):
    """Why pages are held."""

    KEEP = "keep"  # not evicted: said with a request
    RETAIN = "retain"  # the same, by an action
    PIN = "pin"  # the same, until it is unpinned
    COMING = "coming"  # prefetched: not evicted before it could be used
    RAISED = "raised"  # worth more than others
    LOWERED = "lowered"  # worth less; charged to nobody
    WRITTEN = "written"  # room on disk that a demotion took; charged, but not held


KEEPING = (Kind.KEEP, Kind.RETAIN, Kind.PIN)
_HOLDING = (*KEEPING, Kind.COMING)
_RANKING = (Kind.RAISED, Kind.LOWERED)
_TIERS = (Tier.DEVICE, Tier.HOST, Tier.DISK)


class Owner(NamedTuple):
    """Who holds: a tenant, and the session or the last page of the span that it named."""

    tenant: int
    name: str | int


@dataclass(slots=True, eq=False)
class Hold:
    """Pages that are held, each in one tier and until a time of its own."""

    owner: Owner
    kind: Kind
    rows: RowArray
    words: NDArray[np.uint64]
    tiers: NDArray[np.int64]
    until_s: Times

    def split(self, chosen: NDArray[np.bool_]) -> "Hold":
        """The ``chosen`` pages, as a hold of their own; this one keeps the others."""
        apart = self.part(chosen)
        rest = self.part(~chosen)
        self.rows, self.words = rest.rows, rest.words
        self.tiers, self.until_s = rest.tiers, rest.until_s
        return apart

    def part(self, chosen: NDArray[np.bool_]) -> "Hold":
        """The ``chosen`` pages, copied."""
        rows, words = self.rows[chosen], self.words[chosen]
        tiers, until_s = self.tiers[chosen], self.until_s[chosen]
        return Hold(self.owner, self.kind, rows, words, tiers, until_s)


class Holds:
    """Begins and ends holds, within each tenant's part."""

    def __init__(
        self, residency: Residency, *, max_held_share: float, now_s: Callable[[], float]
    ) -> None:
        self._residency = residency
        self._max_held_share = max_held_share
        self._now_s = now_s
        self._by_tenant: dict[int, dict[tuple[Owner, Kind], Hold]] = {}
        self._ends: list[tuple[float, int, Hold]] = []  # a heap
        self._numbers = count()
        self._count = 0
        self._charges: dict[int, Counter[int]] = {}  # tenant -> holds of each of its copies
        self._held: dict[int, NDArray[np.int64]] = {}  # tenant -> copies by tier
        self._tenants: OrderedDict[int, None] = OrderedDict()

    def see(self, tenant: int) -> None:
        """A request of ``tenant`` came: with a new tenant, everybody's part is smaller."""
        is_new = tenant not in self._tenants
        self._tenants[tenant] = None
        self._tenants.move_to_end(tenant)
        if len(self._tenants) > KEPT_TENANTS:
            self._tenants.popitem(last=False)
        elif is_new:
            self._trim()

    def held_pages(self) -> dict[int, int]:
        """Copies held, by tenant."""
        self.expire()
        return {tenant: int(copies.sum()) for tenant, copies in self._held.items()}

    def part(self, tier: Tier) -> int:
        """How many copies any one tenant may hold in ``tier``."""
        return self._together(tier) // self._parts

    def room(self, tenant: int, tier: Tier) -> int:
        """How many more copies ``tenant`` may hold in ``tier``."""
        held = {holder: int(copies[tier]) for holder, copies in self._held.items()}
        within = self._together(tier) - sum(held.values())
        mine = held.get(tenant, 0)
        return max(0, min(self.part(tier) - mine, within, self._beside_shares(tenant, tier, held)))

    def _beside_shares(self, tenant: int, tier: Tier, held: dict[int, int]) -> int:
        """How many more it may hold if every other tenant is to find room for its share."""
        capacity = self._residency.capacity(tier)
        parts = self._residency.parts
        sure = {one: int(shares.pages_of(part, capacity)) for one, part in parts.items()}
        beyond = sum(max(0, pages - sure.get(holder, 0)) for holder, pages in held.items())
        own = max(0, sure.get(tenant, 0) - held.get(tenant, 0))
        return own + max(0, capacity - sum(sure.values()) - beyond)

    def next_end_s(self, tenant: int) -> float | None:
        """When a hold of ``tenant`` ends next; None: it has none."""
        mine = self._by_tenant.get(tenant, {}).values()
        return min((float(hold.until_s.min()) for hold in mine), default=None)

    def find(self, owner: Owner, kind: Kind) -> Hold | None:
        """The owner's hold of this kind, if it has one."""
        return self._by_tenant.get(owner.tenant, {}).get((owner, kind))

    def take(
        self,
        owner: Owner,
        kind: Kind,
        rows: RowArray,
        until_s: Times,
        tiers: NDArray[np.int64] | None = None,
    ) -> Hold | None:
        """Hold the leading ``rows`` for which there is room, each in the tier it is best kept in.

        It takes the place of the owner's last hold of this kind. None: there is room for none.
        """
        self.expire()
        self.end(owner, kind)
        tiers = marks.keeping_tiers(self._residency, rows) if tiers is None else tiers
        mine = self._by_tenant.get(owner.tenant, {})
        fits = len(rows) if kind is Kind.LOWERED else self._fitting(owner.tenant, rows, tiers)
        if fits == 0 or len(mine) >= KEPT_HOLDS // self._parts:
            return None
        whole = Hold(owner, kind, rows, self._residency.words(rows), tiers, until_s)
        hold = whole.part(np.arange(len(rows)) < fits)
        self._by_tenant.setdefault(owner.tenant, {})[owner, kind] = hold
        self._count += 1
        self._charge(hold, 1)
        self._schedule(hold)
        if kind in _HOLDING:
            marks.hold(self._residency, hold.rows, hold.tiers)
        return hold

    def end(self, owner: Owner, *kinds: Kind) -> int:
        """End the owner's holds of ``kinds``; how many pages those were."""
        ended = [self.find(owner, kind) for kind in kinds]
        pages = sum(len(hold.rows) for hold in ended if hold is not None)
        for hold in ended:
            if hold is not None:
                self._end(hold)
        return pages

    def expire(self) -> None:
        """End what has had its time."""
        now_s = self._now_s()
        while self._ends and self._ends[0][0] <= now_s:
            hold = heapq.heappop(self._ends)[2]
            if self.find(hold.owner, hold.kind) is not hold:
                continue
            self._let_go(hold.split(hold.until_s <= now_s))
            if len(hold.rows):
                self._schedule(hold)
            else:
                self._remove(hold)

    def end_all(self) -> None:
        """End every hold."""
        for tenant in list(self._by_tenant):
            for hold in list(self._by_tenant[tenant].values()):
                self._end(hold)

    @property
    def _parts(self) -> int:
        return min(max(len(self._tenants), 1), FEWEST_PARTS)

    def _together(self, tier: Tier) -> int:
        return int(self._max_held_share * self._residency.capacity(tier))

    def _fitting(self, tenant: int, rows: RowArray, tiers: NDArray[np.int64]) -> int:
        """How many leading ``rows`` the tenant has room for."""
        charged = self._charges.get(tenant, Counter())
        copies = _copies(rows, tiers)
        new = np.fromiter((copy not in charged for copy in copies), np.bool_, len(rows))
        fits = len(rows)
        for tier in _TIERS:
            needed = np.cumsum(new & (tiers == tier))
            fits = min(fits, int(np.searchsorted(needed, self.room(tenant, tier), "right")))
        return fits

    def _schedule(self, hold: Hold) -> None:
        if len(self._ends) > 2 * self._count + 64:  # most have ended before their time
            ends = [end for end in self._ends if self.find(end[2].owner, end[2].kind) is end[2]]
            heapq.heapify(ends)
            self._ends = ends
        heapq.heappush(self._ends, (float(hold.until_s.min()), next(self._numbers), hold))

    def _end(self, hold: Hold) -> None:
        self._remove(hold)
        self._let_go(hold)

    def _remove(self, hold: Hold) -> None:
        mine = self._by_tenant[hold.owner.tenant]
        del mine[hold.owner, hold.kind]
        self._count -= 1
        if not mine:
            del self._by_tenant[hold.owner.tenant]

    def _let_go(self, hold: Hold) -> None:
        self._charge(hold, -1)
        same = self._residency.words(hold.rows) == hold.words
        if hold.kind in _HOLDING:
            marks.unhold(self._residency, hold.rows[same], hold.tiers[same])
        elif hold.kind in _RANKING:
            marks.rank(self._residency, hold.rows[same], np.zeros(int(same.sum()), np.float32))

    def _charge(self, hold: Hold, sign: int) -> None:
        if hold.kind is Kind.LOWERED:
            return
        tenant = hold.owner.tenant
        charged = self._charges.setdefault(tenant, Counter())
        held = self._held.setdefault(tenant, np.zeros(len(Tier), np.int64))
        for copy in _copies(hold.rows, hold.tiers):
            charged[copy] += sign
            if charged[copy] == (sign > 0):  # its first hold began, or its last ended
                held[copy % len(Tier)] += sign
            if not charged[copy]:
                del charged[copy]
        if not charged:
            del self._charges[tenant], self._held[tenant]

    def _trim(self) -> None:
        """Where a tenant now holds more than its part, its holds that would end first end now."""
        for tenant in [tenant for tenant in self._held if self._is_over(tenant)]:
            mine = self._by_tenant[tenant].values()
            for hold in sorted(mine, key=lambda hold: float(hold.until_s.min())):
                if self._is_over(tenant):
                    self._end(hold)

    def _is_over(self, tenant: int) -> bool:
        held = self._held.get(tenant)
        return held is not None and any(held[tier] > self.part(tier) for tier in _TIERS)


def _copies(rows: RowArray, tiers: NDArray[np.int64]) -> list[int]:
    """A number for each copy of a page."""
    copies: list[int] = (rows * len(Tier) + tiers).tolist()
    return copies
