# SPDX-License-Identifier: Apache-2.0
"""Memory, copies and storage of a simulation: pages have their full size, and 16 bytes of content.

The content of a page is two words, and they are its digest before the key's seed. So a page that
is torn, stale or in another's place is seen as one by the same checks as in real memory, and a
simulated host of a terabyte takes some megabytes.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from bodocache.clock import Clock
from bodocache.digest import seeded
from bodocache.errors import CacheClosed, LeaseError
from bodocache.io.backend import Durability, Entries, Extent, OnLanded, Status, Usage
from bodocache.io.columns import Columns
from bodocache.io.frames import FrameAllocator
from bodocache.io.transfer import BatchTransfer, Outcome, Request
from bodocache.layout import Layout, PagedMemory
from bodocache.move.copies import TURN_NBYTES, Copies
from bodocache.pages import Reason, Tier
from bodocache.pools import BorrowedPool, OwnedPool
from bodocache.testing.channel import Channel, Piece

U64Array = NDArray[np.uint64]
SlotArray = NDArray[np.int64]
T = TypeVar("T")

WORDS_NBYTES = 16


class SimulatedPool(OwnedPool):
    """A pool whose pages are of ``layout``'s size to all but memory: ``words[i]`` is slot i."""

    def __init__(self, layout: Layout, *, name: str = "pool") -> None:
        group, strides = layout.group, layout.strides
        nowhere = PagedMemory(
            bases=np.zeros((group.layers, group.kv), np.int64),
            page_stride=strides.page,
            token_stride=strides.token,
            head_stride=strides.head,
            row_nbytes=group.row_nbytes,
            heads=group.heads,
            page_tokens=layout.page_tokens,
            num_pages=layout.num_pages,
            device=torch.device("cpu"),
            owner=None,
        )
        BorrowedPool.__init__(self, nowhere)  # an OwnedPool, but for the memory it would allocate
        self.layout, self.name = layout, name
        self._free_all()
        self.words = np.zeros((layout.num_pages, 2), np.uint64)

    @property
    def rows(self) -> NDArray[np.uint8]:
        """u8[num_pages, 16]: what a simulated backend reads into and writes from."""
        return self.words.view(np.uint8)


class SimulatedDisk:
    """What a simulated backend keeps; it outlives the backends opened over it."""

    def __init__(self, frame_count: int) -> None:
        self.words = np.zeros((frame_count, 2), np.uint64)
        self.columns = Columns(frame_count)

    def as_it_is(self) -> "SimulatedDisk":
        """A copy: what a process that is killed now leaves behind."""
        copy = SimulatedDisk(len(self.words))
        copy.words[:] = self.words
        for column in ("keys", "parents", "digests", "generations", "depths", "reasons"):
            getattr(copy.columns, column)[:] = getattr(self.columns, column)
        return copy


class SimulatedBackend:
    """Implements the contract over a :class:`SimulatedDisk`, at the pace of a channel."""

    def __init__(
        self,
        disk: SimulatedDisk,
        page_nbytes: int,
        *,
        channel: Channel,
        clock: Clock,
        op_nbytes: int = 0,
        onward: Channel | None = None,
    ) -> None:
        """``op_nbytes``: what one operation moves at most; pages are not split, runs are.

        ``onward``: what pages cross that are sent on as they are read (a get's ``on_landed``).
        """
        self.observer: Callable[[Extent], None] | None = None
        self.page_nbytes = page_nbytes
        self.channel = channel
        self.onward = onward
        self.failures = 0  # operations that ended with an error
        self._disk = disk
        self._clock = clock
        self._frames = FrameAllocator(disk.columns.reasons == Reason.NONE)
        self._op_pages = max(1, op_nbytes // page_nbytes)
        self._queue = _ChannelQueue(channel)
        self._writing: set[int] = set()
        self._released: set[int] = set()  # of those
        self._generation = int(disk.columns.generations.max(initial=0))
        self._is_closed = False

    @property
    def name(self) -> str:
        """Its name in metrics and messages."""
        return "simulated"

    @property
    def usage(self) -> Usage:
        """How full it is now."""
        total = len(self._disk.words)
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
            raise LeaseError("simulated: put to a frame that is still being written")

    def release(self, frames: NDArray[np.int64]) -> None:
        """Give frames back; those that are still being written become free afterwards."""
        self._frames.check_reserved(frames)
        if not self._released.isdisjoint(frames.tolist()):
            raise LeaseError("simulated: a frame was released twice while it was being written")
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
        """Begin to read pages, as fast as the channel is."""
        words, disk = buffers.view(np.uint64), self._disk

        def read(records: NDArray[np.void]) -> Outcome:
            frames = records["frame"]
            reasons = disk.columns.look_up(frames, records["key"])
            found = seeded(disk.words[frames], records["key"])
            bad = (found != disk.columns.digests[frames]).any(axis=1) & (reasons == Reason.NONE)
            reasons[bad] = Reason.CORRUPT
            good = reasons == Reason.NONE
            words[records["slot"][good]] = disk.words[frames[good]]
            statuses = np.where(good, np.uint8(Status.LANDED), np.uint8(Status.MISS))
            return Outcome(statuses, reasons)

        return self._begin(batch, deadline_s, read, on_landed)

    def put(
        self,
        batch: NDArray[np.void],
        buffers: NDArray[np.uint8],
        *,
        deadline_s: float,
        durability: Durability = Durability.CACHE,  # noqa: ARG002 -- a simulation has no power cuts
    ) -> BatchTransfer:
        """Begin to write pages; reads go first."""
        self._frames.check_reserved(batch["frame"])
        words, disk = buffers.view(np.uint64), self._disk

        def write(records: NDArray[np.void]) -> Outcome:
            self._generation += 1
            generations = np.full(len(records), self._generation, np.uint64)
            disk.words[records["frame"]] = words[records["slot"]]
            disk.columns.fill(records["frame"], records, generations)
            return Outcome.all(len(records), Status.LANDED)

        return self._begin(batch, deadline_s, write, None, writes=True)

    def hold_writes(self) -> AbstractContextManager[None]:
        """Let puts wait inside."""
        return self._held()

    async def close(self) -> None:
        """Refuse what comes from now on; what is still waiting is LATE."""
        self._is_closed = True
        for request in self._queue.stop():
            late = Outcome.all(len(request.positions), Status.LATE, Reason.CANCELLED)
            request.transfer.settle(request, late)
        await self._queue.drained()

    def forget(self, run: "_Run") -> None:
        """A run is over."""
        self._queue.forget(run)

    @contextmanager
    def _held(self) -> Iterator[None]:
        self.channel.hold(1)
        try:
            yield
        finally:
            self.channel.hold(-1)

    def _begin(
        self,
        batch: NDArray[np.void],
        deadline_s: float,
        move: Callable[[NDArray[np.void]], Outcome],
        on_landed: OnLanded | None,
        *,
        writes: bool = False,
    ) -> BatchTransfer:
        if self._is_closed:
            raise CacheClosed("simulated backend is closed")
        transfer = BatchTransfer(
            len(batch), deadline_s, self._clock, self._queue, on_landed=on_landed
        )
        if transfer.is_final:
            return transfer
        if writes:
            self._writing.update(batch["frame"].tolist())
        records, step = batch.copy(), self._op_pages
        ended = self._end_writing if writes else None
        runs = [np.arange(i, min(i + step, len(batch))) for i in range(0, len(batch), step)]
        transfer.submit([_Run(self, transfer, run, records[run], move, ended) for run in runs])
        return transfer

    def _end_writing(self, frames: NDArray[np.int64]) -> None:
        for frame in frames.tolist():
            self._writing.discard(frame)
            if frame in self._released:
                self._released.discard(frame)
                self._disk.columns.evict(np.array([frame]))
                self._frames.release(np.array([frame]))


class _Run:
    """A request that moves a run of pages when the channel has served it."""

    job = 0

    def __init__(
        self,
        backend: SimulatedBackend,
        transfer: BatchTransfer,
        positions: NDArray[np.int64],
        records: NDArray[np.void],
        move: Callable[[NDArray[np.void]], Outcome],
        ended: Callable[[NDArray[np.int64]], None] | None,
    ) -> None:
        """``ended`` is told of the frames that were written; None for a read."""
        self.transfer, self.positions = transfer, positions
        self.writes = ended is not None
        nbytes = len(positions) * backend.page_nbytes
        self.piece = Piece(nbytes, self._on_end, urgent=not self.writes)
        self._backend, self._records, self._move, self._ended = backend, records, move, ended

    def run(self) -> Outcome:
        outcome = self._move(self._records)
        self.transfer.tell(self.positions[outcome.statuses == Status.LANDED])
        return outcome

    def settle(self, outcome: Outcome) -> None:
        self.transfer.finish(self.positions, outcome)
        if self._ended is not None:
            self._ended(self._records["frame"])

    def _on_end(self, has_failed: bool) -> None:  # noqa: FBT001 -- as a channel calls it
        onward = self._backend.onward if self.transfer.on_landed is not None else None
        if has_failed:
            self._backend.failures += 1
            self._end(Outcome.all(len(self.positions), Status.FAILED, Reason.IO_ERROR))
        elif onward is not None:
            onward.submit(Piece(self.piece.nbytes, lambda _: self._end(self.run())))
        else:
            self._end(self.run())

    def _end(self, outcome: Outcome) -> None:
        self._backend.forget(self)
        self.transfer.settle(self, outcome)


class _ChannelQueue:
    """Lets the runs of transfers wait for the channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._runs: dict[BatchTransfer, dict[_Run, None]] = {}  # begun or waiting, in order

    def submit(self, requests: Sequence[Request]) -> None:
        for run in requests:
            assert isinstance(run, _Run)
            self._runs.setdefault(run.transfer, {})[run] = None
            self._channel.submit(run.piece)

    def withdraw(self, transfer: BatchTransfer) -> list[Request]:
        waiting = [run for run in self._runs.get(transfer, ()) if self._take_back(run)]
        for run in waiting:
            self.forget(run)
        return list(waiting)

    def stop(self) -> list[Request]:
        return [run for transfer in list(self._runs) for run in self.withdraw(transfer)]

    async def drained(self) -> None:
        """Wait until nothing is being served."""
        for transfer in list(self._runs):
            await transfer.drained()

    def forget(self, run: _Run) -> None:
        runs = self._runs[run.transfer]
        del runs[run]
        if not runs:
            del self._runs[run.transfer]

    def _take_back(self, run: _Run) -> bool:
        return self._channel.withdraw(run.piece)


class SimulatedCopies(Copies):
    """Copies between two simulated pools, each direction at the pace of its channel.

    Bytes change place when the channel has served them, not before.
    """

    def __init__(
        self, device: SimulatedPool, host: SimulatedPool, *, down: Channel, up: Channel
    ) -> None:
        """``down`` leads to the device, ``up`` to the host."""
        self._device_words, self._host_words = device.words, host.words
        self._page_nbytes = host.layout.page_nbytes
        self._channels = {Tier.DEVICE: down, Tier.HOST: up}
        self.runs_here = self.streams_layers = False
        self.num_layers = host.layout.group.layers
        self.layer_nbytes = self._page_nbytes // self.num_layers
        self.turn_nbytes = TURN_NBYTES
        self.pad = None
        self.turn_pages = max(1, TURN_NBYTES // self._page_nbytes)

    def to_device(self, host_slots: SlotArray, device_slots: SlotArray) -> U64Array:
        """Copy at once: whoever calls has waited for the channel."""
        moved = self._host_words[host_slots]
        self._device_words[device_slots] = moved
        return moved

    def to_host(self, device_slots: SlotArray, host_slots: SlotArray) -> U64Array:
        """The same to the host."""
        moved = self._device_words[device_slots]
        self._host_words[host_slots] = moved
        return moved

    async def run(self, pages: int, copy: Callable[[], T], *, to: Tier = Tier.DEVICE) -> T:
        """Wait for the channel, then do ``copy``."""
        await self._serve(self._channels[to], pages * self._page_nbytes)
        return copy()

    def close(self) -> None:
        """There is no thread."""

    async def _serve(self, channel: Channel, nbytes: int) -> None:
        served: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def end(_has_failed: bool) -> None:  # noqa: FBT001 -- a bus that failed is another matter
            if not served.done():
                served.set_result(None)

        channel.submit(Piece(nbytes, end))
        await served
