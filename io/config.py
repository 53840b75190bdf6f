# SPDX-License-Identifier: Apache-2.0
"""The configuration of a slab directory, checked before anything is created."""

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from bodocache.digest import PAGE_ALIGNMENT
from bodocache.errors import ConfigError
from bodocache.io.header import HEADER_NBYTES, SUPERBLOCK_NBYTES
from bodocache.pages import KEY_NBYTES

BLOCK_NBYTES = 4096  # what O_DIRECT wants offsets, lengths and addresses to be multiples of
CHUNK_NBYTES = 2 << 20  # 0.7 ms of a 3 GB/s disk: an abort takes effect within one chunk
WRITE_CHUNK_NBYTES = 1 << 20  # of a write at most: what a read that comes meanwhile waits for
MAC_KEY_NBYTES = (16, 64)  # what BLAKE2b takes, and 128 bits at least
_FORM_PERSON = b"bodocache.form"  # so that it is no MAC of anything
# Reading 4 KiB more is 3 times faster than another read, 16 KiB 1.7 times, at a fifth of the CPU;
# 32 KiB gain no time (bench/read_through.py).
READ_THROUGH_NBYTES = 16 << 10
QUEUE_DEPTH = 8  # threads; more gained nothing on one NVMe at 256 KiB pages


class OpenMode(StrEnum):
    """What an opener may do."""

    WRITER = "writer"  # one per directory
    READER = "reader"  # any number, beside a writer too
    KEEPER = "keeper"  # in a writer's place: changes what is there, makes and allocates nothing


class Access(StrEnum):
    """How payloads travel."""

    DIRECT = "direct"  # O_DIRECT; buffered where the file system or the alignment forbids it
    BUFFERED = "buffered"  # through the page cache


def keyed_form(form: bytes, mac_key: bytes) -> bytes:
    """The form of frames keyed with ``mac_key`` whose payload has ``form``."""
    keyed = hashlib.blake2b(form, key=mac_key, digest_size=KEY_NBYTES, person=_FORM_PERSON)
    return keyed.digest()


@dataclass(frozen=True, slots=True)
class SlabConfig:
    """One slab directory.

    ``capacity_nbytes`` is a hard cap on both data files together, superblock and headers included;
    lock and budget come on top, a block of the file system each.
    ``form`` is the 32-byte hash of the payload's byte order: frames of another form are misses.
    ``write_nbytes_per_day``: no 24 hours see more bytes written; 0 for no limit (budget.py).
    ``mac_key``: frames are keyed, for a directory that others may write to (mac.py).
    A get reads through up to ``read_through_nbytes`` between two pages where that saves a read.
    """

    directory: Path
    capacity_nbytes: int
    page_nbytes: int
    form: bytes
    queue_depth: int = QUEUE_DEPTH
    chunk_nbytes: int = CHUNK_NBYTES
    read_through_nbytes: int = READ_THROUGH_NBYTES
    mode: OpenMode = OpenMode.WRITER
    access: Access = Access.DIRECT
    write_nbytes_per_day: int = 0
    mac_key: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        if (
            self.page_nbytes <= 0
            or self.page_nbytes % PAGE_ALIGNMENT
            or self.page_nbytes >= 1 << 32
        ):
            raise ConfigError(
                f"page_nbytes={self.page_nbytes}: must be a positive multiple of "
                f"{PAGE_ALIGNMENT} below 4 GiB"
            )
        if len(self.form) != KEY_NBYTES:
            raise ConfigError(f"form: {len(self.form)} bytes; must be {KEY_NBYTES}")
        if not 1 <= self.queue_depth <= 256:
            raise ConfigError(f"queue_depth={self.queue_depth}: must be 1 to 256 threads")
        if self.chunk_nbytes < BLOCK_NBYTES:
            raise ConfigError(f"chunk_nbytes={self.chunk_nbytes}: must be at least {BLOCK_NBYTES}")
        if self.mac_key and not MAC_KEY_NBYTES[0] <= len(self.mac_key) <= MAC_KEY_NBYTES[1]:
            raise ConfigError(
                f"mac_key: {len(self.mac_key)} bytes; must be {MAC_KEY_NBYTES[0]} to"
                f" {MAC_KEY_NBYTES[1]}, from a good source of chance"
            )
        if self.write_nbytes_per_day < 0:
            raise ConfigError(
                f"write_nbytes_per_day={self.write_nbytes_per_day}: must be 0 (no limit) or more"
            )
        if self.read_through_nbytes < 0:
            raise ConfigError(f"read_through_nbytes={self.read_through_nbytes}: must be at least 0")
        if self.frame_count < 1:
            raise ConfigError(
                f"capacity_nbytes={self.capacity_nbytes}: no room for one frame of "
                f"{self.frame_nbytes} bytes and its header"
            )

    @property
    def is_keyed(self) -> bool:
        """Whether frames carry a MAC."""
        return bool(self.mac_key)

    @property
    def frame_form(self) -> bytes:
        """What headers name as their form: frames are never taken for those of another key."""
        return keyed_form(self.form, self.mac_key) if self.mac_key else self.form

    @property
    def frame_nbytes(self) -> int:
        """Bytes of a frame: the page rounded up to whole blocks."""
        return -(-self.page_nbytes // BLOCK_NBYTES) * BLOCK_NBYTES

    @property
    def written_nbytes(self) -> int:
        """Bytes that a put writes for one page."""
        return self.frame_nbytes + HEADER_NBYTES

    @property
    def frame_count(self) -> int:
        """Frames that fit under the cap."""
        room = self.capacity_nbytes - SUPERBLOCK_NBYTES
        return max(0, room // self.written_nbytes)
