# SPDX-License-Identifier: Apache-2.0
"""Nodes on our loop or in processes of their own, and engines in processes that can be killed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from bodocache import jit
from bodocache.cache import Cache
from bodocache.clock import RealClock
from bodocache.config import CacheConfig, parse
from bodocache.kernels.host import compiled as host_path
from bodocache.layout import Group, Layout, LayoutKind
from bodocache.node.client import NodeCache
from bodocache.node.process import serve
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


def settings(directory=None, *, host=16, disk=64, silence_s=10.0, **identity):
    """A configuration as TOML would say it."""
    tiers = {"host": {"capacity_bytes": host * PAGE_NBYTES}}
    if directory is not None:
        room = 4096 + disk * (PAGE_NBYTES + 512)
        tiers["disk"] = {"directories": str(directory), "capacity_bytes": room}
    return {
        "identity": {"model": "m", "dtype": "bytes", **identity},
        "tiers": tiers,
        "features": {"admit": False},
        "node": {
            "page_tokens": PAGE_TOKENS,
            "layers": 4,
            "heads": 1,
            "head_dim": 32,
            "itemsize": 2,
            "group": "kv",
            "silence_s": silence_s,
        },
    }


def config_of(values):
    return parse(CacheConfig, values)


def device_pool(pages=16, group=GROUP, page_tokens=PAGE_TOKENS):
    layout = Layout(LayoutKind.LAYER_FIRST, group, page_tokens, pages)
    return OwnedPool(layout, name="device")


class Engine:
    """Serves whole prompts: loads what there is, compares it, computes and stores the rest."""

    def __init__(self, cache, pool):
        self.cache, self.pool, self.words = cache, pool, payload.words_of(pool)

    async def serve(self, tokens, tenant=0):
        """Pages loaded of ``tokens``; afterwards all of them are stored."""
        match = await self.cache.match(tokens, tenant=tenant)
        with self.cache.load(match) as load:
            loaded = await load
            seeds = payload.seeds(match.keys)
            wrong = payload.count_wrong_bytes(self.words, loaded.slots, seeds[: loaded.pages])
            assert wrong == 0
            slots = self.cache.acquire(len(match.keys) - loaded.pages, tenant=tenant)
            payload.fill(self.words, slots, seeds[loaded.pages :])
            async with self.cache.store(match, slots) as store:
                await store.written
        return loaded.pages


@asynccontextmanager
async def attach(path, values, *, pages=16, **options):
    pool = device_pool(pages)
    async with await NodeCache.attach(path, config_of(values), pool, **options) as cache:
        yield Engine(cache, pool)
    assert pool.free == pages
    assert pool.leased == 0


@asynccontextmanager
async def node_at(path, values, **options):
    """A node on our loop; nothing may be left of its engines when it ends."""
    async with serve(config_of(values), path, **options) as node:
        yield node
        await until(lambda: is_clean(node))
    assert node.host.nursery.failures == 0


def is_clean(node):
    pool, records = node.host.residency.host, node.host.residency.table.records
    pages = node.host.residency.stats()[1].pages
    free = pool.free + pages == pool.num_pages
    return free and pool.leased == 0 and not records["pins"].any() and not node.door.connections


async def until(condition, within_s=15.0):
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 -- of another process, which sets no event
            await asyncio.sleep(0.002)


class Disk:
    """What stays when a cache is closed; each read takes ``seconds``."""

    def __init__(self, seconds=0.0):
        self.memory, self.seconds = MemoryDisk(PAGE_NBYTES, 64), seconds

    def backend(self, clock):
        """Who reads and writes it."""
        plain = MemoryBackend(self.memory, clock=clock)
        return SlowBackend(plain, self.seconds, clock=clock) if self.seconds else plain


@asynccontextmanager
async def in_process(_, values, device, backend, options):
    """An engine with a cache of its own."""
    pool = device_pool(device)
    async with await Cache.open(config_of(values), pool, backend=backend, **options) as cache:
        yield Engine(cache, pool)


@asynccontextmanager
async def on_a_node(path, values, device, backend, options):
    """An engine and its node."""
    of_node = {"clock": options["clock"]} if "clock" in options else {}
    async with (
        node_at(path, values, backend=backend, **of_node) as node,
        attach(path, values, pages=device, **options) as it,
    ):
        it.node = node
        yield it


@pytest.fixture(params=[in_process, on_a_node], ids=["in_process", "on_a_node"])
def either(request, tmp_path):
    """``async with either(disk=..., **options) as it``: an engine; ``disk`` takes SLOW_S a read.

    ``more``: sections of the configuration.
    """

    @asynccontextmanager
    async def opened(disk=None, token_s=20e-6, host=16, device=16, more=None, **options):
        planner = {"recompute_s_per_token": token_s}
        values = {**settings(host=host), "planner": planner, **(more or {})}
        backend = disk and disk.backend(options.get("clock") or RealClock())
        async with request.param(tmp_path / "s", values, device, backend, options) as it:
            it.decider = it.cache._orchestrator.decider
            yield it

    return opened


class Zygote:
    """Starts processes, and hears what they say."""

    def __init__(self):
        script = Path(__file__).with_name("zygote.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(os.environ),
        )
        self.said = defaultdict(list)
        self._pids = {}
        self._number = 0
        self._thread = threading.Thread(target=self._hear, daemon=True)
        self._thread.start()

    def _hear(self):
        for line in self._process.stdout:
            said = json.loads(line)
            if "started" in said:
                self._pids[said["started"]] = said["pid"]
            else:
                self.said[said.pop("pid")].append(said)

    async def start(self, role, path, values, **more):
        """The pid of a new process of ``role``."""
        await until(lambda: self.said, within_s=90)
        self._number += 1
        order = {"role": role, "path": str(path), "config": values, "number": self._number, **more}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        number = self._number
        await until(lambda: number in self._pids)
        return self._pids[number]

    async def hears(self, pid, name, within_s=15.0):
        """What the process says under ``name``."""
        await until(lambda: any(name in it or "failed" in it for it in self.said[pid]), within_s)
        return next(it.get(name, it) for it in self.said[pid] if name in it or "failed" in it)

    def close(self):
        for pid in self._pids.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.stdin.close()
        self._process.wait(20)
        self._thread.join(20)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def zygote():
    it = Zygote()
    yield it
    it.close()


@pytest.fixture
def house():
    """What stands in this file, for tests."""
    return sys.modules[__name__]
