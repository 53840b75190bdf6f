# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache import jit
from bodocache.replay.policies.lru import seen_before
from bodocache.replay.policies.model import Touches, checked
from bodocache.replay.policy import Policy, simulate
from bodocache.replay.shapes import workload
from bodocache.replay.tiers import When, keep
from bodocache.replay.trace import load_trace

jit.warm()  # here, not in a test: a cold compile is not part of any test's time


@st.composite
def cases(draw):
    """Requests down a random tree, and a worth of 0, 1 or 2 for each touch."""
    parents = [draw(st.integers(-1, row - 1)) for row in range(draw(st.integers(1, 12)))]
    depths = [0] * len(parents)
    chains = [[row] for row in range(len(parents))]
    for row, parent in enumerate(parents):
        if parent >= 0:
            chains[row], depths[row] = [*chains[parent], row], depths[parent] + 1
    requests = [
        chains[end] for end in draw(st.lists(st.sampled_from(range(len(parents))), min_size=1))
    ]
    ids = np.concatenate([np.array(request, np.int64) for request in requests])
    worth = draw(st.lists(st.integers(0, 2), min_size=len(ids), max_size=len(ids)))
    offsets = np.cumsum([0, *map(len, requests)])
    columns = ids, offsets, np.array(parents), np.array(depths), np.zeros(len(requests))
    return checked(Touches(*columns)), np.array(worth, np.float64)


def plain(touches, capacity, worth, threshold, when):
    """The same on sets, a page at a time: hits in host and disk, and the pages written."""
    host, disk, wanted, last = set(), set(), {}, {}
    in_host, on_disk = [], []
    for number, begin in enumerate(touches.offsets[:-1]):
        pages = touches.ids[begin : touches.offsets[number + 1]].tolist()
        leading = [page in host for page in pages].index(False) if set(pages) - host else len(pages)
        rest = pages[leading:]
        in_host.append(leading)
        on_disk.append([page in disk for page in [*rest, -1]].index(False))
        for page in rest[: max(0, capacity - leading)]:
            if len(host) == capacity:
                leaves = host - {touches.parents[other] for other in host} - set(pages)
                gone = min(leaves, key=lambda p: (last[p], -touches.depths[p], p))
                host.remove(gone)
                behind = any(touches.parents[other] == gone for other in disk)
                if when == When.LEAVE and (wanted[gone] or behind):
                    disk.add(gone)
            host.add(page)
        kept = pages[:capacity]
        for i, page in enumerate(kept):
            last[page], wanted[page] = number, worth[begin + i] >= threshold
            if when == When.STORE and worth[begin + i : begin + len(kept)].max() >= threshold:
                disk.add(page)
    return in_host, on_disk, len(disk)


@settings(max_examples=200, deadline=None)
@given(case=cases(), capacity=st.integers(1, 8), when=st.sampled_from(When))
def test_tiers_do_what_a_plain_program_does(case, capacity, when):
    touches, worth = case
    done = keep(touches, capacity, worth, 1.0, when)
    in_host, on_disk, written = plain(touches, capacity, worth, 1.0, when)
    assert done.host_hits.tolist() == in_host
    assert done.disk_hits.tolist() == on_disk
    assert done.written == written


@settings(max_examples=100, deadline=None)
@given(case=cases(), capacity=st.integers(1, 8))
def test_the_host_alone_is_lru(case, capacity):
    touches, worth = case
    nothing = keep(touches, capacity, worth, 9.0, When.STORE)
    assert nothing.host_hits.tolist() == simulate(Policy.LRU, touches, capacity).hits.tolist()
    assert (nothing.disk_hits.sum(), nothing.written) == (0, 0)


@pytest.fixture(scope="module")
def chat():
    trace = load_trace(workload("chat", seed=5, requests=1500))
    columns = trace.pages, trace.offsets, trace.parent, trace.depth, trace.timestamps_s
    return checked(Touches(*columns))


@pytest.mark.parametrize("when", When)
def test_write_through_loses_no_hit(chat, when):
    done = keep(chat, 500, np.zeros(len(chat.ids)), 0.0, when)
    assert done.hits == seen_before(chat).sum()
    assert done.written <= len(chat.parents)


def test_written_at_the_store_is_every_page_once(chat):
    assert keep(chat, 500, np.zeros(len(chat.ids)), 0.0, When.STORE).written == len(chat.parents)


@pytest.mark.parametrize("when", When)
def test_a_higher_threshold_writes_less_and_hits_less(chat, when):
    worth = np.random.default_rng(1).random(len(chat.timestamps_s))
    worth = np.repeat(worth, np.diff(chat.offsets))
    steps = [keep(chat, 500, worth, threshold, when) for threshold in (0.1, 0.4, 0.7, 0.95)]
    for more, less in pairwise(steps):
        assert more.written > less.written
        assert more.hits > less.hits
        assert more.host_hits.tolist() == less.host_hits.tolist()


def test_waiting_until_a_page_leaves_writes_fewer_for_the_same_hits(chat):
    last = np.zeros(len(chat.parents), np.int64)
    np.maximum.at(last, chat.ids, np.arange(len(chat.ids)))
    again = (last[chat.ids] > np.arange(len(chat.ids))).astype(np.float64)
    store, leave = (keep(chat, 500, again, 1.0, when) for when in (When.STORE, When.LEAVE))
    assert store.hits == leave.hits == seen_before(chat).sum()
    assert leave.written < store.written


def test_what_does_not_fit_together_is_refused(chat):
    with pytest.raises(ValueError, match="worth has 3 values, expected"):
        keep(chat, 500, np.zeros(3), 1.0, When.STORE)
    with pytest.raises(ValueError, match="capacity_pages=0, expected at least 1"):
        keep(chat, 0, np.zeros(len(chat.ids)), 1.0, When.STORE)
