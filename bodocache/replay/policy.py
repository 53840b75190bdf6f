# SPDX-License-Identifier: Apache-2.0
"""Hit ratios of eviction policies over a trace, compiled: pages of equal size, one tier.

What a tier does whatever its policy: policies/model.py. Which leaf leaves: policies/, a family a
file, and docs/policies.md. Requests are served in trace order; ties go deepest first, then to the
lower page id. A new policy is its file, and a name and a line here.
"""

from collections.abc import Callable
from enum import StrEnum

import numpy as np

from bodocache.replay.policies import (
    arc,
    heat,
    learned,
    lhd,
    lru,
    minimum,
    ranked,
    s3fifo,
    sieve,
    tinylfu,
)
from bodocache.replay.policies.model import (
    HALF_LIFE_S,
    Floats,
    Ids,
    Recompute,
    Setting,
    Simulation,
    Touches,
    checked,
)

__all__ = ["HALF_LIFE_S", "Policy", "Recompute", "Simulation", "Touches", "serve", "simulate"]


class Policy(StrEnum):
    """A policy's name, on the command line and in JSON."""

    LRU = "lru"
    FIFO = "fifo"
    LFU = "lfu"
    PERFECT_LFU = "perfect-lfu"
    LFUDA = "lfuda"
    PERFECT_LFUDA = "perfect-lfuda"
    GDSF = "gdsf"
    PERFECT_GDSF = "perfect-gdsf"
    ARC = "arc"
    S3_FIFO = "s3-fifo"
    SIEVE = "sieve"
    W_TINYLFU = "w-tinylfu"
    LHD = "lhd"
    SECOND_SIGHT_LRU = "second-sight-lru"
    SECOND_SIGHT_GDSF = "second-sight-gdsf"
    HEAT = "heat"
    LEARNED = "learned"
    MIN = "min"


_SERVE: dict[Policy, Callable[[Touches, int, Setting], Simulation]] = {
    Policy.LRU: lru.lru,
    Policy.FIFO: ranked.fifo,
    Policy.LFU: ranked.lfu,
    Policy.PERFECT_LFU: ranked.perfect_lfu,
    Policy.LFUDA: ranked.lfuda,
    Policy.PERFECT_LFUDA: ranked.perfect_lfuda,
    Policy.GDSF: ranked.gdsf,
    Policy.PERFECT_GDSF: ranked.perfect_gdsf,
    Policy.ARC: arc.arc,
    Policy.S3_FIFO: s3fifo.s3_fifo,
    Policy.SIEVE: sieve.sieve,
    Policy.W_TINYLFU: tinylfu.w_tinylfu,
    Policy.LHD: lhd.lhd,
    Policy.SECOND_SIGHT_LRU: lru.second_sight,
    Policy.SECOND_SIGHT_GDSF: ranked.second_sight_gdsf,
    Policy.HEAT: heat.heat,
    Policy.LEARNED: learned.learned,
    Policy.MIN: minimum.minimum,
}

# Hits at every capacity in one pass, where a larger tier always holds what a smaller one does.
CURVES: dict[Policy, Callable[[Touches], Ids]] = {
    Policy.LRU: lru.lru_curve,
    Policy.SECOND_SIGHT_LRU: lru.second_sight_curve,
    Policy.MIN: minimum.minimum_curve,
}


def simulate(
    policy: Policy,
    touches: Touches,
    capacity_pages: int,
    *,
    recompute: Recompute | None = None,
    half_life_s: float = HALF_LIFE_S,
    hints: Floats | None = None,
) -> Simulation:
    """Serve a trace's requests from ``capacity_pages``.

    ``recompute`` weighs pages for gdsf and heat, ``half_life_s`` is heat's. ``hints`` are told to
    learned: of each request, the chance that it will be continued; NaN where nothing is said.

    Raises:
        ValueError: the columns do not fit together, or a parameter is out of range.
    """
    if capacity_pages < 0 or not half_life_s > 0:
        raise ValueError(f"capacity_pages={capacity_pages}, half_life_s={half_life_s}: too small")
    if hints is not None and not (len(hints) == len(touches.timestamps_s) and _are_hints(hints)):
        raise ValueError("hints: one a request, each in [0, 1] or NaN")
    setting = Setting(recompute or Recompute(), half_life_s, hints)
    return serve(policy, checked(touches), capacity_pages, setting)


def _are_hints(hints: Floats) -> bool:
    return bool((np.isnan(hints) | ((hints >= 0) & (hints <= 1))).all())


def serve(
    policy: Policy, touches: Touches, capacity_pages: int, setting: Setting | None = None
) -> Simulation:
    """As :func:`simulate`, of columns that were checked (``model.checked``)."""
    return _SERVE[policy](touches, min(capacity_pages, len(touches.parents)), setting or Setting())
