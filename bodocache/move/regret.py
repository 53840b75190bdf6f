# SPDX-License-Identifier: Apache-2.0
"""What the exact optimum would have hit of what loads asked for lately: a sampled, bounded window.

Pages are sampled by their key (SHARDS: Waldspurger et al., FAST'15), and the optimum gets the same
share of the capacity. That is right for prefix trees, too. MIN looks at each page's next use only,
and a request that touches a page touches all before it, so the nearest *sampled* page before it is
used no later either: the sample is itself a trace on a prefix tree, on which MIN never orphans a
page (plan/optimum.py). By first page or conversation one would sample too few things: all requests
of the conversation trace share their first page.

Few pages are touched very often (one of that trace's by every request), and whether they are in the
sample decides how many touches are. The touches that the sample lacks or has too many are theirs,
and hit: they are added to all counts (SHARDS-adj of that paper, 4.3).

What was hit and what could be hit count the same touches: of pages that an earlier load in the
window asked for. So what the cache held before the window counts for neither.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.pages import Tier
from bodocache.plan.optimum import min_hits
from bodocache.plan.records import Int

WINDOW_TOUCHES = 65_536  # of sampled pages: 1.5 MB, 32 turnovers of the sampled capacity
SAMPLED_PAGES = 2_048  # the sample's capacity is between half of this and this: bench/regret.py

# ``before``: pages that all loads before this one had asked for; it tells loads apart.
TOUCH = np.dtype([("page", "<u8"), ("before", "<i8"), ("tier", "<u4")], align=True)
ABSENT = len(Tier)  # the tier of a page that lay in none


@dataclass(frozen=True, slots=True)
class Tally:
    """Sampled touches that hit, and those that MIN would have hit, with room for the same pages."""

    capacity_pages: int  # of the cache; the sample's is ``sample_rate`` times as much
    hits: int
    optimum_hits: int

    @property
    def regret(self) -> float:
        """Share of the optimum's hits that were missed."""
        return 1 - self.hits / self.optimum_hits if self.optimum_hits else 0.0


@dataclass(frozen=True, slots=True)
class Regret:
    """How far from the optimum the cache was in the window; an estimate where sample_rate < 1."""

    sample_rate: float
    requests: int  # loads in the window with a sampled page
    touches: int  # the sample's share of all that they asked for
    repeats: int  # of them, of pages asked for before in the window: no cache of any size hits more
    all_tiers: Tally
    memory: Tally  # device, where the cache owns it, and host


@dataclass(frozen=True, slots=True, eq=False)
class Accesses:
    """The newest touches of sampled pages, in a ring of WINDOW_TOUCHES."""

    capacity_pages: int
    memory_pages: int  # of the capacity, those that are not on disk
    shift: int  # one page in 2^shift is sampled
    ring: NDArray[np.void]  # TOUCH
    counts: NDArray[np.int64]  # [2] sampled touches, and all, up to now

    @classmethod
    def open(cls, capacity_pages: int, memory_pages: int) -> "Accesses":
        """An empty window."""
        shift = max(0, (capacity_pages - 1) // SAMPLED_PAGES).bit_length()
        ring, counts = np.zeros(WINDOW_TOUCHES, TOUCH), np.zeros(2, np.int64)
        return cls(capacity_pages, memory_pages, shift, ring, counts)

    def record(self, keys: NDArray[np.uint8], tiers: NDArray[np.uint8]) -> None:
        """A load asked for ``keys``; the leading ones lay in ``tiers``, the others nowhere."""
        _record(self.ring, self.counts, keys, tiers, self.shift)

    def snapshot(self) -> "Accesses":
        """As they are now; loads that come later do not change it."""
        return replace(self, ring=self.ring.copy(), counts=self.counts.copy())

    def regret(self) -> Regret:
        """Run the optimum over the window, twice: bench/regret.py says how long that takes."""
        touches = self.oldest_first()
        _, first, ids = np.unique(touches["page"], return_index=True, return_inverse=True)
        again = np.ones(len(touches), np.bool_)
        again[first] = False
        tiers = touches["tier"][again]
        begins = np.flatnonzero(np.diff(touches["before"], prepend=-1))
        offsets = np.append(begins, len(touches))
        lacking = self._expected(touches) - len(touches)

        def tally(capacity_pages: int, slowest: Tier) -> Tally:
            room = capacity_pages >> self.shift
            best = min_hits(ids.astype(np.int64), offsets, len(first), room).hits.sum()
            hits = int((tiers <= slowest).sum())
            return Tally(capacity_pages, max(0, hits + lacking), max(0, int(best) + lacking))

        return Regret(
            sample_rate=0.5**self.shift,
            requests=len(begins),
            touches=len(touches) + lacking,
            repeats=max(0, len(tiers) + lacking),
            all_tiers=tally(self.capacity_pages, Tier.REMOTE),
            memory=tally(self.memory_pages, Tier.HOST),
        )

    def oldest_first(self) -> NDArray[np.void]:
        """The touches of every load that is in the ring whole."""
        count = int(self.counts[0])
        if count <= WINDOW_TOUCHES:
            return self.ring[:count]
        touches = np.roll(self.ring, -(count % WINDOW_TOUCHES))
        whole: NDArray[np.void] = touches[touches["before"] != touches["before"][0]]
        return whole

    def _expected(self, touches: NDArray[np.void]) -> int:
        """The sample's share of what was asked for since the window's first load."""
        whole = int(self.counts[0]) <= WINDOW_TOUCHES
        before = 0 if whole or not len(touches) else int(touches["before"][0])
        return (int(self.counts[1]) - before) >> self.shift


@jit.kernel(jit.array(TOUCH), jit.array("i8"), jit.readonly("u1", 2), jit.readonly("u1"), jit.i8)
def _record(
    ring: NDArray[np.void],
    counts: NDArray[np.int64],
    keys: NDArray[np.uint8],
    tiers: NDArray[np.uint8],
    shift: Int,
) -> None:
    at = counts[0] % len(ring)
    for i in range(len(keys)):
        page = np.uint64(0)
        for k in range(8):
            page |= np.uint64(keys[i, k]) << np.uint64(8 * k)
        if shift and page >> np.uint64(64 - shift) != 0:
            continue
        touch = ring[at]
        touch["page"], touch["before"] = page, counts[1]
        touch["tier"] = tiers[i] if i < len(tiers) else ABSENT
        counts[0] += 1
        at = at + 1 if at + 1 < len(ring) else 0
    counts[1] += len(keys)
