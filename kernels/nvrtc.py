# SPDX-License-Identifier: Apache-2.0
"""CUDA C++ of ``csrc``: compiled by NVRTC (no GPU needed), kept on disk, launched by the driver.

Importing this imports nothing of CUDA. What is missing (cuda-python, NVRTC, a driver, a device) is
a BackendUnavailable that says what to install; a call of theirs that fails is a BackendError.
"""

import ctypes
import functools
import hashlib
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bodocache import env
from bodocache.errors import BackendError, BackendUnavailable
from bodocache.kernels import direct, gpu

SOURCES = Path(__file__).parent / "csrc"
OPTIONS = (
    "--std=c++17",
    "-lineinfo",  # compute-sanitizer and ncu then name lines; the code is the same
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Function:
    """One kernel, loaded on one device."""

    name: str
    handle: int  # a CUfunction, good while the process lives
    device: torch.device

    def launch(
        self,
        arguments: bytes,
        *,
        num_blocks: int,
        num_threads: int,
        shared_nbytes: int,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """Launch it on ``stream`` (default: torch's current one of the device).

        Args:
            arguments: its only parameter, a packed struct; the driver copies it at once.
            num_blocks: blocks of the grid.
            num_threads: threads of a block.
            shared_nbytes: dynamic shared memory of a block.
            stream: of the function's device. Memory that ``arguments`` points to must live until
                the kernel has ended there.

        Raises:
            BackendError: the driver refused the launch, or an earlier kernel failed.
        """
        chosen = direct.current_stream(self.device) if stream is None else stream.cuda_stream
        parameters = ctypes.c_char_p(arguments)  # as an array of one pointer, to its only parameter
        shape = (num_blocks, num_threads, shared_nbytes)
        where = ctypes.addressof(parameters)
        direct.launch_at(self.device, self.handle, shape, where, chosen)


def function(source: str, name: str, device: torch.device, *, shared_nbytes: int = 0) -> Function:
    """Kernel ``name`` of ``csrc/source``, compiled and loaded for ``device`` at the first call.

    ``shared_nbytes``: the most dynamic shared memory that a launch will ask for.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    return _function(source, name, index, shared_nbytes)


@functools.cache
def compiled(source: str, arch: str) -> bytes:
    """The cubin of ``csrc/source`` for ``arch`` ("sm_90"), from disk where it was compiled before.

    Raises:
        BackendUnavailable: cuda-python or NVRTC is missing, or NVRTC does not know ``arch``.
        BackendError: the source does not compile; the message holds the compiler's log.
    """
    code = (SOURCES / source).read_bytes()
    entry = f"{Path(source).stem}-{arch}-{_fingerprint(code, arch)}.cubin"
    kept = _kept(entry)
    if kept is None:
        kept = compile_code(code, arch, source)
        _keep(entry, kept)
    return kept


def compile_code(code: bytes, arch: str, name: str) -> bytes:
    """Compile CUDA C++ to a cubin: machine code, which older drivers of a CUDA major load, too."""
    nvrtc = _nvrtc()
    if arch not in _known(nvrtc):
        raise BackendUnavailable(
            f"{name}: NVRTC {_version(nvrtc)} compiles for {', '.join(_known(nvrtc))}, not {arch}; "
            "install a newer nvidia-cuda-nvrtc"
        )
    program = gpu.checked(
        "nvrtcCreateProgram", nvrtc.nvrtcCreateProgram(code, name.encode(), 0, [], [])
    )
    try:
        options = [f"--gpu-architecture={arch}".encode(), *(o.encode() for o in OPTIONS)]
        (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise BackendError(f"{name} for {arch}: {result.name}\n{_log_of(nvrtc, program)}")
        cubin = bytes(gpu.checked("nvrtcGetCUBINSize", nvrtc.nvrtcGetCUBINSize(program)))
        gpu.checked("nvrtcGetCUBIN", nvrtc.nvrtcGetCUBIN(program, cubin))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return cubin


def arch_of(capability: tuple[int, int]) -> str:
    """The newest ``arch`` NVRTC knows whose code runs on compute capability (major, minor).

    Code for sm_100 runs on 10.3: a capability runs the code of earlier minors of its major.
    """
    nvrtc = _nvrtc()
    major, minor = capability
    fitting = [f"sm_{major}{m}" for m in range(minor, -1, -1) if f"sm_{major}{m}" in _known(nvrtc)]
    if not fitting:
        raise BackendUnavailable(
            f"NVRTC {_version(nvrtc)} compiles for {', '.join(_known(nvrtc))}, none of which runs "
            f"on compute capability {major}.{minor}; install another nvidia-cuda-nvrtc"
        )
    return fitting[0]


@functools.cache
def _nvrtc() -> Any:
    nvrtc = gpu.bindings("nvrtc")
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError as error:  # raised where libnvrtc is not found
        raise BackendUnavailable(
            f"NVRTC cannot be loaded ({error}); pip install nvidia-cuda-nvrtc of the major version "
            "of cuda-python (for 12: nvidia-cuda-nvrtc-cu12)"
        ) from error
    return nvrtc


def _known(nvrtc: Any) -> list[str]:
    archs = gpu.checked("nvrtcGetSupportedArchs", nvrtc.nvrtcGetSupportedArchs())
    return [f"sm_{arch}" for arch in archs]


def _version(nvrtc: Any) -> str:
    return ".".join(map(str, gpu.checked("nvrtcVersion", nvrtc.nvrtcVersion())))


def _log_of(nvrtc: Any, program: Any) -> str:
    log = bytes(gpu.checked("nvrtcGetProgramLogSize", nvrtc.nvrtcGetProgramLogSize(program)))
    gpu.checked("nvrtcGetProgramLog", nvrtc.nvrtcGetProgramLog(program, log))
    return log.rstrip(b"\0").decode(errors="replace")


def _fingerprint(code: bytes, arch: str) -> str:
    parts = (code, arch.encode(), " ".join(OPTIONS).encode(), _version(_nvrtc()).encode())
    return hashlib.blake2b(b"\0".join(parts), digest_size=8).hexdigest()


def _kept(entry: str) -> bytes | None:
    """What was kept; None if nothing, or not all of it as it was."""
    try:
        said = (_folder() / entry).read_bytes()
    except OSError:
        return None
    cubin = said[_SUM_NBYTES:]
    return cubin if said[:_SUM_NBYTES] == _sum(cubin) else None


def _keep(entry: str, cubin: bytes) -> None:
    """Keep it whole or not at all; where nothing is writable, every process compiles (0.1 s)."""
    folder = _folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(_sum(cubin) + cubin)
        os.replace(file.name, folder / entry)  # noqa: PTH105 -- a plain name, no Path to build
    except OSError as error:
        _log.warning("cannot keep %s (%s): it is compiled by every process", entry, error)


_SUM_NBYTES = 16


def _sum(cubin: bytes) -> bytes:
    return hashlib.blake2b(cubin, digest_size=_SUM_NBYTES).digest()


def _folder() -> Path:
    return env.jit_cache_root() / "nvrtc"


@functools.cache
def _function(source: str, name: str, index: int, shared_nbytes: int) -> Function:
    device = torch.device("cuda", index)
    cubin = compiled(source, arch_of(torch.cuda.get_device_capability(device)))
    driver = gpu.cuda_driver()
    with gpu.current_context(device):
        module = gpu.checked("cuModuleLoadData", driver.cuModuleLoadData(cubin))
        found = driver.cuModuleGetFunction(module, name.encode())
        handle = gpu.checked("cuModuleGetFunction", found)
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        done = driver.cuFuncSetAttribute(handle, attribute, shared_nbytes)
        gpu.checked(f"cuFuncSetAttribute({name}, {shared_nbytes} bytes of shared memory)", done)
    return Function(name, int(handle), device)
