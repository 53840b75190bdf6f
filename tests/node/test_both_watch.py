# SPDX-License-Identifier: Apache-2.0
"""What is told of a cache, and whether it steps aside: the same in-process and on a node."""

import asyncio
import json
import socket
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from bodocache.cli import app
from bodocache.clock import VirtualClock
from bodocache.errors import ConfigError
from bodocache.pages import Reason, Tier
from bodocache.testing.loop import VirtualSocketLoop, run_virtual
from bodocache.watch import attach, recording, why
from bodocache.watch.top import Frame

PAGES = 6


@pytest.fixture
def port():
    """One that is free."""
    with socket.socket() as it:
        it.bind(("127.0.0.1", 0))
        return it.getsockname()[1]


def exporting(port, **more):
    """The cache answers at ``port``, or its node does."""
    classes = {"gold": [1, 2]}
    return {"metrics": {"port": port, "tenant_classes": classes}, **more}


async def frame(port):
    text = await asyncio.to_thread(attach.fetch, str(port), "/metrics")
    return Frame.parsed(text.decode(), time.monotonic())


async def told(port, asked):
    document = await asyncio.to_thread(attach.fetch_json, str(port), "/timeline")
    return "\n".join(why.explain(recording.checked(document, "here"), asked))


async def load(it, tokens, **when):
    said = {name: when.pop(name) for name in ("tenant", "session") if name in when}
    match = await it.cache.match(tokens, **said)
    with it.cache.load(match, **when) as loading:
        loaded = await loading
    await loading.released
    await asyncio.sleep(0.01)  # the engine's last word reaches its node
    return loaded


async def clear_device(it):
    held = []
    while it.pool.free or it.cache.stats().traffic.tiers[Tier.DEVICE].pages:
        held.append(it.cache.acquire(1))
    it.cache.release(np.concatenate(held))


def test_metrics_say_what_loads_and_stores_came_to(either, house, port):
    async def scenario():
        async with either(house.Disk(), more=exporting(port)) as it:
            await it.serve(house.prompt(PAGES), tenant=1)  # nothing is there
            await clear_device(it)
            assert (await load(it, house.prompt(PAGES + 2), tenant=2)).pages == PAGES
            now = await frame(port)
            assert now.one("hits", "host") == PAGES
            assert now.one("misses", "never_stored") + now.one("misses", "diverged") == PAGES + 2
            assert now.one("tenant_loads", "gold") == 2
            assert (now.one("tenant_hits", "gold"), now.one("tenant_misses", "gold")) == (6, 8)
            assert now.one("tenant_stored", "gold") == PAGES
            assert now.one("stage_seconds_count", "load") == 2
            assert now.one("stage_seconds_count", "drain") == 2
            assert now.one("stage_seconds_count", "store") == 1
            assert now.one("stage_seconds_count", "write") == 1
            assert now.one("loads_in_flight") == now.one("stores_in_flight") == 0
            assert now.one("tier_pages", "host") == now.one("tier_pages", "disk") == PAGES
            assert now.one("tier_capacity_pages", "disk") == 64
            assert now.one("link_pages", "host->disk") == PAGES
            assert now.one("saved_seconds") > 0 < now.one("spent_seconds")
            assert now.one("timeline_events", "settled") == 2

    asyncio.run(scenario())


def test_a_load_that_is_cut_or_given_up_is_counted_by_its_reason(either, house, port):
    async def scenario():
        disk = house.Disk()
        async with either(disk) as it:
            await it.serve(house.prompt(PAGES))
        disk.seconds = 0.3
        async with either(disk, more=exporting(port)) as it:
            assert (await load(it, house.prompt(PAGES), deadline_s=0.05)).pages == 0
            loading = it.cache.load(await it.cache.match(house.prompt(PAGES)))
            now = await frame(port)
            assert now.one("loads_in_flight") == 1
            loading.close()
            await loading.released
            await asyncio.sleep(0.01)
            now = await frame(port)
            assert now.one("cuts", "deadline") == now.one("cuts", "cancelled") == 1
            assert now.one("decided_cuts", "deadline") == 1
            assert now.one("misses", "late") == now.one("misses", "cancelled") == PAGES
            assert now.one("loads_in_flight") == 0

    asyncio.run(scenario())


def test_why_tells_of_a_late_load_and_of_a_page_that_made_room(either, house, port):
    async def scenario():
        disk = house.Disk()
        async with either(disk, device=4) as it:
            await it.serve(house.prompt(4))
        disk.seconds = 0.2
        async with either(disk, device=4, host=4, more=exporting(port)) as it:
            await load(it, house.prompt(5), deadline_s=0.05, tenant=3, session="chat-9")
            text = await told(port, "chat-9")
            assert "(tenant 3, session chat-9)" in text
            assert "5 pages asked for, 4 of them lay in some tier; 0 delivered" in text
            assert "pages 0 to 3 of 0 to 4: late: not landed by the deadline" in text
            assert "page 4 of 0 to 4: " in text
            assert "(deadline): 0 of 4 pages kept" in text

    asyncio.run(scenario())


def test_why_tells_of_a_page_where_it_lies(either, house, port):
    async def scenario():
        async with either(more=exporting(port)) as it:
            await it.serve(house.prompt(2))
            await clear_device(it)
            key = (await it.cache.match(house.prompt(2))).keys[1].tobytes().hex()
            assert "lies in host (page 1 of its prompt" in await told(port, key)
            ran = await asyncio.to_thread(
                CliRunner().invoke, app, ["why", key[:16], "--at", str(port)]
            )
            assert "lies in host" in ran.output
            ran = await asyncio.to_thread(CliRunner().invoke, app, ["top", str(port), "--once"])
            assert "0 loads and 0 stores in flight" in ran.output

    asyncio.run(scenario())


def test_the_port_is_free_again_and_one_that_is_taken_is_an_error(either, house, port):
    async def scenario():
        for _ in range(2):
            async with either(more=exporting(port)):
                await frame(port)
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", port))
            taken.listen()
            with pytest.raises(ConfigError, match=f"metrics.port = {port}"):
                async with either(more=exporting(port)):
                    pass

    asyncio.run(scenario())


def test_the_timeline_has_what_became_of_a_request(either, house):
    async def scenario():
        async with either(house.Disk()) as it:
            await it.serve(house.prompt(PAGES))
            await clear_device(it)
            await load(it, house.prompt(PAGES), session="s")
            document = json.loads(json.dumps(it.cache.timeline().document()))
            text = "\n".join(why.explain(recording.checked(document, "here"), "s"))
            assert f"{PAGES} delivered" in text
            names = {event["name"] for event in document["traceEvents"]}
            assert {"load", "store", "host->device", "device->host", "planned"} <= names

    asyncio.run(scenario())


# Stepping aside


def in_virtual_time(scenario):
    clock = VirtualClock()
    run_virtual(scenario(clock), clock, VirtualSocketLoop)


def worth_of(it):
    return it.node.host.worth if hasattr(it, "node") else it.cache._orchestrator.worth


HALF_LIFE_S = 30.0


@pytest.mark.parametrize("is_on", [True, False])
def test_where_loads_take_longer_than_computing_it_steps_aside(either, house, is_on):
    async def scenario(clock):
        disk = house.Disk()
        async with either(disk, clock=clock) as it:
            await it.serve(house.prompt(PAGES))
        disk.seconds = 0.5
        features = {"admit": False, "aside": is_on}
        more = {"planner": {"half_life_s": HALF_LIFE_S}, "features": features}
        async with either(disk, clock=clock, more=more) as it:
            assert (await load(it, house.prompt(PAGES))).pages == PAGES
            assert worth_of(it).spent_s >= 0.5 > worth_of(it).saved_s > 0
            await clear_device(it)
            assert (await it.cache.match(house.prompt(PAGES))).pages == PAGES  # too soon
            await asyncio.sleep(HALF_LIFE_S)
            match = await it.cache.match(house.prompt(PAGES + 1))
            assert match.pages == (0 if is_on else PAGES)
            if is_on:
                assert match.reasons[:PAGES].tolist() == [Reason.ASIDE] * PAGES
            assert worth_of(it).gain.times_aside == int(is_on)
            assert it.cache.stats().traffic.gain.is_aside == is_on

    in_virtual_time(scenario)


@pytest.mark.parametrize(("is_aside", "written"), [(False, 3), (True, 0)])
def test_nothing_is_written_to_disk_while_it_is_aside(either, house, is_aside, written):
    async def scenario(clock):
        async with either(house.Disk(), clock=clock) as it:
            worth_of(it).is_aside = is_aside
            match = await it.cache.match(house.prompt(3))
            slots = it.cache.acquire(3)
            async with it.cache.store(match, slots) as store:
                assert (await store).new == 3  # what the device holds
                assert await store.written == written
            match = await it.cache.match(house.prompt(3))
            assert match.tiers.tolist() == [Tier.DEVICE] * 3
            await clear_device(it)
            assert (await it.cache.match(house.prompt(3))).pages == (0 if is_aside else 3)

    in_virtual_time(scenario)


def test_a_request_is_found_by_its_number_with_its_engines_epoch_on_a_node(either, house, port):
    async def scenario():
        async with either(more=exporting(port)) as it:
            match = await it.cache.match(house.prompt(2))
            with it.cache.load(match) as loading:
                await loading
            await loading.released
            await asyncio.sleep(0.01)
            name = str(match.said.request)
            if hasattr(it, "node"):
                name = f"{it.cache._engine._attached.channel.welcome.epoch}.{name}"
            assert f"request {name} (tenant 0), begun" in await told(port, name)

    asyncio.run(scenario())
