# SPDX-License-Identifier: Apache-2.0
"""A deadline that passes before, during or after: what landed is right, and nothing lands later."""

import asyncio
import math
import time

import pytest

from bodocache.clock import RealClock
from bodocache.io.backend import Status
from bodocache.pages import Reason

NUMBERS = list(range(16))


def in_time(seconds):
    return RealClock().now_s() + seconds


async def timely(storage, backend, begin):
    """What ``begin(deadline_s)`` began, with all of it landed before a deadline that is over now.

    A busy machine may need more time than the first try gives.
    """
    for patience_s in (0.1, 1.0, 4.0):
        deadline_s = in_time(patience_s)
        transfer = begin(deadline_s)
        await transfer.drained()
        if (transfer.statuses == Status.LANDED).all():
            await asyncio.sleep(max(0.0, deadline_s - RealClock().now_s()) + 0.01)
            return transfer
    pytest.fail("nothing landed in 4 s")


@pytest.mark.parametrize("patience_s", [1e-5 * 2**step for step in range(10)])
def test_a_deadline_during_a_get_leaves_right_pages_and_late_ones(storage, patience_s):
    async def scenario(backend):
        batch = await storage.put(backend, NUMBERS)
        buffers = storage.canaries(len(NUMBERS))
        transfer = backend.get(batch, buffers, deadline_s=in_time(patience_s))
        await transfer.finished()
        final = transfer.statuses.tolist()
        assert set(final) <= {Status.LANDED, Status.LATE}
        assert set(transfer.reasons.tolist()) <= {Reason.NONE, Reason.LATE}
        assert not storage.wrong(NUMBERS, transfer.statuses, buffers)
        await transfer.drained()
        assert transfer.statuses.tolist() == final
        assert not storage.wrong(NUMBERS, transfer.statuses, buffers)
        buffers[:] = storage.canary
        await storage.get(backend, batch)
        assert (buffers == storage.canary).all()

    storage.run(scenario)


def test_a_deadline_that_passes_while_the_loop_is_busy_is_kept_or_late(storage):
    async def scenario(backend):
        batch = await storage.put(backend, NUMBERS)
        buffers = storage.canaries(len(NUMBERS))
        transfer = backend.get(batch, buffers, deadline_s=in_time(0.005))
        time.sleep(0.02)  # noqa: ASYNC251 -- the loop must be busy
        await transfer.finished()
        assert set(transfer.statuses.tolist()) <= {Status.LANDED, Status.LATE}
        await transfer.drained()
        assert not storage.wrong(NUMBERS, transfer.statuses, buffers)

    storage.run(scenario)


def test_a_deadline_that_passes_after_the_pages_landed_changes_nothing(storage):
    async def scenario(backend):
        batch = await storage.put(backend, NUMBERS)
        buffers = storage.canaries(len(NUMBERS))
        transfer = await timely(
            *(storage, backend),
            lambda deadline_s: backend.get(batch, buffers, deadline_s=deadline_s),
        )
        assert (transfer.statuses == Status.LANDED).all()
        assert not transfer.reasons.any()
        assert not storage.wrong(NUMBERS, transfer.statuses, buffers)

    storage.run(scenario)


def test_a_put_that_landed_is_found_after_its_deadline(storage):
    async def scenario(backend):
        batch = storage.pages.batch(NUMBERS, backend.reserve(len(NUMBERS), after=-1))
        buffers = storage.of(NUMBERS)
        await timely(
            *(storage, backend),
            lambda deadline_s: backend.put(batch, buffers, deadline_s=deadline_s),
        )
        statuses, _, found = await storage.get(backend, batch)
        assert (statuses == Status.LANDED).all()
        assert not storage.wrong(NUMBERS, statuses, found)

    storage.run(scenario)


def test_a_put_whose_deadline_passes_while_it_waits_is_late_and_never_written(storage):
    async def scenario(backend):
        batch = storage.pages.batch(NUMBERS, backend.reserve(len(NUMBERS), after=-1))
        buffers = storage.of(NUMBERS)
        with backend.hold_writes():
            transfer = backend.put(batch, buffers, deadline_s=in_time(0.02))
            await transfer.finished()
            assert (transfer.statuses == Status.LATE).all()
            assert (transfer.reasons == Reason.LATE).all()
            await transfer.drained()
        buffers[:] = storage.canary
        assert not len(backend.entries().keys)
        statuses, _, _ = await storage.get(backend, batch)
        assert (statuses == Status.MISS).all()
        assert backend.usage.used_frames == len(NUMBERS)  # until they are released
        backend.release(batch["frame"])
        assert backend.usage.used_frames == 0

    storage.run(scenario)


@pytest.mark.parametrize("patience_s", [1e-5 * 2**step for step in range(10)])
def test_a_deadline_during_a_put_leaves_whole_pages_and_misses(storage, patience_s):
    async def scenario(backend):
        batch = storage.pages.batch(NUMBERS, backend.reserve(len(NUMBERS), after=-1))
        buffers = storage.of(NUMBERS)
        transfer = backend.put(batch, buffers, deadline_s=in_time(patience_s))
        await transfer.drained()
        buffers[:] = storage.canary  # what landed was written before
        statuses, _, found = await storage.get(backend, batch)
        landed = transfer.statuses == Status.LANDED
        assert ((statuses == Status.LANDED) == landed).all()
        assert not storage.wrong(NUMBERS, statuses, found)
        again = backend.put(batch, storage.of(NUMBERS), deadline_s=math.inf)
        await again.drained()  # the frames are still reserved, and fit to be written
        assert (again.statuses == Status.LANDED).all()

    storage.run(scenario)
