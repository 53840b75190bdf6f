# SPDX-License-Identifier: Apache-2.0
"""One open file: its descriptors, its syncs. Jobs (jobs.py) read and write through them.

A plain buffered descriptor in our own threads is the fallback where O_DIRECT is refused. aiofiles
does not suit here: it makes one executor call per operation (20 to 70 us, 0.9 CPU-s/GB against
0.25), reads into bytes of its own and has no vectored calls; nothing on this path runs on the loop.
"""

import ctypes
import errno
import logging
import os
import stat

from bodocache.errors import BackendError

FILE_MODE = 0o600
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2
_STAT_BLOCK_NBYTES = 512  # of st_blocks, whatever the file system's are

_log = logging.getLogger(__name__)


class DataFile:
    """An open regular file. Its descriptors are closed by :meth:`close`, and by nobody else."""

    __slots__ = ("_direct_fd", "_fd", "path", "why_buffered")

    def __init__(self, path: str, directory_fd: int, flags: int) -> None:
        """Open ``path``'s last part below ``directory_fd``; no link is followed.

        Raises:
            BackendError: it is not a regular file.
            OSError: it cannot be opened.
        """
        self.path = path
        self.why_buffered = "not asked for"  # while it is not direct
        self._direct_fd = -1
        name = os.path.basename(path)  # noqa: PTH119 -- a name below a descriptor, not a path
        self._fd = _open_regular(name, directory_fd, flags, path)

    @property
    def fd(self) -> int:
        """The buffered descriptor."""
        return self._fd

    @property
    def direct_fd(self) -> int:
        """The descriptor that bypasses the page cache, or -1."""
        return self._direct_fd

    @property
    def is_direct(self) -> bool:
        """Whether aligned transfers bypass the page cache."""
        return self._direct_fd >= 0

    @property
    def nbytes(self) -> int:
        """Where the file ends now."""
        return os.fstat(self._fd).st_size

    def try_direct(self, *, writable: bool) -> None:
        """Bypass the page cache from now on, if the file system allows it.

        Raises:
            OSError: no descriptor is left, which says nothing about the file system.
        """
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_DIRECT | os.O_CLOEXEC
        try:
            # Through /proc: the very file that is open, whatever its name leads to by now.
            self._direct_fd = os.open(f"/proc/self/fd/{self._fd}", flags)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            self.why_buffered = str(error)
            _log.warning("%s: no O_DIRECT (%s): transfers are buffered", self.path, error)

    def sync(self) -> None:
        """Fdatasync: what was written, by either descriptor, survives a power cut."""
        os.fdatasync(self._fd)

    def punch(self, offset: int, nbytes: int) -> None:
        """Give the blocks of a range back; it reads as zeros, and the file keeps its length.

        Raises:
            OSError: the file system cannot.
        """
        mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.fallocate(self._fd, mode, ctypes.c_longlong(offset), ctypes.c_longlong(nbytes)):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), self.path)

    @property
    def nbytes_on_disk(self) -> int:
        """Bytes of the blocks it occupies."""
        return os.fstat(self._fd).st_blocks * _STAT_BLOCK_NBYTES

    def close(self) -> None:
        """Close the descriptors; calling twice is harmless."""
        for fd in (self._direct_fd, self._fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._direct_fd = -1


def _open_regular(name: str, directory_fd: int, flags: int, path: str) -> int:
    # O_NONBLOCK: a FIFO in the file's place must not hang the open; regular files ignore it.
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, FILE_MODE, dir_fd=directory_fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise BackendError(f"{path}: not a regular file; remove it or choose another directory")
    return fd
