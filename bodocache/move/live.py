# SPDX-License-Identifier: Apache-2.0
"""The loads that are under way, and the pages that those before delivered. The loop's."""

import numpy as np

from bodocache.move.load import Load
from bodocache.pages import Tier


class Live:
    """Loads between their beginning and :meth:`Load.close`."""

    def __init__(self) -> None:
        self._loads: set[Load] = set()
        self._hits = np.zeros(len(Tier), np.int64)

    def __len__(self) -> int:
        return len(self._loads)

    @property
    def hits(self) -> dict[Tier, int]:
        """Pages delivered, by the tier they came from."""
        return {tier: int(self._hits[tier]) for tier in (Tier.DEVICE, Tier.HOST, Tier.DISK)}

    def add(self, load: Load) -> None:
        """``load`` begins."""
        self._loads.add(load)
        load.on_settled(lambda: self._count(load))

    def remove(self, load: Load) -> None:
        """Its engine has closed it."""
        self._loads.discard(load)

    async def close(self) -> None:
        """Cancel every load under way and wait until their slots are free."""
        loads = list(self._loads)
        for load in loads:
            load.close()
        for load in loads:
            await load.released

    def _count(self, load: Load) -> None:
        self._hits += load.hits
