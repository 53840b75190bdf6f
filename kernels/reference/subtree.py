# SPDX-License-Identifier: Apache-2.0
"""Twin of ``refresh_keys``: level by level, deepest first."""

import torch

from bodocache.kernels.page_records import DEPTH, PARENT, STATE, TIERS, DevicePages


def refresh_keys(pages: DevicePages, tier: int, keys: torch.Tensor) -> None:
    """Turn the scores of ``tier`` in ``keys`` into maxima over the subtrees of pages there."""
    tiers = pages.words[STATE] & ((1 << TIERS) - 1)
    depth, parent = pages.words[DEPTH], pages.words[PARENT].long()
    child = (parent >= 0) & (tiers != 0)
    above = torch.where(child, tiers[parent], 0)
    here = 1 << tier
    keys[parent[child & (above == here) & ((tiers & ~here) != 0)]] = torch.inf
    linked = child & ((tiers & above & here) != 0)
    for level in range(pages.levels - 1, 0, -1):
        rows = (linked & (depth == level)).nonzero()[:, 0]
        keys.scatter_reduce_(0, parent[rows], keys[rows], "amax")
