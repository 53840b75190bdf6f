# SPDX-License-Identifier: Apache-2.0
"""What is read and what is written must lie apart: against sets of bytes, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bodocache.errors import LayoutError
from bodocache.kernels import (
    Quantiser,
    check,
    copy_pages,
    gather_pages,
    gather_quantised,
    overlap,
    scatter_pages,
    scatter_quantised,
)
from bodocache.kernels.overlap import Relation
from bodocache.kernels.runs import runs_of, unmerged
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory

OWNER = torch.zeros(16, dtype=torch.uint8)
UNIT = 16


@st.composite
def memories(draw, page_stride=None):
    """Any bases and strides, also those that no engine would have."""
    layers, kv = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    tokens, heads = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    bases = draw(st.lists(st.integers(0, 40), min_size=layers * kv, max_size=layers * kv))
    head_stride, token_stride = draw(st.integers(0, 4)), draw(st.integers(0, 8))
    stride = draw(st.integers(0, 12)) if page_stride is None else page_stride
    return PagedMemory(
        bases=np.array(bases, np.int64).reshape(layers, kv) * UNIT,
        page_stride=stride * UNIT,
        token_stride=token_stride * UNIT,
        head_stride=head_stride * UNIT,
        row_nbytes=draw(st.integers(1, 2)) * UNIT,
        heads=heads,
        page_tokens=tokens,
        num_pages=draw(st.integers(1, 4)),
        device=torch.device("cpu"),
        owner=OWNER,
    )


def units(memory, page):
    """Units of a page, each as often as it has it."""
    return [
        int(base) // UNIT
        + (page * memory.page_stride + t * memory.token_stride + h * memory.head_stride) // UNIT
        + u
        for base in memory.bases.ravel()
        for t in range(memory.page_tokens)
        for h in range(memory.heads)
        for u in range(memory.row_nbytes // UNIT)
    ]


def all_units(memory):
    return [unit for page in range(memory.num_pages) for unit in units(memory, page)]


@settings(max_examples=200, deadline=None)
@given(memories())
def test_a_memory_shares_bytes_where_two_of_its_runs_do(memory):
    everything = all_units(memory)
    shares = len(set(everything)) < len(everything)
    assert unmerged(memory).shares_bytes == shares
    assert runs_of(memory).shares_bytes == shares


@settings(max_examples=200, deadline=None)
@given(st.data(), st.booleans())
def test_memories_are_apart_where_no_pages_of_them_meet(data, alike):
    ours = data.draw(memories())
    theirs = data.draw(memories(ours.page_stride // UNIT if alike else None))
    if data.draw(st.booleans()):
        theirs = replace(ours, bases=ours.bases + data.draw(st.integers(0, 20)) * UNIT)
    if unmerged(theirs).shares_bytes:  # it would have been refused
        return
    said = overlap.relation(unmerged(ours), unmerged(theirs))
    meet = not set(all_units(ours)).isdisjoint(all_units(theirs))
    if said is Relation.SAME:
        # Also where what is K beside V here is two layers there.
        assert sorted(ours.bases.ravel().tolist()) == sorted(theirs.bases.ravel().tolist())
        assert len(set(all_units(ours))) == len(all_units(ours))
    elif ours.page_stride == theirs.page_stride:
        assert (said is Relation.MIXED) == meet
    else:
        assert said is Relation.MIXED or not meet
    slots = data.draw(st.lists(st.integers(0, ours.num_pages - 1), min_size=1))
    to = data.draw(st.lists(st.integers(0, theirs.num_pages - 1), min_size=1))
    read = {unit for page in slots for unit in units(ours, page)}
    written = {unit for page in to for unit in units(theirs, page)}
    arguments = (unmerged(ours), torch.tensor(slots), unmerged(theirs), torch.tensor(to))
    if read.isdisjoint(written):
        overlap.check_pages("op", *arguments)
    else:
        with pytest.raises(LayoutError, match="op: pages of source and of destination share"):
            overlap.check_pages("op", *arguments)


def head_first(pages, layers=4):
    """A pool in which a head of all pages lies apart from the next one's; of no real memory."""
    tokens, heads, row = 16, 8, 256
    head_stride = pages * tokens * row
    bases = np.arange(2 * layers, dtype=np.int64).reshape(layers, 2) * heads * head_stride
    return PagedMemory(
        bases=bases,
        page_stride=tokens * row,
        token_stride=row,
        head_stride=head_stride,
        row_nbytes=row,
        heads=heads,
        page_tokens=tokens,
        num_pages=pages,
        device=torch.device("cpu"),
        owner=OWNER,
    )


@pytest.mark.parametrize("form", [runs_of, unmerged])
def test_a_look_at_a_thousand_million_pages_is_as_long_as_at_a_few(form):
    """Page by page it would take hours, and more memory than there is."""
    memory = head_first(10**9)
    assert not form(memory).shares_bytes
    assert form(replace(memory, head_stride=memory.head_stride - 256)).shares_bytes
    early, late = (form(memory.only(layers=range(i, i + 1))) for i in (0, 1))
    assert overlap.relation(early, late) is Relation.APART
    shifted = form(replace(memory, bases=memory.bases + 256))
    assert overlap.relation(form(memory), shifted) is Relation.MIXED


GROUP = Group("g", layers=3, heads=2, head_dim=16, itemsize=2)


def pool(kind=LayoutKind.LAYER_FIRST, pages=8):
    layout = Layout(kind, GROUP, 2, pages)
    memory = torch.randint(0, 256, (layout.pool_nbytes,), dtype=torch.uint8)
    return PagedMemory.of_layout(memory, layout), memory


@pytest.mark.parametrize("kind", LayoutKind)
def test_overlapping_layers_of_one_memory_are_refused(kind):
    memory, _ = pool(kind)
    early, late = memory.only(layers=range(2)), memory.only(layers=range(1, 3))
    with pytest.raises(LayoutError, match="share bytes"):
        copy_pages(early, late, torch.tensor([0]), torch.tensor([0]))
    copy_pages(early, late, torch.tensor([0]), torch.tensor([1]))


@pytest.mark.parametrize("kind", LayoutKind)
def test_layers_apart_in_one_memory_are_copied_without_a_look_at_pages(kind, monkeypatch):
    memory, _ = pool(kind)
    monkeypatch.setattr(overlap, "check_pages", None)
    first, last = memory.only(layers=range(1)), memory.only(layers=range(2, 3))
    copy_pages(first, last, torch.tensor([0]), torch.tensor([0]))
    assert torch.equal(
        gather_pages(first, torch.tensor([0])).pages, gather_pages(last, torch.tensor([0])).pages
    )


def test_views_of_one_memory_that_are_shifted_by_a_page_are_refused_where_pages_meet():
    layout = Layout(LayoutKind.PAGE, GROUP, 2, 7)
    memory = torch.zeros(8 * layout.page_nbytes, dtype=torch.uint8)
    ours = PagedMemory.of_layout(memory[: layout.pool_nbytes], layout)
    theirs = PagedMemory.of_layout(memory[layout.page_nbytes :], layout)
    with pytest.raises(LayoutError, match="copy_pages: pages of source and of destination share"):
        copy_pages(ours, theirs, torch.arange(7), torch.arange(7))
    copy_pages(ours, theirs, torch.tensor([0, 1]), torch.tensor([1, 2]))


FORM = {"dtype": torch.bfloat16, "quantiser": Quantiser.INT8}


def test_rows_inside_their_own_pool_are_refused():
    memory, flat = pool(LayoutKind.PAGE)
    rows = flat.view(8, -1)
    with pytest.raises(LayoutError, match="gather_pages: pages of the pool and of the rows share"):
        gather_pages(memory, torch.arange(3), out=rows[2:5])
    gather_pages(memory, torch.arange(3), out=rows[3:6])
    with pytest.raises(LayoutError, match="scatter_pages: pages of the pool and of the rows"):
        scatter_pages(rows[2:5], memory, torch.arange(3))
    scatter_pages(rows[3:6], memory, torch.arange(3))
    stored = rows[:4, : gather_quantised(memory, torch.tensor([0]), **FORM).pages.shape[1]]
    with pytest.raises(LayoutError, match="gather_quantised: pages of the pool and of the rows"):
        gather_quantised(memory, torch.tensor([3]), **FORM, out=stored, rows=torch.tensor([3]))
    with pytest.raises(LayoutError, match="scatter_quantised: pages of the pool and of the rows"):
        scatter_quantised(stored, memory, torch.tensor([3]), **FORM, rows=torch.tensor([3]))


def test_pages_that_share_bytes_are_read_and_not_written():
    layer = torch.zeros(1, 2, 16, dtype=torch.bfloat16)
    shared = PagedMemory.of_layers([layer.expand(8, 2, 16)], None, 2)
    pages = gather_pages(shared, torch.tensor([0, 1])).pages
    with pytest.raises(LayoutError, match="scatter_pages: pages of destination share bytes"):
        scatter_pages(pages, shared, torch.tensor([0]))
    with pytest.raises(LayoutError, match="scatter_quantised: pages of destination share bytes"):
        scatter_quantised(pages, shared, torch.tensor([0]), **FORM)
    with pytest.raises(LayoutError, match="copy_pages: pages of destination share bytes"):
        copy_pages(shared, shared, torch.tensor([0]), torch.tensor([1]))


def test_indices_on_a_gpu_are_looked_at_in_debug_mode_only():
    class OnGpu:  # a tensor as the checker sees it
        device = torch.device("cuda")

        def numel(self):
            return 1

        def cpu(self):
            return torch.tensor([0])

    runs = runs_of(pool()[0])
    overlap.check_pages("op", runs, OnGpu(), runs, OnGpu())
    with check.checked_indices(), pytest.raises(LayoutError, match="share bytes"):
        overlap.check_pages("op", runs, OnGpu(), runs, OnGpu())
