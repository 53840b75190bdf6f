# SPDX-License-Identifier: Apache-2.0
"""Every kernel of eviction scoring compiles for every GPU we name and spills nothing."""

import pytest

from bodocache import env

pytestmark = pytest.mark.skipif(env.triton_interpreted(), reason="the interpreter compiles nothing")


@pytest.mark.timeout(60)  # 6 kernels: seconds each where Triton's cache is cold
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_scoring_kernels_compile_and_spill_nothing(target):
    from bodocache.kernels import aot, coldest, report, score, subtree

    names = []
    for module in (score, subtree, coldest):
        for name, launch in module.specialisations():
            compiled = aot.compile_for(name, launch, target)
            assert report.faults_of(compiled) == []
            assert 0 < compiled.cost.registers <= 128, name
            names.append(name)
    assert len(names) == len(set(names)) == 6
