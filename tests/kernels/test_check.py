# SPDX-License-Identifier: Apache-2.0
"""What launchers refuse, and that the message names both sides."""

import numpy as np
import pytest
import torch

from bodocache.errors import LayoutError
from bodocache.kernels import (
    DevicePages,
    PageCopy,
    check,
    coldest_pages,
    digest_pages,
    gather_pages,
    scatter_pages,
)
from bodocache.layout import LayoutKind, PagedMemory
from bodocache.pages import PAGE


@pytest.fixture
def memory(make_pool):
    return make_pool(LayoutKind.LAYER_FIRST).memory


def pages(memory, count=4):
    return torch.zeros((count, memory.page_nbytes), dtype=torch.uint8)


@pytest.mark.parametrize("slot", [-1, 5])
def test_slot_out_of_range_names_the_pool(memory, slot):
    slots = torch.tensor([0, slot])
    with pytest.raises(LayoutError, match=rf"gather_pages: slots has {slot}; source has 5 pages"):
        gather_pages(memory, slots)
    with pytest.raises(LayoutError, match=rf"slots has {slot}; destination has 5 pages"):
        scatter_pages(pages(memory), memory, slots)


def test_two_pages_in_one_slot_are_refused(memory):
    with pytest.raises(LayoutError, match="slots has 3 twice; each page of destination"):
        scatter_pages(pages(memory), memory, torch.tensor([3, 1, 3]))


def test_two_pages_in_one_row_are_refused(memory):
    rows = torch.tensor([2, 2])
    with pytest.raises(LayoutError, match="rows has 2 twice; each page of out"):
        gather_pages(memory, torch.tensor([0, 1]), out=pages(memory), rows=rows)


def test_row_out_of_range_names_the_pages(memory):
    slots, rows = torch.tensor([0]), torch.tensor([4])
    with pytest.raises(LayoutError, match="rows has 4; out has 4 pages"):
        gather_pages(memory, slots, out=pages(memory), rows=rows)
    with pytest.raises(LayoutError, match="rows has 4; pages has 4 pages"):
        scatter_pages(pages(memory), memory, slots, rows=rows)


def test_too_few_rows_for_the_slots(memory):
    with pytest.raises(LayoutError, match="slots has 2 pages; out has 1"):
        gather_pages(memory, torch.tensor([0, 1]), out=pages(memory, 1))


def test_rows_need_out(memory):
    with pytest.raises(LayoutError, match="rows are given without out"):
        gather_pages(memory, torch.tensor([0]), rows=torch.tensor([0]))


def test_as_many_rows_as_slots(memory):
    rows = torch.tensor([0, 1])
    with pytest.raises(LayoutError, match=r"rows is int64\[2\].*n = 1, as in slots"):
        gather_pages(memory, torch.tensor([0]), out=pages(memory), rows=rows)


def test_rows_and_slots_share_their_dtype(memory):
    rows = torch.tensor([0], dtype=torch.int32)
    with pytest.raises(LayoutError, match=r"rows is torch.int32; slots is torch.int64"):
        gather_pages(memory, torch.tensor([0]), out=pages(memory), rows=rows)


@pytest.mark.parametrize(
    "slots",
    [
        *(torch.tensor([0.0]), torch.tensor([True]), torch.tensor(1), torch.tensor([[1]])),
        *(np.array([0], np.uint8), np.array([0], ">i8"), np.array(1), [0, 1], 3),
    ],
    ids=repr,
)
def test_slots_are_integers_in_a_row(memory, slots):
    with pytest.raises(LayoutError, match=r"gather_pages: slots is .*int32 or int64 \[n\]"):
        gather_pages(memory, slots)


@pytest.mark.parametrize("blocks", [0, 1.5])
def test_blocks_are_counted(memory, blocks):
    with pytest.raises(LayoutError, match=f"{blocks} blocks; expected a whole number, at least 1"):
        PageCopy(memory, memory, blocks=blocks)


@pytest.mark.parametrize("count", [1.5, -1])
def test_pages_to_choose_are_counted(count):
    with pytest.raises(LayoutError, match=f"count is {count} and cap None"):
        coldest_pages(DevicePages(4, "cpu"), torch.zeros(4), count)
    with pytest.raises(LayoutError, match="-1 rows"):
        DevicePages(-1, "cpu")


def test_rows_to_update_may_run_backwards_and_be_read_only():
    pages, records = DevicePages(4, "cpu"), np.zeros(3, PAGE)
    records["nbytes"] = [1, 2, 3]
    rows = np.arange(3)[::-1]
    rows.flags.writeable = False
    pages.update(rows, records, np.zeros((3, 4)))
    assert pages.words[2].tolist() == [3, 2, 1, 0]


def test_memories_have_layers_and_pages_tokens_and_ranges_are_ranges(memory):
    layer = torch.zeros(4, 2, 16)
    with pytest.raises(LayoutError, match="0 layers"):
        PagedMemory.of_layers([], None, 2)
    with pytest.raises(LayoutError, match="pages of 0 tokens"):
        PagedMemory.of_layers([layer], None, 0)
    with pytest.raises(LayoutError, match="expected a non-empty range"):
        memory.only(layers=(0, 1))


def test_pages_of_another_width_name_both_widths(memory):
    out = torch.zeros((1, 16), dtype=torch.uint8)
    with pytest.raises(LayoutError, match=rf"out is uint8\[1, 16\].*\[M, {memory.page_nbytes}\]"):
        gather_pages(memory, torch.tensor([0]), out=out)


def test_pages_on_another_device_name_both_devices(memory):
    out = torch.empty((1, memory.page_nbytes), dtype=torch.uint8, device="meta")
    with pytest.raises(LayoutError, match=r"out is .* on meta; source is on cpu"):
        gather_pages(memory, torch.tensor([0]), out=out)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros((2, 64), dtype=torch.int8),
        torch.zeros(64, dtype=torch.uint8),
        torch.zeros((2, 24), dtype=torch.uint8),
        torch.zeros((64, 2), dtype=torch.uint8).t(),
        torch.zeros(2 * 64 + 8, dtype=torch.uint8)[8:].view(2, 64),
        torch.zeros(64 + 16, dtype=torch.uint8).as_strided((2, 64), (16, 1)),
    ],
    ids=["dtype", "shape", "units", "columns", "address", "overlap"],
)
def test_pages_that_kernels_cannot_move_are_refused(wrong):
    with pytest.raises(LayoutError, match="digest_pages: pages"):
        digest_pages(wrong)


def test_runs_that_are_no_whole_units_are_refused():
    layer = torch.zeros((4, 2, 12), dtype=torch.uint8)
    memory = PagedMemory.of_layers([layer[:, :, :8]], None, page_tokens=2)
    with pytest.raises(LayoutError, match="multiples of 16"):
        gather_pages(memory, torch.tensor([0]))


def test_indices_elsewhere_are_checked_in_debug_mode_only():
    class OnGpu:  # a tensor as the checker sees it
        device = torch.device("cuda")

        def numel(self):
            return 1

        def cpu(self):
            return torch.tensor([7])

    check.in_range("op", "slots", OnGpu(), 5, "source")
    with check.checked_indices(), pytest.raises(LayoutError, match="slots has 7"):
        check.in_range("op", "slots", OnGpu(), 5, "source")
