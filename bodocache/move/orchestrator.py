# SPDX-License-Identifier: Apache-2.0
"""The orchestrator: one loop that owns the residency and runs loads, stores and write-through.

It owns the host pool, the copies and the background tasks; the device pool and the
backend are handed to it, and the backend is closed with it.
"""

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bodocache.clock import Clock
from bodocache.config import HintsConfig, MetricsConfig, TenantsConfig
from bodocache.hints.reuse import Said
from bodocache.io.backend import Backend
from bodocache.match import Forecast, Match
from bodocache.move.choice import Why
from bodocache.move.copies import HostSide
from bodocache.move.credits import Credits
from bodocache.move.decide import Decider
from bodocache.move.demoter import Demoter
from bodocache.move.hints import Hints
from bodocache.move.known import Known
from bodocache.move.link import Link, LinkStats
from bodocache.move.load import Load
from bodocache.move.loader import Loader
from bodocache.move.prefetcher import Prefetcher
from bodocache.move.requests import Requests
from bodocache.move.residency import KeyArray, RecomputeModel, Residency, SlotArray, TierStats
from bodocache.move.store import Store
from bodocache.move.storer import Origin, Storer
from bodocache.move.tasks import Nursery
from bodocache.move.terms import Terms
from bodocache.move.ticket import Priority
from bodocache.move.windows import Unplanned, Windows
from bodocache.move.worth import Gain, Worth
from bodocache.move.writer import Writer, WriteRules
from bodocache.pages import Reason, Tier
from bodocache.pools import BorrowedPool, OwnedPool

REST_S = 60.0  # for what a cut left on disk: its next use is minutes away


@dataclass(frozen=True, slots=True)
class Traffic:
    """What moved since the cache was opened."""

    links: dict[str, LinkStats]
    tiers: dict[Tier, TierStats]
    hits: dict[Tier, int]  # pages delivered by loads, by the tier they came from
    evicted: dict[Tier, int]
    failed_checks: int  # pages whose bytes failed the digest between host and device
    cuts: dict[Why, int]  # of loads
    unplanned: dict[Unplanned, int]  # windows
    gain: Gain
    credit_waits: int  # chunks that waited for their tenant's credits
    joined: int  # pages that were on their way for another load, and not read again
    not_admitted: int
    task_failures: int


class Orchestrator:
    """Runs the data plane of one cache."""

    def __init__(  # noqa: PLR0913 -- each is a part of a cache
        self,
        *,
        device: BorrowedPool,
        host: HostSide,
        backend: Backend | None,
        policy: NDArray[np.void],
        clock: Clock,
        recompute: RecomputeModel,
        rules: WriteRules,
        hints: HintsConfig,
        tenants: TenantsConfig,
        metrics: MetricsConfig,
        window_s: float,
        steps_aside: bool,
    ) -> None:
        self._clock = clock
        self._backend = backend
        self._copies = host.copies
        self._nursery = Nursery()
        self._links = _links(clock, runs_here=self._copies.runs_here)
        self.requests = Requests(clock.now_s, [*self._links], metrics.tenant_classes)
        for number, link in enumerate(self._links.values()):
            link.number, link.observer = number, partial(self.requests.moved, number)
        self.residency = Residency(
            device=device,
            host=host.pool,
            backend=backend,
            policy=policy,
            recompute=recompute,
            now_s=clock.now_s,
            parts=tenants.by_number(),
        )
        page_nbytes = host.pool.layout.page_nbytes
        self.worth = Worth.of(
            policy, recompute.seconds, page_nbytes, is_on=steps_aside, now_s=clock.now_s
        )
        self._counted_s = 0.0  # of the copies of stores
        self._credits = Credits.of(
            tenants, policy=policy, page_nbytes=page_nbytes, now_s=clock.now_s
        )
        self._links["disk->device"].queue.credits = self._credits
        loading = {
            Tier.HOST: self._links["host->device"],
            Tier.DISK: self._links["disk->device"],
        }
        self.decider = Decider.of(
            loading,
            policy,
            recompute,
            page_nbytes=page_nbytes,
            layers=self._copies.num_layers,
            lies_in=self.residency.lies_in,
            now_s=clock.now_s,
        )
        self._recompute_s = self.decider.recompute_s
        known = Known(
            self._links["disk->device"],
            self._credits,
            self.decider.effort,
            recompute.page_tokens,
            self._copies.num_layers,
        )
        self.windows = Windows(
            lambda asked: self.residency.plan_load(*asked),
            known,
            window_s=window_s,
            now_s=clock.now_s,
        )
        self._loader = Loader(
            self.residency,
            links=loading,
            copies=self._copies,
            nursery=self._nursery,
            decider=self.decider,
            windows=self.windows,
            now_s=clock.now_s,
            page_tokens=recompute.page_tokens,
        )
        self._writer = (
            None
            if backend is None
            else Writer(
                self.residency,
                backend,
                link=self._links["host->disk"],
                now_s=clock.now_s,
                backlog_pages=max(1, host.pool.num_pages // 4),
                rules=rules,
            )
        )
        self._storer = Storer(
            self.residency,
            link=self._links["device->host"],
            beside=self._links["host->device"].queue,
            copies=self._copies,
            nursery=self._nursery,
            writer=self._writer,
            now_s=clock.now_s,
        )

        self._prefetcher = (
            None
            if backend is None
            else Prefetcher(
                self.residency,
                backend,
                link=self._links["disk->host"],
                nursery=self._nursery,
                now_s=clock.now_s,
            )
        )
        if self._prefetcher is not None:
            self._prefetcher.are_coming = self._loader.are_coming
        self._demoter = Demoter(
            self.residency,
            writer=self._writer,
            copies=self._copies,
            link=self._links["device->host"],
            nursery=self._nursery,
            now_s=clock.now_s,
        )
        self.hints = Hints(
            self.residency,
            config=hints,
            page_tokens=recompute.page_tokens,
            demoter=self._demoter,
            prefetcher=self._prefetcher,
            now_s=clock.now_s,
        )

    async def open(self) -> int:
        """Begin to run; take in what the backend holds from before. Returns how many pages."""
        await self._nursery.open()
        self.residency.rehearse()
        if self._backend is None or self._writer is None:
            return 0
        found = self.residency.recover(self._backend.entries())
        self._nursery.spawn(self._writer.run())
        return found

    @property
    def num_layers(self) -> int:
        """Layers of a page."""
        return self._copies.num_layers

    def now_s(self) -> float:
        """The cache's clock."""
        return self._clock.now_s()

    @property
    def links(self) -> dict[str, Link]:
        """Every link, by name."""
        return self._links

    def load(self, match: Match, keys: KeyArray, slots: SlotArray | None, terms: Terms) -> Load:
        """Load ``keys`` of ``match``: see :meth:`bodocache.cache.Cache.load`."""
        request = self.requests.loading(match, terms.deadline_s)
        follow = partial(self.requests.follow_load, request)
        self.decider.hear(match, len(keys), terms)
        load = self._loader.begin(keys, slots, terms, on_load=follow)
        load.on_settled(lambda: self._weigh(load))
        load.on_settled(lambda: self._fetch_rest(load))
        return load

    def stands_aside(self, keys: KeyArray) -> bool:
        """Whether nothing but the device is to be asked for a request of ``keys``."""
        if self._copies.runs_here:  # a GPU computes meanwhile
            copied_s = self._links["device->host"].counted()[3]
            self.worth.spent(copied_s - self._counted_s)
            self._counted_s = copied_s
        return self.worth.judge(keys)

    def spent(self, seconds: float) -> None:
        """A request was looked up for so long."""
        self.worth.spent(seconds)

    def _weigh(self, load: Load) -> None:
        self.worth.loaded(load.from_below, load.waited_s(self.now_s()), load.terms.n_waiting)

    def _fetch_rest(self, load: Load) -> None:
        """What a cut left on disk was just used: bring it to the host while the disk is idle."""
        payers = (load.terms.tenant,)
        if load.landed == len(load.rows):
            return
        if self._prefetcher is None or (self._credits and self._credits.is_limited(payers)):
            return
        was_cut = np.isin(load.reasons, (Reason.CUT, Reason.LATE))
        rows = load.rows[load.landed :][was_cut]
        rows = rows[self.residency.lies_in(rows, Tier.DISK)]
        rows = rows[~self.residency.lies_in(rows, Tier.HOST)]
        if len(rows):
            self._prefetcher.begin(
                rows, self.now_s() + REST_S, tenant=payers[0], priority=Priority.PREWARM
            )

    def forecast(self, tiers: NDArray[np.uint8]) -> Forecast | None:
        """When a load of pages that lie in ``tiers`` would be there, if it came now."""
        return self.decider.forecast(tiers)

    def saved_by_waiting_s(self, pages: int, behind: int) -> float:
        """Seconds to compute the ``behind`` pages after the first ``pages``, less to load them."""
        compute_s = self._recompute_s(pages + behind) - self._recompute_s(pages)
        if isinstance(self.residency.device, OwnedPool):  # they are stored on the device
            return compute_s
        load = self.forecast(np.full(behind, Tier.HOST, np.uint8))
        return compute_s - (load.mean_s if load is not None else 0.0)

    def store(
        self,
        keys: KeyArray,
        slots: SlotArray,
        origin: Origin,
        said: Said,
        *,
        by_layer: bool = False,
    ) -> Store:
        """See :meth:`bodocache.cache.Cache.store`."""
        is_aside = self.worth.is_aside
        if is_aside and not isinstance(self.residency.device, OwnedPool):
            return self._storer.refuse(slots, by_layer=by_layer)
        request = self.requests.storing(said, keys, len(slots))
        chance, favour = self.hints.told(said)
        origin = Origin(origin.version, origin.tenant, chance, favour, not is_aside)
        store = self._storer.begin(keys, slots, origin, by_layer=by_layer)
        self.requests.follow_store(request, store)
        store.on_shown = self.hints.storing(said)
        return store

    def refuse(self, slots: SlotArray, *, by_layer: bool = False) -> Store:
        """A store of nothing, for pages that could not be reached."""
        return self._storer.refuse(slots, by_layer=by_layer)

    def hold_writes(self) -> AbstractContextManager[None]:
        """See :meth:`bodocache.cache.Cache.hold_writes`."""
        return contextlib.nullcontext() if self._backend is None else self._backend.hold_writes()

    def traffic(self) -> Traffic:
        """What moved up to now."""
        return Traffic(
            links={name: link.stats() for name, link in self._links.items()},
            tiers=self.residency.stats(),
            hits=self.hits,
            evicted=dict(self.residency.evicted),
            failed_checks=self.failed_checks,
            cuts=dict(self.decider.cuts),
            unplanned=dict(self.windows.unplanned),
            gain=self.worth.gain,
            credit_waits=self.credit_waits,
            joined=self.joined,
            not_admitted=self.not_admitted,
            task_failures=self.task_failures,
        )

    @property
    def decided_cuts(self) -> dict[Why, int]:
        """Loads that were cut."""
        return self.decider.cuts

    @property
    def unplanned(self) -> dict[Unplanned, int]:
        """Windows that were not planned."""
        return self.windows.unplanned

    @property
    def hits(self) -> dict[Tier, int]:
        """Pages delivered by loads, by the tier they came from."""
        return self._loader.hits

    @property
    def joined(self) -> int:
        """Pages that were on their way for another load, and not read again."""
        return self._loader.joined

    @property
    def failed_checks(self) -> int:
        """Pages whose bytes failed the digest between host and device."""
        return self._loader.failed_checks

    @property
    def credit_waits(self) -> int:
        """Chunks that waited for their tenant's credits."""
        return 0 if self._credits is None else self._credits.waits

    @property
    def not_admitted(self) -> int:
        """Pages that were not written to disk."""
        return self._writer.refused if self._writer else 0

    @property
    def task_failures(self) -> int:
        """Background tasks that raised."""
        return self._nursery.failures + (self._writer.failures if self._writer else 0)

    async def close(self) -> None:
        """Cancel loads, finish stores and the write-through queue, then let go of everything."""
        self._links["disk->device"].queue.stop_charging()
        if self._writer is not None:
            self._writer.hurry()
        if self._prefetcher is not None:
            await self._prefetcher.close()
        await self._demoter.close()
        await self._loader.close()
        if self._writer is not None:
            await self._storer.idle()
            self._writer.close()
        await self._nursery.close()
        self._copies.close()
        if self._backend is not None:
            await self._backend.close()
        if isinstance(self.residency.device, OwnedPool):
            self.residency.empty_device()


def _links(clock: Clock, *, runs_here: bool) -> dict[str, Link]:
    """The links of one cache. All that touches the disk waits in one queue."""
    disk = Link("disk->device", now_s=clock.now_s)
    links = [
        Link("host->device", now_s=clock.now_s, runs_here=runs_here),
        disk,
        Link("disk->host", now_s=clock.now_s, beside=disk),
        Link("device->host", now_s=clock.now_s),
        Link("host->disk", now_s=clock.now_s, beside=disk),
    ]
    return {link.name: link for link in links}
