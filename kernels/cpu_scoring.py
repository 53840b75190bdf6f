# SPDX-License-Identifier: Apache-2.0
"""The CPU path of eviction scoring: compiled loops without the GIL. Operands are checked."""

from typing import Any

import numpy as np
import torch

from bodocache import jit
from bodocache.kernels.page_records import (
    DEPTH,
    DEPTH_BITS,
    FLOOR,
    HEAT,
    HELD,
    LOADS,
    MAX_LEVELS,
    NBYTES,
    PARENT,
    RATE,
    RECOMPUTE,
    RESIDENCE,
    SINCE,
    STAMP,
    STATE,
    TIERS,
    DevicePages,
    Formula,
)

_TIER_BITS = (1 << TIERS) - 1
_DIGIT_BITS = 14  # 56 bits in four passes; 16,384 counters lie in L2
_DIGITS = 1 << _DIGIT_BITS
_PLACE_BITS = 32 + DEPTH_BITS
_INFINITE = 0x7F800000


def score(pages: DevicePages, tier: int, now_s: float, formula: Formula, out: torch.Tensor) -> None:
    """Write each page's log density in ``tier``."""
    words, terms = pages.words.numpy(), formula.terms(pages.device).numpy()
    _score(pages.times.numpy(), words, words.view(np.float32), terms, tier, now_s, out.numpy())


def refresh(pages: DevicePages, tier: int, keys: torch.Tensor) -> None:
    """Turn scores into eviction keys: raise parents' keys, deepest pages first."""
    _refresh(pages.words.numpy(), pages.levels, tier, keys.numpy())


def coldest(pages: DevicePages, keys: torch.Tensor, rows: torch.Tensor) -> int:
    """Write the ``len(rows)`` coldest pages to ``rows``, -1 behind the last; return how many."""
    return int(_coldest(keys.view(torch.int32).numpy(), pages.words.numpy(), rows.numpy()))


@jit.kernel(
    jit.array("f8", 2),
    jit.array("i4", 2),
    jit.array("f4", 2),
    jit.array("f8"),
    jit.i8,
    jit.f8,
    jit.array("f4"),
)
def _score(
    times: Any, words: Any, floats: Any, terms: Any, tier: Any, now_s: Any, out: Any
) -> None:
    for row in range(len(out)):
        state = words[STATE, row]
        young = times[SINCE + tier, row] + terms[RESIDENCE] > now_s
        heat = np.float64(floats[HEAT, row])
        if young or state & HELD or not (state >> tier) & 1:
            out[row] = np.inf
        elif heat <= 0.0:
            out[row] = -np.inf
        else:
            nbytes = max(np.float64(np.int64(words[NBYTES, row]) & 0xFFFFFFFF), 1.0)
            otherwise_s = np.float64(floats[RECOMPUTE, row])
            for slower in range(tier + 1, TIERS):
                if (state >> slower) & 1:
                    otherwise_s = min(otherwise_s, _load_s(terms, slower, nbytes))
            saved_s = max(otherwise_s - _load_s(terms, tier, nbytes), terms[FLOOR])
            half_lives = (times[STAMP, row] - now_s) * terms[RATE]
            out[row] = np.log2(heat * saved_s / nbytes) + half_lives


@jit.kernel(jit.array("f8"), jit.i8, jit.f8)
def _load_s(terms: Any, tier: Any, nbytes: Any) -> Any:
    return terms[LOADS + tier] + nbytes * terms[LOADS + TIERS + tier]


@jit.compiled(jit.array("i4", 2), jit.i8, jit.i8, jit.array("f4"))
def _refresh(words: Any, levels: Any, tier: Any, keys: Any) -> None:
    """Pages sorted by depth, by counting; then one pass over them."""
    here = 1 << tier
    ends = np.zeros(levels + 1, np.int64)  # ends[d + 1]: of the pages no deeper than d
    for row in range(len(keys)):
        if _holds_parent(words, row, here):
            keys[words[PARENT, row]] = np.inf
        if _is_linked(words, row, here):
            ends[words[DEPTH, row] + 1] += 1
    for level in range(levels):
        ends[level + 1] += ends[level]
    order = np.empty(ends[levels], np.int32)
    for row in range(len(keys)):
        if _is_linked(words, row, here):
            order[ends[words[DEPTH, row]]] = row
            ends[words[DEPTH, row]] += 1
    for i in range(len(order) - 1, -1, -1):
        parent = words[PARENT, order[i]]
        keys[parent] = max(keys[parent], keys[order[i]])


@jit.kernel(jit.array("i4", 2), jit.i8, jit.i8)
def _is_linked(words: Any, row: Any, here: Any) -> Any:
    """Whether the page and the one before it both lie in the tier."""
    parent = words[PARENT, row]
    return parent >= 0 and (words[STATE, row] & words[STATE, parent] & here) != 0


@jit.kernel(jit.array("i4", 2), jit.i8, jit.i8)
def _holds_parent(words: Any, row: Any, here: Any) -> Any:
    """Whether the page lies in another tier and the last copy of the one before it in this."""
    parent = words[PARENT, row]
    if parent < 0 or (words[STATE, row] & _TIER_BITS & ~here) == 0:
        return False
    return (words[STATE, parent] & _TIER_BITS) == here


@jit.kernel(jit.array("i4"), jit.array("i4", 2), jit.i8, jit.i8)
def _place(keys: Any, words: Any, row: Any, mask: Any) -> Any:
    """The page's place in the order of eviction: key, then deepest first; -1 if it must stay."""
    bits = np.int64(keys[row])
    if bits >= _INFINITE:
        return np.int64(-1)
    image = (~bits if bits < 0 else bits | 0x80000000) & 0xFFFFFFFF
    depth = np.int64(words[DEPTH, row]) if mask & (MAX_LEVELS - 1) else MAX_LEVELS - 1
    return (image << DEPTH_BITS) | (MAX_LEVELS - 1 - depth)


@jit.kernel(jit.array("i4"), jit.array("i4", 2), jit.i8, jit.i8, jit.i8, jit.array("i8"))
def _count_digits(
    keys: Any, words: Any, prefix: Any, shift: Any, digit_shift: Any, bins: Any
) -> Any:
    """Count the next digit of the places that share a prefix; return how many do."""
    bins[:] = 0
    total = 0
    for row in range(len(keys)):
        place = _place(keys, words, row, np.int64(-1) << digit_shift)
        if place >= 0 and place >> shift == prefix:
            bins[(place >> digit_shift) & (_DIGITS - 1)] += 1
            total += 1
    return total


@jit.compiled(jit.array("i4"), jit.array("i4", 2), jit.i8)
def _select(keys: Any, words: Any, wanted: Any) -> Any:
    """(prefix, shift, wanted): take all places before the prefix, and so many that share it."""
    bins = np.empty(_DIGITS, np.int64)
    prefix, shift = np.int64(0), np.int64(_PLACE_BITS)
    while shift > 0:
        total = _count_digits(keys, words, prefix, shift, shift - _DIGIT_BITS, bins)
        if total <= wanted:
            return prefix, shift, total
        digit = 0
        while bins[digit] < wanted:
            wanted -= bins[digit]
            digit += 1
        prefix, shift = (prefix << _DIGIT_BITS) | digit, shift - _DIGIT_BITS
    return prefix, shift, wanted


@jit.compiled(jit.array("i4"), jit.array("i4", 2), jit.array("i4"))
def _coldest(keys: Any, words: Any, rows: Any) -> Any:
    """Write the rows up to the place that the radix select found; of equals, the first."""
    prefix, shift, wanted = _select(keys, words, np.int64(len(rows)))
    chosen = 0
    for row in range(len(keys)):
        place = _place(keys, words, row, np.int64(-1) << shift)
        if place < 0 or place >> shift > prefix:
            continue
        if place >> shift == prefix:
            if wanted == 0:
                continue
            wanted -= 1
        rows[chosen] = row
        chosen += 1
    rows[chosen:] = -1
    return chosen
