# SPDX-License-Identifier: Apache-2.0
"""What one load takes from one tier, and the copy of its pages to the device.

A part keeps its pages pinned and its slots taken until it has drained, whatever became of the load
meanwhile. Threads write ``verified`` and ``landed_s``, each for pages of its own; all else is the
loop's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bodocache import digest
from bodocache.move.copies import Copies
from bodocache.move.link import Link
from bodocache.move.load import Load
from bodocache.pages import Tier

RowArray = NDArray[np.int64]
SlotArray = NDArray[np.int64]


@dataclass(slots=True)
class Part:
    """Pages ``rows[i]`` of one tier, on their way to position ``positions[i]`` of the load."""

    load: Load
    source: Tier
    link: Link
    rows: RowArray
    positions: RowArray
    host_slots: SlotArray  # where the pages lie, or pass through
    device_slots: SlotArray
    keys: NDArray[np.uint8]
    digests: NDArray[np.uint64]  # seeded
    verified: NDArray[np.bool_]
    kept: NDArray[np.bool_]  # pages read from disk whose host slot is the cache's from then on
    ops: list[RowArray] = field(default_factory=list)  # indices into rows, op by op
    next_op: int = 0
    landed: int = 0
    landed_s: float = 0.0  # when the last page had landed

    def send(self, chosen: RowArray, copies: Copies, now_s: Callable[[], float]) -> None:
        """Copy pages ``chosen`` from their host slots to the device and verify them. Any thread."""
        raw = copies.to_device(self.host_slots[chosen], self.device_slots[chosen])
        found = digest.seeded(raw, self.keys[chosen])
        self.verified[chosen] = (found == self.digests[chosen]).all(axis=1)
        self.landed_s = max(self.landed_s, now_s())

    def take_turn(self, pages: int) -> RowArray:
        """The next ops of about ``pages`` pages; empty when there are no more."""
        first, count = self.next_op, 0
        while self.next_op < len(self.ops) and count < pages:
            count += len(self.ops[self.next_op])
            self.next_op += 1
        return np.concatenate([np.empty(0, np.int64), *self.ops[first : self.next_op]])
