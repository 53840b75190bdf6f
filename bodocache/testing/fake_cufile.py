# SPDX-License-Identifier: Apache-2.0
"""A strict stand-in for the module ``cuda.bindings.cufile``: it proves nothing about GPUs.

Same names, same signatures, same structs at the same addresses; host memory plays the device's.
Operations move real bytes between a file and memory, in a thread and in no order. What the real
library would refuse is refused, and so is what it would let pass to our harm: unregistered memory,
cookies in use, batches destroyed in flight.
"""

import ctypes
import fcntl
import os
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bodocache.io.gds.cufile import (
    BATCH_LIMIT,
    BATCH_MODE,
    DESCRIPTOR,
    EVENTS,
    FORCE_COMPAT_MODE,
    MAX_REQUEST_NBYTES,
    OPAQUE_FD,
    PARAMS,
    READ,
    TIMESPEC,
    WRITE,
    Library,
    OpStatus,
)
from bodocache.testing.cufile_faults import CallFault, Code, CuFileError, OpFault, Trouble

ALIGNMENT = 4096


@dataclass(slots=True)
class _Op:
    """One operation in flight."""

    params: np.void
    number: int
    trouble: OpFault | None
    status: OpStatus = OpStatus.PENDING
    result: int = 0
    is_running: bool = False


class _Batch:
    """A batch's capacity, and what of it nobody was told the end of."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.ops: list[_Op] = []


class FakeCuFile:
    """The module. ``violations`` is what no caller may ever do; ``leaks`` is filled at close."""

    cuFileError = CuFileError  # noqa: N815 -- theirs

    def __init__(
        self,
        faults: Sequence[OpFault | CallFault] = (),
        *,
        seed: int = 0,
        tells_of_pending: bool = False,
    ) -> None:
        """``tells_of_pending``: a status call also reports operations that have not ended."""
        self.faults = list(faults)
        self.violations: list[str] = []
        self.leaks: list[str] = []
        self.submitted: list[list[np.void]] = []  # PARAMS of every batch, in order
        self.cancels = self.fired = 0  # calls; faults
        self._tells_of_pending = tells_of_pending
        self._random = random.Random(seed)  # noqa: S311 -- an order, no secret
        self._changed = threading.Condition()
        self.calls: dict[str, int] = {}  # function -> how often it was called
        self._is_open = self._is_compat = False
        self._process = 0
        self._files: dict[int, int] = {}  # handle -> fd
        self._memory: dict[int, int] = {}  # address -> bytes
        self._batches: dict[int, _Batch] = {}
        self._last_handle = 0x1000
        self._count = 0  # of operations
        self._is_released = False
        self._thread: threading.Thread | None = None

    @property
    def library(self) -> Library:
        """As :meth:`bodocache.io.gds.backend.GdsBackend.open` takes it."""
        return Library(self, lambda: None)

    @property
    def in_flight(self) -> int:
        """Operations that were submitted and have not ended."""
        with self._changed:
            ops = [op for batch in self._batches.values() for op in batch.ops]
            return sum(op.status is OpStatus.PENDING for op in ops)

    @property
    def registered(self) -> dict[int, int]:
        """Registered memory: address -> bytes."""
        return dict(self._memory)

    def release(self) -> None:
        """Let operations that are STUCK go on, those still to come too."""
        with self._changed:
            self._is_released = True
            self._changed.notify_all()

    def driver_open(self) -> None:
        """Begin; the thread that moves bytes is alive until the driver is closed."""
        self._count_call("driver_open")
        self._require(not self._is_open, Code.DRIVER_ALREADY_OPEN, "driver_open, twice")
        self._is_open = True
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._work, name="fake-cufile", daemon=True)
        self._thread.start()

    def driver_close(self) -> None:
        """End, and note what was not given back."""
        self._enter("driver_close")
        self.leaks += [f"file handle {handle:#x}" for handle in self._files]
        self.leaks += [f"registered memory {address:#x}" for address in self._memory]
        self.leaks += [f"batch {handle:#x}" for handle in self._batches]
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def set_parameter_bool(self, param: int, value: bool) -> None:  # noqa: FBT001 -- theirs
        """Only FORCE_COMPAT_MODE: files need no O_DIRECT then."""
        self._count_call("set_parameter_bool")
        self._require(not self._is_open, Code.DRIVER_ALREADY_OPEN, "set before driver_open")
        self._require(param == FORCE_COMPAT_MODE, Code.INVALID_VALUE, f"parameter {param}")
        self._is_compat = value

    def handle_register(self, descr: int) -> int:
        """Register an open file."""
        self._enter("handle_register")
        row = _records(descr, 1, DESCRIPTOR)[0]
        fd = int(row["fd"])
        self._require(row["type"] == OPAQUE_FD, Code.INVALID_FILE_TYPE, f"type {row['type']}")
        self._require(row["fs_ops"] == 0, Code.INVALID_VALUE, "fs_ops of an OPAQUE_FD")
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        direct = self._is_compat or bool(flags & os.O_DIRECT)
        self._require(direct, Code.DIO_NOT_SET, f"fd {fd} without O_DIRECT")
        known = fd in self._files.values()
        self._require(not known, Code.HANDLE_ALREADY_REGISTERED, f"fd {fd}")
        handle = self._next_handle()
        self._files[handle] = fd
        return handle

    def handle_deregister(self, fh: int) -> None:
        """Forget a file."""
        self._enter("handle_deregister")
        self._require(fh in self._files, Code.HANDLE_NOT_REGISTERED, f"handle {fh:#x}")
        self._require_idle(f"handle {fh:#x} deregistered", lambda params: params["handle"] == fh)
        del self._files[fh]

    def buf_register(self, buf_ptr_base: int, length: int, flags: int) -> None:
        """Register memory."""
        self._enter("buf_register")
        good = length > 0 and not buf_ptr_base % ALIGNMENT and flags in {0, 1}
        self._require(good, Code.INVALID_VALUE, f"{length} bytes at {buf_ptr_base:#x}")
        overlaps = any(
            start < buf_ptr_base + length and buf_ptr_base < start + nbytes
            for start, nbytes in self._memory.items()
        )
        self._require(not overlaps, Code.MEMORY_ALREADY_REGISTERED, f"{buf_ptr_base:#x}")
        self._memory[buf_ptr_base] = length

    def buf_deregister(self, buf_ptr_base: int) -> None:
        """Forget memory."""
        self._enter("buf_deregister")
        known = buf_ptr_base in self._memory
        self._require(known, Code.MEMORY_NOT_REGISTERED, f"{buf_ptr_base:#x}")
        said = f"memory {buf_ptr_base:#x} deregistered"
        self._require_idle(said, lambda params: params["memory"] == buf_ptr_base)
        del self._memory[buf_ptr_base]

    def batch_io_set_up(self, nr: int) -> int:
        """Make a batch."""
        self._enter("batch_io_set_up")
        self._require(0 < nr <= BATCH_LIMIT, Code.INVALID_VALUE, f"a batch of {nr}")
        with self._changed:
            handle = self._next_handle()
            self._batches[handle] = _Batch(nr)
        return handle

    def batch_io_submit(self, batch_idp: int, nr: int, iocbp: int, flags: int) -> None:
        """Begin operations; all of them or, where one is refused, none."""
        self._enter("batch_io_submit")
        batch = self._batch(batch_idp, Code.INTERNAL_BATCH_SUBMIT_ERROR)
        self._require(flags == 0 and nr > 0, Code.INVALID_VALUE, f"{nr} operations, flags {flags}")
        with self._changed:
            full = len(batch.ops) + nr > batch.capacity
            self._require(not full, Code.BATCH_FULL, f"{nr} more than {len(batch.ops)}")
            rows = [np.void(row) for row in _records(iocbp, nr, PARAMS)]
            for row in rows:
                self._check_operation(row)
            cookies = [int(op.params["cookie"]) for op in self._all_ops()]
            cookies += [int(row["cookie"]) for row in rows]
            unique = len(set(cookies)) == len(cookies)
            self._require(unique, Code.INVALID_VALUE, "a cookie that is in use")
            self.submitted.append(rows)
            for row in rows:
                hit = [f for f in self.faults if isinstance(f, OpFault) and f.hits(self._count)]
                self.fired += bool(hit)
                batch.ops.append(_Op(row, self._count, hit[0] if hit else None))
                self._count += 1
            self._changed.notify_all()

    def batch_io_get_status(
        self, batch_idp: int, min_nr: int, nr: int, iocbp: int, timeout: int
    ) -> None:
        """Report what has ended, each operation once; wait for ``min_nr`` until ``timeout``."""
        self._enter("batch_io_get_status")
        batch = self._batch(batch_idp, Code.INTERNAL_BATCH_GETSTATUS_ERROR)
        count = _records(nr, 1, np.dtype("<u4"))
        room = int(count[0])
        good = min_nr <= room <= batch.capacity
        self._require(good, Code.INVALID_VALUE, f"min_nr {min_nr}, nr {room}")
        timeout_s = None
        if timeout:
            row = _records(timeout, 1, TIMESPEC)[0]
            valid = row["seconds"] >= 0 and 0 <= row["nanoseconds"] < 10**9
            self._require(bool(valid), Code.INVALID_VALUE, f"timespec {row}")
            timeout_s = float(row["seconds"]) + float(row["nanoseconds"]) / 1e9
        with self._changed:
            self._changed.wait_for(lambda: len(_ended(batch)) >= min_nr, timeout_s)
            ended = _ended(batch)[:room]
            told = ended + [op for op in batch.ops if op.status is OpStatus.PENDING]
            told = told[:room] if self._tells_of_pending else ended
            events = _records(iocbp, room, EVENTS)
            for i, op in enumerate(told):
                events[i] = (op.params["cookie"], int(op.status), op.result)
            count[0] = len(told)
            batch.ops = [op for op in batch.ops if op not in ended]

    def batch_io_cancel(self, batch_idp: int) -> None:
        """A hint: what has not begun may end as CANCELED, or may go on."""
        self._enter("batch_io_cancel")
        batch = self._batch(batch_idp, Code.INTERNAL_BATCH_CANCEL_ERROR)
        with self._changed:
            self.cancels += 1
            for op in batch.ops:
                idle = op.status is OpStatus.PENDING and not op.is_running
                if idle and op.trouble is None and self._random.random() < 0.5:
                    op.status = OpStatus.CANCELED
            self._changed.notify_all()

    def batch_io_destroy(self, batch_idp: int) -> None:
        """Free a batch."""
        self._enter("batch_io_destroy")
        batch = self._batch(batch_idp, Code.INVALID_VALUE)
        if any(op.status is OpStatus.PENDING for op in batch.ops):
            self.violations.append(f"batch {batch_idp:#x} destroyed in flight")
        with self._changed:
            del self._batches[batch_idp]

    def _work(self) -> None:
        """Do operations one at a time, in no order, until the driver is closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._is_open or self._able())
                if not self._is_open:
                    return
                op = self._random.choice(self._able())
                op.is_running = True
            status, result = self._perform(op)
            with self._changed:
                op.status, op.result, op.is_running = status, result, False
                self._changed.notify_all()

    def _able(self) -> list[_Op]:
        """Operations that may be done now."""
        return [
            op
            for op in self._all_ops()
            if op.status is OpStatus.PENDING
            and (self._is_released or op.trouble is None or op.trouble.trouble != Trouble.STUCK)
        ]

    def _perform(self, op: _Op) -> tuple[OpStatus, int]:
        params, fault = op.params, op.trouble
        nbytes, beyond = int(params["nbytes"]), 0
        if fault is not None and fault.trouble is Trouble.SHORT:
            beyond = min(nbytes, fault.value) % ALIGNMENT  # O_DIRECT cannot: said, not moved
            nbytes = min(nbytes, fault.value) - beyond
        elif fault is not None and fault.trouble is Trouble.FAILED:
            return OpStatus.FAILED, -fault.value
        elif fault is not None and fault.trouble is not Trouble.STUCK:
            return OpStatus[fault.trouble.name], 0
        address = int(params["memory"]) + int(params["memory_offset"])
        memory = memoryview((ctypes.c_char * nbytes).from_address(address)).cast("B")
        fd, offset = self._files[int(params["handle"])], int(params["file_offset"])
        call = os.preadv if params["opcode"] == READ else os.pwritev
        try:
            moved = call(fd, [memory], offset) if nbytes else 0
        except OSError as error:
            return OpStatus.FAILED, -(error.errno or 0)
        return OpStatus.COMPLETE, moved + beyond

    def _check_operation(self, row: np.void) -> None:
        """Refuse what the library would, and what it would not notice."""
        start, nbytes = int(row["memory_offset"]), int(row["nbytes"])
        base, offset = int(row["memory"]), int(row["file_offset"])
        require, invalid = self._require, Code.INVALID_VALUE
        require(row["mode"] == BATCH_MODE, invalid, f"mode {row['mode']}")
        require(row["opcode"] in {READ, WRITE}, invalid, f"opcode {row['opcode']}")
        handle = int(row["handle"])
        require(handle in self._files, Code.HANDLE_NOT_REGISTERED, f"handle {handle:#x}")
        require(base in self._memory, Code.MEMORY_NOT_REGISTERED, f"memory {base:#x}")
        inside = start >= 0 and start + nbytes <= self._memory[base]
        require(inside, invalid, f"{nbytes} bytes at {start} of {self._memory[base]}")
        require(0 < nbytes <= MAX_REQUEST_NBYTES, invalid, f"{nbytes} bytes")
        aligned = not (offset % ALIGNMENT or start % ALIGNMENT or nbytes % ALIGNMENT)
        require(aligned and offset >= 0, invalid, f"unaligned: {offset}, {start}, {nbytes}")

    def _enter(self, function: str) -> None:
        """Note a call that needs the driver."""
        self._count_call(function)
        self._require(self._is_open, Code.DRIVER_NOT_INITIALIZED, function)
        self._require(os.getpid() == self._process, Code.INVALID_VALUE, f"{function} after fork")

    def _count_call(self, function: str) -> None:
        number = self.calls.get(function, 0)
        self.calls[function] = number + 1
        for fault in self.faults:
            if isinstance(fault, CallFault) and fault.hits(function, number):
                self.fired += 1
                raise CuFileError(fault.code, "injected")

    def _require(self, good: bool, code: Code, said: str) -> None:  # noqa: FBT001 -- a condition
        if not good:
            self.violations.append(f"{code.name}: {said}")
            raise CuFileError(code, said)

    def _require_idle(self, said: str, concerns: Callable[[np.void], bool]) -> None:
        with self._changed:
            busy = [op for op in self._all_ops() if op.status is OpStatus.PENDING]
        if any(concerns(op.params) for op in busy):
            self.violations.append(f"{said} in flight")

    def _batch(self, handle: int, code: Code) -> _Batch:
        self._require(handle in self._batches, code, f"batch {handle:#x} is not set up")
        return self._batches[handle]

    def _all_ops(self) -> list[_Op]:
        return [op for batch in self._batches.values() for op in batch.ops]

    def _next_handle(self) -> int:
        self._last_handle += 16
        return self._last_handle


def _ended(batch: _Batch) -> list[_Op]:
    return [op for op in batch.ops if op.status is not OpStatus.PENDING]


def _records(address: int, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The records in memory at ``address``; writing to them writes there."""
    memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    return np.ndarray(count, dtype, buffer=memoryview(memory).cast("B"))
