# SPDX-License-Identifier: Apache-2.0
"""Every kernel compiles for every GPU we name, spills nothing and moves 16 bytes at a time.

Every specialisation only for sm_90; `bodocache kernels` compiles them all for every target.
"""

import pytest

from bodocache import env
from bodocache.errors import CompileError
from bodocache.kernels.targets import TARGETS

pytestmark = pytest.mark.skipif(env.triton_interpreted(), reason="the interpreter compiles nothing")

WRITES_NO_PAGES = {"digest"}


@pytest.fixture(scope="module")
def aot():
    from bodocache.kernels import aot

    return aot


@pytest.fixture(scope="module")
def report():
    from bodocache.kernels import report

    return report


def one_of_each(launches, kernel_of):
    return {kernel_of(name): (name, launch) for name, launch in launches}.values()


def test_each_specialisation_has_a_name_of_its_own_that_begins_with_its_kernels(aot, report):
    names = [name for name, _ in aot.launches()]
    assert len(names) == len(set(names))
    assert {"gather", "scatter", "digest"} <= set(report.known_kernels())


@pytest.mark.timeout(60)  # 21 compilations: 6 s alone, where none is cached
def test_no_specialisation_has_a_fault(aot, report):
    for name, launch in aot.launches():
        compiled = aot.compile_for(name, launch, "sm_90")
        assert report.faults_of(compiled) == []


@pytest.mark.parametrize("target", TARGETS)
def test_each_kernel_compiles_for_each_target(aot, report, target):
    for name, launch in one_of_each(aot.launches(), report.kernel_of):
        compiled = aot.compile_for(name, launch, target)
        cost = compiled.cost
        assert report.faults_of(compiled) == []
        assert 0 < cost.registers <= 128, name
        assert 0 < cost.code_nbytes < 64 << 10, name
        if compiled.moves_pages:
            assert cost.loads_nbytes == {16}, name
            assert bool(cost.stores_nbytes) == (report.kernel_of(name) not in WRITES_NO_PAGES), name


def test_what_does_not_compile_is_named(aot):
    name, launch = next(aot.launches())
    wrong = type(launch)(launch.kernel, 1, launch.arguments, {"TILE_UNITS": 3})
    with pytest.raises(CompileError, match=rf"{name} does not compile for sm_90 with Triton 3\."):
        aot.compile_for(name, wrong, "sm_90")
