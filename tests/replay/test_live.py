# SPDX-License-Identifier: Apache-2.0
import asyncio
import threading

import numpy as np
import pytest

from bodocache import jit
from bodocache.errors import BackendLocked, ConfigError
from bodocache.kernels.host import compiled as host_path
from bodocache.pages import Tier
from bodocache.replay import live, payload
from bodocache.replay.live import LiveOptions, Sizes, replay_live, sizes_for
from bodocache.replay.requests import TraceRequest
from bodocache.replay.trace import build_trace
from bodocache.replay.workload import WorkloadConfig, generate

host_path()
jit.warm()  # here, not in a test: a cold compile is not part of any test's time


@pytest.fixture(scope="module")
def trace():
    return build_trace("some", generate(WorkloadConfig(requests=60, mean_turns=4)))


@pytest.fixture
def options(tmp_path):
    def made(**changes):
        small = {"page_nbytes": 4096, "write_through": True}
        return LiveOptions(tmp_path, **{**small, **changes})

    return made


def test_sixty_requests_hit_in_all_tiers_without_a_wrong_byte(trace, options):
    longest = int(np.diff(trace.offsets).max())
    chosen = options(in_flight=1, device_pages=longest, host_pages=2 * longest, disk_pages=3000)
    run = asyncio.run(replay_live(trace, chosen))
    assert run.wrong_bytes == 0
    assert run.stats.hits == run.hits.sum()
    assert run.hits.sum() + sum(run.stats.misses.values()) == trace.touches
    hits = run.stats.traffic.hits
    assert hits[Tier.DEVICE] > 0
    assert hits[Tier.HOST] > 0
    assert hits[Tier.DISK] > 0
    assert run.stats.traffic.task_failures == run.stats.traffic.failed_checks == 0


def test_pages_larger_than_a_chunk_are_replayed_and_read_again(options):
    pages = ([1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 2, 3])
    few = build_trace("few", [TraceRequest(0, 1536, 1, tuple(ids)) for ids in pages])
    sizes = {"device_pages": 3, "host_pages": 4, "disk_pages": 12}
    run = asyncio.run(replay_live(few, options(page_nbytes=3 << 20, in_flight=1, **sizes)))
    assert run.stats.traffic.hits[Tier.DISK] > 0
    assert run.wrong_bytes == 0
    reads = [extent for extent in run.extents if not extent.writes]
    assert run.plain_reads.nbytes == sum(extent.nbytes for extent in reads)


def test_a_second_run_on_the_directory_starts_warm(trace, options):
    chosen = options(disk_pages=trace.distinct)
    cold = asyncio.run(replay_live(trace, chosen))
    warm = asyncio.run(replay_live(trace, chosen))
    assert not cold.recovered.any()
    assert warm.recovered.sum() > trace.distinct // 2
    assert warm.hits.sum() > cold.hits.sum()
    assert warm.stats.traffic.hits[Tier.DISK] > 0
    assert warm.wrong_bytes == cold.wrong_bytes == 0


def test_wrong_bytes_of_a_load_are_counted(trace, options, monkeypatch):
    sound, calls = payload.count_wrong_bytes, []

    def tampered(words, slots, seeds):
        calls.append(words[0, 0, slots[0], 0])
        words[0, 0, slots[0], 0] ^= np.uint64(0xFF)
        wrong = sound(words, slots, seeds)
        words[0, 0, slots[0], 0] ^= np.uint64(0xFF)
        return wrong

    monkeypatch.setattr(payload, "count_wrong_bytes", tampered)
    run = asyncio.run(replay_live(trace, options(in_flight=1)))
    assert run.wrong_bytes == len(calls) > 0


def test_a_deadline_costs_hits_and_nothing_else(trace, options):
    run = asyncio.run(replay_live(trace, options(deadline_s=0.0)))
    assert run.wrong_bytes == 0
    assert run.hits.sum() + sum(run.stats.misses.values()) == trace.touches


def test_requests_are_reported_as_they_end_and_threads_go(trace, options):
    before, seen = set(threading.enumerate()), []
    asyncio.run(replay_live(trace, options(), seen.append))
    assert seen == [*range(1, trace.num_requests + 1)]
    assert set(threading.enumerate()) == before


def test_sizes_are_shares_of_the_distinct_pages_with_room_for_the_longest(trace, options):
    longest = int(np.sort(np.diff(trace.offsets))[-4:].sum())
    sizes = sizes_for(trace, options())
    assert sizes.device == max(-(-trace.distinct // 20), longest)
    assert sizes.disk == -(-trace.distinct // 2)
    assert sizes.total == sizes.device + sizes.host + sizes.disk
    chosen = options(device_pages=1, host_pages=2, disk_pages=3)
    assert sizes_for(trace, chosen) == Sizes(1, 2, 3)


@pytest.mark.parametrize("changes", [{"page_nbytes": 0}, {"page_nbytes": 5000}, {"in_flight": 0}])
def test_options_out_of_range_are_errors(options, changes):
    with pytest.raises(ConfigError):
        options(**changes)


def test_a_directory_in_use_is_refused(trace, options):
    async def scenario():
        task = asyncio.create_task(replay_live(trace, options()))
        await asyncio.sleep(0.05)
        with pytest.raises(BackendLocked):
            await replay_live(trace, options())
        await task

    asyncio.run(scenario())


def test_a_page_of_a_trace_weighs_what_its_tokens_would():
    assert live.TOKENS_SCALE * live.PAGE_TOKENS == 512
