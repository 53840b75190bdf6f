# SPDX-License-Identifier: Apache-2.0
"""The prefix index: from a key chain to rows of the page table, and to what can be restored.

An open-addressing hash table over the page table's keys; it holds row numbers only. A chain is
followed from its first page, so that pages behind an evicted ancestor cannot be reached.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.layout import KVShape, Rule, RuleKind
from bodocache.pages import KEY_NBYTES, NOWHERE, PageTable

RowArray = NDArray[np.int64]
KeyArray = NDArray[np.uint8]

_EMPTY = -1
_MAX_LOAD = 0.6  # linear probing: 1.75 probes a hit, 3.6 a miss


@dataclass(frozen=True, slots=True)
class Boundaries:
    """The restorable boundaries of one key chain: ``pages`` deepest first, in whole pages."""

    pages: NDArray[np.int64]
    found: tuple[RowArray, ...]  # per group: row of each page of the chain, or -1
    shape: KVShape

    @property
    def deepest(self) -> int:
        """Pages of the longest restorable prefix, 0 if none."""
        return int(self.pages[0]) if len(self.pages) else 0

    def rows_at(self, boundary: int) -> tuple[RowArray, ...]:
        """Per group, the rows that a prefix of ``boundary`` pages needs."""
        return tuple(
            found[_needed_from(group.rule, boundary, self.shape.page_tokens) : boundary]
            for group, found in zip(self.shape.groups, self.found, strict=True)
        )


class PrefixIndex:
    """Key -> row, for the pages of one page table."""

    __slots__ = ("_buckets", "_count", "_table")

    def __init__(self, table: PageTable) -> None:
        self._table = table
        self._buckets = np.full(1024, _EMPTY, np.int64)
        self._count = 0

    def __len__(self) -> int:
        """Pages that can be found."""
        return self._count

    def insert(self, rows: RowArray) -> None:
        """Make ``rows`` findable under their keys; a key that is there already keeps its row."""
        needed = (self._count + len(rows)) / _MAX_LOAD
        if needed > len(self._buckets):
            self._rebuild(1 << int(needed).bit_length())
        self._count += _insert(self._buckets, self._words, rows)

    def remove(self, rows: RowArray) -> None:
        """Make ``rows`` unfindable. Call it before the page table forgets their keys."""
        self._count -= _remove(self._buckets, self._words, rows)

    def find(self, keys: KeyArray) -> RowArray:
        """The row of each of ``keys`` (u8[N, 32]), or -1."""
        return self._find(keys, stop_at_miss=False)

    def leading(self, keys: KeyArray) -> RowArray:
        """The rows of the leading ``keys`` that are there; the first absent one ends it."""
        rows = self._find(keys, stop_at_miss=True)
        missing = np.flatnonzero(rows == NOWHERE)
        return rows[: missing[0]] if len(missing) else rows

    def boundaries(self, shape: KVShape, chains: Sequence[KeyArray]) -> Boundaries:
        """What can be restored of the prefix whose keys are ``chains``, one array per group.

        A prefix of n pages is restorable when every group's rule holds at n.
        """
        assert len(chains) == len(shape.groups), "one key chain per group"
        found, reachable = [], np.ones(len(chains[0]) + 1, np.bool_)
        for group, keys in zip(shape.groups, chains, strict=True):
            rows = self._find(keys, stop_at_miss=group.rule.kind is RuleKind.ALL)
            found.append(rows)
            reachable &= _restorable(group.rule, rows, shape.page_tokens)
        pages = np.flatnonzero(reachable)[::-1]
        return Boundaries(pages[pages > 0], tuple(found), shape)

    @property
    def _words(self) -> NDArray[np.uint64]:
        return self._table.keys.view("<u8")

    def _find(self, keys: KeyArray, *, stop_at_miss: bool) -> RowArray:
        assert keys.shape[1:] == (KEY_NBYTES,), "keys are u8[N, 32]"
        rows = np.empty(len(keys), np.int64)
        rows.fill(NOWHERE)
        wanted = np.ascontiguousarray(keys).view("<u8")
        _find(self._buckets, self._words, wanted, stop_at_miss, rows)
        return rows

    def _rebuild(self, buckets: int) -> None:
        rows = self._buckets[self._buckets != _EMPTY]
        self._buckets = np.full(buckets, _EMPTY, np.int64)
        _insert(self._buckets, self._words, rows)


def _needed_from(rule: Rule, boundary: int, page_tokens: int) -> int:
    """The first page that a prefix of ``boundary`` pages needs under ``rule``."""
    if rule.kind is RuleKind.ALL:
        return 0
    if rule.kind is RuleKind.POINT:
        return boundary - 1
    return max(0, boundary - -(-rule.window_tokens // page_tokens))


def _restorable(rule: Rule, rows: RowArray, page_tokens: int) -> NDArray[np.bool_]:
    """bool[N + 1]: whether ``rule`` holds for a prefix of n pages."""
    boundary = np.arange(len(rows) + 1)
    missing = np.concatenate(([0], np.cumsum(rows == NOWHERE)))
    first = np.array([_needed_from(rule, n, page_tokens) for n in boundary[1:]], np.int64)
    holds = missing[1:] - missing[first] == 0
    return np.concatenate(([True], holds))


@jit.compiled(jit.readonly("u8", 2), jit.i8, jit.readonly("u8", 2), jit.i8)
def _same(left: Any, i: Any, right: Any, j: Any) -> Any:
    return (
        left[i, 0] == right[j, 0]
        and left[i, 1] == right[j, 1]
        and left[i, 2] == right[j, 2]
        and left[i, 3] == right[j, 3]
    )


@jit.compiled(jit.readonly("i8"), jit.readonly("u8", 2), jit.readonly("u8", 2), jit.i8)
def _bucket_of(buckets: Any, words: Any, wanted: Any, i: Any) -> Any:
    """The bucket that holds key ``wanted[i]``, or the empty one where it belongs."""
    mask = np.int64(len(buckets) - 1)
    bucket = np.int64(wanted[i, 0] & np.uint64(mask))  # keys are hashes: any bits will do
    while buckets[bucket] != _EMPTY and not _same(words, buckets[bucket], wanted, i):
        bucket = (bucket + 1) & mask
    return bucket


@jit.compiled(
    jit.readonly("i8"), jit.readonly("u8", 2), jit.readonly("u8", 2), jit.boolean, jit.array("i8")
)
def _find(buckets: Any, words: Any, wanted: Any, stop_at_miss: Any, rows: Any) -> None:
    for i in range(len(wanted)):
        row = buckets[_bucket_of(buckets, words, wanted, i)]
        rows[i] = row
        if row == _EMPTY and stop_at_miss:
            return


@jit.compiled(jit.array("i8"), jit.readonly("u8", 2), jit.readonly("i8"))
def _insert(buckets: Any, words: Any, rows: Any) -> Any:
    added = 0
    for row in rows:
        bucket = _bucket_of(buckets, words, words, row)
        if buckets[bucket] == _EMPTY:
            buckets[bucket] = row
            added += 1
    return added


@jit.compiled(jit.array("i8"), jit.readonly("u8", 2), jit.readonly("i8"))
def _remove(buckets: Any, words: Any, rows: Any) -> Any:
    removed = 0
    mask = np.int64(len(buckets) - 1)
    for row in rows:
        hole = _bucket_of(buckets, words, words, row)
        if buckets[hole] != row:
            continue
        removed += 1
        probe = hole
        while True:  # close the gap, so that no probe sequence is cut (Knuth, algorithm R)
            probe = (probe + 1) & mask
            if buckets[probe] == _EMPTY:
                break
            home = np.int64(words[buckets[probe], 0] & np.uint64(mask))
            if (probe - home) & mask >= (probe - hole) & mask:
                buckets[hole] = buckets[probe]
                hole = probe
        buckets[hole] = _EMPTY
    return removed
