# SPDX-License-Identifier: Apache-2.0
"""How often what was predicted came true, and how far to trust a link's own numbers.

A finish is predicted as ``F = mean + z * deviation`` with z for a one-sided 90 %. Links are not as
the model says (bursts, neighbours), so deviations are multiplied by a *doubt* that follows what
happened: it grows by 9 steps whenever a finish came after F and shrinks by one whenever it came
before, so that nine of ten come before whatever the link does (adaptive conformal inference, Gibbs
and Candes 2021, on the deviation's scale).
"""

from dataclasses import dataclass

EXPECTED = 0.9  # of finishes that come before F
STEP = 0.03  # of the doubt, for one that came before; the others weigh nine times as much
LEAST, MOST = 0.05, 50.0
FLOOR = 0.02  # of the mean: a deviation is at least so much, so that there is something to scale


@dataclass(frozen=True, slots=True)
class Prediction:
    """When something will have crossed a link, on the cache's clock."""

    made_s: float
    mean_s: float
    finish_s: float  # F: nine of ten finish sooner


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What became of predictions."""

    made: int  # that could be judged: nothing more urgent came between, nothing was cut
    early: int  # of those, finished before F

    @property
    def share(self) -> float:
        """Of finishes that came before F; 0.9 is meant."""
        return self.early / self.made if self.made else 0.0


class Calibration:
    """Judges the predictions of one link."""

    __slots__ = ("_early", "_made", "doubt")

    def __init__(self) -> None:
        self.doubt = 1.0
        self._made = self._early = 0

    def judge(self, prediction: Prediction, finished_s: float) -> None:
        """What was predicted has happened at ``finished_s``."""
        is_early = finished_s <= prediction.finish_s
        self._made += 1
        self._early += is_early
        step = -STEP if is_early else STEP * EXPECTED / (1 - EXPECTED)
        self.doubt = min(MOST, max(LEAST, self.doubt * (1.0 + step)))

    @property
    def accuracy(self) -> Accuracy:
        """How often it was right."""
        return Accuracy(self._made, self._early)
