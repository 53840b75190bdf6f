# SPDX-License-Identifier: Apache-2.0
"""Pages that SGLang asked for by name: the node reads them before SGLang asks for their bytes.

SGLang names a whole prompt and then gets it by batches, one at a time. All that was named is read
at once, as far as this rank's share of the host memory goes; the rest as batches are got. What is
not got within a time is let go of.
"""

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bodocache.errors import NodeLost
from bodocache.hints.reuse import Said
from bodocache.node.direct import Incoming, KeyArray, Line, SlotArray
from bodocache.node.said import said_to_json

BATCH_PAGES = 128  # SGLang gets no more at once (STORAGE_BATCH_SIZE)
_NONE = np.empty(0, np.int64)


@dataclass(slots=True, eq=False)
class Batch:
    """Adjacent pages of a chain, named and not all got."""

    line: Line
    keys: KeyArray
    named_s: float
    incoming: Incoming | None = None  # None: not begun

    @property
    def last(self) -> int:
        """The number of its last page."""
        return len(self.keys) - 1


class Taken(NamedTuple):
    """A run of the pages asked for, and where it lies in what is on its way."""

    batch: Batch
    incoming: Incoming
    theirs: slice  # of the batch
    ours: slice  # of what was asked for


class ReadAhead:
    """What is on its way for one shard. Any thread may call."""

    def __init__(self, tenant: int, *, due_s: float, keep_s: float, pages: int) -> None:
        """``pages``: how many at most lie in the node's host memory for us, or are on the way."""
        self._tenant, self._due_s, self._keep_s, self._room = tenant, due_s, keep_s, pages
        self._lock = threading.Lock()
        self._begun: deque[Batch] = deque()
        self._waiting: deque[Batch] = deque()
        self._pages = 0  # of what was begun

    def name(self, line: Line, keys: KeyArray) -> None:
        """The pages ``keys``, which are there, may be got soon."""
        with self._lock:
            self._expire()
            pages = min(BATCH_PAGES, self._room)
            for first in range(0, len(keys), pages):
                batch = Batch(line, keys[first : first + pages], time.monotonic())
                if not self._is_known(batch):
                    self._waiting.append(batch)
            self._begin()

    def take(self, line: Line, keys: KeyArray) -> list[Taken]:
        """Where the pages ``keys`` are; what was not named is fetched now.

        Give each back by :meth:`done`. NodeLost: the node is gone.
        """
        with self._lock:
            self._expire()
            taken, first = [], 0
            while first < len(keys):
                one = self._run(line, keys, first)
                taken.append(one)
                first = one.ours.stop
            return taken

    def done(self, taken: Taken, bad: SlotArray = _NONE) -> None:
        """A run was got; those at ``bad``, of the batch, had other bytes than were stored."""
        batch, incoming, theirs, _ = taken
        with self._lock:
            if theirs.stop <= batch.last and not len(bad):
                return  # more of it will be got
            self._end(batch, incoming, bad)
            self._begin()

    def tidy(self) -> None:
        """Let go of what nobody came for."""
        with self._lock:
            self._expire()
            self._begin()

    def _run(self, line: Line, keys: KeyArray, first: int) -> Taken:
        """The longest run from page ``first`` on that is on its way, or is fetched now."""
        for batch in (*self._begun, *self._waiting):
            if batch.line is not line:
                continue
            for at in np.flatnonzero((batch.keys == keys[first]).all(axis=1))[:1].tolist():
                most = min(len(keys) - first, len(batch.keys) - at)
                same = (batch.keys[at : at + most] == keys[first : first + most]).all(axis=1)
                pages = most if same.all() else int(np.argmin(same))
                if batch.incoming is None:
                    self._waiting.remove(batch)
                    self._fetch(batch)
                assert batch.incoming is not None, "it was just begun"
                ours = slice(first, first + pages)
                return Taken(batch, batch.incoming, slice(at, at + pages), ours)
        batch = Batch(line, keys[first : first + BATCH_PAGES], time.monotonic())
        self._fetch(batch)
        assert batch.incoming is not None, "it was just begun"
        pages = len(batch.keys)
        return Taken(batch, batch.incoming, slice(0, pages), slice(first, first + pages))

    def _is_known(self, batch: Batch) -> bool:
        """Whether the same is on its way; then it is kept for as long again."""
        for known in (*self._begun, *self._waiting):
            if known.line is batch.line and np.array_equal(known.keys, batch.keys):
                known.named_s = batch.named_s
                return True
        return False

    def _begin(self) -> None:
        """Begin what there is room for."""
        while self._waiting and self._pages + len(self._waiting[0].keys) <= self._room:
            batch = self._waiting.popleft()
            try:
                self._fetch(batch)
            except NodeLost:
                return

    def _fetch(self, batch: Batch) -> None:
        said = said_to_json(Said.with_request(None, None, self._tenant))
        batch.incoming = batch.line.fetch(
            batch.keys, said, due_s=self._due_s, deadline_s=self._keep_s
        )
        self._begun.append(batch)
        self._pages += len(batch.keys)

    def _expire(self) -> None:
        until_s = time.monotonic() - self._keep_s
        for batch in [it for it in self._begun if it.named_s < until_s or not _is_open(it)]:
            assert batch.incoming is not None, "it was begun"
            self._end(batch, batch.incoming, _NONE)
        for batch in [it for it in self._waiting if it.named_s < until_s or not _is_open(it)]:
            self._waiting.remove(batch)

    def _end(self, batch: Batch, incoming: Incoming, bad: SlotArray) -> None:
        if batch in self._begun:
            self._begun.remove(batch)
            self._pages -= len(batch.keys)
            batch.line.end(incoming, bad)


def _is_open(batch: Batch) -> bool:
    return batch.line.dialog.is_open
