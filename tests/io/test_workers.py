# SPDX-License-Identifier: Apache-2.0
import asyncio
import math
import os
import threading
import time

import numpy as np

from bodocache.clock import RealClock
from bodocache.io.backend import Status
from bodocache.io.table import WRITE_PATIENCE_S
from bodocache.io.transfer import BatchTransfer, Outcome
from bodocache.io.workers import TABLE_ENTRIES, WorkerPool


class Piece:
    """A request of one page that notes when it was run, after ``gate``."""

    job = 0

    def __init__(self, transfer, position, name, log, *, writes=False, gate=None):
        self.transfer = transfer
        self.positions = np.array([position])
        self.writes = writes
        self._name, self._log, self._gate = name, log, gate

    def run(self):
        self._log.append(self._name)
        if self._gate is not None:
            assert self._gate.wait(10)
        return Outcome.all(1, Status.LANDED)

    def settle(self, outcome):
        self.transfer.finish(self.positions, outcome)


def with_pool(count, scenario):
    async def whole():
        pool = WorkerPool(count, RealClock(), asyncio.get_running_loop())
        try:
            await scenario(pool)
        finally:
            pool.stop()
            await asyncio.to_thread(pool.join)
            pool.close()

    asyncio.run(whole())


def transfer_of(pool, pages, deadline_s=math.inf):
    return BatchTransfer(pages, deadline_s, RealClock(), pool)


async def until_begun(log):
    """Wait until a worker has begun something."""
    deadline_s = time.monotonic() + 10
    while not log and time.monotonic() < deadline_s:
        await asyncio.to_thread(time.sleep, 0)


def test_reads_go_before_writes_and_each_by_deadline():
    async def scenario(pool):
        log, gate = [], threading.Event()
        blocker = transfer_of(pool, 1)
        blocker.submit([Piece(blocker, 0, "blocker", log, gate=gate)])
        await until_begun(log)
        now_s = RealClock().now_s()
        transfers = []
        for name, writes, deadline_s in [
            ("write", True, now_s + 50),
            ("lazy read", False, math.inf),
            ("urgent read", False, now_s + 90),
        ]:
            transfers.append(transfer_of(pool, 1, deadline_s))
            transfers[-1].submit([Piece(transfers[-1], 0, name, log, writes=writes)])
        gate.set()
        for transfer in transfers:
            await transfer.drained()
        assert log == ["blocker", "urgent read", "lazy read", "write"]

    with_pool(1, scenario)


def test_a_read_finds_a_thread_however_many_writes_there_are():
    async def scenario(pool):
        log, gate = [], threading.Event()
        writing = transfer_of(pool, 9)
        pieces = [Piece(writing, i, "write", log, writes=True, gate=gate) for i in range(9)]
        writing.submit(pieces)
        reading = transfer_of(pool, 1)
        reading.submit([Piece(reading, 0, "read", log)])
        await reading.finished()
        assert log.count("write") <= 2  # half of the threads
        gate.set()
        await writing.finished()

    with_pool(4, scenario)


def test_a_read_that_hangs_starves_no_write():
    async def scenario(pool):
        log, gate = [], threading.Event()
        slow, writing = transfer_of(pool, 1), transfer_of(pool, 1)
        slow.submit([Piece(slow, 0, "read", log, gate=gate)])
        await until_begun(log)
        since_s = time.monotonic()
        writing.submit([Piece(writing, 0, "write", log, writes=True)])
        await writing.finished()
        assert time.monotonic() - since_s >= WRITE_PATIENCE_S
        gate.set()
        await slow.drained()

    with_pool(4, scenario)


def test_a_read_that_comes_beside_an_old_write_finds_a_thread_of_its_own():
    async def scenario(pool):
        log, gate = [], threading.Event()
        slow, writing, reading = (transfer_of(pool, 1) for _ in range(3))
        slow.submit([Piece(slow, 0, "slow", log, gate=gate)])
        await until_begun(log)
        writing.submit([Piece(writing, 0, "write", log, writes=True, gate=gate)])
        time.sleep(1.5 * WRITE_PATIENCE_S)  # noqa: ASYNC251 -- the loop does not look meanwhile
        reading.submit([Piece(reading, 0, "read", log)])
        await asyncio.wait_for(reading.finished(), 5)
        gate.set()
        for transfer in (slow, writing):
            await transfer.drained()

    with_pool(4, scenario)


def test_many_reads_starve_no_write():
    async def scenario(pool):
        log, writing = [], transfer_of(pool, 1)
        reading = []

        def read_on():  # more reads wait than there are threads, at any time
            reading.append(transfer_of(pool, 900))
            reading[-1].submit([Piece(reading[-1], i, "read", log) for i in range(900)])

        read_on()
        writing.submit([Piece(writing, 0, "write", log, writes=True)])
        while not writing.is_final:
            if reading[-1].statuses.all():
                read_on()
            await asyncio.sleep(0)
        assert log.count("read") < 30_000
        for transfer in reading:
            await transfer.drained()

    with_pool(2, scenario)


def test_old_writes_and_reads_take_turns():
    async def scenario(pool):
        log, reading, writing = [], transfer_of(pool, 9), transfer_of(pool, 9)
        with pool.hold_writes():
            writing.submit([Piece(writing, i, "write", log, writes=True) for i in range(9)])
            await asyncio.sleep(2 * WRITE_PATIENCE_S)
            gate, blocker = threading.Event(), transfer_of(pool, 1)
            blocker.submit([Piece(blocker, 0, "blocker", log, gate=gate)])
            await until_begun(log)
            reading.submit([Piece(reading, i, "read", log) for i in range(9)])
        gate.set()
        for transfer in (blocker, reading, writing):
            await transfer.drained()
        assert log[1:] == ["write", "read"] * 9

    with_pool(1, scenario)


def test_what_waits_behind_a_table_that_is_withdrawn_comes_in():
    async def scenario(pool):
        first, second = transfer_of(pool, 600), transfer_of(pool, 600)
        with pool.hold_writes(), pool.hold_writes():
            with pool.hold_writes():
                for transfer in (first, second):
                    pieces = [Piece(transfer, i, i, [], writes=True) for i in range(600)]
                    transfer.submit(pieces)
            first.abandon()
            await asyncio.sleep(2 * WRITE_PATIENCE_S)
            assert not second.statuses.any()  # an inner hold that ended is no end of the outer
        await second.drained()
        assert second.statuses.tolist() == [Status.LANDED] * 600

    with_pool(2, scenario)


def test_more_requests_than_the_table_takes_wait_behind_it():
    async def scenario(pool):
        log, gate = [], threading.Event()
        many, urgent = transfer_of(pool, 3000), transfer_of(pool, 1, RealClock().now_s() + 60)
        many.submit([Piece(many, i, i, log, gate=gate) for i in range(3000)])
        await until_begun(log)
        urgent.submit([Piece(urgent, 0, "urgent", log)])
        gate.set()
        await urgent.finished()
        assert log.index("urgent") < TABLE_ENTRIES[0] + 100  # not behind what is not in the table
        many.abandon()
        await many.drained()
        statuses = many.statuses.tolist()
        assert statuses.count(Status.LANDED) + statuses.count(Status.LATE) == 3000
        assert len(log) == statuses.count(Status.LANDED) + 1

    with_pool(1, scenario)  # with two, one may sleep between taking and logging


def test_a_write_begins_when_the_last_read_has_ended():
    async def scenario(pool):
        log, gate = [], threading.Event()
        slow, writing = transfer_of(pool, 1), transfer_of(pool, 1)
        slow.submit([Piece(slow, 0, "read", log, gate=gate)])
        await until_begun(log)
        writing.submit([Piece(writing, 0, "write", log, writes=True)])
        await asyncio.sleep(0.02)
        assert log == ["read"]
        gate.set()
        await writing.finished()

    with_pool(4, scenario)


def test_pages_that_end_while_the_loop_is_busy_wake_it_once():
    async def scenario(pool):
        log, wakes = [], []
        settle = pool.settle
        loop = asyncio.get_running_loop()
        loop.add_reader(pool._table.event_fd, lambda: (wakes.append(1), settle()))
        transfer = transfer_of(pool, 300)
        transfer.submit([Piece(transfer, i, "read", log) for i in range(300)])
        while pool._table.done < 300:  # the loop is busy for as long
            time.sleep(0)  # noqa: ASYNC251 -- the loop must be busy
        assert os.eventfd_read(pool._table.event_fd) == 1  # written once, for all of them
        os.eventfd_write(pool._table.event_fd, 1)
        await transfer.finished()
        assert len(wakes) == 1

    with_pool(4, scenario)


def test_every_waiter_hears_of_the_end():
    async def scenario(pool):
        gate = threading.Event()
        transfer = transfer_of(pool, 1)
        transfer.submit([Piece(transfer, 0, "read", [], gate=gate)])
        waits = [transfer.finished(), transfer.finished(), transfer.drained(), transfer.progress()]
        waiting = asyncio.gather(*waits)
        await asyncio.sleep(0)
        gate.set()
        assert (await waiting)[-1] is False

    with_pool(2, scenario)


def test_a_withdrawn_request_is_never_run():
    async def scenario(pool):
        log, gate = [], threading.Event()
        transfer = transfer_of(pool, 5)
        transfer.submit([Piece(transfer, i, i, log, gate=gate) for i in range(5)])
        await until_begun(log)
        transfer.abandon()
        gate.set()
        await transfer.drained()
        assert log == [0]
        assert transfer.statuses.tolist() == [Status.LANDED] + [Status.LATE] * 4

    with_pool(1, scenario)
