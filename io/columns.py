# SPDX-License-Identifier: Apache-2.0
"""What is known of every frame of a slab, in memory: 93 bytes each of its 512-byte header.

Written by the event loop alone; worker threads read it only to name the reason of a failed check.
"""

import numpy as np
from numpy.typing import NDArray

from bodocache.io.backend import Entries
from bodocache.pages import KEY_NBYTES, Reason

_SEED_NBYTES = 16  # of the key, in a digest
_MIXERS = np.array(  # any odd numbers: the four words of a key, mixed into one
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5], np.uint64
)


class Columns:
    """One row per frame. ``reasons`` is NONE where the frame holds a page, else why it does not."""

    __slots__ = ("depths", "digests", "generations", "keys", "parents", "reasons")

    def __init__(self, frame_count: int, reason: Reason = Reason.NEVER_STORED) -> None:
        self.keys = np.zeros((frame_count, KEY_NBYTES), np.uint8)
        self.parents = np.zeros((frame_count, KEY_NBYTES), np.uint8)
        self.digests = np.zeros((frame_count, 2), np.uint64)
        self.generations = np.zeros(frame_count, np.uint64)
        self.depths = np.zeros(frame_count, np.uint32)
        self.reasons = np.full(frame_count, reason, np.uint8)

    def look_up(self, frames: NDArray[np.int64], keys: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Reason why each frame does not hold the page of its key; NONE where it does."""
        inside = (frames >= 0) & (frames < len(self.reasons))
        rows = np.where(inside, frames, 0)
        reasons = self.reasons[rows]
        other = (self.keys[rows] != keys).any(axis=1)
        reasons[other & (reasons == Reason.NONE)] = Reason.FOREIGN
        reasons[other & (reasons == Reason.EVICTED)] = Reason.NEVER_STORED
        reasons[~inside] = Reason.NEVER_STORED
        return reasons

    def fill(
        self,
        frames: NDArray[np.int64],
        records: NDArray[np.void],
        generations: NDArray[np.uint64],
    ) -> None:
        """Let ``frames`` hold the pages of ``records`` (TRANSFER or HEADER) from now on."""
        self.keys[frames] = records["key"]
        self.parents[frames] = records["parent"]
        self.digests[frames] = records["digest"]
        self.depths[frames] = records["depth"]
        self.generations[frames] = generations
        self.reasons[frames] = Reason.NONE

    def invalidate(self, frames: NDArray[np.int64], reason: Reason | NDArray[np.uint8]) -> None:
        """Let ``frames`` hold nothing, for ``reason``."""
        self.reasons[frames] = reason

    def evict(self, frames: NDArray[np.int64]) -> None:
        """Forget the pages of ``frames``; frames that held none keep their reason."""
        self.reasons[frames[self.reasons[frames] == Reason.NONE]] = Reason.EVICTED

    def latest(self) -> NDArray[np.int64]:
        """Frames that hold a page, each key once: its highest generation."""
        frames = np.flatnonzero(self.reasons == Reason.NONE)
        by_age = frames[np.argsort(self.generations[frames], kind="stable")[::-1]]
        keys = self.keys[by_age]
        # Sorting 32-byte keys takes seconds for 10^6 of them; one mixed word nearly never ties.
        _, first, inverse = np.unique(_mixed(keys), return_index=True, return_inverse=True)
        newest = first[inverse]
        is_repeat = newest != np.arange(len(by_age))
        is_other_key = (keys[newest] != keys).any(axis=1)
        kept = np.concatenate((by_age[~is_repeat], self._firsts(by_age[is_other_key])))
        return np.sort(kept)

    def _firsts(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first of ``frames`` with each key: for the few whose mixed words tie."""
        by_key: dict[bytes, int] = {}
        for frame in frames.tolist():
            by_key.setdefault(self.keys[frame].tobytes(), frame)
        return np.array(list(by_key.values()), np.int64)

    def entries(self) -> Entries:
        """Copies of the columns of :meth:`latest`."""
        frames = self.latest()
        return Entries(
            self.keys[frames],
            self.parents[frames],
            self.digests[frames],
            frames,
            self.depths[frames],
        )

    def holds(self, raw_digest: NDArray[np.uint64]) -> bool:
        """Whether some frame should hold bytes of this digest (u64[2], without a seed).

        A scan of all rows, 10 ms for 10^6: for checks that failed, in a worker thread.
        """
        seeds = self.keys[:, :_SEED_NBYTES].copy().view("<u8")
        same = (self.digests - seeds == raw_digest).all(axis=1)
        return bool((same & (self.reasons == Reason.NONE)).any())


def _mixed(keys: NDArray[np.uint8]) -> NDArray[np.uint64]:
    words = keys.view("<u8")
    mixed: NDArray[np.uint64] = (words * _MIXERS).sum(axis=1, dtype=np.uint64)
    return mixed
