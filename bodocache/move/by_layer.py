# SPDX-License-Identifier: Apache-2.0
"""What was left of a load at its commit, layer by layer between CPU pools, in turns of the loop.

A layer is summed as it is copied; with the last one a page has its digest, and is there if that is
right.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bodocache import digest
from bodocache.move.copies import Copies
from bodocache.move.land import Landing
from bodocache.move.part import Part, RowArray


@dataclass(frozen=True, slots=True)
class Rest:
    """What was left of a load at its commit: pages ``chosen`` of a part, and who lands them."""

    part: Part
    chosen: RowArray
    copies: Copies
    lander: Landing
    now_s: Callable[[], float]


class Layerwise:
    """What goes layer by layer, each due at ``due_s``."""

    def __init__(self, rest: Rest) -> None:
        self._part, self._chosen = rest.part, rest.chosen
        self._copies, self._lander = rest.copies, rest.lander
        self._now_s = rest.now_s
        self.due_s = rest.part.load.terms.layers_due_s(rest.now_s())


class ByLayer(Layerwise):
    """Copies in turns. Each has ended when it returns."""

    def __init__(self, rest: Rest) -> None:
        super().__init__(rest)
        self._layer = self._done = 0  # and pages of this layer that are there
        self._sums = np.zeros((len(rest.chosen), 2), np.uint64)  # of the layers that are there

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is left."""
        return self._layer == self._copies.num_layers or not len(self._chosen)

    def begin(self, nbytes: int) -> int:
        """Copy what one turn allows; the bytes of whole pages that it is worth."""
        pages = max(1, min(nbytes, self._copies.turn_nbytes) // self._copies.layer_nbytes)
        turn = slice(self._done, self._done + pages)
        part, chosen, sums = self._part, self._chosen[turn], self._sums[turn]
        slots = (part.host_slots[chosen], part.device_slots[chosen])
        self._copies.layer_to_device(self._layer, *slots, sums)
        self._done += len(chosen)
        if self._layer == self._copies.num_layers - 1:
            self._land(chosen, sums)
        if self._done == len(self._chosen):
            self._layer, self._done = self._layer + 1, 0
            self._end_layer()
        return len(chosen) * self._copies.layer_nbytes

    def stop(self) -> None:
        """Nothing more is wanted: what is not verified has not come."""
        is_last = self._layer == self._copies.num_layers - 1
        self._part.under_way -= len(self._chosen) - (self._done if is_last else 0)
        self._chosen = self._chosen[:0]

    def _end_layer(self) -> None:
        part = self._part
        if self._layer < self._copies.num_layers:
            part.load.arrive_by_layer(part.positions[self._chosen], self._layer)
            if part.ticket is not None:
                part.link.queue.start(part.ticket, float(self.due_s[self._layer]))

    def _land(self, chosen: RowArray, sums: NDArray[np.uint64]) -> None:
        """The last layer of pages ``chosen`` is there."""
        part = self._part
        verified = verified_by(digest.of_sums(sums, part.page_nbytes), part, chosen)
        part.landed_s = max(part.landed_s, self._now_s())
        part.under_way -= len(chosen)
        self._lander.land(part, chosen, verified)


def verified_by(raw: NDArray[np.uint64], part: Part, chosen: RowArray) -> NDArray[np.bool_]:
    """Whether pages ``chosen`` of a part have their digests; ``raw``: without seeds."""
    found = digest.seeded(raw, part.keys[chosen])
    verified: NDArray[np.bool_] = (found == part.digests[chosen]).all(axis=1)
    return verified
