# SPDX-License-Identifier: Apache-2.0
"""The system calls of compiled code, and calls of C functions at addresses.

Preadv and pwritev are called by addresses that a test may replace (:data:`calls`), the rest by
name.
"""

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from bodocache import jit

EINTR, EINVAL = 4, 22
READ, WRITE = 0, 1  # indices into the addresses of SystemCalls
_I32, _I64 = ir.IntType(32), ir.IntType(64)

sem_init: Any = jit.external("sem_init", types.int32, types.int64, types.int32, types.uint32)
sem_wait: Any = jit.external("sem_wait", types.int32, types.int64)
sem_post: Any = jit.external("sem_post", types.int32, types.int64)
mutex_lock: Any = jit.external("pthread_mutex_lock", types.int32, types.int64)
mutex_unlock: Any = jit.external("pthread_mutex_unlock", types.int32, types.int64)
write: Any = jit.external("write", types.int64, types.int32, types.int64, types.uint64)
_errno_location: Any = jit.external("__errno_location", types.int64)


def _call_vectored(
    typingctx: Any,  # noqa: ARG001
    function: Any,  # noqa: ARG001
    fd: Any,  # noqa: ARG001
    iov: Any,  # noqa: ARG001
    count: Any,  # noqa: ARG001
    offset: Any,  # noqa: ARG001
) -> Any:
    def emit(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        address, fd, iov, count, offset = arguments
        kind = ir.FunctionType(_I64, [_I32, _I64, _I32, _I64])
        function = builder.inttoptr(address, kind.as_pointer())
        narrow = (builder.trunc(fd, _I32), iov, builder.trunc(count, _I32), offset)
        return builder.call(function, narrow)

    return types.int64(*[types.int64] * 5), emit


def _call_back(
    typingctx: Any,  # noqa: ARG001
    function: Any,  # noqa: ARG001
    argument: Any,  # noqa: ARG001
    values: Any,  # noqa: ARG001
    count: Any,  # noqa: ARG001
) -> Any:
    def emit(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_I64] * 3)
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), emit


call_vectored: Any = intrinsic(_call_vectored)  # ssize_t function(int fd, iov, int count, off_t)
call_back: Any = intrinsic(_call_back)  # void function(int64 argument, int64 values, int64 count)
_int32_at = jit.pointer_to(types.int32)


@jit.compiled()
def errno() -> Any:
    """The calling thread's errno."""
    return np.int64(carray(_int32_at(_errno_location()), 1)[0])


class SystemCalls:
    """Addresses of ``ssize_t call(int fd, iovec *, int count, off_t)``; set by tests only."""

    def __init__(self) -> None:
        self._addresses = np.zeros(2, np.int64)

    @property
    def address(self) -> int:
        """Where compiled code reads them: int64[2], READ and WRITE."""
        if not self._addresses.all():
            libc = ctypes.CDLL(None)
            for index, function in ((READ, libc.preadv), (WRITE, libc.pwritev)):
                place = ctypes.cast(function, ctypes.c_void_p).value
                self._addresses[index] = int(self._addresses[index]) or place or 0
        return int(self._addresses.ctypes.data)

    @property
    def preadv(self) -> int:
        """What reads."""
        return self._get(READ)

    @preadv.setter
    def preadv(self, address: int) -> None:
        self._addresses[READ] = address

    @property
    def pwritev(self) -> int:
        """What writes."""
        return self._get(WRITE)

    @pwritev.setter
    def pwritev(self, address: int) -> None:
        self._addresses[WRITE] = address

    def _get(self, index: int) -> int:
        assert self.address
        return int(self._addresses[index])


calls = SystemCalls()
