# SPDX-License-Identifier: Apache-2.0
"""The quantising kernels compile for every GPU we name, spill nothing and move 16 bytes at a time.

No target casts to FP8: sm_80 cannot, and the others give the same bits without.
"""

import pytest

from bodocache import env

pytestmark = pytest.mark.skipif(env.triton_interpreted(), reason="the interpreter compiles nothing")

TARGETS = ["sm_80", "sm_90", "sm_100", "sm_120"]


def test_every_specialisation_has_a_name_of_its_own():
    from bodocache.kernels import quantise

    names = [name for name, _ in quantise.specialisations()]
    assert len(set(names)) == len(names) == 2 * 2 * 2 * 3  # kernels, quantisers, dtypes, shapes
    assert {name.partition("_")[0] for name in names} == {"quantise", "restore"}


@pytest.mark.timeout(120)  # 24 compilations: half a second each alone, where none is cached
@pytest.mark.parametrize("target", TARGETS)
def test_they_spill_nothing_and_move_16_bytes_at_a_time(target):
    from bodocache.kernels import aot, quantise, report

    for name, launch in quantise.specialisations():
        compiled = aot.compile_for(name, launch, target)
        assert report.faults_of(compiled) == []
        assert compiled.cost.loads_nbytes == compiled.cost.stores_nbytes == {16}, name
        assert 0 < compiled.cost.registers <= 128, name
