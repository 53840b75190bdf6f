# SPDX-License-Identifier: Apache-2.0
"""Storage that gives other bytes than it was given: every such page is a miss with its reason."""

import math

import numpy as np
import pytest

from bodocache.io.backend import Status
from bodocache.pages import Reason

NUMBERS = [1, 2, 3, 4, 5, 6]
LANDED = Reason.NONE


@pytest.fixture
def stored(storage):
    """The batch of NUMBERS, in a storage that is closed."""
    if storage.frames is None:
        pytest.skip("nobody else can reach its frames")
    batches = []

    async def scenario(backend):
        batches.append(await storage.put(backend, NUMBERS))

    storage.run(scenario)
    return batches[0]


def reasons_after(storage, batch):
    """Reasons of a get in a new life, every byte compared; 0 for what landed."""
    found = []

    async def scenario(backend):
        statuses, reasons, buffers = await storage.get(backend, batch)
        assert not storage.wrong(NUMBERS, statuses, buffers)
        assert ((statuses == Status.LANDED) == (reasons == LANDED)).all()
        found.extend(reasons.tolist())

    storage.run(scenario)
    return found


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_corrupted_page_is_a_miss_and_its_neighbours_land(storage, stored, place):
    at = {"first": 0, "middle": storage.pages.page_nbytes // 2, "last": -1}[place]
    at %= storage.pages.page_nbytes
    frame = int(stored["frame"][2])
    byte = storage.frames.read(frame, storage.pages.page_nbytes)[at]
    storage.frames.write(frame, bytes([byte ^ 0x10]), at=at)
    assert reasons_after(storage, stored) == [0, 0, Reason.CORRUPT, 0, 0, 0]


def test_a_page_corrupted_while_the_storage_is_open_is_a_miss(storage, stored):
    async def scenario(backend):
        storage.frames.write(int(stored["frame"][5]), b"damage", at=100)
        for _ in range(2):  # and stays one
            statuses, reasons, buffers = await storage.get(backend, stored)
            assert statuses.tolist() == [Status.LANDED] * 5 + [Status.MISS]
            assert reasons[5] == Reason.CORRUPT
            assert not storage.wrong(NUMBERS, statuses, buffers)

    storage.run(scenario)


def test_a_lost_page_of_zeros_is_a_miss(storage, stored):
    storage.frames.write(int(stored["frame"][1]), bytes(storage.pages.page_nbytes))
    assert reasons_after(storage, stored) == [0, Reason.CORRUPT, 0, 0, 0, 0]


def test_swapped_pages_are_misses(storage, stored):
    a, b = (int(frame) for frame in stored["frame"][[1, 4]])
    nbytes = storage.pages.page_nbytes
    at_a, at_b = storage.frames.read(a, nbytes), storage.frames.read(b, nbytes)
    storage.frames.write(a, at_b)
    storage.frames.write(b, at_a)
    reasons = reasons_after(storage, stored)
    assert [reasons[i] for i in (0, 2, 3, 5)] == [LANDED] * 4
    assert {reasons[1], reasons[4]} <= {Reason.FOREIGN, Reason.CORRUPT}  # who can tell, does


def test_a_frame_that_answers_with_another_page_and_its_digest_is_a_miss(storage, stored):
    """The digest of another page fits that page's bytes: only its seed says that it is another."""
    a, b = (int(frame) for frame in stored["frame"][[0, 3]])
    storage.frames.pass_off(a, b, storage.pages.page_nbytes)
    reasons = reasons_after(storage, stored)
    assert reasons[0] in {Reason.CORRUPT, Reason.FOREIGN}
    assert reasons[1:] == [LANDED] * 5


def test_pages_behind_the_end_of_what_was_truncated_are_misses(storage, stored):
    storage.frames.truncate(int(stored["frame"][3]))
    assert reasons_after(storage, stored) == [0, 0, 0] + [Reason.TRUNCATED] * 3


def test_a_page_cut_off_in_use_is_a_miss_even_if_its_buffer_holds_its_bytes(storage, stored):
    """Whoever checks a buffer without counting what was read finds the bytes of the last time."""

    async def scenario(backend):
        buffers = storage.of(NUMBERS)
        storage.frames.truncate(int(stored["frame"][3]))
        transfer = backend.get(stored, buffers, deadline_s=math.inf)
        await transfer.drained()
        assert transfer.statuses.tolist() == [Status.LANDED] * 3 + [Status.MISS] * 3
        assert transfer.reasons[3:].tolist() == [Reason.TRUNCATED] * 3

    storage.run(scenario)


def test_a_missing_a_foreign_and_a_corrupted_page_of_one_batch_have_each_their_reason(
    storage, stored
):
    storage.frames.write(int(stored["frame"][1]), b"damage")

    async def scenario(backend):
        asked = stored.copy()
        asked["key"][[0, 2]] = storage.pages.key(99), storage.pages.key(98)
        asked["frame"][0] = -1
        statuses, reasons, buffers = await storage.get(backend, asked)
        assert reasons.tolist() == [Reason.NEVER_STORED, Reason.CORRUPT, Reason.FOREIGN, 0, 0, 0]
        assert np.flatnonzero(statuses == Status.LANDED).tolist() == [3, 4, 5]
        assert not storage.wrong(NUMBERS, statuses, buffers)
        assert (buffers[[0, 2]] == storage.canary).all()

    storage.run(scenario)
