# SPDX-License-Identifier: Apache-2.0
"""Links: the paths bytes travel, with what was measured on each."""

from collections import deque
from collections.abc import Callable  # noqa: TC003 -- as everywhere here
from dataclasses import dataclass, field

from bodocache.move.rate import Estimate, LinkRate

LATENCIES_KEPT = 65_536  # the newest, for percentiles and histograms


@dataclass(frozen=True, slots=True)
class LinkStats:
    """What one link moved. ``busy_s`` is the time with at least one op in flight."""

    ops: int
    pages: int
    nbytes: int
    busy_s: float
    latencies_s: tuple[float, ...] = field(repr=False)

    @property
    def bytes_per_s(self) -> float:
        """Bytes over busy time; 0 when nothing moved."""
        return self.nbytes / self.busy_s if self.busy_s > 0 else 0.0


class Link:
    """Counts ops in flight on one path, one direction. Used from the orchestrator's loop only."""

    __slots__ = (
        "_busy_s",
        "_busy_since_s",
        "_latencies_s",
        "_nbytes",
        "_ops",
        "_pages",
        "_rate",
        "in_flight",
        "name",
        "number",
        "observer",
    )

    def __init__(self, name: str, number: int = 0) -> None:
        self.name = name
        self.number = number  # among the links of its cache
        self.in_flight = 0
        self.observer: Callable[[float, int, int], None] | None = None  # begun_s, pages, nbytes
        self._busy_since_s = 0.0
        self._busy_s = 0.0
        self._latencies_s: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self._nbytes = 0
        self._ops = 0
        self._pages = 0
        self._rate = LinkRate()

    def begin(self, now_s: float) -> None:
        """An op was called for."""
        if self.in_flight == 0:
            self._busy_since_s = now_s
            self._rate.resume(now_s)
        self.in_flight += 1

    def end(self, now_s: float, *, begun_s: float, pages: int, nbytes: int) -> None:
        """An op that began at ``begun_s`` is over; ``nbytes`` of it arrived."""
        assert self.in_flight > 0, f"link {self.name}: an op ended that never began"
        self.in_flight -= 1
        if self.in_flight == 0:
            self._busy_s += now_s - self._busy_since_s
        self._ops += 1
        self._pages += pages
        self._nbytes += nbytes
        self._latencies_s.append(now_s - begun_s)
        self._rate.add(now_s, nbytes)
        if self.observer is not None:
            self.observer(begun_s, pages, nbytes)

    def estimate(self) -> Estimate | None:
        """Its rate, spread and drift as they are learned; None while too little has moved."""
        return self._rate.estimate()

    def stats(self, now_s: float) -> LinkStats:
        """What the link moved up to now."""
        open_s = now_s - self._busy_since_s if self.in_flight else 0.0
        return LinkStats(
            ops=self._ops,
            pages=self._pages,
            nbytes=self._nbytes,
            busy_s=self._busy_s + open_s,
            latencies_s=tuple(self._latencies_s),
        )
