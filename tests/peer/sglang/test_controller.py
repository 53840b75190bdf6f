# SPDX-License-Identifier: Apache-2.0
"""SGLang's real controller, with its four threads, backs up and prefetches through our backend."""

import threading
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.managers import cache_controller
from sglang.srt.managers.cache_controller import HiCacheController

CASES = [("mha", it) for it in ("layer_first", "page_first", "page_first_direct", "page_head")] + [
    ("mla", it) for it in ("layer_first", "page_first", "page_first_direct")
]


@pytest.fixture(scope="session")
def one_rank(tmp_path_factory):
    """The process group and parallel state of a single rank."""
    file = tmp_path_factory.mktemp("gloo") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield torch.distributed.group.WORLD
    torch.distributed.destroy_process_group()


@pytest.fixture
def parallel():
    """The parallel state of a single rank, for versions that ask for it."""
    if not hasattr(cache_controller, "get_parallel"):
        yield
        return
    names = ("tp_rank", "pp_rank", "attn_dcp_rank")
    sizes = ("tp_size", "pp_size", "attn_dcp_size")
    state = dict.fromkeys(names, 0) | dict.fromkeys(sizes, 1)
    with cache_controller.get_parallel().override(**state):
        yield


@pytest.fixture
def open_controller(house, one_rank, parallel, shared_directories, request):
    opened = []

    def open_(pool, **options):
        directory = shared_directories(pool.get_size_per_token() * house.TOKENS)
        device = pool.device_pool_for_tests
        controller = HiCacheController(
            SimpleNamespace(get_kvcache=lambda: device),
            pool,
            house.TOKENS,
            one_rank,
            threading.Event(),
            io_backend="kernel",
            storage_backend="dynamic",
            prefetch_threshold=house.TOKENS,
            model_name="a/model",
            storage_backend_extra_config=house.extra_config(
                directory, model=request.node.name, linger_s=8.0, **options
            ),
        )
        opened.append(controller)
        return controller

    yield open_
    for controller in opened:
        controller.detach_storage_backend()


@pytest.mark.parametrize(("kind", "layout"), CASES)
@pytest.mark.parametrize("zero_copy", [1, 0])
def test_backup_and_prefetch_are_byte_equal(house, open_controller, kind, layout, zero_copy):
    pages = 150  # more than one batch of 128
    make = house.mha_pool if kind == "mha" else house.mla_pool
    pool = make(layout, pages=2 * pages + 1)
    controller = open_controller(pool, interface_v1=zero_copy)
    tokens, source = list(range(pages * house.TOKENS)), house.slots(pool, pages)
    before = house.page_bytes(pool, source)
    backup(house, controller, tokens, source)
    completed, target = prefetch(house, controller, tokens)
    assert completed == len(tokens)
    assert torch.equal(before, house.page_bytes(pool, target))


def test_prefetch_ends_where_pages_end(house, open_controller):
    pool = house.mha_pool(pages=65)
    controller = open_controller(pool)
    tokens, source = list(range(8 * house.TOKENS)), house.slots(pool, 8)
    backup(house, controller, tokens, source)
    longer = [*tokens, *range(5000, 5000 + 4 * house.TOKENS)]
    completed, target = prefetch(house, controller, longer)
    assert completed == len(tokens)
    assert torch.equal(
        house.page_bytes(pool, source), house.page_bytes(pool, target[: len(tokens)])
    )


def backup(house, controller, tokens, source):
    """As the tree does behind a backup to the host."""
    hash_str = getattr(cache_controller, "get_storage_hash_str", controller.get_hash_str)
    keys = hash_str(tokens, None, page_size=house.TOKENS)
    controller.write_storage(source, tokens, hash_value=keys, prefix_keys=[])
    operation = controller.ack_backup_queue.get(timeout=30)
    assert operation.completed_tokens == len(tokens)


def prefetch(house, controller, tokens):
    """As the tree does for a request: ask, give room, read. Tokens that came, and where."""
    controller.prefetch("request", tokens, None, [])
    operation = controller.prefetch_hit_queue.get(timeout=30)
    operation.host_indices = controller.mem_pool_host.alloc(operation.storage_hit_count)
    controller.prefetch_buffer.put(operation)
    if not hasattr(controller, "ack_prefetch_queue"):  # 0.5.16 counts, and says nothing
        house.until(lambda: operation.completed_tokens == operation.storage_hit_count)
        return operation.completed_tokens, operation.host_indices
    completed, is_done = 0, False
    while not is_done:
        ack = controller.ack_prefetch_queue.get(timeout=30)
        completed = completed if ack.completed_tokens is None else ack.completed_tokens
        is_done = ack.completed_req
    return completed, operation.host_indices
