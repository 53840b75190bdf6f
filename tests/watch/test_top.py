# SPDX-License-Identifier: Apache-2.0
import asyncio
import io
import socket

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bodocache import cli
from bodocache.errors import WatchError
from bodocache.pages import Tier
from bodocache.watch import attach
from bodocache.watch.metrics import collected, exposition
from bodocache.watch.top import Frame, render


def drawn(*frames):
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(render(*frames))
    return console.export_text()


def row(text, first):
    return next(line.split() for line in text.splitlines() if line.startswith(first))


async def test_a_frame_shows_tiers_links_misses_and_tenants(house, prompt, watched):
    async with house() as it:
        await it.put(prompt(2))
        it.leave_on(Tier.HOST)
        await it.get(prompt(3))
        text = drawn(Frame.parsed(exposition(collected(watched(it))).decode(), 1.0))
    assert "0 loads and 0 stores in flight" in text
    assert "hit ratio 66.7 %" in text
    assert row(text, "host ")[1:] == ["#####...............", "2", "8", "2", "0"]
    assert row(text, "host->device")[1] == "0"
    assert row(text, "pages missed") == ["pages", "missed", "never_stored", "1"]
    assert row(text, "other") == ["other", "1", "66.7", "%", "2"]
    assert row(text, "load ")[1] == "1"


async def test_rates_are_since_the_frame_before(house, prompt, watched):
    async with house() as it:
        await it.put(prompt(2))
        first = Frame.parsed(exposition(collected(watched(it))).decode(), 1.0)
        await it.put(prompt(4, of=1))
        second = Frame.parsed(exposition(collected(watched(it))).decode(), 3.0)
        nbytes = 4 * it.host.layout.page_nbytes
    assert row(drawn(second, first), "device->host")[3] == f"{nbytes / 2.0 / 1e6:,.1f}"
    assert "since the last frame" in drawn(second, first)
    assert "since the last frame" not in drawn(second)


@pytest.mark.parametrize("text", ["", "other_metric 1\n", "not a metric at all {\n"])
def test_another_programs_answer_is_an_error(text):
    with pytest.raises(WatchError):
        Frame.parsed(text, 0.0)


@pytest.mark.parametrize("at", ["", "host", "ftp://127.0.0.1:1", "127.0.0.1", "a:b:c"])
def test_what_is_no_address_is_an_error(at):
    with pytest.raises(WatchError, match="expected a port or a URL"):
        attach.address(at)


def test_an_address_is_a_port_or_a_url():
    assert attach.address("9477") == ("127.0.0.1", 9477)
    assert attach.address("localhost:9477") == ("localhost", 9477)
    assert attach.address("http://127.0.0.1:9477/") == ("127.0.0.1", 9477)


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_nobody_who_listens_is_an_error_that_says_what_to_configure():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for command in (("top", port, "--once"), ("why", "3", "--at", port)):
        error = run(*command).exception
        assert isinstance(error, WatchError)
        assert f"nobody listens; a cache or node does with [metrics] port = {port}" in str(error)


async def test_top_and_why_attach_to_a_running_cache(house, prompt, export):
    async with house() as it:
        server = await export(it)
        match = await it.cache.match(prompt(3))
        await it.put(match)
        await it.get(prompt(3))
        key = match.keys[0].tobytes().hex()
        it.orchestrator.requests._kept.clear()
        number = (await it.cache.match(prompt(4))).said.request + 1
        await it.get(prompt(4))
        asked = (
            ("top", server.port, "--once"),
            ("why", number, "--at", server.port),
            ("why", key, "--at", server.port),
            ("why", "ff" * 32, "--at", server.port),
        )
        top, why, page, unknown = [await asyncio.to_thread(run, *one) for one in asked]
        await server.close()
    assert (top.exit_code, why.exit_code, page.exit_code) == (0, 0, 0)
    assert "hit ratio" in top.stdout
    assert "page 3 of 0 to 3: diverged" in why.stdout or "never stored" in why.stdout
    assert page.stdout.startswith(f"page {key}: lies in")
    assert "never stored, or forgotten" in str(unknown.exception)


async def test_a_program_that_does_not_speak_http_is_an_error():
    async def hang_up(_, writer):
        writer.write(b"220 hello\r\n")
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(WatchError, match="is it a cache"):
        await asyncio.to_thread(attach.fetch, str(port), "/metrics")
    server.close()
    await server.wait_closed()


def test_why_needs_to_be_told_where_to_look():
    result = run("why", "3")
    assert result.exit_code == 2
    assert "one of --file" in result.output
