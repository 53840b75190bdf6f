# SPDX-License-Identifier: Apache-2.0
"""Compile every kernel as its launcher launches it, for any GPU, on a machine without one.

Not possible in a process with TRITON_INTERPRET=1. Nothing here runs a kernel.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bodocache.kernels import digest, gather, scatter
from bodocache.kernels.check import UNIT_NBYTES
from bodocache.kernels.launch import OPTIONS, Launch

MODULES = (  # each has a kernel and ``specialisations``, the launches to compile it for
    digest,
    gather,
    scatter,
)
CAPABILITIES = (80, 90, 100, 120)  # A100, H100/H200, B200, RTX 50 and RTX PRO 6000

_POINTERS = {torch.int32: "*i32", torch.int64: "*i64"}


@dataclass(frozen=True, slots=True)
class Compiled:
    """One specialisation of one kernel for one architecture."""

    name: str
    capability: int
    registers: int
    spilled_nbytes: int  # local memory and stack of a thread
    global_accesses: tuple[str, ...]  # of words: "ld...v4.b32" and the like, scalars left out
    ptx: str


def launches() -> Iterator[tuple[str, Launch]]:
    """Every specialisation that launchers use, by name."""
    for module in MODULES:
        yield from module.specialisations()


def compile_for(name: str, launch: Launch, capability: int) -> Compiled:
    """Compile ``launch`` for compute capability ``capability`` (90 is sm_90) and inspect it."""
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source_of(launch), target=target, options=OPTIONS)
    ptx = compiled.asm["ptx"]
    registers, spilled = _resources(compiled.asm["cubin"])
    accesses = re.findall(r"\b(?:ld|st)\.global\S*", ptx)
    return Compiled(name, capability, registers, spilled, tuple(accesses), ptx)


def source_of(launch: Launch) -> ASTSource:
    """What Triton's JIT would compile for ``launch``: its types, constants and alignments."""
    kernel = launch.kernel
    plain = {param.name for param in kernel.params if param.do_not_specialize}
    names = [param.name for param in kernel.params]
    signature: dict[str, str] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for place, name in enumerate(names):
        value = launch.arguments.get(name)
        if isinstance(value, torch.Tensor):
            signature[name] = _POINTERS[value.dtype]
            if name not in plain and value.data_ptr() % UNIT_NBYTES == 0:
                attributes[place,] = [["tt.divisibility", UNIT_NBYTES]]
        else:
            signature[name] = "constexpr" if value is None else "i32"
    constants = {(names.index(name),): value for name, value in launch.constexprs.items()}
    return ASTSource(kernel, signature, constants, attributes)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of stack and local memory, of a thread; from Triton's own cuobjdump."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run(  # noqa: S603 -- a tool of Triton's wheel on a file of ours
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    used = {name: int(count) for name, count in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}
    return used["REG"], used["STACK"] + used["LOCAL"]
