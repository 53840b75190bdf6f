# SPDX-License-Identifier: Apache-2.0
"""What a compiled kernel costs, read from its assembly and machine code; NVIDIA's and AMD's."""

import re
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton

_WORD_NBYTES = 4  # of a register
# Page data is read and written with a cache modifier (.cg, .cs; "nt" on AMD), nothing else is.
_PTX_PAGES = re.compile(r"\b(ld|st)\.global\S*\.c[gs]\S*")
_PTX_WIDTH = re.compile(r"(?:\.v(\d))?\.[bfsu](\d+)$")
_AMD_PAGES = re.compile(r"\b(?:global|flat|buffer)_(load|store)_(\w+)\b.*\bnt\b")
_AMD_NBYTES = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "short": 2, "ushort": 2}
_AMD_METADATA = re.compile(r"^ +(?:- )?\.(\w+): +(\d+)$", re.MULTILINE)
_EXECUTABLE = 0x4  # SHF_EXECINSTR


@dataclass(frozen=True, slots=True)
class Cost:
    """What one thread or block of a compiled kernel takes."""

    registers: int  # of a thread
    spilled_nbytes: int  # of a thread: in memory instead of in registers
    scalar_spills: int  # AMD: scalars that lie in vector registers, none of them in memory
    shared_nbytes: int  # of a block
    loads_nbytes: frozenset[int]  # the widths of its accesses to page data
    stores_nbytes: frozenset[int]
    code_nbytes: int


def nvidia_cost(ptx: str, cubin: bytes, dynamic_shared_nbytes: int) -> Cost:
    """Read what ``cubin``, of one kernel, takes; its accesses from ``ptx``, where there is some."""
    used = _resources(cubin)
    widths: dict[str, set[int]] = {"ld": set(), "st": set()}
    for access in _PTX_PAGES.finditer(ptx):
        width = _PTX_WIDTH.search(access[0])
        assert width is not None, access[0]
        widths[access[1]].add(int(width[1] or 1) * int(width[2]) // 8)
    return Cost(
        used["REG"],
        used["STACK"] + used["LOCAL"],
        0,
        used["SHARED"] + dynamic_shared_nbytes,
        frozenset(widths["ld"]),
        frozenset(widths["st"]),
        code_nbytes(cubin),
    )


def amd_cost(assembly: str, hsaco: bytes, dynamic_shared_nbytes: int) -> Cost:
    """Read what ``hsaco``, of one kernel, takes; from ``assembly`` and the metadata at its end."""
    used = {key: int(count) for key, count in _AMD_METADATA.findall(assembly)}
    widths: dict[str, set[int]] = {"load": set(), "store": set()}
    for kind, width in _AMD_PAGES.findall(assembly):
        widths[kind].add(_AMD_NBYTES.get(width, 1))
    return Cost(
        used["vgpr_count"],
        max(used["vgpr_spill_count"] * _WORD_NBYTES, used["private_segment_fixed_size"]),
        used["sgpr_spill_count"],
        used["group_segment_fixed_size"] + dynamic_shared_nbytes,
        frozenset(widths["load"]),
        frozenset(widths["store"]),
        code_nbytes(hsaco),
    )


def code_nbytes(elf: bytes) -> int:
    """Bytes of instructions: the executable sections of a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    entry_nbytes, count = struct.unpack_from("<HH", elf, 0x3A)
    entries = (struct.unpack_from("<IIQQQQ", elf, table + i * entry_nbytes) for i in range(count))
    return sum(nbytes for _, _, flags, _, _, nbytes in entries if flags & _EXECUTABLE)


def _resources(cubin: bytes) -> dict[str, int]:
    """REG, STACK, LOCAL and SHARED of the kernel in ``cubin``, from Triton's own cuobjdump."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run(  # noqa: S603 -- a tool of Triton's wheel on a file of ours
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    return {name: int(n) for name, n in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", report)}
