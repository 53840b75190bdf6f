# SPDX-License-Identifier: Apache-2.0
"""The slab while it runs: errors of the storage, races with puts, deadlines in flight."""

import asyncio
import ctypes
import errno
import math
import os
import threading

import numpy as np
import pytest

from bodocache.errors import LayoutError, LeaseError
from bodocache.io.backend import Durability, NativeCall, Status, ToldInPython
from bodocache.io.config import Access
from bodocache.io.reservations import Reservations
from bodocache.io.transfer import BatchTransfer
from bodocache.pages import Reason
from bodocache.testing import NumberedPages


class Gate:
    """Stops a system call in its thread until it is opened."""

    def __init__(self, fake, name):
        self._real = getattr(os, name)
        self.entered = threading.Event()
        self.opened = threading.Event()
        fake(name, self)

    def __call__(self, *arguments):
        self.entered.set()
        was_opened = self.opened.wait(10)
        self.opened.set()  # a test that failed before it opened it waits but once
        assert was_opened
        return self._real(*arguments)

    async def wait(self):
        assert await asyncio.to_thread(self.entered.wait, 10)


def failing(fake, name, should_fail, error=errno.EIO):
    """Let a system call fail where ``should_fail(*arguments)``; return the calls' arguments."""
    real, calls = getattr(os, name), []

    def call(*arguments):
        calls.append(arguments)
        if should_fail(*arguments):
            raise OSError(error, os.strerror(error))
        return real(*arguments)

    fake(name, call)
    return calls


def test_one_bad_sector_costs_one_page(bench, fake, monkeypatch, caplog):
    async def scenario(backend):
        batch, _ = await bench.put(backend, [1, 2, 3, 4])

        def touches_second_page(fd, buffers, offset):
            nbytes = sum(buffer.nbytes for buffer in buffers)
            return offset < 2 * 8192 and offset + nbytes > 8192

        failing(fake, "preadv", touches_second_page)
        statuses, reasons = await bench.get(backend, batch)
        assert statuses == [Status.LANDED, Status.FAILED, Status.LANDED, Status.LANDED]
        assert reasons[1] == Reason.IO_ERROR
        monkeypatch.undo()
        assert (await bench.get(backend, batch))[0] == [Status.LANDED] * 4  # errors may pass

    bench.run(scenario)


def test_a_write_error_fails_its_pages_and_leaves_no_header(bench, fake, monkeypatch, caplog):
    async def scenario(backend):
        at_payload = failing(fake, "pwritev", lambda _, buffers, __: buffers[0].nbytes >= 8192)
        batch, transfer = await bench.put(backend, [1, 2])
        assert transfer.statuses.tolist() == [Status.FAILED] * 2
        assert transfer.reasons.tolist() == [Reason.IO_ERROR] * 2
        assert at_payload
        monkeypatch.undo()
        assert (await bench.get(backend, batch))[1] == [Reason.NEVER_STORED] * 2
        return batch

    batch = bench.run(scenario)
    assert bench.reasons(batch) == [Reason.NEVER_STORED] * 2  # a header would say CORRUPT
    assert "Input/output error" in caplog.text


def test_payload_is_whole_before_its_header_is_written(bench):
    async def scenario(backend):
        seen = []
        backend.observer = seen.append
        await bench.put(backend, [1, 2])
        assert [extent.path.rsplit("/", 1)[1] for extent in seen] == [
            "payload.slab",
            "headers.slab",
        ]
        assert seen[0].finished_s <= seen[1].started_s

    bench.run(scenario)


def test_an_observer_sees_what_a_plain_reader_would_read(bench):
    async def scenario(backend):
        batch, _ = await bench.put(backend, list(range(6)))
        seen = []
        backend.observer = seen.append
        chosen = batch[[0, 1, 2, 5]]
        chosen["slot"] = [1, 0, 3, 2]
        await bench.get(backend, chosen)
        assert sorted(extent[1:3] for extent in seen) == [(0, 3 * 8192), (5 * 8192, 8192)]
        assert [extent.pages for extent in sorted(seen, key=lambda e: e.offset)] == [3, 1]
        assert not any(extent.writes for extent in seen)
        assert all(extent.started_s <= extent.finished_s for extent in seen)

    bench.run(scenario, read_through_nbytes=0)


@pytest.mark.parametrize(("through", "spans"), [(2, [(0, 6)]), (1, [(0, 3), (5, 1)])])
def test_holes_up_to_a_limit_are_read_through_and_land_nowhere(bench, through, spans):
    async def scenario(backend):
        batch, _ = await bench.put(backend, list(range(6)))
        seen = []
        backend.observer = seen.append
        chosen = batch[[0, 2, 5]]
        chosen["slot"] = [1, 0, 3]
        buffers = bench.pages.buffers(4)
        await backend.get(chosen, buffers, deadline_s=math.inf).drained()
        assert sorted(extent[1:3] for extent in seen) == [(8192 * f, 8192 * n) for f, n in spans]
        assert sum(extent.pages for extent in seen) == 3
        for slot, number in ((1, 0), (0, 2), (3, 5)):
            assert (buffers[slot] == bench.pages.payload(number)).all()
        assert not buffers[2].any()

    bench.run(scenario, read_through_nbytes=through * 8192)


def test_padding_and_a_hole_behind_it_are_read_to_the_same_place(bench):
    async def scenario(backend):
        pages = NumberedPages(5008)
        batch = pages.batch(list(range(3)), backend.reserve(3, after=-1))
        buffers = pages.buffers(3)
        pages.fill(buffers, list(range(3)))
        await backend.put(batch, buffers, deadline_s=math.inf).drained()
        seen = []
        backend.observer = seen.append
        chosen, found = batch[[2, 0]], pages.buffers(3)
        await backend.get(chosen, found, deadline_s=math.inf).drained()
        assert [extent[1:3] for extent in seen] == [(0, 3 * 8192)]
        assert (found[[0, 2]] == buffers[[0, 2]]).all()
        assert not found[1].any()

    bench.run(scenario, page_nbytes=5008)


def test_a_bad_sector_in_a_hole_costs_no_page(bench, fake):
    async def scenario(backend):
        batch, _ = await bench.put(backend, [1, 2, 3])

        def touches_second_page(fd, buffers, offset):
            nbytes = sum(buffer.nbytes for buffer in buffers)
            return offset < 2 * 8192 and offset + nbytes > 8192

        calls = failing(fake, "preadv", touches_second_page)
        chosen = batch[[0, 2]]
        chosen["slot"] = [0, 1]
        assert (await bench.get(backend, chosen))[0] == [Status.LANDED] * 2
        assert [arguments[2] for arguments in calls] == [0, 0, 2 * 8192]

    bench.run(scenario, queue_depth=1)


@pytest.mark.parametrize("ragged", [0, 1, 8191])
def test_a_file_that_ends_in_a_hole_still_gives_what_lies_before_it(bench, ragged):
    async def scenario(backend):
        batch, _ = await bench.put(backend, [1, 2, 3])
        os.truncate(bench.payload, 8192 + ragged)
        chosen = batch[[0, 2]]
        chosen["slot"] = [0, 1]
        assert (await bench.get(backend, chosen))[1] == [Reason.NONE, Reason.TRUNCATED]

    bench.run(scenario)


def test_an_unexpected_error_in_a_worker_is_a_failed_page_and_logged(bench, monkeypatch, caplog):
    async def scenario(backend):
        batch, _ = await bench.put(backend, [1])
        on_landed = ToldInPython(lambda _: 1 / 0)
        for _ in range(6):
            buffers = bench.pages.buffers(1)
            transfer = backend.get(batch, buffers, deadline_s=math.inf, on_landed=on_landed)
            await transfer.drained()
            assert transfer.statuses.tolist() == [Status.FAILED]
            assert transfer.reasons.tolist() == [Reason.IO_ERROR]

    bench.run(scenario)
    warnings = [record for record in caplog.records if "ZeroDivisionError" in record.message]
    assert len(warnings) == 1  # the other five wait for the next interval


class Native:
    """An OnLanded in C (and in no way in Python), which notes the positions it is told."""

    def __init__(self):
        kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)
        self.told = []
        self._function = kind(self._take_note)
        self.native = NativeCall(ctypes.cast(self._function, ctypes.c_void_p).value, 42)

    def _take_note(self, argument, positions, count):
        assert argument == 42
        self.told += (ctypes.c_int64 * count).from_address(positions)


def test_a_native_call_is_told_of_verified_pages_alone_and_once(bench):
    batch = bench.stored([1, 2, 3, 4])
    with bench.payload.open("r+b") as file:
        file.seek(2 * bench.pages.page_nbytes)
        file.write(b"damage")

    async def scenario(backend):
        on_landed = Native()
        chosen, buffers = batch[[3, 2, 1, 0]], bench.pages.buffers(4)
        transfer = backend.get(chosen, buffers, deadline_s=math.inf, on_landed=on_landed)
        await transfer.drained()
        assert transfer.reasons.tolist() == [0, Reason.CORRUPT, 0, 0]
        assert sorted(on_landed.told) == [0, 2, 3]

    bench.run(scenario)


def test_a_failed_sync_fails_its_pages_and_is_not_retried(bench, fake, caplog):
    async def scenario(backend):
        calls = failing(fake, "fdatasync", lambda _: len(calls) == 1)
        batch, transfer = await bench.put(backend, [1, 2], Durability.SYNC)
        assert transfer.statuses.tolist() == [Status.FAILED] * 2
        assert len(calls) == 1
        assert (await bench.get(backend, batch))[0] == [Status.MISS] * 2
        assert not len(backend.entries().keys)
        _, transfer = await bench.put(backend, [3], Durability.SYNC)  # new pages, a new sync
        assert transfer.statuses.tolist() == [Status.LANDED]
        assert len(calls) == 3

    bench.run(scenario)


def test_a_sync_that_failed_elsewhere_fails_what_was_written_before_it(bench, fake, caplog):
    async def scenario(backend):
        calls = failing(fake, "fdatasync", lambda _: len(calls) == 1)
        gate = Gate(fake, "pwritev")
        slow = asyncio.ensure_future(bench.put(backend, [1], Durability.SYNC))
        await asyncio.sleep(0)
        await gate.wait()
        fake("pwritev", os.pwritev)
        _, failed = await bench.put(backend, [2], Durability.SYNC)
        assert failed.statuses.tolist() == [Status.FAILED]
        gate.opened.set()
        _, transfer = await slow  # its own sync succeeds, and proves nothing
        assert transfer.statuses.tolist() == [Status.FAILED]
        _, transfer = await bench.put(backend, [3], Durability.SYNC)
        assert transfer.statuses.tolist() == [Status.LANDED]

    bench.run(scenario)


def test_puts_that_are_written_while_a_sync_runs_share_the_next(bench, fake):
    async def scenario(backend):
        calls = failing(fake, "fdatasync", lambda _: False)
        gate = Gate(fake, "fdatasync")
        first = asyncio.ensure_future(bench.put(backend, [1], Durability.SYNC))
        await asyncio.sleep(0)
        await gate.wait()
        others = [asyncio.ensure_future(bench.put(backend, [i], Durability.SYNC)) for i in (2, 3)]
        await asyncio.sleep(0.1)
        assert not any(put.done() for put in (first, *others))
        gate.opened.set()
        done = [await put for put in (first, *others)]
        assert all((transfer.statuses == Status.LANDED).all() for _, transfer in done)
        assert len(calls) == 4  # two syncs of two files

    bench.run(scenario)


def test_a_put_that_waits_for_its_sync_has_not_drained_and_a_close_waits_for_it(bench, fake):
    async def scenario(backend):
        gate = Gate(fake, "fdatasync")
        puts = []
        for number in (1, 2):
            puts.append(asyncio.ensure_future(bench.put(backend, [number], Durability.SYNC)))
            await asyncio.sleep(0)
            await gate.wait()
        await asyncio.sleep(0.1)
        closing = asyncio.ensure_future(backend.close())
        await asyncio.sleep(0)
        assert not any(put.done() for put in puts)
        gate.opened.set()
        await closing
        statuses = [(await put)[1].statuses.tolist() for put in puts]
        assert statuses == [[Status.LANDED]] * 2

    bench.run(scenario)


def test_only_a_durable_put_syncs(bench, fake):
    async def scenario(backend):
        calls = failing(fake, "fdatasync", lambda _: False)
        await bench.put(backend, [1, 2])
        assert not calls
        await bench.put(backend, [3, 4], Durability.SYNC)
        assert len(calls) == 2  # payload and headers, once for the whole put

    bench.run(scenario)


def test_a_page_is_late_at_its_deadline_and_its_buffer_in_use_until_drained(bench, fake):
    async def scenario(backend):
        batch, _ = await bench.put(backend, [1, 2])
        gate = Gate(fake, "preadv")
        buffers = bench.pages.buffers(2)
        deadline_s = asyncio.get_running_loop().time() + 0.02
        transfer = backend.get(batch, buffers, deadline_s=deadline_s)
        await gate.wait()
        await transfer.finished()
        assert transfer.statuses.tolist() == [Status.LATE] * 2
        assert not transfer.is_drained
        gate.opened.set()
        await transfer.drained()
        assert (buffers[1] == bench.pages.payload(2)).all()  # it did write, late
        assert transfer.statuses.tolist() == [Status.LATE] * 2

    bench.run(scenario)


def test_extents_are_read_in_the_callers_order_not_the_files(bench, fake):
    async def scenario(backend):
        batch, _ = await bench.put(backend, range(8))
        frames = batch["frame"]
        calls = failing(fake, "preadv", lambda *_: False)
        wanted = batch[np.argsort(frames)[[6, 4, 0, 2]]]  # no two adjacent
        wanted["slot"] = np.arange(4)
        statuses, _ = await bench.get(backend, wanted)
        assert statuses == [Status.LANDED] * 4
        offsets = [arguments[2] for arguments in calls]
        assert np.argsort(offsets).tolist() == np.argsort(wanted["frame"]).tolist()

    bench.run(scenario, queue_depth=1, read_through_nbytes=0)


def test_an_abandoned_transfer_lets_what_is_in_flight_land(bench, fake):
    async def scenario(backend):
        batch, _ = await bench.put(backend, [1, 2, 3, 4])
        gate = Gate(fake, "preadv")
        transfer = backend.get(batch, bench.pages.buffers(4), deadline_s=math.inf)
        await gate.wait()
        transfer.abandon()
        assert transfer.statuses.tolist() == [0, 0, Status.LATE, Status.LATE]
        gate.opened.set()
        await transfer.drained()
        assert transfer.statuses.tolist() == [Status.LANDED] * 2 + [Status.LATE] * 2
        assert transfer.reasons.tolist() == [0, 0, Reason.CANCELLED, Reason.CANCELLED]

    bench.run(scenario, queue_depth=1, chunk_nbytes=16384)


def test_a_put_that_ends_after_its_deadline_is_not_found(bench, fake):
    async def scenario(backend):
        gate = Gate(fake, "pwritev")
        batch, buffers = (
            bench.pages.batch([1], backend.reserve(1, after=-1)),
            bench.pages.buffers(1),
        )
        bench.pages.fill(buffers, [1])
        deadline_s = asyncio.get_running_loop().time() + 0.01
        transfer = backend.put(batch, buffers, deadline_s=deadline_s)
        await transfer.finished()
        assert transfer.statuses.tolist() == [Status.LATE]
        gate.opened.set()
        await transfer.drained()
        assert (await bench.get(backend, batch))[0] == [Status.MISS]

    bench.run(scenario)


def test_a_frame_released_while_it_is_written_is_free_only_afterwards(bench, fake):
    async def scenario(backend):
        gate = Gate(fake, "pwritev")
        batch, buffers = (
            bench.pages.batch([1], backend.reserve(1, after=-1)),
            bench.pages.buffers(1),
        )
        bench.pages.fill(buffers, [1])
        transfer = backend.put(batch, buffers, deadline_s=math.inf)
        await gate.wait()
        backend.release(batch["frame"])
        assert backend.usage.used_frames == 1
        with pytest.raises(LeaseError):
            backend.release(batch["frame"])
        gate.opened.set()
        await transfer.drained()
        assert backend.usage.used_frames == 0
        assert (await bench.get(backend, batch))[0] == [Status.MISS]
        assert not len(backend.entries().keys)

    bench.run(scenario)


def test_a_get_that_races_with_a_put_into_its_frame_never_returns_the_new_page(bench, fake):
    async def scenario(backend):
        old, _ = await bench.put(backend, [1])
        gate = Gate(fake, "preadv")
        transfer = backend.get(old, bench.pages.buffers(1), deadline_s=math.inf)
        await gate.wait()
        backend.release(old["frame"])
        new, _ = await bench.put(backend, [2])  # begins beside the read once its patience has ended
        assert new["frame"] == old["frame"]
        gate.opened.set()
        await transfer.drained()
        assert transfer.statuses.tolist() == [Status.MISS]
        assert (await bench.get(backend, new))[0] == [Status.LANDED]  # not held against it

    bench.run(scenario)


@pytest.mark.parametrize("frames", [[5], [0, 0], [-1], [99]])
def test_a_put_to_frames_that_are_not_reserved_is_refused(bench, frames):
    async def scenario(backend):
        backend.reserve(1, after=-1)
        batch = bench.pages.batch(list(range(len(frames))), np.array(frames))
        with pytest.raises(LeaseError):
            backend.put(batch, bench.pages.buffers(2), deadline_s=math.inf)

    bench.run(scenario)


def test_a_second_put_into_a_frame_waits_for_the_first(bench, fake):
    async def scenario(backend):
        gate = Gate(fake, "pwritev")
        batch = bench.pages.batch([1], backend.reserve(1, after=-1))
        first = backend.put(batch, bench.pages.buffers(1), deadline_s=math.inf)
        with pytest.raises(LeaseError, match="still being written"):
            backend.put(batch, bench.pages.buffers(1), deadline_s=math.inf)
        gate.opened.set()
        await first.drained()

    bench.run(scenario)


def test_a_page_is_a_miss_as_soon_as_its_frame_is_put_to(bench, fake):
    async def scenario(backend):
        batch, _ = await bench.put(backend, [1])
        gate = Gate(fake, "pwritev")
        transfer = backend.put(batch, bench.pages.buffers(1), deadline_s=math.inf)
        await gate.wait()
        assert (await bench.get(backend, batch))[0] == [Status.MISS]
        assert not len(backend.entries().keys)
        gate.opened.set()
        await transfer.drained()

    bench.run(scenario)


@pytest.mark.parametrize("moved", [0, 4096])
def test_a_write_that_moves_too_little_fails_its_pages(bench, fake, caplog, moved):
    async def scenario(backend):
        real = os.pwritev
        left = [moved]

        def short(fd, buffers, offset):
            return real(fd, [buffers[0][:4096]], offset) if left and left.pop() else 0

        fake("pwritev", short)
        _, transfer = await bench.put(backend, [1, 2])
        assert transfer.statuses.tolist() == [Status.FAILED] * 2
        assert not len(backend.entries().keys)

    bench.run(scenario)
    assert f"{moved} of 16384 bytes written" in caplog.text


@pytest.mark.parametrize("slot", [-1, 2])
def test_a_slot_outside_the_buffers_is_refused(bench, slot):
    async def scenario(backend):
        batch, _ = await bench.put(backend, [1])
        batch["slot"] = slot
        with pytest.raises(LayoutError, match="slots"):
            backend.get(batch, bench.pages.buffers(2), deadline_s=math.inf)

    bench.run(scenario)


def test_buffers_of_another_shape_are_refused(bench):
    async def scenario(backend):
        batch, _ = await bench.put(backend, [1])
        frozen = bench.pages.buffers(1)
        frozen.flags.writeable = False
        for buffers in (np.zeros((1, 4096), np.uint8), np.zeros((1, 16384), np.uint8), frozen):
            with pytest.raises(LayoutError):
                backend.get(batch, buffers, deadline_s=math.inf)
        batch["nbytes"] = 4096
        with pytest.raises(LayoutError, match="8192 bytes"):
            backend.get(batch, bench.pages.buffers(1), deadline_s=math.inf)

    bench.run(scenario)


@pytest.mark.parametrize("access", Access)
def test_buffers_at_odd_addresses_are_served(bench, access):
    async def scenario(backend):
        batch, _ = await bench.put(backend, [1, 2])
        buffers = np.zeros(3 * 8192, np.uint8)
        start = -buffers.ctypes.data % 4096 + 16
        odd = buffers[start : start + 2 * 8192].reshape(2, 8192)
        transfer = backend.get(batch, odd, deadline_s=math.inf)
        await transfer.drained()
        assert (transfer.statuses == Status.LANDED).all()
        assert (odd[1] == bench.pages.payload(2)).all()

    bench.run(scenario, access=access)


def test_padding_on_disk_holds_no_older_bytes(bench):
    async def scenario(backend):
        buffers = np.full((1, 5008), 7, np.uint8)
        batch = bench.pages.batch([1], backend.reserve(1, after=-1))
        batch["nbytes"] = 5008
        await backend.put(batch, buffers, deadline_s=math.inf).drained()

    bench.stored(list(range(16)))
    bench.run(scenario, page_nbytes=5008)
    data = bench.payload.read_bytes()[:8192]
    assert data[:5008] == b"\7" * 5008
    assert not any(data[5008:])


def test_closing_during_a_durable_put_leaves_nothing_pending(bench, fake):
    async def scenario(backend):
        gate = Gate(fake, "pwritev")
        batch = bench.pages.batch([1], backend.reserve(1, after=-1))
        transfer = backend.put(
            batch, bench.pages.buffers(1), deadline_s=math.inf, durability=Durability.SYNC
        )
        await gate.wait()
        closing = asyncio.ensure_future(backend.close())
        await asyncio.sleep(0)
        gate.opened.set()
        await closing
        assert transfer.statuses.tolist() == [Status.LANDED]  # what was written is synced, too
        assert transfer.is_drained

    bench.run(scenario)


def test_closing_lets_what_is_in_flight_end(bench, fake):
    async def scenario(backend):
        batch, _ = await bench.put(backend, [1, 2])
        gate = Gate(fake, "preadv")
        transfer = backend.get(batch, bench.pages.buffers(2), deadline_s=math.inf)
        await gate.wait()
        closing = asyncio.ensure_future(backend.close())
        await asyncio.sleep(0)
        assert transfer.statuses.tolist() == [0, Status.LATE]
        gate.opened.set()
        await closing
        assert transfer.statuses.tolist() == [Status.LANDED, Status.LATE]
        assert transfer.is_drained

    bench.run(scenario, queue_depth=1, chunk_nbytes=8192)


def lying_alone(batch):
    alone = batch[::2].copy()
    alone["slot"] = np.arange(len(alone))
    return alone


def test_pages_that_lie_alone_are_settled_together(bench, monkeypatch):
    finish, calls = BatchTransfer.finish, []

    def counted(transfer, positions, outcome):
        calls.append(len(positions))
        return finish(transfer, positions, outcome)

    async def scenario(backend):
        batch, _ = await bench.put(backend, list(range(16)))
        monkeypatch.setattr(BatchTransfer, "finish", counted)
        transfer = backend.get(lying_alone(batch), bench.pages.buffers(8), deadline_s=math.inf)
        while backend._pool._table.done < 8:
            pass  # the loop is busy until all have ended
        await transfer.drained()
        assert (transfer.statuses == Status.LANDED).all()
        assert calls == [8]

    bench.run(scenario, read_through_nbytes=0)


def test_a_damaged_page_among_others_that_lie_alone_costs_one_page(bench):
    async def scenario(backend):
        batch, _ = await bench.put(backend, list(range(16)))
        with bench.payload.open("r+b") as file:
            file.seek(int(batch["frame"][4]) * 8192 + 100)
            file.write(b"damage")
        statuses, reasons = await bench.get(backend, lying_alone(batch))
        assert statuses == [Status.LANDED] * 2 + [Status.MISS] + [Status.LANDED] * 5
        assert reasons[2] == Reason.CORRUPT

    bench.run(scenario, read_through_nbytes=0)


def test_a_put_that_could_not_begin_keeps_no_frame(bench, monkeypatch):
    def fail(*_):
        raise MemoryError

    async def scenario(backend):
        buffers = bench.pages.buffers(2)
        bench.pages.fill(buffers, [1, 2])
        batch = bench.pages.batch([1, 2], backend.reserve(2, after=-1))
        with monkeypatch.context() as patched:
            patched.setattr(Reservations, "next_generations", fail)
            with pytest.raises(MemoryError):
                backend.put(batch, buffers, deadline_s=math.inf)
        backend.release(batch["frame"])
        assert backend.usage.used_frames == 0

    bench.run(scenario)
