# SPDX-License-Identifier: Apache-2.0
"""What the cache gains, and whether it steps aside: seconds saved against seconds spent.

Saved is what computing the pages would have taken that loads brought from the host or the disk.
Spent is what engines waited for loads, and what looking up and, where the engine's own cores copy,
the copies of stores took. Both fade as heat does. If, after a half-life, more was spent than saved,
the cache steps aside: it stores nothing new on the host or the disk, and matches only what the
device holds.

Meanwhile a sample of the keys that are asked for is remembered. Once it says that pages kept on the
host would have saved more than was spent before, the cache is back; and after PROBE_HALF_LIVES in
any case, to measure again.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bodocache.pages import Tier

KeyArray = NDArray[np.uint8]
Seconds = Callable[[NDArray[np.int64]], NDArray[np.float64]]

SAMPLED = 16  # one key of so many is remembered while it is aside
KEYS_KEPT = 16_384  # of them: 262,144 pages
PROBE_HALF_LIVES = 50  # so that what measuring costs is a fiftieth of what it cost before


@dataclass(frozen=True, slots=True)
class Gain:
    """Seconds since the cache was opened, and what it made of them."""

    saved_s: float
    spent_s: float
    is_aside: bool
    times_aside: int


class Worth:
    """Weighs one cache. Used from the orchestrator's loop only."""

    def __init__(
        self,
        *,
        recompute_s: Seconds,
        load_page_s: float,
        half_life_s: float,
        is_on: bool,
        now_s: Callable[[], float],
    ) -> None:
        """``recompute_s``: of the pages at some depths. ``load_page_s``: of a page on the host."""
        self.is_aside = False
        self.times_aside = 0
        self.saved_s = self.spent_s = 0.0  # in all
        self._recompute_s = recompute_s
        self._load_page_s = load_page_s
        self._half_life_s = half_life_s
        self._is_on = is_on
        self._now_s = now_s
        self._stamp_s = self._since_s = now_s()
        self._saved = self._spent = 0.0  # decayed
        self._threshold_s = 0.0  # what was spent when it stepped aside
        self._sample: dict[int, None] = {}  # the first words of keys, oldest first

    @classmethod
    def of(
        cls,
        policy: NDArray[np.void],
        recompute_s: Seconds,
        page_nbytes: int,
        *,
        is_on: bool,
        now_s: Callable[[], float],
    ) -> "Worth":
        """Of pages of ``page_nbytes``, weighed as POLICY says."""
        return cls(
            recompute_s=recompute_s,
            load_page_s=float(policy["load_s_per_byte"][0, Tier.HOST]) * page_nbytes,
            half_life_s=float(policy["half_life_s"][0]),
            is_on=is_on,
            now_s=now_s,
        )

    @property
    def gain(self) -> Gain:
        """As it is now."""
        return Gain(self.saved_s, self.spent_s, self.is_aside, self.times_aside)

    def spent(self, seconds: float) -> None:
        """Somebody waited, or the loop was busy, for so long."""
        self._fade()
        self.spent_s += seconds
        self._spent += seconds

    def loaded(self, depths: NDArray[np.int64], waited_s: float, n_waiting: float) -> None:
        """A load brought the pages at ``depths`` from the host or the disk.

        To compute them would have delayed ``n_waiting`` other requests; the wait delays none: the
        engine serves them meanwhile.
        """
        self.spent(waited_s)
        saved_s = (1.0 + n_waiting) * float(self._recompute_s(depths).sum())
        self.saved_s += saved_s
        self._saved += saved_s

    def judge(self, keys: KeyArray) -> bool:
        """Whether to stand aside for a request of ``keys`` (u8[N, 32])."""
        if not self._is_on:
            return False
        self._fade()
        if self.is_aside:
            self._remember(keys)
            if self._saved > self._threshold_s or self._lasts(PROBE_HALF_LIVES):
                self._turn(is_aside=False)
        elif self._spent > self._saved and self._lasts(1):
            self.times_aside += 1
            self._threshold_s = self._spent
            self._turn(is_aside=True)
        return self.is_aside

    def _turn(self, *, is_aside: bool) -> None:
        self.is_aside = is_aside
        self._since_s = self._now_s()
        self._saved = self._spent = 0.0
        self._sample.clear()

    def _lasts(self, half_lives: int) -> bool:
        return self._now_s() - self._since_s >= half_lives * self._half_life_s

    def _remember(self, keys: KeyArray) -> None:
        """Count what pages that were asked for before would have saved, had they been kept."""
        words = keys.view("<u8")[:, 0]
        chosen = np.flatnonzero(words % np.uint64(SAMPLED) == 0)
        known = [i for i in chosen.tolist() if int(words[i]) in self._sample]
        if known:
            each_s = self._recompute_s(np.array(known)) - self._load_page_s
            self._saved += SAMPLED * float(np.maximum(0.0, each_s).sum())
        for i in chosen.tolist():
            self._sample.pop(int(words[i]), None)
            self._sample[int(words[i])] = None
        while len(self._sample) > KEYS_KEPT:
            del self._sample[next(iter(self._sample))]

    def _fade(self) -> None:
        now_s = self._now_s()
        kept = math.exp2((self._stamp_s - now_s) / self._half_life_s)
        self._saved *= kept
        self._spent *= kept
        self._stamp_s = now_s
