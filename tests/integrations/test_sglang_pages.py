# SPDX-License-Identifier: Apache-2.0
"""Host pools of all kinds as pages of bytes, by what they say of themselves."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bodocache import digest
from bodocache.errors import LayoutError
from bodocache.integrations.sglang.host_pages import PiecePages, TensorCopier, page_slots

TOKENS = 4


class Pool:
    """Pages of pieces that lie in tensors of their own: u8[pages, nbytes] each."""

    page_size = TOKENS
    layout = "page_head"

    def __init__(self, *sizes, pages=6, jump=0):
        self.size = pages * TOKENS
        self.memories = [torch.randint(0, 256, (pages, n), dtype=torch.uint8) for n in sizes]
        self.jump = jump

    def get_page_buffer_meta(self, indices):
        addresses, sizes = [], []
        for index in indices[::TOKENS].tolist():
            page = index // TOKENS
            for memory in self.memories:
                step = memory.shape[1] * page + self.jump * page * page
                addresses.append(memory.data_ptr() + step)
                sizes.append(memory.shape[1])
        return addresses, sizes

    def page(self, number):
        return torch.cat([memory[number] for memory in self.memories]).numpy()


def room(pages, nbytes):
    return torch.full((pages, nbytes), 7, dtype=torch.uint8)


@pytest.mark.parametrize(("sizes", "row"), [((64,), 64), ((64, 64), 128), ((96, 16, 16), 160)])
def test_pages_go_and_come_back_with_their_digests(sizes, row):
    pool = Pool(*sizes)
    (pages,) = PiecePages.of_pool(pool)
    assert pages.nbytes == sum(sizes)
    rows = room(4, row)
    copier = pages.copier(rows)
    slots, at = np.array([5, 0, 3]), np.array([2, 0, 1])
    moved = copier.to_rows(slots, at)
    for slot, target in zip(slots, at, strict=True):
        assert (rows[target][: pages.nbytes].numpy() == pool.page(slot)).all()
        assert not rows[target][pages.nbytes :].any()
    assert (moved == digest.digest_rows(rows.numpy(), at)).all()
    kept = [pool.page(slot) for slot in slots]
    for memory in pool.memories:
        memory.zero_()
    back = copier.from_rows(at, slots)
    assert (back == moved).all()
    assert all((pool.page(slot) == it).all() for slot, it in zip(slots, kept, strict=True))


def test_heads_in_parts_are_pages_of_their_own():
    pool = Pool(64, 64)
    first, second = PiecePages.of_pool(pool, splits=2)
    rows = room(2, 64)
    first.copier(rows).to_rows(np.array([1]), np.array([0]))
    second.copier(rows).to_rows(np.array([1]), np.array([1]))
    k, v = (memory[1].numpy() for memory in pool.memories)
    assert (rows[0].numpy() == np.concatenate((k[:32], v[:32]))).all()
    assert (rows[1].numpy() == np.concatenate((k[32:], v[32:]))).all()


def test_pages_that_do_not_lie_in_a_line_are_refused():
    with pytest.raises(LayoutError, match="straight line"):
        PiecePages.of_pool(Pool(64, jump=16))


def test_pieces_between_multiples_of_16_are_refused():
    with pytest.raises(LayoutError, match="multiples of 16"):
        PiecePages.of_pool(Pool(24))


def test_tensors_are_copied_page_by_page():
    pages = [torch.randn(10) for _ in range(3)]
    kept = [page.clone() for page in pages]
    copier = TensorCopier.of_tensors(room(3, 48), pages)
    moved = copier.to_rows(np.arange(3), np.array([2, 1, 0]))
    for page in pages:
        page.zero_()
    assert (copier.from_rows(np.array([2, 1, 0]), np.arange(3)) == moved).all()
    assert all(torch.equal(page, it) for page, it in zip(pages, kept, strict=True))


def test_slots_are_whole_pages():
    indices = torch.tensor([8, 9, 10, 11, 0, 1, 2, 3])
    assert page_slots(indices, TOKENS, 2).tolist() == [2, 0]
    with pytest.raises(LayoutError, match="8 token slots for 3 pages of 4"):
        page_slots(indices, TOKENS, 3)
    with pytest.raises(LayoutError, match="multiples"):
        page_slots(indices + 1, TOKENS, 2)


def test_ranks_hold_what_they_hold():
    from bodocache.integrations.sglang.options import Options
    from bodocache.integrations.sglang.ranks import Rank, held_shards, root_of

    options = Options("/", 1 << 20, shard_heads=2)
    pool = SimpleNamespace(
        head_num=4, layer_num=3, page_size=16, dtype=torch.bfloat16, start_layer=3
    )
    rank = Rank(1, 2, 1, 2, 0, 1, is_replicated=False, is_writer=True, model="m", tp_lcm_size=0)
    shards = held_shards(options, rank, pool)
    assert [it.shard.heads for it in shards] == [range(4, 6), range(6, 8)]
    assert all(it.writes and it.shard.layers == range(3, 6) for it in shards)
    root = root_of(options, rank, pool, name="kv", shard=shards[0].shard, form="page_head:2x64")
    assert (root.model, root.dtype, root.group) == ("m", "torch.bfloat16", "kv stage 1 of 2")
