# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from bodocache import jit
from bodocache.layout import Group, Layout, LayoutKind
from bodocache.pools import OwnedPool
from bodocache.replay import payload

jit.warm()

GROUP = Group("kv", layers=4, heads=1, head_dim=32, itemsize=2)
SLOTS = np.array([3, 0, 2])
SEEDS = np.array([7, 8, 9], np.uint64)


@pytest.fixture
def pool():
    filled = OwnedPool(Layout(LayoutKind.LAYER_FIRST, GROUP, page_tokens=8, num_pages=4))
    payload.fill(payload.words_of(filled), SLOTS, SEEDS)
    return filled


def test_filled_pages_have_no_wrong_byte(pool):
    assert payload.count_wrong_bytes(payload.words_of(pool), SLOTS, SEEDS) == 0


@pytest.mark.parametrize("flips", [1, 2, 13])
def test_every_changed_byte_is_counted_once(pool, flips):
    rng = np.random.default_rng(flips)
    piece = 8 * 32 * 2
    memory = pool.buffer.numpy()[: pool.layout.pool_nbytes].reshape(-1, 4, piece)
    chosen = rng.choice(memory.shape[0] * piece, flips, replace=False)
    for place in chosen.tolist():
        memory[place // piece, rng.choice(SLOTS), place % piece] ^= rng.integers(1, 256)
    assert payload.count_wrong_bytes(payload.words_of(pool), SLOTS, SEEDS) == flips


def test_a_page_in_anothers_slot_is_nearly_all_wrong(pool):
    wrong = payload.count_wrong_bytes(payload.words_of(pool), SLOTS[:1], SEEDS[1:2])
    assert 0 < wrong <= pool.layout.page_nbytes


def test_no_two_words_of_pages_are_the_same(pool):
    words = payload.words_of(pool)[:, :, SLOTS]
    assert len(np.unique(words)) == words.size


def test_fill_touches_no_other_slot(pool):
    words = payload.words_of(pool)
    words[:, :, 1] = 5
    payload.fill(words, SLOTS, SEEDS)
    assert (words[:, :, 1] == 5).all()
