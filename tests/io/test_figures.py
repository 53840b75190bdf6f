# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from bodocache.io.figures import Histogram, measure
from bodocache.pages import Reason


@pytest.mark.parametrize(
    ("values", "lows", "counts"),
    [
        ([], (0,), (0,)),
        ([0, 0], (0,), (2,)),
        ([1], (0, 1), (0, 1)),
        ([0, 1, 2, 3, 4, 7, 8], (0, 1, 2, 4, 8), (1, 1, 2, 2, 1)),
    ],
)
def test_a_histogram_counts_by_powers_of_two(values, lows, counts):
    assert Histogram.of(np.array(values, np.int64)) == Histogram(lows, counts)


def test_the_figures_of_a_fragmented_slab(bench):
    async def scenario(backend):
        backend.reserve(2, after=-1)
        buffers = bench.pages.buffers(7)
        bench.pages.fill(buffers, list(range(7)))
        frames = np.array([2, 3, 4, 8, 9, 12, 11])
        backend.reserve(14, after=-1)
        batch = bench.pages.batch(list(range(7)), frames)  # one chain
        await backend.put(batch, buffers, deadline_s=np.inf).drained()

    bench.run(scenario)
    bench.change_header(4, lambda row: row.view(np.uint8).fill(0), sealed=False)
    found = measure(bench.config.directory)
    assert (found.pages, found.fill) == (6, 6 / 16)
    assert found.reasons == {Reason.NEVER_STORED: 10}
    # 2 has none before it, 8's is gone; 3 and 9 are right behind theirs, 12 and 11 are not.
    assert (found.first_pages, found.orphans, found.children) == (1, 1, 4)
    assert (found.adjacent, found.adjacent_share, found.extent_pages) == (2, 0.5, 6 / 4)
    assert found.free_runs == Histogram((0, 1, 2, 4), (0, 1, 2, 1))  # 2, 4, 1 and 3 frames
    assert found.depths == Histogram((0, 1, 2, 4), (1, 1, 1, 3))
    assert found.ages == Histogram((0, 1, 2, 4), (1, 1, 2, 2))
    assert found.generation == 7


def test_the_free_runs_of_an_empty_slab_are_one_and_of_a_full_one_none(bench):
    bench.stored([])
    found = measure(bench.config.directory)
    assert (found.pages, found.extent_pages, found.adjacent_share) == (0, 0, 0)
    assert found.free_runs.counts == (0, 0, 0, 0, 0, 1)
    bench.stored(list(range(16)))
    found = measure(bench.config.directory)
    assert (found.fill, found.adjacent, found.extent_pages) == (1, 15, 16)
    assert found.free_runs.counts == (0,)


def test_what_it_occupies_and_what_it_may(bench):
    bench.stored([1])
    found = measure(bench.config.directory)
    files = (bench.payload, bench.headers)
    assert found.nbytes_on_disk == sum(path.stat().st_blocks * 512 for path in files)
    assert found.capacity_nbytes == bench.config.capacity_nbytes
    assert found.superblock.form == bench.config.form
