# SPDX-License-Identifier: Apache-2.0
"""Several backends as one: a directory, and so a link, each.

A run of pages is placed whole on one member, behind the page it continues where that has room.
A member whose writes keep failing, as on a full disk, gets no more pages; one whose reads keep
failing, or that hangs, is out of service, and its pages are misses, until a trial after a while
succeeds. One that could not be opened is tried again, too.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bodocache.clock import Clock
from bodocache.errors import (
    BackendError,
    BackendLocked,
    CacheClosed,
    ConfigError,
    LayoutError,
    LeaseError,
    TierFull,
)
from bodocache.io.backend import (
    Durability,
    Entries,
    Extent,
    OnLanded,
    Status,
    Usage,
)
from bodocache.io.columns import newest
from bodocache.io.joined import JoinedTransfer, Part
from bodocache.io.medium import fits
from bodocache.io.members import Member, Opener
from bodocache.pages import Reason

MEMBER_SHIFT = 40  # a frame is its member's number and, below these bits, its frame there
_LOCAL = (1 << MEMBER_SHIFT) - 1
_log = logging.getLogger(__name__)


class SpreadBackend:
    """Implements :class:`bodocache.io.backend.Backend` over others of one page size and form."""

    def __init__(self, members: Sequence[Member]) -> None:
        """Use :meth:`open`."""
        self._members = members
        self._observer: Callable[[Extent], None] | None = None
        self._revivals: list[asyncio.Task[None]] = []
        self._is_closed = False
        first = next(m.backend for m in members if m.backend is not None)
        self._name, self._page_nbytes = first.name, first.page_nbytes

    @classmethod
    async def open(cls, openers: Sequence[Opener], *, clock: Clock) -> Self:
        """Open every member; some may fail, and are tried again later.

        The pages of a member that comes later are lost: whoever holds the index has read
        :meth:`entries` by then.

        Raises:
            BackendLocked: another process writes to one of them.
            BackendError: none can be opened.
            ConfigError: they hold pages of different sizes.
        """
        members = [Member(i, opener, clock) for i, opener in enumerate(openers)]
        try:
            errors = [await member.try_open() for member in members]
            _check(members, errors)
            opened = cls(members)
            opened._drop_repeats()
            opened._revive_missing()
        except BaseException:
            await asyncio.gather(*(member.close() for member in members))
            raise
        return opened

    @property
    def name(self) -> str:
        """Its members' name."""
        return self._name

    @property
    def page_nbytes(self) -> int:
        """Bytes of one page."""
        return self._page_nbytes

    @property
    def observer(self) -> Callable[[Extent], None] | None:
        """Told of every completed extent of every member."""
        return self._observer

    @observer.setter
    def observer(self, observer: Callable[[Extent], None] | None) -> None:
        self._observer = observer
        for member in self._members:
            if member.backend is not None:
                member.backend.observer = observer

    @property
    def usage(self) -> Usage:
        """The sum; the free frames of a member that nothing is placed on count as used."""
        used = total = nbytes = 0
        budgets: list[int | None] = []
        for member in self._members:
            if member.backend is None:
                continue
            one = member.backend.usage
            serves = member.writable is not None
            used += one.used_frames if serves else one.total_frames
            total += one.total_frames
            nbytes += one.nbytes_on_disk
            budgets += [one.budget_frames] if serves else []
        limited = [budget for budget in budgets if budget is not None]
        is_limited = len(limited) == len(budgets)
        return Usage(used, total, nbytes, sum(limited) if is_limited and budgets else None)

    def entries(self) -> Entries:
        """Every page that a get would find, each key once."""
        columns = self._all_entries()
        chosen = _firsts(columns.keys)
        return Entries._make(column[chosen] for column in columns)

    def reserve(self, count: int, *, after: int) -> NDArray[np.int64]:
        """Take ``count`` frames, all of one member where one has room: the one of ``after`` first.

        Raises:
            TierFull: fewer than ``count`` are free; none is taken.
        """
        self._check_open()
        room = [(self._room(member), member) for member in self._members]
        if count > (free := sum(frames for frames, _ in room)):
            serving = sum(member.writable is not None for member in self._members)
            raise TierFull(
                f"storage: {count} frames requested, {free} of {self.usage.total_frames} free in"
                f" the {serving} of {len(self._members)} directories that take pages"
            )
        home = after >> MEMBER_SHIFT
        fitting = [one for one in room if one[0] >= count]
        most_first = sorted(
            fitting or room, key=lambda one: (one[1].number == home, one[0]), reverse=True
        )
        taken: list[NDArray[np.int64]] = []
        for frames_free, member in most_first:
            share = min(frames_free, count)
            if share and member.backend is not None:
                local = after & _LOCAL if member.number == home and after >= 0 else -1
                frames = member.backend.reserve(share, after=local)
                taken.append(frames | (member.number << MEMBER_SHIFT))
                count -= share
        return np.concatenate(taken) if taken else np.empty(0, np.int64)

    def check_reserved(self, frames: NDArray[np.int64], *, idle: bool = False) -> None:
        """Raise LeaseError unless every member says that its frames are."""
        parts = self._split(frames)
        if sum(len(positions) for _, positions in parts) < len(frames):
            raise LeaseError(f"storage: frames {frames.tolist()}: one is of no directory")
        for member, positions in parts:
            if member.backend is None:
                raise LeaseError(f"storage: frames of directory {member.number}: it is not open")
            member.backend.check_reserved(frames[positions] & _LOCAL, idle=idle)

    def release(self, frames: NDArray[np.int64]) -> None:
        """Give frames back, in service or not."""
        self.check_reserved(frames)
        for member, positions in self._split(frames):
            if member.backend is not None:
                member.backend.release(frames[positions] & _LOCAL)

    def get(
        self,
        batch: NDArray[np.void],
        buffers: NDArray[np.uint8],
        *,
        deadline_s: float,
        on_landed: OnLanded | None = None,
    ) -> JoinedTransfer:
        """Begin to read from every member that holds some of ``batch``."""
        self._check_open()
        joined = JoinedTransfer(len(batch), Status.MISS, Reason.NEVER_STORED)
        for member, positions in self._split(batch["frame"]):
            if (backend := member.readable) is None:
                joined.set(positions, Status.MISS, Reason.UNAVAILABLE)
                continue
            # The whole batch, so that positions stay what on_landed knows; others' are no frames.
            local = batch.copy()
            local["frame"] = -1
            local["frame"][positions] = batch["frame"][positions] & _LOCAL
            transfer = backend.get(local, buffers, deadline_s=deadline_s, on_landed=on_landed)
            joined.add(Part(transfer, positions, positions, member.reads.note))
        return joined

    def put(
        self,
        batch: NDArray[np.void],
        buffers: NDArray[np.uint8],
        *,
        deadline_s: float,
        durability: Durability = Durability.CACHE,
    ) -> JoinedTransfer:
        """Begin to write to every member that has reserved frames of ``batch``."""
        self._check_open()
        self.check_reserved(batch["frame"], idle=True)  # of all, before any member begins
        if not fits(np.ascontiguousarray(batch), len(buffers), self._page_nbytes):
            raise LayoutError(
                f"storage: slots {batch['slot'].tolist()}, bytes {batch['nbytes'].tolist()}:"
                f" expected slots below {len(buffers)} and pages of {self._page_nbytes} bytes"
            )
        joined = JoinedTransfer(len(batch), Status.FAILED, Reason.UNAVAILABLE)
        for member, positions in self._split(batch["frame"]):
            if (backend := member.writable) is None:
                continue
            local = batch[positions]
            local["frame"] &= _LOCAL
            transfer = backend.put(local, buffers, deadline_s=deadline_s, durability=durability)
            theirs = np.arange(len(positions))
            joined.add(Part(transfer, positions, theirs, member.writes.note))
            member.writes.watch_put(transfer)
        return joined

    @contextlib.contextmanager
    def hold_writes(self) -> Iterator[None]:
        """``with``: no write begins inside, on any member."""
        with contextlib.ExitStack() as stack:
            for member in self._members:
                if member.backend is not None:
                    stack.enter_context(member.backend.hold_writes())
            yield

    async def close(self) -> None:
        """Close every member; twice is harmless."""
        self._is_closed = True
        for revival in self._revivals:
            revival.cancel()
        await asyncio.gather(*self._revivals, return_exceptions=True)
        await asyncio.gather(*(member.close() for member in self._members))

    def _check_open(self) -> None:
        if self._is_closed:
            raise CacheClosed("storage: closed")

    def _room(self, member: Member) -> int:
        """How many frames it could take and write now."""
        if (backend := member.writable) is None:
            return 0
        usage = backend.usage
        budget = usage.free_frames if usage.budget_frames is None else usage.budget_frames
        return min(usage.free_frames, budget)

    def _split(self, frames: NDArray[np.int64]) -> list[tuple[Member, NDArray[np.int64]]]:
        """The members that ``frames`` lie on, each with the positions of its own."""
        numbers = frames >> MEMBER_SHIFT
        mine = ((member, np.flatnonzero(numbers == member.number)) for member in self._members)
        return [(member, positions) for member, positions in mine if len(positions)]

    def _all_entries(self) -> Entries:
        found = []
        for member in self._members:
            if member.backend is not None:
                entries = member.backend.entries()
                base = member.number << MEMBER_SHIFT
                found.append(entries._replace(frames=entries.frames | base))
        return Entries._make(np.concatenate(columns) for columns in zip(*found, strict=True))

    def _drop_repeats(self) -> None:
        """A page evicted from one member and stored on another is on both after a restart."""
        columns = self._all_entries()
        is_repeat = np.ones(len(columns.frames), np.bool_)
        is_repeat[_firsts(columns.keys)] = False
        with contextlib.suppress(BackendError):  # a reader's frames are the writer's
            self.release(columns.frames[is_repeat])

    def _revive_missing(self) -> None:
        loop = asyncio.get_running_loop()
        missing = [member for member in self._members if member.backend is None]
        self._revivals = [loop.create_task(self._revive(member)) for member in missing]

    async def _revive(self, member: Member) -> None:
        """Try to open ``member`` until it succeeds, then let it serve, empty."""
        while member.backend is None:
            await asyncio.sleep(member.reads.rest_s())
            with contextlib.suppress(BackendLocked):  # perhaps not the next time
                await member.try_open()
        member.backend.observer = self._observer
        with contextlib.suppress(BackendError):
            member.backend.release(member.backend.entries().frames)
        member.reads.succeed()
        _log.warning("storage: directory %d is in service", member.number)


def _firsts(keys: NDArray[np.uint8]) -> NDArray[np.int64]:
    return newest(keys, np.zeros(len(keys), np.uint64))


def _check(members: Sequence[Member], errors: Sequence[Exception | None]) -> None:
    sizes = {member.backend.page_nbytes for member in members if member.backend is not None}
    if not sizes:
        raise BackendError(f"storage: no directory can be opened: {errors[0]}")
    if len(sizes) > 1:
        raise ConfigError(f"storage: pages of {sorted(sizes)} bytes; expected one size")
