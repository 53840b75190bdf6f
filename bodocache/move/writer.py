# SPDX-License-Identifier: Apache-2.0
"""Write-through: host pages that are admitted go to disk, behind the loads.

Writes start while no load reads from disk, so that they slow none, or out of patience (queue.py); a
store waits while the backlog is long, so that writes are never starved by the loads of those who
make them.
"""

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bodocache.errors import TierFull
from bodocache.io.backend import TRANSFER, Backend, Durability, Status
from bodocache.move import marks
from bodocache.move.ghosts import Activity
from bodocache.move.link import Link
from bodocache.move.residency import KeyArray, Residency, RowArray, SlotArray
from bodocache.move.room import Need
from bodocache.move.ticket import Priority
from bodocache.pages import NOBODY, NOWHERE, Reason, Tier
from bodocache.plan.records import DEMAND, OpKind, Purpose

_log = logging.getLogger(__name__)

PATIENCE_S = 1.0  # how long a store waits for a long backlog: a disk that hangs stops no engine
KEPT_S = 10.0  # how long pages stay on the host for a write: one that takes longer hangs
BATCH_NBYTES = 4 << 20  # about 2 ms of a disk: what a load that comes meanwhile waits for


@dataclass(frozen=True, slots=True)
class WriteRules:
    """Which pages are written to disk, and how."""

    admits: bool  # only those that are worth their room there
    durability: Durability


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """Pages of one store or demotion that wait for the disk; meanwhile they may be evicted."""

    store: "Awaiter"
    rows: RowArray
    keys: KeyArray  # a row may be another page's by then
    since_s: float
    is_asked_for: bool  # by a demotion: admission is not asked
    tenant: int  # whose pages they are: its credits pay


class Awaiter(Protocol):
    """Who is told what became of pages that were offered."""

    def expect(self, pages: int) -> None:
        """``pages`` are queued."""
        ...

    def settle(self, pages: int, written: int) -> None:
        """Of the pages queued, ``pages`` are decided, ``written`` of them on disk."""
        ...


class Writer:
    """Owns the queue of pages on their way to disk."""

    def __init__(
        self,
        residency: Residency,
        backend: Backend,
        *,
        link: Link,
        now_s: Callable[[], float],
        backlog_pages: int,
        rules: WriteRules,
    ) -> None:
        self.refused = 0
        self.failures = 0  # batches that raised
        self._residency = residency
        self._kept: dict[int, tuple[int, contextlib.ExitStack]] = {}  # rows held while written
        residency.before_removal = self._let_go
        self._backend = backend
        self._link = link
        self._now_s = now_s
        self._admits = rules.admits
        self._durability = rules.durability
        self._backlog_pages = backlog_pages
        self._batch_pages = max(1, BATCH_NBYTES // backend.page_nbytes)
        self._queue: deque[_Waiting] = deque()
        self._queued = 0
        self._paid: dict[int, int] = {}  # by tenant: bytes, for what it writes next
        self._changed = asyncio.Event()
        self._closing = False

    def has_room(self, pages: int) -> bool:
        """Whether nothing has to leave the disk for so many pages behind those that are queued."""
        usage = self._backend.usage
        budget = usage.free_frames if usage.budget_frames is None else usage.budget_frames
        return self._queued + pages <= min(usage.free_frames, budget)

    async def offer(self, store: Awaiter, rows: RowArray) -> None:
        """Queue ``rows`` (on the host) for the disk; returns when the backlog is short enough.

        On a disk that stands still the wait ends, and these pages are not written.
        """
        await self._queue_up(store, rows, is_asked_for=False)

    async def demote(self, awaiter: Awaiter, rows: RowArray) -> None:
        """As :meth:`offer`, whatever the pages are worth there; the day's budget holds for them."""
        await self._queue_up(awaiter, rows, is_asked_for=True)

    async def _queue_up(self, store: Awaiter, rows: RowArray, *, is_asked_for: bool) -> None:
        if not len(rows):
            return
        store.expect(len(rows))
        keys = self._residency.table.keys[rows]
        tenant = int(self._residency.table.records["tenant"][rows[-1]])
        waiting = _Waiting(store, rows, keys, self._now_s(), is_asked_for, tenant)
        self._queue.append(waiting)
        self._queued += len(rows)
        self._tell()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while self._is_long(tenant):
                    await self._change()
        except TimeoutError:
            for mine in [one for one in self._queue if one.store is store]:
                self._queue.remove(mine)
                self._forget(mine)

    def _forget(self, waiting: _Waiting) -> None:
        self._queued -= len(waiting.rows)
        self.refused += len(waiting.rows)
        waiting.store.settle(len(waiting.rows), 0)
        self._tell()

    def _is_long(self, tenant: int) -> bool:
        """Whether the backlog is. Who has a rate may fill its part of one half of it."""
        purse = self._link.queue.credits
        if purse is None or not purse.is_limited((tenant,)):
            return self._queued > self._backlog_pages
        mine = sum(len(one.rows) for one in self._queue if one.tenant == tenant)
        return mine > max(1, self._backlog_pages // (2 * purse.limited))

    def close(self) -> None:
        """Write what is queued, then end."""
        self._closing = True
        self._tell()

    def hurry(self) -> None:
        """Nothing is charged any more."""
        self._tell()

    async def run(self) -> None:
        """Write batches until closed and empty."""
        while True:
            while not self._queue and not self._closing:
                await self._change()
            if not self._queue:
                return
            tenant = await self._whose()
            nbytes = self._nbytes_of(self._pick(tenant))
            async with self._link.queue.turn(Priority.WRITE, nbytes):
                try:
                    if batch := self._next_batch(tenant):  # what it paid for may be given up
                        await self._write(batch)
                except Exception:  # noqa: BLE001 -- stores wait for the queue: it must go on
                    self.failures += 1
                    _log.exception("disk tier: a batch could not be written")

    async def _whose(self) -> int | None:
        """The tenant that has waited longest of those who can pay; None where nobody has to."""
        while (purse := self._link.queue.credits) is not None and self._queue:
            ready_s = math.inf
            for tenant in dict.fromkeys(one.tenant for one in self._queue):
                if purse.is_limited((tenant,)):
                    self._split(tenant)
                nbytes = self._nbytes_of(self._pick(tenant))
                paid, at_s = purse.save_up(
                    (tenant,), Purpose.WRITE, nbytes, self._paid.get(tenant, 0)
                )
                self._paid[tenant] = paid
                if at_s is None:
                    return tenant
                ready_s = min(ready_s, at_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, ready_s - self._now_s())):
                    await self._change()
        return None

    def _next_batch(self, tenant: int | None) -> list[_Waiting]:
        batch = self._pick(tenant)
        for one in batch:
            self._queue.remove(one)
            if tenant is not None:  # what came since it paid is still to be paid for
                self._paid[tenant] -= self._nbytes_of([one])
        if tenant is not None and self._paid.get(tenant) == 0:
            del self._paid[tenant]
        return batch

    def _split(self, tenant: int) -> None:
        """Let the oldest of one that pays be no longer than a batch: loads may come meanwhile."""
        chunk = self._link.queue.chunk_nbytes // self._backend.page_nbytes
        pages = max(1, min(self._batch_pages, chunk))
        at = next(i for i, one in enumerate(self._queue) if one.tenant == tenant)
        one = self._queue[at]
        if len(one.rows) > pages:
            parts = (slice(None, pages), slice(pages, None))
            first, rest = (replace(one, rows=one.rows[it], keys=one.keys[it]) for it in parts)
            self._queue[at] = first
            self._queue.insert(at + 1, rest)

    def _nbytes_of(self, batch: list[_Waiting]) -> int:
        return sum(len(one.rows) for one in batch) * self._backend.page_nbytes

    def _pick(self, tenant: int | None) -> list[_Waiting]:
        """The oldest of ``tenant``; None: of all."""
        batch: list[_Waiting] = []
        pages, purse = 0, self._link.queue.credits
        is_limited = tenant is not None and purse is not None and purse.is_limited((tenant,))
        for one in self._queue:
            if pages >= self._batch_pages:
                break
            if tenant is None or one.tenant == tenant:
                batch.append(one)
                pages += len(one.rows)
                if is_limited:
                    break
        return batch

    async def _write(self, batch: list[_Waiting]) -> None:
        try:
            fresh = _each_once([self._still_wanted(waiting) for waiting in batch])
            rows = np.concatenate(fresh)
            keys = self._residency.table.keys[rows]
            self._residency.pin(rows)  # making room for some must not cost us the others
            try:
                taken, frames = self._place(fresh, [waiting.is_asked_for for waiting in batch])
                slots = self._residency.slots(taken, Tier.HOST)
                self._residency.host.hold(slots)
            finally:
                self._residency.unpin(rows)
            if len(taken):
                await self._put(taken, frames, slots)
            self._say_why(rows[self._same(rows, keys)], taken)
        finally:
            for waiting in batch:
                here = self._same(waiting.rows, waiting.keys)
                reached = self._residency.lies_in(waiting.rows, Tier.DISK) & here
                waiting.store.settle(len(waiting.rows), int(reached.sum()))
                self._queued -= len(waiting.rows)
            self._tell()

    def _say_why(self, rows: RowArray, tried: RowArray) -> None:
        """Note of each of ``rows`` that did not reach the disk whether it was refused or failed."""
        records = self._residency.table.records
        rows = rows[records["tiers"][rows] != 0]  # one that was evicted meanwhile says so already
        missed = rows[~self._residency.lies_in(rows, Tier.DISK)]
        failed = np.isin(missed, tried)
        reasons = np.where(failed, np.uint8(Reason.IO_ERROR), np.uint8(Reason.NOT_ADMITTED))
        records["reason"][missed] = reasons
        self.refused += len(missed)

    def _same(self, rows: RowArray, keys: KeyArray) -> NDArray[np.bool_]:
        """Which of ``rows`` still are the pages of ``keys``: nothing holds them meanwhile."""
        same: NDArray[np.bool_] = (self._residency.table.keys[rows] == keys).all(axis=1)
        return same

    def _still_wanted(self, waiting: _Waiting) -> RowArray:
        """The rows that still are those pages, on the host and not on disk."""
        rows, residency = waiting.rows, self._residency
        same = self._same(rows, waiting.keys)
        here = residency.lies_in(rows, Tier.HOST) & ~residency.lies_in(rows, Tier.DISK)
        wanted: RowArray = rows[same & here]
        return wanted

    def _place(self, fresh: list[RowArray], asked_for: list[bool]) -> tuple[RowArray, SlotArray]:
        """The admitted rows and a frame for each, runs of one prefix side by side.

        A run that finds none is no reason to refuse those behind it, which may be others', or
        shorter; but no page goes to disk behind one that was refused here.
        """
        rows, frames, refused = [], [], set[int]()
        offered = [run for run, is_asked in zip(fresh, asked_for, strict=True) if not is_asked]
        demoted = [run for run, is_asked in zip(fresh, asked_for, strict=True) if is_asked]
        runs = [*self._admitted(offered), *demoted]
        for chosen in [part for run in runs for part in self._residency.by_owner(run)]:
            parent = int(self._residency.table.records["parent"][chosen[0]])
            taken = None if parent in refused else self._frames_for(chosen)
            if taken is None:
                refused.update(chosen.tolist())
            else:
                rows.append(chosen)
                frames.append(taken)
        empty = np.empty(0, np.int64)
        return np.concatenate([empty, *rows]), np.concatenate([empty, *frames])

    def _frames_for(self, rows: RowArray) -> SlotArray | None:
        """A frame for each of ``rows``, pages of one owner; None: not for all of them."""
        need = Need(Activity.WRITE, int(self._residency.table.records["tenant"][rows[0]]))
        try:
            return self._residency.take_frames(len(rows), need, after=self._frame_before(rows))
        except TierFull:
            return None

    def _admitted(self, fresh: list[RowArray]) -> list[RowArray]:
        """Runs of rows that are worth their room on disk, shallow to deep."""
        if not self._admits or not fresh:
            return [rows for rows in fresh if len(rows)]
        demands = np.zeros(sum(map(len, fresh)), DEMAND)
        demands["page"] = np.concatenate(fresh)
        demands["request"] = np.repeat(np.arange(len(fresh)), [len(rows) for rows in fresh])
        demands["kind"] = OpKind.WRITE
        demands["deadline_s"] = np.inf
        plan = self._residency.plan_writes(demands)
        return [plan.rows[op["first"] : op["first"] + op["count"]] for op in plan.ops]

    def _frame_before(self, rows: RowArray) -> int:
        records = self._residency.table.records
        parent = int(records["parent"][rows[0]])
        return NOWHERE if parent == NOWHERE else int(records["frame"][parent])

    async def _put(self, rows: RowArray, frames: SlotArray, slots: SlotArray) -> None:
        """Write ``rows`` to ``frames``; those that landed lie on disk from then on.

        They are not pinned: meanwhile they may leave the device, where an engine may wait for room.
        A page that is gone by then gives its frame back.
        """
        residency, begun_s = self._residency, self._now_s()
        landed = np.zeros(len(rows), np.bool_)
        batch = self._batch(rows, frames, slots)
        self._link.begin(begun_s)
        keeping = self._keep_on_host(rows)
        try:
            transfer = self._backend.put(
                batch, residency.host.rows, deadline_s=np.inf, durability=self._durability
            )
            try:
                await transfer.finished()
            finally:
                transfer.abandon()
                await transfer.drained()
            landed = transfer.statuses == Status.LANDED
        finally:
            keeping.close()
            residency.host.drop(slots)
            pages = int(landed.sum())
            nbytes = pages * self._backend.page_nbytes
            self._link.end(self._now_s(), begun_s=begun_s, pages=pages, nbytes=nbytes)
            kept = landed & self._still_there(rows, batch)
            residency.give_back(frames[~kept], Tier.DISK)
            residency.place(rows[kept], Tier.DISK, frames[kept])

    def _keep_on_host(self, rows: RowArray) -> contextlib.ExitStack:
        """Let ``rows`` stay on the host until this is closed: their slots are leased until then.

        Who needed room would get none of theirs, and their writes would have been for nothing. On
        a disk that hangs this ends by itself: else they would keep the pages before them, too.
        """
        keeping = contextlib.ExitStack()
        marks.hold(self._residency, rows, np.full(len(rows), Tier.HOST))
        words = self._residency.words(rows).tolist()
        self._kept.update(
            {row: (word, keeping) for row, word in zip(rows.tolist(), words, strict=True)}
        )
        keeping.callback(self._let_go, rows, keeping)
        timer = asyncio.get_running_loop().call_later(KEPT_S, keeping.close)
        keeping.callback(timer.cancel)
        return keeping

    def _let_go(self, rows: RowArray, keeping: contextlib.ExitStack | None = None) -> None:
        """End our holds of those of ``rows`` that have one: by ``keeping``, or by whatever."""
        ours = [row for row in rows.tolist() if row in self._kept]
        if keeping is not None:
            ours = [row for row in ours if self._kept[row][1] is keeping]
        words = np.array([self._kept.pop(row)[0] for row in ours], np.uint64)
        held = np.array(ours, np.int64)
        held = held[self._residency.words(held) == words]
        marks.unhold(self._residency, held, np.full(len(held), Tier.HOST))

    def _still_there(self, rows: RowArray, batch: NDArray[np.void]) -> NDArray[np.bool_]:
        """Which pages of ``batch`` the cache still holds, with the bytes that were written."""
        table = self._residency.table
        bytes_same = (table.digests[rows] == batch["digest"]).all(axis=1)
        lies = (table.records["tiers"][rows] != 0) & ~self._residency.lies_in(rows, Tier.DISK)
        there: NDArray[np.bool_] = self._same(rows, batch["key"]) & bytes_same & lies
        return there

    def _batch(self, rows: RowArray, frames: SlotArray, slots: SlotArray) -> NDArray[np.void]:
        table = self._residency.table
        records = table.records
        batch = np.zeros(len(rows), TRANSFER)
        batch["key"] = table.keys[rows]
        parents = records["parent"][rows]
        batch["parent"] = np.where((parents == NOWHERE)[:, None], np.uint8(0), table.keys[parents])
        batch["digest"] = table.digests[rows]
        batch["frame"] = frames
        batch["slot"] = slots
        batch["depth"] = records["depth"][rows]
        batch["nbytes"] = records["nbytes"][rows]
        tenants = records["tenant"][rows].astype(np.uint64)
        batch["owner"] = np.where(tenants == NOBODY, np.uint64(0), tenants + np.uint64(1))
        return batch

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self) -> None:
        await self._changed.wait()


def _each_once(runs: list[RowArray]) -> list[RowArray]:
    """The runs, each row where it comes first.

    A page that was stored, evicted and stored again while it waited is in two: one frame is enough.
    """
    rows = np.concatenate(runs)
    first = np.zeros(len(rows), np.bool_)
    first[np.unique(rows, return_index=True)[1]] = True
    ends = np.cumsum([len(run) for run in runs])[:-1]
    return [run[kept] for run, kept in zip(runs, np.split(first, ends), strict=True)]
