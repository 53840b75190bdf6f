# SPDX-License-Identifier: Apache-2.0
"""Batches of cuFile operations in flight, and every call of the library but the driver's own.

Used from one thread. A batch is of one transfer, so that a cancel hits nobody else; its memory is
the library's until each of its operations has reported a final status.
"""

import itertools
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache.io.gds import cufile
from bodocache.io.gds.cufile import BATCH_LIMIT, DESCRIPTOR, EVENTS, FINAL, PARAMS, TIMESPEC, CuFile
from bodocache.io.gds.device_memory import Region
from bodocache.io.gds.operations import Operation
from bodocache.io.transfer import BatchTransfer

_COOKIES = itertools.count(1)


class Event(NamedTuple):
    """The final word on one operation."""

    operation: Operation
    status: cufile.OpStatus
    result: int  # bytes, or -errno


class Flight:
    """One batch. ``is_unwanted`` is set by the loop, everything else by the thread."""

    __slots__ = (
        *("_params", "handle", "is_begun", "is_clean", "is_lost", "is_unwanted", "look_at_s"),
        *("operations", "transfer", "was_cancelled", "writes"),
    )

    def __init__(self, transfer: BatchTransfer, operations: Sequence[Operation]) -> None:
        self.transfer = transfer
        self.operations = {next(_COOKIES): operation for operation in operations}
        self.handle = 0
        self.is_begun = False  # the library took it
        self.is_clean = True  # its handle may serve again
        self.is_lost = False  # the library will not say what became of it
        self.is_unwanted = False  # abandoned, or late
        self.look_at_s = 0.0  # on time.monotonic: not before
        self.writes = operations[0].writes
        self.was_cancelled = False
        self._params = np.zeros(len(operations), PARAMS)

    def fill(self, file_handle: int) -> NDArray[np.void]:
        """What is to be submitted; kept until the flight ends."""
        params = self._params
        for row, (cookie, operation) in zip(params, self.operations.items(), strict=True):
            row["memory"] = operation.shared.region.address
            row["file_offset"] = operation.offset + operation.moved
            row["memory_offset"] = operation.memory_offset + operation.moved
            row["nbytes"] = operation.rest
            row["opcode"] = cufile.WRITE if operation.writes else cufile.READ
            row["cookie"] = cookie
        params["mode"] = cufile.BATCH_MODE
        params["handle"] = file_handle
        return params


class Session:
    """An open driver, one registered file, and the handles of batches."""

    def __init__(self, library: CuFile) -> None:
        self.library = library
        self._is_open = False
        self._file_handle = 0
        self._free_handles: list[int] = []
        self._regions: list[Region] = []

    def open(self, fd: int, *, compat: bool) -> None:
        """Open the driver and register the file that all operations are on."""
        cufile.open_driver(self.library, compat=compat)
        self._is_open = True
        descriptor = np.zeros(1, DESCRIPTOR)
        descriptor["type"], descriptor["fd"] = cufile.OPAQUE_FD, fd
        self._file_handle = self.library.handle_register(descriptor.ctypes.data)

    def begin(self, flight: Flight) -> None:
        """Submit ``flight``; it owns a handle of a batch from then on, whatever this raises."""
        for operation in flight.operations.values():
            self._register(operation.shared.region)
        flight.handle = (
            self._free_handles.pop()
            if self._free_handles
            else self.library.batch_io_set_up(BATCH_LIMIT)
        )
        params = flight.fill(self._file_handle)
        self.library.batch_io_submit(flight.handle, len(params), params.ctypes.data, 0)
        flight.is_begun = True

    def _register(self, region: Region) -> None:
        if not region.is_registered:
            self.library.buf_register(region.address, region.nbytes, 0)
            region.is_registered = True
            self._regions.append(region)

    def poll(self, flight: Flight, timeout_s: float) -> list[Event]:
        """Wait for an operation of ``flight`` to end, ``timeout_s`` at most; those that have."""
        count = np.array([len(flight.operations)], np.uint32)
        events = np.zeros(len(flight.operations), EVENTS)
        timeout = np.zeros(1, TIMESPEC)
        timeout["seconds"], fraction_s = divmod(timeout_s, 1)
        timeout["nanoseconds"] = int(fraction_s * 1e9)
        self.library.batch_io_get_status(
            *(flight.handle, 1, count.ctypes.data, events.ctypes.data, timeout.ctypes.data)
        )
        found = []
        for row in events[: int(count[0])]:
            status = cufile.OpStatus(int(row["status"]))
            if status & FINAL:
                operation = flight.operations.pop(int(row["cookie"]), None)
                if operation is not None:  # else the library says it twice
                    found.append(Event(operation, status, int(row["result"])))
        return found

    def cancel(self, flight: Flight) -> None:
        """Ask for an end of ``flight``. A hint: its operations still report what became of them."""
        flight.was_cancelled, flight.is_clean = True, False
        with suppress(self.library.cuFileError):
            self.library.batch_io_cancel(flight.handle)

    def end(self, flight: Flight) -> None:
        """Take back the handle of ``flight``, of which nothing is in flight any more."""
        if not flight.handle:
            return
        if flight.is_clean:
            self._free_handles.append(flight.handle)
        else:
            with suppress(self.library.cuFileError):
                self.library.batch_io_destroy(flight.handle)
        flight.handle = 0

    def close(self) -> None:
        """Give everything back, all of it even where some of it fails; nothing is in flight."""
        if not self._is_open:
            return
        with ExitStack() as stack:
            stack.callback(cufile.close_driver, self.library)
            if self._file_handle:
                stack.callback(self.library.handle_deregister, self._file_handle)
            for region in self._regions:
                stack.callback(self.library.buf_deregister, region.address)
                region.is_registered = False
            for handle in self._free_handles:
                stack.callback(self.library.batch_io_destroy, handle)
