# SPDX-License-Identifier: Apache-2.0
"""Pages that cross between host and device layer by layer, on a stream of the device's own.

Behind the last layer the same stream takes the digests of what lies on the device then. One thread
makes and submits; the loop looks at what has passed. Keep it until it was drained, or all passed.
"""

import asyncio
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from bodocache.kernels import gather_pages
from bodocache.kernels.lane import Event, Lane, Mark, Stream
from bodocache.kernels.layerwise import LayerCopies, LayerwiseCopy
from bodocache.layout import PagedMemory

POLL_S = 1e-3  # how often the loop looks at what is in flight
SCRATCH_NBYTES = 16 << 20  # of the device's memory: pages are copied together to be digested


async def passed(is_there: Callable[[], bool]) -> None:
    """Look until it is: the device tells no loop."""
    while not is_there():  # noqa: ASYNC110
        await asyncio.sleep(POLL_S)


class LayerStream:
    """One batch of pages on its way, layer by layer."""

    def __init__(
        self,
        copies: LayerCopies,
        source_slots: NDArray[np.int64],
        destination_slots: NDArray[np.int64],
        *,
        to_host: bool,
        make_lane: Callable[[], Lane],
    ) -> None:
        """Whatever waits is done here; nothing is copied yet."""
        ends = copies.whole.source, copies.whole.destination
        slots = torch.from_numpy(source_slots), torch.from_numpy(destination_slots)
        device_side = 0 if to_host else 1
        self._digests = _Digests(ends[device_side], slots[device_side])
        self._lane = make_lane()  # begins after what was put on the device above
        self._copy = LayerwiseCopy(*ends, *slots, lane=self._lane, copies=copies)
        self._copy.commit(layers=0)
        self._checked: Mark | None = None
        self.given = 0  # layers submitted

    @property
    def whole(self) -> int:
        """How many leading layers have crossed."""
        return self._copy.whole_layers

    @property
    def has_passed(self) -> bool:
        """Whether all that was submitted has crossed."""
        return self.whole == self.given

    @property
    def is_over(self) -> bool:
        """Whether all layers have crossed, and the digests are there."""
        return self._checked is not None and self._checked.passed

    @property
    def digests(self) -> NDArray[np.uint64]:
        """u64[n, 2], before the key's seed, once it is over."""
        digests: NDArray[np.uint64] = self._digests.on_host.numpy().view(np.uint64)
        return digests

    def submit(self, layers: int, after: Event | None = None) -> None:
        """Begin what is missing of the first ``layers`` layers, once ``after`` has passed."""
        if after is not None:
            self._lane.follow(after)
        self._copy.go_on(layers)
        self.given = layers
        if layers == self._copy.layers and self._checked is None:
            self._lane.run(self._digests.take)
            self._checked = self._lane.mark()

    def make_wait(self, layer: int, stream: object) -> None:
        """Let the engine's ``stream`` wait for ``layer``. Any thread."""
        self._copy.wait_layer(layer, cast("Stream", stream))

    def drain(self) -> None:
        """Wait here until nothing that was submitted can read or write any more."""
        self._copy.drain()


class _Digests:
    """The digests of some pages where they lie on the device."""

    def __init__(self, memory: PagedMemory, slots: torch.Tensor) -> None:
        is_cuda = memory.device.type == "cuda"
        together = max(1, min(len(slots), SCRATCH_NBYTES // memory.page_nbytes))
        self._memory = memory
        self._slots = slots.to(memory.device)
        self._rows = torch.arange(together, device=memory.device)
        self._scratch = torch.empty(
            (together, memory.page_nbytes), dtype=torch.uint8, device=memory.device
        )
        self._found = torch.empty((len(slots), 2), dtype=torch.int64, device=memory.device)
        self.on_host = torch.empty((len(slots), 2), dtype=torch.int64, pin_memory=is_cuda)

    def take(self) -> None:
        """On the current stream, which the caller's thread does not wait for."""
        together = len(self._rows)
        for first in range(0, len(self._slots), together):
            slots = self._slots[first : first + together]
            pages = gather_pages(
                self._memory, slots, out=self._scratch, rows=self._rows[: len(slots)]
            )
            self._found[first : first + together] = pages.digests
        self.on_host.copy_(self._found, non_blocking=True)
