# SPDX-License-Identifier: Apache-2.0
import ctypes
import time

import numpy as np
import pytest
import torch

from bodocache import env
from bodocache.digest import seeded
from bodocache.errors import LayoutError
from bodocache.kernels import digest_pages, gather_pages
from bodocache.kernels.landing import LandingPad
from bodocache.layout import LayoutKind

pytestmark = pytest.mark.skipif(env.triton_interpreted(), reason="the launchers run Triton there")


@pytest.mark.parametrize(
    ("rows", "slots"), [([0, 5], [0, 1]), ([0, 1], [0, -1]), ([0, 1, 2], [0, 1])]
)
def test_rows_and_slots_outside_are_refused_before_anything_moves(make_pool, rows, slots):
    memory = make_pool(LayoutKind.PAGE).memory
    pages, digests = gather_pages(memory, torch.arange(memory.num_pages))
    seeds = digests.numpy().view(np.uint64)[:2]
    with pytest.raises(LayoutError, match="landing"):
        LandingPad(memory, pages).expect(
            *(np.array(rows), np.array(slots), np.zeros((2, 32), np.uint8)),
            *(seeds, np.zeros(2, np.bool_)),
        )


@pytest.mark.parametrize("kind", LayoutKind)
def test_pages_told_of_by_position_are_moved_and_verified(make_pool, kind):
    memory = make_pool(kind, head_dim=64).memory
    pages, _ = gather_pages(memory, torch.arange(memory.num_pages))
    host = pages.flip(0).contiguous() + 1
    generator = np.random.default_rng(7)
    keys = generator.integers(0, 256, (3, 32), np.uint8)
    rows, slots = np.array([2, 0, 1]), np.array([0, 2, 1])
    digests = seeded(digest_pages(host[rows]).numpy().view(np.uint64), keys)
    digests[2] += np.uint64(1)
    verified = np.zeros(3, np.bool_)
    landing = LandingPad(memory, host).expect(rows, slots, keys, digests, verified)
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(landing.function)
    positions = np.array([0, 2])
    call(landing.argument, positions.ctypes.data, 2)
    assert verified.tolist() == [True, False, False]
    assert 0 < landing.landed_s <= time.monotonic()
    found, _ = gather_pages(memory, torch.tensor(slots))
    assert torch.equal(found[[0, 2]], host[rows[[0, 2]]])
    assert torch.equal(found[1], pages[slots[1]])
