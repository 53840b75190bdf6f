# SPDX-License-Identifier: Apache-2.0
"""Loads under way are cut soon after the prediction turns: a seed of the bench, in virtual time."""

from pathlib import Path

import pytest

from bodocache.testing.pace import Weather

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def cut_latency(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "bench"))
    import cut_latency

    return cut_latency


@pytest.mark.timeout(120)
def test_a_load_is_cut_within_a_chunk_of_the_turn(cut_latency):
    row = cut_latency.row_of(Weather.DRIFTING, seeds=1)
    assert row["probe_changes_nothing"]
    assert row["cuts"] > 20
    assert row["within_its_chunk_and_1_ms"] == 1.0
