# SPDX-License-Identifier: Apache-2.0
"""GDS over a stand-in of cuFile: what is batched, registered, opened, forked."""

import asyncio
import itertools
import math
import os
import warnings
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bodocache import jit
from bodocache.clock import RealClock
from bodocache.digest import digest_rows
from bodocache.errors import (
    BackendError,
    BackendLocked,
    BackendUnavailable,
    ConfigError,
    LayoutError,
)
from bodocache.io.backend import Status
from bodocache.io.config import Access, OpenMode
from bodocache.io.gds import queue as gds_queue
from bodocache.io.gds.backend import GdsBackend
from bodocache.io.gds.cufile import BATCH_LIMIT, MAX_REQUEST_NBYTES
from bodocache.io.gds.operations import merge_adjacent
from bodocache.io.reservations import Reservations
from bodocache.io.slab import SlabBackend
from bodocache.pages import Reason
from bodocache.testing import OpFault, Trouble

jit.warm()  # here, not in a test: a cold compile is not part of any test's time

PAGE_NBYTES = 8192
CANARY = 0xA5
ENDS_BADLY = [Trouble.FAILED, Trouble.TIMEOUT, Trouble.CANCELED, Trouble.INVALID]


async def until(condition):
    while not condition():  # noqa: ASYNC110 -- a stand-in's thread makes it true
        await asyncio.sleep(0.001)


def test_a_slab_reads_what_gds_wrote_and_the_other_way_round(rig):
    written = rig.stored(4)

    async def slab_scenario(backend):
        assert (await rig.get(backend, written))[0] == [Status.LANDED] * 4
        return (await rig.put(backend, [4, 5]))[0]

    by_slab = rig.slab(slab_scenario)
    by_slab["depth"] = [4, 5]

    async def scenario(backend):
        assert (await rig.get(backend, np.concatenate([written, by_slab])[[4, 5]]))[0] == [
            Status.LANDED
        ] * 2
        assert len(backend.entries().keys) == 6

    rig.run(scenario)


def test_what_is_adjacent_in_file_and_memory_is_one_operation(rig):
    batch = rig.stored(8)
    assert rig.operations() == [[8]]

    async def scenario(backend):
        shuffled = batch.copy()
        shuffled["slot"] = [2, 3, 4, 0, 1, 7, 6, 5]
        assert (await rig.get(backend, shuffled))[0] == [Status.LANDED] * 8

    rig.run(scenario)
    assert sorted(itertools.chain(*rig.operations())) == [1, 1, 1, 2, 3]


def test_no_batch_has_more_operations_than_cufile_takes(rig_of):
    rig = rig_of(frames=300, page_nbytes=4096)
    batch = rig.stored(300)

    async def scenario(backend):
        backwards = batch.copy()
        backwards["slot"] = np.arange(300)[::-1]
        assert (await rig.get(backend, backwards))[0] == [Status.LANDED] * 300

    rig.run(scenario)
    assert [len(operations) for operations in rig.operations()] == [128, 128, 44]
    assert BATCH_LIMIT == 128


def test_no_operation_is_larger_than_cufile_takes(rig_of):
    rig = rig_of(frames=20, page_nbytes=1 << 20, chunk_nbytes=1 << 30)
    batch = rig.stored(20)

    async def scenario(backend):
        assert (await rig.get(backend, batch))[0] == [Status.LANDED] * 20

    rig.run(scenario)
    sizes = sorted(int(row["nbytes"]) for batch in rig.fake.submitted for row in batch)
    assert sizes == [4 << 20, MAX_REQUEST_NBYTES]


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), unique=True), st.integers(1, 5))
def test_a_merge_keeps_each_page_once_and_cuts_no_more_than_it_must(pairs, limit):
    frames, slots = (np.array([pair[i] for pair in pairs], np.int64) for i in range(2))
    order, bounds = merge_adjacent(frames, slots, limit=limit)
    assert sorted(order.tolist()) == list(range(len(pairs)))
    assert (np.diff(frames[order]) >= 0).all()
    parts = [order[first:end] for first, end in itertools.pairwise(bounds.tolist())]
    for part in parts:
        assert 1 <= len(part) <= limit
        assert (np.diff(frames[part]) == 1).all()
        assert (np.diff(slots[part]) == 1).all()
    for part, behind in itertools.pairwise(parts):
        joins = (
            frames[behind[0]] == frames[part[-1]] + 1 and slots[behind[0]] == slots[part[-1]] + 1
        )
        assert not joins or len(part) == limit


def test_buffers_are_registered_once_and_until_close(rig):
    batch = rig.stored(4)

    async def scenario(backend):
        buffers = rig.canaries(4)
        for part in (batch, batch[:2], batch[2:]):
            await backend.get(part, buffers, deadline_s=math.inf).drained()
        lower = batch[:1].copy()
        await backend.get(lower, buffers[1:3], deadline_s=math.inf).drained()
        assert (buffers[1] == rig.pages.payload(0)).all()
        assert len(rig.fake.registered) == 1
        with pytest.raises(LayoutError, match="registered until close"):
            backend.get(lower, overlapping(buffers), deadline_s=math.inf)

    rig.run(scenario)
    assert not rig.fake.registered


def overlapping(buffers):
    """Rows that begin inside ``buffers`` and end behind them."""
    return Device(buffers.ctypes.data + PAGE_NBYTES, len(buffers))


class Device:
    """Says of itself what a torch CUDA tensor says."""

    def __init__(self, address, rows, *, strides=None, typestr="|u1", read_only=False):
        self.__cuda_array_interface__ = {
            "shape": (rows, PAGE_NBYTES),
            "typestr": typestr,
            "strides": strides,
            "data": (address, read_only),
            "version": 3,
        }


def test_device_memory_is_told_by_its_array_interface(rig):
    batch = rig.stored(3)
    memory = rig.canaries(3)
    seen = []

    def digest(pages, rows):
        seen.append(type(pages))
        return digest_rows(memory, rows)

    async def scenario(backend):
        backend._digest = digest
        device = Device(memory.ctypes.data, 3)
        transfer = backend.get(batch, device, deadline_s=math.inf)
        await transfer.drained()
        assert transfer.statuses.tolist() == [Status.LANDED] * 3
        rig.check(batch, transfer, memory)
        for wrong in (
            Device(memory.ctypes.data, 3, strides=(2 * PAGE_NBYTES, 1)),
            Device(memory.ctypes.data, 3, typestr="<f4"),
            Device(memory.ctypes.data, 3, read_only=True),
            Device(memory.ctypes.data + 512, 2),
            "no memory at all",
        ):
            with pytest.raises(LayoutError):
                backend.get(batch, wrong, deadline_s=math.inf)

    rig.run(scenario)
    assert set(seen) == {Device}


def test_pages_that_are_no_whole_blocks_are_refused(rig):
    with pytest.raises(ConfigError, match="multiple of 4096"):
        replace(rig.config, slab=replace(rig.config.slab, page_nbytes=5008))


def test_a_page_whose_digest_is_another_is_corrupt_and_forgotten(rig):
    batch = rig.stored(4)

    async def scenario(backend):
        backend._digest = lambda pages, rows: digest_rows(pages, rows) + (rows == 2)[:, None]
        statuses, reasons = await rig.get(backend, batch)
        assert statuses == [Status.LANDED, Status.LANDED, Status.MISS, Status.LANDED]
        assert reasons[2] == Reason.CORRUPT
        backend._digest = digest_rows
        assert (await rig.get(backend, batch))[1][2] == Reason.CORRUPT

    rig.run(scenario)


async def order_of(rig, backend, batch):
    """Frames in the order they were submitted: reads of 1, 2, 3 with ever earlier deadlines, and a
    write before them, while page 0 keeps cuFile busy.
    """
    now_s = RealClock().now_s()
    frames = backend.reserve(1, after=-1)
    first = backend.get(batch[:1], rig.canaries(4), deadline_s=now_s + 900)
    await until(lambda: rig.fake.submitted)
    put = backend.put(rig.pages.batch([9], frames), rig.canaries(4), deadline_s=now_s + 100)
    gets = [
        backend.get(batch[i : i + 1], rig.canaries(4), deadline_s=now_s + 1000 / i)
        for i in (1, 2, 3)
    ]
    rig.fake.release()
    for transfer in (first, put, *gets):
        await transfer.drained()
    return [int(rows[0]["file_offset"]) // PAGE_NBYTES for rows in rig.fake.submitted]


@pytest.mark.parametrize(
    ("patience_s", "order"), [(math.inf, [0, 3, 2, 1, 4]), (0.0, [0, 4, 3, 2, 1])]
)
def test_the_earliest_deadline_goes_first_and_reads_before_writes_that_are_not_old(
    rig_of, monkeypatch, patience_s, order
):
    monkeypatch.setattr(gds_queue, "WRITE_PATIENCE_S", patience_s)
    rig = rig_of(queue_depth=1)
    batch = rig.stored(4)

    async def scenario(backend):
        assert await order_of(rig, backend, batch) == order

    rig.run(scenario, OpFault(Trouble.STUCK))


def test_backends_of_one_process_share_a_driver(rig_of):
    first, second = rig_of("a"), rig_of("b")
    second.fake = first.fake

    async def scenario():
        one, other = await first.open(), await second.open()
        await first.put(one, [1])
        await one.close()
        batch, _ = await second.put(other, [0])
        assert (await second.get(other, batch))[0] == [Status.LANDED]
        await other.close()

    asyncio.run(scenario())
    assert first.fake.violations + first.fake.leaks == []


def test_a_driver_that_somebody_else_opened_stays_open(rig):
    async def scenario():
        backend = await rig.open()
        await rig.put(backend, [1])
        await backend.close()

    rig.fake.driver_open()
    asyncio.run(scenario())
    rig.fake.driver_close()  # would raise if it were closed
    assert rig.fake.leaks == []
    assert [said.split(":")[0] for said in rig.fake.violations] == ["DRIVER_ALREADY_OPEN"]


def test_a_forked_child_is_refused_and_does_its_parent_no_harm(rig):
    async def scenario(backend):
        batch, _ = await rig.put(backend, [0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads and fork: our very point
            child = os.fork()
        if not child:
            told = 1
            try:
                backend.get(batch, rig.canaries(1), deadline_s=math.inf)
            except BackendError as error:
                told = 0 if "does not survive a fork" in str(error) else 2
            with suppress(StopIteration):
                backend.close().send(None)  # there is no loop of its own in the child
            os._exit(told)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert (await rig.get(backend, batch))[0] == [Status.LANDED]
        with pytest.raises(BackendLocked):
            await SlabBackend.open(rig.config.slab, clock=RealClock())

    rig.run(scenario)


def test_compat_needs_no_direct_file_and_anything_else_does(rig_of):
    rig = rig_of(access=Access.BUFFERED)

    async def scenario(backend):
        batch, _ = await rig.put(backend, [0, 1])
        assert (await rig.get(backend, batch))[0] == [Status.LANDED] * 2

    with pytest.raises(BackendError, match="no O_DIRECT"):
        rig.run(scenario)
    rig.run(scenario, compat=True)


def test_a_reader_reads_beside_the_writer(rig):
    batch = rig.stored(2)

    async def scenario(backend):
        assert (await rig.get(backend, batch))[0] == [Status.LANDED] * 2
        for write in (
            lambda: backend.reserve(1, after=-1),
            lambda: backend.release(batch["frame"]),
        ):
            with pytest.raises(BackendError, match="reading only"):
                write()

    rig.run(scenario, slab=replace(rig.config.slab, mode=OpenMode.READER))


def test_an_opening_says_that_it_never_ran_on_a_gpu(rig, caplog):
    rig.stored(1)
    assert caplog.text.count("never ran on a GPU") == 1


def test_without_a_device_an_opening_says_what_is_missing_and_makes_nothing(rig, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    async def scenario():
        await GdsBackend.open(rig.config, clock=RealClock(), digest=digest_rows)

    with pytest.raises(BackendUnavailable, match=r"no CUDA|no libcufile|no bindings"):
        asyncio.run(scenario())
    assert not rig.config.slab.directory.exists()


def test_a_put_that_could_not_begin_keeps_no_frame(rig, monkeypatch):
    def fail(*_):
        raise MemoryError

    async def scenario(backend):
        buffers = rig.pages.buffers(2)
        rig.pages.fill(buffers, [1, 2])
        batch = rig.pages.batch([1, 2], backend.reserve(2, after=-1))
        with monkeypatch.context() as patched:
            patched.setattr(Reservations, "next_generations", fail)
            with pytest.raises(MemoryError):
                backend.put(batch, buffers, deadline_s=math.inf)
        backend.release(batch["frame"])
        assert backend.usage.used_frames == 0

    rig.run(scenario)
