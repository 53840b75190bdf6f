# SPDX-License-Identifier: Apache-2.0
"""Storage in use by several tasks at once, and closed under them."""

import asyncio
import itertools
import math
import random

import numpy as np

from bodocache.errors import CacheClosed, TierFull
from bodocache.io.backend import Status

LIVES = 8
SHARED = [1, 2, 3, 4]
TASKS, ROUNDS = 4, 15


class Ledger:
    """What tasks stored, over all lives of a storage: the oracle."""

    def __init__(self, storage):
        self.storage = storage
        self.numbers = itertools.count(1)
        self.records = {}  # of acknowledged pages, by number
        self.seen = 0  # pages compared

    async def put_for_ever(self, backend, chance):
        while True:
            chosen = list(itertools.islice(self.numbers, chance.randint(1, 4)))
            try:
                batch = self.storage.pages.batch(chosen, backend.reserve(len(chosen), after=-1))
            except TierFull:
                victims = chance.sample(sorted(self.records), len(self.records) // 2)
                frames = [int(self.records.pop(number)["frame"]) for number in victims]
                backend.release(np.array(frames, np.int64))
                await asyncio.sleep(0)
                continue
            transfer = backend.put(batch, self.storage.of(chosen), deadline_s=math.inf)
            await transfer.drained()
            for i in np.flatnonzero(transfer.statuses == Status.LANDED).tolist():
                self.records[chosen[i]] = batch[i]

    async def get_for_ever(self, backend, chance):
        while True:
            chosen = chance.sample(sorted(self.records), min(5, len(self.records)))
            await self.get(backend, chosen)
            await asyncio.sleep(0)

    async def get(self, backend, numbers):
        """Statuses of a get of acknowledged pages, every byte of what landed compared."""
        storage = self.storage
        batch = storage.pages.batch(numbers, np.zeros(len(numbers), np.int64))
        batch["frame"] = [self.records[number]["frame"] for number in numbers]
        buffers = storage.canaries(len(numbers))
        transfer = backend.get(batch, buffers, deadline_s=math.inf)
        await transfer.drained()
        assert not storage.wrong(numbers, transfer.statuses, buffers)
        self.seen += len(numbers)
        buffers[:] = storage.canary
        await asyncio.sleep(0)
        assert (buffers == storage.canary).all()
        return transfer.statuses.tolist()


async def until_closed(coroutine):
    try:
        await coroutine
    except CacheClosed:
        return


def test_a_storage_that_is_restarted_under_load_serves_what_it_acknowledged(storage):
    ledger, chance = Ledger(storage), random.Random(3)

    async def life():
        backend = await storage.open()
        known = sorted(ledger.records)
        assert await ledger.get(backend, known) == [Status.LANDED] * len(known)
        stray = np.setdiff1d(
            backend.entries().frames, [record["frame"] for record in ledger.records.values()]
        )
        backend.release(stray)  # written, and never acknowledged
        working = [ledger.put_for_ever(backend, chance) for _ in range(2)]
        working += [ledger.get_for_ever(backend, chance) for _ in range(2)]
        async with asyncio.TaskGroup() as group:
            for coroutine in working:
                group.create_task(until_closed(coroutine))
            await asyncio.sleep(chance.uniform(0.01, 0.05))
            await backend.close()

    for _ in range(LIVES):
        asyncio.run(life())
    assert next(ledger.numbers) > 10 * LIVES, "hardly anything was stored: the test has no teeth"
    assert ledger.seen > 10 * LIVES


def test_four_tasks_have_each_their_own_pages_and_share_others(storage):
    async def work(backend, shared, task):
        for turn in range(ROUNDS):
            own = [100 * (task + 1) + 4 * turn + i for i in range(4)]
            batch = await storage.put(backend, own)
            asked = np.concatenate([batch, shared])
            asked["slot"] = np.arange(len(asked))
            statuses, _, buffers = await storage.get(backend, asked)
            assert (statuses == Status.LANDED).all()
            assert not storage.wrong(own + SHARED, statuses, buffers)
            backend.release(batch["frame"])
            statuses, _, _ = await storage.get(backend, batch)
            assert (statuses == Status.MISS).all()

    async def scenario(backend):
        shared = await storage.put(backend, SHARED)
        async with asyncio.TaskGroup() as group:
            for task in range(TASKS):
                group.create_task(work(backend, shared, task))
        assert backend.usage.used_frames == len(SHARED)
        assert len(backend.entries().keys) == len(SHARED)

    storage.run(scenario)


def test_tasks_that_store_and_release_one_page_over_and_over_never_read_another(storage):
    async def work(backend, task):
        for turn in range(ROUNDS):
            number = 1000 * task + turn
            batch = await storage.put(backend, [number])
            stale = [storage.get(backend, batch) for _ in range(2)]
            results = asyncio.gather(*stale)
            await asyncio.sleep(0)
            backend.release(batch["frame"])  # while it is read: its bytes, or a miss
            for statuses, _, buffers in await results:
                assert set(statuses.tolist()) <= {Status.LANDED, Status.MISS}
                assert not storage.wrong([number], statuses, buffers)

    async def scenario(backend):
        async with asyncio.TaskGroup() as group:
            for task in range(TASKS):
                group.create_task(work(backend, task))

    storage.run(scenario)
