# SPDX-License-Identifier: Apache-2.0
"""Which slabs below a directory are its groups' (groups.py): a small text file, groups.slab.

Its first line is a checksum of the rest: a line of what it is, then a name a line. It is flocked
while it is read and changed. What it does not name is somebody else's, and so is everything where
it is missing or damaged.
"""

import fcntl
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bodocache.errors import BackendLocked
from bodocache.io.directory import DIRECTORY_MODE, remove_slab, writer_lock
from bodocache.io.header import SUPERBLOCK_NBYTES, Superblock
from bodocache.io.posix import DataFile

GROUP_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

_FILE = "groups.slab"
_KIND = "bodocache groups 1"
_NBYTES_MAX = 1 << 20

_log = logging.getLogger(__name__)


class Manifest:
    """The names that the file holds; its lock is held."""

    def __init__(self, directory: Path, file: DataFile) -> None:
        self._directory = directory
        self._file = file
        self._names = _decode(os.pread(file.fd, _NBYTES_MAX, 0))

    def keep(self, names: Iterable[str]) -> None:
        """Remove the slabs of groups of ours that are not among ``names``; then those are ours.

        Raises:
            BackendLocked: a process writes to one of them; none is removed.
            OSError: the directory or the file cannot be changed.
        """
        names = set(names)
        others = [self._directory / name for name in sorted(self._names - names)]
        kept = {path.name for path in others if path.is_dir() and not _is_slab(path)}
        for name in sorted(kept):
            _log.warning("%s: no slab of ours any more: it is not removed", self._directory / name)
        gone = [path for path in others if path.name not in kept and path.is_dir()]
        self._write(self._names | names)
        with ExitStack() as locks:
            held = [(path, locks.enter_context(writer_lock(path))) for path in gone]
            for path, fd in held:
                _log.warning("%s: no group has this name any more: its slab is removed", path)
                remove_slab(path, fd)
        self._write(names | kept)

    def _write(self, names: set[str]) -> None:
        """A kill between two slabs leaves a name too many, never one too few."""
        if names == self._names:
            return
        body = "\n".join([_KIND, *sorted(names), ""])
        data = f"{_checksum(body)}\n{body}".encode()
        os.pwrite(self._file.fd, data, 0)
        os.ftruncate(self._file.fd, len(data))
        self._file.sync()
        self._names = names


@contextmanager
def opened(directory: Path) -> Iterator[Manifest]:
    """The manifest of ``directory``, both made where they are not there, locked inside.

    Raises:
        BackendLocked: another process opens groups there.
        BackendError, OSError: it cannot be opened.
    """
    directory.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
    directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        file = DataFile(str(directory / _FILE), directory_fd, os.O_RDWR | os.O_CREAT)
    finally:
        os.close(directory_fd)
    try:
        fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield Manifest(directory, file)
    except BlockingIOError:
        raise BackendLocked(f"groups {directory}: another process opens some; try again") from None
    finally:
        file.close()


def _decode(data: bytes) -> set[str]:
    """The names in ``data``; none where it is damaged."""
    checksum, _, body = data.decode("ascii", "replace").partition("\n")
    kind, *names = body.split("\n")
    if checksum != _checksum(body) or kind != _KIND:
        return set()
    return {name for name in names if GROUP_NAME.fullmatch(name)}


def _checksum(body: str) -> str:
    return hashlib.blake2b(body.encode(), digest_size=16).hexdigest()


def _is_slab(path: Path) -> bool:
    """Whether a superblock of ours, of whatever version, is in ``path``, which is no link."""
    headers = path / "headers.slab"
    if path.is_symlink() or headers.is_symlink() or not headers.is_file():
        return False
    with headers.open("rb") as file:
        return Superblock.decode(file.read(SUPERBLOCK_NBYTES)) is not None
