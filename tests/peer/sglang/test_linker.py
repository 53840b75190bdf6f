# SPDX-License-Identifier: Apache-2.0
"""SGLang's radix tree over our linker: what it offloads comes back by layer, byte for byte."""

import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch

pytest.importorskip(
    "sglang.srt.mem_cache.unified_cache.unified_cache_linker", reason="this version has no linkers"
)

from linked_engine import LAYERS, PAGE, TOKENS, Engine, mha, mla, published
from sglang.srt.mem_cache.base_prefix_cache import InitLoadBackParams
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

from bodocache.errors import ConfigError, LayoutError
from bodocache.integrations.sglang.device_pages import LinkerOptions
from bodocache.integrations.sglang.options import Options


@pytest.fixture
def server():
    return published()


@pytest.fixture
def engine(server, made):
    engines = []

    def start(**extra):
        engines.append(Engine(server, made(), extra))
        return engines[-1]

    yield start
    for it in engines:
        it.linker.close()


@pytest.fixture(params=[mha, mla])
def made(request):
    return request.param


def test_what_was_offloaded_comes_back_by_layer(engine):
    engine = engine()
    prompt = list(range(160))
    computed = engine.compute(prompt)
    engine.settle()
    engine.forget()
    for number in range(2):
        restored = engine.restore(prompt, f"r{number}")
        assert all(map(torch.equal, restored, computed))


def test_the_longest_common_prefix_is_offered(engine):
    engine = engine()
    prompt = list(range(160))
    computed = engine.compute(prompt)
    engine.settle()
    engine.forget()
    restored = engine.restore([*prompt[:96], *range(1000, 1064)])
    assert all(torch.equal(a, b[:96]) for a, b in zip(restored, computed, strict=True))


def test_a_restart_finds_what_is_on_disk(engine, tmp_path):
    prompt, disk = list(range(320)), {"directory": str(tmp_path), "capacity_bytes": "32 MiB"}
    first = engine(**disk)
    computed = first.compute(prompt)
    first.settle()
    first.linker.close()
    second = engine(**disk)
    second.forget()
    _, found = second.match(prompt, "asks")
    assert found.host_hit_length == 0  # it is being read
    ends = time.monotonic() + 30
    while (restored := second.restore(prompt)) is None:
        assert time.monotonic() < ends
        time.sleep(0.01)
    assert all(torch.equal(a, b[: len(a)]) for a, b in zip(restored, computed, strict=True))
    assert len(restored[0]) == len(prompt)


def test_other_weights_or_another_domain_are_misses(engine, tmp_path):
    prompt, disk = list(range(160)), {"directory": str(tmp_path), "capacity_bytes": "32 MiB"}
    first = engine(**disk)
    first.compute(prompt)
    first.settle()
    first.linker.close()
    for other in ({"weights_version": "2"}, {"domain": "other"}):
        second = engine(**disk, **other)
        for _ in range(5):
            assert second.restore(prompt) is None
            time.sleep(0.02)
        second.linker.close()


def test_a_queued_load_can_be_cancelled(engine):
    engine = engine()
    prompt = list(range(160))
    engine.compute(prompt)
    engine.settle()
    engine.forget()
    request, found = engine.match(prompt, "r")
    engine.tree.init_load_back(
        InitLoadBackParams(found.best_match_node, found.host_hit_length, req=request)
    )
    engine.tree.linker.release_request("r")
    assert engine.tree.ready_to_load_host_cache() == -1
    assert engine.tree.finish_external_linker_loads([request]) == []
    assert all((part == -7).all() for part in engine.bytes_of(slice(None)))


def test_damage_in_host_memory_fails_the_load_and_never_the_bytes(engine):
    engine = engine()
    prompt = list(range(160))
    engine.compute(prompt)
    engine.settle()
    engine.forget()
    request, found = engine.match(prompt, "r")
    assert found.host_hit_length == 160

    async def spoil(cache):
        cache._orchestrator.residency.host.buffer[:4096] ^= 1

    engine.linker._cache.run(spoil)
    engine.tree.init_load_back(
        InitLoadBackParams(found.best_match_node, found.host_hit_length, req=request)
    )
    engine.linker.layer_done_counter.set_consumer(engine.tree.ready_to_load_host_cache())
    engine.pool.get_key_buffer(LAYERS - 1)
    assert engine.tree.finish_external_linker_loads([request]) == [request]


def test_options_and_pools_that_do_not_fit_are_said(server, made):
    with pytest.raises(ConfigError, match="linker_extra_config: hosts_bytes: unknown key"):
        Engine(server, made(), {"hosts_bytes": 1})
    with pytest.raises(ConfigError, match="capacity_bytes"):
        Engine(server, made(), {"host_bytes": "4 KiB"})

    class Other(MHATokenToKVPool):
        """Lays its bytes out in a way of its own."""

    other = Other(TOKENS, PAGE, torch.bfloat16, 2, 32, LAYERS, "cpu", enable_memory_saver=False)
    with pytest.raises(LayoutError, match="Other: the BodoCache linker restores"):
        Engine(server, other, {})


def test_ranks_load_what_all_of_them_hold(server, tmp_path):
    """Rank 1 has lost the second half of what both stored: both are offered the first."""
    script = Path(__file__).with_name("two_ranks.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path / "meet")],
            stdout=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [it.communicate(timeout=150)[0].split() for it in ranks]
    assert [it.returncode for it in ranks] == [0, 0]
    assert said == [["80", "True"], ["80", "True"]]


@pytest.mark.parametrize("options", [Options, LinkerOptions])
def test_every_option_is_documented(options):
    text = (Path(__file__).parents[3] / "docs" / "sglang.md").read_text()
    assert [it.name for it in fields(options) if f"`{it.name}`" not in text] == []
