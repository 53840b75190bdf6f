# SPDX-License-Identifier: Apache-2.0
import json

from bodocache.clock import VirtualClock
from bodocache.move import requests as requesting
from bodocache.move.ghosts import Activity
from bodocache.move.timeline import Cut, Event, Timeline
from bodocache.move.whereabouts import known_keys, whereabouts
from bodocache.pages import Reason, Tier
from bodocache.watch.trace import LINKS, REQUESTS, trace_events


def events_of(it, number):
    records = it.orchestrator.requests.timeline.records()
    return [(Event(one.event), one.detail, one.pages) for one in records if one.request == number]


async def test_a_full_ring_keeps_the_newest_and_counts_all():
    clock = VirtualClock()
    timeline = Timeline(clock.now_s, ["a"], kept=3)
    for pages in range(5):
        clock.advance(1.0)
        timeline.add(7, int(Event.LANDED), 0, pages)
    assert [(it.at_s, it.pages) for it in timeline.records()] == [(3.0, 2), (4.0, 3), (5.0, 4)]
    assert (timeline.counts[Event.LANDED], timeline.lost) == (5, 2)


async def test_a_store_and_a_load_are_noted_from_begin_to_end(house, prompt):
    async with house() as it:
        await it.put(prompt(3))
        it.leave_on(Tier.HOST)
        match = await it.cache.match(prompt(3))
        with it.cache.load(match, deadline_s=5.0) as load:
            await load
        await load.released
    stored, loaded = it.orchestrator.requests.kept()
    begun, *ended = events_of(it, stored.number)
    assert begun == (Event.STORE, 0, 3)
    assert sorted(ended) == [(Event.VISIBLE, 0, 3), (Event.WRITTEN, 0, 3)]  # in either order
    assert events_of(it, match.said.request) == [
        (Event.LOAD, 0, 3), (Event.PLANNED, 0, 3), (Event.LANDED, Tier.HOST, 3),
        (Event.SETTLED, 0, 3), (Event.RELEASED, 0, 0),
    ]  # fmt: skip
    assert (loaded.delivered, loaded.sources) == (3, (0, 3, 0, 0))


async def test_a_load_that_is_late_is_noted_as_cut_by_its_deadline(house, prompt):
    async with house() as it:
        await it.put(prompt(3))
        it.leave_on(Tier.DISK)
        it.valve.is_shut = True
        match = await it.cache.match(prompt(3))
        with it.cache.load(match, deadline_s=0.01) as load:
            await load
        it.valve.open()
        await load.released
        requests = it.orchestrator.requests
        assert (Event.CUT, Cut.DEADLINE, 0) in events_of(it, match.said.request)
        assert requests.cuts == [1, 0, 0, 0]
        assert requests.kept()[-1].undelivered.tolist() == [Reason.LATE] * 3


async def test_a_cancelled_load_counts_as_cancelled_and_not_as_in_flight(house, prompt):
    async with house() as it:
        await it.put(prompt(2))
        it.leave_on(Tier.DISK)
        it.valve.is_shut = True
        load = await it.begin(prompt(2))
        assert it.orchestrator.requests.loads_in_flight == 1
        load.close()
        assert it.orchestrator.requests.loads_in_flight == 0
        it.valve.open()
        await load.released
        assert it.orchestrator.requests.cuts[Cut.CANCELLED] == 1


async def test_the_requests_that_are_kept_are_bounded_by_number_and_pages(
    house, prompt, monkeypatch
):
    monkeypatch.setattr(requesting, "REQUESTS_KEPT", 3)
    monkeypatch.setattr(requesting, "PAGES_KEPT", 5)
    async with house() as it:
        for of in range(5):
            await it.get(prompt(1, of=of))
        assert len(it.orchestrator.requests.kept()) == 3
        await it.get(prompt(4, of=9))
        assert [len(one.keys) for one in it.orchestrator.requests.kept()] == [1, 4]


async def test_a_ghost_tells_from_where_and_for_whom_it_left(house, prompt):
    clock = VirtualClock(100.0)
    async with house(disk=0, host=4, device=4, clock=clock) as it:
        match = await it.cache.match(prompt(2))
        await it.put(match)
        clock.advance(10.0)
        for of in range(1, 4):
            await it.serve(prompt(2, of=of), tenant=7)
        found = whereabouts(it.residency, match.keys)
        left = found["departure"]
        assert found["is_known"].all()
        assert found["is_ghost"].all()
        assert not found["tiers"].any()
        assert left["left_s"].tolist() == [110.0, 110.0]
        assert set(left["tier"].tolist()) <= {Tier.DEVICE, Tier.HOST}
        told = set(zip(left["activity"].tolist(), left["tenant"].tolist(), strict=True))
        assert told <= {(Activity.STORE, 7), (Activity.ACQUIRE, 0)}


async def test_a_page_is_found_by_the_beginning_of_its_key(house, prompt):
    async with house() as it:
        match = await it.cache.match(prompt(3))
        await it.put(match)
        found = known_keys(it.residency, match.keys[1, :9].tobytes())
        assert found.tolist() == [match.keys[1].tolist()]
        assert not len(known_keys(it.residency, bytes(32)))


async def test_the_trace_has_a_lane_for_each_link_and_request(house, prompt):
    async with house() as it:
        await it.put(prompt(3))
        await it.get(prompt(3))
        taken = it.cache.timeline()
    document = json.loads(json.dumps(taken.document(), allow_nan=False))
    named = {(one["pid"], one.get("tid")): one["args"]["name"]
             for one in document["traceEvents"] if one["ph"] == "M"}  # fmt: skip
    lanes = [name for (pid, tid), name in named.items() if pid == REQUESTS and tid is not None]
    assert [lane.split(" (")[0] for lane in lanes] == [
        f"request {request.number}" for request in taken.requests
    ]
    assert {"device->host", "host->disk"} <= set(named.values())
    drawn = [one for one in document["traceEvents"] if one["ph"] == "X"]
    assert all(one["dur"] >= 0 and (one["pid"], one["tid"]) in named for one in drawn)
    assert {"load", "store", "drain"} <= {one["name"] for one in drawn}


def test_write_through_is_drawn_only_where_it_goes_on_after_the_store():
    for order in ((Event.VISIBLE, Event.WRITTEN), (Event.WRITTEN, Event.VISIBLE)):
        clock = VirtualClock(1.0)
        timeline = Timeline(clock.now_s, ["a"])
        for event in (Event.STORE, *order):
            timeline.add(3, int(event))
            clock.advance(1.0)
        drawn = trace_events(["a"], [], timeline.records(), 9.0)
        spans = [(one["name"], one["dur"]) for one in drawn if one["ph"] == "X"]
        went_on = order[0] is Event.VISIBLE
        assert spans == ([("store", 1e6), ("write-through", 1e6)] if went_on else [("store", 2e6)])


def test_ops_that_overlap_on_a_link_get_lanes_below_one_another():
    clock = VirtualClock(10.0)
    timeline = Timeline(clock.now_s, ["up", "down"])
    for begun_s in (1.0, 2.0, 10.0):
        timeline.add(0, int(Event.MOVED), 1, 4, begun_s, 4096.0)
        clock.advance(1.0)
    drawn = trace_events(["up", "down"], [], timeline.records(), 20.0)
    lanes = {one["tid"]: one["args"]["name"] for one in drawn if one["ph"] == "M" and "tid" in one}
    assert list(lanes.values()) == ["down", "down #2"]
    spans = [(one["tid"] - min(lanes), one["ts"], one["dur"]) for one in drawn if one["ph"] == "X"]
    assert spans == [(0, 1e6, 9e6), (1, 2e6, 9e6), (0, 10e6, 2e6)]
    assert all(one["pid"] == LINKS for one in drawn if one["ph"] == "X")


def test_a_request_whose_beginning_left_the_ring_is_not_drawn_from_nowhere():
    timeline = Timeline(VirtualClock(5.0).now_s, ["a"])
    timeline.add(3, int(Event.SETTLED), 0, 2)
    timeline.add(3, int(Event.RELEASED))
    drawn = [one["name"] for one in trace_events(["a"], [], timeline.records(), 9.0)
             if one["ph"] == "X"]  # fmt: skip
    assert drawn == ["drain"]


def test_what_is_under_way_ends_where_the_recording_was_taken():
    clock = VirtualClock(5.0)
    timeline = Timeline(clock.now_s, ["a"])
    timeline.add(3, int(Event.LOAD), 0, 4)
    clock.advance(1.0)
    timeline.add(3, int(Event.LANDED), int(Tier.DISK), 2)
    drawn = trace_events(["a"], [], timeline.records(), 9.0)
    spans = {one["name"]: (one["ts"], one["dur"]) for one in drawn if one["ph"] == "X"}
    assert spans == {
        "load": (5e6, 4e6), "until the first pages": (5e6, 1e6), "landing": (6e6, 3e6),
    }  # fmt: skip
