# SPDX-License-Identifier: Apache-2.0
"""A slab's directory: its files, its one writer, and what its headers say after a restart.

payload.slab   frame i at i * frame_nbytes
headers.slab   superblock (4 KiB), then the header of frame i at 4096 + i * 512
writer.lock    flocked by the writer; holds its process id, for the message a second one gets
budget.slab    what may be written today, where that is limited (budget.py)
"""

import asyncio
import errno
import fcntl
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bodocache import jit
from bodocache.errors import BackendError, BackendLocked
from bodocache.io import header
from bodocache.io.budget import WriteBudget
from bodocache.io.columns import Columns
from bodocache.io.config import Access, OpenMode, SlabConfig
from bodocache.io.header import HEADER, HEADER_NBYTES, SUPERBLOCK_NBYTES, Superblock
from bodocache.io.posix import FILE_MODE, DataFile
from bodocache.pages import Reason

DIRECTORY_MODE = 0o700
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
SCAN_ROWS = 8192  # headers read and checked at once: 4 MiB

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class OpenSlab:
    """Everything that is open of a slab; closed by :meth:`close`."""

    payload: DataFile
    headers: DataFile
    superblock: Superblock
    columns: Columns
    lock_fd: int = -1
    budget: WriteBudget | None = None

    def close(self) -> None:
        """Close the files, the lock last."""
        if self.budget is not None:
            self.budget.close()
        self.payload.close()
        self.headers.close()
        if self.lock_fd >= 0:
            fcntl.flock(self.lock_fd, fcntl.LOCK_UN)  # a forked child may still have it open
            os.close(self.lock_fd)
            self.lock_fd = -1


def open_slab(config: SlabConfig) -> OpenSlab:
    """Open or create the slab of ``config``; blocks for as long as its headers take to read.

    Raises:
        BackendLocked: another process writes to the directory.
        BackendError: it cannot be opened, or there is nothing for a reader to read.
    """
    try:
        if config.mode is OpenMode.WRITER:
            config.directory.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
        directory_fd = os.open(config.directory, _DIRECTORY_FLAGS)
        try:
            return _open_files(config, directory_fd)
        finally:
            os.close(directory_fd)
    except (OSError, MemoryError) as error:
        raise BackendError(f"slab {config.directory}: cannot be opened: {error}") from error


async def open_warm(config: SlabConfig) -> OpenSlab:
    """:func:`open_slab` in a thread, and everything compiled before the first get.

    What a cancelled call had opened is closed.
    """
    opening = asyncio.get_running_loop().run_in_executor(None, _open_warm, config)
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_unwanted)
        raise


def _open_warm(config: SlabConfig) -> OpenSlab:
    jit.warm()
    return open_slab(config)


def _close_unwanted(opening: "asyncio.Future[OpenSlab]") -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _open_files(config: SlabConfig, directory_fd: int) -> OpenSlab:
    makes, writes = config.mode is OpenMode.WRITER, config.mode is not OpenMode.READER
    flags = (os.O_RDWR if writes else os.O_RDONLY) | (os.O_CREAT if makes else 0)
    lock_fd = _lock(config.directory, directory_fd) if writes else -1
    files: list[DataFile] = []
    budget = None
    try:
        payload = DataFile(str(config.directory / "payload.slab"), directory_fd, flags)
        files.append(payload)
        headers = DataFile(str(config.directory / "headers.slab"), directory_fd, flags)
        files.append(headers)
        if config.access is Access.DIRECT and config.page_nbytes == config.frame_nbytes:
            payload.try_direct(writable=writes)
        superblock, columns = _recover(config, payload, headers)
        if makes:
            _prepare(payload, headers, superblock)
            if config.write_nbytes_per_day:
                path = str(config.directory / "budget.slab")
                file = DataFile(path, directory_fd, flags)
                budget = WriteBudget(config.write_nbytes_per_day, file)
            os.fsync(directory_fd)
    except BaseException:
        for file in files:
            file.close()
        if lock_fd >= 0:
            os.close(lock_fd)
        raise
    return OpenSlab(payload, headers, superblock, columns, lock_fd, budget)


@contextmanager
def writer_lock(directory: Path) -> Iterator[int]:
    """Inside, nobody else writes to the slab in ``directory``; its descriptor.

    Raises:
        BackendLocked: a process writes to it.
    """
    fd = os.open(directory, _DIRECTORY_FLAGS)
    try:
        lock_fd = _lock(directory, fd)
        try:
            yield fd
        finally:
            os.close(lock_fd)
    finally:
        os.close(fd)


def remove_slab(directory: Path, directory_fd: int) -> None:
    """Remove the slab in ``directory``, and the directory if nothing else lies there.

    Inside :func:`writer_lock`, which has its descriptor. A kill leaves a slab that has lost its
    pages, to be removed another time.
    """
    for name in ("payload.slab", "budget.slab", "headers.slab", "writer.lock"):
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory_fd)
    with suppress(OSError):  # other files lie there
        directory.rmdir()


def _lock(directory: Path, directory_fd: int) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open("writer.lock", flags, FILE_MODE, dir_fd=directory_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 20, 0).decode("ascii", "replace") or "unknown"
        os.close(fd)
        raise BackendLocked(
            f"slab {directory}: process {holder} writes to it; "
            "close that one, open as a reader, or choose another directory"
        ) from None
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
    except OSError:  # no room for it: the lock must not stay behind
        os.close(fd)
        raise
    return fd


def _recover(
    config: SlabConfig, payload: DataFile, headers: DataFile
) -> tuple[Superblock, Columns]:
    """What the files say; an empty slab where they say nothing we understand."""
    found = Superblock.decode(os.pread(headers.fd, SUPERBLOCK_NBYTES, 0))
    reason = _refusal(config, headers, found)
    if found is None or reason is not Reason.NONE:
        superblock = _fresh_superblock(config)
        if config.mode is OpenMode.WRITER:
            _clear(payload, headers, reason)
        return superblock, Columns(superblock.frame_count, reason, keyed=config.is_keyed)
    frame_count = config.frame_count
    if config.mode is not OpenMode.WRITER:  # believed as far as there are headers
        rows = max(0, headers.nbytes - SUPERBLOCK_NBYTES) // HEADER_NBYTES
        frame_count = min(found.frame_count, rows)
    superblock = Superblock(
        found.page_nbytes, found.frame_nbytes, frame_count, found.form, found.slab
    )
    return superblock, _scan(config, payload, headers, superblock)


def _refusal(config: SlabConfig, headers: DataFile, found: Superblock | None) -> Reason:
    """Why the frames of ``found`` are all misses; NONE if they are not."""
    if found is None:
        return Reason.CORRUPT if headers.nbytes else Reason.NEVER_STORED
    theirs = (found.version, found.form, found.page_nbytes, found.frame_nbytes)
    ours = (header.FORMAT_VERSION, config.frame_form, config.page_nbytes, config.frame_nbytes)
    return Reason.NONE if theirs == ours else Reason.OLD_FORMAT


def _fresh_superblock(config: SlabConfig) -> Superblock:
    slab = secrets.token_bytes(header.SLAB_ID_NBYTES)
    return Superblock(
        config.page_nbytes, config.frame_nbytes, config.frame_count, config.frame_form, slab
    )


def _clear(payload: DataFile, headers: DataFile, reason: Reason) -> None:
    if reason is not Reason.NEVER_STORED:
        _log.warning("%s: %s: the slab is made anew", headers.path, reason.name.lower())
    os.ftruncate(headers.fd, 0)  # first: a superblock must never outlive its payload
    os.ftruncate(payload.fd, 0)


def _scan(
    config: SlabConfig, payload: DataFile, headers: DataFile, superblock: Superblock
) -> Columns:
    """Read every header; each key keeps its newest frame.

    A page that was released and stored anew elsewhere is there twice after a restart, since a
    release writes nothing. Both hold the right bytes, so either would do.
    """
    columns = Columns(superblock.frame_count, keyed=config.is_keyed)
    room = np.empty(min(SCAN_ROWS, superblock.frame_count), HEADER)
    chunk_nbytes = SCAN_ROWS * HEADER_NBYTES
    for first in range(0, superblock.frame_count, SCAN_ROWS):
        offset = SUPERBLOCK_NBYTES + first * HEADER_NBYTES
        ahead = offset + chunk_nbytes
        os.posix_fadvise(headers.fd, ahead, 2 * chunk_nbytes, os.POSIX_FADV_WILLNEED)
        rows = room[: min(SCAN_ROWS, superblock.frame_count - first)]
        rows = rows[: os.preadv(headers.fd, [rows.view(np.uint8).data], offset) // HEADER_NBYTES]
        if not len(rows):
            break
        reasons = header.judge(rows, first, superblock)
        stored = np.flatnonzero(reasons == Reason.NONE)
        columns.invalidate(np.arange(first, first + len(rows)), reasons)
        found = rows if len(stored) == len(rows) else rows[stored]
        columns.fill(first + stored, found, found["generation"])
    whole = max(0, payload.nbytes - superblock.page_nbytes) // superblock.frame_nbytes
    whole += payload.nbytes >= superblock.page_nbytes
    beyond = np.arange(whole, superblock.frame_count)
    columns.invalidate(beyond[columns.reasons[beyond] == Reason.NONE], Reason.TRUNCATED)
    stored = np.flatnonzero(columns.reasons == Reason.NONE)
    columns.invalidate(np.setdiff1d(stored, columns.latest(), assume_unique=True), Reason.EVICTED)
    return columns


def _prepare(payload: DataFile, headers: DataFile, superblock: Superblock) -> None:
    """Give both files their length and their blocks, then say so in the superblock."""
    count = superblock.frame_count
    _allocate(payload, count * superblock.frame_nbytes)
    _allocate(headers, SUPERBLOCK_NBYTES + count * HEADER_NBYTES)
    os.pwrite(headers.fd, superblock.encode(), 0)
    os.fsync(payload.fd)
    os.fsync(headers.fd)


def _allocate(file: DataFile, nbytes: int) -> None:
    """Allocate what a file gains; what it lost inside (trim.py) it gets back as it is written."""
    begin = file.nbytes
    if begin >= nbytes:
        os.ftruncate(file.fd, nbytes)
        return
    try:
        os.posix_fallocate(file.fd, begin, nbytes - begin)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        if file.nbytes < nbytes:
            os.ftruncate(file.fd, nbytes)
        _log.warning("%s: %d bytes not preallocated (%s)", file.path, nbytes, error)
