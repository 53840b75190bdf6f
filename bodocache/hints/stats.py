# SPDX-License-Identifier: Apache-2.0
"""What was counted of hints since the cache was opened."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Reliability:
    """How right one tenant's hints were (plan/trust.py)."""

    outcomes: int  # hints whose horizon has passed
    base_rate: float  # how often anything of this tenant was used again
    gain_bits: float  # log score of its hints over the base rate; the newest weigh most
    weight: float  # in [0, 1]: what they count for


@dataclass(frozen=True, slots=True)
class HintStats:
    """Hints by action and outcome, and what they hold."""

    outcomes: dict[tuple[str, str], int] = field(default_factory=dict)  # (action, status) -> count
    reliability: dict[int, Reliability] = field(default_factory=dict)  # by tenant
    held_pages: dict[int, int] = field(default_factory=dict)  # by tenant
    sessions: int = 0
