# SPDX-License-Identifier: Apache-2.0
"""What a node owns: host pool, storage, page table, and the tasks that move pages between them.

The same parts as an in-process cache (move/orchestrator.py), without a device: engines have theirs.
"""

from dataclasses import dataclass, replace

import torch

from bodocache.clock import Clock
from bodocache.config import CacheConfig
from bodocache.io.backend import Backend
from bodocache.layout import Layout, LayoutKind, PagedMemory
from bodocache.move.announced import Announcements
from bodocache.move.copies import Copies
from bodocache.move.demoter import Demoter
from bodocache.move.hints import Hints
from bodocache.move.link import Link
from bodocache.move.prefetcher import Prefetcher
from bodocache.move.tasks import Nursery
from bodocache.move.writer import Writer
from bodocache.node.fetches import Fetcher
from bodocache.node.presence import Presence, PublishedResidency
from bodocache.node.stages import Stager
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
        )
        self.residency.presence = self._presence = parts.presence
        self.fetcher = Fetcher(self.residency, link=disk, nursery=self.nursery, now_s=now_s)
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
        self.stager = Stager(self.residency, self.hints, self._writer)

    async def open(self) -> int:
        """Begin to run; take in what lies on disk. Returns how many pages."""
        await self.nursery.open()
        found = 0
        if self._backend is not None and self._writer is not None:
            found = self.residency.recover(self._backend.entries())
            self.nursery.spawn(self._writer.run())
        self._presence.open()
        return found

    async def close(self) -> None:
        """Write what was admitted, and let go of everything; no engine is attached any more."""
        self.announcements.close()
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
