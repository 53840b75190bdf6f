# SPDX-License-Identifier: Apache-2.0
"""``bodocache kernels``: what every kernel costs on every target, as a table and as JSON.

The names of the JSON are stable; docs/kernels.md lists them. Nothing here runs a kernel. Needs
rich, unlike the kernels: only the command line imports this.
"""

import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from rich.console import RenderableType
from rich.table import Table

from bodocache.errors import BackendUnavailable, CompileError
from bodocache.kernels import aot
from bodocache.kernels.aot import Compiled
from bodocache.kernels.check import UNIT_NBYTES
from bodocache.kernels.targets import CUDA_TARGETS, proven

_VERSIONS = ("triton", "torch", "nvidia-cuda-nvrtc")


@dataclass(frozen=True, slots=True)
class Row:
    """One specialisation of one kernel on one target."""

    kernel: str
    specialisation: str
    target: str
    registers: int  # of a thread
    spills: int  # 4-byte words of a thread that lie in memory instead of in registers
    scalar_spills: int  # AMD: scalars that lie in vector registers, which costs no memory access
    shared_nbytes: int  # of a block; from sm_90 on with the 1 KiB that the system takes
    vector_nbytes: int | None  # the narrowest access to page data; None: it has none
    widest_nbytes: int | None
    code_nbytes: int
    proven: bool  # it ran on this target and was right


@dataclass(frozen=True, slots=True)
class Report:
    """The rows, and in words what must not be and what could not be compiled here."""

    rows: list[Row]
    faults: list[str]  # spills, narrow accesses, what does not compile
    skipped: list[str]  # for want of NVRTC, or of a newer Triton


def known_kernels() -> list[str]:
    """The kernels by name: Triton's, then the CUDA sources."""
    return [*dict.fromkeys(kernel for kernel, _, _ in aot.launches()), *_sources()]


def compile_all(
    kernels: Iterable[str], targets: Sequence[str], progress: Callable[[int, int], None]
) -> Report:
    """Compile ``kernels`` for ``targets`` as their launchers do; tell how many of how many."""
    jobs = list(_jobs(set(kernels), targets))
    report = Report([], [], [])
    for done, (kernel, job) in enumerate(jobs):
        progress(done, len(jobs))
        try:
            compiled = job()
        except CompileError as error:
            report.faults.append(str(error))
        except BackendUnavailable as error:
            report.skipped.append(str(error))
        else:
            report.rows.append(row_of(kernel, compiled))
            report.faults.extend(faults_of(compiled))
    progress(len(jobs), len(jobs))
    return replace(report, skipped=list(dict.fromkeys(report.skipped)))  # each reason once


def row_of(kernel: str, compiled: Compiled) -> Row:
    """What ``compiled`` costs, and whether its kernel is proven on its target."""
    cost = compiled.cost
    widths = cost.loads_nbytes | cost.stores_nbytes
    return Row(
        kernel=kernel,
        specialisation=compiled.name,
        target=compiled.target,
        registers=cost.registers,
        spills=-(-cost.spilled_nbytes // 4),
        scalar_spills=cost.scalar_spills,
        shared_nbytes=cost.shared_nbytes,
        vector_nbytes=min(widths, default=None),
        widest_nbytes=max(widths, default=None),
        code_nbytes=cost.code_nbytes,
        proven=proven(kernel, compiled.target),
    )


def faults_of(compiled: Compiled) -> list[str]:
    """What must not be, in words."""
    cost, which = compiled.cost, f"{compiled.name} on {compiled.target}"
    widths = cost.loads_nbytes | cost.stores_nbytes
    faults = []
    if cost.spilled_nbytes:
        faults.append(f"{which} spills {cost.spilled_nbytes} bytes of a thread; expected 0")
    if compiled.moves_pages and not widths:
        faults.append(f"{which}: no access to page data found in its assembly")
    if widths and min(widths) < UNIT_NBYTES:
        faults.append(
            f"{which} moves page data {min(widths)} bytes at a time; expected {UNIT_NBYTES}"
        )
    return faults


def render(report: Report) -> RenderableType:
    """One line per kernel and target: the worst of its specialisations."""
    table = Table(
        title="Compiled, not run; the worst of each kernel's variants; in bytes",
        box=None,
        pad_edge=False,
        collapse_padding=True,  # so that it fits into 80 columns
    )
    table.add_column("kernel")
    table.add_column("target")
    for heading in ("variants", "registers", "spills", "shared", "vector", "code"):
        table.add_column(heading, justify="right")
    table.add_column("on GPU")
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in report.rows:
        lines.setdefault((row.kernel, row.target), []).append(row)
    for (kernel, target), rows in lines.items():
        table.add_row(kernel, target, *_worst(rows))
    return table


def as_json(report: Report) -> dict[str, object]:
    """The figures of every specialisation, under stable names."""
    return {
        "environment": {name: _version(name) for name in _VERSIONS},
        "rows": [asdict(row) for row in report.rows],
        "faults": report.faults,
        "skipped": report.skipped,
    }


def _jobs(
    kernels: set[str], targets: Sequence[str]
) -> Iterator[tuple[str, Callable[[], Compiled]]]:
    for kernel, name, launch in aot.launches():
        if kernel in kernels:
            for target in targets:
                yield kernel, partial(aot.compile_for, name, launch, target)
    for kernel, source in _sources().items():
        if kernel in kernels:
            for target in filter(CUDA_TARGETS.__contains__, targets):
                yield kernel, partial(aot.compile_source, source, target)


def _sources() -> dict[str, str]:
    return {source.removesuffix(".cu"): source for source in aot.sources()}


def _worst(rows: list[Row]) -> Iterator[str]:
    widths = [row.vector_nbytes for row in rows if row.vector_nbytes is not None]
    yield str(len(rows))
    yield str(max(row.registers for row in rows))
    yield str(max(row.spills for row in rows))
    yield f"{max(row.shared_nbytes for row in rows):,}"
    yield str(min(widths)) if widths else "-"
    yield f"{max(row.code_nbytes for row in rows):,}"
    yield "proven" if all(row.proven for row in rows) else "unproven"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
