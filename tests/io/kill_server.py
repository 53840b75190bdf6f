# SPDX-License-Identifier: Apache-2.0
"""The victims of the kill test: a warm process that forks one writer per order, to be killed.

Orders come as JSON lines on standard input; the answer to each is the victim's process id. Victims
tell the oracle what they did in a shared file: words that survive a kill as any shared memory does.

word 0             words of the log that are valid
word 1, 2          pwritev calls begun, and ended
word 16 and on     the log: number << 1 | 1 (this page was acknowledged) or number << 1 (from now on
                   it may be gone)
"""

import asyncio
import ctypes
import itertools
import json
import math
import mmap
import os
import random
import sys
import threading
from pathlib import Path

import numpy as np

from bodocache import jit
from bodocache.clock import RealClock
from bodocache.io import libc
from bodocache.io.backend import Durability, Status
from bodocache.io.config import Access, SlabConfig
from bodocache.io.slab import SlabBackend
from bodocache.testing import NumberedPages

BEGUN, ENDED, LOG = 1, 2, 16
VECTORED = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong)
WRITERS = 3  # so that one prepares pages while another's are on their way
BATCH_MAX = 32


class Ledger:
    """The shared words, as a victim writes them."""

    def __init__(self, path):
        with Path(path).open("r+b") as file:
            self.words = np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint64)

    def note(self, numbers, *, acknowledged):
        end = int(self.words[0])
        noted = [number << 1 | acknowledged for number in numbers]
        self.words[LOG + end : LOG + end + len(noted)] = noted
        self.words[0] = end + len(noted)


def count_pwritev(ledger):
    real, lock = ctypes.CDLL(None, use_errno=True).pwritev, threading.Lock()
    kind = ctypes.CFUNCTYPE(ctypes.c_ssize_t, *VECTORED, use_errno=True)
    real.restype, real.argtypes = ctypes.c_ssize_t, VECTORED

    def counted(*arguments):
        with lock:
            ledger.words[BEGUN] += 1
        try:
            return real(*arguments)
        finally:
            with lock:
                ledger.words[ENDED] += 1

    ledger.counted = kind(counted)
    libc.calls.pwritev = ctypes.cast(ledger.counted, ctypes.c_void_p).value


async def write_for_ever(order, ledger):
    chance = random.Random(order["seed"])
    config = SlabConfig(
        Path(order["directory"]),
        order["capacity_nbytes"],
        order["page_nbytes"],
        b"k" * 32,
        queue_depth=chance.choice([1, 2, 8]),
        chunk_nbytes=chance.choice([65536, 262144, 2 << 20]),
        access=chance.choice(list(Access)),
    )
    backend = await SlabBackend.open(config, clock=RealClock())
    pages = NumberedPages(order["page_nbytes"])
    numbers = itertools.count(order["first_number"])
    by_key = {bytes(pages.key(n)): n for n in range(order["first_number"])}
    entries = backend.entries()
    held = {by_key[bytes(k)]: int(f) for k, f in zip(entries.keys, entries.frames, strict=True)}
    async with asyncio.TaskGroup() as group:
        for _ in range(WRITERS):
            group.create_task(put_for_ever(backend, pages, numbers, held, chance, ledger))


async def put_for_ever(backend, pages, numbers, held, chance, ledger):
    buffers = pages.buffers(BATCH_MAX)
    while True:
        count = chance.randint(1, BATCH_MAX)
        room = backend.usage.total_frames - backend.usage.used_frames
        if count > room:
            await release(backend, held, chance, count, ledger)
            continue
        chosen = list(itertools.islice(numbers, count))
        pages.fill(buffers, chosen)
        batch = pages.batch(chosen, backend.reserve(count, after=-1))
        durability = Durability.SYNC if chance.random() < 0.1 else Durability.CACHE
        transfer = backend.put(batch, buffers, deadline_s=math.inf, durability=durability)
        told = np.zeros(count, bool)
        unfinished = True
        while unfinished:
            unfinished = await transfer.progress()
            fresh = (transfer.statuses == Status.LANDED) & ~told
            ledger.note(np.array(chosen)[fresh].tolist(), acknowledged=1)
            told |= fresh
        await transfer.drained()
        held.update(zip(chosen, batch["frame"].tolist(), strict=True))


async def release(backend, held, chance, count, ledger):
    """Make room; others may be writing all there is."""
    victims = chance.sample(sorted(held), min(len(held), 2 * count))
    ledger.note(victims, acknowledged=0)
    backend.release(np.array([held.pop(number) for number in victims], np.int64))
    await asyncio.sleep(0)


def live(order):
    ledger = Ledger(order["ledger"])
    count_pwritev(ledger)
    asyncio.run(write_for_ever(order, ledger))


def tell(number):
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def main():
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
