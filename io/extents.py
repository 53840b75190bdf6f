# SPDX-License-Identifier: Apache-2.0
"""Merging the pages of a batch into the fewest requests to a file of frames.

File-adjacent frames become one request whatever their order in memory: 16 KiB pages in runs of 16
go three times faster that way from a thread pool, for a tenth of the CPU.

An *extent* is a run of frames in file order. Between two of its pages there may be a hole: frames
that nobody asked for, whose bytes land in scratch, count towards the maximum and are never offered.
The frames of pages of one deadline are cut from left to right, each extent as long as it may be;
whatever fits in an extent also fits in any longer one, so no other cut has fewer of them, if no
frame is named twice (each further time begins an extent).

Deadlines: extents come in the order of their most urgent page, each deadline cut as above, so that
no page comes behind an extent made for a later one. A page joins an extent of an earlier deadline
only where it lies in a hole which that extent reads through anyway, and leaves it within its
buffers: it then costs that extent not a byte. Nothing else is merged across deadlines, for a longer
extent would delay the pages that it had.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.errors import LayoutError
from bodocache.io.order import sort_places

IOV_MAX = 1024  # Linux's limit of buffers in one preadv or pwritev
_NO_DEADLINES = np.empty(0)


class Limits(NamedTuple):
    """What one request may be; a page alone is always allowed.

    ``nbytes`` bounds the bytes from the first page to the end of the last one's frame, holes
    included. ``vectors`` bounds the buffers: pages that follow each other in the file and in memory
    share one, a hole takes one, and so does the padding behind each page where a frame is longer
    than it. One vector is for backends that take a plain address: pages must then be adjacent in
    memory too. ``hole_nbytes`` is the longest hole that is read through. It pays while it is below
    the device's bytes/s over its requests/s.
    """

    page_nbytes: int
    frame_nbytes: int
    nbytes: int
    vectors: int = IOV_MAX
    hole_nbytes: int = 0


class Merged(NamedTuple):
    """A batch in the order of its extents, each in file order."""

    order: NDArray[np.int64]  # positions in the batch
    bounds: NDArray[np.int64]  # extent i is order[bounds[i] : bounds[i + 1]]


def slices(bounds: NDArray[np.int64]) -> list[slice]:
    """The extents that ``bounds`` cut a batch into."""
    return [slice(first, end) for first, end in pairwise(bounds.tolist())]


def positions_in(chosen: list[slice]) -> NDArray[np.int64]:
    """All positions that ``chosen`` take, in this order."""
    firsts = np.array([one.start for one in chosen], np.int64)
    counts = np.array([one.stop for one in chosen], np.int64) - firsts
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    positions: NDArray[np.int64] = np.repeat(firsts, counts) + within
    return positions


def runs(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Runs of ``chosen`` frames: int64[n, 2], the first of each and the first behind it."""
    edges = np.diff(np.concatenate(([False], chosen, [False])).astype(np.int8))
    return np.flatnonzero(edges).reshape(-1, 2)


def merge(
    frames: NDArray[np.int64],
    addresses: NDArray[np.int64],
    limits: Limits,
    deadlines_s: NDArray[np.float64] = _NO_DEADLINES,
) -> Merged:
    """The fewest extents of pages in ``frames`` (int64[n]) that lie at ``addresses`` in memory.

    ``deadlines_s`` is float64[n], or empty if all pages are equally urgent.

    Raises:
        LayoutError: the columns are not of one length, a deadline is not a number, or a limit is
            out of range.
    """
    n = len(frames)
    if len(addresses) != n or len(deadlines_s) not in {0, n} or np.isnan(deadlines_s).any():
        raise LayoutError(
            f"extents: {n} frames, {len(addresses)} addresses, {len(deadlines_s)} deadlines:"
            " expected as many of each, or no deadline, and only numbers"
        )
    if min(limits[:4]) < 1 or limits.hole_nbytes < 0 or limits.frame_nbytes < limits.page_nbytes:
        raise LayoutError(f"extents: {limits}: expected sizes above 0, and pages within frames")
    order, bounds = np.empty(n, np.int64), np.empty(n + 1, np.int64)
    frames, addresses = np.ascontiguousarray(frames), np.ascontiguousarray(addresses)
    count = cut(frames, addresses, np.ascontiguousarray(deadlines_s), limits, order, bounds)
    return Merged(order, bounds[: count + 1])


_ROWS, _DEADLINES = jit.array("i8"), jit.array("f8")
LIMITS = jit.named(Limits, *[jit.i8] * len(Limits._fields))


@jit.compiled(_ROWS, _ROWS, _DEADLINES, LIMITS, _ROWS, _ROWS)
def cut(frames: Any, addresses: Any, deadlines_s: Any, limits: Any, order: Any, bounds: Any) -> Any:
    """:func:`merge` in compiled code: fills ``order`` and ``bounds``, returns how many extents."""
    bounds[0] = 0
    sort_places(frames, order)
    if not _differ(deadlines_s):
        return _cut_equals(frames, addresses, limits, order, bounds)
    by_frame, urgency = order.copy(), np.empty(len(frames), np.int64)
    bits = deadlines_s.view(np.int64)
    for rank in range(len(frames)):  # ordered like the numbers they are the bits of; -0.0 is 0.0
        word = bits[by_frame[rank]]
        urgency[rank] = word if word >= 0 else np.int64(-(2**63)) - word
    turns, ranks = np.empty(len(frames), np.int64), np.empty(len(frames), np.int64)
    sort_places(urgency, turns)  # ranks by deadline, then by frame
    taken = np.zeros(len(frames), np.bool_)
    count = _cut_by_turns(
        *(frames[by_frame], addresses[by_frame], urgency, limits, turns, taken, ranks, bounds)
    )
    for i in range(len(frames)):
        order[i] = by_frame[ranks[i]]
    return count


@jit.kernel(_DEADLINES)
def _differ(deadlines_s: Any) -> Any:
    differ = False
    for deadline_s in deadlines_s:
        differ |= deadline_s != deadlines_s[0]
    return differ


@jit.kernel(_ROWS, _ROWS, LIMITS, _ROWS, _ROWS)
def _cut_equals(frames: Any, addresses: Any, limits: Any, order: Any, bounds: Any) -> Any:
    """Cut ``order``, which is by frame."""
    count, first, vectors = 0, 0, 0
    for i in range(len(order)):
        if i > 0:
            vectors = _grown(
                frames, addresses, limits, order[first], order[i - 1], order[i], vectors
            )
        if vectors == 0:
            vectors, first = _alone(limits), i
            bounds[count] = i
            count += 1
    bounds[count] = len(order)
    return count


@jit.kernel(_ROWS, _ROWS, _ROWS, LIMITS, _ROWS, jit.array("?"), _ROWS, _ROWS)
def _cut_by_turns(
    frames: Any,
    addresses: Any,
    urgency: Any,
    limits: Any,
    turns: Any,
    taken: Any,
    ranks: Any,
    bounds: Any,
) -> Any:
    """Cut deadline by deadline. A *rank* is a place in the columns, which are by frame."""
    count, placed, turn = 0, 0, 0
    while turn < len(turns):
        if taken[turns[turn]]:
            turn += 1
            continue
        first = before = turns[turn]
        vectors, begin = _alone(limits), turn
        turn += 1
        while turn < len(turns):
            rank = turns[turn]
            if not taken[rank]:
                if urgency[rank] != urgency[first]:
                    break
                grown = _grown(frames, addresses, limits, first, before, rank, vectors)
                if grown == 0:
                    break
                vectors, before = grown, rank
            turn += 1
        placed = _emit(frames, addresses, limits, turns[begin:turn], vectors, taken, ranks, placed)
        count += 1
        bounds[count] = placed
    return count


@jit.kernel(_ROWS, _ROWS, LIMITS, _ROWS, jit.i8, jit.array("?"), _ROWS, jit.i8)
def _emit(
    frames: Any,
    addresses: Any,
    limits: Any,
    chosen: Any,
    vectors: Any,
    taken: Any,
    ranks: Any,
    placed: Any,
) -> Any:
    """Append the extent of ``chosen``, and what lies in its holes; return how many are placed."""
    before = -1
    for after in chosen:
        if taken[after]:
            continue
        if before >= 0:
            for rank in range(before + 1, after):
                if taken[rank] or not frames[before] < frames[rank] < frames[after]:
                    continue
                grown = vectors - _between(frames, addresses, limits, before, after)
                grown += _between(frames, addresses, limits, before, rank)
                grown += _between(frames, addresses, limits, rank, after)
                if grown <= limits.vectors:
                    vectors, before = grown, rank
                    ranks[placed] = rank
                    placed += 1
                    taken[rank] = True
        before = after
        ranks[placed] = after
        placed += 1
        taken[after] = True
    return placed


@jit.kernel(_ROWS, _ROWS, LIMITS, jit.i8, jit.i8, jit.i8, jit.i8)
def _grown(
    frames: Any, addresses: Any, limits: Any, first: Any, before: Any, page: Any, vectors: Any
) -> Any:
    """Vectors of the extent from ``first`` to ``before`` with ``page`` added; 0 if it may not."""
    hole = frames[page] - frames[before] - 1
    if not 0 <= hole <= limits.hole_nbytes // limits.frame_nbytes:
        return 0
    if frames[page] - frames[first] >= limits.nbytes // limits.frame_nbytes:
        return 0
    vectors += _between(frames, addresses, limits, before, page)
    return vectors if vectors <= limits.vectors else 0


@jit.kernel(LIMITS)
def _alone(limits: Any) -> Any:
    """Vectors of a page, with the padding behind it."""
    return 1 if limits.page_nbytes == limits.frame_nbytes else 2


@jit.kernel(_ROWS, _ROWS, LIMITS, jit.i8, jit.i8)
def _between(frames: Any, addresses: Any, limits: Any, before: Any, page: Any) -> Any:
    """Vectors that ``page`` adds behind ``before``; a hole shares that of the padding."""
    if limits.page_nbytes != limits.frame_nbytes or frames[page] != frames[before] + 1:
        return 2
    return 0 if addresses[page] == addresses[before] + limits.page_nbytes else 1
