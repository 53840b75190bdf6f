# SPDX-License-Identifier: Apache-2.0
"""The CPU path's own turns: streaming stores, plain copies, warming, threads."""

import subprocess
import sys

import pytest
import torch

from bodocache import env
from bodocache.kernels import cpu, gather_pages, scatter_pages
from bodocache.kernels.runs import runs_of
from bodocache.layout import LayoutKind

pytestmark = pytest.mark.skipif(env.triton_interpreted(), reason="the launchers run Triton there")

WARM = """
import torch
from bodocache import jit
from bodocache.kernels import cpu, digest_pages, gather_pages, scatter_pages
from bodocache.layout import Group, Layout, LayoutKind, PagedMemory
assert jit.warm() > 0
layout = Layout(LayoutKind.LAYER_FIRST, Group("g", 2, 2, 16, 2), 2, 3)
memory = PagedMemory.of_layout(torch.zeros(layout.pool_nbytes, dtype=torch.uint8), layout)
pages, digests = gather_pages(memory, torch.tensor([2, 0], dtype=torch.int32))
assert torch.equal(scatter_pages(pages, memory, torch.tensor([1, 0])), digests)
assert torch.equal(digest_pages(pages), digests)
"""


@pytest.fixture
def streaming(monkeypatch):
    monkeypatch.setattr(cpu, "_STREAM_FROM_NBYTES", 0)


def wide(make_pool, kind):
    """A pool whose runs are multiples of 64 bytes in every layout."""
    return make_pool(kind, head_dim=64)


def test_streaming_stores_the_same_bytes_and_digests(make_pool, kind, monkeypatch):
    pool, other = wide(make_pool, kind), wide(make_pool, kind)
    slots = torch.tensor([4, 1])
    cached = gather_pages(pool.memory, slots)
    monkeypatch.setattr(cpu, "_STREAM_FROM_NBYTES", 0)
    assert cpu.gather_mode(runs_of(pool.memory), cached.pages) & cpu._STREAM
    streamed = gather_pages(pool.memory, slots)
    assert torch.equal(streamed.pages, cached.pages)
    assert torch.equal(streamed.digests, cached.digests)
    assert cpu.scatter_mode(runs_of(other.memory)) & cpu._STREAM
    assert torch.equal(scatter_pages(cached.pages, other.memory, slots), cached.digests)
    assert torch.equal(gather_pages(other.memory, slots).pages, cached.pages)


@pytest.mark.usefixtures("streaming")
def test_targets_that_no_vector_fits_are_not_streamed_to(make_pool):
    memory = wide(make_pool, LayoutKind.PAGE).memory
    padded = torch.zeros((2, memory.page_nbytes + 16), dtype=torch.uint8)
    gathered = gather_pages(memory, torch.tensor([3, 2]), out=padded[:, 16:])
    assert not cpu.gather_mode(runs_of(memory), gathered.pages) & cpu._STREAM
    assert torch.equal(gathered.pages, gather_pages(memory, torch.tensor([3, 2])).pages)


@pytest.mark.parametrize("stream_from_nbytes", [0, 1 << 30])
def test_plain_copies_move_the_same_bytes(make_pool, kind, monkeypatch, stream_from_nbytes):
    monkeypatch.setattr(cpu, "_STREAM_FROM_NBYTES", stream_from_nbytes)
    memory, slots = wide(make_pool, kind).memory, torch.tensor([0, 3])
    expected = gather_pages(memory, slots).pages
    copied, runs = torch.zeros_like(expected), runs_of(memory)
    mode = cpu.plain(cpu.gather_mode(runs, copied))
    assert not cpu.move(runs, slots, torch.arange(2), copied, mode).any()
    assert torch.equal(copied, expected)


def test_runs_longer_than_a_block_are_whole(make_pool):
    pool = make_pool(LayoutKind.PAGE, head_dim=512, num_pages=2)
    for layers in (None, range(1)):  # 18 KiB and 6 KiB: blocks without and with a fetch ahead
        gathered = gather_pages(pool.memory, torch.tensor([1, 0]), layers=layers)
        for page, slot in enumerate((1, 0)):
            first = slot * pool.memory.page_nbytes
            expected = pool.bytes()[first : first + gathered.pages.shape[1]]
            assert torch.equal(gathered.pages[page], expected)


@pytest.mark.timeout(60)  # compiles in a process of its own: 4 s alone, more beside busy neighbours
def test_warmed_loops_do_not_compile_again():
    ran = subprocess.run([sys.executable, "-c", WARM], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
