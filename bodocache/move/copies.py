# SPDX-License-Identifier: Apache-2.0
"""Copies between the host pool and the device pool, with the digest of what was moved.

Between CPU pools a copy runs where it is called, in turns of at most TURN_NBYTES: a hop to another
thread and back waits for the interpreter's lock twice, 4 ms for 5 MB beside a busy loop where the
copy itself takes 0.6. A copy that waits for a GPU runs in a thread; layers cross on a stream of the
GPU, to which that thread submits them.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from bodocache import digest
from bodocache.kernels import gather_pages, scatter_pages
from bodocache.kernels.landing import LandingPad
from bodocache.kernels.lane import Lane, lane_for
from bodocache.kernels.layerwise import LayerCopies
from bodocache.kernels.prepared import PreparedCopies
from bodocache.kernels.select import CopyPath  # noqa: TC001 -- as the others
from bodocache.move.stream import LayerStream
from bodocache.pages import Tier
from bodocache.pools import BorrowedPool, OwnedPool, SlotArray

U64Array = NDArray[np.uint64]
T = TypeVar("T")

TURN_NBYTES = 8 << 20  # 1 ms of one core's memory bandwidth: how long the loop may stand still


class Copies:
    """Moves pages between two pools; digests are u64[n, 2], before the key's seed."""

    def __init__(self, device: BorrowedPool, host: OwnedPool) -> None:
        self._device = device.memory
        self._host = host.pages
        self._pools = (host, device)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bodocache-copy")
        self.runs_here = self._device.device.type == "cpu"
        self.streams_layers = not self.runs_here
        self.path: CopyPath | None = None  # of layers on a GPU; None: what is fastest there
        self._prepared = PreparedCopies(self._device, self._host) if self.runs_here else None
        # For threads that send pages on without Python's lock; None where they cannot.
        self.pad = LandingPad(self._device, self._host) if self.runs_here else None
        self.turn_nbytes = TURN_NBYTES
        self.turn_pages = max(1, TURN_NBYTES // host.layout.page_nbytes)
        self.num_layers = self._device.layers
        self.layer_nbytes = host.layout.page_nbytes // self.num_layers  # of one page
        self._by_layer: list[PreparedCopies] = []
        self._of_layers: dict[bool, LayerCopies] = {}

    def to_device(self, host_slots: SlotArray, device_slots: SlotArray) -> U64Array:
        """Copy host slots to device slots; the digests are of the bytes that were moved."""
        if self._prepared is not None:
            return self._prepared.scatter(host_slots, device_slots)
        staged = self._host[torch.from_numpy(host_slots)].to(self._device.device)
        return _digests(scatter_pages(staged, self._device, self._on_device(device_slots)))

    def layer_to_device(
        self, layer: int, host_slots: SlotArray, device_slots: SlotArray, sums: U64Array
    ) -> None:
        """Copy one layer of host slots to device slots, between CPU pools.

        What was moved is added to ``sums``, the pages' raw sums (digest.py).
        """
        self._add(layer, self._layer(layer).scatter(host_slots, device_slots), sums)

    def layer_to_host(
        self, layer: int, device_slots: SlotArray, host_slots: SlotArray, sums: U64Array
    ) -> None:
        """Copy one layer of device slots to host slots, likewise."""
        self._add(layer, self._layer(layer).gather(device_slots, host_slots), sums)

    def _layer(self, layer: int) -> PreparedCopies:
        if not self._by_layer:
            nbytes = self.layer_nbytes
            self._by_layer = [
                PreparedCopies(
                    self._device.only(layers=range(k, k + 1)),
                    self._host[:, k * nbytes : (k + 1) * nbytes],
                )
                for k in range(self.num_layers)
            ]
        return self._by_layer[layer]

    def _add(self, layer: int, digests: U64Array, sums: U64Array) -> None:
        digest.add_part(sums, digests, layer * self.layer_nbytes, self.layer_nbytes)

    def stream_down(self, host_slots: SlotArray, device_slots: SlotArray) -> LayerStream:
        """What brings host slots to device slots layer by layer. In the thread."""
        copies = self._layers(to_host=False)
        return LayerStream(
            copies, host_slots, device_slots, to_host=False, make_lane=self.make_lane
        )

    def stream_up(self, device_slots: SlotArray, host_slots: SlotArray) -> LayerStream:
        """The same from the device to the host."""
        copies = self._layers(to_host=True)
        return LayerStream(copies, device_slots, host_slots, to_host=True, make_lane=self.make_lane)

    def make_lane(self) -> Lane:
        """Where layers cross: a stream of the device."""
        return lane_for(self._device.device)

    def to_host(self, device_slots: SlotArray, host_slots: SlotArray) -> U64Array:
        """Copy device slots to host slots; the digests are of the bytes that were moved."""
        if self._prepared is not None:
            return self._prepared.gather(device_slots, host_slots)
        gathered = gather_pages(self._device, self._on_device(device_slots))
        self._host[torch.from_numpy(host_slots)] = gathered.pages.cpu()
        return _digests(gathered.digests)

    def _layers(self, *, to_host: bool) -> LayerCopies:
        if to_host not in self._of_layers:
            host, device = (pool.memory for pool in self._pools)
            ends = (device, host) if to_host else (host, device)
            self._of_layers[to_host] = LayerCopies(*ends, path=self.path)
        return self._of_layers[to_host]

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do ``work`` in the thread of this device, after all that was asked of it before."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def run(self, pages: int, copy: Callable[[], T], *, to: Tier = Tier.DEVICE) -> T:
        """Do ``copy``, which moves ``pages`` to tier ``to``: here if short, else in a thread."""
        del to  # one thread for both; a simulation has a link for each
        if self.runs_here and pages <= self.turn_pages:
            return copy()
        return await self.in_thread(copy)

    def close(self) -> None:
        """Wait for copies under way, and end the thread."""
        self._thread.shutdown(wait=True)

    def _on_device(self, slots: SlotArray) -> torch.Tensor:
        return torch.from_numpy(slots).to(self._device.device)


class HostSide(NamedTuple):
    """The host tier: its memory, and what moves pages between it and the device."""

    pool: OwnedPool
    copies: Copies

    @classmethod
    def of(cls, pool: OwnedPool, device: BorrowedPool) -> "HostSide":
        """Real copies."""
        return cls(pool, Copies(device, pool))


def _digests(words: torch.Tensor) -> U64Array:
    return words.cpu().numpy().view(np.uint64)
