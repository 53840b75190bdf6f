# SPDX-License-Identifier: Apache-2.0
"""Peers that share one file: aiofiles and NIXL's POSIX backend. Both bypass the page cache.

A peer is imported when it is made; ``make peers`` installs them all.
"""

import asyncio
import importlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from _listio_point import Numbers, Pages, Point
from _listio_raw import contiguous

FILES_MAX = 1024  # pages that engines move that make a call of their own for each
AIOFILES_HANDLES = 8
POLL_S = 0.0002


class MissingError(Exception):
    """A peer cannot be made here; the message says why."""


def imported(module: str, package: str) -> Any:
    """Import ``module``.

    Raises:
        MissingError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingError(
            f"not installed ({error}): make peers, or pip install {package}"
        ) from error


class AioFiles:
    """Aiofiles on one file: a seek and a readinto or write a page, over 8 handles."""

    name = "aiofiles, per page"

    def __init__(self, point: Point, path: Path) -> None:
        self._aiofiles = imported("aiofiles", "aiofiles")
        self.count = min(point.count, FILES_MAX)
        self._point = point
        self._runner = asyncio.Runner()
        self._handles = self._runner.run(self._open(path))

    async def _open(self, path: Path) -> list[Any]:
        options = {"buffering": 0, "opener": _open_direct}
        return [await self._aiofiles.open(path, "r+b", **options) for _ in range(AIOFILES_HANDLES)]

    def clear(self) -> None:
        """Nothing: it overwrites."""

    def write(self) -> None:
        """Every page to its frame."""
        self._runner.run(self._move(writes=True))

    def read(self) -> None:
        """Every page to its slot."""
        self._runner.run(self._move(writes=False))

    def landed(self) -> tuple[Pages, Numbers]:
        """In its slots."""
        return self._point.target, self._point.slots[: self.count]

    def close(self) -> None:
        """Close all handles."""
        for handle in self._handles:
            self._runner.run(handle.close())
        self._runner.close()

    async def _move(self, *, writes: bool) -> None:
        point, waiting = self._point, iter(range(self.count))
        pages = point.source if writes else point.target

        async def one_after_another(handle: Any) -> None:
            for i in waiting:
                await handle.seek(int(point.frames[i]) * point.page_nbytes)
                page = memoryview(pages[point.slots[i]])
                await (handle.write(page) if writes else handle.readinto(page))

        async with asyncio.TaskGroup() as group:
            for handle in self._handles:
                group.create_task(one_after_another(handle))


class Nixl:
    """NIXL's POSIX backend: one request, a descriptor a page or, raw, a descriptor an extent."""

    def __init__(
        self,
        point: Point,
        fd: int,
        queue: str,
        *,
        extent_nbytes: int = 0,
    ) -> None:
        """``queue``: "uring" or "aio"; with ``extent_nbytes``, extents of contiguous memory."""
        api = imported("nixl._api", "--no-deps nixl nixl-cu13")
        self.name = f"NIXL POSIX {queue}, list-IO"
        if extent_nbytes:
            self.name = f"raw, NIXL {queue} x {extent_nbytes >> 10} KiB"
        self.count = point.count
        self._point = point
        self._agent = api.nixl_agent("listio", api.nixl_agent_config(backends=[]))
        self._agent.create_backend("POSIX", {f"use_{queue}": "true"})
        memories = (point.source, point.target)
        nbytes = point.frame_count * point.page_nbytes
        spans = [("DRAM", pages.ctypes.data, pages.size, 0) for pages in memories]
        spans.append(("FILE", 0, nbytes, fd))
        self._registered = [
            self._agent.register_memory([(start, length, device, "")], kind)
            for kind, start, length, device in spans
        ]
        self._lists = []
        for writes in (False, True):
            if extent_nbytes:
                places = contiguous(point, extent_nbytes, writes=writes)
            else:
                places = _scattered(point, writes=writes)
            self._lists.append(self._descriptors(places, fd))
        rows = np.argsort(np.argsort(point.frames)) if extent_nbytes else point.slots
        self._landed = (point.target, rows)

    def _descriptors(self, places: tuple[Numbers, Numbers, Numbers], fd: int) -> tuple[Any, Any]:
        offsets, addresses, lengths = places
        zeros = np.zeros_like(lengths)
        local = np.stack([addresses, lengths, zeros], axis=1).astype(np.uint64)
        remote = np.stack([offsets, lengths, zeros + fd], axis=1).astype(np.uint64)
        get = self._agent.get_xfer_descs
        return get(local, "DRAM"), get(remote, "FILE")

    def clear(self) -> None:
        """Nothing: it overwrites."""

    def write(self) -> None:
        """One request."""
        self._move("WRITE", *self._lists[True])

    def read(self) -> None:
        """One request."""
        self._move("READ", *self._lists[False])

    def landed(self) -> tuple[Pages, Numbers]:
        """In its slots, or in file order."""
        return self._landed

    def close(self) -> None:
        """Let go of what was registered; the file is the caller's."""
        for descriptors in self._registered:
            self._agent.deregister_memory(descriptors)

    def _move(self, operation: str, local: Any, remote: Any) -> None:
        handle = self._agent.initialize_xfer(operation, local, remote, "listio")
        state = self._agent.transfer(handle)
        while state == "PROC":
            time.sleep(POLL_S)
            state = self._agent.check_xfer_state(handle)
        self._agent.release_xfer_handle(handle)
        if state != "DONE":
            raise RuntimeError(f"{self.name}: {state}")


def _scattered(point: Point, *, writes: bool) -> tuple[Numbers, Numbers, Numbers]:
    pages = point.source if writes else point.target
    addresses = pages.ctypes.data + point.slots * point.page_nbytes
    lengths = np.full(point.count, point.page_nbytes)
    return point.frames * point.page_nbytes, addresses, lengths


def _open_direct(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_DIRECT)
