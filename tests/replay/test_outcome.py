# SPDX-License-Identifier: Apache-2.0
import asyncio

import numpy as np
import pytest
from rich.console import Console

from bodocache import jit
from bodocache.kernels.host import compiled as host_path
from bodocache.replay import outcome
from bodocache.replay.live import LiveOptions, replay_live
from bodocache.replay.requests import TraceRequest
from bodocache.replay.trace import build_trace

host_path()
jit.warm()


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Three requests on pools that hold everything: pages 1-2-3, then 1-2-4, then 1-2-3 again."""
    pages = ([1, 2, 3], [1, 2, 4], [1, 2, 3])
    requests = [TraceRequest(0, 1536, 1, tuple(ids)) for ids in pages]
    trace = build_trace("three", requests)
    options = LiveOptions(tmp_path_factory.mktemp("cache"), page_nbytes=4096, in_flight=1)
    return outcome.judge(trace, asyncio.run(replay_live(trace, options)))


def test_hits_are_those_of_the_optimum_where_everything_fits(judged):
    assert (judged.page_hits, judged.optimum_hits, judged.regret) == (5, 5, 0.0)


def test_figures_add_up(judged):
    figures = outcome.as_json(judged)
    assert (figures["pages_touched"], figures["page_hits"]) == (9, 5)
    assert sum(figures["misses"].values()) == 4
    assert figures["bytes_stored"] == 4 * 4096
    assert figures["bytes_loaded"] == 0  # all hits were on the device
    assert figures["disk_reads"] is None


def test_wrong_bytes_stand_out_in_the_summary(judged):
    console = Console(record=True, width=100)
    judged.run.wrong_bytes = 17
    outcome.print_summary(judged, console)
    judged.run.wrong_bytes = 0
    assert "17 wrong bytes" in console.export_text()


def test_nothing_to_hit_is_no_regret(judged):
    judged.run.hits[:], hits = 0, judged.run.hits.copy()
    assert judged.regret == 1.0
    judged.optimum[:], optimum = 0, judged.optimum.copy()
    assert judged.regret == 0.0
    judged.run.hits[:], judged.optimum[:] = hits, optimum
    assert np.array_equal(hits, optimum)
