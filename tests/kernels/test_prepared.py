# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from bodocache.errors import LayoutError
from bodocache.kernels import gather_pages, scatter_pages
from bodocache.kernels.prepared import PreparedCopies
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory

GROUP = Group("kv", layers=3, heads=2, head_dim=32, itemsize=2)


def pool(kind=LayoutKind.LAYER_FIRST, pages=9):
    layout = Layout(kind, GROUP, 4, pages)
    buffer = torch.randint(0, 256, (layout.pool_nbytes,), dtype=torch.uint8)
    return PagedMemory.of_layout(buffer, layout)


def some_rows(memory, count=7):
    return torch.randint(0, 256, (count, memory.page_nbytes), dtype=torch.uint8)


@pytest.mark.parametrize("kind", LayoutKind)
def test_a_prepared_gather_is_the_launchers(kind):
    memory = pool(kind)
    ours, theirs = some_rows(memory), some_rows(memory)
    theirs.copy_(ours)
    slots, rows = np.array([8, 0, 3]), np.array([1, 6, 2])
    digests = PreparedCopies(memory, ours).gather(slots, rows)
    expected = gather_pages(memory, slots, out=theirs, rows=rows)
    assert torch.equal(ours, theirs)
    assert np.array_equal(digests, expected.digests.numpy().view(np.uint64))


@pytest.mark.parametrize("kind", LayoutKind)
def test_a_prepared_scatter_is_the_launchers(kind):
    ours = pool(kind)
    theirs = PagedMemory.of_layout(ours.owner.clone(), Layout(kind, GROUP, 4, 9))
    pages, slots, rows = some_rows(ours), np.array([8, 0, 3]), np.array([1, 6, 2])
    digests = PreparedCopies(ours, pages).scatter(rows, slots)
    expected = scatter_pages(pages, theirs, slots, rows=rows)
    assert torch.equal(ours.owner, theirs.owner)
    assert np.array_equal(digests, expected.numpy().view(np.uint64))


@pytest.mark.parametrize(("slots", "rows"), [([9], [0]), ([-1], [0]), ([0], [7]), ([0, 1], [0])])
def test_an_index_out_of_range_moves_nothing(slots, rows):
    memory = pool()
    pages = some_rows(memory)
    before = memory.owner.clone()
    with pytest.raises(LayoutError, match="within 9 pages and 7 rows"):
        PreparedCopies(memory, pages).scatter(np.array(rows), np.array(slots))
    assert torch.equal(memory.owner, before)


def test_pages_of_another_size_are_refused_when_prepared():
    with pytest.raises(LayoutError, match="pages"):
        PreparedCopies(pool(), torch.zeros(4, 16, dtype=torch.uint8))
