# SPDX-License-Identifier: Apache-2.0
"""Our kernel in SGLang's host pools: its transfer engine copies what it would copy by its own."""

import pytest
import torch

pytest.importorskip("sglang.srt.mem_cache.l2_transfer", reason="this version copies otherwise")

from sglang.srt.mem_cache.l2_transfer import L2Transfer, L2TransferEngine
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost

from bodocache.errors import LayoutError
from bodocache.integrations.sglang import host_copies

PAGE, TOKENS, LAYERS = 8, 128, 3
SHAPE = {"pin_memory": False, "device": "cpu", "device_capacity_tokens": TOKENS}
LAYERS_OF_RANK = {"start_layer": 0, "end_layer": LAYERS - 1}


def mha(layout):
    pool = MHATokenToKVPool(
        TOKENS, PAGE, torch.bfloat16, 2, 16, LAYERS, "cpu", enable_memory_saver=False
    )
    info = pool._mha_buffer_info()
    host = MHATokenToKVPoolHost(info, 2.0, 0, PAGE, layout, **SHAPE, **LAYERS_OF_RANK)
    return pool, [*pool.k_buffer, *pool.v_buffer], host


def mla(layout):
    pool = MLATokenToKVPool(
        TOKENS, PAGE, torch.bfloat16, 32, 16, LAYERS, "cpu", enable_memory_saver=False
    )
    info = pool._mla_buffer_info()
    host = MLATokenToKVPoolHost(
        info, 2.0, 0, PAGE, layout, **SHAPE, **LAYERS_OF_RANK, target_layer_num=LAYERS
    )
    return pool, list(pool.kv_buffer), host


def tokens(pages):
    return (torch.tensor(pages)[:, None] * PAGE + torch.arange(PAGE)).flatten()


POOLS = [
    (mha, "layer_first"),
    (mha, "page_first"),
    (mha, "page_first_direct"),
    (mha, "page_head"),
    (mla, "layer_first"),
    (mla, "page_first"),
    (mla, "page_first_direct"),
]


@pytest.mark.parametrize(("made", "layout"), POOLS)
def test_the_transfer_engine_gets_back_what_it_backed_up(made, layout):
    pool, parts, host = made(layout)
    host_copies.take_over(host)
    for part in parts:
        part.copy_(torch.randn(part.shape))
    before = [part.clone() for part in parts]
    engine = L2TransferEngine("kernel")
    there, here, back = tokens([3, 0, 7, 9]), tokens([1, 2, 5, 11]), tokens([6, 4, 10, 12])
    engine.submit_device_to_host([L2Transfer(host, pool, there, here)])
    for page, slot in zip([3, 0, 7, 9], [1, 2, 5, 11], strict=True):
        flat = host.get_data_page(page * PAGE)  # as SGLang reads it
        expected = [part[slot * PAGE : (slot + 1) * PAGE] for part in before]
        assert sorted(flat.view(torch.int16).tolist()) == sorted(
            torch.cat([it.flatten() for it in expected]).view(torch.int16).tolist()
        )
    for part in parts:
        part.fill_(5)
    seen = []

    def check(layer):
        mine = [part for at, part in enumerate(parts) if at % LAYERS == layer]
        seen.append(all((part[back] != 5).any() for part in mine))

    engine.submit_host_to_device(
        [L2Transfer(host, pool, there, back)], transfer_layer_id_max=LAYERS, on_layer_done=check
    )
    assert seen == [True] * LAYERS
    for part, was in zip(parts, before, strict=True):
        assert torch.equal(part[back], was[here])
        part[back] = 5
        assert (part == 5).all()  # nothing else was written


@pytest.mark.parametrize(("made", "layout"), POOLS)
def test_host_pages_are_where_sglang_has_them(made, layout):
    """What SGLang wrote into the host pool page by page, our kernel brings to the device."""
    pool, parts, host = made(layout)
    host_copies.take_over(host)
    host.kv_buffer.copy_(torch.randn(host.kv_buffer.shape))
    engine = L2TransferEngine("kernel")
    engine.submit_host_to_device(
        [L2Transfer(host, pool, tokens([2]), tokens([4]))], transfer_layer_id_max=LAYERS
    )
    rows = slice(2 * PAGE, 3 * PAGE)
    for layer in range(LAYERS):
        for kv in range(len(parts) // LAYERS):
            assert torch.equal(parts[kv * LAYERS + layer][4 * PAGE : 5 * PAGE],
                               page_of(host, layout, kv, layer, rows))  # fmt: skip


def page_of(host, layout, kv, layer, rows):
    """The tokens ``rows`` of a layer as SGLang's layouts define them."""
    whole = host.kv_buffer[kv] if isinstance(host, MHATokenToKVPoolHost) else host.kv_buffer
    page = rows.start // PAGE
    if layout == "layer_first":
        return whole[layer, rows]
    if layout == "page_first":
        return whole[rows, layer]
    if layout == "page_first_direct":
        return whole[page, layer]
    return whole[page, :, :, layer].transpose(0, 1)


def test_given_back_sglang_copies_by_its_own():
    _, _, host = mha("page_first")
    own = host.load_to_device_per_layer.__func__
    host_copies.take_over(host)
    assert getattr(host.load_to_device_per_layer, "__func__", None) is not own
    host_copies.give_back(host)
    host_copies.give_back(host)
    assert host.load_to_device_per_layer.__func__ is own


def test_a_pool_that_is_not_known_keeps_its_kernels():
    class Other(MHATokenToKVPoolHost):
        pass

    pool, _, host = mha("layer_first")
    other = Other(pool._mha_buffer_info(), 2.0, 0, PAGE, "layer_first", **SHAPE, **LAYERS_OF_RANK)
    with pytest.raises(LayoutError, match="Other: our kernels copy"):
        host_copies.take_over(other)
    host.layout = "page_unified"
    with pytest.raises(LayoutError, match="page_unified; expected layer_first"):
        host_copies.take_over(host)
    assert not {*host_copies._CALLS} & {*vars(host), *vars(other)}


def test_the_backends_option_switches_it_on(house, tmp_path):
    host = house.mha_pool("page_first")
    own = host.load_to_device_per_layer.__func__
    for is_on in (False, True):
        backend = house.created(house.storage_config(tmp_path, copy_kernels=is_on))
        backend.register_mem_pool_host(host)
        backend.close()
        assert (getattr(host.load_to_device_per_layer, "__func__", None) is own) == (not is_on)
