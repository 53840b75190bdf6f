# SPDX-License-Identifier: Apache-2.0
"""A stand-in for storage, in memory: it passes the contract suite, and proves nothing about disks.

A :class:`MemoryDisk` outlives the backends opened over it, as a directory does; a test may change
its bytes.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np
from numpy.typing import NDArray

from bodocache.clock import Clock
from bodocache.digest import check_pages, digest_rows, seeded
from bodocache.errors import CacheClosed, LeaseError
from bodocache.io.backend import Durability, Entries, Extent, OnLanded, Status, Usage
from bodocache.io.columns import Columns
from bodocache.io.frames import FrameAllocator
from bodocache.io.transfer import BatchTransfer, Outcome, Request
from bodocache.pages import Reason


class MemoryDisk:
    """What a backend in memory keeps: the frames' bytes and what is known of them."""

    def __init__(self, page_nbytes: int, frame_count: int) -> None:
        self.pages = np.zeros((frame_count, page_nbytes), np.uint8)
        self.columns = Columns(frame_count)


class MemoryBackend:
    """Implements the contract over a :class:`MemoryDisk`; pages move between loop iterations."""

    def __init__(self, disk: MemoryDisk, *, clock: Clock) -> None:
        self.observer: Callable[[Extent], None] | None = None
        self._disk = disk
        self._clock = clock
        self._frames = FrameAllocator(disk.columns.reasons == Reason.NONE)
        self._queue = _LoopQueue()
        self._writing: set[int] = set()  # frames
        self._released: set[int] = set()  # of those
        self._generation = int(disk.columns.generations.max(initial=0))
        self._is_closed = False

    @property
    def name(self) -> str:
        """Its name in metrics and messages."""
        return "memory"

    @property
    def page_nbytes(self) -> int:
        """Bytes of one page."""
        return int(self._disk.pages.shape[1])

    @property
    def usage(self) -> Usage:
        """How full it is now."""
        total = len(self._disk.pages)
        return Usage(total - self._frames.free, total, 0)

    def entries(self) -> Entries:
        """Every page that a get would find."""
        return self._disk.columns.entries()

    def reserve(self, count: int, *, after: int) -> NDArray[np.int64]:
        """Take ``count`` free frames."""
        return self._frames.reserve(count, after=after)

    def check_reserved(self, frames: NDArray[np.int64], *, idle: bool = False) -> None:
        """Raise LeaseError unless they are."""
        self._frames.check_reserved(frames)
        if idle and not self._writing.isdisjoint(frames.tolist()):
            raise LeaseError("memory: put to a frame that is still being written")

    def release(self, frames: NDArray[np.int64]) -> None:
        """Give frames back; those that are still being written become free afterwards."""
        self._frames.check_reserved(frames)
        if not self._released.isdisjoint(frames.tolist()):
            raise LeaseError("memory: a frame was released twice while it was being written")
        self._disk.columns.evict(frames)
        busy = np.isin(frames, list(self._writing))
        self._frames.release(frames[~busy])
        self._released.update(frames[busy].tolist())

    def get(
        self,
        batch: NDArray[np.void],
        buffers: NDArray[np.uint8],
        *,
        deadline_s: float,
        on_landed: OnLanded | None = None,
    ) -> BatchTransfer:
        """Begin to copy pages out."""

        def read(record: NDArray[np.void]) -> Outcome:
            reasons = self._disk.columns.look_up(record["frame"], record["key"])
            if reasons[0] != Reason.NONE:
                return Outcome.all(1, Status.MISS, Reason(reasons[0]))
            raw = digest_rows(self._disk.pages, record["frame"].copy())
            stored = self._disk.columns.digests[record["frame"]]
            if (seeded(raw, record["key"]) != stored).any():
                return Outcome.all(1, Status.MISS, Reason.CORRUPT)
            buffers[record["slot"]] = self._disk.pages[record["frame"]]
            return Outcome.all(1, Status.LANDED)

        return self._begin(batch, buffers, deadline_s, read, on_landed)

    def put(
        self,
        batch: NDArray[np.void],
        buffers: NDArray[np.uint8],
        *,
        deadline_s: float,
        durability: Durability = Durability.CACHE,  # noqa: ARG002 -- memory has but one
    ) -> BatchTransfer:
        """Begin to copy pages in."""
        self._frames.check_reserved(batch["frame"])

        def write(record: NDArray[np.void]) -> Outcome:
            self._generation += 1
            self._disk.pages[record["frame"]] = buffers[record["slot"]]
            generations = np.array([self._generation], np.uint64)
            self._disk.columns.fill(record["frame"], record, generations)
            return Outcome.all(1, Status.LANDED)

        return self._begin(batch, buffers, deadline_s, write, writes=True)

    def _end_writing(self, frame: int) -> None:
        self._writing.discard(frame)
        if frame in self._released:
            self._released.discard(frame)
            self._disk.columns.evict(np.array([frame]))
            self._frames.release(np.array([frame]))

    def hold_writes(self) -> AbstractContextManager[None]:
        """Let puts wait inside."""
        return self._queue.hold_writes()

    async def close(self) -> None:
        """Refuse what comes from now on; what is still waiting is LATE."""
        self._is_closed = True
        for request in self._queue.stop():
            late = Outcome.all(len(request.positions), Status.LATE, Reason.CANCELLED)
            request.transfer.settle(request, late)

    def _begin(
        self,
        batch: NDArray[np.void],
        buffers: NDArray[np.uint8],
        deadline_s: float,
        move: Callable[[NDArray[np.void]], Outcome],
        on_landed: OnLanded | None = None,
        *,
        writes: bool = False,
    ) -> BatchTransfer:
        if self._is_closed:
            raise CacheClosed("memory backend is closed")
        check_pages(buffers)
        transfer = BatchTransfer(
            len(batch), deadline_s, self._clock, self._queue, on_landed=on_landed
        )
        if not transfer.is_final:
            ended = self._end_writing if writes else None
            if writes:
                self._writing.update(batch["frame"].tolist())
            requests = [
                _OnePage(transfer, i, batch[i : i + 1].copy(), move, ended)
                for i in range(len(batch))
            ]
            transfer.submit(requests)
        return transfer


class _OnePage:
    """A request that moves one page, on the loop."""

    job = 0

    def __init__(
        self,
        transfer: BatchTransfer,
        position: int,
        record: NDArray[np.void],
        move: Callable[[NDArray[np.void]], Outcome],
        ended: Callable[[int], None] | None,
    ) -> None:
        """``ended`` is told of the frame that was written; None for a read."""
        self.transfer = transfer
        self.writes = ended is not None
        self._ended = ended
        self.positions = np.array([position])
        self._record = record
        self._move = move

    def run(self) -> Outcome:
        outcome = self._move(self._record)
        self.transfer.tell(self.positions[outcome.statuses == Status.LANDED])
        return outcome

    def settle(self, outcome: Outcome) -> None:
        self.transfer.finish(self.positions, outcome)
        if self._ended is not None:
            self._ended(int(self._record["frame"][0]))


class _LoopQueue:
    """Does requests one at a time, each in a turn of the loop of its own."""

    def __init__(self) -> None:
        self._waiting: list[Request] = []
        self._holds = 0  # of writes

    def submit(self, requests: Sequence[Request]) -> None:
        self._waiting += requests
        self._take_turns(len(requests))

    def withdraw(self, transfer: BatchTransfer) -> list[Request]:
        mine = [request for request in self._waiting if request.transfer is transfer]
        self._waiting = [request for request in self._waiting if request.transfer is not transfer]
        return mine

    def stop(self) -> list[Request]:
        waiting, self._waiting = self._waiting, []
        return waiting

    @contextmanager
    def hold_writes(self) -> Iterator[None]:
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
            self._take_turns(len(self._waiting))

    def _take_turns(self, count: int) -> None:
        for _ in range(count):
            asyncio.get_running_loop().call_soon(self._do_one)

    def _do_one(self) -> None:
        able = [request for request in self._waiting if not (self._holds and request.writes)]
        if able:  # withdrawn ones left their turns behind
            self._waiting.remove(able[0])
            outcome = able[0].run()
            assert isinstance(outcome, Outcome)
            able[0].transfer.settle(able[0], outcome)
