# SPDX-License-Identifier: Apache-2.0
"""Several directories as one: where runs go, what a failing directory costs, how it comes back."""

import asyncio
import math
import os
import threading
from dataclasses import replace

import numpy as np
import pytest

from bodocache.clock import RealClock, VirtualClock
from bodocache.errors import (
    BackendError,
    BackendLocked,
    ConfigError,
    LayoutError,
    LeaseError,
    TierFull,
)
from bodocache.io import members as membership
from bodocache.io.backend import Status, ToldInPython
from bodocache.io.members import FAILURES
from bodocache.io.slab import SlabBackend
from bodocache.io.spread import MEMBER_SHIFT, SpreadBackend
from bodocache.pages import Reason
from bodocache.testing import Fault, FaultyBackend
from bodocache.testing.faulty import Operation


class Directories:
    """Slabs side by side, opened as one; each may be wrapped, or refuse to open."""

    def __init__(self, bench, count):
        self.bench = bench
        self.configs = [
            replace(bench.config, directory=bench.config.directory / str(i)) for i in range(count)
        ]
        self.clock = VirtualClock()
        self.wraps = [lambda inner: inner] * count
        self.errors = [[] for _ in range(count)]  # raised by the next openings

    def opener(self, i):
        async def open_():
            if self.errors[i]:
                raise self.errors[i].pop(0)
            return self.wraps[i](await SlabBackend.open(self.configs[i], clock=RealClock()))

        return open_

    def run(self, scenario):
        async def whole():
            openers = [self.opener(i) for i in range(len(self.configs))]
            backend = await SpreadBackend.open(openers, clock=self.clock)
            try:
                return await scenario(backend)
            finally:
                await backend.close()

        return asyncio.run(whole())

    async def put(self, backend, numbers, after=-1):
        buffers = self.bench.pages.buffers(len(numbers))
        self.bench.pages.fill(buffers, numbers)
        batch = self.bench.pages.batch(numbers, backend.reserve(len(numbers), after=after))
        transfer = backend.put(batch, buffers, deadline_s=math.inf)
        await transfer.drained()
        return batch, transfer.statuses.tolist()


@pytest.fixture
def two(bench):
    return Directories(bench, 2)


def members(frames):
    return (frames >> MEMBER_SHIFT).tolist()


def test_a_run_lies_whole_on_one_directory_and_the_emptier_one_comes_next(two):
    async def scenario(backend):
        first = backend.reserve(5, after=-1)
        second = backend.reserve(5, after=-1)
        assert len(set(members(first))) == len(set(members(second))) == 1
        assert members(first)[0] != members(second)[0]
        assert (np.diff(first) == 1).all()

    two.run(scenario)


def test_a_prefix_goes_on_where_it_lies(two):
    async def scenario(backend):
        head = backend.reserve(6, after=-1)
        tail = backend.reserve(4, after=int(head[-1]))
        assert tail.tolist() == (head[-1] + 1 + np.arange(4)).tolist()

    two.run(scenario)


def test_a_run_that_fits_nowhere_whole_is_split_and_all_of_it_can_be_read(two):
    async def scenario(backend):
        total = backend.usage.total_frames
        batch, statuses = await two.put(backend, list(range(total)))
        assert set(members(batch["frame"])) == {0, 1}
        assert statuses == [Status.LANDED] * total
        with pytest.raises(TierFull, match="1 frames requested, 0 of"):
            backend.reserve(1, after=-1)
        told = []
        transfer = backend.get(
            batch,
            two.bench.pages.buffers(total),
            deadline_s=math.inf,
            on_landed=ToldInPython(lambda positions: told.extend(positions.tolist())),
        )
        while await transfer.progress():
            pass
        assert sorted(told) == list(range(total))
        await transfer.drained()

    two.run(scenario)


def test_a_directory_that_fails_is_taken_out_and_comes_back(two, caplog):
    two.wraps[0] = lambda inner: FaultyBackend(inner, [Fault(Operation.GET, 0, 3 * FAILURES - 1)])

    async def scenario(backend):
        stored = []
        for number in range(0, 6, 3):
            stored += [(await two.put(backend, [number, number + 1, number + 2]))[0]]
        broken = next(batch for batch in stored if members(batch["frame"])[0] == 0)
        sound = next(batch for batch in stored if members(batch["frame"])[0] == 1)
        for _ in range(FAILURES):
            assert (await two.bench.get(backend, broken))[0] == [Status.FAILED] * 3
        free = backend.usage.free_frames
        assert await two.bench.get(backend, broken) == (
            [Status.MISS] * 3,
            [Reason.UNAVAILABLE] * 3,
        )
        assert (await two.bench.get(backend, sound))[0] == [Status.LANDED] * 3
        assert set(members(backend.reserve(3, after=int(broken["frame"][-1])))) == {1}
        assert backend.usage.free_frames == free - 3
        two.clock.advance(membership.FIRST_REST_S)
        assert (await two.bench.get(backend, broken))[0] == [Status.LANDED] * 3
        assert set(members(backend.reserve(3, after=int(broken["frame"][-1])))) == {0}

    two.run(scenario)
    assert "out of service" in caplog.text


def test_each_trial_that_fails_doubles_the_rest(two, caplog):
    two.wraps[0] = lambda inner: FaultyBackend(inner, [Fault(Operation.PUT, 0, None)])

    async def scenario(backend):
        home = next(
            frame for frame in backend.reserve(16, after=-1).tolist() if frame >> MEMBER_SHIFT == 0
        )
        batch = two.bench.pages.batch([1], np.array([home]))

        async def attempt():
            transfer = backend.put(batch, two.bench.pages.buffers(1), deadline_s=math.inf)
            await transfer.drained()
            return transfer.reasons.tolist()

        for _ in range(FAILURES):
            assert await attempt() == [Reason.IO_ERROR]
        for rest_s in (1.0, 2.0, 4.0):
            assert await attempt() == [Reason.UNAVAILABLE]
            two.clock.advance(rest_s - 0.01)
            assert await attempt() == [Reason.UNAVAILABLE]
            two.clock.advance(0.01)
            assert await attempt() == [Reason.IO_ERROR]

    two.run(scenario)


def test_a_full_directory_gets_no_more_pages_and_is_read_all_the_same(two, caplog):
    async def scenario(backend):
        held, _ = await two.put(backend, [0, 1])
        await two.put(backend, [2, 3, 4, 5])  # on the other: the full one seems the emptier
        full = members(held["frame"])[0]
        inner = backend._members[full].backend
        backend._members[full].backend = FaultyBackend(inner, [Fault(Operation.PUT, 0, None)])
        failed = 0
        for number in range(10, 40, 2):
            batch, statuses = await two.put(backend, [number, number + 1])
            failed += Status.FAILED in statuses
            backend.release(batch["frame"])
            assert (await two.bench.get(backend, held))[0] == [Status.LANDED] * 2
        assert failed == FAILURES

    two.run(scenario)
    assert "writes to directory" in caplog.text


def test_a_directory_that_hangs_is_taken_out(two, fake, monkeypatch, caplog):
    monkeypatch.setattr(membership, "HANGS_S", 0.05)

    async def scenario(backend):
        batch, _ = await two.put(backend, [0, 1])
        real, entered, opened = os.preadv, threading.Event(), threading.Event()

        def hang(*arguments):
            entered.set()
            assert opened.wait(10)
            return real(*arguments)

        fake("preadv", hang)
        buffers = two.bench.pages.buffers(2)
        hanging = backend.get(batch, buffers, deadline_s=RealClock().now_s() + 0.05)
        assert await asyncio.to_thread(entered.wait, 10)
        await hanging.finished()
        assert hanging.statuses.tolist() == [Status.LATE] * 2
        await asyncio.sleep(0.2)
        again = backend.get(batch, two.bench.pages.buffers(2), deadline_s=math.inf)
        assert again.reasons.tolist() == [Reason.UNAVAILABLE] * 2
        opened.set()
        await hanging.drained()
        two.clock.advance(membership.FIRST_REST_S)
        assert (await two.bench.get(backend, batch))[0] == [Status.LANDED] * 2

    two.run(scenario)


def test_a_directory_that_hangs_in_a_put_without_a_deadline_gets_no_more(two, monkeypatch, caplog):
    monkeypatch.setattr(membership, "PUT_HANGS_S", 0.05)

    async def scenario(backend):
        batch = two.bench.pages.batch([1, 2], backend.reserve(2, after=-1))
        stuck = members(batch["frame"])[0]
        with backend._members[stuck].backend.hold_writes():
            hanging = backend.put(batch, two.bench.pages.buffers(2), deadline_s=math.inf)
            await asyncio.sleep(0.2)
            assert not hanging.statuses.any()
            assert set(members(backend.reserve(8, after=-1))) == {1 - stuck}
        await hanging.drained()
        assert (hanging.statuses == Status.LANDED).all()

    two.run(scenario)


def test_a_release_of_what_was_released_while_it_is_written_frees_nothing(two):
    async def scenario(backend):
        other, written = backend.reserve(2, after=-1), backend.reserve(2, after=-1)
        batch = two.bench.pages.batch([1, 2], written)
        with backend.hold_writes():
            transfer = backend.put(batch, two.bench.pages.buffers(2), deadline_s=math.inf)
            backend.release(written)
            used = backend.usage.used_frames
            with pytest.raises(LeaseError):
                backend.release(np.concatenate((other, written)))
            assert backend.usage.used_frames == used
        await transfer.drained()

    two.run(scenario)


def test_late_pages_of_a_directory_that_goes_on_take_nothing_out(two, monkeypatch):
    monkeypatch.setattr(membership, "HANGS_S", 0.05)

    async def scenario(backend):
        batch, _ = await two.put(backend, [0, 1])
        for _ in range(2 * FAILURES):
            late = backend.get(batch, two.bench.pages.buffers(2), deadline_s=0.0)
            await late.drained()
        await asyncio.sleep(0.1)
        assert (await two.bench.get(backend, batch))[0] == [Status.LANDED] * 2

    two.run(scenario)


def test_a_put_or_a_release_that_is_refused_has_begun_nothing(two):
    async def scenario(backend):
        ours, theirs = backend.reserve(2, after=-1), backend.reserve(2, after=-1)
        assert members(ours) != members(theirs)
        backend.release(theirs[1:])
        frames = np.concatenate((ours, theirs))
        used = backend.usage.used_frames
        with pytest.raises(LeaseError):
            backend.release(frames)
        assert backend.usage.used_frames == used
        batch, buffers = two.bench.pages.batch([1, 2, 3, 4], frames), two.bench.pages.buffers(4)
        two.bench.pages.fill(buffers, [1, 2, 3, 4])
        with pytest.raises(LeaseError):
            backend.put(batch, buffers, deadline_s=math.inf)
        batch["frame"][3] = theirs[0]
        batch = batch[[0, 1, 3]]
        batch["slot"][2] = 99
        with pytest.raises(LayoutError):
            backend.put(batch, buffers, deadline_s=math.inf)
        assert not len(backend.entries().keys)

    two.run(scenario)


def test_a_directory_that_was_locked_for_a_while_comes_in_the_end(two, monkeypatch, caplog):
    monkeypatch.setattr(membership, "FIRST_REST_S", 0.01)
    two.errors[1] = [BackendError("no such disk"), BackendLocked("somebody else's, for now")]

    async def scenario(backend):
        alone = backend.usage.total_frames
        for _ in range(500):
            if backend.usage.total_frames > alone:
                break
            await asyncio.sleep(0.01)
        assert backend.usage.total_frames == 2 * alone

    two.run(scenario)


def test_one_bad_page_takes_nothing_out_of_service(two):
    two.wraps[0] = lambda inner: FaultyBackend(inner, [Fault(Operation.GET, 0, 0)] * 1)

    async def scenario(backend):
        batch, _ = await two.put(backend, list(range(16)))
        for _ in range(2 * FAILURES):
            await two.bench.get(backend, batch)
        assert (await two.bench.get(backend, batch))[0] == [Status.LANDED] * 16

    two.run(scenario)


def test_a_directory_that_cannot_be_opened_comes_later_and_empty(two, monkeypatch, caplog):
    monkeypatch.setattr(membership, "FIRST_REST_S", 0.01)

    async def fill(backend):
        return await two.put(backend, list(range(backend.usage.total_frames)))

    two.run(fill)
    two.errors[1] = [BackendError("no such disk"), OSError(5, "still none")]

    async def scenario(backend):
        half = len(backend.entries().keys)
        assert set(members(backend.entries().frames)) == {0}
        assert backend.usage.total_frames == half
        for _ in range(500):
            if backend.usage.total_frames > half:
                break
            await asyncio.sleep(0.01)
        assert backend.usage.free_frames == backend.usage.total_frames - half
        _, statuses = await two.put(backend, [100, 101])
        assert statuses == [Status.LANDED] * 2

    two.run(scenario)
    assert "in service" in caplog.text


def test_where_no_directory_can_be_opened_the_reason_is_said(two):
    two.errors = [[BackendError("no such disk")], [BackendError("nor this")]]
    with pytest.raises(BackendError, match="no such disk"):
        two.run(None)


def test_a_locked_directory_is_an_error_and_nothing_stays_open(two):
    async def scenario():
        other = await SlabBackend.open(two.configs[1], clock=RealClock())
        with pytest.raises(BackendLocked):
            await SpreadBackend.open([two.opener(0), two.opener(1)], clock=two.clock)
        await other.close()
        await (await SlabBackend.open(two.configs[0], clock=RealClock())).close()

    asyncio.run(scenario())


def test_directories_of_other_page_sizes_are_refused(two):
    two.configs[1] = replace(two.configs[1], page_nbytes=4096)
    with pytest.raises(ConfigError, match="4096, 8192"):
        two.run(None)


def test_a_page_on_two_directories_is_one_entry_and_its_second_frame_free(two):
    for i in range(2):

        async def alone(i=i):
            slab = await SlabBackend.open(two.configs[i], clock=RealClock())
            await two.bench.put(slab, [1, 2 + i])
            await slab.close()

        asyncio.run(alone())

    async def scenario(backend):
        entries = backend.entries()
        assert len(entries.keys) == 3
        assert backend.usage.used_frames == 3

    two.run(scenario)


def test_everybody_observes_and_holds_all_directories(two):
    async def scenario(backend):
        seen = []
        backend.observer = seen.append
        await two.put(backend, list(range(20)))
        assert len({extent.path for extent in seen if extent.path.endswith("payload.slab")}) == 2
        batch = two.bench.pages.batch([50, 51], backend.reserve(2, after=-1))
        with backend.hold_writes():
            transfer = backend.put(batch, two.bench.pages.buffers(2), deadline_s=math.inf)
            await asyncio.sleep(0.1)
            assert not transfer.statuses.any()
        await transfer.drained()

    two.run(scenario)


def test_a_wait_that_is_cancelled_changes_nothing(two):
    async def scenario(backend):
        batch = two.bench.pages.batch([1, 2], backend.reserve(2, after=-1))
        buffers = two.bench.pages.buffers(2)
        two.bench.pages.fill(buffers, [1, 2])
        with backend.hold_writes():
            transfer = backend.put(batch, buffers, deadline_s=math.inf)
            waiting = asyncio.ensure_future(transfer.progress())
            await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await transfer.finished()
        assert (transfer.statuses == Status.LANDED).all()

    two.run(scenario)
