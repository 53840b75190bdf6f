# SPDX-License-Identifier: Apache-2.0
"""Host side of ``csrc/bulk_copy.cu``: pages between two paged memories by bulk copies, sm_90+.

Memories are on one GPU, or one is and the other is pinned host memory that the GPU reaches at the
host's addresses. The caller owns both, has checked them, and keeps them and the slots alive until
the copy has ended on its stream.
"""

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from bodocache.errors import BackendUnavailable
from bodocache.kernels import gpu, nvrtc
from bodocache.kernels.check import UNIT_NBYTES
from bodocache.kernels.launch import device_table
from bodocache.kernels.runs import Runs, runs_of
from bodocache.layout import PagedMemory

SOURCE = "bulk_copy.cu"
KERNEL = "bulk_copy"
MIN_CAPABILITY = (9, 0)  # cp.async.bulk

BLOCKS = 2  # between host and device: as fast as 4, which hold up compute more (H100)

# The best published ring, too (6 x 32 KiB). With the barriers it fits the 227 KiB that a block may
# have on sm_90 and sm_100; of the 99 KiB on sm_120, three stages do.
STAGE_NBYTES = 32 << 10
NUM_STAGES = 6

# Small copies are cut finer, to be spread over all stages of all blocks, but not finer than this,
# where a chunk's waits and divisions would cost more than they bring: how fine was not measured.
MIN_CHUNK_NBYTES = 4 << 10

# As in the source.
THREADS = 64  # one warp loads, one stores
MAX_STAGES = 8
PENDING_STORES = 1
BARRIERS_NBYTES = 2 * MAX_STAGES * 8
MAX_PAGE_UNITS = 1 << 30

_TABLE_HEADER = 4  # words of device_table before the bases

SIDE = np.dtype(
    [
        ("bases", np.uint64),  # address of int64[B] on the device, in units as are the strides
        ("page_stride", np.int64),
        ("token_stride", np.int64),
        ("head_stride", np.int64),
        ("run_units", np.uint32),
        ("heads", np.uint32),
        ("base_runs", np.uint32),
        ("page_runs", np.uint32),
        ("slots", np.uint64),
        ("slot_nbytes", np.uint32),
    ],
    align=True,
)
ARGUMENTS = np.dtype(
    [
        ("source", SIDE),
        ("destination", SIDE),
        ("total_units", np.uint64),
        ("page_units", np.uint32),
        ("chunk_units", np.uint32),
        ("num_chunks", np.uint32),
        ("num_stages", np.uint32),
    ],
    align=True,
)
# The same bytes: 0.4 us a pack, where an array of ARGUMENTS takes 3 and its address another 25.
PACKED = struct.Struct("<" + 2 * "QqqqIIIIQIxxxx" + "QIIII")


class Ring(NamedTuple):
    """Stages of shared memory that a block's bytes pass through."""

    num_stages: int
    stage_nbytes: int

    def shared_nbytes(self, chunk_nbytes: int) -> int:
        """Shared memory of a block, all of it dynamic, for chunks of ``chunk_nbytes``."""
        return BARRIERS_NBYTES + self.num_stages * chunk_nbytes


class Cut(NamedTuple):
    """The stream of a copy's pages, and its chunks; the last one may be shorter."""

    total_nbytes: int
    chunk_nbytes: int
    num_chunks: int


@dataclass(frozen=True, slots=True)
class BulkCopy:
    """A copy between one pair of memories, prepared: a launch then packs a struct and no more.

    Launches are independent of each other; any thread may launch.
    """

    blocks: int
    ring: Ring
    page_nbytes: int
    longest_run_nbytes: int  # of either side
    source: tuple[int, ...]  # SIDE up to its slots
    destination: tuple[int, ...]
    kept: tuple[object, ...]  # what these point to
    function: nvrtc.Function | None  # None where only the arguments are wanted: tests
    cuts: dict[int, Cut] = field(default_factory=dict)  # by pages, as they were first wanted

    def launch(
        self,
        source_slots: torch.Tensor,
        destination_slots: torch.Tensor,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """Copy pages ``source_slots[i]`` to pages ``destination_slots[i]`` on ``stream``.

        Args:
            source_slots: int32 or int64 [n], contiguous, where the GPU reads it.
            destination_slots: the same; distinct. Its dtype may be the other one.
            stream: default: torch's current one.

        Raises:
            BackendError: the driver refused the launch.
        """
        if not source_slots.numel():
            return
        assert self.function is not None
        cut = self.cut(len(source_slots))
        self.function.launch(
            self.arguments(source_slots, destination_slots),
            num_blocks=min(self.blocks, cut.num_chunks),
            num_threads=THREADS,
            shared_nbytes=self.ring.shared_nbytes(cut.chunk_nbytes),
            stream=stream,
        )

    def warm(self) -> None:
        """Load the kernel's code, once a process, by a launch of no chunks: it moves nothing."""
        assert self.function is not None
        if self.function not in _warm:
            empty = PACKED.pack(*self.source, 0, 8, *self.destination, 0, 8, 0, 1, 1, 0, 2)
            self.function.launch(
                *(empty,),
                num_blocks=1,
                num_threads=THREADS,
                shared_nbytes=self.ring.shared_nbytes(UNIT_NBYTES),
            )
            _warm.add(self.function)

    def arguments(self, source_slots: torch.Tensor, destination_slots: torch.Tensor) -> bytes:
        """The struct that a launch passes: ARGUMENTS, packed."""
        assert len(source_slots) == len(destination_slots)
        cut = self.cut(len(source_slots))
        return PACKED.pack(
            *(*self.source, source_slots.data_ptr(), source_slots.element_size()),
            *(*self.destination, destination_slots.data_ptr(), destination_slots.element_size()),
            cut.total_nbytes // UNIT_NBYTES,
            self.page_nbytes // UNIT_NBYTES,
            cut.chunk_nbytes // UNIT_NBYTES,
            cut.num_chunks,
            self.ring.num_stages,
        )

    def cut(self, num_pages: int) -> Cut:
        """How a copy of so many pages is cut."""
        if num_pages in self.cuts:
            return self.cuts[num_pages]
        total = num_pages * self.page_nbytes
        chunk = chunk_nbytes(self.longest_run_nbytes, total, self.blocks, self.ring)
        found = self.cuts[num_pages] = Cut(total, chunk, -(-total // chunk))
        return found


_warm: set[nvrtc.Function] = set()


def bulk_copy(
    source: PagedMemory,
    destination: PagedMemory,
    source_slots: torch.Tensor,
    destination_slots: torch.Tensor,
    *,
    layers: range | None = None,
    heads: range | None = None,
    blocks: int | None = None,
    stream: torch.cuda.Stream | None = None,
) -> None:
    """Prepare one copy and launch it: see :class:`BulkCopy`, which callers with many keep."""
    chosen = (source.only(layers, heads), destination.only(layers, heads))
    prepared(*chosen, blocks=blocks).launch(source_slots, destination_slots, stream)


def prepared(
    source: PagedMemory, destination: PagedMemory, *, blocks: int | None = None
) -> BulkCopy:
    """Prepare copies of whole pages; restrict both memories (``only``) to copy parts of pages.

    Compiles the kernel on first use, and copies each memory's addresses to the device once, which
    waits for it: a CUDA graph may capture launches, not this.

    Args:
        source: memory to read; pinned where it is the host's.
        destination: memory to write; on one GPU with ``source``, or pinned.
        blocks: default 4 between host and device, one per multiprocessor within a device.

    Raises:
        LayoutError: runs are not multiples of 16 bytes.
        BackendUnavailable: CUDA, NVRTC or a GPU of compute capability 9.0 is missing.
    """
    device = destination.device if destination.device.type == "cuda" else source.device
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        raise BackendUnavailable(
            f"bulk copies: {device} has compute capability {capability[0]}.{capability[1]}; "
            "9.0 is needed; use another path"
        )
    if blocks is None:
        within = source.device == destination.device
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        blocks = multiprocessors if within else BLOCKS
    ring = ring_in(gpu.max_shared_nbytes(device))
    function = nvrtc.function(
        SOURCE, KERNEL, device, shared_nbytes=ring.shared_nbytes(ring.stage_nbytes)
    )
    return plan(source, destination, device, blocks=blocks, ring=ring, function=function)


def plan(
    source: PagedMemory,
    destination: PagedMemory,
    device: torch.device,
    *,
    blocks: int,
    ring: Ring,
    function: nvrtc.Function | None = None,
) -> BulkCopy:
    """Fill in all that does not change from launch to launch; the tables lie on ``device``."""
    sides = {"source": runs_of(source), "destination": runs_of(destination)}
    page_nbytes = source.page_nbytes
    assert page_nbytes == destination.page_nbytes
    assert page_nbytes <= MAX_PAGE_UNITS * UNIT_NBYTES
    assert blocks >= 1
    assert PENDING_STORES < ring.num_stages <= MAX_STAGES
    tables = {name: device_table(runs, device) for name, runs in sides.items()}
    return BulkCopy(
        blocks,
        ring,
        page_nbytes,
        longest_run_nbytes=max(runs.run_nbytes for runs in sides.values()),
        source=_side(sides["source"], tables["source"]),
        destination=_side(sides["destination"], tables["destination"]),
        kept=(source, destination, *tables.values()),
        function=function,
    )


def ring_in(shared_nbytes: int) -> Ring:
    """The ring of a block that may have ``shared_nbytes`` of shared memory."""
    stages = min(NUM_STAGES, (shared_nbytes - BARRIERS_NBYTES) // STAGE_NBYTES)
    if stages <= PENDING_STORES:
        raise BackendUnavailable(
            f"bulk copies: {shared_nbytes} bytes of shared memory a block; "
            f"{Ring(PENDING_STORES + 1, STAGE_NBYTES).shared_nbytes(STAGE_NBYTES)} needed; use "
            "another path"
        )
    return Ring(stages, STAGE_NBYTES)


def chunk_nbytes(longest_run_nbytes: int, total_nbytes: int, blocks: int, ring: Ring) -> int:
    """Bytes of a chunk: whole runs of both sides, or else an equal part of the longer run.

    The shorter run nearly always divides the longer. Where it does not, or where parts are not
    equal, pieces are cut once more, and the bytes are the same.
    """
    spread = max(MIN_CHUNK_NBYTES, _up(-(-total_nbytes // (blocks * ring.num_stages))))
    most = min(ring.stage_nbytes, spread)
    if longest_run_nbytes <= most:
        return most - most % longest_run_nbytes
    parts = -(-longest_run_nbytes // most)
    return _up(-(-longest_run_nbytes // parts))


def _up(nbytes: int) -> int:
    return -(-nbytes // UNIT_NBYTES) * UNIT_NBYTES


def _side(runs: Runs, table: torch.Tensor) -> tuple[int, ...]:
    """SIDE up to its slots."""
    base_runs = runs.tokens * runs.heads
    return (
        table[_TABLE_HEADER:].data_ptr(),
        *(s // UNIT_NBYTES for s in (runs.page_stride, runs.token_stride, runs.head_stride)),
        runs.run_nbytes // UNIT_NBYTES,
        runs.heads,
        base_runs,
        base_runs * len(runs.bases),
    )
