# SPDX-License-Identifier: Apache-2.0
"""What was left of a load at its commit, layer by layer between CPU pools, in turns of the loop.

Behind the last layer the pages are verified where they lie on the device, in turns, too: the last
layer is there when all are.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bodocache import digest
from bodocache.move.copies import Copies
from bodocache.move.land import Landing
from bodocache.move.part import Part, RowArray


class ByLayer:
    """Pages ``chosen`` of a part. Each turn has ended when it returns."""

    def __init__(
        self,
        part: Part,
        chosen: RowArray,
        *,
        copies: Copies,
        lander: Landing,
        now_s: Callable[[], float],
    ) -> None:
        self._part = part
        self._chosen = chosen
        self._copies = copies
        self._lander = lander
        self._now_s = now_s
        self._layer = self._done = 0  # and pages of this layer that are there; at the end: verified
        self.due_s = part.load.terms.layers_due_s(now_s())

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is left."""
        return self._done == len(self._chosen)

    def begin(self, nbytes: int) -> int:
        """Copy or verify what one turn allows; the bytes of whole pages that it is worth."""
        nbytes = min(nbytes, self._copies.turn_nbytes)
        if self._layer < self._copies.num_layers:
            return self._copy(max(1, nbytes // self._copies.layer_nbytes))
        return self._verify(max(1, nbytes // self._part.page_nbytes))

    def stop(self) -> None:
        """Nothing more is wanted: what is not verified has not come."""
        self._part.under_way -= len(self._chosen) - self._verified
        self._chosen, self._done = self._chosen[:0], 0

    @property
    def _verified(self) -> int:
        return self._done if self._layer == self._copies.num_layers else 0

    def _copy(self, pages: int) -> int:
        part, chosen = self._part, self._chosen[self._done : self._done + pages]
        slots = (part.host_slots[chosen], part.device_slots[chosen])
        self._copies.copy_layer(self._layer, *slots)
        self._done += len(chosen)
        if self._done == len(self._chosen):
            self._layer, self._done = self._layer + 1, 0
            self._end_layer()
        return len(chosen) * self._copies.layer_nbytes

    def _end_layer(self) -> None:
        part, last = self._part, self._copies.num_layers - 1
        part.load.arrive_by_layer(part.positions[self._chosen], min(self._layer, last))
        if part.ticket is not None:
            part.link.queue.start(part.ticket, float(self.due_s[min(self._layer, last)]))

    def _verify(self, pages: int) -> int:
        part, chosen = self._part, self._chosen[self._done : self._done + pages]
        raw = self._copies.digests_on_device(part.device_slots[chosen])
        verified = verified_by(raw, part, chosen)
        part.landed_s = max(part.landed_s, self._now_s())
        part.under_way -= len(chosen)
        self._done += len(chosen)
        self._lander.land(part, chosen, verified)
        return len(chosen) * part.page_nbytes


def verified_by(raw: NDArray[np.uint64], part: Part, chosen: RowArray) -> NDArray[np.bool_]:
    """Whether pages ``chosen`` of a part have their digests; ``raw``: without seeds."""
    found = digest.seeded(raw, part.keys[chosen])
    verified: NDArray[np.bool_] = (found == part.digests[chosen]).all(axis=1)
    return verified
