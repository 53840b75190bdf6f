# SPDX-License-Identifier: Apache-2.0
"""What every backend must do, whatever it is made of."""

import asyncio
import math

import numpy as np
import pytest

from bodocache.errors import CacheClosed, LeaseError, TierFull
from bodocache.io.backend import TRANSFER, Durability, Status, ToldInPython
from bodocache.pages import Reason


@pytest.mark.parametrize("durability", Durability)
def test_what_was_put_is_what_a_get_returns(storage, durability):
    async def scenario(backend):
        numbers = list(range(11))
        batch = await storage.put(backend, numbers, durability=durability)
        statuses, reasons, buffers = await storage.get(backend, batch)
        assert (statuses == Status.LANDED).all()
        assert not reasons.any()
        for slot, number in enumerate(numbers):
            assert (buffers[slot] == storage.pages.payload(number)).all()

    storage.run(scenario)


def test_slots_may_lie_anywhere_in_memory(storage):
    async def scenario(backend):
        numbers = list(range(12))
        batch = await storage.put(backend, numbers)
        shuffled = np.random.default_rng(7).permutation(12)
        batch["slot"] = shuffled
        _, _, buffers = await storage.get(backend, batch)
        for number, slot in enumerate(shuffled.tolist()):
            assert (buffers[slot] == storage.pages.payload(number)).all()

    storage.run(scenario)


def test_the_caller_is_told_of_verified_pages_once_and_before_they_are_reported(storage):
    async def scenario(backend):
        batch = await storage.put(backend, [1, 2, 3])
        asked = storage.pages.batch(
            [3, 99, 1], np.array([batch["frame"][2], -1, batch["frame"][0]])
        )
        buffers, told = storage.canaries(3), []

        def note(positions):
            for position in positions.tolist():
                right = (buffers[position] == storage.pages.payload([3, 99, 1][position])).all()
                told.append((position, bool(right)))

        on_landed = ToldInPython(note)
        transfer = backend.get(asked, buffers, deadline_s=math.inf, on_landed=on_landed)
        while await transfer.progress():
            landed = np.flatnonzero(transfer.statuses == Status.LANDED).tolist()
            assert {position for position, _ in told} >= set(landed)
        await transfer.drained()
        assert sorted(told) == [(0, True), (2, True)]

    storage.run(scenario)


def test_a_page_that_was_never_stored_is_a_miss_and_its_slot_untouched(storage):
    async def scenario(backend):
        stored = await storage.put(backend, [1, 2])
        asked = storage.pages.batch([1, 99, 2, 98], np.array([0, -1, 0, 10**9]))
        asked["frame"][[0, 2]] = stored["frame"]
        statuses, reasons, buffers = await storage.get(backend, asked)
        assert statuses.tolist() == [Status.LANDED, Status.MISS, Status.LANDED, Status.MISS]
        assert reasons[[1, 3]].tolist() == [Reason.NEVER_STORED] * 2
        assert (buffers[[1, 3]] == storage.canary).all()

    storage.run(scenario)


def test_a_frame_of_another_key_is_a_foreign_miss(storage):
    async def scenario(backend):
        stored = await storage.put(backend, [1, 2])
        statuses, reasons, buffers = await storage.get(
            backend, storage.pages.batch([1, 2], stored["frame"][::-1])
        )
        assert (statuses == Status.MISS).all()
        assert (reasons == Reason.FOREIGN).all()
        assert (buffers == storage.canary).all()

    storage.run(scenario)


def test_an_empty_batch_is_final_at_once(storage):
    async def scenario(backend):
        nothing = np.zeros(0, TRANSFER)
        for verb in (backend.get, backend.put):
            transfer = verb(nothing, storage.pages.buffers(1), deadline_s=math.inf)
            await transfer.finished()
            await transfer.drained()
            assert await transfer.progress() is False
        assert not len(backend.reserve(0, after=-1))

    storage.run(scenario)


def test_one_key_may_be_asked_for_twice_in_a_batch(storage):
    async def scenario(backend):
        stored = await storage.put(backend, [5])
        twice = np.concatenate([stored, stored])
        twice["slot"] = [1, 0]
        statuses, _, buffers = await storage.get(backend, twice)
        assert (statuses == Status.LANDED).all()
        assert (buffers == storage.pages.payload(5)).all()

    storage.run(scenario)


def test_one_key_put_twice_is_one_entry(storage):
    async def scenario(backend):
        batch = await storage.put(backend, [5, 5])
        statuses, _, _ = await storage.get(backend, batch)
        assert (statuses == Status.LANDED).all()
        assert len(backend.entries().keys) == 1

    storage.run(scenario)


def test_a_get_whose_deadline_has_passed_is_late_and_touches_nothing(storage):
    async def scenario(backend):
        batch = await storage.put(backend, [1, 2, 3])
        statuses, reasons, buffers = await storage.get(backend, batch, deadline_s=0.0)
        assert (statuses == Status.LATE).all()
        assert (reasons == Reason.LATE).all()
        assert (buffers == storage.canary).all()

    storage.run(scenario)


def test_a_put_whose_deadline_has_passed_is_not_found(storage):
    async def scenario(backend):
        pages = storage.pages
        batch = pages.batch([1], backend.reserve(1, after=-1))
        transfer = backend.put(batch, pages.buffers(1), deadline_s=0.0)
        await transfer.drained()
        assert transfer.statuses.tolist() == [Status.LATE]
        statuses, _, _ = await storage.get(backend, batch)
        assert statuses.tolist() == [Status.MISS]
        assert not len(backend.entries().keys)
        backend.release(batch["frame"])

    storage.run(scenario)


def test_after_an_abandoned_get_has_drained_nothing_writes_to_the_buffers(storage):
    async def scenario(backend):
        batch = await storage.put(backend, list(range(20)))
        buffers = storage.canaries(20)
        transfer = backend.get(batch, buffers, deadline_s=math.inf)
        transfer.abandon()
        await transfer.drained()
        assert set(transfer.statuses.tolist()) <= {Status.LANDED, Status.LATE}
        late = transfer.statuses == Status.LATE
        assert (transfer.reasons[late] == Reason.CANCELLED).all()
        buffers[:] = storage.canary
        await storage.get(backend, batch)  # the disk is busy for as long again
        assert (buffers == storage.canary).all()

    storage.run(scenario)


def test_a_cancelled_wait_changes_nothing(storage):
    async def scenario(backend):
        batch = await storage.put(backend, list(range(8)))
        buffers = storage.canaries(8)
        transfer = backend.get(batch, buffers, deadline_s=math.inf)
        waiting = asyncio.ensure_future(transfer.finished())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await transfer.finished()
        assert (transfer.statuses == Status.LANDED).all()

    storage.run(scenario)


def test_progress_tells_of_every_page(storage):
    async def scenario(backend):
        stored = await storage.put(backend, list(range(0, 16, 2)))
        numbers = list(range(16))
        frames = np.repeat(stored["frame"], 2)  # every other page is another's frame: a miss
        transfer = backend.get(
            storage.pages.batch(numbers, frames), storage.pages.buffers(16), deadline_s=math.inf
        )
        rounds = 1
        while await transfer.progress():
            rounds += 1
        assert rounds <= 17
        assert transfer.statuses.tolist() == [Status.LANDED, Status.MISS] * 8

    storage.run(scenario)


def test_a_full_backend_takes_no_frame_for_a_reservation_it_refuses(storage):
    async def scenario(backend):
        total = backend.usage.total_frames
        backend.reserve(total - 3, after=-1)
        with pytest.raises(TierFull, match="4 frames requested, 3 of"):
            backend.reserve(4, after=-1)
        assert backend.usage.used_frames == total - 3
        assert len(backend.reserve(3, after=-1)) == 3

    storage.run(scenario)


def test_reservations_seek_the_frame_behind(storage):
    async def scenario(backend):
        first = backend.reserve(3, after=-1)
        backend.reserve(2, after=-1)
        backend.release(first[1:])
        assert backend.reserve(2, after=int(first[0])).tolist() == first[1:].tolist()

    storage.run(scenario)


def test_a_released_page_is_a_miss_and_no_entry(storage):
    async def scenario(backend):
        batch = await storage.put(backend, [1, 2, 3])
        used = backend.usage.used_frames
        backend.release(batch["frame"][1:2])
        statuses, reasons, _ = await storage.get(backend, batch)
        assert statuses.tolist() == [Status.LANDED, Status.MISS, Status.LANDED]
        assert reasons[1] == Reason.EVICTED
        assert len(backend.entries().keys) == 2
        assert backend.usage.used_frames == used - 1

    storage.run(scenario)


def test_a_frame_released_while_its_page_is_written_holds_no_page(storage):
    async def scenario(backend):
        for turn in range(8):  # released at once, or a little later
            numbers = [3 * turn, 3 * turn + 1, 3 * turn + 2]
            batch = storage.pages.batch(numbers, backend.reserve(3, after=-1))
            transfer = backend.put(batch, storage.of(numbers), deadline_s=math.inf)
            for _ in range(turn):
                await asyncio.sleep(0)
            backend.release(batch["frame"])
            await transfer.drained()
            assert not len(backend.entries().keys)
            assert backend.usage.used_frames == 0
            statuses, _, _ = await storage.get(backend, batch)
            assert (statuses == Status.MISS).all()

    storage.run(scenario)


def test_a_frame_is_released_once(storage):
    async def scenario(backend):
        stored = await storage.put(backend, [1])
        backend.release(stored["frame"])
        batch = storage.pages.batch([2], backend.reserve(1, after=-1))
        with backend.hold_writes():
            transfer = backend.put(batch, storage.of([2]), deadline_s=math.inf)
            backend.release(batch["frame"])
            with pytest.raises(LeaseError):
                backend.release(batch["frame"])
        await transfer.drained()
        with pytest.raises(LeaseError):
            backend.release(batch["frame"])
        assert backend.usage.used_frames == 0

    storage.run(scenario)


def test_a_frame_can_be_used_again(storage):
    async def scenario(backend):
        old = await storage.put(backend, list(range(backend.usage.total_frames)))
        backend.release(old["frame"])
        new = await storage.put(backend, list(range(100, 110)))
        statuses, _, buffers = await storage.get(backend, new)
        assert (statuses == Status.LANDED).all()
        assert (buffers[9] == storage.pages.payload(109)).all()
        statuses, _, _ = await storage.get(backend, old)
        assert (statuses == Status.MISS).all()

    storage.run(scenario)


def test_after_a_restart_entries_and_bytes_are_what_was_put(storage):
    numbers = list(range(9))
    batches = []

    async def first_life(backend):
        batches.append(await storage.put(backend, numbers))

    async def second_life(backend):
        batch, entries = batches[0], backend.entries()
        order = np.argsort(entries.depths)
        assert (entries.keys[order] == batch["key"]).all()
        assert (entries.parents[order] == batch["parent"]).all()
        assert (entries.digests[order] == batch["digest"]).all()
        assert (entries.frames[order] == batch["frame"]).all()
        assert backend.usage.used_frames == len(numbers)
        statuses, _, buffers = await storage.get(backend, batch)
        assert (statuses == Status.LANDED).all()
        assert (buffers[8] == storage.pages.payload(8)).all()
        assert not np.isin(backend.reserve(5, after=-1), batch["frame"]).any()

    storage.run(first_life)
    storage.run(second_life)


def test_a_closed_backend_refuses_and_closes_twice(storage):
    async def scenario(backend):
        await backend.close()
        nothing, buffers = np.zeros(0, TRANSFER), storage.pages.buffers(1)
        with pytest.raises(CacheClosed):
            backend.get(nothing, buffers, deadline_s=math.inf)

    storage.run(scenario)


def test_no_write_begins_while_writes_are_held(storage):
    async def scenario(backend):
        pages = storage.pages
        buffers = pages.buffers(2)
        pages.fill(buffers, [1, 2])
        batch = pages.batch([1, 2], backend.reserve(2, after=-1))
        with backend.hold_writes():
            transfer = backend.put(batch, buffers, deadline_s=math.inf)
            await asyncio.sleep(0.1)
            assert transfer.statuses.tolist() == [Status.PENDING] * 2
        await transfer.finished()
        assert transfer.statuses.tolist() == [Status.LANDED] * 2
        await transfer.drained()

    storage.run(scenario)


def test_a_batch_is_its_callers_again_as_soon_as_the_call_returns(storage):
    async def scenario(backend):
        numbers = list(range(6))
        batch = storage.pages.batch(numbers, backend.reserve(6, after=-1))
        given = batch.copy()
        transfer = backend.put(given, storage.of(numbers), deadline_s=math.inf)
        given[:] = np.zeros(1, TRANSFER)
        await transfer.drained()
        assert (transfer.statuses == Status.LANDED).all()
        given[:] = batch
        buffers = storage.canaries(6)
        transfer = backend.get(given, buffers, deadline_s=math.inf)
        given[:] = np.zeros(1, TRANSFER)
        await transfer.drained()
        assert (transfer.statuses == Status.LANDED).all()
        assert not storage.wrong(numbers, transfer.statuses, buffers)

    storage.run(scenario)


def test_closing_ends_a_put_that_waits_and_writes_nothing_of_it(storage):
    batches = []

    async def scenario(backend):
        batch = storage.pages.batch([1, 2], backend.reserve(2, after=-1))
        with backend.hold_writes():
            transfer = backend.put(batch, storage.of([1, 2]), deadline_s=math.inf)
            await backend.close()
            await asyncio.wait_for(transfer.drained(), 10)
        assert set(transfer.statuses.tolist()) <= {Status.LATE, Status.FAILED}
        batches.append(batch)

    async def later_life(backend):
        statuses, _, _ = await storage.get(backend, batches[0])
        assert (statuses == Status.MISS).all()

    storage.run(scenario)
    storage.run(later_life)
