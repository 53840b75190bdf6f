# SPDX-License-Identifier: Apache-2.0
"""What is known of every frame of a slab, in memory: 93 bytes each of its 512-byte header.

Written by the event loop alone; worker threads read it only to name the reason of a failed check.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.io.backend import Entries
from bodocache.pages import KEY_NBYTES, Reason

_SEED_NBYTES = 16  # of the key, in a digest
_MIXERS = np.array(  # any odd numbers: the four words of a key, mixed into one
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5], np.uint64
)


class Known(NamedTuple):
    """The columns that a get needs, for compiled code."""

    keys: NDArray[np.uint8]  # [frames, 32]
    words: NDArray[np.uint64]  # [frames, 4]: the same memory
    digests: NDArray[np.uint64]  # [frames, 2], seeded
    generations: NDArray[np.uint64]
    reasons: NDArray[np.uint8]


class Columns:
    """One row per frame. ``reasons`` is NONE where the frame holds a page, else why it does not."""

    __slots__ = ("depths", "digests", "generations", "keys", "known", "parents", "reasons")

    def __init__(self, frame_count: int, reason: Reason = Reason.NEVER_STORED) -> None:
        self.keys = np.zeros((frame_count, KEY_NBYTES), np.uint8)
        self.parents = np.zeros((frame_count, KEY_NBYTES), np.uint8)
        self.digests = np.zeros((frame_count, 2), np.uint64)
        self.generations = np.zeros(frame_count, np.uint64)
        self.depths = np.zeros(frame_count, np.uint32)
        self.reasons = np.full(frame_count, reason, np.uint8)
        self.known = Known(
            *(self.keys, self.keys.view("<u8"), self.digests, self.generations, self.reasons)
        )

    def look_up(self, frames: NDArray[np.int64], keys: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Reason why each frame does not hold the page of its key; NONE where it does."""
        reasons = np.empty(len(frames), np.uint8)
        _look_up(self.known, np.ascontiguousarray(keys), frames.copy(), reasons)
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

    def fail(
        self,
        frames: NDArray[np.int64],
        generations: NDArray[np.uint64],
        reasons: NDArray[np.uint8],
    ) -> None:
        """Let ``frames``, which failed a check, hold nothing, but where they were written since.

        ``generations`` are those that were checked.
        """
        unchanged = self.generations[frames] == generations
        failed = unchanged & (self.reasons[frames] == Reason.NONE)
        self.invalidate(frames[failed], reasons[failed])

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


KNOWN = jit.named(
    Known,
    *(jit.array("u1", 2), jit.array("u8", 2), jit.array("u8", 2), jit.array("u8"), jit.array("u1")),
)
_NONE, _NEVER_STORED, _EVICTED, _FOREIGN = (
    int(reason) for reason in (Reason.NONE, Reason.NEVER_STORED, Reason.EVICTED, Reason.FOREIGN)
)


@jit.compiled(KNOWN, jit.readonly("u1", 2), jit.array("i8"), jit.array("u1"))
def _look_up(known: Any, keys: Any, frames: Any, reasons: Any) -> None:
    for i in range(len(frames)):
        reasons[i] = reason_of(known, frames[i], keys[i])


@jit.compiled(KNOWN, jit.i8, jit.readonly("u1"))
def reason_of(known: Any, frame: Any, key: Any) -> Any:
    """Why ``frame`` does not hold the page of ``key`` (u8[32]); NONE if it does."""
    if not 0 <= frame < len(known.reasons):
        return np.uint8(_NEVER_STORED)
    reason, is_other = known.reasons[frame], False
    for i in range(KEY_NBYTES):
        is_other |= known.keys[frame, i] != key[i]
    if is_other and reason == _NONE:
        return np.uint8(_FOREIGN)
    if is_other and reason == _EVICTED:
        return np.uint8(_NEVER_STORED)
    return reason


def _mixed(keys: NDArray[np.uint8]) -> NDArray[np.uint64]:
    words = keys.view("<u8")
    mixed: NDArray[np.uint64] = (words * _MIXERS).sum(axis=1, dtype=np.uint64)
    return mixed
