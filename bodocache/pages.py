# SPDX-License-Identifier: Apache-2.0
"""The page table: one 128-byte record per known page, its key and its digest beside it.

It owns its arrays and grows by doubling; a row number stays the same for a page's whole life. Rows
are written by one writer, the orchestrator's loop.
"""

from enum import IntEnum
from typing import NewType

import numpy as np
from numpy.typing import NDArray

from bodocache.plain import plain

PageRow = NewType("PageRow", int)
TenantId = NewType("TenantId", int)

KEY_NBYTES = 32
NOWHERE = -1  # a slot, frame or row that is not there, in int columns of records only
NOBODY = (1 << 32) - 1  # the tenant of a page that came from a disk without one: no tenant's number


@plain
class Tier(IntEnum):
    """Where a page's bytes can lie, fastest first."""

    DEVICE = 0
    HOST = 1
    DISK = 2
    REMOTE = 3

    @property
    def bit(self) -> int:
        """This tier's bit in a record's ``tiers``."""
        return 1 << self


@plain
class Reason(IntEnum):
    """Why a page was a miss."""

    NONE = 0
    NEVER_STORED = 1  # nobody stored this prefix
    DIVERGED = 2  # stored pages end here: the prompt goes another way after its first pages
    EVICTED = 3  # stored once, since evicted
    NOT_ADMITTED = 4  # left the faster tiers without having been admitted to a slower one
    UNREACHABLE = 5  # its bytes are there, but an earlier page of its prefix is not
    OTHER_VERSION = 6  # stored under other weights
    LATE = 7  # not landed by its deadline
    TRUNCATED = 8  # its frame ends too early
    FOREIGN = 9  # its frame holds another page (misdirected or swapped)
    OLD_FORMAT = 10  # its frame was written in another format or form
    CORRUPT = 11  # its bytes failed the digest
    IO_ERROR = 12  # the storage answered with an error
    CANCELLED = 13  # the load was cancelled first
    NO_ROOM = 14  # no slot was free to load it into
    FORGED = 15  # its frame was not made with our key
    OVER_BUDGET = 16  # the day's bytes of writing are spent
    UNAVAILABLE = 17  # its directory is out of service
    RELEASED = 18  # its owner said that it is not needed any more
    CUT = 19  # the engine was to compute it sooner than it would have come
    ASIDE = 20  # the cache had stepped aside: it costs more than it gains


# One record: what the planner knows of a page. GPU kernels read the same 128 bytes.
PAGE = np.dtype(
    {
        "names": [
            "stamp_s",  # last access, on the cache's clock
            "arrived_s",  # since when it is in its fastest tier (minimum residence)
            "frame",  # its place on disk, or NOWHERE
            "device_slot",
            "host_slot",
            "parent",  # row of the page before it, or NOWHERE for the first
            "depth",  # pages before it
            "children",  # [tier]: pages right after it that are present in that tier
            "descended",  # pages right after it that are present in any tier
            "nbytes",
            "heat",  # decayed access count at stamp_s
            "hits",
            "recompute_s",  # seconds an engine needs to compute this page
            "eviction_key",
            "pins",  # leases and user pins: never evicted while > 0
            "cluster",
            "domain",
            "tenant",  # whose store brought it
            "version",  # of the weights
            "group",
            "reuse_class",
            "tiers",  # bits of the tiers that hold it; 0: the row is free
            "reason",  # Reason of the last miss
            "forecast",  # log2 of what hints on the next use multiply its value by; a use ends it
            "rank",  # log2 of what its priority multiplies its value by
            "holds",  # [tier]: hints and writes that keep its copy there from eviction
        ],
        "formats": [
            *("<f8", "<f8", "<i8", "<i4", "<i4", "<i4", "<u4", ("<u4", (4,)), "<u4", "<u4"),
            *("<f4", "<u4", "<f4", "<f4", "<u4", "<i4", "<u4", "<u4", "<u4"),
            *("<u2", "u1", "u1", "u1", "<f4", "<f4", ("<u2", (4,))),
        ],
        "offsets": [
            *(0, 8, 16, 24, 28, 32, 36, 40, 56, 60),
            *(64, 68, 72, 76, 80, 84, 88, 92, 96),
            *(100, 102, 103, 104, 108, 112, 116),
        ],
        "itemsize": 128,
    }
)


class PageTable:
    """Records, keys and digests of all known pages, by row."""

    __slots__ = ("_free", "_used", "digests", "keys", "records")

    def __init__(self, capacity: int = 1024) -> None:
        self.records = np.zeros(capacity, PAGE)
        self.keys = np.zeros((capacity, KEY_NBYTES), np.uint8)
        self.digests = np.zeros((capacity, 2), np.uint64)  # seeded (digest.py)
        self._free: list[int] = []
        self._used = 0

    def __len__(self) -> int:
        """Pages known now."""
        return self._used - len(self._free)

    @property
    def capacity(self) -> int:
        """Rows the arrays have room for before they grow."""
        return len(self.records)

    def add(self, keys: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Give each of ``keys`` (u8[N, 32]) a row: zeroed but for "nowhere" columns."""
        count = len(keys)
        reused = [self._free.pop() for _ in range(min(count, len(self._free)))]
        fresh = range(self._used, self._used + count - len(reused))
        self._grow_to(fresh.stop)
        self._used = fresh.stop
        rows = np.array([*reused, *fresh], np.int64)
        self.keys[rows] = keys
        self.records[rows] = _EMPTY
        self.digests[rows] = 0
        return rows

    def remove(self, rows: NDArray[np.int64]) -> None:
        """Forget ``rows``: they may be given to other pages."""
        assert not self.records["tiers"][rows].any(), "a page that lies in a tier has a row"
        self.keys[rows] = 0
        self._free.extend(rows.tolist())

    def _grow_to(self, rows: int) -> None:
        if rows <= self.capacity:
            return
        capacity = max(rows, 2 * self.capacity)
        for name in ("records", "keys", "digests"):
            old = getattr(self, name)
            grown = np.zeros((capacity, *old.shape[1:]), old.dtype)  # untouched rows cost nothing
            grown[: self._used] = old[: self._used]
            setattr(self, name, grown)


_EMPTY = np.zeros((), PAGE)
for _column in ("frame", "device_slot", "host_slot", "parent", "cluster"):
    _EMPTY[_column] = NOWHERE
