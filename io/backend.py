# SPDX-License-Identifier: Apache-2.0
"""The contract of storage: a batch of pages in, one status per page out.

Who owns what: the caller owns the buffers and must keep every slot of a batch untouched until the
transfer has *drained*, whether it finished, was late or was abandoned. The records of a batch are
read before the call returns. A backend never calls back into the cache, and is used from one event
loop.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import IntEnum
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from bodocache.pages import KEY_NBYTES
from bodocache.plain import plain

# One page of a batch. `parent`, `depth` and `digest` travel with it so that a restart can rebuild
# the prefix index from frames alone, and `owner` so that shares outlive it; a get needs only key,
# frame, slot and nbytes.
TRANSFER = np.dtype(
    [
        ("key", "u1", (KEY_NBYTES,)),
        ("parent", "u1", (KEY_NBYTES,)),  # key of the page before it, zero for a first page
        ("digest", "<u8", (2,)),  # seeded with the key (digest.py)
        ("frame", "<i8"),
        ("slot", "<i8"),  # row of the buffers
        ("depth", "<u4"),
        ("nbytes", "<u4"),
        ("owner", "<u8"),  # the tenant whose store brought it + 1; 0: nobody's
    ]
)


@plain
class Status(IntEnum):
    """What became of one page of a batch. PENDING until final; a final status never changes."""

    PENDING = 0
    LANDED = 1  # get: bytes are in the slot and verified; put: a get would find them
    MISS = 2  # get: not there, or not these bytes; the reason says which
    LATE = 3  # not landed by the deadline, or abandoned before it was begun
    FAILED = 4  # the storage answered with an error, or has no room


class Durability(IntEnum):
    """What an acknowledged put survives."""

    CACHE = 0  # a killed process; not a power cut
    SYNC = 1  # a power cut too: payload, header, fdatasync, then the acknowledgement


class NativeCall(NamedTuple):
    """``void function(int64 argument, int64 positions, int64 count)`` in C, for any thread.

    ``positions`` is the address of int64[count]. The function takes no Python lock and cannot fail;
    what ``argument`` points to is kept alive by whoever holds the :class:`OnLanded`.
    """

    function: int  # address
    argument: int


class OnLanded(Protocol):
    """Told which positions of a batch are in their slots and verified, to send them on at once.

    A backend whose threads run without Python's lock makes the native call where there is one: a
    Python call waits for the lock, 1.4 ms beside a busy loop.
    """

    @property
    def native(self) -> NativeCall | None:
        """The same in C, or None."""
        ...

    def __call__(self, positions: NDArray[np.int64]) -> None:
        """Take note, in a thread of the backend's; what it raises makes those pages FAILED."""
        ...


class ToldInPython:
    """An :class:`OnLanded` of a Python function alone."""

    native = None

    def __init__(self, function: Callable[[NDArray[np.int64]], None]) -> None:
        self._function = function

    def __call__(self, positions: NDArray[np.int64]) -> None:
        """Call it."""
        self._function(positions)


class Extent(NamedTuple):
    """One contiguous read or write that a transfer made, as told to :attr:`Backend.observer`."""

    path: str
    offset: int
    nbytes: int
    started_s: float
    finished_s: float
    pages: int
    writes: bool
    batch: int  # the transfer's number: extents of one get or put share it


class Transfer(Protocol):
    """One batch on its way."""

    @property
    def statuses(self) -> NDArray[np.uint8]:
        """:class:`Status` of each page, in the batch's order; read it after ``progress``."""
        ...

    @property
    def reasons(self) -> NDArray[np.uint8]:
        """:class:`bodocache.pages.Reason` of each page that is final but not landed."""
        ...

    async def progress(self) -> bool:
        """Wait until another page is final; False once all are.

        Returns at the latest at the deadline: pages still pending then are LATE. A cancel of this
        wait changes nothing about the transfer.
        """
        ...

    async def finished(self) -> None:
        """Wait until every page is final, at the latest at the deadline."""
        ...

    def abandon(self) -> None:
        """Begin nothing more. Pages not yet begun are LATE; what is in flight goes on."""
        ...

    async def drained(self) -> None:
        """Wait until nothing can touch the buffers any more; not bounded by the deadline."""
        ...


class Entries(NamedTuple):
    """What a backend holds, as columns of equal length."""

    keys: NDArray[np.uint8]  # [N, 32]
    parents: NDArray[np.uint8]  # [N, 32]
    digests: NDArray[np.uint64]  # [N, 2], seeded
    frames: NDArray[np.int64]
    depths: NDArray[np.uint32]
    owners: NDArray[np.uint64]  # tenant + 1; 0: nobody's, or written before this was kept


class Usage(NamedTuple):
    """How full a backend is."""

    used_frames: int
    total_frames: int
    nbytes_on_disk: int
    budget_frames: int | None = None  # how many puts may write now; None for no limit

    @property
    def free_frames(self) -> int:
        """Frames that :meth:`Backend.reserve` could give now."""
        return self.total_frames - self.used_frames


class Backend(Protocol):
    """Storage for pages of one size and form."""

    @property
    def name(self) -> str:
        """A short name for metrics and messages: "slab", "nixl"."""
        ...

    @property
    def page_nbytes(self) -> int:
        """Bytes of one page."""
        ...

    @property
    def observer(self) -> Callable[[Extent], None] | None:
        """Told of every completed extent, in whatever thread; it must be quick and not raise."""
        ...

    @observer.setter
    def observer(self, observer: Callable[[Extent], None] | None) -> None: ...

    @property
    def usage(self) -> Usage:
        """How full it is now."""
        ...

    def entries(self) -> Entries:
        """Every page that a get would find, after a restart too."""
        ...

    def reserve(self, count: int, *, after: int) -> NDArray[np.int64]:
        """Take ``count`` free frames for pages of one prefix, in as few runs as there are.

        ``after`` is the frame of the page before the first, or -1: adjacency is sought behind it.

        Raises:
            TierFull: fewer than ``count`` frames are free; none is taken.
        """
        ...

    def release(self, frames: NDArray[np.int64]) -> None:
        """Give frames back; a get of them is a miss from now on."""
        ...

    def check_reserved(self, frames: NDArray[np.int64], *, idle: bool = False) -> None:
        """Raise LeaseError unless each of ``frames`` is reserved, named once, and ``idle``.

        Idle: nothing is being written there.
        """
        ...

    def get(
        self,
        batch: NDArray[np.void],
        buffers: NDArray[np.uint8],
        *,
        deadline_s: float,
        on_landed: OnLanded | None = None,
    ) -> Transfer:
        """Begin to read ``batch`` (TRANSFER records) into rows ``slot`` of ``buffers``.

        ``buffers`` is u8[slots, page_nbytes], C-ordered. A page is LANDED only when its bytes have
        the digest stored under its key. ``deadline_s`` is on the backend's clock; ``inf`` for none.
        ``on_landed`` is told of verified pages before they are reported.
        """
        ...

    def put(
        self,
        batch: NDArray[np.void],
        buffers: NDArray[np.uint8],
        *,
        deadline_s: float,
        durability: Durability = Durability.CACHE,
    ) -> Transfer:
        """Begin to write rows ``slot`` of ``buffers`` to the reserved frames of ``batch``.

        Every field of the batch is given. A page that is not LANDED is not found by a get, and its
        frame remains reserved until ``release``.
        """
        ...

    def hold_writes(self) -> AbstractContextManager[None]:
        """``with``: no write begins inside; those in flight go on, and puts wait."""
        ...

    async def close(self) -> None:
        """Wait for what is in flight, then let go of files and threads; twice is harmless.

        Pages that are still waiting are LATE.
        """
        ...
