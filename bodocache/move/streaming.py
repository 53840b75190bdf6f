# SPDX-License-Identifier: Apache-2.0
"""What was left of a load at its commit, layer by layer on a stream of a GPU.

A load that has its link to itself is submitted whole, so that nothing of Python's stands between
two layers; beside other loads it goes by turns of the queue, each as urgent as its first layer.
What was submitted cannot be withdrawn: the part ends when it has crossed. While it crosses the loop
looks every POLL_S at how far it is; engines need not wait for that, their streams wait themselves.
"""

import asyncio
import logging
from functools import partial

from bodocache.move.by_layer import Layerwise, Rest, verified_by
from bodocache.move.queue import ALL
from bodocache.move.stream import POLL_S, LayerStream

_log = logging.getLogger(__name__)


class Streaming(Layerwise):
    """Copies on a stream; somebody awaits :meth:`run`."""

    def __init__(self, rest: Rest) -> None:
        super().__init__(rest)
        self._layers = rest.copies.num_layers
        self._layer_nbytes = len(rest.chosen) * rest.copies.layer_nbytes
        self._asked = self._arrived = 0  # layers: whose turn has come, and that have crossed
        self._is_stopped = False
        self._turn = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.is_over = False

    def begin(self, nbytes: int) -> int:
        """Let as many layers be submitted; their bytes, or 0 if there are no more."""
        part, left = self._part, self._layers - self._asked
        if self._is_stopped or not left:
            return 0
        if part.ticket is not None and part.link.queue.is_sole_load(part.ticket):
            nbytes = ALL
        layers = min(left, max(1, nbytes // self._layer_nbytes))
        self._asked += layers
        if layers < left and part.ticket is not None:
            part.link.queue.start(part.ticket, float(self.due_s[self._asked]))
        self._turn.set()
        return layers * self._layer_nbytes

    def stop(self) -> None:
        """Submit nothing more. What was submitted crosses; nothing of it counts."""
        self._is_stopped = True
        self._turn.set()

    async def run(self) -> None:
        """See it through, until nothing of it can write to the device."""
        part, stream, landed = self._part, None, False
        try:
            slots = part.host_slots[self._chosen], part.device_slots[self._chosen]
            stream = await self._copies.in_thread(partial(self._copies.stream_down, *slots))
            part.load.layers.join(stream)
            landed = await self._follow(stream)
        except Exception:
            self._lander.break_off(part)  # what cannot be copied is a miss
            raise
        finally:
            if stream is not None:
                await self._drain(stream)
            self._end(landed=landed)

    async def _follow(self, stream: LayerStream) -> bool:
        """Submit what is asked for and note what has crossed; whether all of it has, verified."""
        while True:
            if stream.given < self._asked and not self._is_stopped:
                await self._copies.in_thread(partial(self._submit, stream, self._asked))
            self._note(stream)
            if stream.is_over:
                self._land(stream)
                return True
            if self._arrived == stream.given:
                if self._is_stopped:
                    return False
                if self._arrived == self._asked < self._layers:
                    self._turn.clear()
                    await self._turn.wait()
                    continue
            await asyncio.sleep(POLL_S)

    def _submit(self, stream: LayerStream, layers: int) -> None:
        """In the thread: each layer is known to the load as soon as it was submitted."""
        for layer in range(stream.given + 1, layers + 1):
            if self._is_stopped:
                return
            stream.submit(layer)
            self._loop.call_soon_threadsafe(self._given, stream, layer)

    def _given(self, stream: LayerStream, layers: int) -> None:
        part, last = self._part, self._layers - 1
        part.load.give_by_layer(part.positions[self._chosen], min(layers, last))
        self._note(stream)

    def _note(self, stream: LayerStream) -> None:
        """Let the load and the queue know which layers have crossed."""
        part, whole = self._part, stream.whole
        if whole == self._arrived:
            return
        crossed, self._arrived = whole - self._arrived, whole
        part.load.arrive_by_layer(part.positions[self._chosen], min(whole, self._layers - 1))
        if part.ticket is not None:
            part.link.queue.done(part.ticket, crossed * self._layer_nbytes)

    def _land(self, stream: LayerStream) -> None:
        part = self._part
        part.landed_s = max(part.landed_s, self._now_s())
        part.under_way -= len(self._chosen)
        self._lander.land(part, self._chosen, verified_by(stream.digests, part, self._chosen))

    async def _drain(self, stream: LayerStream) -> None:
        try:
            if not stream.is_over:
                await self._copies.in_thread(stream.drain)
        except Exception:  # noqa: BLE001 -- a device that cannot be waited for writes no more
            _log.exception("host to device: copies that failed could not be waited for")
        self._part.load.layers.part(stream)

    def _end(self, *, landed: bool) -> None:
        part = self._part
        self.is_over = True
        if not landed:
            part.under_way -= len(self._chosen)
        if part.ticket is not None and self._arrived < self._asked:
            left = (self._asked - self._arrived) * self._layer_nbytes
            part.link.queue.done(part.ticket, left)
