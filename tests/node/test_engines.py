# SPDX-License-Identifier: Apache-2.0
"""Engines that share a node, and what they are told when something does not fit."""

import asyncio
import gc
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from bodocache.clock import RealClock
from bodocache.errors import BackendLocked, ConfigError, NodeError, NodeLost, NodeRefused
from bodocache.hints import Pin, Prefetch, Reuse, Session, Span, Status, Unpin
from bodocache.layout import Group, PagedMemory
from bodocache.node import codec, messages
from bodocache.node.client import NodeCache
from bodocache.pages import Reason, Tier
from bodocache.pools import BorrowedPool
from bodocache.replay import payload
from bodocache.testing import MemoryBackend, MemoryDisk, SlowBackend


def test_what_one_engine_stores_another_loads(tmp_path, house):
    async def scenario():
        values, path = house.settings(tmp_path), tmp_path / "s"
        async with (
            house.node_at(path, values) as node,
            house.attach(path, values) as one,
            house.attach(path, values) as two,
        ):
            assert await one.serve(house.prompt(6)) == 0
            assert await two.serve(house.prompt(6)) == 6
            assert await two.serve(house.prompt(8)) == 6
            assert await one.serve(house.prompt(8)) == 8
            hits = one.cache.stats().traffic.hits
            assert (hits[Tier.DEVICE], hits[Tier.HOST]) == (6, 2)
            assert node.describe()["fenced"] == 0

    asyncio.run(scenario())


def test_pages_on_disk_come_back_through_a_node_that_started_anew(tmp_path, house):
    async def scenario():
        values, path = house.settings(tmp_path), tmp_path / "s"
        async with house.node_at(path, values), house.attach(path, values) as it:
            await it.serve(house.prompt(6))
        async with house.node_at(path, values) as node:
            assert node.recovered_pages == 6
            async with house.attach(path, values) as it:
                assert await it.serve(house.prompt(6)) == 6
                assert it.cache.stats().traffic.hits[Tier.DISK] == 6

    asyncio.run(scenario())


def test_a_page_that_changed_in_the_shared_pool_is_a_miss_and_is_dropped(tmp_path, house):
    async def scenario():
        values, path = house.settings(), tmp_path / "s"
        async with (
            house.node_at(path, values) as node,
            house.attach(path, values) as one,
            house.attach(path, values) as two,
        ):
            await one.serve(house.prompt(4))
            residency = node.host.residency
            rows = residency.leading((await two.cache.match(house.prompt(4))).keys)
            residency.host.rows[residency.slots(rows, Tier.HOST)[2], 100] ^= 1
            with two.cache.load(await two.cache.match(house.prompt(4))) as load:
                loaded = await load
            assert loaded.pages == 2
            assert loaded.reasons.tolist() == [Reason.CORRUPT, Reason.UNREACHABLE]
            await house.until(lambda: not residency.lies_in(rows[2:3], Tier.HOST).any())

    asyncio.run(scenario())


def test_a_page_that_is_called_bad_and_is_not_stays(tmp_path, house):
    async def scenario():
        values, path = house.settings(), tmp_path / "s"
        async with house.node_at(path, values), house.attach(path, values) as it:
            await it.serve(house.prompt(4))
            async with house.attach(path, values) as liar:
                match = await liar.cache.match(house.prompt(4))
                channel = liar.cache._engine._attached.channel
                await channel.request(
                    messages.Fetch(1 << 40, 0, 4, 1.0, 1.0, SILENT, match.reasons, match.keys)
                )
                channel.note(messages.EndFetch(1 << 40, np.arange(-9, 9)))
                assert (await liar.cache.match(house.prompt(4))).pages == 4

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "lie",
    [
        {"tiers": np.zeros(5, np.uint8)},
        {"reasons": np.full(4, 250, np.uint8)},
        {"tiers": np.full(4, 9, np.uint8), "reasons": np.empty(0, np.uint8)},
        {"was_cut": "whim"},
        {"waited_s": -1.0},
        {"n_waiting": np.inf},
    ],
)
def test_who_tells_of_a_load_what_cannot_be_is_sent_away_and_nothing_is_counted(
    tmp_path, house, lie
):
    async def scenario():
        values, path = house.settings(), tmp_path / "s"
        async with house.node_at(path, values) as node, house.attach(path, values) as it:
            await it.serve(house.prompt(4))
            ledger, before = node.host.ledger, dict(node.host.ledger.misses)
            match = await it.cache.match(house.prompt(4))
            channel = it.cache._engine._attached.channel
            await channel.request(
                messages.Fetch(1 << 40, 0, 4, 1.0, 1.0, SILENT, match.reasons, match.keys)
            )
            honest = {"tiers": np.empty(0, np.uint8), "reasons": np.full(4, 3, np.uint8)}
            rest = {"was_cut": "", "waited_s": 0.0, "n_waiting": 0.0}
            channel.note(messages.Settled(load=1 << 40, **{**honest, **rest, **lie}))
            await house.until(lambda: isinstance(it.cache.trouble, NodeLost))
            assert ledger.misses == {**before, Reason.CANCELLED: 4}
            assert sum(ledger.cuts.values()) == 0
            await house.until(lambda: it.cache._engine._attached is not None)
            assert await it.serve(house.prompt(4)) == 4

    asyncio.run(scenario())


SILENT = '{"request": 1, "reuse": null, "session": null, "tenant": 0}'


def test_a_store_whose_bytes_are_not_what_it_says_shows_nothing(tmp_path, house):
    async def scenario():
        values, path = house.settings(), tmp_path / "s"
        async with house.node_at(path, values), house.attach(path, values) as it:
            match = await it.cache.match(house.prompt(3))
            request = it.cache._engine._attached.channel.request
            reserved = await request(messages.Reserve(1 << 40, 0, SILENT, match.keys))
            assert len(reserved.slots) == 3
            lies = np.zeros((3, 2), np.uint64)
            published = await request(messages.Publish(1 << 40, lies))
            assert len(published.shown) == 0
            assert (await it.cache.match(house.prompt(3))).pages == 0

    asyncio.run(scenario())


def test_two_engines_that_compute_the_same_page_store_it_once(tmp_path, house):
    async def scenario():
        values, path = house.settings(), tmp_path / "s"
        async with (
            house.node_at(path, values) as node,
            house.attach(path, values) as one,
            house.attach(path, values) as two,
        ):
            stores = []
            for it in (one, two):
                match = await it.cache.match(house.prompt(5))
                slots = it.cache.acquire(5)
                payload.fill(it.words, slots, payload.seeds(match.keys))
                stores.append(it.cache.store(match, slots))
            done = [await store for store in stores]
            for store in stores:
                store.close()
            assert sorted((it.new, it.known) for it in done) == [(0, 5), (5, 0)]
            assert node.host.residency.stats()[Tier.HOST].pages == 5

    asyncio.run(scenario())


def test_pages_the_host_has_lost_are_stored_again_from_the_device(tmp_path, house):
    async def scenario():
        values, path = house.settings(host=6), tmp_path / "s"
        async with (
            house.node_at(path, values),
            house.attach(path, values) as one,
            house.attach(path, values) as two,
        ):
            await one.serve(house.prompt(4))
            await two.serve(house.prompt(6, of=1))  # the host has no room for both
            assert await one.serve(house.prompt(6)) == 4
            assert (await two.cache.match(house.prompt(6))).pages == 6

    asyncio.run(scenario())


def test_a_rotation_of_one_engine_is_the_others_when_they_rotate_too(tmp_path, house):
    async def scenario():
        values, path = house.settings(), tmp_path / "s"
        async with (
            house.node_at(path, values),
            house.attach(path, values) as one,
            house.attach(path, values) as two,
        ):
            await one.serve(house.prompt(3))
            one.cache.rotate("2")
            assert await one.serve(house.prompt(3)) == 0
            assert (await two.cache.match(house.prompt(3))).pages == 3
            two.cache.rotate("2")
            assert await two.serve(house.prompt(3)) == 3
            two.cache.rotate("3")
            match = await two.cache.match(house.prompt(3))
            assert match.reasons.tolist() == [Reason.OTHER_VERSION] * 3

    asyncio.run(scenario())


def test_hints_are_carried_out_by_the_node(tmp_path, house):
    async def scenario():
        values, path = house.settings(tmp_path), tmp_path / "s"
        async with house.node_at(path, values), house.attach(path, values) as it:
            match = await it.cache.match(
                house.prompt(4), session="s", reuse=Reuse(probability=0.5, expected_s=3.0)
            )
            slots = it.cache.acquire(4)
            payload.fill(it.words, slots, payload.seeds(match.keys))
            async with it.cache.store(match, slots):
                pass
            pin, unknown = await it.cache.hint([Pin(Session("s")), Pin(Session("none"))])
            assert (pin.status, pin.pages) == (Status.ACCEPTED, 4)
            assert unknown.status is Status.MISSING
            (unpin,) = await it.cache.hint([Unpin(Session("s"), action_id="7")])
            assert (unpin.status, unpin.action_id) == (Status.ACCEPTED, "7")
        async with house.node_at(path, values), house.attach(path, values) as it:
            (fetched,) = await it.cache.hint([Prefetch(Span(house.prompt(4)))])
            assert await fetched.operation == 4
            match = await it.cache.match(house.prompt(4))
            assert match.tiers.tolist() == [Tier.HOST] * 4

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("identity", "says"),
    [
        ({"model": "other"}, "model: engine 'other', node 'm'"),
        ({"domain": "d"}, "domain: engine 'd', node 'default'"),
        ({"salt": "pepper"}, "identity.salt"),
        ({"domain_secret_hex": "ab" * 16}, "identity.domain_secret_hex"),
    ],
)
def test_an_engine_of_another_identity_is_refused_and_told_why(tmp_path, house, identity, says):
    async def scenario():
        path = tmp_path / "s"
        async with house.node_at(path, house.settings()):
            with pytest.raises(NodeRefused, match=says) as refusal:
                await NodeCache.attach(
                    path, house.config_of(house.settings(**identity)), house.device_pool()
                )
            assert "pepper" not in str(refusal.value)

    asyncio.run(scenario())


def test_an_engine_with_other_pages_is_refused_with_both_sides_named(tmp_path, house):
    async def scenario():
        path, values = tmp_path / "s", house.config_of(house.settings())
        larger = Group("kv", layers=4, heads=2, head_dim=32, itemsize=2)
        async with house.node_at(path, house.settings()):
            with pytest.raises(NodeRefused, match=r"heads=2.*heads=1"):
                await NodeCache.attach(path, values, house.device_pool(group=larger))
            with pytest.raises(NodeRefused, match="page_tokens: engine '16', node '8'"):
                await NodeCache.attach(path, values, house.device_pool(page_tokens=16))

    asyncio.run(scenario())


def test_an_engine_of_another_protocol_is_refused(tmp_path, house, monkeypatch):
    async def scenario():
        path = tmp_path / "s"
        async with house.node_at(path, house.settings()):
            monkeypatch.setattr("bodocache.node.terms.PROTOCOL", 99)
            with pytest.raises(NodeRefused, match="protocol 99, the node 3"):
                await NodeCache.attach(path, house.config_of(house.settings()), house.device_pool())

    asyncio.run(scenario())


def test_without_a_node_the_error_says_how_to_start_one(tmp_path, house):
    async def scenario():
        with pytest.raises(NodeLost, match="bodocache node --config FILE --socket"):
            await NodeCache.attach(
                tmp_path / "s", house.config_of(house.settings()), house.device_pool()
            )

    asyncio.run(scenario())


def test_a_socket_that_never_answers_is_an_error_in_time(tmp_path, house):
    async def scenario():
        with socket.socket(socket.AF_UNIX) as mute:
            mute.bind(str(tmp_path / "s"))
            mute.listen()
            with pytest.raises(NodeLost, match=r"does not answer within 0.05 s"):
                await NodeCache.attach(
                    *(tmp_path / "s", house.config_of(house.settings()), house.device_pool()),
                    patience_s=0.05,
                )

    asyncio.run(scenario())


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n" * 3, os.urandom(1 << 12)])
def test_bytes_that_are_no_message_end_that_connection_alone(tmp_path, house, data, caplog):
    async def scenario():
        path, values = tmp_path / "s", house.settings()
        async with house.node_at(path, values), house.attach(path, values) as it:
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(data)
            hello = codec.encode(messages.KIND_OF[messages.Ping], 1, 0, messages.Ping())
            writer.write(hello)
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            assert await it.serve(house.prompt(2)) == 0

    asyncio.run(scenario())


def test_the_socket_is_for_its_owner_alone_and_goes_with_the_node(tmp_path, house):
    async def scenario():
        path = tmp_path / "s"
        async with house.node_at(path, house.settings()):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not path.exists()

    asyncio.run(scenario())


def test_a_socket_that_a_dead_node_left_is_taken_away(tmp_path, house):
    async def scenario():
        path, values = tmp_path / "s", house.settings()
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        async with house.node_at(path, values), house.attach(path, values) as it:
            assert await it.serve(house.prompt(1)) == 0

    asyncio.run(scenario())


def test_a_second_node_at_a_socket_or_a_directory_is_refused_and_harms_nobody(tmp_path, house):
    async def scenario():
        path, values = tmp_path / "s", house.settings(tmp_path)
        async with house.node_at(path, values), house.attach(path, values) as it:
            with pytest.raises(NodeError, match="another node serves it"):
                async with house.node_at(path, values):
                    pass
            with pytest.raises(BackendLocked):
                async with house.node_at(tmp_path / "other", values):
                    pass
            assert await it.serve(house.prompt(2)) == 0

    asyncio.run(scenario())


def test_a_file_in_the_sockets_place_is_left_alone(tmp_path, house):
    async def scenario():
        path = tmp_path / "s"
        path.write_text("precious")
        with pytest.raises(NodeError, match="no socket"):
            async with house.node_at(path, house.settings()):
                pass
        assert path.read_text() == "precious"

    asyncio.run(scenario())


def test_a_configuration_that_does_not_say_what_a_page_is_is_refused(tmp_path, house):
    async def scenario():
        values = house.settings()
        del values["node"]
        with pytest.raises(ConfigError, match="page_tokens, layers"):
            async with house.node_at(tmp_path / "s", values):
                pass

    asyncio.run(scenario())


def test_nothing_is_left_when_node_and_engines_are_gone(tmp_path, house):
    async def scenario():
        path, values = tmp_path / "s", house.settings(tmp_path)
        for _ in range(3):
            async with house.node_at(path, values), house.attach(path, values) as it:
                await it.serve(house.prompt(6))
        before = count()
        for _ in range(3):
            async with house.node_at(path, values), house.attach(path, values) as it:
                await it.serve(house.prompt(6))
        assert count() == before
        assert len(asyncio.all_tasks()) == 1

    def count():
        gc.collect()  # a mapping goes with the last reference to it
        return len(list(Path("/proc/self/fd").iterdir()))

    asyncio.run(scenario())


def test_a_load_that_is_cut_before_its_commit_keeps_what_landed(tmp_path, house):
    async def scenario():
        values, path = house.settings(tmp_path), tmp_path / "s"
        async with house.node_at(path, values), house.attach(path, values) as it:
            await it.serve(house.prompt(6))
            async with house.attach(path, values) as other:
                match = await other.cache.match(house.prompt(6))
                with other.cache.load(match) as load:
                    load.cut(2)
                    assert load.commit() == range(2 * house.PAGE_TOKENS)
                    loaded = await load
                    assert loaded.pages == 2
                    assert loaded.reasons.tolist() == [Reason.CUT] * 4
                    await load.released
                assert await other.serve(house.prompt(6)) == 6

    asyncio.run(scenario())


def test_layers_of_a_committed_load_come_and_its_bytes_are_right(tmp_path, house):
    async def scenario():
        values, path = house.settings(tmp_path), tmp_path / "s"
        async with house.node_at(path, values), house.attach(path, values) as it:
            await it.serve(house.prompt(6))
        async with house.node_at(path, values), house.attach(path, values) as it:
            match = await it.cache.match(house.prompt(6))
            with it.cache.load(match, start_s=0.0, compute_s=[1e-3] * 4) as load:
                committed = load.commit()
                for layer in range(4):
                    await load.layer(layer)
                slots = (await load).slots
                seeds = payload.seeds(match.keys)[: len(slots)]
                assert len(slots) * house.PAGE_TOKENS == len(committed) > 0
                assert payload.count_wrong_bytes(it.words, slots, seeds) == 0

    asyncio.run(scenario())


def test_a_fenced_engine_writes_to_no_slot_that_it_was_leased_before(tmp_path, house):
    async def scenario():
        values, path = house.settings(), tmp_path / "s"
        async with house.node_at(path, values) as node, house.attach(path, values) as it:
            pool = node.host.residency.host
            pool.rows[:] = 7
            match = await it.cache.match(house.prompt(4))
            slots = it.cache.acquire(4)
            payload.fill(it.words, slots, payload.seeds(match.keys))
            it.cache._engine._attached.is_fenced = True
            async with it.cache.store(match, slots) as store:
                assert (await store).refused == 4
            assert (pool.rows == 7).all()

    asyncio.run(scenario())


def test_an_engine_lends_its_own_pool(tmp_path, house):
    async def scenario():
        values, path, owned = house.settings(), tmp_path / "s", house.device_pool()
        pool = BorrowedPool(PagedMemory.of_layout(owned.buffer, owned.layout))
        words = payload.words_of(owned)
        config = house.config_of(values)
        async with (
            house.node_at(path, values),
            await NodeCache.attach(path, config, pool, group=house.GROUP) as cache,
        ):
            match = await cache.match(house.prompt(4))
            seeds = payload.seeds(match.keys)
            payload.fill(words, np.arange(4), seeds)
            async with cache.store(match, np.arange(4)) as store:
                assert (await store).new == 4
            slots = np.array([9, 15, 4, 12])
            with cache.load(await cache.match(house.prompt(4)), slots) as load:
                assert (await load).pages == 4
            assert payload.count_wrong_bytes(words, slots, seeds) == 0
        assert pool.leased == 0

    asyncio.run(scenario())


def test_a_full_host_refuses_what_it_has_no_room_for_and_keeps_the_prefix(tmp_path, house):
    async def scenario():
        values, path = house.settings(host=4), tmp_path / "s"
        async with house.node_at(path, values), house.attach(path, values) as it:
            match = await it.cache.match(house.prompt(6))
            slots = it.cache.acquire(6)
            payload.fill(it.words, slots, payload.seeds(match.keys))
            async with it.cache.store(match, slots) as store:
                done = await store
            assert (done.new, done.refused) == (4, 2)
            assert await it.serve(house.prompt(4)) == 4

    asyncio.run(scenario())


def test_slots_leased_to_a_load_are_not_given_to_a_store(tmp_path, house):
    async def scenario():
        values, path = house.settings(host=6), tmp_path / "s"
        async with (
            house.node_at(path, values) as node,
            house.attach(path, values) as one,
            house.attach(path, values) as two,
        ):
            await one.serve(house.prompt(4))
            match = await two.cache.match(house.prompt(4))
            channel = two.cache._engine._attached.channel
            arrived = await channel.request(
                messages.Fetch(1 << 40, 0, 4, 9.0, 9.0, SILENT, match.reasons, match.keys)
            )
            held = node.host.residency.host.rows[arrived.slots].copy()
            await one.serve(house.prompt(6, of=1))
            assert np.array_equal(node.host.residency.host.rows[arrived.slots], held)
            channel.note(messages.EndFetch(1 << 40, np.empty(0, np.int64)))

    asyncio.run(scenario())


def slow_disk(house, seconds):
    clock = RealClock()
    disk = MemoryBackend(MemoryDisk(house.PAGE_NBYTES, 64), clock=clock)
    return SlowBackend(disk, seconds, clock=clock)


async def on_disk_alone(house, one):
    """Six pages of one prompt, which others have pushed out of host memory."""
    await one.serve(house.prompt(6))
    await one.serve(house.prompt(8, of=1))


def test_a_page_that_two_engines_ask_for_is_read_once(tmp_path, house):
    async def scenario():
        values, path = house.settings(host=12), tmp_path / "s"
        async with (
            house.node_at(path, values, backend=slow_disk(house, 0.05)) as node,
            house.attach(path, values) as one,
            house.attach(path, values) as two,
            house.attach(path, values) as three,
        ):
            await on_disk_alone(house, one)
            before = node.host.links["disk->host"].stats().pages
            assert await asyncio.gather(*(it.serve(house.prompt(6)) for it in (two, three))) == [
                6,
                6,
            ]
            await house.until(lambda: not node.host.links["disk->host"].in_flight)
            read = node.host.links["disk->host"].stats().pages - before
            tiers = [it.cache.stats().traffic.hits[Tier.DISK] for it in (two, three)]
            assert read == max(tiers) > 0
            assert min(tiers) > 0

    asyncio.run(scenario())


def test_when_who_reads_a_page_gives_up_who_waits_for_it_reads_it(tmp_path, house):
    async def scenario():
        values, path = house.settings(host=12), tmp_path / "s"
        async with (
            house.node_at(path, values, backend=slow_disk(house, 0.05)),
            house.attach(path, values) as one,
            house.attach(path, values) as two,
            house.attach(path, values) as three,
        ):
            await on_disk_alone(house, one)
            match = await two.cache.match(house.prompt(6))
            assert (match.tiers == Tier.DISK).any()
            leader = two.cache.load(match)
            serving = asyncio.ensure_future(three.serve(house.prompt(6)))
            await three.cache.match(house.prompt(6))
            await asyncio.sleep(0.01)
            leader.close()
            assert await serving == 6

    asyncio.run(scenario())
