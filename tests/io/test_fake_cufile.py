# SPDX-License-Identifier: Apache-2.0
"""The stand-in of cuFile refuses what it should, and tells of what was not given back."""

import os

import numpy as np
import pytest

from bodocache.io.gds.cufile import DESCRIPTOR, EVENTS, PARAMS, TIMESPEC, OpStatus
from bodocache.testing import (
    CallFault,
    Code,
    CuFileError,
    FakeCuFile,
    NumberedPages,
    OpFault,
    Trouble,
)

BLOCK = 4096
BLOCKS = 8


class Caller:
    """A driver that is open, a file of 8 blocks, registered memory for as many, a batch of 4."""

    def __init__(self, folder, fake):
        path = folder / "file"
        path.write_bytes(bytes(range(256)) * (BLOCKS * BLOCK // 256))
        self.fake = fake
        self.fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.memory = NumberedPages(BLOCK).buffers(BLOCKS)
        self.memory[:] = 0xA5
        self.address = self.memory.ctypes.data
        fake.driver_open()
        self.handle = fake.handle_register(self.descriptor().ctypes.data)
        fake.buf_register(self.address, BLOCKS * BLOCK, 0)
        self.batch = fake.batch_io_set_up(4)

    def descriptor(self, **fields):
        row = np.zeros(1, DESCRIPTOR)
        row[0] = (1, self.fd, 0)
        for name, value in fields.items():
            row[name] = value
        self.kept = row
        return row

    def params(self, count=1, **fields):
        """Reads of the first blocks, one each."""
        rows = np.zeros(count, PARAMS)
        rows["mode"], rows["nbytes"] = 1, BLOCK
        rows["memory"], rows["handle"] = self.address, self.handle
        rows["file_offset"] = rows["memory_offset"] = np.arange(count) * BLOCK
        rows["cookie"] = np.arange(count) + 1
        for name, value in fields.items():
            rows[name] = value
        return rows

    def submit(self, rows, *, flags=0):
        self.fake.batch_io_submit(self.batch, len(rows), rows.ctypes.data, flags)

    def events(self, count, *, timeout_s=5.0):
        """What ended: cookie -> (status, result)."""
        room, events = np.array([4], np.uint32), np.zeros(4, EVENTS)
        timeout = np.zeros(1, TIMESPEC)
        timeout["seconds"], timeout["nanoseconds"] = timeout_s // 1, timeout_s % 1 * 1e9
        self.fake.batch_io_get_status(
            *(self.batch, count, room.ctypes.data, events.ctypes.data, timeout.ctypes.data)
        )
        return {
            int(e["cookie"]): (OpStatus(int(e["status"])), int(e["result"]))
            for e in events[: int(room[0])]
        }

    def close(self):
        if self.batch:
            self.fake.batch_io_destroy(self.batch)
        self.fake.buf_deregister(self.address)
        self.fake.handle_deregister(self.handle)
        self.fake.driver_close()
        os.close(self.fd)


@pytest.fixture
def caller_of(tmp_path):
    callers = []

    def make(*faults, **options):
        callers.append(Caller(tmp_path, FakeCuFile(faults, **options)))
        return callers[-1]

    yield make
    for caller in callers:
        caller.fake.faults.clear()
        caller.fake.release()
        caller.close()


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"mode": 0}, Code.INVALID_VALUE),
        ({"opcode": 2}, Code.INVALID_VALUE),
        ({"handle": 1}, Code.HANDLE_NOT_REGISTERED),
        ({"memory": 1 << 40}, Code.MEMORY_NOT_REGISTERED),
        ({"memory_offset": BLOCKS * BLOCK}, Code.INVALID_VALUE),
        ({"memory_offset": -BLOCK}, Code.INVALID_VALUE),
        ({"memory_offset": 512}, Code.INVALID_VALUE),
        ({"file_offset": 512}, Code.INVALID_VALUE),
        ({"file_offset": -BLOCK}, Code.INVALID_VALUE),
        ({"nbytes": 0}, Code.INVALID_VALUE),
        ({"nbytes": 100}, Code.INVALID_VALUE),
        ({"nbytes": (16 << 20) + BLOCK}, Code.INVALID_VALUE),
        ({"cookie": [3, 3]}, Code.INVALID_VALUE),
    ],
)
def test_an_operation_that_is_wrong_is_refused_with_all_of_its_batch(caller_of, fields, code):
    caller = caller_of()
    with pytest.raises(CuFileError) as refused:
        caller.submit(caller.params(2, **fields))
    assert refused.value.status == code
    assert caller.events(0, timeout_s=0) == {}
    assert len(caller.fake.violations) == 1
    assert (caller.memory == 0xA5).all()


def test_operations_move_their_bytes_and_end_in_no_order(caller_of):
    orders = set()
    for _ in range(8):
        caller = caller_of(seed=len(orders))
        caller.submit(caller.params(4))
        told = []
        while len(told) < 4:
            told += caller.events(1)
        orders.add(tuple(told))
        assert (caller.memory[:4].reshape(-1, 256) == np.arange(256)).all()
        assert (caller.memory[4:] == 0xA5).all()
        if len(orders) > 1:
            return
    raise AssertionError(f"always {orders}")


def test_a_cookie_in_flight_and_a_batch_that_is_full_are_refused(caller_of):
    caller = caller_of(OpFault(Trouble.STUCK))
    caller.submit(caller.params(3))
    with pytest.raises(CuFileError, match="BATCH_FULL"):
        caller.submit(caller.params(2, cookie=[8, 9]))
    with pytest.raises(CuFileError, match="cookie"):
        caller.submit(caller.params(1))
    caller.fake.release()
    assert len(caller.events(3)) == 3
    caller.submit(caller.params(1))
    assert caller.events(1) == {1: (OpStatus.COMPLETE, BLOCK)}


@pytest.mark.parametrize("nr", [0, 129])
def test_a_batch_of_no_or_too_many_operations_is_refused(caller_of, nr):
    with pytest.raises(CuFileError, match="INVALID_VALUE"):
        caller_of().fake.batch_io_set_up(nr)


def test_a_destroyed_batch_is_no_batch(caller_of):
    caller = caller_of()
    caller.fake.batch_io_destroy(caller.batch)
    with pytest.raises(CuFileError, match="INTERNAL_BATCH_SUBMIT_ERROR"):
        caller.submit(caller.params(1))
    with pytest.raises(CuFileError, match="INTERNAL_BATCH_GETSTATUS_ERROR"):
        caller.events(0)
    with pytest.raises(CuFileError, match="INTERNAL_BATCH_CANCEL_ERROR"):
        caller.fake.batch_io_cancel(caller.batch)
    caller.batch = 0


def test_what_is_taken_away_in_flight_is_told(caller_of):
    caller = caller_of(OpFault(Trouble.STUCK))
    caller.submit(caller.params(1))
    caller.fake.buf_deregister(caller.address)
    caller.fake.buf_register(caller.address, BLOCKS * BLOCK, 0)
    caller.fake.batch_io_destroy(caller.batch)
    caller.batch = 0
    said = "\n".join(caller.fake.violations)
    assert f"memory {caller.address:#x} deregistered in flight" in said
    assert "destroyed in flight" in said


def test_registrations_are_checked(caller_of):
    caller = caller_of()
    with pytest.raises(CuFileError, match="MEMORY_ALREADY_REGISTERED"):
        caller.fake.buf_register(caller.address + BLOCK, BLOCK, 0)
    with pytest.raises(CuFileError, match="MEMORY_NOT_REGISTERED"):
        caller.fake.buf_deregister(caller.address + BLOCK)
    with pytest.raises(CuFileError, match="INVALID_VALUE"):
        caller.fake.buf_register(caller.address + 512, BLOCK, 0)
    with pytest.raises(CuFileError, match="HANDLE_ALREADY_REGISTERED"):
        caller.fake.handle_register(caller.descriptor().ctypes.data)
    for fields, said in (({"type": 2}, "FILE_TYPE"), ({"fs_ops": 1}, "INVALID_VALUE")):
        with pytest.raises(CuFileError, match=said):
            caller.fake.handle_register(caller.descriptor(**fields).ctypes.data)


def test_a_file_without_o_direct_needs_compat_mode(tmp_path):
    (tmp_path / "file").touch()
    with (tmp_path / "file").open("r+b") as file:
        row = np.zeros(1, DESCRIPTOR)
        row[0] = (1, file.fileno(), 0)
        fake, compat = FakeCuFile(), FakeCuFile()
        compat.set_parameter_bool(2, True)
        fake.driver_open()
        compat.driver_open()
        with pytest.raises(CuFileError, match="DIO_NOT_SET"):
            fake.handle_register(row.ctypes.data)
        compat.handle_deregister(compat.handle_register(row.ctypes.data))
        with pytest.raises(CuFileError, match="before driver_open"):
            fake.set_parameter_bool(2, True)
        fake.driver_close()
        compat.driver_close()


def test_nothing_works_before_the_driver_is_open_or_after_it_was_closed():
    fake = FakeCuFile()
    with pytest.raises(CuFileError, match="DRIVER_NOT_INITIALIZED"):
        fake.batch_io_set_up(1)
    fake.driver_open()
    with pytest.raises(CuFileError, match="DRIVER_ALREADY_OPEN"):
        fake.driver_open()
    fake.driver_close()
    with pytest.raises(CuFileError, match="DRIVER_NOT_INITIALIZED"):
        fake.driver_close()


def test_what_was_not_given_back_is_told_at_close(tmp_path):
    caller = Caller(tmp_path, FakeCuFile())
    caller.fake.driver_close()
    assert [leak.rsplit(" ", 1)[0] for leak in caller.fake.leaks] == [
        "file handle",
        "registered memory",
        "batch",
    ]
    os.close(caller.fd)


def test_a_cancel_is_a_hint(caller_of):
    caller = caller_of(OpFault(Trouble.STUCK, 0, 0))
    caller.submit(caller.params(4))
    caller.fake.batch_io_cancel(caller.batch)
    told = caller.events(3)
    assert set(told) == {2, 3, 4}
    assert {status for status, _ in told.values()} <= {OpStatus.COMPLETE, OpStatus.CANCELED}
    caller.fake.release()
    assert caller.events(1) == {1: (OpStatus.COMPLETE, BLOCK)}


def test_faults_are_told_as_the_library_would(caller_of):
    caller = caller_of(
        OpFault(Trouble.FAILED, 0, 0, value=121),
        OpFault(Trouble.SHORT, 1, 1, value=7),
        OpFault(Trouble.TIMEOUT, 2, 2),
        OpFault(Trouble.INVALID, 3, 3),
        CallFault("batch_io_cancel", Code.INTERNAL_BATCH_CANCEL_ERROR, 1, 1),
    )
    caller.submit(caller.params(4))
    assert caller.events(4) == {
        1: (OpStatus.FAILED, -121),
        2: (OpStatus.COMPLETE, 7),
        3: (OpStatus.TIMEOUT, 0),
        4: (OpStatus.INVALID, 0),
    }
    caller.fake.batch_io_cancel(caller.batch)
    with pytest.raises(CuFileError, match="injected"):
        caller.fake.batch_io_cancel(caller.batch)
    assert caller.fake.fired == 5
    assert caller.fake.violations == []
