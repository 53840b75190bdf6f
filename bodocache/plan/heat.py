# SPDX-License-Identifier: Apache-2.0
"""Heat: how often a page was used lately, each use halving its weight every half-life.

``h(now) = h * 2^(-(now - stamp) / half_life) + hits``. If uses go on at this rate, h is also how
many are expected within one mean life (half_life / ln 2 seconds): what the planner takes for
p_reuse until a learned model replaces it; where h is small, that is the probability of one.
"""

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.pages import PAGE
from bodocache.plan.records import Int

NEVER_FADES_S = 1e12  # a half-life that makes heat a count


@jit.kernel(jit.f8, jit.f8, jit.f8, jit.f8)
def decayed(heat: float, stamp_s: float, now_s: float, half_life_s: float) -> float:
    """Heat at ``now_s`` of a page that had ``heat`` at ``stamp_s``; time never runs backwards."""
    return float(heat * np.exp2(-max(0.0, now_s - stamp_s) / half_life_s))


@jit.kernel(jit.f8, jit.f8, jit.f8)
def score(heat: float, stamp_s: float, half_life_s: float) -> float:
    """``log2(heat) + stamp / half_life``: orders pages by heat at any one later time.

    It does not change while heat decays (log2 h(now) = score - now / half_life), so a heap of
    scores is exact and is never rescanned. -inf for a page that was never used.
    """
    if heat <= 0.0:
        return -np.inf
    return float(np.log2(heat) + stamp_s / half_life_s)


@jit.kernel(jit.array(PAGE), jit.i8, jit.f8, jit.f8)
def add_hit(pages: NDArray[np.void], row: Int, now_s: float, half_life_s: float) -> None:
    """Count one use of the page at ``now_s``."""
    page = pages[row]
    heat = decayed(np.float64(page["heat"]), page["stamp_s"], now_s, half_life_s)
    page["heat"] = heat + 1.0
    page["stamp_s"] = max(page["stamp_s"], now_s)
    page["hits"] += 1
