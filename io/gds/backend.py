# SPDX-License-Identifier: Apache-2.0
"""GPUDirect Storage: payloads between a slab directory and device memory, by cuFile's batches.

Stand-in only: it passes the contract suite over ``bodocache.testing.FakeCuFile`` and never ran on a
GPU. Files, threads and columns are the backend's; buffers are the caller's until a transfer has
drained, and stay registered with cuFile until close. Every doubt about a frame is a miss with its
reason; no error leaves ``get``.
"""

import asyncio
import logging
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bodocache.clock import Clock
from bodocache.errors import (
    BackendError,
    BackendUnavailable,
    ConfigError,
    LayoutError,
)
from bodocache.io import directory
from bodocache.io.backend import Durability, OnLanded, Status
from bodocache.io.commit import GroupCommit
from bodocache.io.config import BLOCK_NBYTES, SlabConfig
from bodocache.io.engine import SlabEngine
from bodocache.io.gds import cufile
from bodocache.io.gds.cufile import MAX_REQUEST_NBYTES, Library
from bodocache.io.gds.device_memory import Memory, PageBuffers, Regions, memory_of
from bodocache.io.gds.operations import DigestPages, Shared, reads_of, writes_of
from bodocache.io.gds.pilot import Pilot
from bodocache.io.gds.probe import Probe, probe
from bodocache.io.gds.queue import GdsQueue
from bodocache.io.medium import Medium, PageRun, fits
from bodocache.io.puts import PutBatch
from bodocache.io.transfer import BatchTransfer, Outcome
from bodocache.pages import Reason

__all__ = ["GdsBackend", "GdsConfig", "Probe", "probe"]

BATCH_NBYTES = MAX_REQUEST_NBYTES  # of one batch: what is in flight cannot be called back

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GdsConfig:
    """A slab directory and the device whose memory its payloads travel to.

    Of ``slab``, ``queue_depth`` is how many batches are in flight at most, and ``chunk_nbytes`` the
    largest operation (cuFile takes 16 MiB). ``compat``: cuFile reads and writes through host
    memory, in the whole process.
    """

    slab: SlabConfig
    device: int = 0
    compat: bool = False

    def __post_init__(self) -> None:
        if self.slab.page_nbytes % BLOCK_NBYTES:
            raise ConfigError(
                f"page_nbytes={self.slab.page_nbytes}: GDS moves whole blocks; must be a multiple"
                f" of {BLOCK_NBYTES}"
            )
        if self.slab.is_keyed:
            raise ConfigError(
                "mac_key: GDS checks digests on the device, and no MACs; leave it out"
            )
        if self.device < 0:
            raise ConfigError(f"device={self.device}: must be the number of a CUDA device")

    @property
    def pages_per_operation(self) -> int:
        """How many adjacent pages one operation moves at most."""
        nbytes = min(self.slab.chunk_nbytes, MAX_REQUEST_NBYTES)
        return max(1, nbytes // self.slab.page_nbytes)


class GdsBackend(SlabEngine):
    """Implements :class:`bodocache.io.backend.Backend`; buffers may be device memory.

    Anything with ``__cuda_array_interface__`` is such a buffer, a torch CUDA tensor for one. cuFile
    knows no streams: what the GPU writes to a page must have ended before it is put. The directory
    is a slab's: :class:`bodocache.io.slab.SlabBackend` opens it as well.
    """

    def __init__(
        self,
        config: GdsConfig,
        slab: directory.OpenSlab,
        library: Library,
        *,
        clock: Clock,
        digest: DigestPages,
    ) -> None:
        """Hold an open slab on the running loop; :meth:`open` is the door."""
        medium = Medium(slab.payload, slab.headers, slab.superblock, slab.columns, clock)
        super().__init__("gds", config.slab, slab, medium)
        self._gds = config
        self._clock = clock
        self._digest = digest
        self._regions = Regions()
        self._queue = GdsQueue(config.slab.queue_depth, BATCH_NBYTES)
        self._commit = GroupCommit(self._medium, self._queue, clock)
        self._pilot = Pilot(self._queue, library, clock)
        self._process = os.getpid()

    @classmethod
    async def open(
        cls,
        config: GdsConfig,
        *,
        clock: Clock,
        digest: DigestPages,
        library: Library | None = None,
    ) -> Self:
        """Open or create the slab of ``config``, and cuFile's driver.

        ``digest`` digests pages in device memory. Without a ``library`` it is the real one, and
        another process is asked first whether that works here: it takes seconds.

        Raises:
            BackendUnavailable: cuFile, a driver or a device is missing; the message says which.
            BackendLocked: another process writes to the directory.
            BackendError: cuFile or the directory cannot be opened.
        """
        if library is None:
            found = await asyncio.to_thread(probe, compat=config.compat)
            if not found.available:
                raise BackendUnavailable(f"gds {config.slab.directory}: {found.reason}")
            library = cufile.load(config.device)
        slab = await directory.open_warm(config.slab)
        backend = cls(config, slab, library, clock=clock, digest=digest)
        try:
            await backend._start()
        except BaseException:
            await backend.close()
            raise
        _log.warning("gds %s: a stand-in: this adapter never ran on a GPU", config.slab.directory)
        return backend

    async def _start(self) -> None:
        payload = self._slab.payload
        if not (payload.is_direct or self._gds.compat):
            raise BackendError(
                f"gds {payload.path}: no O_DIRECT ({payload.why_buffered}); choose a file system"
                " that has it, and Access.DIRECT, or set compat"
            )
        fd = payload.direct_fd if payload.is_direct else payload.fd
        try:
            await self._pilot.start(fd, compat=self._gds.compat)
        except BackendError:
            raise
        except Exception as error:
            raise BackendError(f"gds {payload.path}: {error}") from error

    def get(
        self,
        batch: NDArray[np.void],
        buffers: PageBuffers,
        *,
        deadline_s: float,
        on_landed: OnLanded | None = None,
    ) -> BatchTransfer:
        """Begin to read; see :meth:`bodocache.io.backend.Backend.get`.

        Raises:
            LayoutError: the buffers do not fit, are read-only, or overlap those of another call.
        """
        memory = self._check(batch, buffers)
        if not memory.writeable:
            raise LayoutError("gds: get into read-only buffers")
        transfer = BatchTransfer(
            len(batch), deadline_s, self._clock, self._queue, on_landed=on_landed
        )
        if transfer.is_final:
            return transfer
        reasons = self._columns.look_up(batch["frame"], batch["key"])
        misses, there = np.flatnonzero(reasons), np.flatnonzero(reasons == Reason.NONE)
        statuses = np.full(len(misses), Status.MISS, np.uint8)
        transfer.finish(misses, Outcome(statuses, reasons[misses]))
        frames = batch["frame"][there]
        pages = PageRun(there, batch[there], self._columns.generations[frames])
        seeds = self._columns.known.words[frames, :2]
        expected = self._columns.digests[frames] - seeds
        limit = self._gds.pages_per_operation
        transfer.submit(reads_of(self._shared(transfer, memory), pages, expected, limit=limit))
        return transfer

    def put(
        self,
        batch: NDArray[np.void],
        buffers: PageBuffers,
        *,
        deadline_s: float,
        durability: Durability = Durability.CACHE,
    ) -> BatchTransfer:
        """Begin to write; see :meth:`bodocache.io.backend.Backend.put`.

        Raises:
            LayoutError: the buffers do not fit, or overlap those of another call.
            LeaseError: a frame is not reserved, named twice, or still being written.
        """
        self._check_writer()
        memory = self._check(batch, buffers)
        frames = np.ascontiguousarray(batch["frame"])
        self._reservations.check(frames, idle=True)
        transfer = BatchTransfer(len(batch), deadline_s, self._clock, self._queue)
        if transfer.is_final:
            return transfer
        shared = self._shared(transfer, memory)
        batch = self._budget.admit(batch, transfer)
        generations = self._reservations.next_generations(len(batch))
        self._reservations.begin_writing(np.ascontiguousarray(batch["frame"]))
        commit = self._commit if durability is Durability.SYNC else None
        put = PutBatch(transfer, self._reservations.end_writing, commit, self._budget)
        pages = PageRun(np.arange(len(batch)), batch.copy(), generations)
        limit = self._gds.pages_per_operation
        put.begin(writes_of(shared, pages, put.settle, limit=limit))
        return transfer

    def hold_writes(self) -> AbstractContextManager[None]:
        """See :meth:`bodocache.io.backend.Backend.hold_writes`."""
        return self._queue.hold_writes()

    async def close(self) -> None:
        """Let what is in flight end; what is still waiting is LATE. Calling twice is harmless.

        In a forked child it does nothing: cuFile and the lock are the parent's.
        """
        if os.getpid() != self._process:
            return
        self._is_closed = True
        self._drop_waiting()
        await asyncio.to_thread(self._pilot.join)
        self._queue.settle()
        self._drop_waiting()  # syncs of what was in flight
        self._slab.close()

    def _drop_waiting(self) -> None:
        while waiting := self._queue.stop():
            for request in waiting:
                late = Outcome.all(len(request.positions), Status.LATE, Reason.CANCELLED)
                request.transfer.settle(request, late)

    def _shared(self, transfer: BatchTransfer, memory: Memory) -> Shared:
        region = self._regions.find(memory)
        return Shared(self._medium, transfer, memory, region, self._digest)

    def _check(self, batch: NDArray[np.void], buffers: PageBuffers) -> Memory:
        """Raise unless ``batch`` fits ``buffers``; return where they lie."""
        self._check_open()
        memory = memory_of(buffers)
        if memory.row_nbytes != self.page_nbytes:
            raise LayoutError(
                f"gds: buffers of {memory.row_nbytes} bytes a row; pages are {self.page_nbytes}"
            )
        if not fits(np.ascontiguousarray(batch), memory.rows, self.page_nbytes):
            raise LayoutError(
                f"gds: slots {batch['slot'].tolist()}, bytes {batch['nbytes'].tolist()}:"
                f" expected slots below {memory.rows} and pages of {self.page_nbytes} bytes"
            )
        return memory

    def _check_open(self) -> None:
        super()._check_open()
        if os.getpid() != self._process:
            raise BackendError(
                f"gds {self._config.directory}: opened by process {self._process}; cuFile does not"
                " survive a fork: open it in the child"
            )
