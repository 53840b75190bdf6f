# SPDX-License-Identifier: Apache-2.0
"""The house of tests/move, for a cache that is watched."""

import asyncio
import importlib.util
import inspect
from pathlib import Path

import pytest

from bodocache.watch.exporter import Exporter
from bodocache.watch.metrics import Watched

_spec = importlib.util.spec_from_file_location(
    "move_conftest", Path(__file__).parent.parent / "move" / "conftest.py"
)
_move = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_move)

house, prompt = _move.house, _move.prompt


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run a test that is a coroutine, on a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture
def ask():
    """``await ask(exporter, target)``: status and body of GET ``target``, or of raw bytes."""

    async def asked(exporter, target):
        head = target if isinstance(target, bytes) else f"GET {target} HTTP/1.1\r\n\r\n".encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", exporter.port)
        writer.write(head)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        status, _, body = answer.partition(b"\r\n\r\n")
        return int(status.split()[1]), body.decode()

    return asked


@pytest.fixture
def watched():
    """The cache of a house, as its metrics see it."""
    return lambda it: Watched(it.orchestrator, it.cache._misses_by_reason)


@pytest.fixture
def export(watched):
    """``await export(it)``: an exporter of the house's cache, on any port."""

    async def exported(it):
        return await Exporter.open(watched(it), 0)

    return exported
