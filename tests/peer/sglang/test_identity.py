# SPDX-License-Identifier: Apache-2.0
"""Which pages are whose: another layout, dtype, model or weights is a miss, other ranks are not."""

import pytest
import torch


def stored(house, backend, pool, pages=6, of=0):
    """The keys and the bytes of pages that were stored."""
    keys, indices = house.hashes(pages, of), house.slots(pool, pages)
    assert backend.batch_set_v1(keys, indices) == [True] * pages
    assert backend.batch_exists(keys) == pages
    return keys, house.page_bytes(pool, indices)


def loads(house, backend, pool, keys):
    """What comes back, None for a miss."""
    indices = house.slots(pool, len(keys))
    came = backend.batch_get_v1(keys, indices)
    pages = house.page_bytes(pool, indices)
    return [page if ok else None for page, ok in zip(pages, came, strict=True)]


def test_another_layout_of_the_same_size_is_a_miss(house, open_backend):
    pool, other = house.mha_pool("page_first"), house.mha_pool("page_head")
    keys, _ = stored(house, open_backend(pool), pool)
    backend = open_backend(other)
    assert backend.batch_exists(keys) == 0
    assert loads(house, backend, other, keys) == [None] * len(keys)


def test_another_dtype_of_the_same_size_is_a_miss(house, open_backend):
    pool, other = house.mha_pool(), house.mha_pool(dtype=torch.float16)
    keys, _ = stored(house, open_backend(pool), pool)
    assert open_backend(other).batch_exists(keys) == 0


@pytest.mark.parametrize(
    "option",
    [
        {"model": "another"},
        {"revision": "r2"},
        {"weights_version": "2"},
        {"quantiser": "fp8"},
        {"interface_v1": 0},
    ],
    ids=str,
)
def test_other_identities_are_misses(house, open_backend, option):
    pool = house.mha_pool()
    keys, _ = stored(house, open_backend(pool), pool)
    assert open_backend(pool, **option).batch_exists(keys) == 0
    assert open_backend(pool).batch_exists(keys) == len(keys)


def test_pages_of_a_new_weights_version_stand_beside_the_old(house, open_backend):
    pool = house.mha_pool()
    old = open_backend(pool, weights_version="1")
    keys, first = stored(house, old, pool)
    new = open_backend(pool, weights_version="2")
    _, second = stored(house, new, pool)
    assert not torch.equal(first, second)
    assert torch.equal(torch.stack(loads(house, new, pool, keys)), second)


def test_two_ranks_have_pages_of_their_own_under_one_key(house, open_backend):
    pools = [house.mha_pool() for _ in range(2)]
    ranks = [open_backend(it, tp_rank=rank, tp_size=2) for rank, it in enumerate(pools)]
    assert house.node_pid(ranks[0]._options.directory) == house.node_pid(
        ranks[1]._options.directory
    )
    keys, first = stored(house, ranks[0], pools[0])
    assert ranks[1].batch_exists(keys) == 0
    _, second = stored(house, ranks[1], pools[1])
    assert torch.equal(torch.stack(loads(house, ranks[0], pools[0], keys)), first)
    assert torch.equal(torch.stack(loads(house, ranks[1], pools[1], keys)), second)


def test_ranks_of_mla_share_pages_that_one_of_them_writes(house, open_backend):
    pools = [house.mla_pool() for _ in range(2)]
    ranks = [
        open_backend(it, is_mla=True, tp_rank=rank, tp_size=2) for rank, it in enumerate(pools)
    ]
    others = house.hashes(3, of=7)
    assert ranks[1].batch_set_v1(others, house.slots(pools[1], 3)) == [True] * 3
    assert ranks[0].batch_exists(others) == 0  # the second rank writes nothing
    keys, pages = stored(house, ranks[0], pools[0])
    assert torch.equal(torch.stack(loads(house, ranks[1], pools[1], keys)), pages)


def test_pages_of_four_ranks_are_found_by_two(house, open_backend):
    """8 heads: 2 a rank of four, 4 a rank of two; pages hold 2 (shard_heads, by tp_lcm_size)."""
    small = [house.mha_pool("page_head", heads=2) for _ in range(4)]
    four = [
        open_backend(it, tp_rank=rank, tp_size=4, more={"tp_lcm_size": 4})
        for rank, it in enumerate(small)
    ]
    keys = house.hashes(6)
    indices = [house.slots(it, 6) for it in small]
    for backend, at in zip(four, indices, strict=True):
        assert backend.batch_set_v1(keys, at) == [True] * 6
    for rank in range(2):
        pool = house.mha_pool("page_head", heads=4)
        directory = four[0]._options.directory
        backend = open_backend(
            pool,
            directory,
            tp_rank=rank,
            tp_size=2,
            shard_heads=2,
            model=four[0]._options.model,
            linger_s=8.0,
        )
        assert backend.batch_exists(keys) == 6
        target = house.slots(pool, 6)
        assert backend.batch_get_v1(keys, target) == [True] * 6
        for page in range(6):  # (2, N, H, P, L, D): heads stand together
            ours = pool.kv_buffer[:, target[page * house.TOKENS] // house.TOKENS]
            for half in range(2):
                source = 2 * rank + half
                at = indices[source][page * house.TOKENS] // house.TOKENS
                theirs = small[source].kv_buffer[:, at]
                mine = ours[:, 2 * half : 2 * half + 2].contiguous()
                assert torch.equal(mine.view(torch.uint8), theirs.contiguous().view(torch.uint8))


def test_heads_in_parts_need_a_layout_that_keeps_them_together(house, open_backend):
    with pytest.raises(ValueError, match="only page_head keeps the heads of a page together"):
        open_backend(house.mha_pool("page_first", heads=4), shard_heads=2)
