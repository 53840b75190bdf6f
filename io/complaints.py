# SPDX-License-Identifier: Apache-2.0
"""Warnings about errors of the storage, few enough that a disk that fails does not fill the log."""

import logging

from bodocache.clock import Clock

WARNING_INTERVAL_S = 10.0

_log = logging.getLogger(__name__)


class Complaints:
    """Logs an error every WARNING_INTERVAL_S and counts the others. Used by any thread."""

    __slots__ = ("_clock", "_suppressed", "_warned_s")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._warned_s = float("-inf")
        self._suppressed = 0

    def note(self, error: Exception, *expected: type[Exception]) -> None:
        """Warn of ``error``; with a traceback unless it is an OSError or ``expected``."""
        now_s = self._clock.now_s()
        if now_s - self._warned_s < WARNING_INTERVAL_S:
            self._suppressed += 1
            return
        unexpected = None if isinstance(error, (OSError, *expected)) else error
        _log.warning(
            "storage: %s: %s (%d more since the last warning)",
            *(type(error).__name__, error, self._suppressed),
            exc_info=unexpected,
        )
        self._warned_s = now_s
        self._suppressed = 0
