# SPDX-License-Identifier: Apache-2.0
"""The driver's calls that every copy makes, called at their addresses.

cuda-python wraps what they take in objects, one for each address of a batch, and looks contexts up
by objects, too: 15 us of a launch, and 1.5 us of each run of a batch (H100 machine, measured as
what was left of a call without them). The addresses come from the driver itself, for the interface
of CUDA 12.8 and earlier, which later drivers keep.
"""

import ctypes
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from bodocache.errors import BackendUnavailable
from bodocache.kernels import gpu

Addresses = NDArray[np.int64]

_MOST_PARAMETERS = 48
# Triton's kernels take pointers to scratch memory behind what they were written with: none here.
_HIDDEN = 4


class _Location(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int), ("id", ctypes.c_int))


class _Attributes(ctypes.Structure):
    """CUmemcpyAttributes."""

    _fields_ = (
        ("source_access_order", ctypes.c_int),
        ("source_hint", _Location),
        ("destination_hint", _Location),
        ("flags", ctypes.c_uint),
    )


_ORDER_STREAM, _OVERLAP_WITH_COMPUTE = 1, 1  # CUmemcpySrcAccessOrder and CUmemcpyFlags
_ATTRIBUTES = _Attributes(source_access_order=_ORDER_STREAM, flags=_OVERLAP_WITH_COMPUTE)
_OF_ALL = ctypes.c_size_t(0)  # the attributes hold from the first copy on

_Call = Callable[..., int]


class _Calls(NamedTuple):
    get_context: _Call
    launch: _Call
    copy_batch: _Call | None  # None where the driver is older than CUDA 12.8


class _Parameters(threading.local):
    """Room for a launch's parameters: the driver copies them before a call returns."""

    def __init__(self) -> None:
        self.values = (ctypes.c_int64 * _MOST_PARAMETERS)()
        first, step = ctypes.addressof(self.values), ctypes.sizeof(ctypes.c_int64)
        self.places = (ctypes.c_void_p * _MOST_PARAMETERS)(
            *(first + i * step for i in range(_MOST_PARAMETERS))
        )
        self.address = ctypes.addressof(self.places)


_parameters = _Parameters()


def launch(
    device: torch.device, function: int, shape: tuple[int, int, int], values: Sequence[int]
) -> None:
    """Launch a kernel on torch's current stream of ``device``.

    Args:
        device: where ``function`` was loaded.
        function: a CUfunction.
        shape: blocks, threads of a block, bytes of dynamic shared memory.
        values: its parameters, each an integer or an address.

    Raises:
        BackendError: the driver refused the launch, or an earlier kernel failed.
    """
    room, count = _parameters, len(values)
    room.values[: count + _HIDDEN] = [*values, *(0,) * _HIDDEN]
    launch_at(device, function, shape, room.address, current_stream(device))


def launch_at(
    device: torch.device,
    function: int,
    shape: tuple[int, int, int],
    parameters: int,
    stream: int,
) -> None:
    """As :func:`launch`, on ``stream``, for an address of addresses of parameters."""
    blocks, threads, shared_nbytes = shape
    arguments = (function, blocks, 1, 1, threads, 1, 1, shared_nbytes, stream, parameters, None)
    _do("cuLaunchKernel", _calls().launch, device, arguments)


def copy_batch(
    device: torch.device, sources: Addresses, targets: Addresses, nbytes: Addresses, stream: int
) -> bool:
    """Hand copies to the driver in one call; False where it takes no batches.

    Args:
        device: whose context is made current.
        sources: int64[n], contiguous, n >= 1; so are the others.
        targets: where each copy goes.
        nbytes: of each copy.
        stream: not the legacy one.

    Raises:
        BackendError: the driver refused.
    """
    call = _calls().copy_batch
    if call is None:
        return False
    failed = ctypes.c_size_t(0)
    places = (column.__array_interface__["data"][0] for column in (targets, sources, nbytes))
    of_all = (ctypes.byref(_ATTRIBUTES), ctypes.byref(_OF_ALL), 1)
    arguments = (*places, len(nbytes), *of_all, ctypes.byref(failed), stream)
    _do("cuMemcpyBatchAsync", call, device, arguments)
    return True


def current_stream(device: torch.device) -> int:
    """Torch's current stream of ``device``, as the driver knows it."""
    if _raw_stream is None:
        return int(torch.cuda.current_stream(device).cuda_stream)
    index = torch.cuda.current_device() if device.index is None else device.index
    return int(_raw_stream(index))


# What Triton asks, too: a tenth of the time that an object for the stream takes.
_raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # noqa: SLF001 -- see above


def _do(name: str, call: _Call, device: torch.device, arguments: tuple[Any, ...]) -> None:
    """Call the driver in torch's context of ``device``; BackendError where it refuses."""
    if _is_current(device):
        code = call(*arguments)
    else:
        with gpu.current_context(device):
            code = call(*arguments)
    if code:
        gpu.checked(name, (gpu.cuda_driver().CUresult(code),))


def _is_current(device: torch.device) -> bool:
    """Whether torch's context of ``device`` is this thread's."""
    found = ctypes.c_void_p()
    _calls().get_context(ctypes.byref(found))
    return found.value == _primary(device.index or 0)


@functools.cache
def _primary(index: int) -> int:
    return int(gpu.primary_context(index))


@functools.cache
def _calls() -> _Calls:
    pointer, number, size = ctypes.c_void_p, ctypes.c_uint, ctypes.c_size_t
    launched = (pointer, *(number,) * 7, pointer, pointer, pointer)
    copied = (*(pointer,) * 3, size, pointer, pointer, size, pointer, pointer)
    return _Calls(
        _required("cuCtxGetCurrent", 4000, (pointer,)),
        _required("cuLaunchKernel", 4000, launched),
        _found("cuMemcpyBatchAsync", 12080, copied),
    )


def _required(name: str, since: int, types: tuple[Any, ...]) -> _Call:
    call = _found(name, since, types)
    if call is None:
        raise BackendUnavailable(f"the CUDA driver has no {name}; install a newer one")
    return call


def _found(name: str, since: int, types: tuple[Any, ...]) -> _Call | None:
    """The driver's function, of CUDA ``since``'s interface; it runs without Python's lock."""
    driver = gpu.cuda_driver()
    result, address, *_ = driver.cuGetProcAddress(name.encode(), since, 0)
    if result.value or not int(address):
        return None
    function: _Call = ctypes.CFUNCTYPE(ctypes.c_int, *types)(int(address))
    return function
