# SPDX-License-Identifier: Apache-2.0
"""Carries out what callers say with their requests: forecasts, priorities, times to keep.

Called when a request's pages have been touched, for the pages that lie in some tier.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bodocache.hints.reuse import DEFAULT_PRIORITY, Reuse, Said
from bodocache.move import marks
from bodocache.move.forecasts import Forecasts
from bodocache.move.holds import Holds, Kind, Owner
from bodocache.move.residency import Residency, RowArray
from bodocache.move.sessions import Sessions, leading
from bodocache.pages import NOWHERE

POINTS_PER_DOUBLING = 10.0  # of priority: 100 is worth 90 times the default of 35, 0 an 11th

Floats = NDArray[np.float64]


class Reuses:
    """Weighs the pages of requests by what was said with them."""

    def __init__(
        self,
        residency: Residency,
        holds: Holds,
        sessions: Sessions,
        forecasts: Forecasts,
        *,
        page_tokens: int,
        horizon_s: float,
        max_hold_s: float,
        now_s: Callable[[], float],
    ) -> None:
        self._residency = residency
        self._holds = holds
        self._sessions = sessions
        self._forecasts = forecasts
        self._page_tokens = page_tokens
        self._horizon_s = horizon_s
        self._max_hold_s = max_hold_s
        self._now_s = now_s

    def loaded(self, keys: NDArray[np.uint8], rows: RowArray, said: Said) -> None:
        """A request loads the leading ``rows`` of the pages with ``keys``; they are touched."""
        self._holds.see(said.tenant)
        behind = len(keys) - len(rows) + 1  # the last one is not filled: no cache has it
        self._residency.learn(
            rows, before=NOWHERE, behind=behind, tenant=said.tenant, chance=self._chance(said)
        )
        if said.is_silent and self._forecasts.is_idle:
            return
        chain = leading(self._residency.index.find(keys))
        self._forecasts.note_use(said.request, chain)
        if said.session is not None:
            used = np.arange(len(chain)) < len(rows)
            self._sessions.follow((said.tenant, said.session), chain, used)
        self._weigh(rows, said)

    def told(self, said: Said) -> tuple[float, float]:
        """The chance said that the request goes on, or NaN, and log2 of what that is worth."""
        chance = self._chance(said)
        return chance, self._forecasts.favour(said.tenant, chance)

    def _chance(self, said: Said) -> float:
        return math.nan if said.reuse is None else said.reuse.chance(self._horizon_s)

    def stored(self, chain: RowArray, shown: RowArray, said: Said) -> None:
        """A request stored its pages ``chain``, which are held; ``shown`` are new and touched."""
        self._holds.see(said.tenant)
        if said.is_silent and self._forecasts.is_idle:
            return
        self._forecasts.note_use(said.request, chain)
        if said.session is not None:
            self._sessions.follow((said.tenant, said.session), chain, np.isin(chain, shown))
        present = self._residency.table.records["tiers"][chain] != 0
        self._weigh(chain if present.all() else chain[: int(np.argmin(present))], said)

    def _weigh(self, rows: RowArray, said: Said) -> None:
        """Weigh ``rows``, the request's pages that lie in some tier, by what was said."""
        if not len(rows):
            return
        chance = self._chance(said)
        factor = self._forecasts.say(said.request, said.tenant, chance, rows)
        if said.reuse is None and not factor:
            return
        name = None if said.session is None else (said.tenant, said.session)
        first = self._sessions.private_from(rows, said.tenant, name)
        marks.forecast(self._residency, rows[first:], factor)  # of what nobody else uses
        if said.reuse is not None and said.reuse.is_about_tokens:
            self._keep(rows, said.reuse, said)
            self._rank(rows, first, said.reuse, said)

    def _keep(self, rows: RowArray, reuse: Reuse, said: Said) -> None:
        """Hold pages for as long as is said of them, and what comes before them."""
        keep_s = np.zeros(len(rows))
        for said_of in reuse.all_ranges():
            pages = said_of.pages(self._page_tokens, len(rows))
            keep_s[pages] = np.maximum(keep_s[pages], said_of.keep_s or 0.0)
        keep_s = _with_prefix(np.minimum(keep_s, self._max_hold_s))
        self._take(Kind.KEEP, rows, keep_s, keep_s > 0, said)

    def _rank(self, rows: RowArray, first: int, reuse: Reuse, said: Said) -> None:
        """Raise pages within the tenant's part; lower those from ``first`` on: they are its own."""
        points, lasts_s = np.full((2, len(rows)), -math.inf)
        for said_of in (it for it in reuse.all_ranges() if it.priority != DEFAULT_PRIORITY):
            pages = said_of.pages(self._page_tokens, len(rows))
            higher = said_of.priority > points[pages]
            points[pages] = np.where(higher, said_of.priority, points[pages])
            lasts_s[pages] = np.where(higher, said_of.priority_s, lasts_s[pages])
        points = np.where(np.isinf(points), DEFAULT_PRIORITY, points)
        factors = (points - DEFAULT_PRIORITY) / POINTS_PER_DOUBLING
        lasts_s = np.minimum(lasts_s, self._max_hold_s)
        raised = _with_prefix(np.where(factors > 0, factors, 0.0))
        raised_s = _with_prefix(np.where(factors > 0, lasts_s, 0.0))
        hold = self._take(Kind.RAISED, rows, raised_s, raised_s > 0, said)
        if hold:
            marks.rank(self._residency, rows[:hold], raised[:hold].astype(np.float32))
        lowered = (factors < 0) & (lasts_s > 0) & (np.arange(len(rows)) >= first)
        if self._take(Kind.LOWERED, rows, lasts_s, lowered, said):
            marks.rank(self._residency, rows[lowered], factors[lowered].astype(np.float32))

    def _take(
        self, kind: Kind, rows: RowArray, lasts_s: Floats, chosen: NDArray[np.bool_], said: Said
    ) -> int:
        """Hold the ``chosen`` rows for ``lasts_s``; how many of them there is room for.

        It takes the place of what was said in this session before; without one, of these pages.
        """
        if not chosen.any():
            return 0
        rows = rows[chosen]
        last = int(self._residency.words(rows[-1:])[0])
        owner = Owner(said.tenant, last if said.session is None else said.session)
        hold = self._holds.take(owner, kind, rows, self._now_s() + lasts_s[chosen])
        return 0 if hold is None else len(hold.rows)


def _with_prefix(values: Floats) -> Floats:
    """Each page's greatest value of it and of the pages behind it: it is needed to reach them."""
    return np.maximum.accumulate(values[::-1])[::-1]
