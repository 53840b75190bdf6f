# SPDX-License-Identifier: Apache-2.0
"""Every public coroutine, cancelled in each of its waits: buffers, frames and files stay owned."""

import asyncio
import itertools
import math

import numpy as np
import pytest

from bodocache.io.backend import Status
from bodocache.pages import Reason
from bodocache.testing import Cancelled, cancel_at

NUMBERS = list(range(8))
WAITS = ("progress", "finished", "drained")
REUSES = {"slab": 10_000}  # of a buffer
REUSES_OF_OTHERS = 1_000
RING = 4  # buffers in turn: each is looked at when the others have been used since


@pytest.mark.parametrize("wait", WAITS)
def test_a_get_cancelled_in_any_wait_goes_on(storage, wait):
    async def scenario(backend):
        batch = await storage.put(backend, NUMBERS)
        for at in itertools.count():
            buffers = storage.canaries(len(NUMBERS))
            transfer = backend.get(batch, buffers, deadline_s=math.inf)
            fired = await cancel_at(getattr(transfer, wait)(), at)
            await transfer.finished()
            assert (transfer.statuses == Status.LANDED).all()
            assert not storage.wrong(NUMBERS, transfer.statuses, buffers)
            await transfer.drained()
            if not fired:
                break
        assert at

    storage.run(scenario)


@pytest.mark.parametrize("wait", WAITS)
def test_a_get_given_up_in_any_wait_lets_go_of_its_buffers_when_it_has_drained(storage, wait):
    async def scenario(backend):
        batch = await storage.put(backend, NUMBERS)
        for at in itertools.count():
            buffers = storage.canaries(len(NUMBERS))
            transfer = backend.get(batch, buffers, deadline_s=math.inf)
            fired = await cancel_at(getattr(transfer, wait)(), at)
            transfer.abandon()
            await transfer.drained()
            assert set(transfer.statuses.tolist()) <= {Status.LANDED, Status.LATE}
            assert not storage.wrong(NUMBERS, transfer.statuses, buffers)
            late = transfer.statuses == Status.LATE
            assert (transfer.reasons[late] == Reason.CANCELLED).all()
            buffers[:] = storage.canary
            await storage.get(backend, batch)
            assert (buffers == storage.canary).all()
            if not fired:
                break
        assert at

    storage.run(scenario)


@pytest.mark.parametrize("wait", WAITS)
def test_a_put_given_up_in_any_wait_is_whole_or_not_found(storage, wait):
    async def scenario(backend):
        for at in itertools.count():
            batch = storage.pages.batch(NUMBERS, backend.reserve(len(NUMBERS), after=-1))
            buffers = storage.of(NUMBERS)
            transfer = backend.put(batch, buffers, deadline_s=math.inf)
            fired = await cancel_at(getattr(transfer, wait)(), at)
            transfer.abandon()
            await transfer.drained()
            buffers[:] = storage.canary  # too late to be written
            statuses, _, found = await storage.get(backend, batch)
            landed = transfer.statuses == Status.LANDED
            assert ((statuses == Status.LANDED) == landed).all()
            assert not storage.wrong(NUMBERS, statuses, found)
            backend.release(batch["frame"])
            assert backend.usage.used_frames == 0
            if not fired:
                break
        assert at

    storage.run(scenario)


def test_an_opening_cancelled_in_any_wait_leaves_nothing_open(storage, open_files):
    batches = []

    async def first_life(backend):
        batches.append(await storage.put(backend, NUMBERS))

    async def later_life(backend):
        statuses, _, buffers = await storage.get(backend, batches[0])
        assert (statuses == Status.LANDED).all()
        assert not storage.wrong(NUMBERS, statuses, buffers)

    async def open_and_close(at):
        opening = Cancelled(storage.open(), at)
        try:
            backend = await opening
        except asyncio.CancelledError:
            return True
        await backend.close()
        return False

    storage.run(first_life)
    before, at = open_files(), 0
    while asyncio.run(open_and_close(at)):
        assert open_files() == before
        storage.run(later_life)
        at += 1
    assert open_files() == before


def test_a_close_cancelled_in_any_wait_can_be_called_again_and_lets_go_of_all(storage, open_files):
    async def scenario(at):
        backend = await storage.open()
        backend.release(backend.entries().frames)
        batch = await storage.put(backend, NUMBERS)
        buffers = storage.canaries(len(NUMBERS))
        getting = backend.get(batch, buffers, deadline_s=math.inf)
        putting = backend.put(
            storage.pages.batch([50, 51], backend.reserve(2, after=-1)),
            storage.of([50, 51]),
            deadline_s=math.inf,
        )
        fired = await cancel_at(backend.close(), at)
        await backend.close()
        for transfer in (getting, putting):
            await transfer.drained()
            assert transfer.statuses.all()
        assert not storage.wrong(NUMBERS, getting.statuses, buffers)
        return fired

    before, at = open_files(), 0
    while asyncio.run(scenario(at)):
        assert open_files() == before
        at += 1
    assert open_files() == before


@pytest.mark.timeout(60)
def test_a_buffer_that_is_reused_after_every_cancel_never_changes_behind_its_user(storage, request):
    """Gets and puts, cancelled in their first waits, abandoned or late; then the buffer's bytes are
    its user's, as long as it takes the other buffers of the ring to be used.
    """
    reuses = REUSES.get(request.node.callspec.params["storage_of"], REUSES_OF_OTHERS)
    chance = np.random.default_rng(11)

    async def scenario(backend):
        stored = await storage.put(backend, NUMBERS)
        ring = [storage.canaries(3) for _ in range(RING)]
        landed = 0
        for turn in range(reuses):
            buffers = ring[turn % RING]
            assert (buffers == storage.canary).all(), f"somebody wrote to a buffer of turn {turn}"
            numbers = chance.choice(len(NUMBERS), 3, replace=False).tolist()
            puts, is_short = turn % 8 == 7, turn % 5 == 4
            deadline_s = asyncio.get_running_loop().time() + 5e-5 if is_short else math.inf
            if puts:
                storage.pages.fill(buffers, numbers)
                batch = storage.pages.batch(numbers, backend.reserve(3, after=-1))
                transfer = backend.put(batch, buffers, deadline_s=deadline_s)
            else:
                batch = stored[numbers]
                batch["slot"] = [0, 1, 2]
                transfer = backend.get(batch, buffers, deadline_s=deadline_s)
            await cancel_at(getattr(transfer, WAITS[turn % 3])(), turn // 3 % 3)
            if turn % 2:
                transfer.abandon()
            await transfer.drained()
            landed += int((transfer.statuses == Status.LANDED).sum())
            assert not storage.wrong(numbers, transfer.statuses, buffers)
            buffers[:] = storage.canary
            if puts:
                statuses, _, found = await storage.get(backend, batch)
                assert ((statuses == Status.LANDED) == (transfer.statuses == Status.LANDED)).all()
                assert not storage.wrong(numbers, statuses, found)
                backend.release(batch["frame"])
        assert landed > reuses // 10  # of three a turn

    storage.run(scenario)
