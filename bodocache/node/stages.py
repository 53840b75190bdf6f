# SPDX-License-Identifier: Apache-2.0
"""Stores of engines: empty host slots are leased, filled by the engine, then shown at once.

Until then nothing of a store is in the page table: an engine that dies in the middle leaves slots
to give back, and nothing else. Whether what lies in the slots is what the engine says is looked at
here, before anybody can find it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bodocache import digest
from bodocache.errors import WireError
from bodocache.hints.reuse import Said
from bodocache.move.ghosts import Activity
from bodocache.move.hints import Hints
from bodocache.move.requests import Request, Requests
from bodocache.move.residency import NEXT, KeyArray, Residency, RowArray, SlotArray
from bodocache.move.room import Need
from bodocache.move.worth import Worth
from bodocache.move.writer import Writer
from bodocache.node.messages import Digests, Reserve
from bodocache.pages import NOWHERE, Tier

TURN_NBYTES = 8 << 20  # digested in one go: 0.3 ms of one core


@dataclass(slots=True, eq=False)
class Stage:
    """Pages of one store, between the lease of their slots and their publication."""

    keys: KeyArray  # of the whole chain
    rows: RowArray  # of its pages that were there, pinned
    positions: RowArray  # of the pages to come
    slots: SlotArray  # leased, one for each
    version: int  # of the weights
    said: Said
    request: Request
    begun_s: float
    known: RowArray
    supplied: int  # the first page whose bytes the engine has
    new: int = 0  # pages that the engine had and that can be found now
    is_published: bool = False  # its answer is on its way
    is_over: bool = False


class Ticket:
    """Counts what the writer decided of one store."""

    def __init__(self, then: Callable[[int], None]) -> None:
        self._then = then
        self._open = 1
        self._written = 0

    def expect(self, pages: int) -> None:
        """``pages`` are queued for the disk."""
        self._open += pages

    def settle(self, pages: int, written: int) -> None:
        """Of the pages queued, ``pages`` are decided."""
        self._open -= pages
        self._written += written
        if self._open == 0:
            self._then(self._written)

    def close(self) -> None:
        """Nothing more is queued."""
        self.settle(1, 0)


class Stager:
    """Leases slots for new pages, and shows them."""

    def __init__(
        self,
        residency: Residency,
        hints: Hints,
        writer: Writer | None,
        *,
        requests: Requests,
        worth: Worth,
        now_s: Callable[[], float],
    ) -> None:
        """``worth``: says whether anything is written to disk."""
        self._residency = residency
        self._hints = hints
        self._writer = writer
        self._requests = requests
        self._worth = worth
        self._now_s = now_s
        page_nbytes = residency.host.layout.page_nbytes
        self._turn_pages = max(1, TURN_NBYTES // page_nbytes)

    def reserve(self, asked: Reserve, said: Said, version: int) -> Stage:
        """Lease slots for those of the pages that are new; as many as there is room for.

        None are leased where pages before ``supplied``, whose bytes the engine has not, are gone.
        """
        residency, keys, supplied = self._residency, asked.keys, asked.supplied
        rows = residency.leading(keys)
        residency.pin(rows)
        positions, slots = np.empty((2, 0), np.int64)
        known = np.arange(len(rows))
        if len(rows) >= supplied:
            rest = np.arange(len(rows), len(keys))
            there = residency.holds(keys[rest])
            positions, known = rest[~there], np.concatenate((known, rest[there]))
            need = Need(Activity.STORE, said.tenant)
            slots = residency.take_most(Tier.HOST, len(positions), need)
            positions = positions[: len(slots)]
            residency.host.hold(slots)
        request = self._requests.storing(said, keys, max(0, len(keys) - supplied))
        return Stage(
            *(keys, rows, positions, slots, version, said, request, self._now_s()),
            *(known, supplied),
        )

    async def publish(
        self, stage: Stage, digests: Digests, ticket: Ticket
    ) -> tuple[RowArray, RowArray]:
        """Show the pages of ``stage``; positions that are new, and that somebody else had stored.

        Returns when the backlog of the disk is short enough. The stage is over.

        Raises:
            WireError: not one digest a page; the stage is over all the same.
        """
        try:
            if len(digests) != len(stage.slots):
                raise WireError(f"publish: {len(digests)} digests for {len(stage.slots)} slots")
            good = await self._verified(stage, digests)
            if stage.is_over:  # fenced meanwhile
                return np.empty(0, np.int64), np.empty(0, np.int64)
            shown, rows, known = self._show(stage, good, digests)
        finally:
            self.drop(stage)
        if self._writer is not None and len(rows) and not self._worth.is_aside:
            await self._writer.offer(ticket, rows)
        return shown, known

    def drop(self, stage: Stage) -> None:
        """Give back what the stage holds; nobody writes to its slots any more."""
        if stage.is_over:
            return
        slots = self.take_over(stage)
        self.free(slots)

    def take_over(self, stage: Stage) -> SlotArray:
        """End the stage; its slots stay leased until :meth:`free`."""
        stage.is_over = True
        self._residency.unpin(stage.rows)
        self._requests.visible(stage.request, stage.new, stage.begun_s)
        return stage.slots

    def free(self, slots: SlotArray) -> None:
        """Slots of a stage that is over are nobody's."""
        self._residency.host.drop(slots)
        self._residency.give_back(slots, Tier.HOST)

    async def _verified(self, stage: Stage, digests: Digests) -> int:
        """How many leading slots hold what the engine says, turn by turn."""
        pool, keys = self._residency.host.rows, stage.keys[stage.positions]
        for first in range(0, len(stage.slots), self._turn_pages):
            if first:
                await asyncio.sleep(0)
            turn = slice(first, first + self._turn_pages)
            found = digest.seeded(digest.digest_rows(pool, stage.slots[turn]), keys[turn])
            wrong = np.flatnonzero((found != digests[turn]).any(axis=1))
            if len(wrong):
                return first + int(wrong[0])
        return len(stage.slots)

    def _show(
        self, stage: Stage, good: int, digests: Digests
    ) -> tuple[RowArray, RowArray, RowArray]:
        """Enter the leading ``good`` pages that are still new, as far as all before them are there.

        In one go, so that a page is never found without its prefix.
        """
        residency, said = self._residency, stage.said
        chain = residency.index.find(stage.keys)
        there = (chain != NOWHERE) & (residency.table.records["tiers"][chain] != 0)
        staged = np.zeros(len(chain), np.bool_)
        staged[stage.positions[:good]] = True
        reached = np.cumprod(there | staged).astype(np.bool_)
        new = np.flatnonzero(reached & ~there)
        chain[~there] = NOWHERE
        before = np.concatenate(([NOWHERE], chain[:-1]))
        parents = np.where(before == NOWHERE, NEXT, before)
        parents[:1] = NOWHERE
        rows = residency.add(stage.keys[new], parents[new], new)
        records = residency.table.records
        records["version"][rows], records["tenant"][rows] = stage.version, said.tenant
        if len(rows):
            chance, _ = self._hints.told(said)
            first = int(records["parent"][rows[0]])
            # Behind: one that is not filled.
            residency.learn(rows, before=first, behind=1, tenant=said.tenant, chance=chance)
        index = np.searchsorted(stage.positions, new)
        residency.table.digests[rows] = digests[index]
        residency.place(rows, Tier.HOST, stage.slots[index])
        chain[new] = rows
        held = chain[: int(reached.sum())]
        residency.touch(held[len(stage.rows) :])
        self._hints.storing(said)(held, rows)
        kept = np.zeros(len(stage.slots), np.bool_)
        kept[index] = True
        residency.host.drop(stage.slots[kept])
        stage.slots = stage.slots[~kept]
        residency.unpin(rows)
        stage.new = int((new >= stage.supplied).sum())
        return new, rows, np.flatnonzero(reached & there)
