# SPDX-License-Identifier: Apache-2.0
"""A node as threads use it: no event loop of their own, and none of ours beside them."""

import asyncio
import threading
import time
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from bodocache import digest
from bodocache.errors import NodeError, NodeLost, NodeRefused
from bodocache.hints.reuse import Said
from bodocache.node import starter, terms
from bodocache.node.direct import DirectNode
from bodocache.node.process import run_until_told, serve
from bodocache.node.said import said_to_json
from bodocache.wiring import root_of

SAID = said_to_json(Said())


def keys_of(pages, of=0):
    made = np.zeros((pages, 32), np.uint8)
    made[:, 0], made[:, 1] = 1 + np.arange(pages), of + 1
    return made


@contextmanager
def a_node(path, values, house, *, is_left=True):
    """A node on a loop in a thread of its own; yields the node and its loop.

    ``is_left``: nothing may be left of its engines when it ends.
    """
    ready, told, loops = threading.Event(), [], []

    async def run():
        async with serve(house.config_of(values), path) as node:
            told.append(asyncio.Event())
            loops.extend([asyncio.get_running_loop(), node])
            ready.set()
            await told[0].wait()
            await house.until(lambda: house.is_clean(node) or not is_left)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert ready.wait(15)
    try:
        yield loops[1], loops[0]
    finally:
        loops[0].call_soon_threadsafe(told[0].set)
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def attached(path, values, house, **options):
    config = house.config_of(values)
    layout = terms.layout_for(config)
    hello = terms.hello_of(config.identity.tenant_domain, root_of(config, layout), layout)
    node = DirectNode(path, hello, layout, **{"patience_s": 5.0} | options)
    try:
        yield node
    finally:
        node.close()


def put(line, keys, supplied=0, **options):
    """Store pages whose bytes are their keys' first byte."""

    def fill(positions, rows):
        memory = line.pages.numpy()
        for position, row in zip(positions, rows, strict=True):
            memory[row] = keys[position, 0]
        return digest.seeded(digest.digest_rows(memory, rows), keys[positions])

    return line.store(keys, supplied, SAID, fill, **{"within_s": 5.0} | options)


def waited(condition, within_s=15.0):
    """Wait for a thread that sets no event."""
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def take(line, keys):
    """The bytes of the pages that come, by position."""
    incoming = line.fetch(keys, SAID, due_s=1.0, deadline_s=5.0)
    line.wait(incoming, slice(None), time.monotonic() + 5)
    came = np.flatnonzero(incoming.slots >= 0)
    pages = {int(i): line.pages[int(incoming.slots[i])].numpy().copy() for i in came}
    line.end(incoming, np.empty(0, np.int64))
    return pages


def test_pages_come_back(tmp_path, house):
    path, values, keys = tmp_path / "n.sock", house.settings(tmp_path), keys_of(6)
    with a_node(path, values, house), attached(path, values, house) as node:
        line = node.line
        assert line.leading(keys, tenant=0, within_s=5) == 0
        assert put(line, keys).shown.tolist() == list(range(6))
        assert line.leading(keys, tenant=0, within_s=5) == 6
        assert line.holds(keys[[5, 0]], within_s=5).all()
        assert put(line, keys).known.tolist() == list(range(6))
        pages = take(line, keys)
        assert sorted(pages) == list(range(6))
        assert all((pages[i] == i + 1).all() for i in pages)
        assert not line.incoming


def test_pages_behind_a_prefix_that_is_not_there_are_not_stored(tmp_path, house):
    path, values, keys = tmp_path / "n.sock", house.settings(), keys_of(6)
    with a_node(path, values, house), attached(path, values, house) as node:
        stored = put(node.line, keys, supplied=3)
        assert (len(stored.shown), len(stored.known)) == (0, 0)
        put(node.line, keys[:3])
        assert put(node.line, keys, supplied=3).shown.tolist() == [3, 4, 5]


def test_a_cleared_node_is_empty(tmp_path, house):
    path, values, keys = tmp_path / "n.sock", house.settings(tmp_path), keys_of(8)
    with a_node(path, values, house) as (serving, _), attached(path, values, house) as node:
        put(node.line, keys)
        node.line.clear(within_s=5)
        assert node.line.leading(keys, tenant=0, within_s=5) == 0
        assert serving.host.residency.host.free == serving.host.residency.host.num_pages
        put(node.line, keys)
        assert node.line.leading(keys, tenant=0, within_s=5) == 8


def test_many_threads_share_a_line(tmp_path, house):
    path, values = tmp_path / "n.sock", house.settings(host=64)
    wrong = []

    def work(line, number):
        keys = keys_of(4, of=number)
        for _ in range(30):
            put(line, keys)
            pages = take(line, keys)
            if sorted(pages) != [0, 1, 2, 3] or line.leading(keys, tenant=0, within_s=5) != 4:
                wrong.append(number)

    with a_node(path, values, house), attached(path, values, house) as node:
        threads = [threading.Thread(target=work, args=(node.line, i)) for i in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(15)
        assert not wrong


def test_an_engine_that_was_silent_goes_on_in_a_new_epoch(tmp_path, house):
    path, values, keys = tmp_path / "n.sock", house.settings(silence_s=0.4), keys_of(4)
    with a_node(path, values, house) as (serving, loop), attached(path, values, house) as node:
        line = node.line
        put(line, keys)
        (connection,) = serving.door.connections
        loop.call_soon_threadsafe(connection._fence, "a test")
        waited(lambda: line.dialog.epoch == 2 and node.line is line)
        assert sorted(take(node.line, keys)) == [0, 1, 2, 3]


def test_a_node_that_is_gone_is_a_miss_until_it_is_back(tmp_path, house):
    path, values, keys = tmp_path / "n.sock", house.settings(tmp_path, silence_s=0.4), keys_of(4)
    with ExitStack() as stack:
        with a_node(path, values, house, is_left=False):
            node = stack.enter_context(attached(path, values, house))
            line = node.line
            put(line, keys)
            waited(lambda: line.figures(within_s=5)["tiers"]["disk"]["pages"] == 4)
        waited(lambda: node.line is not line)
        assert not line.incoming
        with a_node(path, values, house):
            waited(lambda: node.line is not None)
            assert sorted(take(node.line, keys)) == [0, 1, 2, 3]
            node.close()


def test_nobody_there_and_another_page_are_said(tmp_path, house):
    path, values = tmp_path / "n.sock", house.settings()
    with pytest.raises(NodeLost, match="is a node there"), attached(path, values, house):
        pass
    with a_node(path, values, house):
        other = house.settings(model="another")
        with pytest.raises(NodeRefused, match="another"), attached(path, other, house):
            pass


def test_a_node_ends_when_nobody_is_left(tmp_path, house):
    path, values = tmp_path / "n.sock", house.settings()
    ended = threading.Event()

    def run():
        asyncio.run(_without_signals(house.config_of(values), path))
        ended.set()

    threading.Thread(target=run).start()
    waited(lambda: starter._serves(path))
    with attached(path, values, house):
        time.sleep(0.5)
        assert not ended.is_set()
    assert ended.wait(10)
    assert not path.exists()


async def _without_signals(config, path):
    """Signal handlers are the main thread's."""
    asyncio.get_running_loop().add_signal_handler = lambda *_: None
    await run_until_told(config, path, linger_s=0.2)


def test_a_node_that_cannot_start_is_quoted(tmp_path):
    place = starter.NodePlace(tmp_path / "place")
    with pytest.raises(NodeError, match="ended at its start"):
        starter.ensure(place, {"identity": {"model": "m"}}, linger_s=1.0, start_s=60.0)
    assert oct(place.config.stat().st_mode & 0o777) == "0o600"
