# SPDX-License-Identifier: Apache-2.0
"""One fault at the n-th page or system call, for all n: it costs a page, never a byte."""

import asyncio
import errno
import fcntl
import itertools
import math
import os
import threading

import numpy as np
import pytest

from bodocache.errors import TierFull
from bodocache.io.backend import Durability, Status
from bodocache.pages import Reason
from bodocache.testing import Fault, FaultyBackend, Operation

NUMBERS = [1, 2, 3, 4, 5]
WHOLE = [Status.LANDED] * 5
MOST_CALLS = 200  # of one transfer of five pages, one byte of one call missing


def without(n):
    """The statuses of NUMBERS if page ``n`` failed."""
    return [Status.FAILED if i == n else Status.LANDED for i in range(5)]


def test_the_nth_page_that_a_put_cannot_write_is_the_only_one_not_found(storage):
    async def scenario(backend):
        for n in itertools.count():
            faulty = FaultyBackend(backend, [Fault.once(Operation.PUT, n)])
            batch = storage.pages.batch(NUMBERS, faulty.reserve(5, after=-1))
            transfer = faulty.put(batch, storage.of(NUMBERS), deadline_s=math.inf)
            await transfer.drained()
            statuses, _, found = await storage.get(backend, batch)
            assert not storage.wrong(NUMBERS, statuses, found)
            assert backend.usage.used_frames == 5  # a failed page's frame too, until its release
            backend.release(batch["frame"])
            if not faulty.fired:
                assert transfer.statuses.tolist() == WHOLE
                break
            assert transfer.statuses.tolist() == without(n)
            assert ((statuses == Status.LANDED) == (transfer.statuses == Status.LANDED)).all()
        assert n == 5

    storage.run(scenario)


def test_the_nth_page_that_a_get_cannot_read_is_the_only_one_that_fails(storage):
    async def scenario(backend):
        batch = await storage.put(backend, NUMBERS)
        for n in itertools.count():
            faulty = FaultyBackend(backend, [Fault.once(Operation.GET, n)])
            statuses, reasons, found = await storage.get(faulty, batch)
            assert not storage.wrong(NUMBERS, statuses, found)
            if not faulty.fired:
                assert statuses.tolist() == WHOLE
                break
            assert statuses.tolist() == without(n)
            assert reasons[n] == Reason.IO_ERROR
            assert (found[n] == storage.canary).all()
        assert n == 5

    storage.run(scenario)


def test_the_nth_reservation_that_finds_it_full_takes_nothing(storage):
    async def scenario(backend):
        for n in range(3):
            faulty = FaultyBackend(backend, [Fault.once(Operation.RESERVE, n)])
            given = [faulty.reserve(2, after=-1) for _ in range(n)]
            with pytest.raises(TierFull):
                faulty.reserve(2, after=-1)
            assert backend.usage.used_frames == 2 * n
            for frames in given:
                faulty.release(frames)
        assert backend.usage.used_frames == 0

    storage.run(scenario)


def fails_with(error):
    def fault(real, *arguments):
        raise OSError(error, os.strerror(error))

    return fault


def moves(share):
    """Move but a part of the bytes: ``share(nbytes)``."""

    def fault(real, fd, buffers, offset):
        left, kept = share(sum(buffer.nbytes for buffer in buffers)), []
        for buffer in buffers:
            kept.append(buffer[: max(0, min(left, buffer.nbytes))])
            left -= buffer.nbytes
        # Through the page cache: O_DIRECT would refuse what is no whole block.
        flags = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        plain = os.open(f"/proc/self/fd/{fd}", flags)
        try:
            return real(plain, kept, offset)
        finally:
            os.close(plain)

    return fault


HARMLESS = {
    "EINTR": fails_with(errno.EINTR),
    "1 byte": moves(lambda _: 1),
    "half": moves(lambda nbytes: nbytes // 2),
    "all but 1 byte": moves(lambda nbytes: nbytes - 1),
}
ERRORS = {name: fails_with(getattr(errno, name)) for name in ("EIO", "ENOSPC", "EMFILE")}
NOTHING = {"0 bytes": moves(lambda _: 0)}


class NthCall:
    """A system call that meets a fault when it is made for the n-th time."""

    def __init__(self, fake, name):
        self._real, self._turns, self._n = getattr(os, name), itertools.count(), -1
        self.fault, self.fired = None, False
        fake(name, self)

    def arm(self, n, fault):
        self._turns, self._n, self.fault, self.fired = itertools.count(), n, fault, False

    def disarm(self):
        self._n = -1

    def __call__(self, *arguments):
        if next(self._turns) != self._n:
            return self._real(*arguments)
        self.fired = True
        return self.fault(self._real, *arguments)


async def five_in_three_extents(storage, backend):
    """Frames of which no more than two are adjacent, and none so near that holes are read."""
    frames, kept = backend.reserve(12, after=-1), [0, 1, 5, 6, 10]
    backend.release(np.delete(frames, kept))
    return storage.pages.batch(NUMBERS, frames[kept])


def sweep(call, faults):
    """Every fault at the n-th call, until a run meets none."""
    for name, fault in faults.items():
        for n in range(MOST_CALLS):
            call.arm(n, fault)
            yield name
            if not call.fired:
                break
        else:
            pytest.fail(f"{name}: {MOST_CALLS} calls and no end")
        if not n:
            pytest.skip("makes no such call")


def test_any_fault_at_the_nth_read_costs_pages_never_bytes(storage, fake, caplog):
    async def scenario(backend):
        batch = await five_in_three_extents(storage, backend)
        call = NthCall(fake, "preadv")
        for name in sweep(call, HARMLESS | ERRORS | NOTHING):
            again = backend.put(batch, storage.of(NUMBERS), deadline_s=math.inf)
            await again.drained()  # a page that was read short is a miss until it is stored anew
            assert again.statuses.tolist() == WHOLE
            statuses, reasons, found = await storage.get(backend, batch)
            assert not storage.wrong(NUMBERS, statuses, found), name
            if name in HARMLESS or not call.fired:
                assert statuses.tolist() == WHOLE, name
            elif name in ERRORS:  # an extent is read again, page by page
                assert set(statuses.tolist()) <= {Status.LANDED, Status.FAILED}, name
                assert set(reasons[statuses == Status.FAILED].tolist()) <= {Reason.IO_ERROR}
            else:
                assert Status.LANDED in statuses
                assert reasons[statuses == Status.MISS].tolist() in (
                    [Reason.TRUNCATED],
                    [Reason.TRUNCATED] * 2,
                ), name
            call.disarm()
            statuses, _, found = await storage.get(backend, batch)  # errors may pass
            assert not storage.wrong(NUMBERS, statuses, found), name
            if name not in NOTHING:
                assert statuses.tolist() == WHOLE, name

    storage.run(scenario)


@pytest.mark.parametrize("durability", Durability)
def test_any_fault_at_the_nth_write_costs_pages_never_bytes(storage, fake, durability, caplog):
    kept = []

    async def scenario(backend):
        call, batch = NthCall(fake, "pwritev"), None
        for name in sweep(call, HARMLESS | ERRORS | NOTHING):
            if batch is not None:
                backend.release(batch["frame"])
            batch = await five_in_three_extents(storage, backend)
            transfer = backend.put(
                batch, storage.of(NUMBERS), deadline_s=math.inf, durability=durability
            )
            await transfer.drained()
            call.disarm()
            statuses, _, found = await storage.get(backend, batch)
            assert not storage.wrong(NUMBERS, statuses, found), name
            landed = transfer.statuses == Status.LANDED
            assert ((statuses == Status.LANDED) == landed).all(), name
            if name in HARMLESS or not call.fired:
                assert landed.all(), name
            else:
                assert not landed.all(), name
                assert landed.any(), name
                assert (transfer.statuses[~landed] == Status.FAILED).all(), name
                assert len(backend.entries().keys) == landed.sum(), name
        kept.append((batch, landed))

    async def later_life(backend):
        batch, landed = kept[0]
        statuses, _, found = await storage.get(backend, batch)
        assert not storage.wrong(NUMBERS, statuses, found)
        assert (statuses[landed] == Status.LANDED).all()

    storage.run(scenario)
    storage.run(later_life)


def test_an_error_at_the_nth_sync_fails_what_it_should_have_made_durable(storage, fake, caplog):
    async def scenario(backend):
        call = NthCall(fake, "fdatasync")
        for name in sweep(call, ERRORS):
            batch = await five_in_three_extents(storage, backend)
            transfer = backend.put(
                batch, storage.of(NUMBERS), deadline_s=math.inf, durability=Durability.SYNC
            )
            await transfer.drained()
            statuses, _, found = await storage.get(backend, batch)
            assert not storage.wrong(NUMBERS, statuses, found), name
            wanted = Status.FAILED if call.fired else Status.LANDED
            assert transfer.statuses.tolist() == [wanted] * 5, name
            assert ((statuses == Status.LANDED) == (wanted == Status.LANDED)).all(), name
            backend.release(batch["frame"])

    storage.run(scenario)


class SyncGate:
    """An fdatasync that waits until it is let go."""

    def __init__(self, fake):
        self._real = os.fdatasync
        self._entered, self._opened = threading.Event(), threading.Event()
        fake("fdatasync", self)

    def __call__(self, fd):
        self._entered.set()
        assert self._opened.wait(10)
        self._real(fd)

    async def wait(self, transfer):
        """Until ``transfer`` syncs; skips where it ends without."""
        draining = asyncio.ensure_future(transfer.drained())
        entering = asyncio.ensure_future(asyncio.to_thread(self._entered.wait, 10))
        await asyncio.wait({draining, entering}, return_when=asyncio.FIRST_COMPLETED)
        if not self._entered.is_set():
            self._entered.set()  # lets the thread go
            pytest.skip("makes no such call")
        await entering

    def open(self):
        self._opened.set()


@pytest.fixture
def sync_gate(fake):
    gate = SyncGate(fake)
    yield gate
    gate.open()


def put_durably(storage, backend, numbers):
    batch = storage.pages.batch(numbers, backend.reserve(len(numbers), after=-1))
    return batch, backend.put(
        batch, storage.of(numbers), deadline_s=math.inf, durability=Durability.SYNC
    )


def test_a_durable_put_is_not_acknowledged_before_its_sync_has_returned(storage, sync_gate):
    async def scenario(backend):
        _, transfer = put_durably(storage, backend, NUMBERS)
        try:
            await sync_gate.wait(transfer)
            assert transfer.statuses.tolist() == [Status.PENDING] * 5
            assert not len(backend.entries().keys)
        finally:
            sync_gate.open()
        await transfer.drained()
        assert transfer.statuses.tolist() == WHOLE

    storage.run(scenario)


def test_a_frame_released_while_its_page_is_made_durable_holds_no_page(storage, sync_gate):
    async def scenario(backend):
        batch, transfer = put_durably(storage, backend, NUMBERS)
        try:
            await sync_gate.wait(transfer)
            backend.release(batch["frame"])
        finally:
            sync_gate.open()
        await transfer.drained()
        assert not len(backend.entries().keys)
        assert backend.usage.used_frames == 0
        assert (await storage.get(backend, batch))[0].tolist() == [Status.MISS] * 5

    storage.run(scenario)


def test_a_frame_released_while_its_page_is_made_durable_may_hold_the_next_page(storage, sync_gate):
    async def scenario(backend):
        rest = backend.reserve(backend.usage.total_frames - 2, after=-1)
        old, transfer = put_durably(storage, backend, [1, 2])
        try:
            await sync_gate.wait(transfer)
            backend.release(old["frame"])
            backend.release(rest[:2])
            others = list(range(11, 11 + backend.usage.free_frames))
            putting = asyncio.ensure_future(storage.put(backend, others))
            await asyncio.wait({putting}, timeout=0.5)  # some write behind the sync
        finally:
            sync_gate.open()
        await transfer.drained()
        new = await putting
        assert (await storage.get(backend, old))[0].tolist() == [Status.MISS] * 2
        statuses, _, found = await storage.get(backend, new)
        assert statuses.tolist() == [Status.LANDED] * len(others)
        assert not storage.wrong(others, statuses, found)
        assert len(backend.entries().keys) == len(others) >= 2

    storage.run(scenario)
