# SPDX-License-Identifier: Apache-2.0
"""The real SGLang package without a GPU: what it imports and nobody calls here is a stub."""

import pytest

pytest.importorskip("sglang", reason="SGLang is not installed (make test-sglang)")

import stubs

stubs.install()


@pytest.fixture
def server():
    """SGLang's arguments, as a scheduler has published them."""
    from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler

    arguments = ServerArgs(model_path="dummy", page_size=16)
    set_global_server_args_for_scheduler(arguments)
    return arguments
