# SPDX-License-Identifier: Apache-2.0
"""Pages of every layout and group, out of one pool and into another by way of the storage."""

import asyncio
import math

import numpy as np
import pytest

from bodocache.digest import digest_rows, seeded
from bodocache.io.backend import Status
from bodocache.layout import POINT, Group, Layout, LayoutKind, window
from bodocache.pages import Reason

PAGES = 4
GROUPS = {  # and the tokens of a page
    "heads": (Group("full", layers=2, heads=4, head_dim=64, itemsize=2), 16),
    "odd heads": (Group("full", layers=3, heads=5, head_dim=24, itemsize=2), 7),
    "latent": (Group("latent", layers=3, heads=1, head_dim=576, itemsize=2, kv=1), 16),
    "window": (Group("near", layers=1, heads=2, head_dim=40, itemsize=1, rule=window(128)), 5),
    "16 bytes": (Group("state", 1, heads=1, head_dim=4, itemsize=4, kv=1, rule=POINT), 1),
    "over 2 MiB": (Group("wide", layers=41, heads=8, head_dim=128, itemsize=2), 16),
}


def page_of(layout, pool, page):
    """The bytes of one page, as its form orders them; a copy."""
    return np.concatenate([pool[p.offset : p.offset + p.nbytes] for p in layout.pieces(page)])


def scatter(layout, pool, page, payload):
    start = 0
    for piece in layout.pieces(page):
        pool[piece.offset : piece.offset + piece.nbytes] = payload[start : start + piece.nbytes]
        start += piece.nbytes


@pytest.mark.parametrize("name", GROUPS)
def test_pages_of_every_layout_come_back_as_they_lay_in_the_pool(storage_of, name):
    group, page_tokens = GROUPS[name]
    storage = storage_of(group.page_nbytes(page_tokens))
    layouts = [Layout(kind, group, page_tokens, PAGES) for kind in LayoutKind]
    random = np.random.default_rng(3)
    pools = [random.integers(0, 256, layouts[0].pool_nbytes, np.uint8) for _ in layouts]
    batches = []

    async def store(backend):
        for i, (layout, pool) in enumerate(zip(layouts, pools, strict=True)):
            buffers = storage.pages.buffers(PAGES)
            for page in range(PAGES):
                buffers[page] = page_of(layout, pool, page)
            frames = backend.reserve(PAGES, after=-1)
            batch = storage.pages.batch([PAGES * i + page for page in range(PAGES)], frames)
            batch["digest"] = seeded(digest_rows(buffers, batch["slot"].copy()), batch["key"])
            batches.append(batch)
            transfer = backend.put(batch, buffers, deadline_s=math.inf)
            await transfer.drained()
            assert (transfer.statuses == Status.LANDED).all()

    async def load(backend):
        for layout, pool, batch in zip(layouts, pools, batches, strict=True):
            statuses, _, buffers = await storage.get(backend, batch)
            assert (statuses == Status.LANDED).all()
            found = np.zeros_like(pool)
            for page in range(PAGES):
                scatter(layout, found, page, buffers[page])
            assert (found == pool).all()

    storage.run(store)
    storage.run(load)


def test_places_of_several_page_sizes_side_by_side_keep_their_pages_apart(storage_of):
    storages = [storage_of(nbytes) for nbytes in (16, 10080, 65536, 4096)]
    numbers = list(range(12))

    async def use(storage, backend):
        batch = await storage.put(backend, numbers)
        for _ in range(3):
            statuses, _, buffers = await storage.get(backend, batch)
            assert (statuses == Status.LANDED).all()
            assert not storage.wrong(numbers, statuses, buffers)
        backend.release(batch["frame"][:1])  # here alone: the others keep theirs
        statuses, reasons, _ = await storage.get(backend, batch)
        assert statuses.tolist() == [Status.MISS] + [Status.LANDED] * 11
        assert reasons[0] == Reason.EVICTED

    async def whole():
        backends = [await storage.open() for storage in storages]
        try:
            await asyncio.gather(*map(use, storages, backends))
            assert [backend.page_nbytes for backend in backends] == [16, 10080, 65536, 4096]
            assert {backend.usage.used_frames for backend in backends} == {11}
        finally:
            for backend in backends:
                await backend.close()

    asyncio.run(whole())
