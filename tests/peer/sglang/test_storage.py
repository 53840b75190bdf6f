# SPDX-License-Identifier: Apache-2.0
"""Our backend over SGLang's own host pools, by the calls that its controller makes."""

import pytest
import torch

from bodocache.errors import ConfigError
from bodocache.integrations.sglang import BodoCacheStorage


@pytest.fixture(params=["mha", "mla"])
def kind(request):
    return request.param


def pool_of(house, kind, layout, **options):
    return house.mha_pool(layout, **options) if kind == "mha" else house.mla_pool(layout, **options)


@pytest.mark.parametrize("layout", ["layer_first", "page_first", "page_first_direct", "page_head"])
def test_pages_come_back_byte_for_byte(house, open_backend, kind, layout):
    if kind == "mla" and layout not in house.MLA_LAYOUTS:
        pytest.skip("MLA has no heads to keep together")
    pool = pool_of(house, kind, layout)
    backend = open_backend(pool, is_mla=kind == "mla")
    keys, source, target = house.hashes(12), house.slots(pool, 12), house.slots(pool, 12)
    before = house.page_bytes(pool, source)
    assert not torch.equal(before, house.page_bytes(pool, target))
    assert isinstance(backend, BodoCacheStorage)
    assert backend.batch_set_v1(keys, source) == [True] * 12
    assert backend.batch_exists([*keys, *house.hashes(1, of=9)]) == 12
    assert backend.batch_get_v1(keys, target) == [True] * 12
    assert torch.equal(before, house.page_bytes(pool, target))


def test_what_was_never_stored_is_a_miss(house, open_backend):
    pool = house.mha_pool()
    backend = open_backend(pool)
    indices = house.slots(pool, 3)
    before = house.page_bytes(pool, indices)
    keys = house.hashes(3)
    assert backend.batch_set_v1(keys[:1], indices[: house.TOKENS]) == [True]
    assert backend.exists(keys[0])
    assert not backend.exists(keys[1])
    assert backend.batch_exists(keys) == 1
    assert backend.batch_get_v1(keys, indices) == [True, False, False]
    assert torch.equal(before, house.page_bytes(pool, indices))


def test_an_unknown_option_is_named(house, tmp_path):
    with pytest.raises(ConfigError, match="capacty_bytes: unknown key"):
        house.created(house.storage_config(tmp_path, capacty_bytes="1 MiB"))
