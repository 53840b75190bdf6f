# SPDX-License-Identifier: Apache-2.0
import asyncio
import contextlib
import json
import socket

import numpy as np
import pytest

from bodocache.cache import Cache
from bodocache.config import CacheConfig, parse
from bodocache.errors import ConfigError
from bodocache.layout import Group, Layout, LayoutKind
from bodocache.pools import OwnedPool
from bodocache.watch import attach
from bodocache.watch import exporter as exporting

GROUP = Group("kv", layers=4, heads=1, head_dim=32, itemsize=2)


def config(port):
    return parse(
        CacheConfig,
        {
            "identity": {"model": "m", "dtype": "d"},
            "tiers": {"host": {"capacity_bytes": 8 * GROUP.page_nbytes(8)}},
            "metrics": {"port": port},
        },
    )


def pool():
    return OwnedPool(Layout(LayoutKind.LAYER_FIRST, GROUP, 8, 4), name="device")


async def test_a_configured_port_answers_until_the_cache_is_closed():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with await Cache.open(config(port), pool()) as cache:
        await cache.match(np.arange(8, dtype=np.uint32))
        text = await asyncio.to_thread(attach.fetch, str(port), "/metrics")
        assert b"bodocache_tier_capacity_pages" in text
    with socket.socket() as caller:
        assert caller.connect_ex(("127.0.0.1", port)) != 0


async def test_a_port_that_is_taken_is_an_error_and_leaves_nothing_behind():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"metrics.port = {port}"):
            await Cache.open(config(port), pool())
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_it_listens_on_loopback_only(house, export):
    async with house() as it:
        server = await export(it)
        assert [one.getsockname()[0] for one in server._server.sockets] == ["127.0.0.1"]
        await server.close()


async def test_it_serves_metrics_the_timeline_and_a_page(house, prompt, export, ask):
    async with house() as it:
        server = await export(it)
        match = await it.cache.match(prompt(2))
        await it.put(match)
        key = match.keys[0].tobytes().hex()
        status, metrics = await ask(server, "/metrics")
        assert status == 200
        assert 'bodocache_tier_pages{tier="host"} 2.0' in metrics
        status, timeline = await ask(server, "/timeline")
        assert status == 200
        assert json.loads(timeline)["bodocache"]["requests"]
        status, page = await ask(server, f"/page?key={key[:16]}")
        assert list(json.loads(page)["pages"]) == [key]
        await server.close()


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ("/", 404),
        ("/page?key=12", 400),
        ("/page?key=xy", 400),
        ("/page", 400),
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405),
    ],
)
async def test_other_requests_are_refused_and_say_why(house, export, ask, asked, status):
    async with house() as it:
        server = await export(it)
        found, body = await ask(server, asked)
        assert (found, bool(body)) == (status, True)
        await server.close()


async def test_who_sends_no_header_or_too_long_a_one_is_let_go(house, export, monkeypatch):
    monkeypatch.setattr(exporting, "HEADER_S", 0.01)
    async with house() as it:
        server = await export(it)
        for sent in (b"", b"GET /" + b"x" * 20_000):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(sent)
            with contextlib.suppress(ConnectionResetError):  # not all that was sent was read
                assert await reader.read() == b""
            writer.close()
        await server.close()
        assert not server._serving


async def test_connections_are_bounded_and_end_with_it(house, export, monkeypatch):
    monkeypatch.setattr(exporting, "MOST_CONNECTIONS", 1)
    async with house() as it:
        server = await export(it)
        first = await asyncio.open_connection("127.0.0.1", server.port)
        second = await asyncio.open_connection("127.0.0.1", server.port)
        assert await second[0].read() == b""
        await server.close()
        assert await first[0].read() == b""
        for _, writer in (first, second):
            writer.close()
