# SPDX-License-Identifier: Apache-2.0
"""What holding a page in a tier is worth: seconds saved per byte held (DESIGN.md, "evict").

``density = p_reuse * saved_s / nbytes``, with ``saved_s = min(recompute_s, load from the best copy
in a slower tier) - load from here``, at least 1 ns. A copy in a *faster* tier does not count: it is
the first to leave. Loads are ops of one page. p_reuse is learned (hazards.py) or, with that
switched off, the page's heat (heat.py).
Hints multiply it by 2^(forecast + rank): what they say of the next use, weighed by how right they
were (trust.py), and their priority.
"""

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.pages import PAGE
from bodocache.plan import heat
from bodocache.plan.records import POLICY, TIERS, Int

SAVED_FLOOR_S = 1e-9  # where holding a page saves nothing, its reuse still orders it


@jit.kernel(jit.array(PAGE), jit.array(POLICY), jit.i8, jit.i8)
def log_gain(pages: NDArray[np.void], policy: NDArray[np.void], row: Int, tier: Int) -> float:
    """log2(saved_s / nbytes), hints included, of the page's copy, had or planned, in ``tier``."""
    page = pages[row]
    nbytes = np.int64(page["nbytes"])
    otherwise_s: float = np.float64(page["recompute_s"])
    for slower in range(tier + 1, TIERS):
        if (np.int64(page["tiers"]) >> slower) & 1:
            otherwise_s = min(otherwise_s, load_s(policy, slower, nbytes))
    saved_s = max(otherwise_s - load_s(policy, tier, nbytes), SAVED_FLOOR_S)
    hinted = np.float64(page["forecast"]) + np.float64(page["rank"])
    return float(np.log2(saved_s / max(nbytes, np.int64(1))) + hinted)


@jit.kernel(jit.array(PAGE), jit.array(POLICY), jit.i8, jit.i8)
def log_density(pages: NDArray[np.void], policy: NDArray[np.void], row: Int, tier: Int) -> float:
    """log2(density at time t by heat) + t / half_life of the page's copy in ``tier``.

    It is the same for every t from the last use on, so the order of two pages changes only when
    something happens to one of them.
    """
    page = pages[row]
    warmth = heat.score(np.float64(page["heat"]), page["stamp_s"], policy[0]["half_life_s"])
    return float(warmth + log_gain(pages, policy, row, tier))


@jit.kernel(jit.array(POLICY), jit.i8, jit.i8)
def load_s(policy: NDArray[np.void], tier: Int, nbytes: Int) -> float:
    """Seconds one op takes to bring ``nbytes`` from ``tier`` to the device."""
    return float(policy[0]["load_latency_s"][tier] + nbytes * policy[0]["load_s_per_byte"][tier])
