# SPDX-License-Identifier: Apache-2.0
"""Copies between pools against their twin, bit for bit, and what they refuse.

Plain pytest runs the CPU path; test_interpreter.py runs this file again on the Triton kernel.
"""

import operator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bodocache import env
from bodocache.digest import raw_sums
from bodocache.errors import LayoutError
from bodocache.kernels import check, copy_and_sum_pages, copy_pages, copy_sums, gather_pages
from bodocache.kernels import copy as copying
from bodocache.kernels.copy import PageCopy
from bodocache.kernels.reference import copy as twin
from bodocache.kernels.select import LINK_BLOCKS, CopyPath
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory

INTERPRETED = env.triton_interpreted()


def pool(kind, num_pages, **shape):
    """Random pages of a layout, and their bytes."""
    layout = Layout(kind, Group("g", **shape), 3, num_pages)
    memory = torch.randint(0, 256, (layout.pool_nbytes,), dtype=torch.uint8)
    return PagedMemory.of_layout(memory, layout), memory


def path():
    """The SM kernel, interpreted; else what the CPU takes by itself."""
    return CopyPath.SM if INTERPRETED else None


SHAPES = st.fixed_dictionaries(
    {
        "layers": st.integers(1, 3),
        "heads": st.sampled_from([1, 2, 3]),
        "head_dim": st.sampled_from([8, 16, 40]),
        "itemsize": st.sampled_from([2, 4]),
        "kv": st.sampled_from([1, 2]),
    }
)


@settings(
    max_examples=25 if INTERPRETED else 80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    *(st.sampled_from(LayoutKind), st.sampled_from(LayoutKind), SHAPES, st.data()),
    st.sampled_from([torch.int32, torch.int64]),
)
def test_any_pair_of_layouts_copies_like_its_twin(ours, theirs, shape, data, dtype):
    source, _ = pool(ours, 4, **shape)
    destination, found = pool(theirs, 6, **shape)
    expected = found.clone()
    other = PagedMemory.of_layout(expected, Layout(theirs, Group("g", **shape), 3, 6))
    targets = data.draw(st.permutations(range(6)))[: data.draw(st.integers(0, 6))]
    chosen = data.draw(st.lists(st.integers(0, 3), min_size=len(targets), max_size=len(targets)))
    first = data.draw(st.integers(0, shape["layers"] - 1))
    ranges = {
        "layers": data.draw(st.sampled_from([None, range(first, shape["layers"])])),
        "heads": data.draw(st.sampled_from([None, range(shape["heads"] - 1, shape["heads"])])),
    }
    slots = (torch.tensor(chosen, dtype=dtype), torch.tensor(targets, dtype=dtype))
    copy_pages(source, destination, *slots, **ranges, path=path())
    twin.copy_pages(source.only(**ranges), other.only(**ranges), *slots)
    assert torch.equal(found, expected)  # and so nothing outside the named slots changed


@pytest.mark.parametrize("blocks", [0, True, 1.5])
def test_blocks_are_a_whole_number(blocks):
    layout = Layout(LayoutKind.PAGE, Group("g", 1, 1, 64, 2), 4, 4)
    pages = PagedMemory.of_layout(torch.zeros(layout.pool_nbytes, dtype=torch.uint8), layout)
    with pytest.raises(LayoutError, match=f"{blocks} blocks; expected a whole number"):
        PageCopy(pages, pages, blocks=blocks)


@pytest.mark.parametrize("blocks", [1, 3])
def test_few_blocks_move_everything(blocks):
    shape = {"layers": 2, "heads": 2, "head_dim": 64, "itemsize": 2}
    source, _ = pool(LayoutKind.LAYER_FIRST, 9, **shape)
    destination, _ = pool(LayoutKind.PAGE_FIRST, 9, **shape)
    slots = torch.arange(9), torch.arange(9).flip(0)
    copy_pages(source, destination, *slots, path=path(), blocks=blocks)
    expected = gather_pages(source, slots[0]).pages
    assert torch.equal(gather_pages(destination, slots[1]).pages, expected)


def test_a_shard_of_heads_lands_in_a_pool_of_all_heads():
    whole, _ = pool(LayoutKind.PAGE_FIRST, 3, layers=2, heads=4, head_dim=16, itemsize=2)
    shard, _ = pool(LayoutKind.LAYER_FIRST, 3, layers=2, heads=2, head_dim=16, itemsize=2)
    part = whole.only(heads=range(2, 4))
    copy_pages(shard, part, torch.tensor([1]), torch.tensor([2]), path=path())
    expected = gather_pages(shard, torch.tensor([1])).pages
    assert torch.equal(gather_pages(part, torch.tensor([2])).pages, expected)


@pytest.mark.parametrize("kind", LayoutKind)
@pytest.mark.parametrize("kv", [1, 2])
def test_sums_of_every_layer_are_those_of_its_bytes(kind, kv):
    shape = {"layers": 3, "heads": 2, "head_dim": 40, "itemsize": 2, "kv": kv}
    source, _ = pool(kind, 4, **shape)
    destination, _ = pool(LayoutKind.PAGE, 4, **shape)
    slots = torch.tensor([2, 0])
    sums = copy_and_sum_pages(source, destination, slots, torch.tensor([3, 1]))
    assert sums.layers == 3
    rows = gather_pages(destination, torch.tensor([3, 1])).pages.numpy()
    for i, row in enumerate(rows):
        for layer, part in enumerate(np.split(row, 3)):
            a, b = (int(x) for x in raw_sums(np.ascontiguousarray(part).view(np.uint32)))
            found = sums.words[i, layer].numpy().view(np.uint64)
            assert found.tolist() == [a % 2**64, b % 2**64]


@pytest.mark.parametrize("blocks", [None, 2])
def test_sums_over_a_link_take_as_few_blocks_as_copies_do(monkeypatch, blocks):
    source, _ = pool(LayoutKind.LAYER_FIRST, 4, layers=2, heads=1, head_dim=16, itemsize=2)
    destination, _ = pool(LayoutKind.PAGE, 4, layers=2, heads=1, head_dim=16, itemsize=2)
    object.__setattr__(destination, "device", torch.device("cuda:0"))
    asked = []

    class Launched:
        def run(self):
            pass

    def noted(_pair, _slots, blocks, *_, **__):
        asked.append(blocks)
        return Launched()

    monkeypatch.setattr(copy_sums, "launch_pair", noted)
    monkeypatch.setattr(check, "is_pinned", lambda _: True)
    monkeypatch.setattr(check, "on_gpu", lambda device: device.type == "cuda")
    monkeypatch.setattr(torch, "zeros", lambda shape, **_: torch.empty(shape, dtype=torch.int64))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, **__: self)
    copy_and_sum_pages(source, destination, torch.tensor([1]), torch.tensor([2]), blocks=blocks)
    assert asked == [blocks or LINK_BLOCKS]


def test_a_prepared_copy_is_used_again():
    source, _ = pool(LayoutKind.PAGE, 4, layers=1, heads=1, head_dim=16, itemsize=2)
    destination, _ = pool(LayoutKind.PAGE, 4, layers=1, heads=1, head_dim=16, itemsize=2)
    copy = PageCopy(source, destination, path=path())
    copy.run(torch.tensor([0]), torch.tensor([1]))
    copy.run(torch.tensor([3]), torch.tensor([2]))
    expected = gather_pages(source, torch.tensor([0, 3])).pages
    assert torch.equal(gather_pages(destination, torch.tensor([1, 2])).pages, expected)


@pytest.mark.parametrize("blocks", [None, 4])
def test_a_launch_of_a_prepared_copy_is_the_one_made_for_its_pages(blocks):
    shape = {"layers": 2, "heads": 2, "head_dim": 64, "itemsize": 2}
    source, _ = pool(LayoutKind.PAGE, 900, **shape)
    destination, _ = pool(LayoutKind.LAYER_FIRST, 900, **shape)
    copy = PageCopy(source, destination, blocks=blocks)
    for count in (1, 7, 900, 2):
        slots = torch.arange(count, dtype=torch.int32), torch.arange(count, dtype=torch.int32)
        found, made = copy.launch(*slots), copying.launch_pair(copy._pair, slots, blocks)
        assert (found.num_programs, found.constexprs) == (made.num_programs, made.constexprs)
        assert found.num_warps == made.num_warps
        assert found.arguments.keys() == made.arguments.keys()
        for name, value in made.arguments.items():
            same = operator.is_ if isinstance(value, torch.Tensor) else operator.eq
            assert same(found.arguments[name], value)


def test_empty_indices_copy_nothing():
    source, memory = pool(LayoutKind.PAGE, 2, layers=1, heads=1, head_dim=16, itemsize=2)
    before = memory.clone()
    nothing = torch.empty(0, dtype=torch.int64)
    copy_pages(source, source, nothing, nothing, path=path())
    assert torch.equal(memory, before)


@pytest.mark.parametrize(
    ("slots", "targets", "says"),
    [
        ([0, 4], [0, 1], "source_slots has 4; source has 4 pages"),
        ([0, 1], [0, -1], "destination_slots has -1"),
        ([0, 1], [3, 3], "destination_slots has 3 twice"),
        ([0, 1, 2], [3, 2], "n = "),
    ],
)
def test_bad_indices_are_refused_before_anything_moves(slots, targets, says):
    source, _ = pool(LayoutKind.PAGE, 4, layers=1, heads=1, head_dim=16, itemsize=2)
    destination, memory = pool(LayoutKind.PAGE, 4, layers=1, heads=1, head_dim=16, itemsize=2)
    before = memory.clone()
    with pytest.raises(LayoutError, match=says):
        copy_pages(source, destination, torch.tensor(slots), torch.tensor(targets))
    assert torch.equal(memory, before)


def test_a_page_of_one_memory_is_read_or_written():
    source, _ = pool(LayoutKind.PAGE, 4, layers=1, heads=1, head_dim=16, itemsize=2)
    with pytest.raises(LayoutError, match="both have 1"):
        copy_pages(source, source, torch.tensor([0, 1]), torch.tensor([1, 2]))


def test_pages_of_other_rows_are_refused_by_both_names():
    source, _ = pool(LayoutKind.PAGE, 4, layers=1, heads=2, head_dim=16, itemsize=2)
    destination, _ = pool(LayoutKind.PAGE, 4, layers=1, heads=4, head_dim=16, itemsize=2)
    with pytest.raises(LayoutError, match="source and destination differ: heads 2 and 4"):
        copy_pages(source, destination, torch.tensor([0]), torch.tensor([1]))


def test_indices_of_two_types_are_refused():
    source, _ = pool(LayoutKind.PAGE, 4, layers=1, heads=1, head_dim=16, itemsize=2)
    slots = torch.tensor([0], dtype=torch.int32), torch.tensor([1])
    with pytest.raises(LayoutError, match=r"source_slots is torch\.int32; destination_slots is"):
        copy_pages(source, source, *slots)


def test_no_blocks_are_refused():
    source, _ = pool(LayoutKind.PAGE, 4, layers=1, heads=1, head_dim=16, itemsize=2)
    with pytest.raises(LayoutError, match="0 blocks"):
        PageCopy(source, source, blocks=0)


@pytest.mark.skipif(INTERPRETED, reason="everything counts as a GPU there")
def test_a_gpu_path_between_host_pools_is_refused():
    source, _ = pool(LayoutKind.PAGE, 4, layers=1, heads=1, head_dim=16, itemsize=2)
    with pytest.raises(LayoutError, match="path sm: source and destination are on the CPU"):
        copy_pages(source, source, torch.tensor([0]), torch.tensor([1]), path=CopyPath.SM)


@pytest.mark.skipif(INTERPRETED, reason="everything counts as a GPU there")
def test_pageable_host_memory_is_refused_beside_a_gpu(monkeypatch):
    source, _ = pool(LayoutKind.PAGE, 4, layers=1, heads=1, head_dim=16, itemsize=2)
    destination, _ = pool(LayoutKind.PAGE, 4, layers=1, heads=1, head_dim=16, itemsize=2)
    object.__setattr__(destination, "device", torch.device("cuda:0"))
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda _: False)
    with pytest.raises(LayoutError, match="source is pageable host memory"):
        PageCopy(source, destination)


def test_the_debug_mode_checks_disjointness_too():
    with check.checked_indices(), pytest.raises(LayoutError, match="both have 2"):
        check.disjoint("op", ours=torch.tensor([2]), theirs=torch.tensor([2, 3]))
