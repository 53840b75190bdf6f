# SPDX-License-Identifier: Apache-2.0
"""Buffers of any memory by address, and the regions of it that are registered with cuFile.

A region keeps its array alive until it is deregistered: memory that was freed and given to somebody
else must not stay pinned for direct transfers.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from bodocache.digest import check_pages
from bodocache.errors import LayoutError
from bodocache.io.config import BLOCK_NBYTES


class DeviceArray(Protocol):
    """What torch, CuPy and Numba make of device memory; v3 of CUDA's array interface."""

    @property
    def __cuda_array_interface__(self) -> Mapping[str, Any]:
        """Shape, typestr, strides and data."""
        ...


PageBuffers = NDArray[np.uint8] | DeviceArray  # u8[slots, page_nbytes], C-ordered


class Memory(NamedTuple):
    """u8[rows, row_nbytes] without holes, wherever it is."""

    array: PageBuffers
    address: int
    rows: int
    row_nbytes: int
    writeable: bool


def memory_of(buffers: PageBuffers) -> Memory:
    """Where ``buffers`` lie.

    Raises:
        LayoutError: they are no C-ordered u8[rows, nbytes], or do not begin at a 4 KiB boundary.
    """
    if isinstance(buffers, np.ndarray):
        check_pages(buffers)
        rows, row_nbytes = buffers.shape
        memory = Memory(buffers, buffers.ctypes.data, rows, row_nbytes, buffers.flags.writeable)
    else:
        memory = _device_memory(buffers)
    if memory.address % BLOCK_NBYTES:
        raise LayoutError(f"buffers at {memory.address:#x}: must begin at a multiple of 4096")
    return memory


def _device_memory(buffers: DeviceArray) -> Memory:
    said = getattr(buffers, "__cuda_array_interface__", None)
    if said is None:
        raise LayoutError(
            f"buffers: expected a NumPy array or device memory, got {type(buffers).__name__}"
        )
    shape, strides = tuple(said["shape"]), said.get("strides")
    if said["typestr"] not in {"|u1", "<u1"} or len(shape) != 2:
        raise LayoutError(f"buffers: expected u8[rows, nbytes], got {said['typestr']}{shape}")
    if strides is not None and tuple(strides) != (shape[1], 1):
        raise LayoutError(f"buffers: expected rows without holes, got strides {tuple(strides)}")
    address, read_only = said["data"]
    return Memory(buffers, int(address), *shape, not read_only)


class Region:
    """Memory that is registered as one. ``is_registered`` belongs to the thread that does it."""

    __slots__ = ("address", "array", "is_registered", "nbytes")

    def __init__(self, memory: Memory) -> None:
        self.array = memory.array
        self.address = memory.address
        self.nbytes = memory.rows * memory.row_nbytes
        self.is_registered = False


class Regions:
    """All regions of one backend. Used on the loop."""

    __slots__ = ("_by_address",)

    def __init__(self) -> None:
        self._by_address: dict[int, Region] = {}

    def find(self, memory: Memory) -> Region:
        """The region that ``memory`` lies in, new where there is none.

        Raises:
            LayoutError: it overlaps a region without lying inside.
        """
        end = memory.address + memory.rows * memory.row_nbytes
        for region in self._by_address.values():
            region_end = region.address + region.nbytes
            if region.address <= memory.address and end <= region_end:
                return region
            if memory.address < region_end and region.address < end:
                raise LayoutError(
                    f"buffers at {memory.address:#x} to {end:#x} overlap others at"
                    f" {region.address:#x} to {region_end:#x}, which are registered until close;"
                    " use the whole pool's array from the start"
                )
        region = self._by_address[memory.address] = Region(memory)
        return region
