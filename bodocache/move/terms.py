# SPDX-License-Identifier: Apache-2.0
"""What an engine says of a load: when it is needed, and what its step computes meanwhile."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bodocache.errors import ConfigError
from bodocache.plan.overlap import layer_deadlines_s


def _no_layers() -> NDArray[np.float64]:
    return np.zeros(0)


def check_expected(start_s: float | None, n_waiting: float) -> None:
    """Raise ConfigError for what an engine cannot expect."""
    if start_s is not None and not 0 <= start_s < math.inf:
        raise ConfigError(f"load: start_s = {start_s}: expected seconds from now, >= 0")
    if not 0 <= n_waiting < math.inf:
        raise ConfigError(f"load: n_waiting = {n_waiting}: expected a number of requests")


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """Times are on the cache's clock."""

    deadline_s: float = math.inf  # nothing is delivered later
    start_s: float | None = None  # when the engine is free to begin the step; None: nobody said
    compute_s: NDArray[np.float64] = field(default_factory=_no_layers)  # of each layer
    n_waiting: float = 0.0  # requests that wait at the engine behind this one
    tenant: int = 0  # whose credits pay for what is read from disk

    @classmethod
    def said(
        cls,
        now_s: float,
        *,
        deadline_s: float,
        start_s: float | None,
        compute_s: ArrayLike | None,
        n_waiting: float,
        layers: int,
        tenant: int = 0,
    ) -> "Terms":
        """As an engine says them: seconds from now. ConfigError: what cannot be."""
        if not deadline_s >= 0:
            raise ConfigError(f"load: deadline_s = {deadline_s}: expected seconds from now, >= 0")
        check_expected(start_s, n_waiting)
        seconds = _no_layers() if compute_s is None else np.array(compute_s, np.float64, ndmin=1)
        if compute_s is not None and not (
            seconds.shape == (layers,) and (seconds >= 0).all() and np.isfinite(seconds).all()
        ):
            raise ConfigError(
                f"load: compute_s of shape {list(seconds.shape)}: expected seconds >= 0 of each of"
                f" the pool's {layers} layers"
            )
        start_s = None if start_s is None else now_s + start_s
        return cls(now_s + deadline_s, start_s, seconds, n_waiting, tenant)

    @property
    def may_be_cut(self) -> bool:
        """Whether the engine said when it needs the load; if not, all of it is loaded."""
        return self.start_s is not None or math.isfinite(self.deadline_s)

    @property
    def is_layered(self) -> bool:
        """Whether layers are to come one after the other once the load is committed."""
        return len(self.compute_s) > 0

    def layers_due_s(self, now_s: float) -> NDArray[np.float64]:
        """When each layer is needed, if the step starts at ``start_s``, or now."""
        due_s = np.empty(len(self.compute_s))
        start_s = now_s if self.start_s is None else max(now_s, self.start_s)
        layer_deadlines_s(self.compute_s, start_s, due_s)
        return due_s

    def due_s(self, now_s: float) -> float:
        """When the last byte is needed: by the last layer, at the latest by the deadline."""
        if self.start_s is None:
            return self.deadline_s
        last_s = self.layers_due_s(now_s)[-1] if self.is_layered else max(now_s, self.start_s)
        return min(self.deadline_s, float(last_s))
