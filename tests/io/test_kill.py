# SPDX-License-Identifier: Apache-2.0
"""A share of the kill campaigns: bench/reliability.py runs them at full length."""

from pathlib import Path

import pytest

KILLS, KILLS_IN_FLIGHT = 20, 6
KILLS_AT_CALLS = 5


@pytest.fixture
def kills(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    import _kills

    return _kills


@pytest.mark.timeout(60)
def test_kills_at_any_moment_serve_no_wrong_byte_and_lose_nothing_acknowledged(tmp_path, kills):
    tally = kills.random_kills(tmp_path, KILLS)
    assert (tally.wrong_pages, tally.cached_lost, tally.sync_lost) == (0, 0, 0)
    assert tally.in_flight >= KILLS_IN_FLIGHT, "hardly a kill landed inside a pwritev"
    assert tally.pages_read > 10 * KILLS, "hardly a page was read: the test has no teeth"
    assert tally.cached_acks > KILLS


@pytest.mark.timeout(90)
def test_kills_at_a_system_call_serve_no_wrong_byte_and_lose_nothing_acknowledged(tmp_path, kills):
    chosen = kills.points(KILLS_AT_CALLS)
    assert {point.call for point in chosen} == {"pwritev", "fdatasync", "pwrite64"}
    try:
        tally = kills.chosen_kills(tmp_path, chosen)
    except kills.Unavailable as reason:
        pytest.skip(str(reason))
    assert tally.attempts == KILLS_AT_CALLS
    assert not tally.missed
    assert (tally.wrong_pages, tally.cached_lost, tally.sync_lost) == (0, 0, 0)
    assert tally.sync_acks, "nothing durable was at stake"
