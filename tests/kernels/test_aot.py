# SPDX-License-Identifier: Apache-2.0
"""Every kernel compiles for every GPU we name, spills nothing and moves 16 bytes at a time."""

import pytest

from bodocache import env

pytestmark = pytest.mark.skipif(env.triton_interpreted(), reason="the interpreter compiles nothing")

CAPABILITIES = [80, 90, 100, 120]
WORDS = (".b32", ".b64")  # scalars: slots, rows, the table


@pytest.fixture(scope="module")
def aot():
    from bodocache.kernels import aot

    return aot


def test_every_kernel_and_capability_is_listed(aot):
    names = [name for name, _ in aot.launches()]
    assert len(names) == len(set(names))
    assert {name.split("_")[0] for name in names} == {"gather", "scatter", "digest"}
    assert list(aot.CAPABILITIES) == CAPABILITIES


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_spill_nothing_and_move_16_bytes_at_a_time(aot, capability):
    for name, launch in aot.launches():
        compiled = aot.compile_for(name, launch, capability)
        assert compiled.spilled_nbytes == 0, name
        assert 0 < compiled.registers <= 128, name
        paged = [access for access in compiled.global_accesses if ".c" in access]  # .cg and .cs
        loads = [access for access in paged if access.startswith("ld")]
        stores = [access for access in paged if access.startswith("st")]
        assert loads, name
        assert bool(stores) == (launch.kernel.__name__ != "digest_kernel"), name
        assert all(access.endswith((".v4.b32", ".v2.b64")) for access in paged), (name, paged)
