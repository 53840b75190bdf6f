# SPDX-License-Identifier: Apache-2.0
"""Which loads will be late, where to cut them so that the recompute wins, and which to drop.

A load's finish on a link in EDF order, with x bytes of the link ahead of it and its own:

    F = now + x / rate + z * sqrt(spread^2 * x + (drift * x / rate)^2)

with ``spread`` in s/sqrt(byte) from completed chunks, ``drift`` the rate's learned relative error,
and z = 1.2816 for a one-sided 90 %. Tardiness is max(0, F - deadline) (DESIGN.md, "tardiness").

A load of K tokens may be cut at a boundary c in [landed, K]: pages up to c are loaded, the rest is
computed again, which takes ``R(c) = a * (K - c) + s * (K^2 - c^2) / 2`` seconds. The transfer that
is left takes ``tr = ((c - landed) * bytes_per_token + extra(c)) / rate``, behind ``queue`` seconds
of the link, none where nothing is left to move; the compute is ``q = R(c) + new``, and the engine
is free after ``wait``:

    in series:         T = max(wait, queue + tr) + q
    streamed by layer: T = max(queue + tr + q / L, max(wait, queue + tr / L) + q)

Both are exact for equal layers on a pipeline of two stages. What is least is
``T + n_waiting * R(c)``: a recompute delays everyone who waits at that engine.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan import heap
from bodocache.plan.records import LINK, Int

Z90 = 1.2815515655446004

# One load and the engine that waits for it; tokens count from the start of its prompt.
CUT = np.dtype(
    [
        ("tokens", "<i8"),  # K: what a whole load brings
        ("landed_tokens", "<i8"),  # whole in this hop's destination
        ("bytes_per_token", "<f8"),
        ("rate", "<f8"),  # bytes/s of the hop
        ("queue_s", "<f8"),  # the link's, ahead of the load
        ("wait_s", "<f8"),  # until the engine is free
        ("new_compute_s", "<f8"),  # of the tokens that are computed in any case
        ("token_s", "<f8"),  # a: recompute of one token at position 0
        ("slope_s", "<f8"),  # s: what each position adds
        ("layers", "<i8"),  # 0: the hop is in series; L: streamed by layer
        ("n_waiting", "<f8"),  # requests that wait at the engine behind this one
    ],
    align=True,
)

_LINK, _CUT, _IDS, _SECONDS = (
    jit.readonly(LINK),
    jit.readonly(CUT),
    jit.readonly("i8"),
    jit.array("f8"),
)


class Cut(NamedTuple):
    """Where to cut, and when the first token can be out."""

    boundary: int  # index into the boundaries
    finish_s: float  # T, from now
    recompute_s: float  # R(c)


@jit.kernel(_LINK, jit.f8, jit.f8, jit.f8)
def predicted_finish_s(link: NDArray[np.void], nbytes: float, now_s: float, z: float) -> float:
    """F above, of ``nbytes`` behind what the link (LINK[1]) has queued."""
    x = nbytes + np.float64(link[0]["queued_nbytes"])
    transfer_s = x / link[0]["rate"]
    doubt = link[0]["spread"] ** 2 * x + (link[0]["drift"] * transfer_s) ** 2
    return float(now_s + transfer_s + z * np.sqrt(doubt))


@jit.kernel(_LINK, _IDS, jit.readonly("f8"), jit.f8, _SECONDS, _SECONDS)
def tardiness(
    link: NDArray[np.void],
    nbytes: NDArray[np.int64],
    deadlines_s: NDArray[np.float64],
    now_s: float,
    finishes_s: NDArray[np.float64],
    late_s: NDArray[np.float64],
) -> None:
    """Predict each load of a link: they are served in this order (EDF), one after the other."""
    ahead = 0.0
    for i in range(len(nbytes)):
        ahead += np.float64(nbytes[i])
        finishes_s[i] = predicted_finish_s(link, ahead, now_s, Z90)
        late_s[i] = max(0.0, finishes_s[i] - deadlines_s[i])


@jit.kernel(_CUT, jit.f8)
def recompute_s(load: NDArray[np.void], boundary: float) -> float:
    """R(c): seconds to compute tokens ``boundary`` to K again."""
    one, tokens = load[0], np.float64(load[0]["tokens"])
    square = (tokens * tokens - boundary * boundary) / 2
    return float(one["token_s"] * (tokens - boundary) + one["slope_s"] * square)


@jit.kernel(_CUT, jit.f8, jit.f8)
def finish_s(load: NDArray[np.void], boundary: float, extra_nbytes: float) -> float:
    """T above: seconds from now until the step has computed, for a cut at ``boundary``."""
    one = load[0]
    left = (boundary - one["landed_tokens"]) * one["bytes_per_token"] + extra_nbytes
    transfer_s, queue_s = left / one["rate"], one["queue_s"] if left > 0 else 0.0
    compute_s = recompute_s(load, boundary) + one["new_compute_s"]
    if one["layers"] == 0:
        return float(max(one["wait_s"], queue_s + transfer_s) + compute_s)
    layers = np.float64(one["layers"])
    last_s = queue_s + transfer_s + compute_s / layers
    first_s = max(one["wait_s"], queue_s + transfer_s / layers)
    return float(max(last_s, first_s + compute_s))


@jit.kernel(_CUT, _IDS, _IDS)
def best_cut(
    load: NDArray[np.void], boundaries: NDArray[np.int64], extra_nbytes: NDArray[np.int64]
) -> Cut:
    """The cut of least T + n_waiting * R; of equals the deepest, which loads the most.

    ``boundaries``: tokens, ascending, landed_tokens to K, at least one; ``extra_nbytes``: what each
    needs besides (pages of window and point groups).
    """
    best, least = -1, np.inf
    for i in range(len(boundaries)):
        at = np.float64(boundaries[i])
        cost = finish_s(load, at, np.float64(extra_nbytes[i]))
        cost += load[0]["n_waiting"] * recompute_s(load, at)
        if cost <= least:
            best, least = i, cost
    at = np.float64(boundaries[best])
    return Cut(best, finish_s(load, at, np.float64(extra_nbytes[best])), recompute_s(load, at))


@jit.kernel(_CUT)
def meeting_point(load: NDArray[np.void]) -> float:
    """Tokens at which loading from the right meets computing from the left (DESIGN.md, "meet").

    ``m = p + 2 (K - p) u / (v + sqrt(v^2 + 2 s (K - p) u))`` with p landed, u = bytes_per_token /
    rate and v = a + s p + u: [p, m) is computed in as long as [m, K) is loaded.
    """
    one = load[0]
    landed = np.float64(one["landed_tokens"])
    left, u = np.float64(one["tokens"]) - landed, one["bytes_per_token"] / one["rate"]
    v = one["token_s"] + one["slope_s"] * landed + u
    return float(landed + 2 * left * u / (v + np.sqrt(v * v + 2 * one["slope_s"] * left * u)))


@jit.kernel(
    *(jit.readonly("f8"), jit.readonly("f8"), jit.readonly("f8")),
    *(heap.NODES, heap.PLACES, jit.array("?")),
)
def keep_on_time(
    link_s: NDArray[np.float64],
    deadlines_s: NDArray[np.float64],
    caused_s: NDArray[np.float64],
    nodes: NDArray[np.void],
    places: NDArray[np.int32],
    kept: NDArray[np.bool_],
) -> Int:
    """Moore-Hodgson's scheme: which loads a link that cannot serve all should serve.

    Loads stand in EDF order; each takes ``link_s`` seconds of the link, is due ``deadlines_s`` from
    now, and costs ``caused_s`` seconds of recompute if dropped. Whenever one would be late, the one
    so far that frees the most link seconds for each second of recompute is dropped. With equal
    ``caused_s`` as few as possible are dropped. ``nodes`` and ``places`` (n rows, one lane, zeroed)
    are scratch. Sets ``kept``; returns how many are.
    """
    count: Int = 0
    busy_s = 0.0
    for i in range(len(link_s)):
        kept[i] = True
        busy_s += link_s[i]
        count = heap.put(nodes, places, 0, count, i, -link_s[i] / max(caused_s[i], 1e-12), 0)
        while count > 0 and busy_s > deadlines_s[i]:
            dropped = np.int64(nodes[0]["row"])
            count = heap.drop(nodes, places, 0, count, dropped)
            kept[dropped] = False
            busy_s -= link_s[dropped]
    return count
