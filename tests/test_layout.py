# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bodocache.errors import LayoutError
from bodocache.layout import (
    POINT,
    Group,
    KVShape,
    Layout,
    LayoutKind,
    PagedMemory,
    Rule,
    RuleKind,
    window,
)

GQA = Group("kv", layers=3, heads=4, head_dim=8, itemsize=2)
MLA = Group("kv", layers=3, heads=1, head_dim=24, itemsize=2, kv=1)
FP8 = Group("kv", layers=2, heads=3, head_dim=16, itemsize=1)
N, P = 5, 4

# Each layout as the shape DESIGN.md writes, and how to bring it to (N, L, 2, P, H, row).
SHAPES = {
    LayoutKind.LAYER_FIRST: lambda k, l, h, r: ((k, l, N, P, h, r), (2, 1, 0, 3, 4, 5)),
    LayoutKind.PAGE_FIRST: lambda k, l, h, r: ((k, N, P, l, h, r), (1, 3, 0, 2, 4, 5)),
    LayoutKind.PAGE_FIRST_DIRECT: lambda k, l, h, r: ((k, N, l, P, h, r), (1, 2, 0, 3, 4, 5)),
    LayoutKind.PAGE_HEAD: lambda k, l, h, r: ((k, N, h, P, l, r), (1, 4, 0, 3, 2, 5)),
    LayoutKind.PAGE: lambda k, l, h, r: ((N, l, k, P, h, r), (0, 1, 2, 3, 4, 5)),
}

layouts = pytest.mark.parametrize("kind", LayoutKind)
groups = pytest.mark.parametrize("group", [GQA, MLA, FP8], ids=["gqa", "mla", "fp8"])


def addresses(kind, group):
    """Offset of every row as torch lays the written shape out: [N, L, kv, P, H]."""
    shape, order = SHAPES[kind](group.kv, group.layers, group.heads, group.row_nbytes)
    nbytes = N * group.page_nbytes(P)
    return torch.arange(nbytes).view(shape).permute(order)[..., 0]


@layouts
@groups
def test_strides_are_those_of_the_written_shape(kind, group):
    layout = Layout(kind, group, P, N)
    expected = addresses(kind, group)
    memory = PagedMemory.of_layout(torch.zeros(layout.pool_nbytes, dtype=torch.uint8), layout)
    for n, l, k, t, h in itertools.product(*map(range, expected.shape)):
        offset = (memory.bases[l, k] - memory.owner.data_ptr()) + n * memory.page_stride
        offset += t * memory.token_stride + h * memory.head_stride
        assert offset == expected[n, l, k, t, h]


@layouts
@groups
def test_the_pieces_of_all_pages_tile_the_pool(kind, group):
    layout = Layout(kind, group, P, N)
    covered = torch.zeros(layout.pool_nbytes, dtype=torch.int)
    for page in range(N):
        for offset, nbytes in layout.pieces(page):
            covered[offset : offset + nbytes] += 1
    assert bool((covered == 1).all())


@layouts
@groups
@given(data=st.data())
def test_pieces_of_a_range_hold_its_rows_and_no_others(kind, group, data):
    first = data.draw(st.integers(0, group.layers - 1))
    layers = range(first, data.draw(st.integers(first + 1, group.layers)))
    first = data.draw(st.integers(0, group.heads - 1))
    heads = range(first, data.draw(st.integers(first + 1, group.heads)))
    pieces = Layout(kind, group, P, N).pieces(2, layers, heads)
    rows = addresses(kind, group)[2, layers.start : layers.stop, :, :, heads.start : heads.stop]
    found = {o + i for o, n in pieces for i in range(0, n, group.row_nbytes)}
    assert found == set(rows.flatten().tolist())


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        (LayoutKind.LAYER_FIRST, 6),
        (LayoutKind.PAGE_FIRST, 2),
        (LayoutKind.PAGE_FIRST_DIRECT, 2),
        (LayoutKind.PAGE_HEAD, 2),
        (LayoutKind.PAGE, 1),
    ],
)
def test_a_whole_page_is_as_few_pieces_as_its_layout_allows(kind, count):
    assert len(Layout(kind, GQA, P, N).pieces(1)) == count


def test_a_page_beyond_the_pool_is_an_error():
    with pytest.raises(LayoutError, match="page 5: the pool has 5"):
        Layout(LayoutKind.PAGE, GQA, P, N).pieces(5)


@pytest.mark.parametrize("layers", [range(0), range(2, 4), range(-1, 2), range(0, 3, 2)])
def test_a_range_out_of_bounds_is_an_error(layers):
    with pytest.raises(LayoutError, match="layers"):
        Layout(LayoutKind.PAGE, GQA, P, N).pieces(0, layers)


def test_an_engines_layer_tensors_are_pages():
    keys = [torch.zeros(N * P, 4, 8, dtype=torch.bfloat16) for _ in range(3)]
    values = [torch.zeros(N * P, 4, 8, dtype=torch.bfloat16) for _ in range(3)]
    memory = PagedMemory.of_layers(keys, values, P)
    assert memory.page_nbytes == GQA.page_nbytes(P)
    assert memory.bases[1].tolist() == [keys[1].data_ptr(), values[1].data_ptr()]
    assert (memory.num_pages, memory.page_stride) == (N, P * 4 * 8 * 2)


def test_heads_of_strided_tensors_are_a_shard():
    keys = [torch.zeros(N * P, 4, 8, dtype=torch.bfloat16)]
    memory = PagedMemory.of_layers(keys, None, P).only(heads=range(2, 4))
    assert memory.bases[0, 0] == keys[0].data_ptr() + 2 * 8 * 2
    assert (memory.heads, memory.token_stride) == (2, 4 * 8 * 2)


def test_layers_that_differ_name_both_sides():
    keys = [torch.zeros(8, 4, 8), torch.zeros(8, 2, 8)]
    with pytest.raises(LayoutError, match=r"\[8, 2, 8\].*against \[8, 4, 8\]"):
        PagedMemory.of_layers(keys, None, P)


def test_a_tensor_that_is_no_whole_number_of_pages_is_an_error():
    with pytest.raises(LayoutError, match="slots"):
        PagedMemory.of_layers([torch.zeros(9, 4, 8)], None, P)


@pytest.mark.parametrize("field", ["layers", "heads", "head_dim", "itemsize"])
def test_a_group_without_extent_is_an_error(field):
    sizes = {"layers": 1, "heads": 1, "head_dim": 16, "itemsize": 1, field: 0}
    with pytest.raises(LayoutError, match=field):
        Group("kv", **sizes)


def test_a_page_is_a_multiple_of_16_bytes():
    with pytest.raises(LayoutError, match="multiple of 16"):
        Layout(LayoutKind.PAGE, Group("kv", 1, 1, 3, 1), 1, 1)


def test_a_memory_too_small_is_an_error():
    layout = Layout(LayoutKind.PAGE, GQA, P, N)
    with pytest.raises(LayoutError, match="needed"):
        PagedMemory.of_layout(torch.zeros(16, dtype=torch.uint8), layout)


def test_a_window_needs_its_length_and_others_have_none():
    assert window(64).window_tokens == 64
    for kind, tokens in ((RuleKind.WINDOW, 0), (RuleKind.ALL, 4), (RuleKind.POINT, 4)):
        with pytest.raises(LayoutError):
            Rule(kind, tokens)


def test_groups_of_a_shape_have_names_of_their_own():
    with pytest.raises(LayoutError, match="repeat"):
        KVShape(16, (GQA, Group("kv", 1, 1, 16, 2, rule=POINT)))
