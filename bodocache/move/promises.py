# SPDX-License-Identifier: Apache-2.0
"""Room that was taken for pages which have not come yet: how much of each tier, and for whom.

An account's share (plan/shares.py) is used by what it has and by what it is about to have, or
several stores at once would each take it whole. Kept only where tenants have shares.
"""

import numpy as np

from bodocache.move.ghosts import RowArray
from bodocache.pages import Tier
from bodocache.plan.records import TIERS
from bodocache.plan.shares import ANYBODY


class Promises:
    """Slots and frames between :meth:`make` and :meth:`end`, each of one account."""

    __slots__ = ("_accounts", "pages")

    def __init__(self, accounts: int) -> None:
        self.pages = np.zeros((TIERS, accounts), np.int64)  # promised to each
        self._accounts: list[dict[int, int]] = [{} for _ in range(TIERS)]  # by slot

    def make(self, tier: Tier, slots: RowArray, account: int) -> None:
        """``slots`` were taken for pages of ``account``."""
        if account != ANYBODY:
            self._accounts[tier].update(dict.fromkeys(slots.tolist(), account))
            self.pages[tier, account] += len(slots)

    def end(self, tier: Tier, slots: RowArray) -> None:
        """``slots`` hold pages now, or nothing will come; others than promised ones are ignored."""
        accounts = self._accounts[tier]
        if accounts:
            for slot in slots.tolist():
                if (account := accounts.pop(slot, None)) is not None:
                    self.pages[tier, account] -= 1
