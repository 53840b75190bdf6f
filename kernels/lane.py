# SPDX-License-Identifier: Apache-2.0
"""Where layer-wise copies run: in this thread, or on a stream of the GPU beside the engine's.

A stream of ours meets the engine's in events, and in one counter in pinned memory that it waits
for, which the engine's stream writes. Streams and counters are pooled, lent to one load at a time
and never freed: work in flight may still use them when the load's object is gone.
"""

import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch

from bodocache.errors import BodoCacheError
from bodocache.kernels import check, gpu
from bodocache.kernels.copy import PageCopy
from bodocache.kernels.select import CopyPath

Stream = torch.cuda.Stream
Event = torch.cuda.Event

_RELEASE_S = 1e-4  # between two writes of a counter that what is in flight may lower again


class Mark(Protocol):
    """A point in the work of a lane."""

    @property
    def passed(self) -> bool:
        """Whether all work before it has ended."""
        ...


class Lane(Protocol):
    """Where copies run, in the order in which they are submitted."""

    def submit(
        self,
        copy: PageCopy,
        path: CopyPath | None,
        source_slots: torch.Tensor,
        destination_slots: torch.Tensor,
    ) -> None:
        """Copy checked pages by ``path`` (None: between CPU pools), after all submitted before."""
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

    def follow(self, event: Event) -> None:
        """Begin nothing more until ``event`` of the engine's stream has passed."""
        ...

    def run(self, work: Callable[[], None]) -> None:
        """Do ``work``, which submits to the current stream, after all submitted before."""
        ...

    def release(self) -> None:
        """Hold nothing any more, whatever the engine tells; wait here until all has ended."""
        ...

    def drain(self) -> None:
        """Wait here until all that was submitted has ended."""
        ...


class HostLane:
    """Copies between CPU pools, in this thread: each has ended when ``submit`` returns."""

    passed = True

    def submit(
        self,
        copy: PageCopy,
        path: CopyPath | None,
        source_slots: torch.Tensor,
        destination_slots: torch.Tensor,
    ) -> None:
        """Copy now."""
        if path is None:
            copy.copy_on_host(source_slots, destination_slots)
        else:  # in Triton's interpreter
            copy.submit(path, source_slots, destination_slots)

    def mark(self) -> Mark:
        """Passed already."""
        return self

    def hold_until(self, count: int) -> None:
        """Nothing to hold: copies have ended by the time anyone could wait."""

    def tell(self, count: int, stream: Stream | None) -> None:
        """Nothing waits."""

    def make_wait(self, stream: Stream | None, mark: Mark) -> None:
        """Nothing to wait for."""

    def follow(self, event: Event) -> None:
        """What this thread computed has ended."""

    def run(self, work: Callable[[], None]) -> None:
        """Now."""
        work()

    def release(self) -> None:
        """Nothing is held."""

    def drain(self) -> None:
        """Nothing to wait for."""


def refuse_capture() -> None:
    """Raise BodoCacheError while a CUDA graph captures the current stream."""
    is_used: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if is_used and torch.cuda.is_current_stream_capturing():
        raise BodoCacheError("layerwise copy: a CUDA graph cannot capture it; copy outside")


class _Event:
    """A CUDA event as a mark."""

    __slots__ = ("event",)

    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    @property
    def passed(self) -> bool:
        return bool(self.event.query())  # type: ignore[no-untyped-call]


class _Track:
    """A stream of one GPU that is nobody else's, and the counter that it waits for.

    torch hands out 32 streams in turns, and one that waits for the engine must not be the engine's
    own.
    """

    def __init__(self, device: torch.device) -> None:
        driver = gpu.bindings("driver")
        flag = driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value
        with gpu.current_context(device):
            handle = gpu.checked("cuStreamCreate", driver.cuStreamCreate(flag))
        self.stream: Stream = torch.cuda.ExternalStream(int(handle), device)  # type: ignore[no-untyped-call]
        self._memory = torch.zeros(1, dtype=torch.int32).pin_memory()
        self.counter = self._memory.numpy()  # the host writes it without the driver: see release
        with gpu.current_context(device):
            returned = driver.cuMemHostGetDevicePointer(self._memory.data_ptr(), 0)
        self.address = int(gpu.checked("cuMemHostGetDevicePointer", returned))
        self.base = 0  # loads before this one counted up to here
        self.most = 0  # what this one counts up to
        self.ends: dict[int, torch.cuda.Event] = {}  # by stream: after the last that uses this

    def is_free(self) -> bool:
        """Whether nothing in flight reads or writes the counter any more."""
        return all(event.query() for event in self.ends.values())  # type: ignore[no-untyped-call]

    def note(self, stream: Stream) -> None:
        """Remember the point that ``stream`` has got to."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
        self.ends[stream.cuda_stream] = event

    def begin(self) -> None:
        """Count from nought again: nothing in flight waits for less than was waited for so far."""
        self.base, self.most = self.base + self.most, 0
        self.ends.clear()
        self.write(0)

    def write(self, count: int) -> None:
        """Set the counter from here."""
        self.counter[0] = _as_int32(self.base + count)


class _Pool:
    """Tracks that were lent before, by device."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[tuple[torch.device, _Track]] = []

    def borrow(self, device: torch.device) -> _Track:
        """One that is free, or a new one."""
        with self._lock:
            for i, (where, track) in enumerate(self._idle):
                if where == device and track.is_free():
                    del self._idle[i]
                    return track
        return _Track(device)

    def give_back(self, device: torch.device, track: _Track) -> None:
        """What was submitted to it may still be in flight."""
        self._idle.append((device, track))  # atomic; a finalizer may run while the lock is held


_pool = _Pool()


class CudaLane:
    """A stream of one GPU. A CUDA graph cannot capture it: it waits for a counter in memory."""

    def __init__(self, device: torch.device) -> None:
        """Begin after what the current stream was given so far."""
        refuse_capture()
        self._device = device
        self._track = _pool.borrow(device)
        weakref.finalize(self, _pool.give_back, device, self._track).atexit = False
        self._track.begin()
        self._track.stream.wait_stream(torch.cuda.current_stream(device))

    def submit(
        self,
        copy: PageCopy,
        path: CopyPath | None,
        source_slots: torch.Tensor,
        destination_slots: torch.Tensor,
    ) -> None:
        """Copy on the stream."""
        assert path is not None, "a path of the GPU"
        for index in (source_slots, destination_slots):
            if index.device.type != "cpu":
                index.record_stream(self._track.stream)
        with torch.cuda.stream(self._track.stream):
            copy.submit(path, source_slots, destination_slots)

    def mark(self) -> Mark:
        """An event."""
        self._track.note(self._track.stream)
        return _Event(self._track.ends[self._track.stream.cuda_stream])

    def hold_until(self, count: int) -> None:
        """The stream waits for the counter, on the device."""
        track = self._track
        track.most = max(track.most, count)
        driver = gpu.bindings("driver")
        flag = driver.CUstreamWaitValue_flags.CU_STREAM_WAIT_VALUE_GEQ.value  # modulo 2^32
        with gpu.current_context(self._device):
            returned = driver.cuStreamWaitValue32(
                track.stream.cuda_stream, track.address, (track.base + count) % 2**32, flag
            )
        gpu.checked("cuStreamWaitValue32", returned)

    def tell(self, count: int, stream: Stream | None) -> None:
        """The engine's stream writes the counter when it gets there."""
        driver = gpu.bindings("driver")
        engine = stream or torch.cuda.current_stream(self._device)
        flag = driver.CUstreamWriteValue_flags.CU_STREAM_WRITE_VALUE_DEFAULT.value
        reached = (self._track.base + count) % 2**32
        with gpu.current_context(self._device):
            returned = driver.cuStreamWriteValue32(
                engine.cuda_stream, self._track.address, reached, flag
            )
        gpu.checked("cuStreamWriteValue32", returned)
        self._track.note(engine)

    def make_wait(self, stream: Stream | None, mark: Mark) -> None:
        """The engine's stream waits for the event."""
        assert isinstance(mark, _Event), "a mark of this lane"
        (stream or torch.cuda.current_stream(self._device)).wait_event(mark.event)

    def follow(self, event: Event) -> None:
        """The stream waits for it, on the device."""
        self._track.stream.wait_event(event)

    def run(self, work: Callable[[], None]) -> None:
        """On the stream; what it allocates is the stream's."""
        with torch.cuda.stream(self._track.stream):
            work()

    def release(self) -> None:
        """Write the counter from here, and again: what the engine's stream was told to write may
        come later, and is less.
        """
        end = self.mark()
        while not end.passed:
            self._track.write(self._track.most)
            time.sleep(_RELEASE_S)

    def drain(self) -> None:
        """Wait for the stream."""
        self._track.stream.synchronize()


def lane_for(device: torch.device) -> Lane:
    """A stream of a GPU, or this thread where both sides are CPU pools."""
    return CudaLane(device) if check.on_gpu(device) and device.type != "cpu" else HostLane()


def _as_int32(value: int) -> Any:
    return (value + 2**31) % 2**32 - 2**31
