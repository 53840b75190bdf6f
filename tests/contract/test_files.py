# SPDX-License-Identifier: Apache-2.0
"""A process that runs out of open files (EMFILE), really."""

import asyncio
import itertools
import os
import resource
from contextlib import contextmanager

from bodocache.errors import BackendError
from bodocache.io.backend import Status

NUMBERS = list(range(8))


@contextmanager
def room_for(files, top):
    """Let the process open so many files more; ``top``: the last that is open."""
    fillers = []
    while True:  # the limit is on a descriptor's number: no gaps below
        fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        fillers.append(fd)
        if fd > top:
            break
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1 + files, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)


def test_an_opening_that_finds_no_file_left_at_any_step_says_so_and_leaves_nothing_open(
    storage, open_files
):
    batches = []

    async def first_life(backend):
        batches.append(await storage.put(backend, NUMBERS))

    async def open_with(files):
        """Whether it could be opened."""
        await asyncio.to_thread(len, "a thread")  # and what the loop itself keeps open
        before = open_files()
        with room_for(files, before[-1]):
            try:
                backend = await storage.open()
            except BackendError as error:
                message, backend = str(error), None
        if backend is None:
            assert "Too many open files" in message
            assert open_files() == before
            return False
        statuses, _, buffers = await storage.get(backend, batches[0])
        assert (statuses == Status.LANDED).all()
        assert not storage.wrong(NUMBERS, statuses, buffers)
        await backend.close()
        return True

    storage.run(first_life)
    for files in itertools.count():
        if asyncio.run(open_with(files)):
            break


def test_what_is_open_works_on_without_a_file_left(storage, open_files):
    async def scenario(backend):
        with room_for(0, open_files()[-1]):
            batch = await storage.put(backend, NUMBERS)
            statuses, _, buffers = await storage.get(backend, batch)
        assert (statuses == Status.LANDED).all()
        assert not storage.wrong(NUMBERS, statuses, buffers)

    storage.run(scenario)
