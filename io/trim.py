# SPDX-License-Identifier: Apache-2.0
"""Giving a slab's space back: holes where frames hold nothing, and a smaller capacity.

A kill at any moment loses no page that is to stay: a frame's header is erased, and that is synced,
before its payload goes; a smaller superblock is synced before the files are cut.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bodocache.errors import BackendError
from bodocache.io.config import OpenMode
from bodocache.io.extents import runs
from bodocache.io.found import capacity_of, open_found
from bodocache.io.header import HEADER_NBYTES, SUPERBLOCK_NBYTES, Superblock
from bodocache.pages import Reason

ERASED_NBYTES = 4 << 20  # of headers at once


@dataclass(frozen=True, slots=True)
class Plan:
    """What a trim would do."""

    capacity_nbytes: int
    new_capacity_nbytes: int
    frames: int
    new_frames: int
    empty: int  # frames that hold nothing, of those that stay
    erased: int  # of them, those whose header says something
    lost: int  # pages in frames that go
    nbytes_on_disk: int  # now
    kept_nbytes: int  # about what stays


class Trim:
    """A slab under its keeper's lock; ``with`` closes it."""

    def __init__(self, directory: Path, *, to_nbytes: int | None, mode: OpenMode) -> None:
        """Open the slab in ``directory``; a READER can only plan.

        Raises:
            BackendLocked: another process writes to it.
            BackendError: there is no slab, or ``to_nbytes`` is no smaller capacity.
        """
        self._config, self._slab = open_found(directory, mode)
        try:
            self._count = self._new_count(to_nbytes)
        except BaseException:
            self._slab.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._slab.close()

    @property
    def plan(self) -> Plan:
        """What :meth:`run` does."""
        block, reasons = self._slab.superblock, self._slab.columns.reasons
        held, stay = reasons == Reason.NONE, reasons[: self._count]
        kept = int(held[: self._count].sum())
        return Plan(
            capacity_nbytes=capacity_of(block),
            new_capacity_nbytes=capacity_of(self._smaller),
            frames=block.frame_count,
            new_frames=self._count,
            empty=self._count - kept,
            erased=int(_says_something(stay).sum()),
            lost=int(held[self._count :].sum()),
            nbytes_on_disk=self._nbytes_on_disk,
            kept_nbytes=kept * block.frame_nbytes + _headers_nbytes(self._count),
        )

    def run(self) -> int:
        """Do it; return the bytes that the disk has got back. Blocks.

        Raises:
            OSError: the file system cannot punch holes, or failed; running it again is safe.
        """
        before = self._nbytes_on_disk
        self._shrink()
        self._erase()
        block, payload = self._slab.superblock, self._slab.payload
        empty = self._slab.columns.reasons[: self._count] != Reason.NONE
        for first, end in runs(empty).tolist():
            payload.punch(first * block.frame_nbytes, (end - first) * block.frame_nbytes)
        payload.sync()
        return before - self._nbytes_on_disk

    def _shrink(self) -> None:
        """Let the slab end behind the frames that stay, and the files too, once it does."""
        headers, payload = self._slab.headers, self._slab.payload
        if self._count < self._slab.superblock.frame_count:
            os.pwrite(headers.fd, self._smaller.encode(), 0)
        headers.sync()
        _cut(headers.fd, _headers_nbytes(self._count))
        headers.sync()
        _cut(payload.fd, self._count * self._smaller.frame_nbytes)

    def _erase(self) -> None:
        """Let every header of a frame that holds nothing say so."""
        headers = self._slab.headers
        for first, end in runs(_says_something(self._slab.columns.reasons[: self._count])).tolist():
            offset = SUPERBLOCK_NBYTES + first * HEADER_NBYTES
            left = (end - first) * HEADER_NBYTES
            while left:
                written = os.pwrite(headers.fd, bytes(min(left, ERASED_NBYTES)), offset)
                offset, left = offset + written, left - written
        headers.sync()

    @property
    def _smaller(self) -> Superblock:
        return replace(self._slab.superblock, frame_count=self._count)

    @property
    def _nbytes_on_disk(self) -> int:
        return self._slab.payload.nbytes_on_disk + self._slab.headers.nbytes_on_disk

    def _new_count(self, to_nbytes: int | None) -> int:
        now = self._slab.superblock
        if to_nbytes is None:
            return now.frame_count
        count = replace(self._config, capacity_nbytes=to_nbytes).frame_count
        if count > now.frame_count:
            raise BackendError(
                f"slab {self._config.directory}: its capacity is {capacity_of(now)} bytes, less"
                f" than {to_nbytes}: a trim only shrinks it; a writer's capacity_bytes lets it grow"
            )
        return count


def _says_something(reasons: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Frames that hold nothing although their headers are not blank."""
    says: NDArray[np.bool_] = (reasons != Reason.NONE) & (reasons != Reason.NEVER_STORED)
    return says


def _headers_nbytes(frames: int) -> int:
    return SUPERBLOCK_NBYTES + frames * HEADER_NBYTES


def _cut(fd: int, nbytes: int) -> None:
    """Let a file end at ``nbytes``, if it is longer."""
    if os.fstat(fd).st_size > nbytes:
        os.ftruncate(fd, nbytes)
