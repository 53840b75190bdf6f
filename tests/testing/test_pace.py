# SPDX-License-Identifier: Apache-2.0
import asyncio

import numpy as np
import pytest

from bodocache.testing.channel import Channel, Piece
from bodocache.testing.loop import run_virtual
from bodocache.testing.pace import HANGS_S, Pace, Weather


def work_done(pace, start_s, end_s, step_s=1e-3):
    """Full-rate seconds between two moments, summed the slow way."""
    at_s = np.arange(start_s, end_s, step_s) + step_s / 2
    return sum(pace.share(moment) for moment in at_s.tolist()) * step_s


@pytest.mark.parametrize("weather", Weather)
def test_work_is_over_when_the_shares_sum_up_to_it(weather):
    pace = Pace(weather, seed=3)
    for start_s, work_s in ((0.0, 2.0), (1.234, 0.5), (7.0, 4.0)):
        end_s = pace.finish_s(start_s, work_s)
        if end_s - start_s < 60.0:
            assert work_done(pace, start_s, end_s) == pytest.approx(work_s, rel=0.02, abs=2e-3)


@pytest.mark.parametrize("weather", Weather)
def test_one_seed_is_one_pace_whatever_is_asked_first(weather):
    early, late = Pace(weather, seed=5), Pace(weather, seed=5)
    late.finish_s(0.0, 300.0)
    moments = np.linspace(0.0, 100.0, 333).tolist()
    assert [early.share(s) for s in moments] == [late.share(s) for s in moments]
    other = Pace(weather, seed=6)
    assert [other.share(s) for s in moments] != [late.share(s) for s in moments]


def test_what_falls_into_an_outage_ends_behind_it_with_an_error():
    pace = Pace(Weather.FAILING, seed=1)
    outage_s = next(s for s in np.arange(0.0, 500.0, 0.05).tolist() if pace.share(s) == 0.0)
    end_s = pace.finish_s(outage_s, 1e-6)
    assert end_s > outage_s
    assert pace.fails(outage_s, end_s)
    assert not pace.fails(0.0, 0.1)


def test_what_hangs_comes_back_with_an_error_an_hour_later():
    pace = Pace(Weather.HUNG, seed=2)
    hung_s = next(s for s in np.arange(0.0, 500.0, 0.5).tolist() if pace.share(s) == 0.0)
    end_s = pace.finish_s(hung_s, 1e-6)
    assert HANGS_S - 1.0 < end_s - hung_s < HANGS_S + 1.0
    assert pace.fails(hung_s, end_s)


class _Even(Pace):
    """Exactly the nominal rate."""

    def finish_s(self, start_s, work_s):
        return start_s + work_s


def ends_of(channel, pieces, during=lambda: None):
    """When each piece ended, in the order in which they were submitted."""
    ends = {}

    async def scenario():
        made = []
        for name, nbytes, urgent in pieces:

            def end(_has_failed, name=name):
                ends[name] = asyncio.get_running_loop().time()

            made.append(Piece(nbytes, end, urgent=urgent))
            channel.submit(made[-1])
        during(made)
        await asyncio.sleep(100.0)

    run_virtual(scenario())
    return ends


def test_a_channel_serves_one_after_the_other_and_what_is_urgent_first():
    channel = Channel(100.0, pace=_Even(), write_bytes_per_s=50.0)
    pieces = [("a", 100, True), ("write", 100, False), ("b", 200, True)]
    ends = ends_of(channel, pieces, during=lambda _: None)
    assert ends == {"a": 1.0, "b": 3.0, "write": 5.0}
    assert channel.nbytes == 400


def test_latency_holds_up_nobody():
    channel = Channel(100.0, pace=_Even(), latency_s=10.0)
    ends = ends_of(channel, [("a", 100, True), ("b", 100, True)], during=lambda _: None)
    assert ends == {"a": 11.0, "b": 12.0}


def test_a_piece_that_waits_is_taken_back_and_one_that_is_served_is_not():
    channel = Channel(100.0, pace=_Even())

    def during(made):
        assert not channel.withdraw(made[0])
        assert channel.withdraw(made[1])

    ends = ends_of(channel, [("a", 100, True), ("b", 100, True), ("c", 100, True)], during)
    assert ends == {"a": 1.0, "c": 2.0}


def test_nothing_that_is_not_urgent_begins_while_it_is_held():
    channel = Channel(100.0, pace=_Even())
    channel.hold(1)
    assert ends_of(channel, [("write", 100, False), ("read", 100, True)], lambda _: None) == {
        "read": 1.0
    }
