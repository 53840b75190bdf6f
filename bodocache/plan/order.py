# SPDX-License-Identifier: Apache-2.0
"""Sorting packed integer keys, stably, in the caller's memory: least first. Hash tables' sizes.

What stands in order already costs one look; up to 32 are inserted; more are sorted by radix, over
the bits in which they differ.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.records import Int

INSERTED = 32  # so few are not worth the clearing of counters
BITS = 8  # of a digit: its 256 counters stay in the first cache
_DIGITS = 1 << BITS
_SIGN = np.uint64(1 << 63)


class Pairs(NamedTuple):
    """Keys to sort and what they carry, each with a second array as long, and the counters."""

    keys: NDArray[np.uint64]  # [2, n]
    carried: NDArray[np.int32]  # [2, n]
    counters: NDArray[np.int64]  # [256]


PAIRS = jit.named(Pairs, jit.array("u8", 2), jit.array("i4", 2), jit.array("i8"))


def pairs_for(count: int) -> Pairs:
    """Memory for ``count`` pairs."""
    return Pairs(
        np.empty((2, count), np.uint64), np.empty((2, count), np.int32), np.empty(_DIGITS, np.int64)
    )


@jit.kernel(jit.i8)
def table_bits(count: Int) -> int:
    """Bits of the places of a hash table that ``count`` keys fill to a half at most."""
    bits = 1
    while (1 << bits) < 2 * count:
        bits += 1
    return bits


@jit.kernel(jit.f8)
def sortable(number: float) -> np.uint64:
    """An integer that orders as ``number`` does, -0.0 as 0.0; not for NaN."""
    bits = np.float64(number + 0.0).view(np.uint64)
    return ~bits if bits & _SIGN else bits | _SIGN


@jit.kernel(PAIRS, jit.i8, jit.i8)
def sort(pairs: Pairs, begin: Int, end: Int) -> None:
    """Sort keys[0, begin:end], and what they carry with them."""
    keys = pairs.keys
    differing, falls = np.uint64(0), False
    for i in range(begin + 1, end):
        differing |= keys[0, i] ^ keys[0, i - 1]
        falls |= keys[0, i] < keys[0, i - 1]
    if not falls:
        return
    if end - begin <= INSERTED:
        _insert(pairs, begin, end)
    else:
        _radix(pairs, begin, end, differing)


@jit.kernel(PAIRS, jit.i8, jit.i8)
def _insert(pairs: Pairs, begin: Int, end: Int) -> None:
    keys, carried = pairs.keys, pairs.carried
    for i in range(begin + 1, end):
        key, one, at = keys[0, i], carried[0, i], i
        while at > begin and keys[0, at - 1] > key:
            keys[0, at], carried[0, at] = keys[0, at - 1], carried[0, at - 1]
            at -= 1
        keys[0, at], carried[0, at] = key, one


@jit.kernel(PAIRS, jit.i8, jit.i8, jit.u8)
def _radix(pairs: Pairs, begin: Int, end: Int, differing: np.uint64) -> None:
    """One pass a digit that differs, from the least on."""
    here = 0
    for shift in range(0, 64, BITS):
        if (differing >> np.uint64(shift)) & np.uint64(_DIGITS - 1):
            _pass(pairs, begin, end, here, np.uint64(shift))
            here = 1 - here
    if here == 1:
        for i in range(begin, end):
            pairs.keys[0, i], pairs.carried[0, i] = pairs.keys[1, i], pairs.carried[1, i]


@jit.kernel(PAIRS, jit.i8, jit.i8, jit.i8, jit.u8)
def _pass(pairs: Pairs, begin: Int, end: Int, here: Int, shift: np.uint64) -> None:
    keys, carried, places = pairs.keys, pairs.carried, pairs.counters
    there, mask, place = 1 - here, np.uint64(_DIGITS - 1), np.int64(begin)
    places[:] = 0
    for i in range(begin, end):
        places[np.int64((keys[here, i] >> shift) & mask)] += 1
    for each in range(_DIGITS):
        of_digit = places[each]
        places[each] = place
        place += of_digit
    for i in range(begin, end):
        digit = np.int64((keys[here, i] >> shift) & mask)
        to = places[digit]
        places[digit] = to + 1
        keys[there, to], carried[there, to] = keys[here, i], carried[here, i]
