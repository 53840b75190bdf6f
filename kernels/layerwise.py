# SPDX-License-Identifier: Apache-2.0
"""A load layer by layer, on a stream of its own, beside the engine's compute.

Until the commit whole pages go, chunk by chunk, and the copy can be cut between two chunks. The
commit fixes how many pages there will be; what is left of them then goes layer by layer, all
submitted at once, and the engine's stream waits for each layer on the device. Two streams meet in
events and in one counter in memory; no Python runs between layers. On a GPU it is unproven.
"""

import weakref
from typing import Protocol

import torch

from bodocache.errors import BodoCacheError, LayoutError
from bodocache.kernels import check, nvrtc
from bodocache.kernels.copy import PageCopy
from bodocache.kernels.select import CopyPath
from bodocache.layout import PagedMemory

CHUNK_NBYTES = 64 << 20  # 1.3 ms of a 50 GB/s link: how long a cut waits at most

Stream = torch.cuda.Stream


class Mark(Protocol):
    """A point in the work of a lane."""

    @property
    def passed(self) -> bool:
        """Whether all work before it has ended."""
        ...


class Lane(Protocol):
    """Where copies run, in the order in which they are submitted."""

    def submit(
        self, copy: PageCopy, source_slots: torch.Tensor, destination_slots: torch.Tensor
    ) -> None:
        """Copy, after all that was submitted before."""
        ...

    def mark(self) -> Mark:
        """The point after all that was submitted so far."""
        ...

    def hold_until(self, count: int) -> None:
        """Begin nothing more until :meth:`tell` was called with ``count`` or more."""
        ...

    def tell(self, count: int, stream: Stream | None) -> None:
        """Let the lane know when the work submitted to the engine's ``stream`` has ended."""
        ...

    def make_wait(self, stream: Stream | None, mark: Mark) -> None:
        """Let the engine's ``stream`` wait for ``mark``; the caller does not."""
        ...

    def drain(self) -> None:
        """Wait here until all that was submitted has ended."""
        ...


class LayerwiseCopy:
    """Pages on their way from ``source`` to ``destination``, layer by layer from the commit on.

    Keep it alive until :meth:`drain` or until the engine has waited for the last layer.
    """

    def __init__(  # noqa: PLR0913 -- an operand each
        self,
        source: PagedMemory,
        destination: PagedMemory,
        source_slots: torch.Tensor,
        destination_slots: torch.Tensor,
        *,
        ahead: int | None = None,
        chunk_nbytes: int = CHUNK_NBYTES,
        path: CopyPath | None = None,
        blocks: int | None = None,
        lane: Lane | None = None,
    ) -> None:
        """Nothing is copied yet. Arguments are as for ``copy_pages``, but for what is said here.

        Args:
            source: as there.
            destination: slots the engine's earlier work used are free when that has
                ended on the current stream.
            source_slots: on the CPU or the copying device, in the order of the prompt.
            destination_slots: likewise.
            ahead: layers that may be copied before the engine has said :meth:`layer_done` of the
                one so many before; None: as many as there are. What it leaves of the link serves
                others.
            chunk_nbytes: of whole pages before the commit.
            path: how; not CopyPath.TORCH where layers are to be waited for on the device.
            blocks: of the SM and bulk kernels.
            lane: where copies run; default: a stream of the GPU, or this thread for two CPU pools.

        Raises:
            LayoutError: as ``copy_pages``, or ``ahead`` or ``chunk_nbytes`` is less than one.
        """
        if (ahead is not None and ahead < 1) or chunk_nbytes < 1:
            raise LayoutError(
                f"layerwise copy: ahead={ahead}, chunk_nbytes={chunk_nbytes}; expected at least 1"
            )
        self._whole = PageCopy(source, destination, path=path, blocks=blocks)
        self._layers = [
            PageCopy(source, destination, layers=range(l, l + 1), path=path, blocks=blocks)
            for l in range(source.layers)
        ]
        self._slots = self._whole.checked(source_slots, destination_slots)
        self._ahead = ahead
        self._chunk_pages = max(1, chunk_nbytes // self._whole.source.page_nbytes)
        self._lane = lane or _lane_for(self._whole)
        self._chunks: list[tuple[int, Mark]] = []  # pages until there, and when they are whole
        self._marks: list[Mark] = []  # of each layer, once committed
        self._pages = len(self._slots[0])  # that will come
        self._is_cut = False

    @property
    def layers(self) -> int:
        """Layers of each page."""
        return len(self._layers)

    @property
    def submitted(self) -> int:
        """Whole pages submitted before the commit: no cut takes them back."""
        return self._chunks[-1][0] if self._chunks else 0

    @property
    def whole(self) -> int:
        """Leading pages of which every layer lies in its slot now."""
        if self._marks and self._marks[-1].passed:
            return self._pages
        passed = [pages for pages, mark in self._chunks if mark.passed]
        return passed[-1] if passed else 0

    def advance(self) -> bool:
        """Submit the next chunk of whole pages; False when none was left.

        Raises:
            BodoCacheError: the copy was committed or cut.
        """
        self._check_open("advance")
        first = self.submitted
        if first == self._pages:
            return False
        end = min(first + self._chunk_pages, self._pages)
        self._lane.submit(self._whole, self._slots[0][first:end], self._slots[1][first:end])
        self._chunks.append((end, self._lane.mark()))
        return True

    def cut(self) -> None:
        """Submit nothing more: what has been :attr:`submitted` will be whole, nothing else.

        Raises:
            BodoCacheError: it was committed: the engine counts on every page.
        """
        self._check_open("cut")
        self._is_cut = True
        self._pages = self.submitted

    def commit(self, pages: int | None = None) -> None:
        """Bring the first ``pages`` (default: all), what is left of them layer by layer.

        Raises:
            BodoCacheError: the copy was committed or cut, or ``pages`` is not between
                :attr:`submitted` and all of them.
        """
        self._check_open("commit")
        pages = self._pages if pages is None else pages
        if not self.submitted <= pages <= self._pages:
            raise BodoCacheError(
                f"layerwise copy: commit of {pages} pages; expected {self.submitted} to"
                f" {self._pages}: those submitted are on their way"
            )
        self._pages = pages
        rest = [slots[self.submitted : pages] for slots in self._slots]
        for layer, copy in enumerate(self._layers):
            if self._ahead is not None and layer >= self._ahead:
                self._lane.hold_until(layer - self._ahead + 1)
            if len(rest[0]):
                self._lane.submit(copy, rest[0], rest[1])
            self._marks.append(self._lane.mark())

    def wait_layer(self, layer: int, stream: Stream | None = None) -> None:
        """Let ``stream`` (default: the current one) wait until ``layer`` of every page is there.

        Raises:
            BodoCacheError: nothing was committed, or there is no such layer.
        """
        self._lane.make_wait(stream, self._mark_of(layer))

    def layer_done(self, layer: int, stream: Stream | None = None) -> None:
        """The engine needs ``layer`` no more once what ``stream`` has been given has ended.

        Raises:
            BodoCacheError: nothing was committed, or there is no such layer.
        """
        self._mark_of(layer)
        if self._ahead is not None:
            self._lane.tell(layer + 1, stream)

    def drain(self) -> None:
        """Wait here until nothing can write to the destination any more.

        After a commit with ``ahead`` the engine must have said :meth:`layer_done` of the layers
        that the last ones wait for.
        """
        self._lane.drain()

    def _mark_of(self, layer: int) -> Mark:
        if not self._marks or not 0 <= layer < self.layers:
            raise BodoCacheError(
                f"layerwise copy: layer {layer} of {self.layers}; commit first, then 0 to"
                f" {self.layers - 1}"
            )
        return self._marks[layer]

    def _check_open(self, what: str) -> None:
        if self._marks or self._is_cut:
            done = "cut" if self._is_cut else "committed"
            raise BodoCacheError(f"layerwise copy: {what} after it was {done}")


class HostLane:
    """Copies between CPU pools, in this thread: each has ended when ``submit`` returns."""

    passed = True

    def submit(
        self, copy: PageCopy, source_slots: torch.Tensor, destination_slots: torch.Tensor
    ) -> None:
        """Copy now."""
        copy.run(source_slots, destination_slots)

    def mark(self) -> Mark:
        """Passed already."""
        return self

    def hold_until(self, count: int) -> None:
        """Nothing to hold: copies have ended by the time anyone could wait."""

    def tell(self, count: int, stream: Stream | None) -> None:
        """Nothing waits."""

    def make_wait(self, stream: Stream | None, mark: Mark) -> None:
        """Nothing to wait for."""

    def drain(self) -> None:
        """Nothing to wait for."""


class _Event:
    """A CUDA event as a mark."""

    __slots__ = ("event",)

    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    @property
    def passed(self) -> bool:
        return bool(self.event.query())  # type: ignore[no-untyped-call]


class CudaLane:
    """A stream of one GPU. A CUDA graph cannot capture it: it waits for a counter in memory.

    Unproven on a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        """Begin after what the current stream was given so far."""
        if torch.cuda.is_current_stream_capturing():
            raise BodoCacheError("layerwise copy: a CUDA graph cannot capture it; copy outside")
        self._device = device
        self._stream = _fresh_stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        self._counter = torch.zeros(1, dtype=torch.int32, device=device)
        self._counter.record_stream(self._stream)
        self._stream.wait_stream(torch.cuda.current_stream(device))  # the zero is written

    def submit(
        self, copy: PageCopy, source_slots: torch.Tensor, destination_slots: torch.Tensor
    ) -> None:
        """Copy on the stream."""
        copy.run(source_slots, destination_slots, stream=self._stream)

    def mark(self) -> Mark:
        """An event."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return _Event(event)

    def hold_until(self, count: int) -> None:
        """The stream waits for the counter, on the device."""
        driver = nvrtc.bindings("driver")
        flag = driver.CUstreamWaitValue_flags.CU_STREAM_WAIT_VALUE_GEQ.value
        address = self._counter.data_ptr()
        nvrtc.checked(
            "cuStreamWaitValue32",
            driver.cuStreamWaitValue32(self._stream.cuda_stream, address, count, flag),
        )

    def tell(self, count: int, stream: Stream | None) -> None:
        """The engine's stream writes the counter when it gets there."""
        driver = nvrtc.bindings("driver")
        engine = stream or torch.cuda.current_stream(self._device)
        flag = driver.CUstreamWriteValue_flags.CU_STREAM_WRITE_VALUE_DEFAULT.value
        address = self._counter.data_ptr()
        nvrtc.checked(
            "cuStreamWriteValue32",
            driver.cuStreamWriteValue32(engine.cuda_stream, address, count, flag),
        )

    def make_wait(self, stream: Stream | None, mark: Mark) -> None:
        """The engine's stream waits for the event."""
        assert isinstance(mark, _Event), "a mark of this lane"
        (stream or torch.cuda.current_stream(self._device)).wait_event(mark.event)

    def drain(self) -> None:
        """Wait for the stream."""
        self._stream.synchronize()


def _fresh_stream(device: torch.device) -> Stream:
    """A stream that is nobody else's: torch hands out 32 in turns, and one that waits for the
    engine must not be the engine's own. The driver destroys it once its work has ended.
    """
    driver = nvrtc.bindings("driver")
    flag = driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value
    with torch.cuda.device(device):
        torch.cuda.current_stream(device)  # the context exists and is current
        handle = nvrtc.checked("cuStreamCreate", driver.cuStreamCreate(flag))
    stream = torch.cuda.ExternalStream(int(handle), device)  # type: ignore[no-untyped-call]
    weakref.finalize(stream, driver.cuStreamDestroy, handle)
    return stream


def _lane_for(copy: PageCopy) -> Lane:
    device = copy.device
    return CudaLane(device) if check.on_gpu(device) and device.type != "cpu" else HostLane()
