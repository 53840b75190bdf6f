# SPDX-License-Identifier: Apache-2.0
from functools import cache
from itertools import chain, combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache.plan import optimum

NEVER = 10**9


@st.composite
def traces(draw, pages, requests):
    """A random tree and paths down it: (requests, parents)."""
    parents = [draw(st.integers(-1, row - 1)) for row in range(draw(st.integers(1, pages)))]
    ends = draw(st.lists(st.integers(0, len(parents) - 1), min_size=1, max_size=requests))
    return [path(parents, end) for end in ends], parents


def path(parents, row):
    return [*path(parents, parents[row]), row] if row >= 0 else []


@st.composite
def resident(draw, parents):
    """A set of pages with all their ancestors."""
    ends = draw(st.lists(st.integers(0, len(parents) - 1), max_size=4))
    flags = np.zeros(len(parents), np.bool_)
    flags[[page for end in ends for page in path(parents, end)]] = True
    return flags


def columns(requests):
    offsets = np.cumsum([0, *map(len, requests)]).astype(np.int64)
    return np.array(list(chain(*requests)), np.int64), offsets


def plain_min(requests, parents, capacity, present):
    """Keep those used again soonest, shallowest first on ties, of the old and the own pages."""

    def next_use(page, after):
        return next((r for r in range(after, len(requests)) if page in requests[r]), NEVER)

    def keep(pages, after):
        ranked = [(next_use(page, after), len(path(parents, page)), page) for page in pages]
        return {page for use, _, page in sorted(ranked)[:capacity] if use < NEVER}

    present, hits = keep(present, 0), []
    for number, pages in enumerate(requests):
        hits.append(leading(pages, present))
        present = keep(present | set(pages), number + 1)
    return hits


def leading(pages, present):
    return next((i for i, page in enumerate(pages) if page not in present), len(pages))


@given(st.data(), traces(pages=12, requests=20), st.integers(0, 8))
@settings(max_examples=200, deadline=None)
def test_min_is_what_a_plain_program_finds(data, trace, capacity):
    requests, parents = trace
    start = data.draw(resident(parents))
    found = optimum.min_hits(*columns(requests), len(parents), capacity, start)
    assert found.hits.tolist() == plain_min(
        requests, parents, capacity, set(np.flatnonzero(start).tolist())
    )


@given(traces(pages=5, requests=6), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_no_choice_of_pages_to_keep_gives_more_hits(trace, capacity):
    requests, parents = trace

    @cache
    def best(number, present):
        if number == len(requests):
            return 0
        able = present | set(requests[number])
        kept = chain(*(combinations(sorted(able), n) for n in range(capacity + 1)))
        later = max(best(number + 1, frozenset(pages)) for pages in kept)
        return leading(requests[number], present) + later

    found = optimum.min_hits(*columns(requests), len(parents), capacity)
    assert found.hits.sum() == best(0, frozenset())


@given(st.data(), traces(pages=12, requests=20))
@settings(max_examples=50, deadline=None)
def test_room_for_everything_is_as_good_as_infinite_room(data, trace):
    requests, parents = trace
    start = data.draw(resident(parents))
    ids, offsets = columns(requests)
    infinite = optimum.infinite_hits(ids, offsets, len(parents), start)
    enough = optimum.min_hits(ids, offsets, len(parents), len(parents), start)
    assert infinite.tolist() == enough.hits.tolist()


def test_pages_let_pass_are_not_counted_as_inserted():
    ids, offsets = columns([[0, 1], [2], [0, 1], [2], [2]])
    found = optimum.min_hits(ids, offsets, 3, 2)
    assert found.hits.tolist() == [0, 0, 2, 0, 1]  # 2 passes by first: it is used after 0 and 1
    assert (found.inserted, found.evicted) == (3, 3)  # 0, 1, then 2; none is used again


def test_residents_that_do_not_fit_leave_before_the_start():
    ids, offsets = columns([[0, 1], [2]])
    found = optimum.min_hits(ids, offsets, 3, 1, np.array([True, True, True]))
    assert found.hits.tolist() == [1, 0]
    assert (found.inserted, found.evicted) == (0, 3)


def test_without_room_there_are_no_hits():
    ids, offsets = columns([[0, 1], [0, 1]])
    assert optimum.min_hits(ids, offsets, 2, 0).hits.tolist() == [0, 0]
