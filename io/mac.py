# SPDX-License-Identifier: Apache-2.0
"""Keyed frames, for a directory that others may write to: BLAKE2b-256 over header and payload.

Digests find accidents; whoever can write to the directory can make a frame whose digest is right.
With a key a frame is believed only if it was made with that key, for that place of that slab. An
old frame put back in its place still is: it holds the right bytes of the key that it names.
It is computed in threads that run Python.
"""

import hashlib
import hmac
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache.io.columns import Columns
from bodocache.io.header import Superblock
from bodocache.pages import KEY_NBYTES, Reason

MAC_NBYTES = 32
_PERSON = b"bodocache.frame"

_FIELDS = ("key", "parent", "digest", "generation", "frame", "depth", "nbytes")

# What is keyed besides the payload: all that a header says of its page.
_NAMED = np.dtype(
    [
        ("key", "u1", (KEY_NBYTES,)),
        ("parent", "u1", (KEY_NBYTES,)),
        ("digest", "<u8", (2,)),
        ("generation", "<u8"),
        ("frame", "<u8"),
        ("depth", "<u4"),
        ("nbytes", "<u4"),
    ]
)


class FrameMac(NamedTuple):
    """The key of one slab's frames."""

    key: bytes
    superblock: Superblock

    def seal(self, headers: NDArray[np.void], pages: Iterable[NDArray[np.uint8]]) -> None:
        """Fill in ``mac`` of HEADER rows, each over its page."""
        named = np.zeros(len(headers), _NAMED)
        for name in _FIELDS:
            named[name] = headers[name]
        for i, page in enumerate(pages):
            headers["mac"][i] = np.frombuffer(self._of(named[i], page), np.uint8)

    def refusals(
        self,
        columns: Columns,
        frames: NDArray[np.int64],
        generations: NDArray[np.uint64],
        pages: Iterable[NDArray[np.uint8]],
    ) -> NDArray[np.uint8]:
        """Reason why each page read from ``frames`` is not believed; NONE where it is.

        ``generations`` are those of the frames when the read began. In any thread.
        """
        named = np.zeros(len(frames), _NAMED)
        named["frame"], named["generation"] = frames, generations
        named["nbytes"] = self.superblock.page_nbytes
        named["key"], named["parent"] = columns.keys[frames], columns.parents[frames]
        named["digest"], named["depth"] = columns.digests[frames], columns.depths[frames]
        macs = columns.macs[frames]
        # Rows are filled in before they are marked as holding a page: so these are of that page.
        kept = (columns.reasons[frames] == Reason.NONE) & (
            columns.generations[frames] == generations
        )
        reasons = np.full(len(frames), Reason.EVICTED, np.uint8)
        for i, page in enumerate(pages):
            if kept[i]:
                right = hmac.compare_digest(self._of(named[i], page), macs[i].tobytes())
                reasons[i] = Reason.NONE if right else Reason.FORGED
        return reasons

    def _of(self, named: np.void, page: NDArray[np.uint8]) -> bytes:
        mac = hashlib.blake2b(key=self.key, digest_size=MAC_NBYTES, person=_PERSON)
        mac.update(self.superblock.form + self.superblock.slab + named.tobytes())
        mac.update(page.data)
        return mac.digest()
