# SPDX-License-Identifier: Apache-2.0
import json
import re

import pytest

from bodocache.clock import VirtualClock
from bodocache.errors import WatchError
from bodocache.move.timeline import Event
from bodocache.pages import Reason, Tier
from bodocache.watch import recording, why


def ours(it):
    """What is recorded of a house's cache, as it is read back from JSON."""
    return recording.checked(json.loads(json.dumps(it.cache.timeline().document())), "here")


def told(it, asked):
    return "\n".join(why.explain(ours(it), str(asked)))


async def ask_for(it, tokens, **said):
    """Load what is there of ``tokens``; the request's number."""
    match = await it.cache.match(tokens, **said)
    with it.cache.load(match) as load:
        await load
    await load.released
    return match.said.request


async def test_an_evicted_page_is_told_with_its_tier_its_time_and_who_needed_the_room(
    house, prompt
):
    clock = VirtualClock(100.0)
    async with house(disk=0, host=4, device=4, clock=clock) as it:
        await it.put(prompt(2))
        for of in range(1, 4):
            await it.serve(prompt(2, of=of), tenant=7)
        clock.advance(31.0)
        number = await ask_for(it, prompt(2), tenant=3, session="chat-9")
        clock.advance(4.0)
        text = told(it, number)
        assert told(it, "chat-9") == text
    assert text.startswith(f"request {number} (tenant 3, session chat-9), begun 4.00 s ago\n")
    line = r"pages 0 to 1 of 0 to 1: evicted; the first of them left (host|device) 31\.00 s before"
    assert re.search(line + " to make room for .*, a ghost still", text)
    assert "0 delivered" in text


async def test_pages_behind_a_missing_one_are_told_to_be_unreachable(house, prompt):
    async with house() as it:
        await it.put(prompt(4))
        rows = it.residency.index.find((await it.cache.match(prompt(4))).keys)
        for tier in (Tier.DEVICE, Tier.HOST, Tier.DISK):
            it.residency.drop(rows[1:2], tier, Reason.CORRUPT)
        text = told(it, await ask_for(it, prompt(4)))
    assert "1 delivered" in text
    assert "page 1 of 0 to 3: corrupt" in text
    assert "pages 2 to 3 of 0 to 3: unreachable" in text


async def test_a_page_that_was_stored_again_since_is_told_to_be(house, prompt):
    clock = VirtualClock(100.0)
    async with house(disk=0, host=4, device=4, clock=clock) as it:
        await it.put(prompt(2))
        for of in range(1, 4):
            await it.serve(prompt(2, of=of))
        number = await ask_for(it, prompt(2))
        assert "stored again since" not in told(it, number)
        clock.advance(1.0)
        await it.serve(prompt(2))
        it.leave_on(Tier.DISK)
        assert "stored again since" in told(it, number)


async def test_a_late_load_is_told_with_its_deadline_and_what_was_predicted(house, prompt):
    async with house() as it:
        await it.put(prompt(3))
        it.leave_on(Tier.DISK)
        it.valve.is_shut = True
        match = await it.cache.match(prompt(3))
        with it.cache.load(match, deadline_s=0.03) as load:
            before = told(it, match.said.request)
            predicted_s = load.begun_s + 0.42
            load.note(int(Event.PREDICTED), 1, 0, predicted_s, 310e6, 1.1e9)
            sooner_s = load.begun_s + 0.1  # of another part: not what it is late for
            load.note(int(Event.PREDICTED), 0, 0, sooner_s, 0.0, 20e9)
            await load
        it.valve.open()
        await load.released
        text = told(it, match.said.request)
    assert "its load is under way" in before
    assert "pages 0 to 2 of 0 to 2: late: not landed by the deadline" in text
    assert "(deadline): 0 of 3 pages kept" in text
    assert re.search(
        r"predicted finish 4[12]\d\.\d ms, deadline 30\.\d ms: disk->device at 1\.10 GB/s with"
        r" 310\.0 MB ahead",
        text,
    )


async def test_a_late_load_of_which_nothing_was_predicted_says_so(house, prompt):
    async with house() as it:
        await it.put(prompt(1))
        it.leave_on(Tier.DISK)
        it.valve.is_shut = True
        match = await it.cache.match(prompt(1))
        with it.cache.load(match, deadline_s=0.01) as load:
            await load
        it.valve.open()
        await load.released
        assert "no finish had been predicted" in told(it, match.said.request)


async def test_a_key_is_told_by_where_it_lies_and_who_asked(house, prompt):
    async with house() as it:
        match = await it.cache.match(prompt(2))
        await it.put(match)
        number = await ask_for(it, prompt(2))
        key = match.keys[1].tobytes().hex()
        text = told(it, key[:20].upper())
    assert text.startswith(f"page {key}: lies in device and host and disk (page 1 of its prompt")
    assert f"page 1 of request {number} (tenant 0): delivered" in text


async def test_what_is_not_known_is_an_error_that_says_what_is(house, prompt):
    async with house() as it:
        with pytest.raises(WatchError, match="nothing was loaded"):
            told(it, 1)
        number = await ask_for(it, prompt(1))
        with pytest.raises(WatchError, match=f"the 1 that are kept, {number} to {number}"):
            told(it, number + 1)
        with pytest.raises(WatchError, match="never stored, or forgotten"):
            told(it, "0" * 16)


def test_every_reason_has_words():
    assert set(why._WORDS) == set(Reason) - {Reason.NONE}


def test_a_file_that_is_no_timeline_is_an_error(tmp_path):
    for text in ("", "[]", "{}", '{"bodocache": {"format": 99}}'):
        path = tmp_path / "t.json"
        path.write_text(text)
        with pytest.raises(WatchError, match=re.escape(str(path))):
            recording.read(path)


async def test_a_recording_is_read_back_as_it_was_written(house, prompt, tmp_path):
    async with house() as it:
        number = await ask_for(it, prompt(2))
        taken = it.cache.timeline()
        taken.write(tmp_path / "t.json")
    found = recording.read(tmp_path / "t.json")
    assert [request["number"] for request in found["requests"]] == [number]
    assert found["requests"][0]["keys"] == [key.tobytes().hex() for key in taken.requests[0].keys]
