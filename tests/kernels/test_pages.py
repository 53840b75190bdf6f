# SPDX-License-Identifier: Apache-2.0
"""Launchers against their twins, bit for bit.

Plain pytest runs the CPU path; test_interpreter.py runs this file again on the Triton kernels.
"""

import numpy as np
import pytest
import torch

from bodocache import digest as cpu_digest
from bodocache import env
from bodocache.kernels import (
    digest_pages,
    gather_pages,
    gather_plain,
    host,
    launch,
    scatter_pages,
    scatter_plain,
)
from bodocache.kernels.reference import digest as digest_twin
from bodocache.kernels.reference import gather as gather_twin
from bodocache.kernels.reference import scatter as scatter_twin
from bodocache.layout import LayoutKind, PagedMemory


def assert_gathers(memory, slots, **options):
    """The launcher's pages and digests are the twin's."""
    gathered = gather_pages(memory, slots, **options)
    expected = torch.empty_like(gathered.pages)
    rows = torch.arange(len(slots))
    part = memory.only(options.get("layers"), options.get("heads"))
    digests = gather_twin.gather_pages(part, slots, rows, expected)
    assert torch.equal(gathered.pages, expected)
    assert torch.equal(gathered.digests, digests)
    return gathered


def assert_scatters(pool, twin, slots, layers=None, heads=None):
    """Both pools hold the same bytes after the launcher wrote one and the twin the other."""
    nbytes = pool.memory.only(layers, heads).page_nbytes
    pages = torch.randint(0, 256, (len(slots), nbytes), dtype=torch.uint8)
    digests = scatter_pages(pages, pool.memory, slots, layers=layers, heads=heads)
    rows = torch.arange(len(slots))
    expected = scatter_twin.scatter_pages(pages, twin.memory.only(layers, heads), slots, rows)
    assert torch.equal(pool.bytes(), twin.bytes())
    assert torch.equal(digests, expected)


def copy_of(pool, make_pool, kind, **shape):
    twin = make_pool(kind, **shape)
    for ours, theirs in zip(twin.tensors, pool.tensors, strict=True):
        ours.copy_(theirs)
    return twin


@pytest.mark.parametrize(("itemsize", "dtype"), [(1, torch.int32), (2, torch.int64)])
def test_gather_equals_its_twin(make_pool, kind, itemsize, dtype):
    slots = torch.tensor([4, 0, 2], dtype=dtype)
    assert_gathers(make_pool(kind, itemsize=itemsize).memory, slots)


@pytest.mark.parametrize(("itemsize", "dtype"), [(1, torch.int32), (2, torch.int64)])
def test_scatter_equals_its_twin(make_pool, kind, itemsize, dtype):
    pool = make_pool(kind, itemsize=itemsize)
    twin = copy_of(pool, make_pool, kind, itemsize=itemsize)
    assert_scatters(pool, twin, torch.tensor([4, 0, 2], dtype=dtype))


def test_layer_range_moves_only_its_layers(make_pool, kind):
    pool = make_pool(kind)
    assert_gathers(pool.memory, torch.tensor([1, 3]), layers=range(1, 3))
    assert_scatters(pool, copy_of(pool, make_pool, kind), torch.tensor([1, 3]), range(1, 2))


def test_head_range_moves_only_its_heads(make_pool, kind):
    pool = make_pool(kind, heads=3)
    assert_gathers(pool.memory, torch.tensor([1, 3]), heads=range(1, 3))
    twin = copy_of(pool, make_pool, kind, heads=3)
    assert_scatters(pool, twin, torch.tensor([1, 3]), range(1, 2), range(2, 3))


@pytest.mark.parametrize("head_dim", [16, 24])  # 24: no multiple of 64 bytes
@pytest.mark.parametrize("compiled", [True, False])
def test_without_digests_the_same_bytes_move(make_pool, kind, head_dim, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(host, "compiled", lambda: None)
    pool = make_pool(kind, head_dim=head_dim)
    twin = copy_of(pool, make_pool, kind, head_dim=head_dim)
    slots, part = torch.tensor([1, 3]), {"layers": range(1, 3), "heads": range(1, 2)}
    rows = gather_plain(pool.memory, slots, **part)
    assert torch.equal(rows, gather_pages(pool.memory, slots, **part).pages)
    scatter_plain(rows.flip(0).contiguous(), pool.memory, slots, **part)
    scatter_pages(rows.flip(0).contiguous(), twin.memory, slots, **part)
    assert torch.equal(pool.bytes(), twin.bytes())


def test_latent_pages_have_one_tensor(make_pool, kind):
    assert_gathers(make_pool(kind, kv=1, heads=1, head_dim=40).memory, torch.tensor([2]))


def test_pages_of_several_tiles(make_pool):
    pool = make_pool(LayoutKind.LAYER_FIRST, head_dim=160, page_tokens=17, layers=1, num_pages=2)
    assert pool.memory.page_nbytes > 2 * launch.TILE_UNITS * 16
    assert_gathers(pool.memory, torch.tensor([1, 0]))


def test_slots_may_repeat_in_a_gather(make_pool, kind):
    gathered = assert_gathers(make_pool(kind).memory, torch.tensor([3, 3, 1, 3, 1]))
    assert torch.equal(gathered.pages[0], gathered.pages[3])


def test_no_slots_is_no_work(make_pool, kind):
    pool = make_pool(kind)
    before = pool.bytes()
    none = torch.empty(0, dtype=torch.int64)
    gathered = gather_pages(pool.memory, none)
    assert gathered.pages.shape == (0, pool.memory.page_nbytes)
    assert scatter_pages(gathered.pages, pool.memory, none).shape == (0, 2)
    assert torch.equal(pool.bytes(), before)


@pytest.mark.parametrize("rows", [[3, 0], [0, 3]])
def test_rows_say_where_pages_go_and_come_from(make_pool, kind, rows):
    pool = make_pool(kind)
    out = torch.full((4, pool.memory.page_nbytes), 9, dtype=torch.uint8)
    gathered = gather_pages(pool.memory, torch.tensor([2, 4]), out=out, rows=torch.tensor(rows))
    assert torch.equal(out[rows], gather_pages(pool.memory, torch.tensor([2, 4])).pages)
    assert (out[1:3] == 9).all()
    digests = scatter_pages(out, pool.memory, torch.tensor([0, 1]), rows=torch.tensor(rows))
    assert torch.equal(digests, gathered.digests)


def test_rows_may_be_parts_of_wider_ones(make_pool, kind):
    memory = make_pool(kind).memory
    wide = torch.zeros((3, memory.page_nbytes + 32), dtype=torch.uint8)
    gathered = gather_pages(memory, torch.tensor([1, 0, 4]), out=wide[:, 16:-16])
    assert torch.equal(wide[:, 16:-16], gather_pages(memory, torch.tensor([1, 0, 4])).pages)
    assert not wide[:, :16].any()
    assert not wide[:, -16:].any()
    assert torch.equal(digest_pages(wide[:, 16:-16]), gathered.digests)


def test_engine_tensors_per_layer_in_two_dtypes():
    for dtype in (torch.bfloat16, torch.uint8):
        keys, values = (
            [torch.randint(0, 127, (8, 2, 32)).to(dtype) for _ in range(2)] for _ in "kv"
        )
        memory = PagedMemory.of_layers(keys, values, page_tokens=2)
        gathered = assert_gathers(memory, torch.tensor([3, 1]))
        first = gathered.pages[0].view(dtype).reshape(2, 2, 2, 2, 32)
        assert torch.equal(first[1, 0], keys[1][6:8])


def test_interleaved_keys_and_values_with_gaps():
    cache = torch.randint(0, 127, (8, 2, 3, 32), dtype=torch.uint8)  # (tokens, kv, heads, dim)
    memory = PagedMemory.of_layers([cache[:, 0]], [cache[:, 1]], page_tokens=4)
    assert_gathers(memory, torch.tensor([1, 0]))


def test_a_shard_of_the_heads(make_pool, kind):
    memory = make_pool(kind, heads=4).memory.only(heads=range(1, 3))
    assert_gathers(memory, torch.tensor([0, 4]))


@pytest.mark.parametrize("nbytes", [16, 48, 64, 4096, 12304])
def test_digest_equals_its_twin_and_the_reference_digest(nbytes):
    pages = torch.randint(0, 256, (3, nbytes), dtype=torch.uint8)
    pages[1] = 255
    digests = digest_pages(pages)
    assert torch.equal(digests, digest_twin.digest_pages(pages))
    expected = cpu_digest.digest_rows(pages.numpy(), np.arange(3))
    assert np.array_equal(digests.numpy().view(np.uint64), expected)


def test_no_pages_have_no_digests():
    assert digest_pages(torch.empty((0, 64), dtype=torch.uint8)).shape == (0, 2)


def test_arrays_and_read_only_arrays_are_indices(make_pool, kind):
    memory = make_pool(kind).memory
    slots = np.array([1, 4], np.int32)
    slots.flags.writeable = False
    assert torch.equal(
        gather_pages(memory, slots).pages, gather_pages(memory, torch.tensor([1, 4])).pages
    )


def test_interpreted_processes_run_the_kernels(make_pool, monkeypatch):
    launches = []
    monkeypatch.setattr(launch.Launch, "run", lambda _: launches.append(1))
    memory = make_pool(LayoutKind.PAGE).memory
    gather_pages(memory, torch.tensor([1]))
    scatter_plain(gather_plain(memory, torch.tensor([1])), memory, torch.tensor([2]))
    assert len(launches) == 3 * int(env.triton_interpreted())
