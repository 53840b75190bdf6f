# SPDX-License-Identifier: Apache-2.0
"""Backends for tests, ours and our users': faults by composition, and stand-ins."""

from bodocache.clock import VirtualClock
from bodocache.testing.cancelling import Cancelled, Moment, cancel_at
from bodocache.testing.counting import CountingBackend
from bodocache.testing.cufile_faults import CallFault, Code, CuFileError, OpFault, Trouble
from bodocache.testing.fake_cufile import FakeCuFile
from bodocache.testing.faulty import Fault, FaultyBackend, Operation
from bodocache.testing.loop import VirtualLoop, run_virtual
from bodocache.testing.memory import MemoryBackend, MemoryDisk
from bodocache.testing.pages import NumberedPages
from bodocache.testing.recording import Call, RecordingBackend
from bodocache.testing.slow import SlowBackend

__all__ = [
    "Call",
    "CallFault",
    "Cancelled",
    "Code",
    "CountingBackend",
    "CuFileError",
    "FakeCuFile",
    "Fault",
    "FaultyBackend",
    "MemoryBackend",
    "MemoryDisk",
    "Moment",
    "NumberedPages",
    "OpFault",
    "Operation",
    "RecordingBackend",
    "SlowBackend",
    "Trouble",
    "VirtualClock",
    "VirtualLoop",
    "cancel_at",
    "run_virtual",
]
