# SPDX-License-Identifier: Apache-2.0
"""What we use of cuFile (``cuda.bindings.cufile``): its structs, its functions, its driver.

The only module that imports the bindings, and it does so in :func:`load` alone. Nothing here may be
used in a forked child: cuFile is undefined there.
"""

import importlib
import threading
from collections.abc import Callable
from enum import IntFlag
from typing import NamedTuple, Protocol, cast

import numpy as np

from bodocache.errors import BackendUnavailable

BATCH_LIMIT = 128  # operations of one batch
MAX_REQUEST_NBYTES = 16 << 20  # of one operation

# CUfileIOParams_t, CUfileIOEvents_t and CUfileDescr_t, byte by byte.
PARAMS = np.dtype(
    {
        "names": [
            *("mode", "memory", "file_offset", "memory_offset", "nbytes"),
            *("handle", "opcode", "cookie"),
        ],
        "formats": ["<i4", "<i8", "<i8", "<i8", "<u8", "<i8", "<i4", "<i8"],
        "offsets": [0, 8, 16, 24, 32, 40, 48, 56],
        "itemsize": 64,
    }
)
EVENTS = np.dtype(
    {
        "names": ["cookie", "status", "result"],
        "formats": ["<i8", "<i4", "<i8"],  # ret is a size_t that holds -errno: signed here
        "offsets": [0, 8, 16],
        "itemsize": 24,
    }
)
DESCRIPTOR = np.dtype(
    {
        "names": ["type", "fd", "fs_ops"],
        "formats": ["<i4", "<i4", "<i8"],
        "offsets": [0, 8, 16],
        "itemsize": 24,
    }
)
TIMESPEC = np.dtype([("seconds", "<i8"), ("nanoseconds", "<i8")])
BATCH_MODE, OPAQUE_FD = 1, 1
READ, WRITE = 0, 1  # opcodes
FORCE_COMPAT_MODE = 2  # a parameter: plain reads and writes through host memory
ALREADY_OPEN = 5026  # an error: somebody else in this process has opened the driver


class OpStatus(IntFlag):
    """CUfileStatus_t of one operation."""

    WAITING = 1
    PENDING = 2
    INVALID = 4
    CANCELED = 8
    COMPLETE = 16
    TIMEOUT = 32
    FAILED = 64


FINAL = (
    OpStatus.INVALID | OpStatus.CANCELED | OpStatus.COMPLETE | OpStatus.TIMEOUT | OpStatus.FAILED
)


class CuFile(Protocol):
    """The functions of ``cuda.bindings.cufile`` that we call; pointers are addresses.

    Each raises ``cuFileError``, with the library's code in ``status``.
    """

    @property
    def cuFileError(self) -> type[Exception]:  # noqa: N802 -- theirs
        """What the functions raise."""
        ...

    def driver_open(self) -> None:
        """Begin to use the library. Spins for ever without libcuda.so.1 or without a device."""
        ...

    def driver_close(self) -> None:
        """End it."""
        ...

    def set_parameter_bool(self, param: int, value: bool) -> None:  # noqa: FBT001 -- theirs
        """Set a parameter of the whole process, before the driver is opened."""
        ...

    def handle_register(self, descr: int) -> int:
        """A handle of the open file in DESCRIPTOR[1] at ``descr``."""
        ...

    def handle_deregister(self, fh: int) -> None:
        """Forget a file."""
        ...

    def buf_register(self, buf_ptr_base: int, length: int, flags: int) -> None:
        """Pin memory for direct transfers."""
        ...

    def buf_deregister(self, buf_ptr_base: int) -> None:
        """Unpin it."""
        ...

    def batch_io_set_up(self, nr: int) -> int:
        """A batch for at most ``nr`` operations at once."""
        ...

    def batch_io_submit(self, batch_idp: int, nr: int, iocbp: int, flags: int) -> None:
        """Begin PARAMS[nr] at ``iocbp``, which stay there until all have ended."""
        ...

    def batch_io_get_status(
        self, batch_idp: int, min_nr: int, nr: int, iocbp: int, timeout: int
    ) -> None:
        """Wait for ``min_nr`` events or until TIMESPEC[1] at ``timeout`` has passed.

        uint32[1] at ``nr`` says how many fit in EVENTS at ``iocbp``, then how many there are.
        """
        ...

    def batch_io_cancel(self, batch_idp: int) -> None:
        """Ask for an end of what is in flight: a hint; each operation still reports its status."""
        ...

    def batch_io_destroy(self, batch_idp: int) -> None:
        """Free a batch of which nothing is in flight."""
        ...


class Library(NamedTuple):
    """cuFile, and what a thread must do before it calls it."""

    cufile: CuFile
    bind: Callable[[], None]


def load(device: int) -> Library:
    """The real library, for threads that work on ``device``.

    Raises:
        BackendUnavailable: the bindings are not installed.
    """
    try:
        cufile = cast("CuFile", importlib.import_module("cuda.bindings.cufile"))
        runtime = importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise BackendUnavailable(f"gds: {error}; pip install 'bodocache[cuda]'") from error

    def bind() -> None:
        (code,) = runtime.cudaSetDevice(device)
        if int(code):
            raise BackendUnavailable(f"gds: CUDA device {device}: {code.name}")

    return Library(cufile, bind)


class _Users:
    """Who has the driver open. It is one of the whole process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.counts: dict[int, int] = {}  # by id of the module, which its users keep alive
        self.foreign: set[int] = set()  # opened by somebody else, who closes it


_users = _Users()


def open_driver(cufile: CuFile, *, compat: bool) -> None:
    """Open the driver unless this process has; ``compat`` counts for the first of them alone."""
    with _users.lock:
        if not _users.counts.get(id(cufile)):
            if compat:
                cufile.set_parameter_bool(FORCE_COMPAT_MODE, True)  # noqa: FBT003 -- theirs
            try:
                cufile.driver_open()
            except cufile.cuFileError as error:
                if getattr(error, "status", 0) != ALREADY_OPEN:
                    raise
                _users.foreign.add(id(cufile))
        _users.counts[id(cufile)] = _users.counts.get(id(cufile), 0) + 1


def close_driver(cufile: CuFile) -> None:
    """Close it behind its last user."""
    with _users.lock:
        _users.counts[id(cufile)] -= 1
        if _users.counts[id(cufile)]:
            return
        del _users.counts[id(cufile)]
        if id(cufile) in _users.foreign:
            _users.foreign.discard(id(cufile))
        else:
            cufile.driver_close()
