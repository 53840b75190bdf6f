# SPDX-License-Identifier: Apache-2.0
"""The door for engines without an event loop, over an in-process cache and over a node."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bodocache import jit
from bodocache.blocking import BlockingCache
from bodocache.cache import Cache
from bodocache.clock import RealClock
from bodocache.config import CacheConfig, parse
from bodocache.errors import BodoCacheError, CacheClosed, ConfigError, LayoutError
from bodocache.hints import Pin, Session, Status
from bodocache.kernels.host import compiled as host_path
from bodocache.layout import Group, Layout, LayoutKind
from bodocache.node.client import NodeCache
from bodocache.node.process import serve
from bodocache.pages import Reason
from bodocache.pools import OwnedPool
from bodocache.replay import payload
from bodocache.testing import MemoryBackend, MemoryDisk, SlowBackend

host_path()
jit.warm()  # here, not in a test: a cold compile is not part of any test's time

GROUP = Group("kv", layers=4, heads=1, head_dim=32, itemsize=2)
PAGE_TOKENS = 8
PAGE_NBYTES = GROUP.page_nbytes(PAGE_TOKENS)


def prompt(pages, of=0):
    return np.arange(pages * PAGE_TOKENS, dtype=np.uint32) + np.uint32(of * 100_000)


def config(host=64):
    sizes = {"layers": 4, "heads": 1, "head_dim": 32, "itemsize": 2, "group": "kv"}
    return parse(
        CacheConfig,
        {
            "identity": {"model": "m", "dtype": "bytes"},
            "tiers": {"host": {"capacity_bytes": host * PAGE_NBYTES}},
            "features": {"admit": False},
            "node": {"page_tokens": PAGE_TOKENS, **sizes},
        },
    )


def device_pool(pages):
    return OwnedPool(Layout(LayoutKind.LAYER_FIRST, GROUP, PAGE_TOKENS, pages), name="device")


class NodeInThread:
    """A node whose loop is another thread's."""

    def __init__(self, path):
        self._begun, self._path = threading.Event(), path
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._begun.wait(60)

    async def _serve(self):
        self._end, self._loop = asyncio.Event(), asyncio.get_running_loop()
        async with serve(config(), self._path):
            self._begun.set()
            await self._end.wait()

    def close(self):
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(20)


@pytest.fixture(params=["in_process", "on_a_node"])
def opened(request, tmp_path):
    """``opened(pool)``: a blocking cache over it."""
    caches, node = [], None
    if request.param == "on_a_node":
        node = NodeInThread(tmp_path / "s")

    def opener(pool):
        if node is None:
            return Cache.open(config(), pool)
        return NodeCache.attach(tmp_path / "s", config(), pool)

    def open_(pool):
        caches.append(BlockingCache(lambda: opener(pool)))
        return caches[-1]

    yield open_
    for cache in caches:
        cache.close()
    if node is not None:
        node.close()


def serve_prompt(cache, words, tokens, **said):
    """Pages loaded of ``tokens``, each byte compared; the rest is computed and stored."""
    match = cache.match(tokens, **said)
    with cache.load(match, deadline_s=10.0) as load:
        loaded = load.wait(20)
        seeds = payload.seeds(match.keys)
        assert payload.count_wrong_bytes(words, loaded.slots, seeds[: loaded.pages]) == 0
        slots = cache.acquire(len(match.keys) - loaded.pages)
        payload.fill(words, slots, seeds[loaded.pages :])
        with cache.store(match, slots):
            pass
    return loaded.pages


def test_a_thread_stores_layer_by_layer_and_what_it_leaves_is_nothing(opened):
    pool = device_pool(16)
    words, cache = payload.words_of(pool), opened(pool)
    for ready in (2, 4):
        match = cache.match(prompt(3))
        slots = cache.acquire(3)
        payload.fill(words, slots, payload.seeds(match.keys))
        with cache.store(match, slots, layers=True) as store:
            for layer in range(ready):
                store.layer_ready(layer)
            with pytest.raises(BodoCacheError, match=r"say them in order|layer 5 of 4"):
                store.layer_ready(ready + 1)
        assert cache.match(prompt(3)).pages == (3 if ready == 4 else 0)
    assert serve_prompt(cache, words, prompt(3)) == 3


def test_a_thread_without_a_loop_stores_and_loads(opened):
    pool = device_pool(16)
    cache = opened(pool)
    words = payload.words_of(pool)
    assert serve_prompt(cache, words, prompt(5), session="s") == 0
    assert serve_prompt(cache, words, prompt(6)) == 5
    assert cache.stats().hits == 5
    (pinned,) = cache.hint([Pin(Session("s"))])
    assert (pinned.status, pinned.pages) == (Status.ACCEPTED, 5)
    cache.rotate("2")
    assert cache.match(prompt(5)).reasons.tolist() == [Reason.OTHER_VERSION] * 5
    cache.close()
    assert pool.free == 16


def test_many_threads_use_one_cache_at_once(opened):
    pool = device_pool(64)
    cache, words = opened(pool), payload.words_of(pool)
    dice = np.random.default_rng(7).integers(0, 6, (8, 25))

    def work(mine):
        return [serve_prompt(cache, words, prompt(1 + of, int(of))) for of in mine]

    with ThreadPoolExecutor(8) as threads:
        counts = list(threads.map(work, dice))
    assert sum(map(sum, counts)) > 0
    cache.close()
    assert pool.free == 64
    assert pool.leased == 0


def test_what_the_cache_raises_is_raised_in_the_callers_thread(opened):
    cache = opened(device_pool(4))
    with pytest.raises(LayoutError, match="tokens"):
        cache.match(np.zeros((4, 4), np.uint32))
    with pytest.raises(LayoutError, match="distinct"):
        cache.store(cache.match(prompt(2)), np.array([1, 1]))


def test_a_closed_cache_says_so_and_its_thread_is_gone(opened):
    before = threading.active_count()
    cache = opened(device_pool(4))
    load = cache.load(cache.match(prompt(2)))
    cache.close()
    cache.close()
    load.close()  # harmless
    with pytest.raises(CacheClosed):
        cache.match(prompt(2))
    assert not [it for it in threading.enumerate() if it.name == "bodocache-loop"]
    assert threading.active_count() <= before + 1  # the default executor's, if anything


def slow_cache(pool, blocked_s):
    clock = RealClock()
    disk = MemoryBackend(MemoryDisk(PAGE_NBYTES, 32), clock=clock)
    backend = SlowBackend(disk, blocked_s, clock=clock)
    return BlockingCache(lambda: Cache.open(config(4), pool, backend=backend))


def test_a_wait_that_times_out_leaves_the_load_as_it_is():
    pool = device_pool(4)
    words = payload.words_of(pool)
    with slow_cache(pool, 0.3) as cache:
        match = cache.match(prompt(4))
        slots = cache.acquire(4)
        payload.fill(words, slots, payload.seeds(match.keys))
        with cache.store(match, slots) as store:
            assert store.wait_written(20) == 4
        serve_prompt(cache, words, prompt(4, of=1))  # the first prompt is on disk alone
        with cache.load(cache.match(prompt(4))) as load:
            with pytest.raises(TimeoutError):
                load.wait(0.01)
            assert load.wait(20).pages == 4
            load.wait_released(20)


def test_a_call_on_the_caches_own_loop_is_refused_instead_of_hanging(opened):
    cache = opened(device_pool(4))

    async def inside(_):
        return cache.match(prompt(1))

    with pytest.raises(RuntimeError, match="own loop"):
        cache.run(inside)


def test_an_opener_that_fails_leaves_no_thread(tmp_path):
    with pytest.raises(Exception, match="bodocache node"):
        BlockingCache(lambda: NodeCache.attach(tmp_path / "none", config(), device_pool(4)))
    assert not [it for it in threading.enumerate() if it.name == "bodocache-loop"]


def test_layers_of_a_committed_load_are_waited_for_without_a_loop(opened):
    pool = device_pool(16)
    cache, words = opened(pool), payload.words_of(pool)
    serve_prompt(cache, words, prompt(5))
    with cache.load(cache.match(prompt(5)), start_s=9.0) as load:
        load.expect(start_s=8.0, n_waiting=1.5)
        with pytest.raises(ConfigError, match="start_s"):
            load.expect(start_s=-1.0, n_waiting=0)
        assert load.commit() == range(5 * PAGE_TOKENS)
        for layer in range(GROUP.layers):
            load.wait_layer(layer, timeout_s=20)
        assert load.recompute == range(5 * PAGE_TOKENS, 5 * PAGE_TOKENS)
        assert load.wait(20).pages == 5
