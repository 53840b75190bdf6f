# SPDX-License-Identifier: Apache-2.0
import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bodocache.errors import ConfigError, LayoutError
from bodocache.identity import Domain, KeyChain, Root, Shard, shards_of_rank
from bodocache.layout import Group

ROOT = Root(
    model="llama",
    page_tokens=4,
    group="kv",
    shard=Shard(range(32), range(8)),
    dtype="bfloat16",
    form="page",
)
CHANGED = {
    "model": "qwen",
    "page_tokens": 8,
    "group": "swa",
    "shard": Shard(range(32), range(4)),
    "dtype": "float8_e4m3",
    "form": "page_first",
    "kv": "latent",
    "revision": "main",
    "weights_version": "2",
    "quantiser": "fp8",
    "rope": "yarn",
    "lora": "x",
    "salt": "x",
}
TOKENS = np.arange(32, dtype=np.uint32)
DOMAIN = Domain("tenants", b"0123456789abcdef")


def keys_of(root, domain=DOMAIN, tokens=TOKENS, extras=None):
    return {bytes(key) for key in KeyChain(domain, root).page_keys(tokens, extras)}


def test_every_field_of_a_root_is_covered_below():
    assert set(CHANGED) == {field.name for field in dataclasses.fields(Root)}


@pytest.mark.parametrize("field", CHANGED)
def test_one_changed_field_gives_no_cross_hit(field):
    other = dataclasses.replace(ROOT, **{field: CHANGED[field]})
    assert not keys_of(ROOT) & keys_of(other)


@pytest.mark.parametrize("fields", list(itertools.combinations(CHANGED, 2)))
def test_two_roots_that_differ_in_different_fields_never_meet(fields):
    one, two = (dataclasses.replace(ROOT, **{field: CHANGED[field]}) for field in fields)
    assert not keys_of(one) & keys_of(two)


def test_a_lora_and_a_salt_of_one_name_differ():
    assert not keys_of(dataclasses.replace(ROOT, lora="x")) & keys_of(
        dataclasses.replace(ROOT, salt="x")
    )


@given(st.text(), st.text(), st.text(), st.text())
def test_encodings_of_two_roots_are_equal_only_for_equal_roots(lora, salt, other_lora, other_salt):
    one = dataclasses.replace(ROOT, lora=lora, salt=salt)
    two = dataclasses.replace(ROOT, lora=other_lora, salt=other_salt)
    assert (one.encode() == two.encode()) == (one == two)


@pytest.mark.parametrize("shard", ["layers", "heads", "first_token", "token_stride"])
def test_every_part_of_a_shard_counts(shard):
    changed = {"layers": range(16), "heads": range(8, 16), "first_token": 1, "token_stride": 2}
    other = dataclasses.replace(ROOT.shard, **{shard: changed[shard]})
    assert not keys_of(ROOT) & keys_of(dataclasses.replace(ROOT, shard=other))


def test_two_domains_never_meet():
    assert not keys_of(ROOT) & keys_of(ROOT, Domain("tenants", b"another secret 16"))
    assert not keys_of(ROOT, Domain("a")) & keys_of(ROOT, Domain("b"))


def test_a_short_secret_is_refused():
    with pytest.raises(ConfigError, match="16 to 64"):
        Domain("tenants", b"short")


def test_a_page_and_an_engine_key_of_the_same_bytes_differ():
    chain = KeyChain(DOMAIN, ROOT)
    message = chain.key_0 + b"\0\0\0\0" + TOKENS[:4].tobytes()
    assert bytes(chain.page_keys(TOKENS[:4])[0]) != bytes(chain.engine_keys([message])[0])


def test_engine_keys_depend_on_the_root():
    other = dataclasses.replace(ROOT, weights_version="2")
    one, two = (KeyChain(DOMAIN, root).engine_keys([b"page"]) for root in (ROOT, other))
    assert bytes(one[0]) != bytes(two[0])


def test_two_images_behind_equal_placeholders_differ_from_their_page_on():
    cat = KeyChain(DOMAIN, ROOT).page_keys(TOKENS, {2: b"cat"})
    dog = KeyChain(DOMAIN, ROOT).page_keys(TOKENS, {2: b"dog"})
    assert np.array_equal((cat == dog).all(axis=1), [True] * 2 + [False] * 6)


def test_an_extra_never_runs_into_the_tokens():
    chain = KeyChain(DOMAIN, ROOT)
    tokens = np.array([7, 8, 9, 10], np.uint32)
    moved = chain.page_keys(tokens, {0: tokens[:1].tobytes()})
    assert bytes(moved[0]) != bytes(chain.page_keys(tokens)[0])


def test_a_tail_has_no_key_and_changes_none():
    chain = KeyChain(DOMAIN, ROOT)
    assert np.array_equal(chain.page_keys(TOKENS[:11]), chain.page_keys(TOKENS[:8]))
    assert chain.page_keys(TOKENS[:3]).shape == (0, 32)


def test_keys_are_chained():
    changed = TOKENS.copy()
    changed[0] += 1
    assert not keys_of(ROOT) & keys_of(ROOT, tokens=changed)


GQA = Group("kv", layers=32, heads=8, head_dim=128, itemsize=2)
MLA = Group("kv", layers=61, heads=1, head_dim=576, itemsize=2, kv=1)


def shards(group, tp_size, shard_heads=None):
    return [
        shards_of_rank(group, tp_rank=rank, tp_size=tp_size, shard_heads=shard_heads)
        for rank in range(tp_size)
    ]


def test_tp4_and_tp2_ranks_meet_on_the_same_shards():
    of_four = {held.shard for rank in shards(GQA, 4, 2) for held in rank}
    of_two = {held.shard for rank in shards(GQA, 2, 2) for held in rank}
    assert of_four == of_two
    assert len(of_four) == 4


def test_mla_ranks_share_one_shard_and_one_writes():
    ranks = shards(MLA, 8)
    assert {held.shard for rank in ranks for held in rank} == {Shard.whole(MLA)}
    assert [held.writes for rank in ranks for held in rank] == [True] + [False] * 7


def test_more_ranks_than_heads_have_one_writer_a_head():
    ranks = shards(GQA, 16)
    assert [rank[0].shard.heads.start for rank in ranks] == sorted(list(range(8)) * 2)
    assert [rank[0].writes for rank in ranks] == [True, False] * 8


def test_by_default_a_rank_holds_one_shard():
    assert [len(rank) for rank in shards(GQA, 4)] == [1] * 4


@pytest.mark.parametrize(("tp_size", "shard_heads"), [(3, None), (4, 3), (12, None)])
def test_heads_that_do_not_divide_are_refused(tp_size, shard_heads):
    with pytest.raises(LayoutError):
        shards(GQA, tp_size, shard_heads)
