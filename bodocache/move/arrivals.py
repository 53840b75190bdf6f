# SPDX-License-Identifier: Apache-2.0
"""What has come of each page of a load, layer by layer; from where it came, or why it will not.

A page that has come whole stays; what is asked for shrinks with cuts (``Load.wanted``), so whoever
asks says how many leading pages count.
"""

import numpy as np
from numpy.typing import NDArray

from bodocache.pages import Reason, Tier

RowArray = NDArray[np.int64]

_DEVICE, _LATE, _UNREACHABLE, _CANCELLED = (
    *(int(Tier.DEVICE), int(Reason.LATE)),
    *(int(Reason.UNREACHABLE), int(Reason.CANCELLED)),
)


class Arrivals:
    """One element for each page, in the order of the prompt. The loop's."""

    __slots__ = ("_came_from", "_given_layers", "_has_failed", "layers", "reasons", "whole_layers")

    def __init__(self, pages: int, layers: int) -> None:
        """Of ``pages`` that have ``layers`` layers each."""
        self.layers = layers
        self.whole_layers = np.zeros(pages, np.int64)  # all: the page has arrived
        self.reasons = np.empty(pages, np.uint8)  # Reason of those that have not
        self.reasons.fill(_LATE)
        self._given_layers = np.zeros(pages, np.int64)  # in a stream of the device, or whole
        self._came_from = np.zeros(pages, np.uint8)
        self._has_failed = np.zeros(pages, np.bool_)

    def __len__(self) -> int:
        return len(self.whole_layers)

    # What comes

    def come(self, positions: RowArray, source: Tier) -> None:
        """The pages at ``positions`` are whole; they came from ``source``."""
        self._came_from[positions] = int(source)
        self.whole_layers[positions] = self._given_layers[positions] = self.layers

    def come_by_layer(self, positions: RowArray, layers: int) -> None:
        """The first ``layers`` layers of these pages are whole."""
        self.whole_layers[positions] = layers
        self.give(positions, layers)

    def give(self, positions: RowArray, layers: int) -> None:
        """The first ``layers`` layers of these pages stand in a stream of the device, or are whole.

        The last layer of a page is given when it is whole.
        """
        self._given_layers[positions] = np.maximum(self._given_layers[positions], layers)

    def fail(self, positions: RowArray, reasons: NDArray[np.uint8]) -> None:
        """These pages will not come."""
        self.reasons[positions] = reasons
        self._has_failed[positions] = True

    def cut(self, first: int, reason: Reason) -> None:
        """Pages from ``first`` on are not wanted any more, for ``reason``."""
        behind = self.reasons[first:]
        behind[~self._has_failed[first:]] = int(reason)

    def cancel(self, end: int) -> None:
        """Of the first ``end`` pages, those that have not come will not."""
        lost = self.missing(end) & ~self._has_failed[:end]
        self.reasons[:end][lost] = _CANCELLED

    def settle(self, end: int) -> int:
        """The result is final: how many leading pages of ``end`` there are, which come to use."""
        pages = self.leading(end)
        if pages < end:  # those behind one that did not come:
            self.reasons[:end][~self.missing(end)] = _UNREACHABLE
        return pages

    # What there is

    def missing(self, end: int) -> NDArray[np.bool_]:
        """Which of the first ``end`` pages have not arrived."""
        missing: NDArray[np.bool_] = self.whole_layers[:end] < self.layers
        return missing

    def leading(self, end: int) -> int:
        """How many of the first ``end`` pages have arrived before one that has not."""
        if not end:
            return 0
        missing = self.missing(end)
        first = int(missing.argmax())
        return first if missing[first] else end

    def possible(self, end: int) -> int:
        """How many of the first ``end`` pages have arrived or may, before one that failed."""
        failed = np.flatnonzero(self._has_failed[:end])
        return int(failed[0]) if len(failed) else end

    def layers_whole(self, end: int) -> int:
        """How many leading layers all of the first ``end`` pages have."""
        return int(self.whole_layers[:end].min(initial=self.layers))

    def layers_given(self, end: int) -> int:
        """The same of those given to the device."""
        return int(self._given_layers[:end].min(initial=self.layers))

    def why_not(self, end: int, pages: int) -> Reason:
        """Why only ``pages`` of the first ``end`` came: of the first that failed, if any did."""
        first = self.possible(end)
        return Reason(int(self.reasons[first if first < end else pages]))

    def sources(self, end: int) -> NDArray[np.uint8]:
        """The Tier that each of the first ``end`` pages came from."""
        return self._came_from[:end]

    def hits(self, pages: int) -> NDArray[np.int64]:
        """The first ``pages``, by the Tier they came from."""
        return np.bincount(self._came_from[:pages], minlength=len(Tier))

    def from_below(self, pages: int) -> NDArray[np.int64]:
        """Which of the first ``pages`` the device did not hold."""
        below: NDArray[np.int64] = (self._came_from[:pages] != _DEVICE).nonzero()[0]
        return below
