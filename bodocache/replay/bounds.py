# SPDX-License-Identifier: Apache-2.0
"""An upper bound on the recompute seconds that any policy saves, for pages of any size and worth.

*Relaxation.* A policy holds a page from one touch to the next, or not: only then does that touch
hit. Let x be the share held of a segment (intervals.py) of S bytes worth V seconds, C the bytes of
the tier. Every policy's x keeps

    maximise sum V x,  subject to  sum of S x over the segments held after request t <= C, all t
                                   share(p) x_below <= x_above,  0 <= x <= 1

where ``above`` is held over a part of ``below``'s time and its first ``share(p)`` bytes end with
the page p right before ``below``'s first: pages are held only behind pages that are (x_child <=
x_parent, papers.md 3.2). So the maximum is a bound. Without the second line it is the min-cost flow
of Berger, Beckmann and Harchol-Balter (FOO, SIGMETRICS'18) with the concave hulls of prefixes; for
pages of equal size and worth its matrix is a network's, and the maximum is exactly MIN's.

*Proof that what is returned is a bound, whatever the solver did.* For any prices l_t >= 0 of a byte
after request t and m >= 0 of a broken order, weak duality says that no x has more than

    C sum l_t + sum max(0, V - S (l_start + .. + l_(end-1)) - share m_below + m_above)

The solver (HiGHS, by scipy) supplies prices; :func:`_priced` adds this up. Orders enter only when
an earlier solution broke them.

*Long traces* are cut into windows of requests. A segment that ends in a window counts there whole
and takes room in that window alone: each window then asks less of x, so the sum is still a bound,
and no estimate. Nothing is sampled.
"""

import importlib.util
from typing import Any, NamedTuple

import numpy as np

from bodocache.errors import BackendUnavailable, BodoCacheError
from bodocache.replay import intervals
from bodocache.replay.intervals import Segments
from bodocache.replay.policies.model import Floats, Ids, Touches, checked

WINDOW_REQUESTS = 16_384  # the solver's time grows faster than the requests (bench/bounds.py)
ROUNDS = 8  # of adding broken orders; the conversation trace needs two
ORDERS_A_ROUND = 65_536


class Bound(NamedTuple):
    """What no policy exceeds."""

    saved_s: float
    windows: int
    orders: int  # that a solution broke and that were added


class _Window(NamedTuple):
    """K segments held after some of R requests, the first of them at the window's start."""

    start: Ids  # [K]
    end: Ids  # [K]
    nbytes: Floats  # [K]
    saved_s: Floats  # [K]
    requests: int
    capacity_nbytes: float


class _Orders(NamedTuple):
    """``share * x[below] <= x[above]``, one a row."""

    share: Floats
    below: Ids
    above: Ids


def require_scipy() -> None:
    """Raise BackendUnavailable where scipy is not installed: before the work, not after."""
    if importlib.util.find_spec("scipy") is None:
        raise BackendUnavailable("bound: scipy is not installed; pip install bodocache[bound]")


def bound_saved_s(
    touches: Touches,
    capacity_nbytes: float,
    seconds: Floats,
    nbytes: Floats | None = None,
    *,
    window_requests: int = WINDOW_REQUESTS,
) -> Bound:
    """No policy that keeps ``capacity_nbytes`` saves more seconds on this trace.

    A hit of page p saves ``seconds[p]``; holding it takes ``nbytes[p]``, 1 each if left out. A page
    that does not fit in the tier whole may be held in part.

    Raises:
        BackendUnavailable: scipy is not installed.
        ValueError: columns or parameters out of range.
    """
    require_scipy()
    touches = checked(touches)
    sizes = np.ones(len(touches.parents)) if nbytes is None else nbytes
    _check(touches, capacity_nbytes, seconds, sizes)
    if window_requests < 1:
        raise ValueError(f"window_requests={window_requests}: expected at least 1")
    segments = intervals.cut(touches, np.array(seconds, float), np.array(sizes, float))
    saved_s, windows, orders = 0.0, 0, 0
    for begin in range(0, len(touches.timestamps_s), window_requests):
        first, end = np.searchsorted(segments.end, (begin, begin + window_requests))
        if first < end:
            best_s, added = _bound(segments, begin, slice(first, end), capacity_nbytes)
            saved_s, windows, orders = saved_s + best_s, windows + 1, orders + added
    return Bound(saved_s, windows, orders)


def _check(touches: Touches, capacity_nbytes: float, seconds: Floats, nbytes: Floats) -> None:
    if not 0 <= capacity_nbytes < np.inf:
        raise ValueError(f"capacity_nbytes={capacity_nbytes}: expected a number, 0 or more")
    for name, column, fits, expected in (
        ("seconds", seconds, seconds >= 0, "0 or more"),
        ("nbytes", nbytes, nbytes > 0, "more than 0"),
    ):
        if column.shape != touches.parents.shape:
            raise ValueError(f"{name}: {column.shape}; expected one a page, {len(touches.parents)}")
        wrong = np.flatnonzero(~(fits & np.isfinite(column)))
        if len(wrong):
            raise ValueError(f"{name}[{wrong[0]}] = {column[wrong[0]]}: expected {expected}")


def _bound(segments: Segments, begin: int, of: slice, capacity_nbytes: float) -> tuple[float, int]:
    """Bound of the segments ``of`` a window that begins with request ``begin``; orders added."""
    window = _Window(
        start=np.maximum(segments.start[of] - (begin - 1), 0),
        end=segments.end[of] - (begin - 1),
        nbytes=segments.nbytes[of],
        saved_s=segments.saved_s[of],
        requests=int(segments.end[of.stop - 1]) - (begin - 1) + 1,
        capacity_nbytes=capacity_nbytes,
    )
    none = np.empty(0, np.int64)
    orders = _Orders(np.empty(0), none, none)
    best_s = np.inf
    for _ in range(ROUNDS):
        held, price, penalty = _solve(window, orders)
        best_s = min(best_s, _priced(window, orders, price, penalty))
        more = _broken(segments, begin, of.start, held)
        if not len(more.share):
            break
        orders = _Orders(
            np.concatenate((orders.share, more.share)),
            np.concatenate((orders.below, more.below)),
            np.concatenate((orders.above, more.above)),
        )
    return best_s, len(orders.share)


def _broken(segments: Segments, begin: int, first: int, held: Floats) -> _Orders:
    touch, below = np.empty((2, ORDERS_A_ROUND), np.int64)
    count = intervals.broken(segments, first, begin, held, touch, below)
    touch, below = touch[:count], below[:count]
    return _Orders(segments.share[touch], below - first, segments.segment[touch] - first)


def _priced(window: _Window, orders: _Orders, price: Floats, penalty: Floats) -> float:
    """What no x exceeds at these prices, all >= 0 (weak duality)."""
    before = np.concatenate(([0.0], np.cumsum(price)))
    worth = window.saved_s - window.nbytes * (before[window.end] - before[window.start])
    np.subtract.at(worth, orders.below, orders.share * penalty)
    np.add.at(worth, orders.above, penalty)
    return float(window.capacity_nbytes * price.sum() + np.maximum(worth, 0).sum())


def _solve(window: _Window, orders: _Orders) -> tuple[Floats, Floats, Floats]:
    """Shares held; price of a byte after each request; price of each order.

    Bytes and seconds are scaled to about 1. Besides x there is a column u_t for the bytes held
    after request t, 0 <= u_t <= C: ``u_t = u_(t-1) + those of segments that start - that end``, so
    that a segment has two entries however long it is held. u's bound has the price.
    """
    from scipy.optimize import linprog

    byte, second = float(window.nbytes.mean()), float(window.saved_s.mean()) or 1.0
    count, requests = len(window.start), window.requests
    room = np.full(requests, window.capacity_nbytes / byte)
    upper = np.concatenate((np.ones(count), room))
    result = linprog(
        np.concatenate((-window.saved_s / second, np.zeros(requests))),
        A_eq=_flow(window, byte),
        b_eq=np.zeros(requests),
        A_ub=_order_rows(orders, count + requests),
        b_ub=np.zeros(len(orders.share)),
        bounds=np.stack((np.zeros(count + requests), upper), axis=1),
        method="highs-ds",
    )
    if result.status != 0:
        raise BodoCacheError(f"bound: the solver stopped: {result.message}")
    price = np.maximum(-result.upper.marginals[count:], 0) * (second / byte)
    penalty = np.maximum(-result.ineqlin.marginals, 0) * second
    return np.ascontiguousarray(result.x[:count]), price, penalty


def _flow(window: _Window, byte: float) -> Any:
    from scipy.sparse import csr_array

    count, requests = len(window.start), window.requests
    columns, times = np.arange(count), np.arange(requests)
    amount = window.nbytes / byte
    entries = (
        (amount, window.end, columns),
        (-amount, window.start, columns),
        (np.ones(requests), times, count + times),
        (-np.ones(requests - 1), times[1:], count + times[:-1]),
    )
    values, rows, places = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    return csr_array((values, (rows, places)), shape=(requests, count + requests))


def _order_rows(orders: _Orders, columns: int) -> Any:
    from scipy.sparse import csr_array

    rows = np.arange(len(orders.share))
    entries = np.concatenate((orders.share, -np.ones(len(rows))))
    places = np.concatenate((rows, rows)), np.concatenate((orders.below, orders.above))
    return csr_array((entries, places), shape=(len(rows), columns))
