# SPDX-License-Identifier: Apache-2.0
"""Lets copies go because their owner said so, as far as nobody else needs them.

``rows`` are the end of a chain, shallow to deep; they go from the last one on. A page with pins or
holds is needed, and so is one that is needed by pages behind it.
"""

import numpy as np

from bodocache.move.residency import Residency, RowArray
from bodocache.pages import Reason, Tier


def leave(residency: Residency, rows: RowArray, tier: Tier) -> None:
    """Drop the copies in ``tier`` of ``rows``, whose pages lie in a slower tier, too."""
    records = residency.table.records
    for row in rows[::-1]:
        page = records[row]
        if page["tiers"] & tier.bit:
            if page["pins"] or page["holds"][tier] or page["children"][tier]:
                return
            residency.drop(np.array([row]), tier, Reason.EVICTED)


def remove(residency: Residency, rows: RowArray) -> int:
    """Drop ``rows`` from every tier; how many of them are gone. Nobody wants their writes now."""
    residency.before_removal(rows)
    records = residency.table.records
    for count, row in enumerate(rows[::-1]):
        page = records[row]
        if page["pins"] or page["holds"].any() or page["descended"]:
            return count
        for tier in (Tier.DEVICE, Tier.HOST, Tier.DISK):
            if page["tiers"] & tier.bit:
                residency.drop(np.array([row]), tier, Reason.RELEASED)
    return len(rows)
