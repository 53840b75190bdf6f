# SPDX-License-Identifier: Apache-2.0
"""What is known of every frame of a slab, in memory: 101 bytes each of its 512-byte header.

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

    __slots__ = (
        *("depths", "digests", "generations", "keys", "known", "macs", "owners", "parents"),
        "reasons",
    )

    def __init__(
        self, frame_count: int, reason: Reason = Reason.NEVER_STORED, *, keyed: bool = False
    ) -> None:
        """``keyed``: frames have MACs (mac.py)."""
        self.keys = np.zeros((frame_count, KEY_NBYTES), np.uint8)
        self.parents = np.zeros((frame_count, KEY_NBYTES), np.uint8)
        self.digests = np.zeros((frame_count, 2), np.uint64)
        self.generations = np.zeros(frame_count, np.uint64)
        self.depths = np.zeros(frame_count, np.uint32)
        self.owners = np.zeros(frame_count, np.uint64)
        self.macs = np.zeros((frame_count if keyed else 0, 32), np.uint8)
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
        """Let ``frames`` hold the pages of ``records`` from now on: HEADER, or TRANSFER unkeyed."""
        self.keys[frames] = records["key"]
        self.parents[frames] = records["parent"]
        self.digests[frames] = records["digest"]
        self.depths[frames] = records["depth"]
        self.owners[frames] = records["owner"]
        self.generations[frames] = generations
        if len(self.macs):
            self.macs[frames] = records["mac"]
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
        return frames[newest(self.keys[frames], self.generations[frames])]

    def entries(self) -> Entries:
        """Copies of the columns of :meth:`latest`."""
        frames = self.latest()
        return Entries(
            self.keys[frames],
            self.parents[frames],
            self.digests[frames],
            frames,
            self.depths[frames],
            self.owners[frames],
        )

    def holds(self, raw_digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether some frame should hold bytes of each digest (u64[n, 2], without a seed): [n].

        One scan of all rows, 0.1 s for 10^6: for checks that failed, in a worker thread.
        """
        if not len(raw_digests):
            return np.zeros(0, bool)
        rows = np.flatnonzero(self.reasons == Reason.NONE)
        raw = self.digests[rows] - self.keys[rows, :_SEED_NBYTES].copy().view("<u8")
        firsts = np.sort(raw_digests[:, 0])
        near = np.searchsorted(firsts, raw[:, 0]).clip(max=len(firsts) - 1)
        held = set(map(tuple, raw[firsts[near] == raw[:, 0]].tolist()))
        return np.array([tuple(wanted) in held for wanted in raw_digests.tolist()])


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


def newest(keys: NDArray[np.uint8], generations: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Rows of u8[N, 32], each key once: that of its highest generation, or the first of those."""
    size = 1 << max(4, (2 * len(keys)).bit_length())  # at most half full
    table, kept = np.full(size, -1, np.int64), np.zeros(len(keys), np.bool_)
    _newest(np.ascontiguousarray(keys).view("<u8"), np.ascontiguousarray(generations), table, kept)
    return np.flatnonzero(kept)


@jit.compiled(jit.array("u8", 2), jit.array("u8"), jit.array("i8"), jit.array("?"))
def _newest(words: Any, generations: Any, table: Any, kept: Any) -> None:
    """Mark the rows to keep; ``table`` is an open-addressing hash table of rows."""
    mask = np.uint64(len(table) - 1)
    for row in range(len(words)):
        mixed = np.uint64(0)
        for i in range(4):
            mixed += words[row, i] * _MIXERS[i]
        place = (mixed ^ (mixed >> np.uint64(32))) & mask
        while table[place] >= 0 and (words[table[place]] != words[row]).any():
            place = (place + np.uint64(1)) & mask
        other = table[place]
        if other < 0 or generations[row] > generations[other]:
            table[place] = row
            kept[row] = True
            if other >= 0:
                kept[other] = False
