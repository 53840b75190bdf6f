# SPDX-License-Identifier: Apache-2.0
"""What the cache holds of one prompt, as :meth:`bodocache.cache.Cache.match` answers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache.hints.reuse import Said

NOTHING_SAID = Said()


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a load of a match would take if it came at once, in seconds."""

    mean_s: float
    finish_s: float  # nine of ten are sooner
    recompute_s: float  # of the same pages, as planner.recompute_s_per_token says


Predict = Callable[[NDArray[np.uint8]], Forecast | None]  # of pages that lie in some Tiers


class Expected(NamedTuple):
    """What is announced of pages that are not there."""

    pages: int
    due_s: float  # of the last of them, on the cache's clock


class Finding(NamedTuple):
    """What there is of a chain."""

    tiers: NDArray[np.uint8]  # fastest Tier of each leading page
    reasons: NDArray[np.uint8]  # Reason of each page behind them
    expected: Expected


def _unknown(_: NDArray[np.uint8]) -> None:
    """Where no cache is asked."""


@dataclass(frozen=True, slots=True)
class Match:
    """What the cache holds of one prompt, as it was when asked."""

    version: int  # of the weights: after a rotation it is worth nothing
    keys: NDArray[np.uint8]  # of every whole page of the prompt
    pages: int  # leading pages that can be restored
    tiers: NDArray[np.uint8]  # fastest Tier of each restorable page
    reasons: NDArray[np.uint8]  # Reason of each page behind them
    said: Said = NOTHING_SAID  # what the caller told with the request
    announced: int = 0  # pages behind the restorable ones that another request is computing
    announced_s: float = 0.0  # when they are meant to be there, in seconds; 0: none, or overdue
    predict: Predict = field(default=_unknown, repr=False)

    @property
    def forecast(self) -> Forecast | None:
        """When a load of it would be there, if it came now; None: a link was never measured."""
        return self.predict(self.tiers)
