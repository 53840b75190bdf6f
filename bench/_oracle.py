# SPDX-License-Identifier: Apache-2.0
"""What must be in a slab after its writer was killed or the power was cut, and what is.

A page's bytes follow from its number, and what was acknowledged stands in memory shared with the
victims (_victims.py): the oracle needs neither a copy nor the victim's word.
"""

import json
import math
import mmap
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _victims import BEGUN, CACHED, END, ENDED, LOG, MAY_BEGIN, SYNCED

from bodocache.clock import RealClock
from bodocache.io.backend import Status
from bodocache.io.config import SlabConfig
from bodocache.io.slab import SlabBackend
from bodocache.testing import NumberedPages

FRAMES = 96
LEDGER_NBYTES = 1 << 20
NUMBERS_AHEAD = 129  # of batches in flight


@dataclass(slots=True)
class Tally:
    """What a campaign found."""

    attempts: int = 0
    missed: int = 0  # kills at a system call that the victim did not make in time
    in_flight: int = 0  # kills inside a pwritev
    pages_read: int = 0
    wrong_pages: int = 0
    cached_acks: int = 0  # pages acknowledged with Durability.CACHE, SYNC
    sync_acks: int = 0
    cached_lost: int = 0  # of those that should have been there
    sync_lost: int = 0
    seconds: float = 0.0

    @property
    def upper_bound(self) -> float:
        """Below it, with 95 % confidence, lies the chance that an attempt ends badly if none did:
        the rule of three.
        """
        return 3 / max(1, self.attempts)


class Oracle:
    """One directory, and what must be in it."""

    def __init__(self, directory: Path, ledger: Path, page_nbytes: int) -> None:
        """``ledger``: a file to be made, where the victims note what they did."""
        self.pages = NumberedPages(page_nbytes)
        frame_nbytes = -(-page_nbytes // 4096) * 4096
        capacity_nbytes = 4096 + FRAMES * (frame_nbytes + 512)
        self.config = SlabConfig(directory, capacity_nbytes, page_nbytes, b"k" * 32)
        self._ledger = ledger
        ledger.write_bytes(bytes(LEDGER_NBYTES))
        with ledger.open("r+b") as file:
            self._words = np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint64)
        self._known = 0  # numbers below were used so far
        self._numbers: dict[bytes, int] = {}  # by key
        self.acknowledged: dict[int, int] = {}  # CACHED or SYNCED, by number

    def order(
        self,
        seed: int,
        *,
        sync_share: float = 0.1,
        queue_depth: int | None = None,
        waits: bool = False,
    ) -> str:
        """A victim's order; with ``waits`` it begins when :meth:`let_begin` was called."""
        self._words[:LOG] = 0
        order = {
            "seed": seed,
            "directory": str(self.config.directory),
            "capacity_nbytes": self.config.capacity_nbytes,
            "page_nbytes": self.config.page_nbytes,
            "first_number": self._known,
            "ledger": str(self._ledger),
            "sync_share": sync_share,
            "queue_depth": queue_depth,
            "waits": waits,
        }
        return json.dumps(order) + "\n"

    def let_begin(self) -> None:
        """Let a victim that waits begin."""
        self._words[MAY_BEGIN] = 1

    @property
    def was_in_flight(self) -> bool:
        """Whether the victim was inside a pwritev when it died."""
        return bool(self._words[BEGUN] > self._words[ENDED])

    def wait_for_a_write(self) -> None:
        """Aim: return while the victim is inside a pwritev, or after half a second."""
        end_s = time.monotonic() + 0.5  # a busy machine starts a victim late
        while not self.was_in_flight and time.monotonic() < end_s:
            time.sleep(0)

    def wait_for_the_first_write(self) -> None:
        """Return when the victim has begun to write, or after two seconds."""
        end_s = time.monotonic() + 2
        while not self._words[BEGUN] and time.monotonic() < end_s:
            time.sleep(0.001)

    def name(self, count: int) -> list[int]:
        """The next ``count`` numbers, for pages that are put by somebody else than a victim."""
        numbers = list(range(self._known, self._known + count))
        self._know(self._known + count)
        return numbers

    def read_ledger(self, tally: Tally) -> None:
        """Take note of what the victim did."""
        noted = self._words[LOG : LOG + int(self._words[END])].tolist()
        for word in noted:
            number, code = word >> 2, word & 3
            if code:
                self.acknowledge(number, code, tally)
            else:
                self.acknowledged.pop(number, None)
        self._know(max([self._known, *(word >> 2 for word in noted)]) + NUMBERS_AHEAD)

    def acknowledge(self, number: int, code: int, tally: Tally) -> None:
        """Note that a page was acknowledged."""
        self.acknowledged[number] = code
        tally.sync_acks += code == SYNCED
        tally.cached_acks += code == CACHED

    async def verify(self, tally: Tally) -> None:
        """Read everything there is, and compare it.

        What is lost is expected no longer: it counts once.
        """
        backend = await SlabBackend.open(self.config, clock=RealClock())
        entries = backend.entries()
        numbers = [self._numbers[bytes(key)] for key in entries.keys]
        batch = self.pages.batch(numbers, entries.frames)
        buffers = self.pages.buffers(len(numbers))
        transfer = backend.get(batch, buffers, deadline_s=math.inf)
        await transfer.drained()
        await backend.close()
        landed = np.flatnonzero(transfer.statuses == Status.LANDED).tolist()
        for i in landed:
            tally.wrong_pages += bool((buffers[i] != self.pages.payload(numbers[i])).any())
        tally.pages_read += len(landed)
        lost = self.acknowledged.keys() - {numbers[i] for i in landed}
        for number in lost:
            code = self.acknowledged.pop(number)
            tally.sync_lost += code == SYNCED
            tally.cached_lost += code == CACHED

    def _know(self, end: int) -> None:
        self._numbers |= {bytes(self.pages.key(n)): n for n in range(self._known, end)}
        self._known = end
