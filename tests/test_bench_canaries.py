# SPDX-License-Identifier: Apache-2.0
"""Nothing lands in a slot after its load was released: some hundred of the cuts of the bench."""

import asyncio
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def canaries(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
    import canaries

    return canaries


@pytest.mark.timeout(120)
@pytest.mark.parametrize("predicts", [True, False])
def test_nothing_lands_in_a_slot_that_was_released(tmp_path, canaries, predicts):
    row = asyncio.run(canaries.measure(tmp_path, 200, seed=1, predicts=predicts))
    assert row["bytes_landed_after_release"] == row["wrong_bytes_delivered"] == 0
    assert row["with_reads_or_copies_under_way"] > 50


def test_a_byte_in_a_released_slot_would_be_seen(tmp_path, canaries, monkeypatch):
    look = canaries.Canaries.look_at_all

    def change_one_and_look(them):
        them._words[0, 0, 5, 0] ^= 1
        look(them)

    monkeypatch.setattr(canaries.Canaries, "look_at_all", change_one_and_look)
    row = asyncio.run(canaries.measure(tmp_path, 5, seed=1, predicts=False))
    assert row["bytes_landed_after_release"] == 1
