# SPDX-License-Identifier: Apache-2.0
"""Reads pages from disk into host memory before anybody asks for them.

Pages stay pinned, and host slots leased, until the reads have drained, cancelled or not. A page
whose bytes fail the digest is dropped from the disk, as by a load. Batches wait for their turn
behind the loads (queue.py), so that they slow none.
"""

import asyncio
import logging
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bodocache.errors import BodoCacheError
from bodocache.io.backend import Backend, Status
from bodocache.move.ghosts import Activity
from bodocache.move.link import Link
from bodocache.move.operation import Operation
from bodocache.move.residency import Residency, RowArray, SlotArray
from bodocache.move.room import Need
from bodocache.move.tasks import Nursery
from bodocache.move.ticket import Priority
from bodocache.pages import Reason, Tier

_log = logging.getLogger(__name__)

BATCH_NBYTES = 4 << 20  # about 2 ms of a disk: what a load that comes meanwhile waits for


class Prefetcher:
    """Begins prefetches and sees them through."""

    def __init__(
        self,
        residency: Residency,
        backend: Backend,
        *,
        link: Link,
        nursery: Nursery,
        now_s: Callable[[], float],
    ) -> None:
        self._residency = residency
        self._backend = backend
        self._link = link
        self._nursery = nursery
        self._now_s = now_s
        self._batch_pages = max(1, BATCH_NBYTES // backend.page_nbytes)
        self._live: set[Operation] = set()
        # Which rows a load brings meanwhile.
        self.are_coming: Callable[[RowArray], NDArray[np.bool_]] = lambda rows: rows < 0

    def begin(
        self,
        rows: RowArray,
        deadline_s: float,
        *,
        tenant: int = 0,
        priority: Priority = Priority.PREFETCH,
    ) -> Operation:
        """Begin to read ``rows``, which lie on disk and not on the host; what arrives in time.

        The credits of ``tenant`` pay for it.
        """
        operation = Operation()
        self._live.add(operation)
        self._nursery.spawn(self._run(operation, rows, deadline_s, tenant, priority))
        return operation

    async def close(self) -> None:
        """Cancel every prefetch under way and wait until its slots are free."""
        for operation in list(self._live):
            operation.cancel()
        for operation in list(self._live):
            await operation

    async def _run(
        self,
        operation: Operation,
        rows: RowArray,
        deadline_s: float,
        tenant: int,
        priority: Priority,
    ) -> None:
        timer, words = None, self._residency.words(rows)
        if math.isfinite(deadline_s):
            delay_s = max(0.0, deadline_s - self._now_s())
            timer = asyncio.get_running_loop().call_later(delay_s, operation.cancel)
        arrived = 0
        try:
            for first in range(0, len(rows), self._batch_pages):
                batch = rows[first : first + self._batch_pages]
                nbytes = len(batch) * self._backend.page_nbytes
                async with self._link.queue.turn(priority, nbytes, payers=(tenant,)):
                    if operation.is_cancelled:
                        break
                    # Nothing is pinned while it waits: a row may be another page's by now.
                    same = self._residency.words(batch) == words[first : first + len(batch)]
                    arrived += await self._read(operation, batch[same], tenant)
        except (BodoCacheError, OSError) as error:
            _log.warning("prefetch: %s", error)
        finally:
            if timer is not None:
                timer.cancel()
            self._live.discard(operation)
            operation.end(arrived)

    async def _read(self, operation: Operation, rows: RowArray, tenant: int) -> int:
        """Read those that no load has brought or brings, as many as ``tenant`` finds room for."""
        residency = self._residency
        rows = rows[residency.lies_in(rows, Tier.DISK) & ~residency.lies_in(rows, Tier.HOST)]
        rows = rows[~self.are_coming(rows)]
        residency.pin(pinned := rows)
        slots = residency.take_for(Tier.HOST, rows, Need(Activity.HINT, tenant))
        rows, kept = rows[: len(slots)], np.zeros(len(slots), np.bool_)
        residency.host.hold(slots)
        begun_s = self._now_s()
        self._link.begin(begun_s)
        try:
            kept = await self._transfer(operation, rows, slots)
        finally:
            residency.host.drop(slots)
            residency.unpin(pinned)
            residency.give_back(slots[~kept], Tier.HOST)
            pages = int(kept.sum())
            nbytes = pages * self._backend.page_nbytes
            self._link.end(self._now_s(), begun_s=begun_s, pages=pages, nbytes=nbytes)
        return pages

    async def _transfer(
        self, operation: Operation, rows: RowArray, slots: SlotArray
    ) -> NDArray[np.bool_]:
        """Which of ``rows`` lie in ``slots`` from now on."""
        residency = self._residency
        batch = residency.describe(rows, slots)
        transfer = self._backend.get(batch, residency.host.rows, deadline_s=math.inf)
        operation.on_cancel(transfer.abandon)
        try:
            await transfer.finished()
        finally:
            transfer.abandon()
            await transfer.drained()
        self._lose(rows, transfer.statuses, transfer.reasons)
        kept: NDArray[np.bool_] = transfer.statuses == Status.LANDED
        kept &= ~residency.lies_in(rows, Tier.HOST)
        residency.place(rows[kept], Tier.HOST, slots[kept])
        return kept

    def _lose(
        self, rows: RowArray, statuses: NDArray[np.uint8], reasons: NDArray[np.uint8]
    ) -> None:
        """Drop copies that failed; those of a directory that is out come again with it."""
        lost = (statuses != Status.LANDED) & (statuses != Status.LATE)
        lost &= (reasons != Reason.UNAVAILABLE) & self._residency.lies_in(rows, Tier.DISK)
        for reason in np.unique(reasons[lost]):
            self._residency.drop(rows[lost & (reasons == reason)], Tier.DISK, Reason(reason))
