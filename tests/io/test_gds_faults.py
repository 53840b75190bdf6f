# SPDX-License-Identifier: Apache-2.0
"""GDS over a stand-in of cuFile that fails, hangs, answers errors, or is closed."""

import asyncio
import itertools
import math
import os
import time
from contextlib import suppress

import numpy as np
import pytest

from bodocache import jit
from bodocache.clock import RealClock
from bodocache.digest import digest_rows
from bodocache.errors import (
    BackendError,
)
from bodocache.io.backend import Durability, Status
from bodocache.pages import Reason
from bodocache.testing import CallFault, Code, FakeCuFile, OpFault, Trouble

jit.warm()  # here, not in a test: a cold compile is not part of any test's time

PAGE_NBYTES = 8192
CANARY = 0xA5
ENDS_BADLY = [Trouble.FAILED, Trouble.TIMEOUT, Trouble.CANCELED, Trouble.INVALID]


async def until(condition):
    while not condition():  # noqa: ASYNC110 -- a stand-in's thread makes it true
        await asyncio.sleep(0.001)


def test_a_digest_that_cannot_be_had_fails_its_pages(rig, caplog):
    batch = rig.stored(2)

    async def scenario(backend):
        backend._digest = lambda *_: 1 / 0
        assert (await rig.get(backend, batch))[1] == [Reason.IO_ERROR] * 2
        backend._digest = digest_rows
        assert (await rig.get(backend, batch))[0] == [Status.LANDED] * 2

    rig.run(scenario)
    assert "division by zero" in caplog.text


@pytest.mark.parametrize("trouble", ENDS_BADLY)
def test_one_bad_operation_costs_one_page(rig, trouble, caplog):
    batch = rig.stored(5)

    async def scenario(backend):
        statuses, reasons = await rig.get(backend, batch)
        assert sorted(statuses) == [Status.LANDED] * 4 + [Status.FAILED]
        assert reasons[statuses.index(Status.FAILED)] == Reason.IO_ERROR
        assert (await rig.get(backend, batch))[0] == [Status.LANDED] * 5

    # The whole extent, and then one of its pages.
    rig.run(scenario, OpFault(trouble, 0, 0), OpFault(trouble, 3, 3))
    assert "payload.slab" in caplog.text


@pytest.mark.parametrize("trouble", ENDS_BADLY)
def test_a_write_that_fails_is_not_found_and_leaves_no_header(rig, trouble):
    async def scenario(backend):
        batch, transfer = await rig.put(backend, [0, 1])
        assert transfer.statuses.tolist() == [Status.FAILED] * 2
        assert (await rig.get(backend, batch))[1] == [Reason.NEVER_STORED] * 2
        return batch

    batch = rig.run(scenario, OpFault(trouble, 0, 0))

    async def reopened(backend):
        assert (await rig.get(backend, batch))[1] == [Reason.NEVER_STORED] * 2

    rig.slab(reopened)


def test_what_a_short_operation_left_is_moved_by_another(rig):
    async def scenario(backend):
        batch, transfer = await rig.put(backend, list(range(4)))
        assert transfer.statuses.tolist() == [Status.LANDED] * 4
        assert (await rig.get(backend, batch))[0] == [Status.LANDED] * 4

    rig.run(scenario, OpFault(Trouble.SHORT, 0, 5, value=4096))
    sizes = [int(row["nbytes"]) // 4096 for batch in rig.fake.submitted for row in batch]
    assert sizes == [8, 7, 6, 5, 4, 3, 2, 8]


@pytest.mark.parametrize(("moved", "landed"), [(0, 0), (100, 0), (PAGE_NBYTES + 1, 1)])
def test_a_read_that_ends_early_is_truncated_behind_its_last_whole_page(rig, moved, landed):
    batch = rig.stored(3)

    async def scenario(backend):
        statuses, reasons = await rig.get(backend, batch)
        assert statuses == [Status.LANDED] * landed + [Status.MISS] * (3 - landed)
        assert set(reasons[landed:]) == {Reason.TRUNCATED}

    rig.run(scenario, OpFault(Trouble.SHORT, value=moved))


@pytest.mark.parametrize("moved", [0, 100])
def test_a_write_that_ends_early_fails(rig, moved):
    async def scenario(backend):
        _, transfer = await rig.put(backend, [0, 1])
        assert transfer.statuses.tolist() == [Status.FAILED] * 2

    rig.run(scenario, OpFault(Trouble.SHORT, value=moved))


@pytest.mark.parametrize("trouble", [*ENDS_BADLY, Trouble.SHORT])
@pytest.mark.parametrize("lasts", [0, None])
def test_no_fault_at_any_operation_serves_a_wrong_byte_or_keeps_a_thing(rig_of, trouble, lasts):
    for n in itertools.count():
        rig = rig_of(str(n), frames=8, queue_depth=2)

        async def scenario(backend, rig=rig):
            batch, stored = await rig.put(backend, [0, 1, 2])
            scattered = batch.copy()
            scattered["slot"] = [2, 0, 1]
            statuses, _ = await rig.get(backend, scattered)
            good = stored.statuses == Status.LANDED
            assert (np.array(statuses)[~good] == Status.MISS).all()
            return good.all() and statuses == [Status.LANDED] * 3

        last = None if lasts is None else n
        landed = rig.run(scenario, OpFault(trouble, n, last, value=17))
        if not rig.fake.fired:
            assert landed
            assert n == 3
            break


def test_an_operation_that_hangs_is_late_at_the_deadline_and_keeps_its_buffer(rig):
    batch = rig.stored(3)

    async def scenario(backend):
        buffers = rig.canaries(3)
        deadline_s = RealClock().now_s() + 0.05
        transfer = backend.get(batch, buffers, deadline_s=deadline_s)
        await transfer.finished()
        assert RealClock().now_s() < deadline_s + 5
        assert transfer.statuses.tolist() == [Status.LATE] * 3
        assert transfer.reasons.tolist() == [Reason.LATE] * 3
        drained = asyncio.ensure_future(transfer.drained())
        await until(lambda: rig.fake.cancels)  # a hint that does not help
        await asyncio.sleep(0.05)
        assert not drained.done()
        assert (buffers == CANARY).all()
        rig.fake.release()
        await drained
        assert (buffers[0] == rig.pages.payload(0)).all()  # so it was theirs all the time
        buffers[:] = CANARY
        other = await rig.get(backend, batch)
        assert other[0] == [Status.LANDED] * 3
        assert (buffers == CANARY).all()
        assert transfer.statuses.tolist() == [Status.LATE] * 3
        assert rig.fake.calls["batch_io_set_up"] == 2  # one that was cancelled serves no more

    rig.run(scenario, OpFault(Trouble.STUCK))


def test_an_abandoned_transfer_submits_no_more_and_cancels_nobody_else(rig_of):
    rig = rig_of(frames=300, page_nbytes=4096, queue_depth=3)
    batch = rig.stored(300)

    async def scenario(backend):
        backwards = batch.copy()
        backwards["slot"] = np.arange(300)[::-1]
        buffers = rig.canaries(300)
        other = backend.get(batch[:8], rig.canaries(8), deadline_s=math.inf)
        left = backend.get(backwards, buffers, deadline_s=math.inf)
        await until(lambda: len(rig.fake.submitted) == 3)
        left.abandon()
        assert np.count_nonzero(left.statuses == Status.LATE) == 44
        assert set(left.reasons[left.statuses == Status.LATE].tolist()) == {Reason.CANCELLED}
        rig.fake.release()
        await left.drained()
        await other.drained()
        assert other.statuses.tolist() == [Status.LANDED] * 8
        assert set(left.statuses.tolist()) == {Status.LANDED, Status.LATE}
        rig.check(backwards, left, buffers)

    rig.run(scenario, OpFault(Trouble.STUCK))
    assert [len(operations) for operations in rig.operations()] == [1, 128, 128]
    assert rig.fake.cancels == 2


def test_a_read_is_not_begun_after_its_deadline_even_if_the_loop_lags(rig_of):
    rig = rig_of(queue_depth=1)
    batch = rig.stored(2)

    async def scenario(backend):
        buffers = rig.canaries(2)
        first = backend.get(batch[:1], buffers, deadline_s=math.inf)
        await until(lambda: rig.fake.submitted)
        second = backend.get(batch[1:], buffers, deadline_s=RealClock().now_s() + 0.02)
        time.sleep(0.05)  # noqa: ASYNC251 -- a loop that lags
        rig.fake.release()
        time.sleep(0.1)  # noqa: ASYNC251
        await first.drained()
        await second.drained()
        assert second.statuses.tolist() == [Status.LATE]
        assert (buffers[1] == CANARY).all()

    rig.run(scenario, OpFault(Trouble.STUCK))
    assert len(rig.fake.submitted) == 1


@pytest.mark.parametrize(
    "function", ["batch_io_set_up", "batch_io_submit", "batch_io_get_status", "buf_register"]
)
def test_a_call_that_fails_fails_its_pages_and_the_next_get_lands(rig, function, caplog):
    batch = rig.stored(3)

    async def scenario(backend):
        statuses, reasons = await rig.get(backend, batch)
        assert statuses == [Status.FAILED] * 3
        assert reasons == [Reason.IO_ERROR] * 3
        assert (await rig.get(backend, batch))[0] == [Status.LANDED] * 3

    rig.run(scenario, CallFault(function, Code.INTERNAL_BATCH_SUBMIT_ERROR, 0, 0))
    assert "INTERNAL_BATCH_SUBMIT_ERROR" in caplog.text


@pytest.mark.parametrize(
    "function", ["batch_io_set_up", "batch_io_submit", "batch_io_get_status", "buf_register"]
)
def test_no_call_that_fails_for_good_hangs_a_put_or_a_close(rig, function):
    async def scenario(backend):
        batch, transfer = await rig.put(backend, [0, 1])
        assert transfer.statuses.tolist() == [Status.FAILED] * 2
        assert set((await rig.get(backend, batch))[1]) == {Reason.NEVER_STORED}
        backend.release(batch["frame"])
        assert backend.usage.used_frames == 0

    last = 5 if function == "batch_io_get_status" else None  # what is in flight must be heard of
    rig.run(scenario, CallFault(function, Code.BATCH_FULL, 0, last))


def test_memory_of_a_batch_without_an_answer_is_not_given_back(rig):
    batch = rig.stored(2)

    async def scenario(backend):
        buffers = rig.canaries(2)
        transfer = backend.get(batch, buffers, deadline_s=math.inf)
        await transfer.finished()
        assert transfer.statuses.tolist() == [Status.FAILED] * 2
        drained = asyncio.ensure_future(transfer.drained())
        await asyncio.sleep(0.25)
        assert not drained.done()
        rig.fake.faults.clear()
        await drained
        assert transfer.statuses.tolist() == [Status.FAILED] * 2

    rig.run(scenario, CallFault("batch_io_get_status", Code.INTERNAL_BATCH_GETSTATUS_ERROR))


@pytest.mark.parametrize("function", ["driver_open", "handle_register"])
def test_a_library_that_cannot_be_opened_says_so_and_leaves_nothing(rig, function):
    async def scenario(_):
        raise AssertionError("opened")

    with pytest.raises(BackendError, match="INVALID_VALUE"):
        rig.run(scenario, CallFault(function, Code.INVALID_VALUE))
    assert len(rig.stored(1)) == 1


@pytest.mark.parametrize(
    "function", ["buf_deregister", "handle_deregister", "batch_io_destroy", "driver_close"]
)
def test_a_library_that_cannot_be_closed_does_not_stop_a_close(rig, function, caplog):
    async def scenario(backend):
        await rig.put(backend, [0, 1])

    with suppress(AssertionError):  # what was not given back is the library's fault here
        rig.run(scenario, CallFault(function, Code.INVALID_VALUE))
    assert "INVALID_VALUE" in caplog.text
    assert rig.fake.violations == []
    if function == "driver_close":
        rig.fake.faults.clear()
        rig.fake.driver_close()
    assert len(rig.stored(1)) == 1


def test_a_library_that_tells_of_pending_operations_is_understood(rig):
    batch = rig.stored(8)

    async def scenario(backend):
        scattered = batch.copy()
        scattered["slot"] = np.arange(8)[::-1]
        assert (await rig.get(backend, scattered))[0] == [Status.LANDED] * 8

    rig.run(scenario, fake=FakeCuFile(tells_of_pending=True))


def test_a_sync_that_fails_fails_its_pages(rig, monkeypatch):
    def fail(_):
        raise OSError(5, "Input/output error")

    async def scenario(backend):
        monkeypatch.setattr(os, "fdatasync", fail)
        batch, transfer = await rig.put(backend, [0, 1], Durability.SYNC)
        assert transfer.statuses.tolist() == [Status.FAILED] * 2
        monkeypatch.undo()
        assert (await rig.get(backend, batch))[1] == [Reason.NEVER_STORED] * 2

    rig.run(scenario)


def test_a_header_that_cannot_be_written_fails_its_pages(rig, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    async def scenario(backend):
        monkeypatch.setattr(os, "pwrite", fail)
        _, transfer = await rig.put(backend, [0, 1])
        assert transfer.statuses.tolist() == [Status.FAILED] * 2
        monkeypatch.undo()

    rig.run(scenario)


def test_a_frame_released_while_it_is_written_is_free_once_that_has_ended(rig):
    async def scenario(backend):
        batch = rig.pages.batch([0], backend.reserve(1, after=-1))
        transfer = backend.put(batch, rig.canaries(1), deadline_s=math.inf)
        await until(lambda: rig.fake.in_flight)
        backend.release(batch["frame"])
        assert backend.usage.used_frames == 1
        rig.fake.release()
        await transfer.drained()
        assert backend.usage.used_frames == 0

    rig.run(scenario, OpFault(Trouble.STUCK))


def test_a_close_waits_for_what_is_in_flight_and_drops_what_is_not(rig_of):
    rig = rig_of(queue_depth=1)
    batch = rig.stored(2)

    async def scenario(backend):
        buffers = rig.canaries(2)
        flies, waits = (
            backend.get(part, buffers, deadline_s=math.inf) for part in (batch[:1], batch[1:])
        )
        await until(lambda: rig.fake.in_flight)
        closing = asyncio.ensure_future(backend.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        assert waits.statuses.tolist() == [Status.LATE]
        rig.fake.release()
        await closing
        assert flies.statuses.tolist() == [Status.LANDED]

    rig.run(scenario, OpFault(Trouble.STUCK))


def test_what_is_asked_for_again_while_it_closes_is_late_and_not_begun(rig):
    batch = rig.stored(2)

    async def scenario(backend):
        flies = backend.get(batch[:1], rig.canaries(2), deadline_s=math.inf)
        await until(lambda: rig.fake.submitted)
        backend._queue.stop()  # as a close does first
        transfer = backend.get(batch[1:], rig.canaries(2), deadline_s=math.inf)
        await asyncio.sleep(0.05)
        rig.fake.release()
        await backend.close()
        assert flies.statuses.tolist() == [Status.LANDED]
        assert transfer.statuses.tolist() == [Status.LATE]
        assert transfer.reasons.tolist() == [Reason.CANCELLED]

    rig.run(scenario, OpFault(Trouble.STUCK))
    assert len(rig.fake.submitted) == 1
