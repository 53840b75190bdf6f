# SPDX-License-Identifier: Apache-2.0
"""A slab that is there already, opened by what its own superblock says."""

import os
from dataclasses import replace
from pathlib import Path

from bodocache.errors import BackendError, ConfigError
from bodocache.io.config import OpenMode, SlabConfig
from bodocache.io.directory import OpenSlab, open_slab
from bodocache.io.header import (
    FORMAT_VERSION,
    HEADER_NBYTES,
    SUPERBLOCK_MAGIC,
    SUPERBLOCK_NBYTES,
    Superblock,
)
from bodocache.io.posix import DataFile


def open_found(directory: Path, mode: OpenMode = OpenMode.READER) -> tuple[SlabConfig, OpenSlab]:
    """Open the slab in ``directory`` as a reader, or as its keeper; creates nothing.

    Raises:
        BackendLocked: it is to be kept, and another process writes to it.
        BackendError: there is no slab that this build reads; the message says what there is.
    """
    found = read_superblock(directory)
    config = _config_of(directory, found, mode)
    slab = open_slab(config)
    shorter = min(found.frame_count, slab.superblock.frame_count)  # than it says: a file was cut
    if slab.superblock != replace(found, frame_count=shorter):
        slab.close()
        raise BackendError(f"slab {directory}: it was made anew just now; try again")
    return config, slab


def _config_of(directory: Path, found: Superblock, mode: OpenMode) -> SlabConfig:
    try:
        config = SlabConfig(
            directory=directory,
            capacity_nbytes=capacity_of(found),
            page_nbytes=found.page_nbytes,
            form=found.form,
            mode=mode,
        )
    except ConfigError as error:
        raise BackendError(
            f"slab {directory}: no slab is as its superblock says: {error}"
        ) from error
    if config.frame_nbytes != found.frame_nbytes:
        raise BackendError(
            f"slab {directory}: no slab is as its superblock says: frames of {found.frame_nbytes}"
            f" bytes for pages of {found.page_nbytes}"
        )
    return config


def capacity_of(superblock: Superblock) -> int:
    """Bytes of both files, as their writer meant them."""
    frame_nbytes = superblock.frame_nbytes + HEADER_NBYTES
    return SUPERBLOCK_NBYTES + superblock.frame_count * frame_nbytes


def read_superblock(directory: Path) -> Superblock:
    """What the superblock in ``directory`` says.

    Raises:
        BackendError: there is none that this build reads; the message says what there is.
    """
    try:
        names = sorted(path.name for path in directory.iterdir())
        if "headers.slab" not in names:
            raise BackendError(
                f"slab {directory}: there is no slab here: {_what(directory, names)}"
            )
        data = _first_block(directory)
    except OSError as error:
        raise BackendError(f"slab {directory}: cannot be opened: {error}") from error
    found = Superblock.decode(data)
    if found is None:
        raise BackendError(f"slab {directory}: {_complaint(data)}")
    if found.version != FORMAT_VERSION:
        raise BackendError(
            f"slab {directory}: format version {found.version}; this build reads {FORMAT_VERSION},"
            " and a writer of it would make the slab anew"
        )
    return found


def _first_block(directory: Path) -> bytes:
    directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        file = DataFile(str(directory / "headers.slab"), directory_fd, os.O_RDONLY)
    finally:
        os.close(directory_fd)
    try:
        return os.pread(file.fd, SUPERBLOCK_NBYTES, 0)
    finally:
        file.close()


def _what(directory: Path, names: list[str]) -> str:
    """What lies in a directory that is no slab's."""
    groups = [name for name in names if (directory / name / "headers.slab").exists()]
    if groups:
        return f"name one of the groups below it: {', '.join(groups)}"
    return f"its {len(names)} files are something else's" if names else "it is empty"


def _complaint(data: bytes) -> str:
    if not data:
        return "headers.slab is empty: its writer was stopped before the slab was made"
    if data.startswith(SUPERBLOCK_MAGIC):
        return (
            "its superblock is damaged: every page is a miss, and a writer would make the slab anew"
        )
    return "headers.slab is something else's file: it does not begin like a slab's"
