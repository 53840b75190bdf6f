# SPDX-License-Identifier: Apache-2.0
"""The newest requests: what was asked, what came of it, and when; counted by class of tenant.

A request has the number of its match: its load and its store share it. Kept are references to the
arrays that the match and the load own anyway, of a bounded number of pages.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bodocache.hints.reuse import Said
from bodocache.match import Match
from bodocache.move.calibration import Prediction
from bodocache.move.link import Link
from bodocache.move.load import Load
from bodocache.move.store import Store
from bodocache.move.ticket import Ticket
from bodocache.move.timeline import Cut, Event, Note, Timeline
from bodocache.pages import Reason, Tier

REQUESTS_KEPT = 1024
PAGES_KEPT = 32_768  # of these requests: 1 MB of keys
OTHER_TENANTS = "other"  # the class of those that no class names
STAGE_BOUNDS_S = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
STAGES = ("load", "drain", "store", "write")

_LOAD, _CUT, _SETTLED, _RELEASED = map(int, (Event.LOAD, Event.CUT, Event.SETTLED, Event.RELEASED))
_STORE, _VISIBLE, _WRITTEN = map(int, (Event.STORE, Event.VISIBLE, Event.WRITTEN))
_MOVED = int(Event.MOVED)
_PLANNED, _PREDICTED = int(Event.PLANNED), int(Event.PREDICTED)
_CUT_OF = {
    Reason.LATE: Cut.DEADLINE,
    Reason.CANCELLED: Cut.CANCELLED,
    Reason.CUT: Cut.PREDICTED,
}


@dataclass(slots=True)
class Request:
    """One match that was loaded, stored, or both."""

    number: int
    tenant: int
    session: str | None
    begun_s: float
    keys: NDArray[np.uint8]
    matched: int = 0  # leading pages that lay in some tier
    missing: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))  # Reasons
    deadline_s: float = math.inf  # on the clock
    delivered: int | None = None  # pages; None: not known yet
    sources: tuple[int, ...] = ()  # of these, by Tier
    undelivered: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    settled_s: float = math.nan
    visible_s: float = math.nan


@dataclass(slots=True)
class TenantCounts:
    """What one class of tenants had."""

    loads: int = 0
    hits: int = 0  # pages
    misses: int = 0  # pages
    stored: int = 0  # pages


class Stage:
    """How long one stage took: counts by duration."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(STAGE_BOUNDS_S) + 1)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(STAGE_BOUNDS_S, seconds)] += 1
        self.seconds += seconds


class Requests:
    """Follows loads and stores from the orchestrator's loop."""

    def __init__(
        self,
        now_s: Callable[[], float],
        links: Sequence[str],
        classes: Mapping[str, Sequence[int]],
    ) -> None:
        """``classes``: the tenants of each class."""
        self.timeline = Timeline(now_s, links)
        self.by_class = {name: TenantCounts() for name in (*classes, OTHER_TENANTS)}
        self.stages = {name: Stage() for name in STAGES}
        self.cuts = [0] * len(Cut)
        self.loads_in_flight = self.stores_in_flight = 0
        self._now_s = now_s
        self._class_of = {
            tenant: self.by_class[name] for name, tenants in classes.items() for tenant in tenants
        }
        self._kept: dict[int, Request] = {}  # by number, oldest first
        self._pages = 0

    def kept(self) -> list[Request]:
        """The newest requests, oldest first."""
        return list(self._kept.values())

    def loading(self, match: Match, deadline_s: float) -> Request:
        """``match`` is about to be loaded, until ``deadline_s`` on the clock."""
        request = self.request(match.said, match.keys)
        request.matched, request.missing = match.pages, match.reasons
        return self.asked(request, deadline_s)

    def asked(self, request: Request, deadline_s: float) -> Request:
        """``request`` is about to be loaded."""
        request.deadline_s = deadline_s
        self.timeline.add(request.number, _LOAD, 0, len(request.keys), deadline_s)
        self.loads_in_flight += 1
        return request

    def follow_load(self, request: Request, load: Load) -> None:
        """``load`` begins: note what becomes of it."""
        load.note = partial(self.timeline.add, request.number)
        load.on_settled(lambda: self.settled(request, load.begun_s, load.hits, load.reasons))
        load.on_released(partial(self.released, request))

    def storing(self, said: Said, keys: NDArray[np.uint8], pages: int) -> Request:
        """The last ``pages`` of ``keys`` are about to be stored."""
        request = self.request(said, keys)
        self.timeline.add(request.number, _STORE, 0, pages)
        self.stores_in_flight += 1
        return request

    def follow_store(self, request: Request, store: Store) -> None:
        """``store`` has begun: note what becomes of it."""
        begun_s = self._now_s()
        store.on_visible(lambda stored: self.visible(request, stored.new, begun_s))
        store.on_written(partial(self.written, request))

    def moved(self, link: int, begun_s: float, pages: int, nbytes: int) -> None:
        """An op of the ``link``-th link that began at ``begun_s`` is over."""
        self.timeline.add(0, _MOVED, link, pages, begun_s, nbytes)

    def of_tenant(self, tenant: int) -> TenantCounts:
        """The counts of its class."""
        return self._class_of.get(tenant) or self.by_class[OTHER_TENANTS]

    def request(self, said: Said, keys: NDArray[np.uint8]) -> Request:
        """The one that ``said`` names, of the pages ``keys``."""
        request = self._kept.get(said.request)
        if request is not None:  # its load, or one more of the same match
            return request
        request = Request(said.request, said.tenant, said.session, self._now_s(), keys)
        self._kept[said.request] = request
        self._pages += len(keys)
        while len(self._kept) > REQUESTS_KEPT or (self._pages > PAGES_KEPT and len(self._kept) > 1):
            self._pages -= len(self._kept.pop(next(iter(self._kept))).keys)
        return request

    def settled(
        self,
        request: Request,
        begun_s: float,
        hits: NDArray[np.int64],
        reasons: NDArray[np.uint8],
    ) -> None:
        """Its load delivered ``hits`` pages of each Tier; ``reasons``: of the others."""
        request.settled_s = self._now_s()
        request.delivered = pages = int(hits.sum())
        request.undelivered = reasons.copy()
        request.sources = tuple(hits.tolist())
        if len(request.undelivered):
            cut = _CUT_OF.get(Reason(int(request.undelivered[0])), Cut.FAILED)
            self.timeline.add(request.number, _CUT, cut, pages)
            self.cuts[cut] += 1
        self.timeline.add(request.number, _SETTLED, 0, pages)
        self.stages["load"].add(request.settled_s - begun_s)
        self.loads_in_flight -= 1
        counts = self.of_tenant(request.tenant)
        counts.loads += 1
        counts.hits += pages
        counts.misses += len(request.keys) - pages

    def released(self, request: Request) -> None:
        """Nothing can write to the slots of its load any more."""
        self.timeline.add(request.number, _RELEASED)
        self.stages["drain"].add(max(0.0, self._now_s() - request.settled_s))

    def visible(self, request: Request, pages: int, begun_s: float) -> None:
        """The new ``pages`` of its store, begun at ``begun_s``, can be found."""
        self.timeline.add(request.number, _VISIBLE, 0, pages)
        request.visible_s = self._now_s()
        self.stages["store"].add(request.visible_s - begun_s)
        self.stores_in_flight -= 1
        self.of_tenant(request.tenant).stored += pages

    def written(self, request: Request, pages: int) -> None:
        """``pages`` of its store are on disk, the others are refused there."""
        self.timeline.add(request.number, _WRITTEN, 0, pages)
        self.stages["write"].add(max(0.0, self._now_s() - request.visible_s))


def note_planned(
    note: Note, link: Link, ticket: Ticket, pages: int, prediction: Prediction | None
) -> None:
    """``pages`` wait for ``link``, and will have crossed as ``prediction`` says."""
    nbytes = ticket.work.left_nbytes
    note(_PLANNED, link.number, pages, 0.0, nbytes)
    if prediction is not None and (known := link.estimate(nbytes)) is not None:
        ahead = link.queue.ahead_nbytes(ticket) - nbytes
        note(_PREDICTED, link.number, 0, prediction.finish_s, ahead, known.rate)


def sources_of(request: Request) -> dict[Tier, int]:
    """Pages that its load delivered, by the tier they came from."""
    return {tier: pages for tier, pages in zip(Tier, request.sources, strict=False) if pages}
