# SPDX-License-Identifier: Apache-2.0
"""What several test modules share."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
CONVERSATION_TRACE = REPOSITORY.parent / "shared" / "traces" / "conversation_trace.jsonl"


@pytest.fixture
def conversation_trace() -> Path:
    if not CONVERSATION_TRACE.exists():
        pytest.skip(f"no trace at {CONVERSATION_TRACE}; fetch it: bodocache trace fetch")
    return CONVERSATION_TRACE


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
