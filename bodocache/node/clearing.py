# SPDX-License-Identifier: Apache-2.0
"""Forgets every page of a node that nobody holds."""

import numpy as np

from bodocache.move.residency import Residency
from bodocache.pages import Reason, Tier


def forget_all(residency: Residency) -> int:
    """Give back every slot and frame of pages that are in no load or store; how many pages.

    Nothing is written: what lies on disk and is not overwritten is found again at the next start.
    """
    records = residency.table.records
    rows = np.flatnonzero((records["tiers"] != 0) & (records["pins"] == 0))
    rows = rows[np.argsort(records["depth"][rows])[::-1]]  # children before their parents
    for tier in (Tier.HOST, Tier.DISK):
        residency.drop(rows[residency.lies_in(rows, tier)], tier, Reason.RELEASED)
    return len(rows)
