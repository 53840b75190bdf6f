# SPDX-License-Identifier: Apache-2.0
"""The CUDA driver through cuda-python, and torch's context of a device.

Importing this imports nothing of CUDA. What is missing (cuda-python, a driver, a device) is a
BackendUnavailable that says what to install; a call that fails is a BackendError.
"""

import contextlib
import functools
import importlib
from collections.abc import Iterator
from typing import Any

import torch

from bodocache.errors import BackendError, BackendUnavailable


def max_shared_nbytes(device: torch.device) -> int:
    """The most shared memory, static and dynamic, that a block may ask for on ``device``."""
    driver = cuda_driver()
    with current_context(device):
        number = checked("cuCtxGetDevice", driver.cuCtxGetDevice())
        attribute = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        return int(checked("cuDeviceGetAttribute", driver.cuDeviceGetAttribute(attribute, number)))


@contextlib.contextmanager
def current_context(device: torch.device) -> Iterator[None]:
    """Make torch's context of ``device`` this thread's; torch itself sets it only when it runs."""
    driver, primary = cuda_driver(), primary_context(device.index or 0)
    current = checked("cuCtxGetCurrent", driver.cuCtxGetCurrent())
    if int(current) == int(primary):
        yield
        return
    checked("cuCtxPushCurrent", driver.cuCtxPushCurrent(primary))
    try:
        yield
    finally:
        checked("cuCtxPopCurrent", driver.cuCtxPopCurrent())


def is_exclusive(device: torch.device) -> bool:
    """Whether ``device`` serves one process at a time (compute mode EXCLUSIVE_PROCESS).

    Asking makes no context. False where cuda-python or the driver is missing.
    """
    try:
        driver = cuda_driver()
    except BackendUnavailable:
        return False
    number = checked("cuDeviceGet", driver.cuDeviceGet(device.index or 0))
    attribute = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_MODE
    mode = checked("cuDeviceGetAttribute", driver.cuDeviceGetAttribute(attribute, number))
    return int(mode) == int(driver.CUcomputemode.CU_COMPUTEMODE_EXCLUSIVE_PROCESS)


def checked(call: str, returned: tuple[Any, ...]) -> Any:
    """What a call of cuda.bindings (driver, runtime or NVRTC) returned besides its result code.

    None, the value, or a tuple of several.

    Raises:
        BackendError: the code says the call failed.
    """
    result, *values = returned
    if result.value:
        raise BackendError(f"{call}: {result.name} ({result.value}){_explained(result)}")
    if not values:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def bindings(name: str) -> Any:
    """Module ``cuda.bindings.<name>``.

    Raises:
        BackendUnavailable: cuda-python is not installed.
    """
    try:
        return importlib.import_module(f"cuda.bindings.{name}")
    except ImportError as error:
        raise BackendUnavailable(
            f"cuda.bindings.{name} cannot be imported ({error}); pip install 'cuda-python>=12.8'"
        ) from error


@functools.cache
def cuda_driver() -> Any:
    """``cuda.bindings.driver``, initialised.

    Raises:
        BackendUnavailable: cuda-python, the driver or a GPU is missing.
    """
    driver = bindings("driver")
    try:
        (result,) = driver.cuInit(0)
    except RuntimeError as error:  # raised where libcuda.so.1 is not found
        raise BackendUnavailable(f"no CUDA driver ({error}); install NVIDIA's driver") from error
    if result.value:
        raise BackendUnavailable(f"cuInit: {result.name}; the driver sees no usable GPU")
    return driver


@functools.cache  # retained for good, as torch retains it
def primary_context(index: int) -> Any:
    """The context of device ``index`` that torch uses, too."""
    torch.cuda.init()  # type: ignore[no-untyped-call]  # its error says more than the driver's
    driver = cuda_driver()
    device = checked("cuDeviceGet", driver.cuDeviceGet(index))
    return checked("cuDevicePrimaryCtxRetain", driver.cuDevicePrimaryCtxRetain(device))


def _explained(result: Any) -> str:
    """What the driver says about a code of its own; nothing for those of other libraries."""
    if type(result).__name__ != "CUresult":
        return ""
    error, text = bindings("driver").cuGetErrorString(result)
    return "" if error.value else f": {text.decode()}"
