# SPDX-License-Identifier: Apache-2.0
"""A process that has everything imported and compiled, and forks engines and nodes on request.

Each line on standard input starts one: {"role", "path", "config", ...}. Its process writes lines
{"pid", ...} to standard output. Importing takes seconds, a fork milliseconds.
"""

import asyncio
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from bodocache import digest, jit
from bodocache.cache import warm
from bodocache.config import CacheConfig, parse
from bodocache.errors import NodeError
from bodocache.layout import Group, Layout, LayoutKind
from bodocache.node import messages
from bodocache.node.client import NodeCache
from bodocache.node.process import run_until_told
from bodocache.node.said import said_to_json
from bodocache.pools import OwnedPool
from bodocache.replay import payload

GROUP = Group("kv", layers=4, heads=1, head_dim=32, itemsize=2)
PAGE_TOKENS = 8


def prompt(pages, of):
    return np.arange(pages * PAGE_TOKENS, dtype=np.uint32) + np.uint32(of * 100_000)


def tell(**said):
    os.write(1, json.dumps({"pid": os.getpid(), **said}).encode() + b"\n")


async def attached(order):
    layout = Layout(LayoutKind.LAYER_FIRST, GROUP, PAGE_TOKENS, 16)
    pool = OwnedPool(layout, name="device")
    config = parse(CacheConfig, order["config"])
    return await NodeCache.attach(Path(order["path"]), config, pool), payload.words_of(pool)


async def serve_prompts(order):
    """Serve prompts for ever, each byte checked."""
    dice = random.Random(order["seed"])
    cache, words = await attached(order)
    tell(attached=True)
    while True:
        match = await cache.match(prompt(dice.randint(1, 8), dice.randrange(6)))
        with cache.load(match, deadline_s=dice.choice([0.001, 5.0])) as load:
            loaded = await load
            seeds = payload.seeds(match.keys)
            wrong = payload.count_wrong_bytes(words, loaded.slots, seeds[: loaded.pages])
            if wrong:
                tell(wrong=int(wrong))
            slots = cache.acquire(len(match.keys) - loaded.pages)
            payload.fill(words, slots, seeds[loaded.pages :])
            async with cache.store(match, slots):
                pass


async def stop_in_mid_store(order):
    """Reserve slots, write to them, stop; when continued, publish late and then store again."""
    cache, words = await attached(order)
    match = await cache.match(prompt(4, of=9))
    slots = cache.acquire(4)
    payload.fill(words, slots, payload.seeds(match.keys))
    link = cache._engine._attached
    reserved = await link.channel.request(
        messages.Reserve(1 << 40, 0, said_to_json(match.said), match.keys)
    )
    raw = link.copies.to_host(slots, reserved.slots)
    tell(reserved=len(reserved.slots))
    os.kill(os.getpid(), signal.SIGSTOP)
    digests = digest.seeded(raw, match.keys)
    publish = messages.Publish(1 << 40, digests)
    try:
        await link.channel.request(publish)
        tell(late="published")
    except NodeError as error:
        tell(late=f"{type(error).__name__}: {error}")
    while cache._engine._attached is None:  # noqa: ASYNC110 -- nobody else waits for it
        await asyncio.sleep(0.005)
    async with cache.store(match, slots) as store:
        tell(stored=(await store).new)
    await cache.close()
    tell(closed=True)


async def announce(order):
    """Announce a prompt's pages, and compute for ever."""
    cache, _ = await attached(order)
    cache.announce(await cache.match(prompt(4, of=9)), ready_s=50.0)
    await cache.node_stats()  # the node has heard of it
    tell(announced=True)
    await asyncio.Event().wait()


async def be_a_node(order):
    await run_until_told(parse(CacheConfig, order["config"]), Path(order["path"]))
    tell(ended=True)


ROLES = {it.__name__: it for it in (serve_prompts, stop_in_mid_store, announce, be_a_node)}


def main():
    warm()
    jit.warm()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    tell(ready=time.monotonic())
    for line in sys.stdin:
        order = json.loads(line)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            tell(started=order["number"])
            try:
                asyncio.run(ROLES[order["role"]](order))
            except Exception as error:  # noqa: BLE001 -- the test reads it
                tell(failed=f"{type(error).__name__}: {error}")
            os._exit(0)


if __name__ == "__main__":
    main()
