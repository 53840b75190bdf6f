# SPDX-License-Identifier: Apache-2.0
"""The faults by composition do what their plans say."""

import asyncio
import math

import numpy as np
import pytest

from bodocache.clock import RealClock
from bodocache.errors import TierFull
from bodocache.io.backend import Status
from bodocache.pages import Reason
from bodocache.testing import (
    Fault,
    FaultyBackend,
    MemoryBackend,
    MemoryDisk,
    NumberedPages,
    Operation,
    RecordingBackend,
    SlowBackend,
)

PAGES = NumberedPages(4096)


def memory():
    return MemoryBackend(MemoryDisk(4096, 8), clock=RealClock())


async def put(backend, numbers):
    buffers = PAGES.buffers(len(numbers))
    PAGES.fill(buffers, numbers)
    batch = PAGES.batch(numbers, backend.reserve(len(numbers), after=-1))
    transfer = backend.put(batch, buffers, deadline_s=math.inf)
    await transfer.drained()
    return batch, transfer


async def get(backend, batch, deadline_s=math.inf):
    transfer = backend.get(batch, PAGES.buffers(len(batch)), deadline_s=deadline_s)
    await transfer.drained()
    return transfer


def test_the_nth_page_fails_and_only_that():
    async def scenario():
        backend = FaultyBackend(memory(), [Fault.once(Operation.GET, 3)])
        batch, _ = await put(backend, [1, 2])
        first, second = await get(backend, batch), await get(backend, batch)
        assert first.statuses.tolist() == [Status.LANDED] * 2
        assert second.statuses.tolist() == [Status.LANDED, Status.FAILED]
        assert second.reasons.tolist() == [Reason.NONE, Reason.IO_ERROR]
        assert backend.fired == 1

    asyncio.run(scenario())


def test_a_persistent_fault_never_ends():
    async def scenario():
        fault = Fault(Operation.GET, 1, None, Status.MISS, Reason.CORRUPT)
        backend = FaultyBackend(memory(), [fault])
        batch, _ = await put(backend, [1, 2, 3])
        transfer = await get(backend, batch)
        assert transfer.statuses.tolist() == [Status.LANDED, Status.MISS, Status.MISS]
        assert transfer.reasons.tolist() == [Reason.NONE, Reason.CORRUPT, Reason.CORRUPT]
        transfer = await get(backend, batch)
        assert await transfer.progress() is False
        assert transfer.statuses.tolist() == [Status.MISS] * 3

    asyncio.run(scenario())


def test_a_put_that_fails_is_not_found():
    async def scenario():
        backend = FaultyBackend(memory(), [Fault.once(Operation.PUT, 0)])
        batch, transfer = await put(backend, [1, 2])
        assert transfer.statuses.tolist() == [Status.FAILED, Status.LANDED]
        assert (await get(backend, batch)).statuses.tolist() == [Status.MISS, Status.LANDED]

    asyncio.run(scenario())


def test_the_nth_reservation_finds_it_full():
    async def scenario():
        backend = FaultyBackend(memory(), [Fault.once(Operation.RESERVE, 1)])
        backend.reserve(1, after=-1)
        with pytest.raises(TierFull, match="fault plan"):
            backend.reserve(1, after=-1)
        assert backend.usage.used_frames == 1
        backend.reserve(1, after=-1)

    asyncio.run(scenario())


def test_a_recording_keeps_copies():
    async def scenario():
        backend = RecordingBackend(memory())
        batch, _ = await put(backend, [1, 2])
        await get(backend, batch[:1])
        backend.release(batch["frame"])
        batch["key"] = 0
        assert [call.verb for call in backend.calls] == ["reserve", "put", "get", "release"]
        assert (backend.calls[1].batch["key"][1] == PAGES.key(2)).all()
        assert backend.calls[3].frames.tolist() == batch["frame"].tolist()

    asyncio.run(scenario())


def test_a_slow_backend_is_late_for_a_deadline_before_its_delay():
    async def scenario():
        inner = RecordingBackend(memory())
        batch, _ = await put(inner, [1])
        backend = SlowBackend(inner, 60.0, clock=RealClock())
        transfer = await get(backend, batch, RealClock().now_s() + 0.01)
        assert transfer.statuses.tolist() == [Status.LATE]
        assert [call.verb for call in inner.calls] == ["reserve", "put"]

    asyncio.run(scenario())


def test_a_slow_transfer_that_is_abandoned_never_begins():
    async def scenario():
        inner = RecordingBackend(memory())
        batch, _ = await put(inner, [1])
        backend = SlowBackend(inner, 60.0, clock=RealClock())
        transfer = backend.get(batch, PAGES.buffers(1), deadline_s=math.inf)
        assert transfer.statuses.tolist() == [Status.PENDING]
        transfer.abandon()
        await transfer.drained()
        assert transfer.reasons.tolist() == [Reason.CANCELLED]
        assert await transfer.progress() is False

    asyncio.run(scenario())


def test_a_slow_transfer_fails_when_its_backend_closes_first():
    async def scenario():
        backend = SlowBackend(memory(), 0.01, clock=RealClock())
        batch = PAGES.batch([1], np.array([0]))
        transfer = backend.get(batch, PAGES.buffers(1), deadline_s=math.inf)
        await backend.close()
        await transfer.finished()
        assert transfer.statuses.tolist() == [Status.FAILED]

    asyncio.run(scenario())


def test_numbered_pages_differ_at_every_word():
    words = np.stack([PAGES.payload(number).view(np.uint32) for number in range(3)])
    assert (words[0] != words[1]).mean() > 0.999
    assert len(np.unique(words)) > 0.99 * words.size
