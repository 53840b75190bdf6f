# SPDX-License-Identifier: Apache-2.0
"""A node from start to end: memory, storage, socket. ``bodocache node`` runs one until SIGTERM.

A lock beside the socket says who serves it, so a socket that a dead node left is taken away, and
that of a living one never.
"""

import asyncio
import fcntl
import gc
import logging
import os
import signal
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bodocache.cache import warm
from bodocache.clock import Clock, RealClock
from bodocache.config import CacheConfig
from bodocache.errors import ConfigError, NodeError
from bodocache.io.backend import Backend
from bodocache.layout import Layout
from bodocache.node import memory, terms
from bodocache.node.answers import Answers
from bodocache.node.host import Host, Parts
from bodocache.node.server import Door
from bodocache.wiring import disk_tier, root_of

_log = logging.getLogger(__name__)

SOCKET_MODE = 0o600  # who may connect may read and write every page
MOST_PATH_NBYTES = 107  # of a socket's name, by the system


@dataclass(frozen=True, slots=True)
class Node:
    """A node that serves."""

    door: Door
    host: Host
    recovered_pages: int

    def describe(self) -> dict[str, object]:
        """Figures of the node and its engines."""
        return self.door.describe()


@asynccontextmanager
async def serve(
    config: CacheConfig,
    path: Path,
    *,
    backend: Backend | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[Node]:
    """``async with``: engines can attach at the socket ``path``.

    ``backend`` takes the place of ``tiers.disk``. At the end what was admitted is written, engines
    lose their connection, and the socket is taken away.

    Raises:
        ConfigError: the configuration says nothing of the pages, or of a host below one page.
        NodeError: another node serves ``path``, or it is no place for a socket.
        BackendLocked: another process writes to the disk tier's directory.
    """
    clock = clock or RealClock()
    layout = _sized(config, terms.layout_for(config))
    root = root_of(config, layout)
    ours = terms.hello_of(config.identity.tenant_domain, root, layout)
    await asyncio.get_running_loop().run_in_executor(None, warm)
    assert config.node is not None, "its layout was read from there"
    with _place(path), _shared(layout) as descriptor:
        if backend is None:
            backend = await disk_tier(config, layout, root, clock)
        pool = memory.attach(descriptor, layout, pinned=False)
        host = Host(Parts(config, pool, backend, clock))
        answers = Answers(host)
        answers.version_of(ours.weights.tobytes())
        door = Door(answers, ours, descriptor, silence_s=config.node.silence_s, clock=clock)
        try:
            found = await host.open()
            async with _listening(path, door):
                yield Node(door, host, found)
        finally:
            door.close()
            await host.close()


async def run_until_told(config: CacheConfig, path: Path) -> None:
    """Serve at ``path`` until SIGTERM or SIGINT. Raises as :func:`serve` does."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    async with serve(config, path) as node:
        pool = node.host.residency.host
        gc.freeze()  # modules: to look through them all stopped the loop for 0.16 s now and then
        _log.info(
            "serving at %s: %d host pages of %d bytes, %d pages found on disk, pid %d",
            *(path, pool.num_pages, pool.layout.page_nbytes, node.recovered_pages, os.getpid()),
        )
        await told.wait()
        _log.info("told to end; writing what was admitted")
    _log.info("ended")


def _sized(config: CacheConfig, layout: Layout) -> Layout:
    """The host pool's layout. ConfigError: it is too small for one page."""
    nbytes = config.tiers.host.capacity_bytes
    if nbytes < layout.page_nbytes:
        raise ConfigError(
            f"tiers.host.capacity_bytes = {nbytes}: expected at least one page,"
            f" {layout.page_nbytes} bytes"
        )
    return replace(layout, num_pages=nbytes // layout.page_nbytes)


@contextmanager
def _shared(layout: Layout) -> Iterator[int]:
    descriptor = memory.create(layout.pool_nbytes)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _place(path: Path) -> Iterator[None]:
    """Hold the lock beside ``path``, which no living node's socket is at."""
    if len(os.fsencode(path)) > MOST_PATH_NBYTES:
        raise NodeError(f"{path}: a socket's name has at most {MOST_PATH_NBYTES} bytes")
    lock = path.with_name(path.name + ".lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, SOCKET_MODE)
    except OSError as error:
        raise NodeError(f"{path}: {error}; the folder must be there, and be ours") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise NodeError(f"{path}: another node serves it; stop it, or name another") from error
    try:
        _remove_socket(path)
        try:
            yield
        finally:
            _remove_socket(path)
    finally:
        os.close(descriptor)


def _remove_socket(path: Path) -> None:
    """The lock is ours: a socket there is our own, or was left by a node that died."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise NodeError(f"{path}: something is there that is no socket; name another path")
    path.unlink()


@asynccontextmanager
async def _listening(path: Path, door: Door) -> AsyncIterator[None]:
    mask = os.umask(0o777 & ~SOCKET_MODE)
    try:
        server = await asyncio.get_running_loop().create_unix_server(door.connect, str(path))
    except OSError as error:
        raise NodeError(f"{path}: {error}") from error
    finally:
        os.umask(mask)
    try:
        yield
    finally:
        server.close()
