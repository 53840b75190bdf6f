# SPDX-License-Identifier: Apache-2.0
"""Kill -9 at any moment, a hundred times: no wrong byte, and nothing acknowledged is lost.

The oracle is this process: a page's bytes follow from its number, and what was acknowledged stands
in shared memory. The victims are kill_server.py's.
"""

import asyncio
import json
import math
import mmap
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bodocache.clock import RealClock
from bodocache.io.backend import Status
from bodocache.io.config import SlabConfig
from bodocache.io.slab import SlabBackend
from bodocache.testing import NumberedPages

KILLS = 100
KILLS_IN_FLIGHT = 30
PAGE_NBYTES = (65536, 262144, 20016, 131072)  # one directory each; the third has padded frames
FRAMES = 96
BEGUN, ENDED, LOG = 1, 2, 16
LEDGER_NBYTES = 1 << 20


class Oracle:
    """One directory, and what must be in it."""

    def __init__(self, folder: Path, page_nbytes: int):
        self.pages = NumberedPages(page_nbytes)
        frame_nbytes = -(-page_nbytes // 4096) * 4096
        capacity_nbytes = 4096 + FRAMES * (frame_nbytes + 512)
        self.config = SlabConfig(folder / "slab", capacity_nbytes, page_nbytes, b"k" * 32)
        self.ledger_path = folder / "ledger"
        self.ledger_path.write_bytes(bytes(LEDGER_NBYTES))
        with self.ledger_path.open("r+b") as file:
            self.words = np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint64)
        self.known = 0  # numbers below were used by victims so far
        self.acknowledged: set[int] = set()
        self.names: dict[bytes, int] = {}

    def order(self, seed: int) -> str:
        self.words[:LOG] = 0
        order = {
            "seed": seed,
            "directory": str(self.config.directory),
            "capacity_nbytes": self.config.capacity_nbytes,
            "page_nbytes": self.config.page_nbytes,
            "first_number": self.known,
            "ledger": str(self.ledger_path),
        }
        return json.dumps(order) + "\n"

    @property
    def was_in_flight(self) -> bool:
        """Whether the victim was inside a pwritev when it died."""
        return bool(self.words[BEGUN] > self.words[ENDED])

    def wait_for_a_write(self) -> None:
        """Aim: return while the victim is inside a pwritev, or after half a second."""
        end_s = time.monotonic() + 0.5  # a busy machine starts a victim late
        while not self.was_in_flight and time.monotonic() < end_s:
            time.sleep(0)

    def read_ledger(self) -> None:
        noted = self.words[LOG : LOG + int(self.words[0])].tolist()
        for word in noted:
            (self.acknowledged.add if word & 1 else self.acknowledged.discard)(word >> 1)
        top = max([self.known, *(word >> 1 for word in noted)]) + 129  # batches in flight
        self.names |= {bytes(self.pages.key(n)): n for n in range(self.known, top)}
        self.known = top

    async def verify(self) -> int:
        """Read everything there is; return how many pages were right."""
        backend = await SlabBackend.open(self.config, clock=RealClock())
        entries = backend.entries()
        numbers = [self.names[bytes(key)] for key in entries.keys]
        batch = self.pages.batch(numbers, entries.frames)
        buffers = self.pages.buffers(len(numbers))
        transfer = backend.get(batch, buffers, deadline_s=math.inf)
        await transfer.drained()
        await backend.close()
        landed = np.flatnonzero(transfer.statuses == Status.LANDED)
        for i in landed.tolist():
            assert (buffers[i] == self.pages.payload(numbers[i])).all(), "a wrong byte was served"
        lost = self.acknowledged - {numbers[i] for i in landed}
        assert not lost, "acknowledged pages are gone"
        return len(landed)


@pytest.fixture
def server():
    script = Path(__file__).with_name("kill_server.py")
    with subprocess.Popen(
        [sys.executable, script],
        *(-1, None, subprocess.PIPE, subprocess.PIPE),
        text=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    ) as process:
        yield process
        process.stdin.close()


@pytest.mark.timeout(120)
def test_a_hundred_kills_serve_no_wrong_byte_and_lose_nothing_acknowledged(tmp_path, server):
    chance = random.Random(20261124)
    oracles = []
    for page_nbytes in PAGE_NBYTES:
        folder = tmp_path / str(page_nbytes)
        folder.mkdir()
        oracles.append(Oracle(folder, page_nbytes))
    in_flight = right = 0
    for kill in range(KILLS):
        oracle = oracles[kill % len(oracles)]
        server.stdin.write(oracle.order(kill))
        server.stdin.flush()
        victim = int(server.stdout.readline())
        time.sleep(chance.uniform(0.01, 0.08))  # the moment of death is the point of the test
        if kill % 2:
            oracle.wait_for_a_write()
        os.kill(victim, signal.SIGKILL)
        assert int(server.stdout.readline()) == -signal.SIGKILL, "the victim failed by itself"
        in_flight += oracle.was_in_flight
        oracle.read_ledger()
        right += asyncio.run(oracle.verify())
    assert in_flight >= KILLS_IN_FLIGHT, f"only {in_flight} kills landed inside a pwritev"
    assert right > 10 * KILLS, f"only {right} pages were read: the test has no teeth"
