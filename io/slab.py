# SPDX-License-Identifier: Apache-2.0
"""The embedded backend: fixed frames in one preallocated file, headers in another.

Files, threads and columns are the backend's; buffers are the caller's until a transfer has
drained. Every doubt about a frame is a miss with its reason; no error leaves ``get``.
"""

import asyncio
from contextlib import AbstractContextManager
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bodocache.clock import Clock
from bodocache.digest import check_pages
from bodocache.errors import BackendError, LayoutError
from bodocache.io import directory, extents
from bodocache.io.backend import Durability, OnLanded
from bodocache.io.commit import GroupCommit
from bodocache.io.config import BLOCK_NBYTES, WRITE_CHUNK_NBYTES, SlabConfig
from bodocache.io.engine import SlabEngine
from bodocache.io.mac import FrameMac
from bodocache.io.medium import Buffers, Medium, PageRun, fits, scratch
from bodocache.io.puts import PutBatch
from bodocache.io.read import read_extents
from bodocache.io.transfer import BatchTransfer
from bodocache.io.workers import WorkerPool
from bodocache.io.write import write_extents


class SlabBackend(SlabEngine):
    """Implements :class:`bodocache.io.backend.Backend` over one directory."""

    def __init__(
        self, config: SlabConfig, slab: directory.OpenSlab, *, clock: Clock, pool: WorkerPool
    ) -> None:
        """Begin to use an open slab on the running loop; :meth:`open` is the door."""
        medium = Medium(
            *(slab.payload, slab.headers, slab.superblock, slab.columns, clock),
            mac=FrameMac(config.mac_key, slab.superblock) if config.is_keyed else None,
            spill=scratch(BLOCK_NBYTES + config.read_through_nbytes),
        )
        super().__init__("slab", config, slab, medium)
        self._clock = clock
        sizes = (config.page_nbytes, config.frame_nbytes)
        self._read_limits = extents.Limits(
            *sizes, config.chunk_nbytes, hole_nbytes=config.read_through_nbytes
        )
        self._write_limits = extents.Limits(*sizes, min(config.chunk_nbytes, WRITE_CHUNK_NBYTES))
        self._closing: asyncio.Future[None] | None = None
        self._transfers: set[BatchTransfer] = set()  # not drained
        self._commit = GroupCommit(self._medium, pool, clock)
        self._pool = pool
        pool.enter()

    @classmethod
    async def open(
        cls, config: SlabConfig, *, clock: Clock, pool: WorkerPool | None = None
    ) -> Self:
        """Open or create the slab of ``config``; 10^6 headers take about a second.

        ``pool`` is shared with other slabs on the same device (groups.py); by default it has one
        of its own.

        Raises:
            BackendLocked: another process writes to the directory.
            BackendError: it cannot be opened, or there is nothing for a reader to read.
        """
        slab = await directory.open_warm(config)
        try:
            if pool is None:
                pool = WorkerPool(config.queue_depth, clock, asyncio.get_running_loop())
            pool.enter()  # so that one of its own ends where nobody else has
            try:
                return cls(config, slab, clock=clock, pool=pool)
            finally:
                await pool.leave()
        except (OSError, RuntimeError, MemoryError) as error:  # no descriptor, no thread to be had
            slab.close()
            raise BackendError(f"slab {config.directory}: cannot be opened: {error}") from error
        except BaseException:
            slab.close()
            raise

    @property
    def is_direct(self) -> bool:
        """Whether payloads bypass the page cache, given aligned buffers."""
        return self._slab.payload.is_direct

    def get(
        self,
        batch: NDArray[np.void],
        buffers: NDArray[np.uint8],
        *,
        deadline_s: float,
        on_landed: OnLanded | None = None,
    ) -> BatchTransfer:
        """Begin to read; see :meth:`bodocache.io.backend.Backend.get`."""
        memory = self._check(batch, buffers)
        if not buffers.flags.writeable:
            raise LayoutError("slab: get into read-only buffers")
        transfer = BatchTransfer(
            len(batch), deadline_s, self._clock, self._pool, on_landed=on_landed
        )
        if transfer.is_final:
            return transfer
        transfer.submit(read_extents(self._medium, transfer, batch, memory, self._read_limits))
        return self._followed(transfer)

    def put(
        self,
        batch: NDArray[np.void],
        buffers: NDArray[np.uint8],
        *,
        deadline_s: float,
        durability: Durability = Durability.CACHE,
    ) -> BatchTransfer:
        """Begin to write; see :meth:`bodocache.io.backend.Backend.put`.

        Raises:
            LeaseError: a frame is not reserved, named twice, or still being written.
        """
        self._check_writer()
        memory = self._check(batch, buffers)
        frames = np.ascontiguousarray(batch["frame"])
        self._reservations.check(frames, idle=True)
        transfer = BatchTransfer(len(batch), deadline_s, self._clock, self._pool)
        if transfer.is_final:
            return transfer
        batch = self._budget.admit(batch, transfer)
        frames = np.ascontiguousarray(batch["frame"])
        run, bounds = self._in_file_order(batch, memory)
        self._reservations.begin_writing(frames)  # whose end the put sees to, from here on
        commit = self._commit if durability is Durability.SYNC else None
        put = PutBatch(transfer, self._reservations.end_writing, commit, self._budget)
        put.begin(write_extents(self._medium, transfer, run, bounds, memory, put.settle))
        return self._followed(transfer)

    def hold_writes(self) -> AbstractContextManager[None]:
        """See :meth:`bodocache.io.backend.Backend.hold_writes`."""
        return self._pool.hold_writes()

    async def close(self) -> None:
        """Let what is in flight end; what is still waiting is LATE. Calling twice is harmless."""
        self._is_closed = True
        for transfer in list(self._transfers):
            transfer.abandon()
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._let_go())
        await asyncio.shield(self._closing)  # a cancelled close goes on, and can be awaited again

    async def _let_go(self) -> None:
        while self._transfers:
            await next(iter(self._transfers)).drained()
        await self._pool.leave()
        self._slab.close()

    def _followed(self, transfer: BatchTransfer) -> BatchTransfer:
        """Remember ``transfer`` until it has drained."""
        if not transfer.is_drained:
            self._transfers.add(transfer)
            transfer.on_drained = self._transfers.discard
        return transfer

    def _in_file_order(
        self, batch: NDArray[np.void], memory: Buffers
    ) -> tuple[PageRun, NDArray[np.int64]]:
        """The pages to be written, and where their extents begin and end."""
        pages = memory.addresses(batch["slot"])
        order, bounds = extents.merge(batch["frame"], pages, self._write_limits)
        return PageRun(order, batch[order], self._reservations.next_generations(len(batch))), bounds

    def _check(self, batch: NDArray[np.void], buffers: NDArray[np.uint8]) -> Buffers:
        """Raise unless ``batch`` fits ``buffers``; return the buffers as workers address them."""
        self._check_open()
        check_pages(buffers)
        if buffers.shape[1] != self.page_nbytes:
            raise LayoutError(
                f"slab: buffers of {buffers.shape[1]} bytes a row; pages are {self.page_nbytes}"
            )
        if not fits(np.ascontiguousarray(batch), len(buffers), self.page_nbytes):
            raise LayoutError(
                f"slab: slots {batch['slot'].tolist()}, bytes {batch['nbytes'].tolist()}:"
                f" expected slots below {len(buffers)} and pages of {self.page_nbytes} bytes"
            )
        address = buffers.ctypes.data
        aligned = address % BLOCK_NBYTES == 0 and self.page_nbytes % BLOCK_NBYTES == 0
        return Buffers(buffers, address, aligned)
