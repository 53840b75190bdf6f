# SPDX-License-Identifier: Apache-2.0
"""What hints write into page records: holds, ranks and forecasts; eviction goes by them."""

import numpy as np
from numpy.typing import NDArray

from bodocache.move.residency import Residency, RowArray
from bodocache.pages import Tier


def keeping_tiers(residency: Residency, rows: RowArray) -> NDArray[np.int64]:
    """The tier in which each page is best kept: the host, else the disk, else the device."""
    order = (Tier.HOST, Tier.DISK)
    return np.select([residency.lies_in(rows, tier) for tier in order], order, Tier.DEVICE)


def hold(residency: Residency, rows: RowArray, tiers: NDArray[np.int64]) -> None:
    """Keep the copy of each of ``rows`` in its tier of ``tiers`` from eviction."""
    residency.table.records["holds"][rows, tiers] += 1
    residency.requeue(rows)


def unhold(residency: Residency, rows: RowArray, tiers: NDArray[np.int64]) -> None:
    """End one hold; that of a page which was forgotten and came again has ended already."""
    holds = residency.table.records["holds"]
    holds[rows, tiers] -= holds[rows, tiers] > 0
    residency.requeue(rows)


def rank(residency: Residency, rows: RowArray, log2_factors: NDArray[np.float32]) -> None:
    """``rows`` are worth 2^factor of what they would be, for as long as they stay."""
    residency.table.records["rank"][rows] = log2_factors
    residency.requeue(rows)


def forecast(residency: Residency, rows: RowArray, log2_factor: float) -> None:
    """``rows`` are worth 2^factor of what they would be until they are used; -inf: nothing."""
    residency.table.records["forecast"][rows] = log2_factor
    residency.requeue(rows)
