# SPDX-License-Identifier: Apache-2.0
"""What waits for a worker thread, in memory that compiled code shares: taken without Python's lock.

Reads go first, each kind by deadline, and no write begins beside a read, for it would halve its
rate. A write that has waited for WRITE_PATIENCE_S takes turns with reads. Every access holds a
mutex while it scans the slots, 0.1 us for 64 of them: whoever fills the table keeps them few.
"""

import itertools
import os
from contextlib import suppress
from typing import Any

import numpy as np
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from bodocache import jit
from bodocache.io import jobs, libc

FREE, WAITING, RUNNING, DONE = range(4)
NATIVE, PYTHON = 0, 1  # lanes: threads that never leave compiled code, threads that run Python
CAPACITY = 64  # slots to begin with
WRITE_PATIENCE_S = 0.05  # then a write takes turns with reads: they, or one that hangs, starve none
# Of a long queue the loop is told in bundles: woken for every page of 16 KiB, it did nothing else.
WAKE_AT = 32  # entries that have ended
WAKE_AFTER_US = 500  # since the first of them did

ENTRY = np.dtype(
    [
        ("state", "<i8"),
        ("id", "<i8"),  # by arrival
        ("batch", "<i8"),  # the transfer's number
        ("job", "<i8"),  # address of a JOB; of the native lane
        ("lane", "<i8"),
        ("writes", "<i8"),
        ("deadline_s", "<f8"),
        ("since_s", "<f8"),  # when it was submitted
    ]
)
_MUTEX, _SEMAPHORES = 0, 8  # words: pthread_mutex_t and sem_t have at most 64 bytes each
_SLOTS, _CAPACITY, _READING, _WRITING, _MAX_WRITING = range(24, 29)
_STOPPED, _EVENT_FD, _ANNOUNCED, _ONE, _CALLS, _WROTE_LAST, _FIRST_ENDED_US = range(29, 36)
_IDLE = 36  # of each lane: threads that look for nothing until they are woken
_WORDS = 38

_int64_at = jit.pointer_to(jit.i8)
_entry_at = jit.pointer_to(jit.record(ENTRY))


class Table:
    """The shared memory, as the loop sees it. Threads keep it alive as long as they use it."""

    def __init__(self, max_writing: int) -> None:
        self.event_fd = -1
        self._words = np.zeros(_WORDS, np.int64)
        self._slots = np.zeros(CAPACITY, ENTRY)
        self._ids = itertools.count()
        self.address = self._words.ctypes.data
        self.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._words[_MAX_WRITING] = max_writing
        self._words[_EVENT_FD] = self.event_fd
        self._words[_ONE] = 1
        self._words[_CALLS] = libc.calls.address
        _begin(self.address, self._slots.ctypes.data, CAPACITY)

    def __del__(self) -> None:  # the last thread that could wake the loop is gone
        if self.event_fd >= 0:
            os.close(self.event_fd)

    @property
    def done(self) -> int:
        """How many entries have ended and are not collected."""
        return int(np.count_nonzero(self._slots["state"] == DONE))

    def ids(self, count: int) -> list[int]:
        """Ids of the next ``count`` entries; with equal deadlines the lower is taken first."""
        return list(itertools.islice(self._ids, count))

    def push(self, rows: NDArray[np.void]) -> None:
        """Let ENTRY rows wait. Each keeps a slot until it was collected or withdrawn."""
        if _push(self.address, rows):
            return
        taken = int(np.count_nonzero(self._slots["state"] != FREE))
        larger = np.zeros(2 * max(len(self._slots), taken + len(rows)), ENTRY)
        _move_slots(self.address, larger.ctypes.data, len(larger))
        self._slots = larger
        _push(self.address, rows)

    def collect(self) -> list[int]:
        """Ids of what has ended since the last time."""
        with suppress(BlockingIOError):  # called without having been woken
            os.eventfd_read(self.event_fd)
        return self._drop(DONE, -1)

    def withdraw(self, batch: int) -> list[int]:
        """Ids of the entries of ``batch`` that no thread has taken; none will."""
        return self._drop(WAITING, batch)

    def allow_writing(self, threads: int) -> None:
        """So many threads may write at once from now on; those that do go on.

        Also wakes threads for writes that may begin by now.
        """
        _allow_writing(self.address, threads)

    def stop(self, threads: int) -> list[int]:
        """End the threads as soon as they are free, and withdraw all that waits."""
        _stop(self.address, threads)
        return self._drop(WAITING, -1)

    def _drop(self, state: int, batch: int) -> list[int]:
        ids = np.empty(len(self._slots), np.int64)
        dropped: list[int] = ids[: _drop(self.address, state, batch, ids)].tolist()
        return dropped


def take(table: Table, lane: int) -> tuple[int, int]:
    """Wait for an entry of ``lane``: its slot and id, or a slot of -1 when the thread must end."""
    slot, id_, _ = _take(table.address, lane)
    return slot, id_


def finish(table: Table, slot: int) -> None:
    """Note that what was taken from ``slot`` has ended, and wake the loop."""
    _finish(table.address, slot)


def work(table: Table) -> None:
    """Do what waits in the native lane until the table is stopped: the whole life of a thread."""
    _work(table.address)


@jit.compiled(jit.i8)
def _work(at: Any) -> None:
    calls = _words(at)[_CALLS]
    scratch = np.empty(jobs.SCRATCH_WORDS, np.int64)
    while True:
        slot, _, job = _take(at, NATIVE)
        if slot < 0:
            return
        jobs.perform(job, calls, scratch)
        _finish(at, slot)


@jit.compiled(jit.i8, jit.i8)
def _take(at: Any, lane: Any) -> Any:
    words = _words(at)
    semaphore = at + 8 * (_SEMAPHORES + 8 * lane)
    scratch = np.empty(2, np.int64)
    libc.mutex_lock(at)
    while True:
        slots = carray(_entry_at(words[_SLOTS]), words[_CAPACITY])
        stopped = words[_STOPPED]
        old_s = jit.now_s(scratch) - WRITE_PATIENCE_S
        may_s, first_s = _write_before(words, old_s), -np.inf if words[_WROTE_LAST] else old_s
        best = -1 if stopped else _first(slots, lane, may_s, first_s)
        id_, job = np.int64(-1), np.int64(0)
        if best >= 0:
            slots[best].state = RUNNING
            id_, job, writes = slots[best].id, slots[best].job, slots[best].writes
            words[_WRITING] += writes
            words[_READING] += 1 - writes
            words[_WROTE_LAST] = writes
        else:
            words[_IDLE + lane] += 1
        libc.mutex_unlock(at)
        if best >= 0 or stopped:
            return np.int64(best), id_, job
        libc.sem_wait(semaphore)  # EINTR is a look in vain
        libc.mutex_lock(at)


@jit.compiled(jit.array("i8"), jit.f8)
def _write_before(words: Any, old_s: Any) -> Any:
    """Writes submitted before this time may begin now: all, those since ``old_s``, or none."""
    if words[_WRITING] >= words[_MAX_WRITING]:
        return -np.inf
    return np.inf if words[_READING] == 0 else old_s


@jit.compiled(jit.array(ENTRY), jit.i8, jit.f8)
def _waiting_writes(slots: Any, lane: Any, before_s: Any) -> Any:
    """How many writes of ``lane`` wait that were submitted before then."""
    count = 0
    for i in range(len(slots)):
        one = slots[i]
        waits = one.state == WAITING and one.writes != 0 and one.lane == lane
        count += waits and one.since_s <= before_s
    return count


@jit.compiled(jit.i8, jit.array("i8"), jit.i8, jit.i8)
def _wake(at: Any, words: Any, lane: Any, count: Any) -> None:
    """Wake ``count`` of the lane's idle threads, or all. Under the mutex.

    The others look for more by themselves: waking one costs as much as writing a small page.
    """
    woken = max(0, min(count, words[_IDLE + lane]))
    words[_IDLE + lane] -= woken
    for _ in range(woken):
        libc.sem_post(at + 8 * (_SEMAPHORES + 8 * lane))


@jit.compiled(jit.i8, jit.array("i8"), jit.i8)
def _wake_writes(at: Any, words: Any, looking: Any) -> None:
    """Wake threads for writes that were passed over and may begin now. Under the mutex.

    ``looking``: the lane of a thread that is about to look for more, or -1.
    """
    slots = carray(_entry_at(words[_SLOTS]), words[_CAPACITY])
    before_s = _write_before(words, jit.now_s(np.empty(2, np.int64)) - WRITE_PATIENCE_S)
    room = words[_MAX_WRITING] - words[_WRITING]
    for lane in (NATIVE, PYTHON):
        some = min(room, _waiting_writes(slots, lane, before_s))
        _wake(at, words, lane, some - (1 if lane == looking else 0))


@jit.compiled(jit.i8, jit.i8)
def _allow_writing(at: Any, threads: Any) -> None:
    words = _words(at)
    libc.mutex_lock(at)
    words[_MAX_WRITING] = threads
    _wake_writes(at, words, -1)
    libc.mutex_unlock(at)


@jit.compiled(jit.array(ENTRY), jit.i8, jit.f8, jit.f8)
def _first(slots: Any, lane: Any, write_before_s: Any, old_s: Any) -> Any:
    """The slot to take first, or -1."""
    best = -1
    for i in range(len(slots)):
        one = slots[i]
        if one.state != WAITING or one.lane != lane:
            continue
        if one.writes != 0 and one.since_s > write_before_s:
            continue
        if best < 0 or _precedes(one, slots[best], old_s):
            best = i
    return best


@jit.compiled(jit.record(ENTRY), jit.record(ENTRY), jit.f8)
def _precedes(one: Any, other: Any, old_s: Any) -> Any:
    if one.writes != other.writes:
        write = one if one.writes else other
        return (one.writes != 0) == (write.since_s <= old_s)
    if one.deadline_s != other.deadline_s:
        return one.deadline_s < other.deadline_s
    return one.id < other.id


@jit.compiled(jit.i8, jit.i8)
def _finish(at: Any, slot: Any) -> None:
    words = _words(at)
    libc.mutex_lock(at)
    slots = carray(_entry_at(words[_SLOTS]), words[_CAPACITY])
    wrote = slots[slot].writes
    slots[slot].state = DONE
    words[_WRITING] -= wrote
    words[_READING] -= 1 - wrote
    wakes = words[_ANNOUNCED] == 0 and _is_time(words, slots, slots[slot].batch)
    if wakes:
        words[_ANNOUNCED] = 1
    _wake_writes(at, words, slots[slot].lane)
    libc.mutex_unlock(at)
    if wakes:
        libc.write(words[_EVENT_FD], at + 8 * _ONE, 8)


@jit.compiled(jit.array("i8"), jit.array(ENTRY), jit.i8)
def _is_time(words: Any, slots: Any, batch: Any) -> Any:
    """Whether the loop should look, now that one of ``batch`` has ended. Under the mutex.

    At once where a batch has ended, whatever hangs beside it; where nothing waits or nothing runs:
    then nobody may come who would say it later.
    """
    ended, waits, runs, goes_on = 0, False, False, False
    for i in range(len(slots)):
        is_waiting, is_running = slots[i].state == WAITING, slots[i].state == RUNNING
        ended += slots[i].state == DONE
        waits |= is_waiting
        runs |= is_running
        goes_on |= slots[i].batch == batch and (is_waiting or is_running)
    now_us = np.int64(1e6 * jit.now_s(np.empty(2, np.int64)))
    if ended == 1:
        words[_FIRST_ENDED_US] = now_us
    old = now_us - words[_FIRST_ENDED_US] >= WAKE_AFTER_US
    return ended >= WAKE_AT or old or not (waits and runs and goes_on)


@jit.compiled(jit.i8, jit.array(ENTRY))
def _push(at: Any, rows: Any) -> Any:
    """Put ``rows`` into free slots and wake threads for them; nothing where too few are free."""
    words = _words(at)
    libc.mutex_lock(at)
    slots = carray(_entry_at(words[_SLOTS]), words[_CAPACITY])
    free = 0
    for i in range(len(slots)):
        free += slots[i].state == FREE
    put = 0
    for i in range(len(slots)):
        if free >= len(rows) and put < len(rows) and slots[i].state == FREE:
            slots[i] = rows[put]
            slots[i].state = WAITING
            put += 1
    for lane in (NATIVE, PYTHON):
        mine = 0
        for i in range(put):
            mine += rows[i].lane == lane
        _wake(at, words, lane, mine)
    _wake_writes(at, words, -1)  # those woken may take writes whose patience has ended
    libc.mutex_unlock(at)
    return put == len(rows)


@jit.compiled(jit.i8, jit.i8, jit.i8, jit.array("i8"))
def _drop(at: Any, state: Any, batch: Any, ids: Any) -> Any:
    """Free the slots in ``state`` (of ``batch``, -1 for all); write their ids, return how many."""
    words = _words(at)
    libc.mutex_lock(at)
    slots = carray(_entry_at(words[_SLOTS]), words[_CAPACITY])
    count = 0
    for i in range(len(slots)):
        if slots[i].state == state and (batch < 0 or slots[i].batch == batch):
            ids[count] = slots[i].id
            slots[i].state = FREE
            count += 1
    if state == DONE:
        words[_ANNOUNCED] = 0  # whatever ends from now on wakes the loop again
    libc.mutex_unlock(at)
    return count


@jit.compiled(jit.i8, jit.i8, jit.i8)
def _begin(at: Any, slots: Any, capacity: Any) -> None:
    """Make ready words of zeros; a pthread_mutex_t of zeros is an open one."""
    words = _words(at)
    words[_SLOTS], words[_CAPACITY] = slots, capacity
    libc.sem_init(at + 8 * _SEMAPHORES, 0, 0)
    libc.sem_init(at + 8 * (_SEMAPHORES + 8), 0, 0)


@jit.compiled(jit.i8, jit.i8, jit.i8)
def _move_slots(at: Any, larger: Any, capacity: Any) -> None:
    words = _words(at)
    libc.mutex_lock(at)
    old = carray(_entry_at(words[_SLOTS]), words[_CAPACITY])
    new = carray(_entry_at(larger), capacity)
    for i in range(len(old)):
        new[i] = old[i]
    words[_SLOTS], words[_CAPACITY] = larger, capacity
    libc.mutex_unlock(at)


@jit.compiled(jit.i8, jit.i8)
def _stop(at: Any, threads: Any) -> None:
    words = _words(at)
    libc.mutex_lock(at)
    words[_STOPPED] = 1
    libc.mutex_unlock(at)
    for _ in range(threads):
        libc.sem_post(at + 8 * _SEMAPHORES)
        libc.sem_post(at + 8 * (_SEMAPHORES + 8))


@jit.compiled(jit.i8)
def _words(at: Any) -> Any:
    return carray(_int64_at(at), _WORDS)
