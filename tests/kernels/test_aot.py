# SPDX-License-Identifier: Apache-2.0
"""Every kernel compiles for every GPU we name, spills nothing and moves 16 bytes at a time.

Here every specialisation with int64 indices for sm_90, and one of each kernel for each target;
`bodocache kernels` compiles them all.
"""

import pytest

from bodocache import env
from bodocache.errors import BackendUnavailable, CompileError
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


def test_each_specialisation_has_a_name_of_its_own(aot, report):
    names = [name for _, name, _ in aot.launches()]
    assert {
        *("gather_latent_layer_first_int64", "scatter_plain_page_head_int64"),
        *("copy_latent_page_to_layer_first_link", "copy_attention_layer_first_to_page_link_sums"),
    } <= set(names)
    assert len(names) == len(set(names))
    assert {"coldest", "copy", "digest", "gather", "quantise", "scatter"} <= set(
        report.known_kernels()
    )


@pytest.mark.timeout(90)  # 76 compilations: 0.2 to 0.5 s each, where none is cached
def test_no_specialisation_has_a_fault(aot, report):
    for _, name, launch in aot.launches():
        if "int32" not in name:  # the same code but for the loads of the indices
            assert report.faults_of(aot.compile_for(name, launch, "sm_90")) == []


@pytest.mark.parametrize("target", TARGETS)
def test_each_kernel_compiles_for_each_target(aot, report, target):
    one_of_each = {kernel: (name, launch) for kernel, name, launch in aot.launches()}
    for kernel, (name, launch) in one_of_each.items():
        try:
            compiled = aot.compile_for(name, launch, target)
        except BackendUnavailable as error:  # an older Triton
            pytest.skip(str(error))
        cost = compiled.cost
        assert report.faults_of(compiled) == []
        assert 0 < cost.registers <= 128, name
        assert 0 < cost.code_nbytes < 64 << 10, name
        if compiled.moves_pages:
            assert cost.loads_nbytes == {16}, name
            assert bool(cost.stores_nbytes) == (kernel not in WRITES_NO_PAGES), name


def test_a_launch_has_as_many_threads_where_warps_are_wider(aot):
    for _, name, launch in aot.launches():
        assert launch.options(32)["num_warps"] == launch.num_warps, name
        assert launch.options(64)["num_warps"] * 2 == launch.num_warps, name


def test_what_does_not_compile_is_named(aot):
    _, name, launch = next(aot.launches())
    wrong = type(launch)(launch.kernel, 1, launch.arguments, {**launch.constexprs, "UNITS": 3})
    with pytest.raises(CompileError, match=rf"{name} does not compile for sm_90 with Triton 3\."):
        aot.compile_for(name, wrong, "sm_90")


def test_a_triton_too_old_for_a_target_says_so(aot, monkeypatch):
    _, name, launch = next(aot.launches())
    monkeypatch.setattr(aot.triton, "__version__", "3.2.0")
    with pytest.raises(BackendUnavailable, match=r"sm_120 needs Triton 3\.3; 3\.2\.0 is installed"):
        aot.compile_for(name, launch, "sm_120")


def test_a_compilers_reason_is_what_stands_first_and_last_in_its_message(aot):
    assert aot._reason(ValueError("at 3:4:\n  x = 1\n    ^\n\nno such name\n")) == (
        "at 3:4: no such name"
    )
    assert aot._reason(ValueError()) == "ValueError()"
