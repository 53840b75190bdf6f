# SPDX-License-Identifier: Apache-2.0
"""Which pages a session uses, and which of them are its own.

A bounded table: the chain of rows of each session's last request. Rows are not held, so each is
remembered with the first word of its key: a row that is another page's by now ends the chain.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bodocache.pages import NOWHERE, PageTable

RowArray = NDArray[np.int64]
Name = tuple[int, str]  # tenant, and what it calls the session

KEPT_PAGES = 4_194_304  # of all sessions together: 20 bytes each


@dataclass(slots=True)
class _Chain:
    rows: RowArray
    words: NDArray[np.uint64]
    uses: NDArray[np.int32]  # how often this session used each page
    used_s: float


class Sessions:
    """Remembers sessions; of tenants with more than an equal part the least recent goes first."""

    def __init__(
        self, table: PageTable, *, kept: int, ttl_s: float, now_s: Callable[[], float]
    ) -> None:
        self._table = table
        self._kept = kept
        self._ttl_s = ttl_s
        self._now_s = now_s
        self._chains: OrderedDict[Name, _Chain] = OrderedDict()
        self._counts: Counter[int] = Counter()  # sessions of each tenant
        self._pages = 0
        self._through = np.zeros(table.capacity, np.int32)  # sessions through each row

    def __len__(self) -> int:
        return len(self._chains)

    def follow(self, name: Name, rows: RowArray, used: NDArray[np.bool_]) -> None:
        """The session's chain is ``rows`` (shallow to deep); it just used those in ``used``."""
        self._expire()
        words, uses = self._words(rows), used.astype(np.int32)
        before = self._chains.get(name)
        if before is not None:
            shared = min(len(rows), len(before.rows))
            same = np.logical_and.accumulate(
                (rows[:shared] == before.rows[:shared]) & (words[:shared] == before.words[:shared])
            )
            uses[:shared][same] += before.uses[:shared][same]
            self._forget(name)
        if len(self._through) < self._table.capacity:
            more = np.zeros(self._table.capacity - len(self._through), np.int32)
            self._through = np.concatenate((self._through, more))
        self._through[rows] += 1
        self._pages += len(rows)
        self._chains[name] = _Chain(rows.copy(), words, uses, self._now_s())
        self._counts[name[0]] += 1
        while len(self._chains) > self._kept or (self._pages > KEPT_PAGES and len(self) > 1):
            self._forget(self._least_missed())

    def _least_missed(self) -> Name:
        """The session to forget: the least recent of a tenant that has more than an equal part."""
        part = len(self._chains) // len(self._counts)
        return next(name for name in self._chains if self._counts[name[0]] >= max(1, part))

    def find(self, name: Name) -> RowArray | None:
        """The chain of the session, as far as its rows still are its pages; None: not known."""
        self._expire()
        chain = self._chains.get(name)
        if chain is None:
            return None
        changed = np.flatnonzero(self._words(chain.rows) != chain.words)
        return chain.rows[: changed[0]] if len(changed) else chain.rows

    def private_from(self, rows: RowArray, tenant: int, name: Name | None) -> int:
        """The first of ``rows`` (a chain from its beginning) that is this tenant's or session's.

        A page is shared if another tenant stored it, another session goes through it, pages that
        are not of this chain follow it, or somebody used it more often than this session.
        """
        if not len(rows):
            return 0
        records = self._table.records
        follows = np.zeros(len(rows), np.uint32)
        follows[:-1] = records["tiers"][rows[1:]] != 0
        shared = (records["descended"][rows] > follows) | (records["tenant"][rows] != tenant)
        chain = self._chains.get(name) if name is not None else None
        inside = np.minimum(rows, len(self._through) - 1)
        through = np.where(rows < len(self._through), self._through[inside], 0)
        if chain is None:
            shared |= through > 0
        else:
            known = min(len(rows), len(chain.rows))
            mine = np.zeros(len(rows), np.int32)
            mine[:known] = np.where(chain.rows[:known] == rows[:known], chain.uses[:known], 0)
            shared |= (through > (mine > 0)) | (records["hits"][rows] > mine)
        last = np.flatnonzero(shared)
        return int(last[-1]) + 1 if len(last) else 0

    def forget_all(self) -> None:
        """Forget every session: their pages are of other weights."""
        self._chains.clear()
        self._counts.clear()
        self._through[:] = 0
        self._pages = 0

    def _words(self, rows: RowArray) -> NDArray[np.uint64]:
        words: NDArray[np.uint64] = self._table.keys.view("<u8")[rows, 0]
        return words

    def _expire(self) -> None:
        old_s = self._now_s() - self._ttl_s
        while self._chains and next(iter(self._chains.values())).used_s < old_s:
            self._forget(next(iter(self._chains)))

    def _forget(self, name: Name) -> None:
        chain = self._chains.pop(name)
        self._through[chain.rows] -= 1
        self._pages -= len(chain.rows)
        self._counts[name[0]] -= 1
        if not self._counts[name[0]]:
            del self._counts[name[0]]


def leading(rows: RowArray) -> RowArray:
    """The leading ``rows`` that are known."""
    unknown = np.flatnonzero(rows == NOWHERE)
    return rows[: unknown[0]] if len(unknown) else rows
