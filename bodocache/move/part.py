# SPDX-License-Identifier: Apache-2.0
"""What one load takes from one tier: which pages wait, which are on their way.

A part keeps its pages pinned and its slots taken until it has drained, whatever became of the load
meanwhile. All of it is the loop's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bodocache.move.calibration import Prediction
from bodocache.move.link import Link
from bodocache.move.load import Load
from bodocache.move.ticket import Ticket
from bodocache.pages import Tier

if TYPE_CHECKING:
    from bodocache.move.flights import Following

RowArray = NDArray[np.int64]
SlotArray = NDArray[np.int64]


@dataclass(slots=True, eq=False)
class Part:
    """Pages ``rows[i]`` of one tier, on their way to position ``positions[i]`` of the load.

    They stand in the order in which they should start, once they are planned.
    """

    load: Load
    source: Tier
    link: Link
    page_nbytes: int
    rows: RowArray
    positions: RowArray
    host_slots: SlotArray  # where the pages lie, or pass through
    device_slots: SlotArray
    keys: NDArray[np.uint8]
    digests: NDArray[np.uint64]  # seeded
    kept: NDArray[np.bool_]  # pages read from disk whose host slot is the cache's from then on
    left: RowArray  # which have not begun
    ours: NDArray[np.bool_]  # which no other source was asked for since
    ticket: Ticket | None = None  # its place in the link's queue
    prediction: Prediction | None = None  # made when it entered the queue
    under_way: int = 0  # pages that have begun and not ended
    landed: int = 0
    landed_s: float = 0.0  # when the last page had landed
    called_s: float = -math.inf  # when those were called for that land now
    is_over: bool = False
    before_first: Callable[[], None] | None = None  # has it planned; None: it is
    flight: int = 0  # its number among those that others may join; 0: none of them
    followers: list["Following"] = field(default_factory=list)  # loads that wait for some of it
    own_due_s: float = math.inf  # when its own load needs it
    joined_due_s: float = math.inf  # when the first that joined does
    on_left: Callable[["Part", RowArray], None] = lambda _part, _chosen: None  # not for us any more

    @property
    def left_nbytes(self) -> int:
        """What has not arrived, begun or not."""
        return (len(self.left) + self.under_way) * self.page_nbytes

    def take(self, pages: int) -> RowArray:
        """The next ``pages`` that are still wanted; fewer if there are no more."""
        if self.before_first is not None:
            self.before_first()
        self.drop_unwanted()
        chosen, self.left = self.left[:pages], self.left[pages:]
        self.under_way += len(chosen)
        return chosen

    def arrange(self, order: NDArray[np.int64]) -> None:
        """Let page ``order[i]`` be the i-th from now on; nothing has begun."""
        waits = np.zeros(len(order), np.bool_)
        waits[self.left] = True
        self.left = np.flatnonzero(waits[order])
        self.rows, self.positions = self.rows[order], self.positions[order]
        self.host_slots, self.device_slots = self.host_slots[order], self.device_slots[order]
        self.keys, self.digests = self.keys[order], self.digests[order]
        self.kept, self.ours = self.kept[order], self.ours[order]

    def put_back(self, chosen: RowArray) -> None:
        """Pages that had begun, and were withdrawn, wait again."""
        self.left = np.sort(np.concatenate((self.left, chosen)))

    def give_up(self, chosen: RowArray) -> None:
        """Another source brings pages ``chosen``, which have not begun."""
        self.ours[chosen] = False
        self.left = self.left[self.ours[self.left]]
        self.on_left(self, chosen)

    def drop_unwanted(self) -> None:
        """Forget what waits and is not wanted any more."""
        if len(self.left) and self.load.wanted < len(self.load.rows):
            wanted = self.load.is_wanted(self.positions[self.left])
            dropped, self.left = self.left[~wanted], self.left[wanted]
            if len(dropped):
                self.on_left(self, dropped)
