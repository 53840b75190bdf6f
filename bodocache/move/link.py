# SPDX-License-Identifier: Apache-2.0
"""Links: the paths bytes travel, with what was measured on each, and when work will have crossed.

A link has a queue (queue.py); two links of one device share it, and what is known of its rate.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bodocache.move.calibration import FLOOR, Accuracy, Calibration, Prediction
from bodocache.move.queue import LinkQueue
from bodocache.move.rate import Estimate, LinkRate
from bodocache.move.ticket import Ticket
from bodocache.plan.records import LINK
from bodocache.plan.tardiness import Z90, predicted_finish_s

LATENCIES_KEPT = 65_536  # the newest, for percentiles and histograms


@dataclass(frozen=True, slots=True)
class LinkStats:
    """What one link moved. ``busy_s`` is the time with at least one op in flight."""

    ops: int
    pages: int
    nbytes: int
    busy_s: float
    accuracy: Accuracy  # of predicted finishes
    latencies_s: tuple[float, ...] = field(repr=False)

    @property
    def bytes_per_s(self) -> float:
        """Bytes over busy time; 0 when nothing moved."""
        return self.nbytes / self.busy_s if self.busy_s > 0 else 0.0


class Link:
    """One path, one direction. Used from the orchestrator's loop only."""

    __slots__ = (
        "_busy_s",
        "_busy_since_s",
        "_latencies_s",
        "_nbytes",
        "_now_s",
        "_ops",
        "_pages",
        "_record",
        "calibration",
        "in_flight",
        "name",
        "number",
        "observer",
        "queue",
        "rate",
    )

    def __init__(
        self,
        name: str,
        *,
        now_s: Callable[[], float],
        beside: "Link | None" = None,
        runs_here: bool = False,
    ) -> None:
        """``beside``: another link of the same device. ``runs_here``: see :class:`LinkQueue`."""
        self.name = name
        self.number = 0  # among the links of its cache
        self.observer: Callable[[float, int, int], None] | None = None  # begun_s, pages, nbytes
        self.in_flight = 0
        self._now_s = now_s
        self._busy_since_s = 0.0
        self._busy_s = 0.0
        self._latencies_s: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self._nbytes = 0
        self._ops = 0
        self._pages = 0
        self._record = np.zeros(1, LINK)
        self.rate = LinkRate()
        self.calibration = Calibration()
        if beside is None:
            self.queue = LinkQueue(now_s=now_s, rate=self._bytes_per_s, runs_here=runs_here)
        else:
            self.queue = beside.queue
        self.queue.on_resume.append(self._resume)

    # Counting

    def begin(self, now_s: float) -> None:
        """An op was called for."""
        if self.in_flight == 0:
            self._busy_since_s = now_s
            self.rate.resume(now_s)
        self.in_flight += 1

    def moved(self, now_s: float, nbytes: int, called_s: float = -math.inf) -> None:
        """``nbytes`` that were called for at ``called_s`` had arrived by ``now_s``."""
        self.rate.add(now_s, nbytes, called_s)

    def end(self, now_s: float, *, begun_s: float, pages: int, nbytes: int) -> None:
        """An op that began at ``begun_s`` is over; ``nbytes`` of it arrived."""
        self.end_uncounted(now_s)
        self._ops += 1
        self._pages += pages
        self._nbytes += nbytes
        self._latencies_s.append(now_s - begun_s)
        if self.observer is not None:
            self.observer(begun_s, pages, nbytes)

    def end_uncounted(self, now_s: float) -> None:
        """What was called for is over, and was no op."""
        assert self.in_flight > 0, f"link {self.name}: an op ended that never began"
        self.in_flight -= 1
        if self.in_flight == 0:
            self._busy_s += now_s - self._busy_since_s

    def estimate(self, nbytes: int | None = None) -> Estimate | None:
        """Its rate, spread and drift as they are learned; None while too little has moved."""
        return self.rate.estimate(nbytes)

    def counted(self) -> tuple[int, int, int, float]:
        """Ops, pages, bytes and busy seconds up to now: the stats that cost nothing to ask for."""
        open_s = self._now_s() - self._busy_since_s if self.in_flight else 0.0
        return self._ops, self._pages, self._nbytes, self._busy_s + open_s

    def stats(self) -> LinkStats:
        """What the link moved up to now."""
        ops, pages, nbytes, busy_s = self.counted()
        return LinkStats(
            ops=ops,
            pages=pages,
            nbytes=nbytes,
            busy_s=busy_s,
            accuracy=self.calibration.accuracy,
            latencies_s=tuple(self._latencies_s),
        )

    # Predicting

    def record(self, queued_nbytes: int, nbytes: int | None = None) -> NDArray[np.void] | None:
        """LINK[1] as it is believed now, for work of ``nbytes``; None while nothing is known.

        A link that lags behind its rate is believed to lose as much time again. The next call
        writes over it.
        """
        known = self.estimate(nbytes)
        if known is None:
            return None
        doubt, record = self.calibration.doubt, self._record
        queued_nbytes += int(self.lag_s() * known.rate)
        drift = max(known.drift, FLOOR) * doubt
        record[0] = (known.rate, known.spread * doubt, drift, queued_nbytes, 0, 0, 0)
        return record

    def _resume(self, now_s: float) -> None:
        """Nothing moved because tenants lacked credits: that says nothing of the rate."""
        self.rate.resume(now_s)

    def lag_s(self) -> float:
        """By how much it is late now: chunks that came, and those in flight that should have."""
        is_moving = self.in_flight and not self.queue.waits_for_credits
        known = self.estimate() if is_moving else None
        if known is None:
            return 0.0
        expected_s = self.queue.chunk_nbytes / known.rate
        stalled_s = max(0.0, self._now_s() - self.rate.since_s - 2.0 * expected_s)
        return self.rate.lag_s + stalled_s

    def predict(self, nbytes: int, ahead_nbytes: int = 0) -> Prediction | None:
        """When ``nbytes`` will have crossed, behind ``ahead_nbytes``; None if nobody knows."""
        record, now_s = self.record(ahead_nbytes, nbytes), self._now_s()
        if record is None:
            return None
        mean_s = predicted_finish_s(record, float(nbytes), now_s, 0.0)
        return Prediction(now_s, mean_s, predicted_finish_s(record, float(nbytes), now_s, Z90))

    def predict_ticket(self, ticket: Ticket) -> Prediction | None:
        """When the last byte of ``ticket`` will have crossed."""
        own = ticket.work.left_nbytes
        return self.predict(own, self.queue.ahead_nbytes(ticket) - own)

    def _bytes_per_s(self) -> float | None:
        known = self.estimate()
        return None if known is None else known.rate
