# SPDX-License-Identifier: Apache-2.0
import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bodocache import env
from bodocache.errors import BackendError, BackendUnavailable
from bodocache.kernels import nvrtc, targets

pytestmark = pytest.mark.skipif(env.triton_interpreted(), reason="the interpreter compiles nothing")

NVIDIA_AND_AMD = pytest.mark.parametrize("target", ["sm_90", "gfx942"])


@pytest.fixture
def report():
    from bodocache.kernels import report

    return report


@pytest.fixture
def launch():
    from bodocache.kernels import digest

    return next(digest.specialisations())[1]


@pytest.fixture
def compiled(monkeypatch, report):
    """Report the kernel ``digest``, launched as given, on one target."""

    def compile_one(launch, target):
        module = SimpleNamespace(__name__="digest", specialisations=lambda: [("digest_a", launch)])
        monkeypatch.setattr(report.aot, "MODULES", (module,))
        found = report.compile_all(["digest"], [target], lambda *_: None)
        if found.skipped:  # an older Triton
            pytest.skip(found.skipped[0])
        return found

    return compile_one


@NVIDIA_AND_AMD
def test_a_good_kernel_has_its_figures_and_no_fault(compiled, launch, target):
    found = compiled(launch, target)
    (row,) = found.rows
    assert (row.kernel, row.specialisation, row.target) == ("digest", "digest_a", target)
    assert (row.spills, row.vector_nbytes, row.widest_nbytes) == (0, 16, 16)
    assert 16 < row.registers < 128
    assert row.shared_nbytes == (1024 + 4 * 8 if target == "sm_90" else 2 * 8)  # a sum of each warp
    assert 1 << 10 < row.code_nbytes < 16 << 10
    assert row.code_nbytes % 4 == 0, "whole instructions"
    assert found.faults == []


@pytest.mark.parametrize(("target", "tile_units"), [("sm_90", 2048), ("gfx942", 4096)])
def test_spills_are_a_fault(compiled, launch, target, tile_units):
    hungry = replace(launch, num_warps=1, constexprs={"TILE_UNITS": tile_units})
    found = compiled(hungry, target)
    assert found.rows[0].spills > 0
    assert found.faults == [
        f"digest_a on {target} spills {4 * found.rows[0].spills} bytes of a thread; expected 0"
    ]


@NVIDIA_AND_AMD
def test_narrow_accesses_are_a_fault(compiled, launch, target):
    odd = torch.empty(4100, dtype=torch.uint8)[4:].view(torch.int32)
    found = compiled(replace(launch, arguments={**launch.arguments, "pages_ptr": odd}), target)
    assert found.rows[0].vector_nbytes == 4
    assert found.faults == [f"digest_a on {target} moves page data 4 bytes at a time; expected 16"]


def test_accesses_that_are_not_found_are_a_fault(report):
    from bodocache.kernels.machine_code import Cost

    cost = Cost(40, 0, 0, 32, frozenset(), frozenset(), 5_000)
    moves = report.Compiled("gather_a", "sm_90", moves_pages=True, cost=cost)
    assert report.faults_of(moves) == [
        "gather_a on sm_90: no access to page data found in its assembly"
    ]
    assert report.faults_of(replace(moves, moves_pages=False)) == []


def test_what_does_not_compile_is_a_fault_and_has_no_row(compiled, launch):
    found = compiled(replace(launch, constexprs={"TILE_UNITS": 3}), "sm_90")
    assert found.rows == []
    assert found.faults[0].startswith("digest_a does not compile for sm_90 with Triton 3.")


def test_cuda_sources_are_compiled_where_nvrtc_is_and_named_where_it_is_not(report, monkeypatch):
    monkeypatch.setattr(report.aot, "sources", lambda: ["bulk_copy.cu"])

    def unavailable(source, target):
        raise BackendUnavailable(f"no NVRTC for {target}")

    monkeypatch.setattr(nvrtc, "compiled", unavailable)
    targets = ["sm_80", "sm_90", "gfx942"]
    found = report.compile_all(["bulk_copy"], targets, lambda *_: None)
    assert found == report.Report([], [], ["bulk_copy.cu: no NVRTC for sm_90"])


def test_a_cuda_source_that_does_not_compile_is_a_fault(report, monkeypatch):
    monkeypatch.setattr(report.aot, "sources", lambda: ["bulk_copy.cu"])

    def wrong(source, target):
        raise BackendError("NVRTC_ERROR_COMPILATION\nexpected a ;")

    monkeypatch.setattr(nvrtc, "compiled", wrong)
    (fault,) = report.compile_all(["bulk_copy"], ["sm_90"], lambda *_: None).faults
    assert fault.startswith("bulk_copy.cu does not compile for sm_90: NVRTC_ERROR")
    assert fault.endswith("expected a ;")


@pytest.mark.parametrize("target", sorted(targets.CUDA_TARGETS))
def test_the_cuda_sources_compile_and_spill_nothing(report, target):
    kernels = [source.removesuffix(".cu") for source in report.aot.sources()]
    found = report.compile_all(kernels, [target], lambda *_: None)
    if found.skipped:
        pytest.skip(found.skipped[0])
    assert [row.kernel for row in found.rows] == kernels
    assert found.faults == []


def test_a_kernel_is_proven_only_on_the_target_it_ran_on(monkeypatch):
    monkeypatch.setattr(targets, "PROVEN", {"digest": frozenset({"sm_90"})})
    assert targets.proven("digest", "sm_90")
    assert not targets.proven("digest", "sm_80")
    assert not targets.proven("gather", "sm_90")


def test_the_table_has_the_worst_figure_of_each_kernel_and_target(report):
    from rich.console import Console

    row = report.Row("gather", "gather_a", "sm_90", 40, 0, 0, 32, 16, 16, 5_000, proven=True)
    rows = [row, replace(row, registers=77, spills=3, vector_nbytes=8, code_nbytes=6_000),
            replace(row, target="gfx942", vector_nbytes=None, proven=False)]  # fmt: skip
    console = Console(width=80, file=io.StringIO())
    console.print(report.render(report.Report(rows, [], [])))
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["gather", "sm_90", "2", "77", "3", "32", "8", "6,000", "proven"] in lines
    assert ["gather", "gfx942", "1", "40", "0", "32", "-", "5,000", "unproven"] in lines
