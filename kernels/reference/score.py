# SPDX-License-Identifier: Apache-2.0
"""Twin of ``score_pages``: in float64, rounded to float32 once."""

import torch

from bodocache.kernels.page_records import (
    HEAT,
    HELD,
    NBYTES,
    RECOMPUTE,
    SINCE,
    STAMP,
    STATE,
    TIERS,
    DevicePages,
    Formula,
)


def score_pages(pages: DevicePages, tier: int, now_s: float, formula: Formula) -> torch.Tensor:
    """float32[capacity]: log2 of the density at ``now_s``; inf if held, young or not here."""
    state, floats = pages.words[STATE], pages.words.view(torch.float32)
    heat, recompute_s = floats[HEAT].double(), floats[RECOMPUTE].double()
    nbytes = (pages.words[NBYTES].long() & 0xFFFFFFFF).double()
    loads = [
        latency_s + nbytes * s_per_byte
        for latency_s, s_per_byte in zip(
            formula.load_latency_s, formula.load_s_per_byte, strict=True
        )
    ]
    otherwise_s = recompute_s
    for slower in range(tier + 1, TIERS):
        there = (state >> slower & 1).bool()
        otherwise_s = torch.where(there, otherwise_s.minimum(loads[slower]), otherwise_s)
    saved_s = (otherwise_s - loads[tier]).clamp(min=formula.saved_floor_s)
    age = (pages.times[STAMP] - now_s) / formula.half_life_s
    log_density = torch.log2(heat * saved_s) - torch.log2(nbytes.clamp(min=1)) + age
    held = (state & HELD).bool() | (state >> tier & 1 == 0)
    held |= pages.times[SINCE + tier] + formula.min_residence_s > now_s
    return log_density.masked_fill(held, torch.inf).float()
