# SPDX-License-Identifier: Apache-2.0
"""What several test modules share."""

import ctypes
import os
from pathlib import Path

import pytest

from bodocache.io import libc

REPOSITORY = Path(__file__).parent.parent
CONVERSATION_TRACE = REPOSITORY.parent / "shared" / "traces" / "conversation_trace.jsonl"


@pytest.fixture
def conversation_trace() -> Path:
    if not CONVERSATION_TRACE.exists():
        pytest.skip(f"no trace at {CONVERSATION_TRACE}; fetch it: bodocache trace fetch")
    return CONVERSATION_TRACE


_VECTORED = ctypes.CFUNCTYPE(
    ctypes.c_ssize_t,
    *(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong),
    use_errno=True,
)
_faked = []  # C functions must outlive the threads that may call them


def fake_call(monkeypatch, name, fake):
    """Let compiled code call ``fake(fd, buffers, offset)`` for os.``name``, until it is undone."""

    def call(fd, iov, count, offset):
        words = (ctypes.c_size_t * (2 * count)).from_address(iov)
        pairs = zip(words[::2], words[1::2], strict=True)
        buffers = [memoryview((ctypes.c_char * n).from_address(at)).cast("B") for at, n in pairs]
        try:
            return fake(fd, buffers, offset)
        except OSError as error:
            ctypes.set_errno(error.errno)
            return -1

    _faked.append(_VECTORED(call))
    monkeypatch.setattr(libc.calls, name, ctypes.cast(_faked[-1], ctypes.c_void_p).value)


@pytest.fixture
def fake(monkeypatch):
    """``fake(name, function)``: fake_call, or a plain patch of os for what Python calls."""

    def replace_(name, function):
        if name in ("preadv", "pwritev"):
            fake_call(monkeypatch, name, function)
        else:
            monkeypatch.setattr(os, name, function)

    return replace_


def pytest_collection_modifyitems(items):
    for item in items:
        reason = _why_not_here(item)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def _why_not_here(item):
    if item.get_closest_marker("root") and os.geteuid() != 0:
        return "needs root"
    if item.get_closest_marker("gpu"):
        import torch

        return None if torch.cuda.is_available() else "needs a CUDA device"
    return None
