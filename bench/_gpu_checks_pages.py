# SPDX-License-Identifier: Apache-2.0
"""Checks of gathers, scatters, digests and copies: whole memories against the twins."""

import functools
from typing import Any

import torch
from _gpu_pools import CANARY_NBYTES, PAGE_TOKENS, PAGES, Machine, Pool, Skipped, changes_only, same

from bodocache.kernels import (
    CopyPath,
    PageCopy,
    copy_and_sum_pages,
    copy_pages,
    digest_pages,
    gather_pages,
    gather_plain,
    scatter_pages,
    scatter_plain,
)
from bodocache.kernels.reference import copy as copy_twin
from bodocache.kernels.reference import digest as digest_twin
from bodocache.kernels.reference import gather as gather_twin
from bodocache.kernels.reference import scatter as scatter_twin
from bodocache.layout import Group, Layout, LayoutKind

BEYOND_NBYTES = 5 << 30  # a pool with offsets beyond 2^31 and 2^32

Ranges = dict[str, range]


def check_gather_and_scatter(machine: Machine, group: Group) -> None:
    """Every layout and index type, ranges of layers and heads, with digests and without."""
    heads = {"heads": range(1, group.heads)} if group.heads > 1 else {}
    for kind in LayoutKind:
        pool = machine.pool(kind, group)
        compare_gather(machine, pool, torch.int32, {})
        for ranges in ({}, {"layers": range(1, group.layers)}, {"layers": range(1), **heads}):
            compare_gather(machine, pool, torch.int64, ranges)


def compare_gather(machine: Machine, pool: Pool, dtype: torch.dtype, ranges: Ranges) -> None:
    """A gather into rows between canaries, and a scatter of others, in no order."""
    part = pool.pages.only(**ranges)
    slots, rows = machine.slots(9, dtype), torch.randperm(12)[:9].to(dtype).to(machine.device)
    memory, out = machine.rows(12, part.page_nbytes)
    expected = memory.clone()
    digests = gather_twin.gather_pages(part, slots, rows, expected[1:-1, 32:-32])
    target = {"out": out, "rows": rows}

    def gather() -> None:
        same(gather_pages(pool.pages, slots, **ranges, **target).digests, digests)

    changes_only(machine, memory, expected, gather, pool.memory)
    same(digest_pages(out), digest_twin.digest_pages(out))
    memory, out = machine.rows(12, part.page_nbytes)
    twin = pool.twin()
    digests = scatter_twin.scatter_pages(out, twin.pages.only(**ranges), slots, rows)

    def scatter() -> None:
        same(scatter_pages(out, pool.pages, slots, **ranges, rows=rows), digests)

    changes_only(machine, pool.memory, twin.memory, scatter, memory)
    if dtype is torch.int32 or ranges:
        return
    plainly, out = machine.rows(12, part.page_nbytes)
    expected = plainly.clone()
    gather_twin.gather_pages(part, slots, rows, expected[1:-1, 32:-32])
    call = functools.partial(gather_plain, pool.pages, slots, out=out, rows=rows)
    changes_only(machine, plainly, expected, call, pool.memory)
    twin = pool.twin()
    scatter_twin.scatter_pages(out, twin.pages, slots, rows.flip(0))
    call = functools.partial(scatter_plain, out, pool.pages, slots, rows=rows.flip(0))
    changes_only(machine, pool.memory, twin.memory, call, plainly)


# -- copies ---------------------------------------------------------------------------------------


def check_copies_within_the_device(machine: Machine, group: Group) -> None:
    """Every pair of layouts by the SM kernel; ranges, index types, few blocks."""
    for ours in LayoutKind:
        for theirs in LayoutKind:
            compare_copy(machine, (ours, theirs), group, CopyPath.SM)
    compare_variants(machine, group, CopyPath.SM)


def check_bulk_copies_within_the_device(machine: Machine) -> None:
    """The same by cp.async.bulk."""
    machine.need(CopyPath.BULK)
    for group in machine.groups:
        for ours in LayoutKind:
            compare_copy(machine, (ours, LayoutKind.PAGE), group, CopyPath.BULK)
            compare_copy(machine, (LayoutKind.PAGE_HEAD, ours), group, CopyPath.BULK)
        compare_variants(machine, group, CopyPath.BULK)


def check_host_copies(machine: Machine, path: CopyPath) -> None:
    """Both directions, pinned memory, few blocks."""
    machine.need(path)
    for group in machine.groups:
        for kind in (LayoutKind.LAYER_FIRST, LayoutKind.PAGE_HEAD):
            pair = (kind, LayoutKind.PAGE)
            compare_copy(machine, pair, group, path, host=1)
            compare_copy(machine, pair[::-1], group, path, host=0)
    for host in (0, 1):
        compare_variants(machine, machine.groups[0], path, host=host)


def compare_variants(
    machine: Machine, group: Group, path: CopyPath, host: int | None = None
) -> None:
    """int32 indices, indices on the device, ranges, a stream, two blocks."""
    kinds = (LayoutKind.LAYER_FIRST, LayoutKind.PAGE_FIRST)
    heads = {"heads": range(group.heads - 1, group.heads)} if group.heads > 1 else {}
    compare_copy(machine, kinds, group, path, host, dtype=torch.int32)
    compare_copy(machine, kinds, group, path, host, layers=range(1, group.layers), **heads)
    stream = torch.cuda.Stream(machine.device) if machine.real else None
    compare_copy(machine, kinds, group, path, host, on_device=True, blocks=2, stream=stream)


def compare_copy(
    machine: Machine,
    kinds: tuple[LayoutKind, LayoutKind],
    group: Group,
    path: CopyPath,
    host: int | None = None,
    **variant: Any,
) -> None:
    """A copy against its twin, over the whole destination; variants as below."""
    ranges = {name: variant[name] for name in ("layers", "heads") if name in variant}
    dtype, stream = variant.get("dtype", torch.int64), variant.get("stream")
    source = machine.pool(kinds[0], group, on_host=host == 0)
    destination = machine.pool(kinds[1], group, on_host=host == 1)
    expected = destination.twin()
    ours, theirs = torch.randint(0, PAGES, (9,)).to(dtype), torch.randperm(PAGES)[:9].to(dtype)
    parts = (pool.pages.only(**ranges) for pool in (source, expected))
    copy_twin.copy_pages(*parts, ours, theirs)
    if "on_device" in variant:
        ours, theirs = ours.to(machine.device), theirs.to(machine.device)
    copy = PageCopy(
        *(source.pages, destination.pages),
        **ranges,
        path=path,
        blocks=variant.get("blocks"),
    )
    machine.wait()
    call = functools.partial(copy.run, ours, theirs, stream=stream)
    changes_only(machine, destination.memory, expected.memory, call, source.memory)


def check_sums_by_layer(machine: Machine) -> None:
    """Raw sums of every layer compose to the digest of the page; also from the host."""
    group = machine.groups[0]
    for kind in LayoutKind:
        for host in (False, True):
            source = machine.pool(kind, group, on_host=host)
            destination = machine.pool(LayoutKind.PAGE, group)
            slots = machine.slots()
            words = copy_twin.sum_pages(source.twin(machine.device).pages, slots)
            twin = destination.twin()
            copy_twin.copy_pages(source.pages, twin.pages, slots, slots)
            call = functools.partial(
                copy_and_sum_pages, source.pages, destination.pages, slots, slots
            )
            before = source.memory.clone()
            sums = call()
            machine.wait()
            same(destination.memory, twin.memory)
            same(source.memory, before)
            same(sums.words, words)
            pages = gather_plain(destination.pages, slots)
            count = pages.shape[1] // 4
            offsets = torch.arange(group.layers, device=machine.device) * (count // group.layers)
            s1 = sums.words[:, :, 0].sum(1) + count
            s2 = (sums.words[:, :, 1] + offsets * sums.words[:, :, 0]).sum(1) + count
            same(torch.stack((s1, s2), dim=1), digest_twin.digest_pages(pages))


def check_offsets_beyond_2_31(machine: Machine) -> None:
    """Pages beyond 2 and 4 GiB of a pool: what is written there, and nothing else."""
    if not machine.real:
        raise Skipped("a pool of 5 GiB is for a GPU")
    group = Group("large", layers=4, heads=8, head_dim=128, itemsize=2)
    count = BEYOND_NBYTES // group.page_nbytes(PAGE_TOKENS)
    slots = torch.tensor([count - 1, count // 2, 0, count - 2], device=machine.device)
    fours = torch.arange(4, device=machine.device)
    has_bulk = torch.cuda.get_device_capability(machine.device) >= (9, 0)
    for kind in (LayoutKind.LAYER_FIRST, LayoutKind.PAGE):
        layout = Layout(kind, group, PAGE_TOKENS, count)
        memory = torch.zeros(
            layout.pool_nbytes + 2 * CANARY_NBYTES, dtype=torch.uint8, device=machine.device
        )
        pool = Pool.of(memory, layout)
        twin = pool.twin()
        rows = machine.bytes(4 * layout.page_nbytes).view(4, -1)
        digests = scatter_twin.scatter_pages(rows, twin.pages, slots, fours)
        same(scatter_pages(rows, pool.pages, slots), digests)
        assert torch.equal(pool.memory, twin.memory), "a scatter wrote elsewhere"
        same(gather_pages(pool.pages, slots).pages, rows)
        for path in (CopyPath.SM, CopyPath.BULK)[: 1 + has_bulk]:
            small = machine.pool(LayoutKind.PAGE, group)
            expected = small.twin()
            copy_twin.copy_pages(pool.pages, expected.pages, slots, fours)
            copy_pages(pool.pages, small.pages, slots, fours, path=path)
            same(small.memory, expected.memory)
            copy_twin.copy_pages(small.pages, twin.pages, fours + 5, slots)
            copy_pages(small.pages, pool.pages, fours + 5, slots, path=path)
            assert torch.equal(pool.memory, twin.memory), f"a copy by {path} wrote elsewhere"
