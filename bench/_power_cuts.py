# SPDX-License-Identifier: Apache-2.0
"""Power cuts: ext4's shutdown on a loop mount drops all that was not synced. Needs root."""

import asyncio
import fcntl
import math
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from _kills import Unavailable, victims
from _oracle import Oracle, Tally
from _victims import CACHED, SYNCED

from bodocache.clock import RealClock
from bodocache.io.backend import Durability, Status
from bodocache.io.slab import SlabBackend

IMAGE_NBYTES = 48 << 20
EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, u32)
NO_LOG_FLUSH = (2).to_bytes(4, "little")
PAGE_NBYTES = (65536, 20016)  # direct, and padded frames through the page cache
COMMIT_S = 600  # the journal, which ext4 commits every 5 s, would save what nobody synced
BUSY_S = 5.0  # for a mount that somebody still uses


class Ext4:
    """A small ext4 on a loop device, whose power can be cut."""

    def __init__(self, image: Path, point: Path) -> None:
        self.image, self.point = image, point

    def mount(self) -> None:
        """Mount it, which replays its journal.

        Raises:
            Unavailable: loop devices cannot be mounted here.
        """
        command = ["mount", "-o", f"loop,commit={COMMIT_S}", self.image, self.point]
        done = subprocess.run(command, capture_output=True, check=False, text=True)
        if done.returncode:
            raise Unavailable(f"no loop mounts here: {done.stderr.strip()}")

    def unmount(self) -> None:
        """Unmount it."""
        end_s = time.monotonic() + BUSY_S
        while self.point.is_mount() and time.monotonic() < end_s:
            subprocess.run(["umount", self.point], capture_output=True, check=False)

    def cut_power(self) -> None:
        """From now on nothing reaches the disk; what was not synced is gone."""
        fd = os.open(self.point, os.O_RDONLY)
        fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH)
        os.close(fd)


@contextmanager
def ext4(folder: Path) -> Iterator[Ext4]:
    """A mounted ext4 below ``folder``.

    Raises:
        Unavailable: not root, no mkfs.ext4, or no loop mounts.
    """
    if os.geteuid():
        raise Unavailable("mounts a file system: needs root")
    image, point = folder / "image", folder / "mounted"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_NBYTES)
    try:
        subprocess.run(["mkfs.ext4", "-q", image], check=True, capture_output=True)
    except FileNotFoundError:
        raise Unavailable("no mkfs.ext4") from None
    disk = Ext4(image, point)
    disk.mount()
    try:
        yield disk
    finally:
        disk.unmount()


def cuts_under_load(
    folder: Path, count: int, *, seed: int = 20261126, report: Callable[[Tally], None] | None = None
) -> Tally:
    """Cut the power ``count`` times, at random moments of a writer's life."""
    chance, tally, begin_s = random.Random(seed), Tally(), time.monotonic()
    with ext4(folder) as disk, victims() as them:
        oracles = _oracles(folder, disk)
        for turn in range(count):
            oracle = oracles[turn % len(oracles)]
            pid = them.begin(oracle.order(seed + turn, sync_share=0.5))
            oracle.wait_for_the_first_write()
            time.sleep(chance.uniform(0.0, 0.25))  # the moment of the cut is the point
            disk.cut_power()
            os.kill(pid, signal.SIGKILL)  # it sees errors alone by now
            them.exit_code()
            tally.in_flight += oracle.was_in_flight
            oracle.read_ledger(tally)
            _remount_and_verify(disk, oracle, tally)
            tally.attempts += 1
            tally.seconds = time.monotonic() - begin_s
            if report is not None:
                report(tally)
    return tally


def cuts_after_acknowledgement(
    folder: Path, count: int, *, report: Callable[[Tally], None] | None = None
) -> Tally:
    """Cut the power ``count`` times, each time right after a durable page was acknowledged.

    Every fifth time also after one that is not durable: it must be lost, or a cut cuts nothing.
    """
    tally, begin_s = Tally(), time.monotonic()
    with ext4(folder) as disk:
        oracles = _oracles(folder, disk)
        for turn in range(count):
            oracle = oracles[turn % len(oracles)]
            asyncio.run(_put_then_cut(oracle, disk, tally, Durability.SYNC))
            _remount_and_verify(disk, oracle, tally)
            tally.attempts += 1
            if turn % 5 == 0:
                asyncio.run(_put_then_cut(oracle, disk, tally, Durability.CACHE))
                _remount_and_verify(disk, oracle, tally)
            tally.seconds = time.monotonic() - begin_s
            if report is not None:
                report(tally)
    return tally


async def _put_then_cut(oracle: Oracle, disk: Ext4, tally: Tally, durability: Durability) -> None:
    """Acknowledged, and not drained: what the backend does after its word comes too late."""
    (number,) = oracle.name(1)
    buffers = oracle.pages.buffers(1)
    oracle.pages.fill(buffers, [number])
    backend = await SlabBackend.open(oracle.config, clock=RealClock())
    try:
        batch = oracle.pages.batch([number], backend.reserve(1, after=-1))
        transfer = backend.put(batch, buffers, deadline_s=math.inf, durability=durability)
        await transfer.finished()
        disk.cut_power()
        await transfer.drained()
        if transfer.statuses[0] == Status.LANDED:
            code = SYNCED if durability is Durability.SYNC else CACHED
            oracle.acknowledge(number, code, tally)
    finally:
        await backend.close()


def _remount_and_verify(disk: Ext4, oracle: Oracle, tally: Tally) -> None:
    disk.unmount()
    disk.mount()
    asyncio.run(oracle.verify(tally))


def _oracles(folder: Path, disk: Ext4) -> list[Oracle]:
    return [
        Oracle(disk.point / f"slab-{nbytes}", folder / f"ledger-{nbytes}", nbytes)
        for nbytes in PAGE_NBYTES
    ]
