# SPDX-License-Identifier: Apache-2.0
"""What a node owns: host pool, storage, page table, and the tasks that move pages between them.

The same parts as an in-process cache (move/orchestrator.py), without a device: engines have theirs.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from bodocache.clock import Clock
from bodocache.config import CacheConfig
from bodocache.io.backend import Backend
from bodocache.layout import Layout, LayoutKind, PagedMemory
from bodocache.move.announced import Announcements
from bodocache.move.choice import Why
from bodocache.move.copies import Copies
from bodocache.move.credits import Credits
from bodocache.move.demoter import Demoter
from bodocache.move.hints import Hints
from bodocache.move.known import Known
from bodocache.move.link import Link
from bodocache.move.prefetcher import Prefetcher
from bodocache.move.requests import Requests
from bodocache.move.tasks import Nursery
from bodocache.move.windows import Unplanned, Windows
from bodocache.move.worth import Worth
from bodocache.move.writer import Writer
from bodocache.node.fetches import Fetcher
from bodocache.node.ledger import Ledger
from bodocache.node.presence import Presence, PublishedResidency
from bodocache.node.stages import Stager
from bodocache.pages import Tier
from bodocache.plan.records import Purpose
from bodocache.pools import BorrowedPool, OwnedPool
from bodocache.wiring import policy_of, recompute_of, rules_of


@dataclass(frozen=True, slots=True)
class Parts:
    """What a host is made of; the backend is closed with it."""

    config: CacheConfig
    pool: OwnedPool
    backend: Backend | None
    clock: Clock
    presence: Presence


class Host:
    """Host memory and disk of one node."""

    def __init__(self, parts: Parts) -> None:
        config, pool, backend, clock = parts.config, parts.pool, parts.backend, parts.clock
        recompute, now_s = recompute_of(config, pool.layout), clock.now_s
        disk = Link("disk->host", now_s=now_s)  # all that touches the disk waits in one queue
        writes = Link("host->disk", now_s=now_s, beside=disk)
        demoting = Link("device->host", now_s=now_s)  # never used: no page lies on a device here
        self.links = {link.name: link for link in (disk, writes)}
        self.requests = Requests(now_s, [*self.links], config.metrics.tenant_classes)
        for number, link in enumerate(self.links.values()):
            link.number, link.observer = number, partial(self.requests.moved, number)
        self.now_s = now_s
        self.announcements = Announcements(now_s)
        self.nursery = Nursery()
        self._backend = backend
        nowhere = _no_device(pool.layout)
        self.residency = PublishedResidency(
            device=nowhere,
            host=pool,
            backend=backend,
            policy=policy_of(config),
            recompute=recompute,
            now_s=now_s,
            parts=config.tenants.by_number(),
        )
        policy, page_nbytes = self.residency.policy, pool.layout.page_nbytes
        self._credits = Credits.of(
            config.tenants, policy=policy, page_nbytes=page_nbytes, now_s=now_s
        )
        self.worth = Worth.of(
            policy, recompute.seconds, page_nbytes, is_on=config.features.aside, now_s=now_s
        )
        self.ledger = Ledger(self.requests, self.worth, now_s)
        self._disk_queue = disk.queue
        disk.queue.credits = self._credits
        # Its engines decide their loads: no effort of theirs is known here.
        known = Known(disk, self._credits, None, recompute.page_tokens, pool.layout.group.layers)
        self.windows = Windows(
            lambda asked: self.residency.plan_load(*asked),
            known,
            window_s=config.planner.window_s,
            now_s=now_s,
        )
        self.fetcher = Fetcher(
            *(self.residency, self.ledger),
            link=disk,
            windows=self.windows,
            nursery=self.nursery,
            now_s=now_s,
        )
        self.residency.presence = self._presence = parts.presence
        self._writer = None
        self._prefetcher = None
        if backend is not None:
            self._writer = Writer(
                self.residency,
                backend,
                link=writes,
                now_s=now_s,
                backlog_pages=max(1, pool.num_pages // 4),
                rules=rules_of(config),
            )
            self._prefetcher = Prefetcher(
                self.residency,
                backend,
                link=disk,
                nursery=self.nursery,
                now_s=now_s,
            )
        self._copies = Copies(nowhere, pool)
        self._demoter = Demoter(
            self.residency,
            writer=self._writer,
            copies=self._copies,
            link=demoting,
            nursery=self.nursery,
            now_s=now_s,
        )
        self.hints = Hints(
            self.residency,
            config=config.hints,
            page_tokens=recompute.page_tokens,
            demoter=self._demoter,
            prefetcher=self._prefetcher,
            now_s=now_s,
        )
        self.stager = Stager(
            *(self.residency, self.hints, self._writer),
            requests=self.requests,
            worth=self.worth,
            now_s=now_s,
        )

    async def open(self) -> int:
        """Begin to run; take in what lies on disk. Returns how many pages."""
        await self.nursery.open()
        found = 0
        if self._backend is not None and self._writer is not None:
            found = self.residency.recover(self._backend.entries())
            self.nursery.spawn(self._writer.run())
        self._presence.open()
        return found

    # What is watched of it (move/watchable.py)

    @property
    def hits(self) -> dict[Tier, int]:
        """Pages that its engines' loads delivered, by the tier they lay in."""
        return self.ledger.hits

    @property
    def decided_cuts(self) -> dict[Why, int]:
        """Loads that its engines cut."""
        return self.ledger.cuts

    @property
    def unplanned(self) -> dict[Unplanned, int]:
        """Windows that were not planned."""
        return self.windows.unplanned

    @property
    def joined(self) -> int:
        """Pages that were on their way for another load, and not read again."""
        return self.fetcher.joined

    @property
    def failed_checks(self) -> int:
        """Pages whose bytes failed their digest at an engine."""
        return self.ledger.failed_checks

    @property
    def not_admitted(self) -> int:
        """Pages that were not written to disk."""
        return self._writer.refused if self._writer else 0

    @property
    def task_failures(self) -> int:
        """Background tasks that raised."""
        return self.nursery.failures + (self._writer.failures if self._writer else 0)

    @property
    def credit_waits(self) -> int:
        """Chunks that waited for their tenant's credits."""
        return 0 if self._credits is None else self._credits.waits

    def credits_of(self, tenant: int) -> NDArray[np.float64]:
        """For Found: what ``tenant`` can have loaded now, and what it earns; none: no limit."""
        purse = self._credits
        if purse is None or not purse.is_limited((tenant,)):
            return np.empty(0)
        payable = self._disk_queue.payable_nbytes(tenant, self.now_s())
        return np.array([payable, purse.rate_of(tenant, Purpose.READ)])

    async def close(self) -> None:
        """Write what was admitted, and let go of everything; no engine is attached any more."""
        self.announcements.close()
        self.windows.close()
        self._disk_queue.stop_charging()
        if self._writer is not None:
            self._writer.hurry()
        if self._prefetcher is not None:
            await self._prefetcher.close()
        await self._demoter.close()
        if self._writer is not None:
            self._writer.close()
        await self.nursery.close()
        self._copies.close()
        if self._backend is not None:
            await self._backend.close()


def _no_device(layout: Layout) -> BorrowedPool:
    """A device pool in which no page ever lies: the parts that we share with a cache want one."""
    one = replace(layout, kind=LayoutKind.LAYER_FIRST, num_pages=1)
    memory = torch.zeros(one.pool_nbytes, dtype=torch.uint8)
    return BorrowedPool(PagedMemory.of_layout(memory, one))
