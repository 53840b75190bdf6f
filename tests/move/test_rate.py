# SPDX-License-Identifier: Apache-2.0
"""What a link's chunks teach, against chunks made with a known rate, spread and drift."""

import asyncio

import numpy as np
import pytest

from bodocache import jit
from bodocache.clock import VirtualClock
from bodocache.move.link import Link
from bodocache.move.rate import BLOCK_CHUNKS, LinkRate
from bodocache.plan.records import LINK
from bodocache.plan.tardiness import Z90, predicted_finish_s

jit.warm()  # here, not in a test: a cold compile is not part of any test's time

RATE, CHUNK = 5e9, 10_000_000


def chunks(count, spread=0.0, drift=0.0, seed=0, rate=RATE):
    """Seconds and bytes of chunks; the rate's error is drawn anew for each block."""
    rng = np.random.default_rng(seed)
    nbytes = rng.integers(CHUNK // 2, CHUNK * 3 // 2, count)
    errors = np.repeat(rng.standard_normal(-(-count // BLOCK_CHUNKS)), BLOCK_CHUNKS)[:count]
    noise_s = spread * np.sqrt(nbytes) * rng.standard_normal(count)
    return nbytes / rate * (1 + drift * errors) + noise_s, nbytes


def learned(seconds, nbytes):
    rate = LinkRate()
    for at_s, n in zip(np.cumsum(seconds), nbytes, strict=True):
        rate.add(at_s, int(n))
    return rate.estimate()


def test_nothing_is_known_before_a_block_is_complete():
    assert learned(*chunks(BLOCK_CHUNKS - 1)) is None
    assert learned(*chunks(BLOCK_CHUNKS)).rate == pytest.approx(RATE)


def test_time_before_a_chunk_was_called_for_is_not_the_links():
    rate, now_s = LinkRate(), 0.0
    for _ in range(BLOCK_CHUNKS):
        called_s = now_s + 1.0  # the loop did something else
        now_s = called_s + CHUNK / RATE
        rate.add(now_s, CHUNK, called_s)
    assert rate.estimate().rate == pytest.approx(RATE, rel=1e-6)


def test_chunks_told_in_another_order_take_no_less_than_no_time():
    rate, seconds = LinkRate(), CHUNK / RATE
    for k in range(0, BLOCK_CHUNKS, 2):  # the second of two is told before the first
        rate.add((k + 2) * seconds, CHUNK)
        rate.add((k + 1) * seconds, CHUNK)
    assert rate.estimate().rate == pytest.approx(RATE, rel=1e-6)


def test_a_link_without_noise_has_neither_spread_nor_drift():
    estimate = learned(*chunks(20 * BLOCK_CHUNKS))
    assert estimate.rate == pytest.approx(RATE, rel=1e-9)
    assert estimate.spread == pytest.approx(0.0, abs=1e-12)
    assert estimate.drift == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("spread", "drift"), [(1e-7, 0.0), (0.0, 0.1), (1e-7, 0.1), (3e-8, 0.3)])
def test_spread_and_drift_are_told_apart(spread, drift):
    found = [learned(*chunks(100 * BLOCK_CHUNKS, spread, drift, seed)) for seed in range(40)]
    assert np.mean([e.rate for e in found]) == pytest.approx(RATE, rel=0.05 + drift**2)
    means = [np.mean([getattr(e, name) ** 2 for e in found]) ** 0.5 for name in ("spread", "drift")]
    assert means[0] == pytest.approx(spread, rel=0.1 + drift, abs=1e-9)
    assert means[1] == pytest.approx(drift, rel=0.2, abs=0.02)


def test_a_link_that_has_become_slower_is_soon_known_to_be():
    fast, slow = chunks(50 * BLOCK_CHUNKS), chunks(20 * BLOCK_CHUNKS, rate=RATE / 2)
    estimate = learned(*(np.concatenate(pair) for pair in zip(fast, slow, strict=True)))
    assert estimate.rate == pytest.approx(RATE / 2, rel=0.15)
    assert estimate.drift > 0.1  # and for a while it is doubted


def test_nine_of_ten_loads_finish_before_they_are_predicted_to():
    early = []
    for seed in range(300):
        seconds, nbytes = chunks(60 * BLOCK_CHUNKS, spread=1e-7, drift=0.1, seed=seed)
        known = slice(0, -BLOCK_CHUNKS)
        estimate = learned(seconds[known], nbytes[known])
        link = np.zeros(1, LINK)
        link["rate"], link["spread"], link["drift"] = estimate.rate, estimate.spread, estimate.drift
        load = float(nbytes[-BLOCK_CHUNKS:].sum())
        early.append(seconds[-BLOCK_CHUNKS:].sum() <= predicted_finish_s(link, load, 0.0, Z90))
    assert 0.85 <= np.mean(early) <= 0.95


def test_time_in_which_a_link_had_nothing_to_do_is_not_its_slowness():
    async def scenario():
        link, now_s = Link("disk->device", now_s=lambda: 0.0), 0.0
        for _ in range(BLOCK_CHUNKS):
            now_s += 5.0  # idle
            link.begin(now_s)
            link.begin(now_s)
            for end_s in (now_s + 0.5, now_s + 1.0):
                link.moved(end_s, 500)
                link.end(end_s, begun_s=now_s, pages=1, nbytes=500)
            now_s += 1.0
        return link.estimate()

    estimate = asyncio.run(scenario())
    assert estimate.rate == pytest.approx(1000.0)
    assert estimate.spread == pytest.approx(0.0)


def test_small_chunks_do_not_poison_the_rate_of_large_ones():
    rate, now_s = LinkRate(), 0.0
    for _ in range(10 * BLOCK_CHUNKS):
        for nbytes, latency_s in ((4096, 2e-4), (CHUNK, 2e-4)):
            now_s += latency_s + nbytes / RATE
            rate.add(now_s, nbytes)
    assert rate.estimate().rate == pytest.approx(CHUNK / (2e-4 + CHUNK / RATE))
    assert rate.estimate(CHUNK) == rate.estimate()
    assert rate.estimate(4096).rate < RATE / 100


def test_what_is_not_known_of_a_size_is_taken_from_the_nearest():
    rate = LinkRate()
    for k in range(BLOCK_CHUNKS):
        rate.add((k + 1) * 1.0, 4096)
    assert rate.estimate().rate == rate.estimate(4096).rate == pytest.approx(4096)


def test_a_chunk_that_failed_says_nothing_of_the_rate():
    rate, now_s = LinkRate(), 0.0
    for _ in range(BLOCK_CHUNKS):
        rate.add(now_s + 30.0, 0)
        rate.add(now_s + 31.0, 1000)
        now_s += 31.0
    assert rate.estimate().rate == pytest.approx(1000.0)


def test_a_clock_that_stands_still_teaches_nothing():
    assert learned(np.zeros(BLOCK_CHUNKS), np.full(BLOCK_CHUNKS, CHUNK)) is None


def test_a_lag_is_the_time_lost_since_a_chunk_was_on_time():
    rate, now_s, each_s = LinkRate(), 0.0, CHUNK / RATE
    lags = []
    for times in (*[1.0] * BLOCK_CHUNKS, 1.2, 3.0, 5.0, 1.0):
        now_s += times * each_s
        rate.add(now_s, CHUNK)
        lags.append(rate.lag_s / each_s)
    assert lags[-5:] == pytest.approx([0.0, 0.0, 2.0, 6.0, 0.0])


@pytest.mark.parametrize(("idle", "lag"), [(1.0, 1.0), (3.0, 0.0)])
def test_a_link_that_was_idle_lags_less(idle, lag):
    rate, each_s = LinkRate(), CHUNK / RATE
    for i in range(BLOCK_CHUNKS):
        rate.add((i + 1) * each_s, CHUNK)
    now_s = BLOCK_CHUNKS * each_s + 3 * each_s
    rate.add(now_s, CHUNK)
    rate.resume(now_s + idle * each_s)
    assert rate.lag_s == pytest.approx(lag * each_s)


def test_a_link_that_lags_is_believed_to_lose_as_much_again():
    async def scenario():
        clock = VirtualClock()
        link = Link("disk->device", now_s=clock.now_s)
        link.begin(clock.now_s())
        for times in (*[1.0] * BLOCK_CHUNKS, 4.0):
            clock.advance(times * CHUNK / RATE)
            link.moved(clock.now_s(), CHUNK)
        assert link.record(0)["queued_nbytes"] == pytest.approx(3 * CHUNK, rel=1e-6)
        link.end(clock.now_s(), begun_s=0.0, pages=1, nbytes=CHUNK)
        assert link.record(0)["queued_nbytes"] == 0  # idle: nobody knows

    asyncio.run(scenario())
