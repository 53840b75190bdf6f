# SPDX-License-Identifier: Apache-2.0
"""A byte that changes somewhere on its way: what a committed load offers, and when it says so.

Of pages from disk no layer is offered. Of pages that were whole on the host layers are, but never
the last one.
"""

import asyncio

import pytest

from bodocache.errors import LoadFailed
from bodocache.pages import Tier

LAYERS, PAGES, BAD = 4, 5, 2
COMPUTE_S = [1e-3] * LAYERS

ways = pytest.mark.parametrize("streams", [False, True])


async def stored(it, tokens, tier):
    """The rows of ``tokens``, which lie on ``tier`` and on disk if there is one."""
    await it.put(tokens)
    it.leave_on(tier)
    return it.residency.leading((await it.cache.match(tokens)).keys)


async def committed(it, tokens, note=lambda _: None):
    """A load of which all pages are left at the commit."""
    with it.busy("host->device"), it.busy_disk():
        load = await it.begin(tokens, compute_s=COMPUTE_S)
        note(load)
        load.commit()
    return load


async def offered(load):
    """How many layers were offered before the load failed, and why it did."""
    async with asyncio.timeout(60):  # the first of a build may compile
        for layer in range(LAYERS):
            try:
                await load.layer(layer)
            except LoadFailed as failed:
                with pytest.raises(LoadFailed):
                    await load
                await load.released
                return layer, failed
    return LAYERS, None


@ways
def test_nothing_is_offered_of_a_page_that_changed_on_disk(house, prompt, streams):
    async def scenario():
        async with house(streams=streams) as it:
            rows = await stored(it, prompt(PAGES), Tier.DISK)
            frame = int(it.residency.table.records["frame"][rows[BAD]])
            it.disk.pages[frame, 100] ^= 1
            with await committed(it, prompt(PAGES)) as load:
                layers, failed = await offered(load)
                assert (layers, failed.pages) == (0, BAD)
            assert (await it.get(prompt(PAGES))).pages == BAD

    asyncio.run(scenario())


@ways
@pytest.mark.parametrize("disk", [0, 32])
def test_a_page_that_changed_in_host_memory_ends_the_load_before_its_last_layer(
    house, prompt, streams, disk
):
    async def scenario():
        async with house(streams=streams, disk=disk) as it:
            rows = await stored(it, prompt(PAGES), Tier.HOST)
            it.host.rows[it.residency.slots(rows, Tier.HOST)[BAD], 100] ^= 1
            with await committed(it, prompt(PAGES)) as load:
                layers, failed = await offered(load)
                assert (layers, failed.pages) == (LAYERS - 1, BAD)
                assert "CORRUPT" in str(failed)
            assert it.cache.stats().traffic.failed_checks == 1
            assert (await it.get(prompt(PAGES))).pages == (PAGES if disk else BAD)

    asyncio.run(scenario())


@pytest.mark.parametrize("layer", range(LAYERS))
def test_so_does_one_that_changed_on_the_device_of_a_stream(house, prompt, layer):
    async def scenario():
        async with house(streams=True) as it:
            await stored(it, prompt(PAGES), Tier.HOST)
            loads = []

            def damage(copied):
                if copied == LAYERS:
                    it.words[0, layer, loads[0].slots[BAD], 0] ^= 1

            after_each_layer(it.orchestrator._copies, True, damage)
            await fails_at_its_last_layer(it, prompt, loads.append)

    asyncio.run(scenario())


@pytest.mark.parametrize("layer", range(1, LAYERS))
def test_so_does_one_that_changes_in_host_memory_between_two_layers(house, prompt, layer):
    async def scenario():
        async with house() as it:
            rows = await stored(it, prompt(PAGES), Tier.HOST)
            slot = it.residency.slots(rows, Tier.HOST)[BAD]

            def damage(copied):
                if copied == layer:
                    it.host.rows[slot, layer * it.host.layout.page_nbytes // LAYERS] ^= 1

            after_each_layer(it.orchestrator._copies, False, damage)
            await fails_at_its_last_layer(it, prompt)

    asyncio.run(scenario())


async def fails_at_its_last_layer(it, prompt, note=lambda _: None):
    with await committed(it, prompt(PAGES), note) as load:
        layers, failed = await offered(load)
        assert (layers, failed.pages) == (LAYERS - 1, BAD)
    assert it.cache.stats().traffic.failed_checks == 1
    assert (await it.get(prompt(PAGES))).pages == PAGES


def after_each_layer(copies, streams, call):
    """``call(n)`` when n layers have been copied."""
    copied = []
    if not streams:
        copy = copies.layer_to_device

        def copy_and_call(*operands):
            copy(*operands)
            copied.append(1)
            call(len(copied))

        copies.layer_to_device = copy_and_call
        return
    make = copies.make_lane

    def make_lane():
        lane = make()
        submit = lane.submit

        def submit_and_call(*operands):
            submit(*operands)
            copied.append(1)
            call(len(copied))

        lane.submit = submit_and_call
        return lane

    copies.make_lane = make_lane


@ways
def test_a_load_whose_bytes_are_right_offers_every_layer(house, prompt, streams):
    async def scenario():
        async with house(streams=streams) as it:
            await stored(it, prompt(PAGES), Tier.HOST)
            with await committed(it, prompt(PAGES)) as load:
                assert await offered(load) == (LAYERS, None)
                loaded = await load
                assert it.wrong_bytes((await it.cache.match(prompt(PAGES))).keys, loaded) == 0

    asyncio.run(scenario())
