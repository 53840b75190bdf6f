# SPDX-License-Identifier: Apache-2.0
"""What a cache asks of whoever moves its pages: an orchestrator, or an engine's side of a node."""

from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bodocache.hints.actions import Action, Outcome
from bodocache.hints.reuse import Said
from bodocache.hints.stats import HintStats
from bodocache.match import Forecast, Match
from bodocache.move.load import Load
from bodocache.move.orchestrator import Traffic
from bodocache.move.residency import KeyArray, RowArray, SlotArray
from bodocache.move.store import Store
from bodocache.move.storer import Origin
from bodocache.move.terms import Terms
from bodocache.move.watchable import Watchable


class Hearer(Protocol):
    """Who is told what callers say; see :class:`bodocache.move.hints.Hints`."""

    def loaded(self, keys: KeyArray, rows: RowArray, said: Said) -> None:
        """A request loads the leading ``rows`` of the pages with ``keys``."""

    def execute(self, action: Action, keys: KeyArray | None) -> Outcome:
        """Carry out ``action``; ``keys`` of a span's prompt."""
        ...

    def forget_all(self) -> None:
        """The weights changed."""

    def stats(self) -> HintStats:
        """Everything counted, and what is held."""
        ...


class Mover(Watchable, Protocol):
    """Loads and stores pages; what it does is as :class:`bodocache.cache.Cache` says."""

    @property
    def hints(self) -> Hearer:
        """Who hears what callers say."""
        ...

    @property
    def num_layers(self) -> int:
        """Layers of a page."""
        ...

    def load(self, match: Match, keys: KeyArray, slots: SlotArray | None, terms: Terms) -> Load:
        """Begin to bring pages ``keys`` of ``match`` to the device."""
        ...

    def forecast(self, tiers: NDArray[np.uint8]) -> Forecast | None:
        """When a load of pages that lie in ``tiers`` would be there; None if nobody knows."""
        ...

    def stands_aside(self, keys: KeyArray) -> bool:
        """Whether nothing but the device is to be asked for a request of ``keys``."""
        ...

    def spent(self, seconds: float) -> None:
        """A request was looked up for so long."""
        ...

    def saved_by_waiting_s(self, pages: int, behind: int) -> float:
        """Seconds to compute the ``behind`` pages after the first ``pages``, less to load them."""
        ...

    def store(
        self,
        keys: KeyArray,
        slots: SlotArray,
        origin: Origin,
        said: Said,
        *,
        by_layer: bool = False,
    ) -> Store:
        """Begin to store the last ``len(slots)`` pages of the chain ``keys``."""
        ...

    def refuse(self, slots: SlotArray, *, by_layer: bool = False) -> Store:
        """A store of nothing, for pages that could not be reached."""
        ...

    def hold_writes(self) -> AbstractContextManager[None]:
        """``with``: no write to disk begins inside."""
        ...

    def traffic(self) -> Traffic:
        """What moved up to now."""
        ...

    async def close(self) -> None:
        """Cancel loads, finish stores, and let go of everything."""
