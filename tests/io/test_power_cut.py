# SPDX-License-Identifier: Apache-2.0
"""A power cut right after the acknowledgement: ext4's shutdown drops all that was not synced."""

import asyncio
import fcntl
import os
import subprocess

import pytest

from bodocache.clock import RealClock
from bodocache.io.backend import Durability, Status
from bodocache.io.slab import SlabBackend
from bodocache.pages import Reason

CUTS = 10
EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, u32)
NO_LOG_FLUSH = (2).to_bytes(4, "little")

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system"),
]


class Ext4:
    """A small ext4 on a loop device, whose power can be cut."""

    def __init__(self, image, point):
        self.image, self.point = image, point

    def mount(self):
        done = subprocess.run(
            ["mount", "-o", "loop", self.image, self.point], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no loop mounts here: {done.stderr.decode().strip()}")

    def unmount(self):
        subprocess.run(["umount", self.point], capture_output=True, check=False)

    def cut_power(self):
        fd = os.open(self.point, os.O_RDONLY)
        fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH)
        os.close(fd)


@pytest.fixture
def ext4(tmp_path):
    image, point = tmp_path / "image", tmp_path / "mounted"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(32 << 20)
    try:
        subprocess.run(["mkfs.ext4", "-q", image], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no mkfs.ext4")
    disk = Ext4(image, point)
    disk.mount()
    yield disk
    disk.unmount()


async def put_then_cut(bench, disk, number, durability):
    backend = await SlabBackend.open(bench.config, clock=RealClock())
    try:
        batch, transfer = await bench.put(backend, [number], durability)
        assert transfer.statuses.tolist() == [Status.LANDED]
        disk.cut_power()
        return batch
    finally:
        await backend.close()


def bench_on(bench, disk):
    return type(bench)(disk.point)


def test_a_durable_page_survives_a_power_cut_right_after_its_acknowledgement(bench, ext4):
    bench = bench_on(bench, ext4)
    batches = []
    for number in range(CUTS):
        cut = put_then_cut(bench, ext4, number, Durability.SYNC)
        batches.append(asyncio.run(cut))
        ext4.unmount()
        ext4.mount()
        for batch in batches:
            assert bench.reasons(batch) == [Reason.NONE]


def test_a_page_that_was_not_synced_is_whole_or_a_miss_after_a_power_cut(bench, ext4):
    bench = bench_on(bench, ext4)
    bench.stored([100])
    reasons = []
    for number in range(CUTS):
        batch = asyncio.run(put_then_cut(bench, ext4, number, Durability.CACHE))
        ext4.unmount()
        ext4.mount()
        reasons += bench.reasons(batch)
    assert set(reasons) <= {Reason.NONE, Reason.NEVER_STORED, Reason.CORRUPT}
    assert Reason.NONE not in reasons, "the cut lost nothing: this test has no teeth"
