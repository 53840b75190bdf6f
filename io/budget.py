# SPDX-License-Identifier: Apache-2.0
"""How much may be written to a slab: a flash drive wears out by bytes.

A token bucket of 1/24 of the day's bytes that refills with the other 23/24 over a day, so that no
24 hours see more than the budget, each byte counted when it is granted. Its level survives
restarts in a small file, together with a step that may be spent before it is written again: a kill
loses up to that step and never gains any. Time is the monotonic clock, which goes on from process
to process until the next boot; a wall clock can be set. After a reboot, or on another machine, the
level is what was written down: the time between refills nothing. Not covered: a file that was
removed (a full bucket, as of a new slab), and a power cut, which may bring an older record back.
"""

import logging
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from bodocache.io.header import checksums
from bodocache.io.posix import DataFile

DAY_S = 86_400.0
BURST_SHARE = 1 / 24  # of a day's bytes, at once
STEP_SHARE = 1 / 16  # of the bucket, written down at a time
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_log = logging.getLogger(__name__)

_MAGIC = b"BODOBUD2"
_RECORD = np.dtype(
    [
        ("magic", "S8"),
        ("bytes_per_day", "<u8"),
        ("level_nbytes", "<f8"),
        ("ahead_nbytes", "<f8"),  # granted after that without another record, at most
        ("stamp_s", "<f8"),  # monotonic clock
        ("boot", "V16"),  # since when that counts; zero: unknown
        ("checksum", "<u8", (2,)),
    ]
)


def boot_id() -> bytes:
    """16 bytes drawn at every boot; zeros where the system does not say."""
    with suppress(OSError, ValueError):
        return uuid.UUID(_BOOT_ID.read_text(encoding="ascii").strip()).bytes
    return bytes(16)


class WriteBudget:
    """Bytes per day, of one slab. Used from one thread."""

    def __init__(
        self,
        nbytes_per_day: int,
        file: DataFile,
        *,
        now_s: Callable[[], float] = time.monotonic,
        boot: bytes | None = None,
    ) -> None:
        """``file`` is open for reading and writing, and closed by :meth:`close`.

        One that says nothing begins with a full bucket, a damaged one with an empty one. ``boot``:
        since when ``now_s`` counts; by default this machine's :func:`boot_id`.
        """
        self._per_day = nbytes_per_day
        self._capacity = nbytes_per_day * BURST_SHARE
        self._file = file
        self._now_s = now_s
        self._boot = boot_id() if boot is None else boot
        self._level = 0.0
        self._unsettled = 0  # spent, and may be refunded yet
        self._ahead = 0.0  # may be spent before the next record
        self._stamp_s = now_s()
        self._recover(os.pread(file.fd, _RECORD.itemsize, 0))

    def left_nbytes(self) -> int:
        """Bytes that may be written now."""
        now_s = self._now_s()
        refill = max(0.0, now_s - self._stamp_s) * self._per_day * (1 - BURST_SHARE) / DAY_S
        # What may come back keeps its place: else it would be there twice, refilled and refunded.
        self._level = min(self._capacity - self._unsettled, self._level + refill)
        self._stamp_s = now_s
        return int(self._level)

    def spend(self, nbytes: int) -> None:
        """Take ``nbytes`` of :meth:`left_nbytes`; each is settled or refunded later."""
        self.left_nbytes()
        self._level -= nbytes
        self._unsettled += nbytes
        self._ahead -= nbytes
        if self._ahead < 0:
            self._write(self._capacity * STEP_SHARE)

    def settle(self, nbytes: int) -> None:
        """``nbytes`` that were spent have been written, whole or in part."""
        self.left_nbytes()
        self._unsettled -= nbytes

    def refund(self, nbytes: int) -> None:
        """``nbytes`` that were spent were not written, and will not be."""
        self.settle(nbytes)
        self._level += nbytes

    def close(self) -> None:
        """Write down what is left; twice is harmless."""
        if self._file.fd >= 0:
            self.left_nbytes()
            self._write(0.0)
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
        numbers = np.array([row[name][0] for name in ("level_nbytes", "ahead_nbytes", "stamp_s")])
        if not (row["bytes_per_day"][0] and np.isfinite(numbers).all() and (numbers >= 0).all()):
            return  # a right checksum is no proof: others may write here
        share = self._per_day / int(row["bytes_per_day"][0])  # another budget: as full
        self._level = share * float(row["level_nbytes"][0])
        same_boot = any(self._boot) and row["boot"][0].tobytes() == self._boot
        if same_boot:
            self._stamp_s = min(self._stamp_s, float(row["stamp_s"][0]))
        self.left_nbytes()
        self._level = max(0.0, self._level - share * float(row["ahead_nbytes"][0]))

    def _write(self, ahead: float) -> None:
        """Write the level down; ``ahead`` may be spent without another record."""
        row = np.zeros(1, _RECORD)
        row["magic"] = _MAGIC
        row["bytes_per_day"] = self._per_day
        row["level_nbytes"] = self._level
        row["ahead_nbytes"] = ahead
        row["stamp_s"] = self._stamp_s
        row["boot"] = np.void(self._boot)
        row["checksum"] = checksums(row)
        self._ahead = ahead
        try:
            os.pwrite(self._file.fd, row.tobytes(), 0)
        except OSError as error:
            _log.warning("%s: not written (%s): a restart may allow more", self._file.path, error)
