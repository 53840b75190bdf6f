# SPDX-License-Identifier: Apache-2.0
"""The real SGLang on a CPU, and our storage backend as its factory makes it.

Nothing here is collected where there is no sglang: ``make test-sglang`` installs it.
"""

import hashlib
import importlib.util
import socket
import sys
import time
import warnings
from pathlib import Path

import pytest

SGLANG = importlib.util.find_spec("sglang") is not None
if not SGLANG:
    collect_ignore_glob = ["test_*.py"]
else:
    sys.path.insert(0, str(Path(__file__).parent))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages for hardware that is not there
        import stubs

        stubs.install()
        import torch
        from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool
        from sglang.srt.mem_cache.pool_host import base
        from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
        from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost
        from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

    import bodocache.cli
    import bodocache.node.process  # noqa: F401 -- registers what a node compiles
    from bodocache.cache import warm

    warm()  # what a node runs, too: a cold compile is not part of any test's time
    base.HICACHE_HOST_MEMORY_RESERVE_BYTES = 0  # of a test machine

LAYERS, HEADS, HEAD_DIM, TOKENS = 4, 2, 16, 8
MHA_LAYOUTS = ("layer_first", "page_first", "page_first_direct", "page_head")
MLA_LAYOUTS = ("layer_first", "page_first", "page_first_direct")
PAGE_NBYTES = 2 * LAYERS * HEADS * HEAD_DIM * TOKENS * 2


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.peer)
            item.add_marker(pytest.mark.timeout(180))  # a node starts in some of them
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::UserWarning:(sglang|torch).*"))


def extra_config(directory, **options):
    """What a launch line would say."""
    said = {
        "backend_name": "bodocache",
        "module_path": "bodocache.integrations.sglang",
        "class_name": "BodoCacheStorage",
        "interface_v1": 1,
        "directory": str(directory),
        "capacity_bytes": "32 MiB",
        "host_bytes": "16 MiB",
        "admit": False,
        "linger_s": 1.0,
    }
    return said | options


def storage_config(directory, *, is_mla=False, tp_rank=0, tp_size=1, more=None, **options):
    """What SGLang's controller hands on."""
    return HiCacheStorageConfig(
        tp_rank=tp_rank,
        tp_size=tp_size,
        pp_rank=0,
        pp_size=1,
        attn_cp_rank=0,
        attn_cp_size=1,
        is_mla_model=is_mla,
        enable_storage_metrics=True,
        is_page_first_layout=True,
        model_name="a/model",
        extra_config=extra_config(directory, **options),
        **(more or {}),
    )


def created(config):
    """The backend that SGLang's own factory makes."""
    return StorageBackendFactory.create_backend("dynamic", config, None)


def mha_pool(layout="page_first", *, pages=33, heads=HEADS, dtype=None, fill=True):
    """A real host pool, with random bytes in it; one page more than asked for, as SGLang does."""
    dtype, tokens = dtype or torch.bfloat16, (pages - 1) * TOKENS
    device = MHATokenToKVPool(
        size=tokens,
        page_size=TOKENS,
        dtype=dtype,
        head_num=heads,
        head_dim=HEAD_DIM,
        layer_num=LAYERS,
        device="cpu",
        enable_memory_saver=False,
    )
    return _host_pool(MHATokenToKVPoolHost, device, layout, tokens, fill)


def mla_pool(layout="page_first", *, pages=33, fill=True):
    tokens = (pages - 1) * TOKENS
    device = MLATokenToKVPool(
        size=tokens,
        page_size=TOKENS,
        dtype=torch.bfloat16,
        kv_lora_rank=32,
        qk_rope_head_dim=16,
        layer_num=LAYERS,
        device="cpu",
        enable_memory_saver=False,
    )
    return _host_pool(MLATokenToKVPoolHost, device, layout, tokens, fill)


def _host_pool(kind, device, layout, tokens, fill):
    if hasattr(device, "get_device_pool_infos"):
        where = {"device_capacity_tokens": tokens, "start_layer": 0, "end_layer": LAYERS - 1}
        if kind is MLATokenToKVPoolHost:
            where["target_layer_num"] = LAYERS
        source = device.get_device_pool_infos()[0].buffer_info
    else:  # older: the host pool looks at the device pool itself
        where, source = {}, device
    pool = kind(source, 1.0, 0, TOKENS, layout, pin_memory=False, device="cpu", **where)
    pool.device_pool_for_tests = device
    memory = pool.kv_buffer.view(torch.uint8)
    memory.random_(0, 256) if fill else memory.zero_()
    return pool


def hashes(pages, of=0):
    """Keys as SGLang makes them: chained SHA-256 in hex."""
    return [hashlib.sha256(f"{of}/{page}".encode()).hexdigest() for page in range(pages)]


def slots(pool, pages):
    """Token slots of as many free pages."""
    return pool.alloc(pages * TOKENS)


def page_bytes(pool, indices):
    """The bytes of the pages at ``indices``, in SGLang's own flat form."""
    first = indices[::TOKENS].tolist()
    pages = [pool.get_data_page(it, flat=True).contiguous().view(torch.uint8) for it in first]
    return torch.stack([it.flatten() for it in pages])


def until(condition, within_s=20.0):
    """Wait for another process or thread, which sets no event."""
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def node_pid(directory, pool="kv"):
    """Of the node that serves now."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.connect(str(Path(directory) / pool / "node.sock"))
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[:4], sys.byteorder)


def node_is_gone(directory, pool="kv"):
    try:
        node_pid(directory, pool)
    except OSError:
        return True
    return False


def written(backend, pages, pool="kv"):
    """Wait until as many pages lie on disk."""

    def on_disk():
        line = backend._nodes[pool].line
        return line is not None and line.figures(within_s=5)["tiers"]["disk"]["pages"] >= pages

    until(on_disk)


@pytest.fixture
def house():
    """What stands in this file, for tests."""
    return sys.modules[__name__]


@pytest.fixture(scope="session")
def shared_directories(tmp_path_factory):
    """By bytes of a page: a node takes seconds to start, and tests need not have their own."""
    made = {}
    yield lambda nbytes: made.setdefault(nbytes, tmp_path_factory.mktemp(f"n{nbytes}"))
    for directory in made.values():
        until(lambda directory=directory: node_is_gone(directory), within_s=60)


@pytest.fixture
def open_backend(shared_directories, request):
    """``open_backend(pool, directory=None, **config)``: created, and given the pool.

    Without a directory of its own it is at a node that other tests use, under a model of its own.
    In the end all are closed and their nodes are gone: nothing outlives a test.
    """
    backends, directories = [], set()

    def open_(pool, directory=None, **config):
        if directory is None:
            config = {"model": request.node.name, "linger_s": 8.0} | config
            directory = shared_directories(pool.get_size_per_token() * TOKENS)
        else:
            directories.add(directory)
        backend = created(storage_config(directory, **config))
        backends.append(backend)
        backend.register_mem_pool_host(pool)
        return backend

    yield open_
    for backend in backends:
        backend.close()
    for directory in directories:
        until(lambda directory=directory: node_is_gone(directory))
