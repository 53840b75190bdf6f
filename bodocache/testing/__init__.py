# SPDX-License-Identifier: Apache-2.0
"""Backends for tests, ours and our users': faults by composition, and a stand-in in memory."""

from bodocache.clock import VirtualClock
from bodocache.testing.faulty import Fault, FaultyBackend, Operation
from bodocache.testing.memory import MemoryBackend, MemoryDisk
from bodocache.testing.pages import NumberedPages
from bodocache.testing.recording import Call, RecordingBackend
from bodocache.testing.slow import SlowBackend

__all__ = [
    "Call",
    "Fault",
    "FaultyBackend",
    "MemoryBackend",
    "MemoryDisk",
    "NumberedPages",
    "Operation",
    "RecordingBackend",
    "SlowBackend",
    "VirtualClock",
]
