# SPDX-License-Identifier: Apache-2.0
"""What the storage moved since SGLang last asked, in SGLang's own type."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Moved:
    """Calls that moved something, one entry each."""

    pages: list[int] = field(default_factory=list)
    gb_per_s: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Call:
    """One call; whoever makes it says what it moved."""

    pages: int = 0
    nbytes: int = 0


class Figures:
    """Counts gets and sets of all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._got, self._set = Moved(), Moved()

    @contextmanager
    def getting(self) -> Iterator[Call]:
        """``with``: a get."""
        with self._counted(is_get=True) as call:
            yield call

    @contextmanager
    def setting(self) -> Iterator[Call]:
        """``with``: a set."""
        with self._counted(is_get=False) as call:
            yield call

    def take(self) -> Any:
        """SGLang's StorageMetrics of what was counted since the last call."""
        from sglang.srt.observability.metrics_collector import StorageMetrics

        with self._lock:
            got, put = self._got, self._set
            self._got, self._set = Moved(), Moved()
        return StorageMetrics(
            prefetch_pgs=got.pages,
            backup_pgs=put.pages,
            prefetch_bandwidth=got.gb_per_s,
            backup_bandwidth=put.gb_per_s,
        )

    @contextmanager
    def _counted(self, *, is_get: bool) -> Iterator[Call]:
        call, begun_s = Call(), time.perf_counter()
        yield call
        took_s = time.perf_counter() - begun_s
        if not call.pages:
            return
        with self._lock:
            moved = self._got if is_get else self._set
            moved.pages.append(call.pages)
            moved.gb_per_s.append(call.nbytes / took_s / 1e9)
