# SPDX-License-Identifier: Apache-2.0
"""What we believe of cuFile's structs and constants, against the bindings themselves."""

import ctypes
import inspect
import re
import sys
import time

import numpy as np
import pytest

from bodocache.io.gds import cufile as ours
from bodocache.io.gds.probe import ask, probe
from bodocache.testing import Code, FakeCuFile

try:
    from cuda.bindings import cufile as real
except ImportError as error:
    real, MISSING = None, str(error)
else:
    MISSING = ""

needs_bindings = pytest.mark.skipif(real is None, reason=f"cuda.bindings.cufile: {MISSING}")
FUNCTIONS = [
    *("driver_open", "driver_close", "set_parameter_bool", "handle_register", "handle_deregister"),
    *("buf_register", "buf_deregister", "batch_io_set_up", "batch_io_submit"),
    *("batch_io_get_status", "batch_io_cancel", "batch_io_destroy"),
]
VALUES = (1, 0x7F0123456000, 3 << 40, 5 * 4096, 16 << 20, 0x5566778899AA, 1, -(1 << 60))


@needs_bindings
def test_a_request_is_theirs_byte_by_byte():
    theirs = real.IOParams()
    theirs.mode, theirs.fh, theirs.opcode, theirs.cookie = VALUES[0], *VALUES[5:]
    batch = theirs.u.batch
    batch.dev_ptr_base, batch.file_offset, batch.dev_ptr_offset, batch.size_ = VALUES[1:5]
    mine = np.zeros(1, ours.PARAMS)
    mine[0] = VALUES
    assert ours.PARAMS.itemsize == real.io_params_dtype.itemsize == 64
    assert mine.tobytes() == bytes_at(theirs.ptr, 64)


@needs_bindings
def test_each_field_of_a_request_lies_where_theirs_does():
    inner = dict(real.io_params_dtype["u"]["batch"].fields)
    at = real.io_params_dtype.fields["u"][1]
    theirs = {name: real.io_params_dtype.fields[name][1] for name in ("mode", "fh", "opcode")}
    theirs |= {name: at + offset for name, (_, offset, *_) in inner.items()}
    names = dict(zip(("mode", "fh", "opcode"), ("mode", "handle", "opcode"), strict=True))
    names |= {"dev_ptr_base": "memory", "file_offset": "file_offset"}
    names |= {"dev_ptr_offset": "memory_offset", "size_": "nbytes"}
    assert {names[name]: offset for name, offset in theirs.items()} == {
        name: ours.PARAMS.fields[name][1] for name in names.values()
    }


@needs_bindings
def test_an_event_is_theirs_byte_by_byte():
    theirs = np.zeros(1, real.io_events_dtype)
    theirs["cookie"], theirs["status"], theirs["ret"] = -7, 64, 2**64 - 5
    mine = theirs.view(ours.EVENTS)[0]
    assert ours.EVENTS.itemsize == real.io_events_dtype.itemsize == 24
    assert (mine["cookie"], mine["status"], mine["result"]) == (-7, 64, -5)  # -EIO


@needs_bindings
def test_a_descriptor_is_theirs_byte_by_byte():
    theirs = real.Descr()
    theirs.type, theirs.fs_ops = real.FileHandleType.OPAQUE_FD, 0x1122334455667788
    theirs.handle.fd = 77
    mine = np.zeros(1, ours.DESCRIPTOR)
    mine[0] = (ours.OPAQUE_FD, 77, 0x1122334455667788)
    assert mine.tobytes() == bytes_at(theirs.ptr, 24)


@needs_bindings
def test_constants_are_theirs():
    assert {s.name: s.value for s in real.Status} == {s.name: s.value for s in ours.OpStatus}
    assert (real.Opcode.READ, real.Opcode.WRITE) == (ours.READ, ours.WRITE)
    assert real.BatchMode.BATCH == ours.BATCH_MODE
    assert real.FileHandleType.OPAQUE_FD == ours.OPAQUE_FD
    assert real.BoolConfigParameter.FORCE_COMPAT_MODE == ours.FORCE_COMPAT_MODE
    assert real.OpError.DRIVER_ALREADY_OPEN == ours.ALREADY_OPEN
    assert {code.name: getattr(real.OpError, code.name).value for code in Code} == {
        code.name: code.value for code in Code
    }


@needs_bindings
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_stand_in_takes_what_the_bindings_take(name):
    said = re.search(rf"{name}\((.*?)\)", getattr(real, name).__doc__).group(1)
    theirs = [parameter.split()[-1] for parameter in said.split(",") if parameter]
    mine = list(inspect.signature(getattr(FakeCuFile(), name)).parameters)
    protocol = list(inspect.signature(getattr(ours.CuFile, name)).parameters)[1:]
    assert mine == theirs == protocol


@needs_bindings
def test_their_error_tells_its_code_as_the_stand_ins_does():
    assert real.cuFileError(5035).status == 5035
    assert FakeCuFile().cuFileError(5037).status == 5037


def test_a_driver_that_never_opens_is_given_up():
    started_s = time.monotonic()
    found = ask([sys.executable, "-c", "while True: pass"], 0.5)
    assert not found.available
    assert "within 0.5 s" in found.reason
    assert time.monotonic() - started_s < 15  # the machine may be busy; forever is longer


def test_a_probe_says_what_its_process_said():
    assert ask([sys.executable, "-c", ""], 15) == (True, "")
    assert ask([sys.executable, "-c", "print('no'); exit(3)"], 15) == (False, "no (exit 3)")
    killed = ask([sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"], 15)
    assert killed == (False, "nothing (exit -11)")
    assert "could not be started" in ask(["/nowhere/python"], 15).reason


def test_the_driver_is_not_touched_where_there_is_no_device(tmp_path, monkeypatch):
    package = tmp_path / "cuda" / "bindings"
    package.mkdir(parents=True)
    package.joinpath("cufile.py").write_text(
        "import pathlib\n"
        "class cuFileError(Exception): pass\n"
        "def get_version(): return 1200\n"
        f"def driver_open(): pathlib.Path({str(tmp_path / 'opened')!r}).touch()\n"
        "def driver_close(): pass\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = probe(timeout_s=15)
    assert not found.available
    assert re.match("no CUDA (driver|device)", found.reason)
    assert not (tmp_path / "opened").exists()


def bytes_at(address, nbytes):
    """The bytes at ``address``."""
    return ctypes.string_at(address, nbytes)
