# SPDX-License-Identifier: Apache-2.0
"""Which pages are there, for engines to look up without asking: a hash set in shared memory.

The node is the only writer. An entry is the first word of a page's key, a slot without one is 0;
entries lie at their word modulo the slots, or behind (linear probing), at most half of the slots
are used. Engines read while the node writes: an entry is moved before it is removed from its old
place, so one that stays is always found. What the table says may be old by the time it is used,
as any answer may: a page that is gone is a miss.

The words before the table say whether it is all of them: then, and only then, it is an answer.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.move.residency import NOBODYS, Residency, RowArray, SlotArray
from bodocache.move.room import Need
from bodocache.pages import Tier

HEADER_WORDS = 8  # the first: 1 while the table is complete; the second: how many entries it has
_COMPLETE, _COUNT = 0, 1
WORD_NBYTES = 8

Words = NDArray[np.uint64]


def words_for(pages: int) -> int:
    """Words of a table for ``pages`` pages: twice as many slots, a power of two, and the header."""
    return HEADER_WORDS + (1 << max(4, (2 * pages - 1).bit_length()))


class Presence:
    """The table in ``words`` (u64[words_for(...)]), zeros at the start."""

    def __init__(self, words: Words) -> None:
        self._words = words

    def open(self) -> None:
        """From now on the table is an answer. By the node."""
        self._words[_COMPLETE] = 1

    def add(self, found: Words) -> None:
        """Pages whose keys begin with ``found`` are there."""
        if not _add(self._words, found):
            self._words[_COMPLETE] = 0  # more pages than it was made for: engines ask again

    def remove(self, gone: Words) -> None:
        """They are not."""
        _remove(self._words, gone)

    def leading(self, keys: NDArray[np.uint8]) -> int | None:
        """How many leading ``keys`` (u8[n, 32]) are there; None where the node must be asked."""
        if self._words[_COMPLETE] != 1:
            return None
        first = np.ascontiguousarray(keys[:, :WORD_NBYTES]).view(np.uint64).ravel()
        return int(_leading(self._words, first))


class PublishedResidency(Residency):
    """Residency that keeps :attr:`presence` in step."""

    presence: Presence | None = None

    def place(self, rows: RowArray, tier: Tier, slots: SlotArray) -> None:
        """See :meth:`Residency.place`."""
        super().place(rows, tier, slots)
        if self.presence is not None and len(rows):
            self.presence.add(self.words(rows))

    def _forget(self, rows: RowArray, tier: int, need: Need = NOBODYS) -> None:
        if self.presence is not None and len(rows):
            self.presence.remove(self.words(rows))
        super()._forget(rows, tier, need)


_TABLE, _WORDS = jit.array("u8"), jit.readonly("u8")


@jit.compiled(_TABLE, jit.u8)
def _place_of(table: Any, word: Any) -> Any:
    """The slot of ``word``, or the free one where it would go."""
    mask = np.uint64(len(table) - HEADER_WORDS - 1)
    at = word & mask
    while table[HEADER_WORDS + at] != word and table[HEADER_WORDS + at] != np.uint64(0):
        at = (at + np.uint64(1)) & mask
    return at


@jit.compiled(_TABLE, _WORDS)
def _add(table: Any, words: Any) -> Any:
    """Whether there was room for all."""
    slots = len(table) - HEADER_WORDS
    for i in range(len(words)):
        word = max(words[i], np.uint64(1))
        at = HEADER_WORDS + _place_of(table, word)
        if table[at] == np.uint64(0):
            if np.uint64(2) * (table[_COUNT] + np.uint64(1)) > np.uint64(slots):
                return False
            table[at] = word
            table[_COUNT] += np.uint64(1)
    return True


@jit.compiled(_TABLE, _WORDS)
def _remove(table: Any, words: Any) -> None:
    mask = np.uint64(len(table) - HEADER_WORDS - 1)
    one = np.uint64(1)
    for i in range(len(words)):
        at = _place_of(table, max(words[i], one))
        if table[HEADER_WORDS + at] == np.uint64(0):
            continue
        table[_COUNT] -= one
        behind = (at + one) & mask
        while table[HEADER_WORDS + behind] != np.uint64(0):
            word = table[HEADER_WORDS + behind]
            # It may fill the gap unless its own place lies between the gap and where it is.
            if ((behind - word) & mask) >= ((behind - at) & mask):
                table[HEADER_WORDS + at] = word
                at = behind
            behind = (behind + one) & mask
        table[HEADER_WORDS + at] = np.uint64(0)


@jit.compiled(_TABLE, _WORDS)
def _leading(table: Any, words: Any) -> Any:
    for i in range(len(words)):
        word = max(words[i], np.uint64(1))
        if table[HEADER_WORDS + _place_of(table, word)] != word:
            return i
    return len(words)
