# SPDX-License-Identifier: Apache-2.0
"""The simulated backend keeps the contract that the real ones are tested for, as far as it can."""

import asyncio
import math

import numpy as np
import pytest

from bodocache import jit
from bodocache.digest import seeded
from bodocache.errors import CacheClosed, LeaseError
from bodocache.io.backend import TRANSFER, Status, ToldInPython
from bodocache.pages import Reason
from bodocache.testing import run_virtual
from bodocache.testing.channel import Channel
from bodocache.testing.pace import Pace, Weather
from bodocache.testing.simulated import SimulatedBackend, SimulatedDisk

jit.warm()

PAGE_NBYTES, RATE = 1000, 1000.0  # a page takes a second


class _Even(Pace):
    def finish_s(self, start_s, work_s):
        return start_s + work_s


class Scene:
    """A backend, buffers, and pages that are numbered."""

    def __init__(self, clock, pace=None, frames=16, disk=None):
        self.clock = clock
        self.disk = disk or SimulatedDisk(frames)
        self.channel = Channel(RATE, pace=pace or _Even())
        self.backend = SimulatedBackend(
            self.disk, PAGE_NBYTES, channel=self.channel, clock=clock, op_nbytes=2 * PAGE_NBYTES
        )
        self.words = np.zeros((16, 2), np.uint64)
        self.rows = self.words.view(np.uint8)

    def batch(self, numbers, frames, slots):
        batch = np.zeros(len(numbers), TRANSFER)
        batch["key"][:, 0] = numbers
        batch["digest"] = seeded(self.content(numbers), batch["key"])
        batch["frame"], batch["slot"], batch["nbytes"] = frames, slots, PAGE_NBYTES
        return batch

    def content(self, numbers):
        return np.array([[n + 1, n + 1000] for n in numbers], np.uint64).reshape(-1, 2)

    async def stored(self, numbers):
        frames = self.backend.reserve(len(numbers), after=-1)
        slots = np.arange(len(numbers))
        self.words[slots] = self.content(numbers)
        put = self.backend.put(self.batch(numbers, frames, slots), self.rows, deadline_s=math.inf)
        await put.finished()
        assert (put.statuses == Status.LANDED).all()
        self.words[:] = 0
        return frames

    def get(self, numbers, frames, deadline_s=math.inf, on_landed=None):
        batch = self.batch(numbers, frames, np.arange(len(numbers)))
        return self.backend.get(batch, self.rows, deadline_s=deadline_s, on_landed=on_landed)


def run(scenario, **options):
    async def whole():
        scene = Scene(asyncio.get_running_loop().clock, **options)
        result = await scenario(scene)
        await scene.backend.close()
        return result

    return run_virtual(whole())


@pytest.mark.parametrize(("is_sent_on", "takes_s"), [(False, 3.0), (True, 3.25)])
def test_pages_that_are_sent_on_cross_the_next_link_while_others_are_read(is_sent_on, takes_s):
    async def scenario(scene):
        scene.backend.onward = onward = Channel(4 * RATE, pace=_Even())
        frames = await scene.stored([1, 2, 3])
        begun_s, came = scene.clock.now_s(), []
        transfer = scene.get([1, 2, 3], frames, on_landed=came.extend if is_sent_on else None)
        await transfer.finished()
        assert scene.clock.now_s() - begun_s == pytest.approx(takes_s)
        assert (onward.nbytes, came) == ((3000, [0, 1, 2]) if is_sent_on else (0, []))

    run(scenario)


def test_a_page_comes_back_after_as_long_as_the_channel_takes():
    async def scenario(scene):
        frames = await scene.stored([1, 2, 3])
        assert scene.clock.now_s() == 3.0
        told = []
        get = scene.get([1, 2, 3], frames, on_landed=ToldInPython(lambda at: told.append(list(at))))
        await get.finished()
        assert scene.clock.now_s() == 6.0
        assert told == [[0, 1], [2]]
        np.testing.assert_array_equal(scene.words[:3], scene.content([1, 2, 3]))

    run(scenario)


def test_what_was_not_stored_is_swapped_or_damaged_is_a_miss_that_says_why():
    async def scenario(scene):
        frames = await scene.stored([1, 2])
        scene.disk.words[frames[1]] += np.uint64(1)
        get = scene.get([1, 2, 3, 9], [*frames, frames[0], 15])
        await get.finished()
        assert get.statuses.tolist() == [Status.LANDED, *[Status.MISS] * 3]
        assert get.reasons.tolist()[1:] == [Reason.CORRUPT, Reason.FOREIGN, Reason.NEVER_STORED]
        assert not scene.words[1:].any()

    run(scenario)


def test_pages_that_are_not_there_by_the_deadline_are_late_and_the_rest_is_kept():
    async def scenario(scene):
        frames = await scene.stored([1, 2, 3, 4])
        begun_s = scene.clock.now_s()
        get = scene.get([1, 2, 3, 4], frames, deadline_s=begun_s + 3.0)
        await get.finished()
        assert scene.clock.now_s() == begun_s + 3.0
        assert get.statuses.tolist() == [Status.LANDED] * 2 + [Status.LATE] * 2
        await get.drained()
        assert scene.clock.now_s() == begun_s + 4.0  # its second operation had begun

    run(scenario)


def test_what_waits_is_called_off_and_the_channel_goes_on_with_others():
    async def scenario(scene):
        frames = await scene.stored([1, 2, 3, 4])
        begun_s = scene.clock.now_s()
        first, second = scene.get([1, 2, 3, 4], frames), scene.get([1], frames[:1])
        first.abandon()
        await second.finished()
        assert scene.clock.now_s() == begun_s + 3.0  # one operation of two pages, then ours
        assert first.statuses.tolist() == [Status.LANDED] * 2 + [Status.LATE] * 2
        assert first.reasons.tolist()[2:] == [Reason.CANCELLED] * 2

    run(scenario)


def test_reads_go_before_writes_that_wait():
    async def scenario(scene):
        frames = await scene.stored([1])
        more = scene.backend.reserve(4, after=-1)
        begun_s = scene.clock.now_s()
        put = scene.backend.put(
            scene.batch([5, 6, 7, 8], more, np.arange(4)), scene.rows, deadline_s=math.inf
        )
        get = scene.get([1], frames)
        await get.finished()
        assert scene.clock.now_s() == begun_s + 3.0  # behind the write that had begun
        await put.finished()

    run(scenario)


def test_what_ends_in_an_outage_failed():
    async def scenario(scene):
        frames = await scene.stored([1])
        moments = np.arange(0.0, 500.0, 0.1).tolist()
        pace, now_s = scene.channel.pace, scene.clock.now_s()
        await asyncio.sleep(next(s for s in moments if s > now_s and not pace.share(s)) - now_s)
        get = scene.get([1], frames)
        await get.finished()
        assert get.statuses.tolist() == [Status.FAILED]
        assert get.reasons.tolist() == [Reason.IO_ERROR]
        assert scene.backend.failures == 1

    run(scenario, pace=Pace(Weather.FAILING, seed=1))


def test_what_it_keeps_is_found_by_the_next_backend_over_the_same_disk():
    async def scenario(scene):
        frames = await scene.stored([1, 2])
        await scene.backend.close()
        with pytest.raises(CacheClosed):
            scene.get([1], frames[:1])
        later = Scene(scene.clock, disk=scene.disk)
        assert sorted(later.backend.entries().frames.tolist()) == sorted(frames.tolist())
        assert later.backend.usage.free_frames == 14
        await later.get([1, 2], frames).finished()
        np.testing.assert_array_equal(later.words[:2], scene.content([1, 2]))

    run(scenario)


def test_a_frame_that_is_released_while_it_is_written_is_free_afterwards():
    async def scenario(scene):
        frames = scene.backend.reserve(1, after=-1)
        batch = scene.batch([1], frames, np.arange(1))
        put = scene.backend.put(batch, scene.rows, deadline_s=math.inf)
        scene.backend.release(frames)
        assert scene.backend.usage.free_frames == 15
        with pytest.raises(LeaseError):
            scene.backend.release(frames)
        await put.finished()
        assert scene.backend.usage.free_frames == 16
        get = scene.get([1], frames)
        await get.finished()
        assert get.statuses.tolist() == [Status.MISS]

    run(scenario)


def test_writes_that_are_held_begin_when_they_are_let_go():
    async def scenario(scene):
        frames = scene.backend.reserve(1, after=-1)
        with scene.backend.hold_writes():
            batch = scene.batch([1], frames, np.arange(1))
            put = scene.backend.put(batch, scene.rows, deadline_s=math.inf)
            await asyncio.sleep(50.0)
            assert put.statuses.tolist() == [Status.PENDING]
        await put.finished()
        assert scene.clock.now_s() == 51.0

    run(scenario)
