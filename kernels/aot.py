# SPDX-License-Identifier: Apache-2.0
"""Compile every kernel as its launcher launches it, for any GPU, on a machine without one.

Not possible in a process with TRITON_INTERPRET=1. Nothing here runs a kernel.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends import compiler as backends
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bodocache.errors import BackendError, BackendUnavailable, CompileError
from bodocache.kernels import coldest, copy, digest, gather, quantise, scatter, score, subtree
from bodocache.kernels.check import UNIT_NBYTES
from bodocache.kernels.launch import Launch
from bodocache.kernels.machine_code import Cost, amd_cost, nvidia_cost

MODULES = (  # each has a kernel, and ``specialisations``: the launches to compile it for
    coldest,
    copy,
    digest,
    gather,
    quantise,
    scatter,
    score,
    subtree,
)

_BLACKWELL = ("sm_100", "sm_120")
_BLACKWELL_SINCE = (3, 3)

_DTYPES = {  # as Triton writes them
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e5m2: "fp8e5",
}


@dataclass(frozen=True, slots=True)
class Compiled:
    """One specialisation of one kernel for one target."""

    name: str
    target: str
    moves_pages: bool  # its source asks for accesses to page data
    cost: Cost


def launches() -> Iterator[tuple[str, str, Launch]]:
    """Every specialisation that launchers use: its kernel's name, its own, and the launch."""
    for module in MODULES:
        kernel = module.__name__.rpartition(".")[2]
        for name, launch in module.specialisations():
            yield kernel, name, launch


def sources() -> list[str]:
    """The CUDA sources; their kernels need sm_90."""
    return sorted(path.name for path in (Path(__file__).parent / "csrc").glob("*.cu"))


def compile_for(name: str, launch: Launch, target: str) -> Compiled:
    """Compile ``launch`` for ``target``, one of ``targets.TARGETS``, and read what it costs.

    Raises:
        BackendUnavailable: this Triton knows no such target, or has no linker for it.
        CompileError: it does not compile the kernel.
    """
    _check_known(target)
    nvidia = target.startswith("sm_")
    chosen = (
        GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
        if nvidia
        else GPUTarget("hip", target, 64)
    )
    options = launch.options(chosen.warp_size)
    try:
        compiled = triton.compile(source_of(launch), target=chosen, options=options)
    except Exception as error:  # Triton's own are of many classes, one of them Exception itself
        if "linker" in str(error):  # ROCm's, which Triton 3.3 looks for outside its wheel
            raise BackendUnavailable(f"{target}: {error}") from error
        where = f"{name} does not compile for {target} with Triton {triton.__version__}"
        raise CompileError(f"{where}: {_reason(error)}") from error
    asm, shared_nbytes = compiled.asm, compiled.metadata.shared
    moves_pages = re.search(r"cache_?modifier = c[gs]", asm["ttir"], re.IGNORECASE) is not None
    if nvidia:
        cost = nvidia_cost(asm["ptx"], asm["cubin"], shared_nbytes)
    else:
        cost = amd_cost(asm["amdgcn"], asm["hsaco"], shared_nbytes)
    return Compiled(name, target, moves_pages, cost)


def compile_source(source: str, target: str) -> Compiled:
    """Compile ``source``, one of :func:`sources`, for an NVIDIA target, and read what it costs.

    Raises:
        BackendUnavailable: NVRTC is not installed, or does not know the target.
        CompileError: NVRTC does not compile it.
    """
    from bodocache.kernels import nvrtc

    try:
        cubin = nvrtc.compiled(source, target)
    except BackendUnavailable as error:
        raise BackendUnavailable(f"{source}: {error}") from error
    except BackendError as error:
        raise CompileError(f"{source} does not compile for {target}: {_reason(error)}") from error
    return Compiled(Path(source).stem, target, moves_pages=False, cost=nvidia_cost("", cubin, 0))


def source_of(launch: Launch) -> ASTSource:
    """What Triton's JIT would compile for ``launch``: its types, constants and alignments."""
    kernel = launch.kernel
    signature: dict[str, str] = {}
    constants = dict(launch.constexprs)
    aligned: list[int] = []
    for place, param in enumerate(kernel.params):
        value = launch.arguments.get(param.name)
        specialised = not param.do_not_specialize
        if value is None:
            signature[param.name] = "constexpr"
        elif isinstance(value, int) and value == 1 and specialised:
            signature[param.name] = "constexpr"
            constants[param.name] = 1
        else:
            signature[param.name] = _type_of(value)
            if specialised and _is_aligned(value):
                aligned.append(place)
    return ASTSource(kernel, signature, constants, _attributes(aligned))


def _check_known(target: str) -> None:
    """Triton 3.2 ends the process where its LLVM meets a Blackwell target."""
    needed = _BLACKWELL_SINCE if target in _BLACKWELL else (0,)
    if tuple(map(int, triton.__version__.split(".")[:2])) < needed:
        raise BackendUnavailable(
            f"{target} needs Triton {'.'.join(map(str, needed))}; {triton.__version__} is installed"
        )


def _type_of(value: torch.Tensor | float) -> str:
    if isinstance(value, torch.Tensor):
        return f"*{_DTYPES[value.dtype]}"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32"


def _is_aligned(value: torch.Tensor | float) -> bool:
    if isinstance(value, torch.Tensor):
        return value.data_ptr() % UNIT_NBYTES == 0
    return isinstance(value, int) and value % UNIT_NBYTES == 0


def _attributes(aligned: list[int]) -> Any:
    """Say that the arguments at these places are multiples of 16."""
    if hasattr(backends, "AttrsDescriptor"):  # Triton 3.2
        return backends.AttrsDescriptor.from_hints(dict.fromkeys(aligned, UNIT_NBYTES))
    return {(place,): [["tt.divisibility", UNIT_NBYTES]] for place in aligned}


def _reason(error: Exception) -> str:
    """Where a compiler failed and why: what stands first and last in its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    return " ".join(dict.fromkeys((lines[0], lines[-1])))
