# SPDX-License-Identifier: Apache-2.0
"""The on-disk records of a slab: the superblock, and one 512-byte header per frame.

Both carry their own checksum in their last 16 bytes: the digest's two sums (digest.py) over all
bytes before. It is computed for a whole region at once: 10^6 headers in 30 ms, where a hashlib call
per row takes 0.9 s. docs/storage.md has the offsets and the policy for versions.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.digest import WORD_NBYTES, raw_sums
from bodocache.pages import KEY_NBYTES, Reason

FORMAT_VERSION = 1
HEADER_NBYTES = 512  # one sector, the unit that tears
SUPERBLOCK_NBYTES = 4096
SLAB_ID_NBYTES = 16
GENERATION_END = 1 << 62  # no slab writes so many pages: a header that says so is forged
HEADER_MAGIC = b"BODOPAGE"
SUPERBLOCK_MAGIC = b"BODOSLAB"

# Reserved bytes are fields: numpy copies fields only, and every byte is under the checksum.
HEADER = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("nbytes", "<u4"),
        ("form", "u1", (KEY_NBYTES,)),
        ("key", "u1", (KEY_NBYTES,)),
        ("parent", "u1", (KEY_NBYTES,)),
        ("generation", "<u8"),
        ("digest", "<u8", (2,)),
        ("frame", "<u8"),
        ("slab", "u1", (SLAB_ID_NBYTES,)),
        ("depth", "<u4"),
        ("mac", "u1", (32,)),  # of keyed frames (mac.py), else zero
        ("owner", "<u8"),  # zero in headers of before: nobody's
        ("reserved", "V292"),
        ("checksum", "<u8", (2,)),
    ]
)
assert HEADER.itemsize == HEADER_NBYTES

_SUPERBLOCK = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("reserved", "V4"),
        ("page_nbytes", "<u8"),
        ("frame_nbytes", "<u8"),
        ("frame_count", "<u8"),
        ("form", "u1", (KEY_NBYTES,)),
        ("slab", "u1", (SLAB_ID_NBYTES,)),
        ("reserved_too", "V3992"),
        ("checksum", "<u8", (2,)),
    ]
)
assert _SUPERBLOCK.itemsize == SUPERBLOCK_NBYTES


@dataclass(frozen=True, slots=True)
class Superblock:
    """What a slab directory is: the first 4 KiB of its header file.

    ``slab`` is drawn at random when the slab is created, so that headers of another slab are
    foreign.
    """

    page_nbytes: int
    frame_nbytes: int
    frame_count: int
    form: bytes
    slab: bytes
    version: int = FORMAT_VERSION

    def encode(self) -> bytes:
        """The 4096 bytes on disk."""
        row = np.zeros(1, _SUPERBLOCK)
        row["magic"] = SUPERBLOCK_MAGIC
        row["version"] = self.version
        row["page_nbytes"] = self.page_nbytes
        row["frame_nbytes"] = self.frame_nbytes
        row["frame_count"] = self.frame_count
        row["form"] = np.frombuffer(self.form, np.uint8)
        row["slab"] = np.frombuffer(self.slab, np.uint8)
        row["checksum"] = checksums(row)
        return row.tobytes()

    @classmethod
    def decode(cls, data: bytes) -> Self | None:
        """What ``data`` says, of whatever version; None if it is no superblock or is damaged."""
        if len(data) < SUPERBLOCK_NBYTES:
            return None
        row = np.frombuffer(data, _SUPERBLOCK, count=1)
        if row["magic"][0] != SUPERBLOCK_MAGIC or (checksums(row) != row["checksum"]).any():
            return None
        return cls(
            page_nbytes=int(row["page_nbytes"][0]),
            frame_nbytes=int(row["frame_nbytes"][0]),
            frame_count=int(row["frame_count"][0]),
            form=row["form"][0].tobytes(),
            slab=row["slab"][0].tobytes(),
            version=int(row["version"][0]),
        )


def encode(
    records: NDArray[np.void], generations: NDArray[np.uint64], superblock: Superblock
) -> NDArray[np.void]:
    """Headers of ``records`` (TRANSFER), one a row."""
    rows = np.zeros(len(records), HEADER)
    rows["magic"] = HEADER_MAGIC
    rows["version"] = superblock.version
    rows["form"] = np.frombuffer(superblock.form, np.uint8)
    rows["slab"] = np.frombuffer(superblock.slab, np.uint8)
    rows["generation"] = generations
    for name in ("nbytes", "key", "parent", "digest", "frame", "depth", "owner"):
        rows[name] = records[name]
    rows["checksum"] = checksums(rows)
    return rows


def judge(rows: NDArray[np.void], first_frame: int, superblock: Superblock) -> NDArray[np.uint8]:
    """Reason why each of ``rows``, the headers from ``first_frame`` on, holds no page of ours.

    NONE: it does. The first reason that applies, from the outermost check inwards.
    """
    mine = np.arange(first_frame, first_frame + len(rows), dtype=np.uint64)
    form = np.frombuffer(superblock.form, np.uint8)
    slab = np.frombuffer(superblock.slab, np.uint8)
    misplaced = (rows["slab"] != slab).any(axis=1) | (rows["frame"] != mine)
    old_form = (rows["form"] != form).any(axis=1) | (rows["nbytes"] != superblock.page_nbytes)
    damaged = (checksums(rows) != rows["checksum"]).any(axis=1)
    reasons = np.zeros(len(rows), np.uint8)
    for wrong, reason in (
        (misplaced, Reason.FOREIGN),
        (old_form, Reason.OLD_FORMAT),
        (damaged | (rows["generation"] >= GENERATION_END), Reason.CORRUPT),
        (rows["version"] != superblock.version, Reason.OLD_FORMAT),
        (rows["magic"] != HEADER_MAGIC, Reason.FOREIGN),
        (_blank(rows), Reason.NEVER_STORED),
    ):
        reasons[wrong] = reason
    return reasons


def checksums(rows: NDArray[np.void]) -> NDArray[np.uint64]:
    """Checksum of each of ``rows`` (any record that ends with one): u64[N, 2]."""
    out = np.empty((len(rows), 2), np.uint64)
    _checksums(_words(rows), out)
    return out


def _words(rows: NDArray[np.void]) -> NDArray[np.uint32]:
    return rows.view(np.uint32).reshape(len(rows), rows.dtype.itemsize // WORD_NBYTES)


def _blank(rows: NDArray[np.void]) -> NDArray[np.bool_]:
    """Never written: magic and checksum are zero, and so is everything between."""
    blank: NDArray[np.bool_] = (rows["magic"] == b"") & (rows["checksum"] == 0).all(axis=1)
    blank[blank] = ~_words(rows[blank]).any(axis=1)
    return blank


@jit.compiled(jit.readonly("u4", 2), jit.array("u8", 2))
def _checksums(words: Any, out: Any) -> None:
    covered = words.shape[1] - 4  # all but the checksum: four words
    for i in range(len(words)):
        a, b = raw_sums(words[i][:covered])
        out[i, 0] = a + np.uint64(covered)
        out[i, 1] = b + np.uint64(covered)
