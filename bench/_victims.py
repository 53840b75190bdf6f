# SPDX-License-Identifier: Apache-2.0
"""Whom the campaigns kill: a warm process that forks one writer per order.

Orders come as JSON lines on standard input; the answer to each is the victim's process id and, once
it is dead, its exit code. Victims tell the oracle (_oracle.py) what they did in a shared file:
words that survive a kill as any shared memory does.

word 0             words of the log that are valid
word 1, 2          pwritev calls begun, and ended
word 3             not zero: an order that waits may begin
word 16 and on     the log: number << 2 | code, of a page
"""

import asyncio
import ctypes
import itertools
import json
import logging
import math
import mmap
import os
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bodocache import jit
from bodocache.clock import RealClock
from bodocache.io import libc
from bodocache.io.backend import Backend, Durability, Status
from bodocache.io.config import Access, SlabConfig
from bodocache.io.slab import SlabBackend
from bodocache.testing import NumberedPages

END, BEGUN, ENDED, MAY_BEGIN, LOG = 0, 1, 2, 3, 16
GONE, CACHED, SYNCED = range(3)  # from now on it may be gone; it was acknowledged
VECTORED = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong)
WRITERS = 3  # so that one prepares pages while another's are on their way
BATCH_MAX = 32


class Ledger:
    """The shared words, as a victim writes them."""

    def __init__(self, path: str) -> None:
        with Path(path).open("r+b") as file:
            self.words = np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint64)

    def note(self, numbers: Sequence[int], code: int) -> None:
        """Append one word for each page."""
        end = int(self.words[END])
        noted = [number << 2 | code for number in numbers]
        self.words[LOG + end : LOG + end + len(noted)] = noted
        self.words[END] = end + len(noted)


def count_pwritev(ledger: Ledger) -> object:
    """Count the calls of compiled code in ``ledger``; what is returned must be kept alive."""
    real, lock = ctypes.CDLL(None, use_errno=True).pwritev, threading.Lock()
    kind = ctypes.CFUNCTYPE(ctypes.c_ssize_t, *VECTORED, use_errno=True)
    real.restype, real.argtypes = ctypes.c_ssize_t, VECTORED

    def counted(*arguments: Any) -> int:
        with lock:
            ledger.words[BEGUN] += 1
        try:
            return int(real(*arguments))
        finally:
            with lock:
                ledger.words[ENDED] += 1

    function = kind(counted)
    libc.calls.pwritev = ctypes.cast(function, ctypes.c_void_p).value or 0
    return function


class Victim:
    """One writer: it stores pages and releases them until it is killed."""

    def __init__(self, order: dict[str, Any], ledger: Ledger) -> None:
        self._order = order
        self._ledger = ledger
        self._chance = random.Random(order["seed"])
        self._pages = NumberedPages(order["page_nbytes"])
        self._numbers: Iterator[int] = itertools.count(order["first_number"])
        self._held: dict[int, int] = {}  # frame of each page that is stored, by number

    async def write_for_ever(self) -> None:
        """Open the slab and write."""
        order = self._order
        config = SlabConfig(
            *(Path(order["directory"]), order["capacity_nbytes"], order["page_nbytes"], b"k" * 32),
            queue_depth=order["queue_depth"] or self._chance.choice([1, 2, 8]),
            chunk_nbytes=self._chance.choice([65536, 262144, 2 << 20]),
            access=self._chance.choice(list(Access)),
        )
        backend = await SlabBackend.open(config, clock=RealClock())
        by_key = {bytes(self._pages.key(n)): n for n in range(order["first_number"])}
        entries = backend.entries()
        for key, frame in zip(entries.keys, entries.frames.tolist(), strict=True):
            self._held[by_key[bytes(key)]] = frame
        async with asyncio.TaskGroup() as group:
            for _ in range(WRITERS):
                group.create_task(self._put_for_ever(backend))

    async def _put_for_ever(self, backend: Backend) -> None:
        buffers = self._pages.buffers(BATCH_MAX)
        while True:
            count = self._chance.randint(1, BATCH_MAX)
            if count > backend.usage.free_frames:
                await self._release(backend, count)
                continue
            chosen = list(itertools.islice(self._numbers, count))
            self._pages.fill(buffers, chosen)
            batch = self._pages.batch(chosen, backend.reserve(count, after=-1))
            is_durable = self._chance.random() < self._order["sync_share"]
            durability = Durability.SYNC if is_durable else Durability.CACHE
            transfer = backend.put(batch, buffers, deadline_s=math.inf, durability=durability)
            told, unfinished = np.zeros(count, bool), True
            while unfinished:
                unfinished = await transfer.progress()
                fresh = (transfer.statuses == Status.LANDED) & ~told
                self._ledger.note(
                    np.array(chosen)[fresh].tolist(), SYNCED if is_durable else CACHED
                )
                told |= fresh
            await transfer.drained()
            self._held.update(zip(chosen, batch["frame"].tolist(), strict=True))

    async def _release(self, backend: Backend, count: int) -> None:
        """Make room; others may be writing all there is."""
        victims = self._chance.sample(sorted(self._held), min(len(self._held), 2 * count))
        self._ledger.note(victims, GONE)
        backend.release(np.array([self._held.pop(number) for number in victims], np.int64))
        await asyncio.sleep(0)


def live(order: dict[str, Any]) -> None:
    """The whole life of a victim."""
    ledger = Ledger(order["ledger"])
    kept = count_pwritev(ledger)
    while order["waits"] and not ledger.words[MAY_BEGIN]:
        time.sleep(0.001)
    asyncio.run(Victim(order, ledger).write_for_ever())
    del kept


def tell(number: int) -> None:
    """Answer."""
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def main() -> None:
    """Serve until standard input ends."""
    logging.disable()  # a disk without power fails, as it should
    jit.warm()  # all of it: a victim that compiled would be killed before its first write
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            try:
                live(order)
            finally:
                os._exit(1)
        tell(pid)
        _, status = os.waitpid(pid, 0)
        tell(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
