# SPDX-License-Identifier: Apache-2.0
"""What one load takes from one tier, and the copy of its pages to the device.

A part keeps its pages pinned and its slots taken until it has drained, whatever became of the load
meanwhile. Threads write ``verified`` and ``landed_s``, each for pages of its own; all else is the
loop's.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bodocache import digest
from bodocache.io.backend import NativeCall
from bodocache.kernels.landing import Landing
from bodocache.move.copies import Copies
from bodocache.move.link import Link
from bodocache.move.load import Load
from bodocache.pages import Tier

RowArray = NDArray[np.int64]
SlotArray = NDArray[np.int64]


@dataclass(slots=True)
class Part:
    """Pages ``rows[i]`` of one tier, on their way to position ``positions[i]`` of the load.

    They stand op by op, in the order in which the ops should start.
    """

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
    ends: list[int]  # where each op ends
    taken: int = 0  # pages that a turn has taken
    landed: int = 0
    landed_s: float = 0.0  # when the last page had landed

    def send(self, chosen: RowArray, copies: Copies, now_s: Callable[[], float]) -> None:
        """Copy pages ``chosen`` from their host slots to the device and verify them. Any thread."""
        raw = copies.to_device(self.host_slots[chosen], self.device_slots[chosen])
        found = digest.seeded(raw, self.keys[chosen])
        self.verified[chosen] = (found == self.digests[chosen]).all(axis=1)
        self.landed_s = max(self.landed_s, now_s())

    def take_turn(self, pages: int) -> RowArray:
        """The pages of the next ops, about ``pages`` of them; empty when there are no more."""
        first = self.taken
        for end in self.ends[bisect_right(self.ends, first) :]:
            if self.taken - first >= pages:
                break
            self.taken = end
        return np.arange(first, self.taken)


class SendOn:
    """Sends pages of a part on to the device as they land: natively between CPU pools."""

    __slots__ = ("_copies", "_landing", "_now_s", "_part", "native")

    def __init__(
        self, part: Part, landing: Landing | None, copies: Copies, now_s: Callable[[], float]
    ) -> None:
        self.native: NativeCall | None = None
        if landing is not None:
            self.native = NativeCall(landing.function, landing.argument)
        self._part = part
        self._landing = landing
        self._copies = copies
        self._now_s = now_s

    def __call__(self, positions: NDArray[np.int64]) -> None:
        """Send them in Python."""
        self._part.send(positions, self._copies, self._now_s)

    def take_time(self) -> None:
        """Let the part know when native threads had sent the last page. On the loop."""
        if self._landing is not None:
            self._part.landed_s = max(self._part.landed_s, self._landing.landed_s)
