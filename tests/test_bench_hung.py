# SPDX-License-Identifier: Apache-2.0
"""Loads end while their storage hangs, and everything drains once it goes on: the bench's ways."""

import math
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
SECONDS, PHASE_S = 0.8, 0.2


@pytest.fixture
def hung(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
    import hung

    monkeypatch.setattr(hung, "PHASE_S", PHASE_S)
    return hung


def fused(hung, folder):
    try:
        return hung.fused(folder, SECONDS)
    except hung.Unavailable as why:
        pytest.skip(str(why))


WAYS = {
    "never": lambda hung, folder: hung.in_threads(folder, SECONDS, math.inf),
    "slow": lambda hung, folder: hung.in_threads(folder, SECONDS, 0.1),
    "fuse": fused,
    "node": lambda hung, folder: hung.on_a_node(folder, SECONDS),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=[pytest.mark.root] if way == "fuse" else []) for way in WAYS],
)
def test_loads_end_while_storage_is_bad_and_what_they_deliver_is_right(tmp_path, hung, way):
    engines = WAYS[way](hung, tmp_path)  # closes its cache: all has drained
    cut = [whole for _, _, whole, was_bad in engines.ended if was_bad and not whole]
    assert cut
    assert any(whole for *_, whole, _ in engines.ended)
    assert engines.wrong_nbytes == 0


def test_a_load_from_host_memory_is_whole_while_the_threads_hang(tmp_path, hung):
    engines = hung.in_threads(tmp_path, SECONDS, math.inf)
    assert engines.host_s[True]  # each of these was compared, and whole
