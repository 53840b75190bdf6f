# SPDX-License-Identifier: Apache-2.0
"""How much may be written to a slab: a flash drive wears out by bytes.

A token bucket of 1/24 of the day's bytes that refills with the other 23/24 over a day, so that no
24 hours see more than the budget. Its level survives restarts in a small file: it is written down
before a step is spent, so that a kill loses tokens and never gains any.
"""

import logging
import os
import time
from collections.abc import Callable

import numpy as np

from bodocache.io.header import checksums
from bodocache.io.posix import DataFile

DAY_S = 86_400.0
BURST_SHARE = 1 / 24  # of a day's bytes, at once
STEP_SHARE = 1 / 16  # of the bucket, written down at a time

_log = logging.getLogger(__name__)

_MAGIC = b"BODOBUDG"
_RECORD = np.dtype(
    [
        ("magic", "S8"),
        ("bytes_per_day", "<u8"),
        ("level_nbytes", "<f8"),
        ("stamp_s", "<f8"),  # wall clock
        ("reserved", "V16"),
        ("checksum", "<u8", (2,)),
    ]
)


class WriteBudget:
    """Bytes per day, of one slab. Used from one thread."""

    def __init__(
        self, nbytes_per_day: int, file: DataFile, *, wall_s: Callable[[], float] = time.time
    ) -> None:
        """``file`` is open for reading and writing, and closed by :meth:`close`.

        One that says nothing begins with a full bucket, a damaged one with an empty one.
        """
        self._per_day = nbytes_per_day
        self._capacity = nbytes_per_day * BURST_SHARE
        self._file = file
        self._wall_s = wall_s
        self._level = 0.0
        self._stamp_s = wall_s()
        self._recover(os.pread(file.fd, _RECORD.itemsize, 0))
        self._written_level = np.inf  # the first step is written down whatever the file says

    def left_nbytes(self) -> int:
        """Bytes that may be written now."""
        now_s = self._wall_s()
        elapsed_s = max(0.0, now_s - self._stamp_s)  # a clock set back gives nothing
        refill = elapsed_s * self._per_day * (1 - BURST_SHARE) / DAY_S
        self._level = min(self._capacity, self._level + refill)
        self._stamp_s = now_s
        return int(self._level)

    def spend(self, nbytes: int) -> None:
        """Take ``nbytes`` of :meth:`left_nbytes`."""
        self._level -= nbytes
        if self._level < self._written_level:
            self._write(max(0.0, self._level - self._capacity * STEP_SHARE))

    def close(self) -> None:
        """Write down what is left; twice is harmless."""
        if self._file.fd >= 0:
            self._write(self._level)
            self._file.close()

    def _recover(self, data: bytes) -> None:
        if not data:
            self._level = self._capacity
            return
        if len(data) < _RECORD.itemsize:
            return
        row = np.frombuffer(data, _RECORD, count=1)
        if row["magic"][0] != _MAGIC or (checksums(row) != row["checksum"]).any():
            return
        share = float(row["level_nbytes"][0]) / (int(row["bytes_per_day"][0]) * BURST_SHARE)
        self._level = self._capacity * min(1.0, max(0.0, share))  # another budget: as full
        self._stamp_s = min(self._stamp_s, float(row["stamp_s"][0]))

    def _write(self, level: float) -> None:
        row = np.zeros(1, _RECORD)
        row["magic"] = _MAGIC
        row["bytes_per_day"] = self._per_day
        row["level_nbytes"] = level
        row["stamp_s"] = self._stamp_s
        row["checksum"] = checksums(row)
        self._written_level = level
        try:
            os.pwrite(self._file.fd, row.tobytes(), 0)
        except OSError as error:
            _log.warning("%s: not written (%s): a restart may allow more", self._file.path, error)
