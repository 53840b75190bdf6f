# SPDX-License-Identifier: Apache-2.0
"""Nothing is lost and nothing is held twice: what must be true of pools and pages at any moment."""

import numpy as np
from numpy.typing import NDArray

from bodocache.move.residency import Residency
from bodocache.pages import NOWHERE, Tier
from bodocache.pools import OwnedPool


def check_conservation(residency: Residency, engines: NDArray[np.int64]) -> None:
    """AssertionError where a slot or a page is not accounted for.

    ``engines``: device slots that engines hold and have not stored.
    """
    records = residency.table.records
    present = records["tiers"] != 0
    for tier, pool in ((Tier.DEVICE, residency.device), (Tier.HOST, residency.host)):
        assert isinstance(pool, OwnedPool)
        _check_pool(tier, pool)
        rows = np.flatnonzero(present & ((records["tiers"] & tier.bit) != 0))
        slots = residency.slots(rows, tier)
        assert len(set(slots.tolist())) == len(slots), f"{tier.name}: two pages in one slot"
        assert pool.is_taken(slots).all(), f"{tier.name}: a page lies in a free slot"
    _check_owners(residency, engines)


def _check_pool(tier: Tier, pool: OwnedPool) -> None:
    free = pool.free_slots()
    assert len(set(free.tolist())) == len(free), f"{tier.name}: a slot is free twice"
    taken = pool.is_taken(np.arange(pool.num_pages))
    assert not taken[free].any(), f"{tier.name}: a free slot is taken"
    leaving = np.count_nonzero(~taken) - len(free)  # released under a lease that has not ended
    assert 0 <= leaving <= pool.leased, f"{tier.name}: {leaving} slots are neither free nor taken"


def _check_owners(residency: Residency, engines: NDArray[np.int64]) -> None:
    every = np.arange(residency.device.num_pages)
    owners = residency.owners(every)
    taken = residency.device.is_taken(every)
    held = owners >= 0
    tiers = residency.table.records["tiers"][owners[held]]
    assert ((tiers & Tier.DEVICE.bit) != 0).all(), "a device slot names a page that is not there"
    nobodys = every[taken & (owners == NOWHERE)]
    assert set(nobodys.tolist()) == set(engines.tolist()), (
        f"device slots {sorted(set(nobodys.tolist()) ^ set(engines.tolist()))}: taken by nobody, or"
        " held by an engine and free"
    )
