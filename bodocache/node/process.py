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
from contextlib import asynccontextmanager, contextmanager, suppress
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
from bodocache.node.presence import Presence, words_for
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
        ConfigError: the configuration says nothing of the pages, or of a host below one page; or
            somebody else listens at ``metrics.port``.
        NodeError: another node serves ``path``, or it is no place for a socket.
        BackendLocked: another process writes to the disk tier's directory.
    """
    clock = clock or RealClock()
    layout = _sized(config, terms.layout_for(config))
    root = root_of(config, layout)
    ours = terms.hello_of(config.identity.tenant_domain, root, layout)
    await asyncio.get_running_loop().run_in_executor(None, warm)
    assert config.node is not None, "its layout was read from there"
    words = words_for(_most_pages(config, layout))
    with _place(path), _shared(layout, words) as shared:
        if backend is None:
            backend = await disk_tier(config, layout, root, clock)
        pool = memory.attach(shared.descriptor, layout, pinned=False)
        presence = Presence(memory.table(shared.descriptor, layout, words))
        host = Host(Parts(config, pool, backend, clock, presence))
        answers = Answers(host)
        answers.version_of(ours.weights.tobytes())
        door = Door(answers, ours, shared, silence_s=config.node.silence_s, clock=clock)
        try:
            found = await host.open()
            async with _exported(host, config.metrics.port), _listening(path, door):
                yield Node(door, host, found)
        finally:
            door.close()
            await host.close()


async def run_until_told(config: CacheConfig, path: Path, *, linger_s: float = 0.0) -> None:
    """Serve at ``path`` until SIGTERM or SIGINT. Raises as :func:`serve` does.

    With ``linger_s``, until no engine has been attached for so long, too.
    """
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
        await (_until_left(node, linger_s, told) if linger_s else told.wait())
        _log.info("told to end, or left by all; writing what was admitted")
    _log.info("ended")


async def _until_left(node: Node, linger_s: float, told: asyncio.Event) -> None:
    """Return when told, or when nobody has been attached for ``linger_s``."""
    seen_s = node.host.now_s()
    while not told.is_set() and node.host.now_s() - seen_s < linger_s:
        with suppress(TimeoutError):
            async with asyncio.timeout(linger_s / 8):
                await told.wait()
        if any(it.session is not None for it in node.door.connections):
            seen_s = node.host.now_s()


def _sized(config: CacheConfig, layout: Layout) -> Layout:
    """The host pool's layout. ConfigError: it is too small for one page."""
    nbytes = config.tiers.host.capacity_bytes
    if nbytes < layout.page_nbytes:
        raise ConfigError(
            f"tiers.host.capacity_bytes = {nbytes}: expected at least one page,"
            f" {layout.page_nbytes} bytes"
        )
    return replace(layout, num_pages=nbytes // layout.page_nbytes)


def _most_pages(config: CacheConfig, layout: Layout) -> int:
    """How many pages may lie in host memory and on disk."""
    disk = config.tiers.disk
    return layout.num_pages + (disk.capacity_bytes // layout.page_nbytes if disk else 0)


@contextmanager
def _shared(layout: Layout, words: int) -> Iterator[memory.Shared]:
    descriptor = memory.create(memory.size_of(layout, words))
    try:
        yield memory.Shared(descriptor, words)
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
async def _exported(host: Host, port: int) -> AsyncIterator[None]:
    """Metrics, timeline and ``why`` at ``port``; 0: nowhere."""
    if not port:
        yield
        return
    from bodocache.watch.exporter import Exporter
    from bodocache.watch.metrics import Watched

    exporter = await Exporter.open(Watched(host, lambda: host.ledger.misses), port)
    try:
        yield
    finally:
        await exporter.close()


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
