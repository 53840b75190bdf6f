# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N802 -- it has the driver's names
"""A stand-in for the driver's calls that are made at their addresses: C functions into methods."""

import ctypes
from types import SimpleNamespace
from typing import Any

_P, _U, _N = ctypes.c_void_p, ctypes.c_uint, ctypes.c_size_t
_TYPES = {
    "cuCtxGetCurrent": (4000, (_P,)),
    "cuLaunchKernel": (4000, (_P, *(_U,) * 7, _P, _P, _P)),
    "cuMemcpyBatchAsync": (12080, (_P, _P, _P, _N, _P, _P, _N, _P, _P)),
}


class Result(SimpleNamespace):
    """A result code as cuda.bindings has them."""

    def __init__(self, name: str = "CUDA_SUCCESS", value: int = 0) -> None:
        super().__init__(name=name, value=value)


class ByAddress:
    """Gives out the addresses of ``at_NAME`` methods, which take what C hands over."""

    PRIMARY = 7000

    def __init__(self) -> None:
        self.contexts: list[int] = [0]
        self.kept: list[Any] = []

    def cuGetProcAddress(self, name: bytes, since: int, flags: int) -> tuple[Any, ...]:
        """Of the method ``at_NAME``; an error code where there is none."""
        version, types = _TYPES[name.decode()]
        assert (since, flags) == (version, 0)  # whose interface the caller was written for
        method = getattr(self, f"at_{name.decode()}", None)
        if method is None:
            return Result("CUDA_ERROR_NOT_FOUND", 500), 0, Result()
        self.kept.append(ctypes.CFUNCTYPE(ctypes.c_int, *types)(method))
        return Result(), ctypes.cast(self.kept[-1], _P).value, Result()

    def at_cuCtxGetCurrent(self, place: int) -> int:
        """Write the current one to ``place``."""
        ctypes.cast(place, ctypes.POINTER(_P))[0] = self.contexts[-1]
        return 0

    def at_cuLaunchKernel(self, *_: int | None) -> int:
        """Nothing."""
        return 0

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[Any, ...]:
        """A context a device."""
        return Result(), self.PRIMARY + device

    def cuDeviceGet(self, index: int) -> tuple[Any, ...]:
        """Its number."""
        return Result(), index

    def cuCtxGetCurrent(self) -> tuple[Any, ...]:
        """The last one pushed."""
        return Result(), self.contexts[-1]

    def cuCtxPushCurrent(self, context: int) -> tuple[Any, ...]:
        """On this thread's stack."""
        self.contexts.append(context)
        return (Result(),)

    def cuCtxPopCurrent(self) -> tuple[Any, ...]:
        """Off the stack."""
        return Result(), self.contexts.pop()
