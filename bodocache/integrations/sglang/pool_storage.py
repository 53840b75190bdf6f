# SPDX-License-Identifier: Apache-2.0
"""The storage of one host pool of SGLang on one rank: its shards' pages, at this host's node.

Called by SGLang's threads. A call copies while it lasts and no longer, and lasts no longer than its
time limit; what has not come by then is a miss.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import digest
from bodocache.errors import NodeError
from bodocache.hints.reuse import Said
from bodocache.identity import Domain, KeyChain, Root
from bodocache.integrations.sglang.ahead import ReadAhead, Taken
from bodocache.integrations.sglang.host_pages import Copier, Pages, SlotArray
from bodocache.integrations.sglang.options import Options
from bodocache.node.direct import DirectNode, KeyArray, Line
from bodocache.node.said import said_to_json
from bodocache.pages import KEY_NBYTES, NOWHERE

Mask = NDArray[np.bool_]
Keys = Sequence[str]  # SGLang's: SHA-256 in hex, chained

STEP_PAGES = 32  # copied while those behind them are still read
_MOST_KNOWN = 1 << 16  # derived keys that are remembered: 16 MB


class ShardPages:
    """One shard of a pool: a chain of keys and the memory of their pages."""

    def __init__(self, root: Root, domain: Domain, pages: Pages, *, writes: bool) -> None:
        """``writes``: this rank stores the shard; another one does where several hold it."""
        self.writes = writes
        self.nbytes = pages.nbytes
        self._pages = pages
        self._chain = KeyChain(domain, root)
        # By SGLang's key. Of the root, too: the node's own root does not say which pages these are.
        self._known: dict[str, bytes] = {}
        self._copier: tuple[Line, Copier] | None = None
        self._lock = threading.Lock()

    def derive(self, keys: Keys) -> KeyArray:
        """Our keys, u8[n, 32]."""
        return self._chain.engine_keys(list(map(str.encode, keys)))

    def remember(self, keys: Keys, derived: KeyArray) -> None:
        """They will be asked for again, and deriving takes half a microsecond each."""
        if len(self._known) + len(keys) > _MOST_KNOWN:
            self._known = {}
        joined = derived.tobytes()
        at = range(0, len(joined), KEY_NBYTES)
        self._known.update(zip(keys, (joined[i : i + KEY_NBYTES] for i in at), strict=True))

    def keys(self, keys: Keys) -> KeyArray:
        """As :meth:`derive`, of keys some of which are remembered."""
        known = self._known
        fresh = [key for key in keys if key not in known]
        if fresh:
            self.remember(fresh, self.derive(fresh))
            if self._known is not known:  # it was full
                return self.derive(keys)
        joined = bytearray().join([known[key] for key in keys])
        return np.frombuffer(joined, np.uint8).reshape(-1, KEY_NBYTES)

    def copier(self, line: Line) -> Copier:
        """What copies between the pool and the node's memory."""
        with self._lock:
            if self._copier is None or self._copier[0] is not line:
                self._copier = (line, self._pages.copier(line.pages))
            return self._copier[1]


class _Named(NamedTuple):
    """Pages that SGLang asked for by name."""

    line: Line
    keys: Keys
    chains: list[KeyArray]  # of each shard
    pages: int  # that are there


class PoolStorage:
    """Exists, get and set of the pages of one pool."""

    def __init__(self, shards: Sequence[ShardPages], node: DirectNode, options: Options) -> None:
        line = node.line
        room = 0 if line is None else int(options.read_ahead_share * len(line.pages))
        self.page_nbytes = sum(shard.nbytes for shard in shards)
        self._shards = tuple(shards)
        self._node, self._options = node, options
        self._named: deque[_Named] = deque()
        self._ahead = [
            ReadAhead(
                options.tenant,
                due_s=options.read_deadline_s,
                keep_s=options.read_ahead_s,
                pages=max(1, room // len(shards)),
            )
            for _ in shards
        ]

    def leading(self, keys: Keys) -> int:
        """How many leading pages are there; reading them begins."""
        line = self._node.line
        if line is None or not keys:
            return 0
        chains = [shard.derive(keys) for shard in self._shards]
        try:
            pages = min(
                line.leading(it, tenant=self._options.tenant, within_s=self._options.patience_s)
                for it in chains
            )
        except NodeError:
            return 0
        self._named.append(_Named(line, keys, chains, pages))
        self._node.soon()  # reading begins in another thread: nobody waits for it here
        return pages

    def holds(self, keys: Keys) -> Mask:
        """Whether each page is there, whatever is there of the pages before it."""
        line, held = self._node.line, np.zeros(len(keys), np.bool_)
        if line is None or not keys:
            return held
        try:
            parts = [
                line.holds(shard.keys(keys), within_s=self._options.patience_s)
                for shard in self._shards
            ]
        except NodeError:
            return held
        held[:] = np.logical_and.reduce(parts)
        return held

    def get(
        self, keys: Keys, slots: SlotArray, copier_of: Callable[[Line], Copier] | None = None
    ) -> Mask:
        """Bring pages to ``slots``; whether each came, with the bytes that were stored.

        ``copier_of`` takes the place of the pool's memory.
        """
        until_s = time.monotonic() + self._options.read_deadline_s
        line, landed = self._node.line, np.ones(len(keys), np.bool_)
        if line is None:
            return np.zeros(len(keys), np.bool_)
        self._begin_named()
        for shard, ahead in zip(self._shards, self._ahead, strict=True):
            copier = copier_of(line) if copier_of is not None else shard.copier(line)
            landed &= self._get(line, ahead, shard.keys(keys), slots, copier, until_s)
        return landed

    def set(
        self,
        keys: Keys,
        slots: SlotArray,
        before: Keys = (),
        copier_of: Callable[[Line], Copier] | None = None,
    ) -> bool:
        """Store pages from ``slots``, behind the pages ``before``; False where nobody took them.

        What the node has no room for is taken, and lost.
        """
        line, stored = self._node.line, True
        if line is None:
            return False
        for shard in self._shards:
            if shard.writes:
                copier = copier_of(line) if copier_of is not None else shard.copier(line)
                stored &= self._set(line, shard, [*before, *keys], len(before), slots, copier)
        return stored

    def tidy(self) -> None:
        """Begin to read what was named; let go of pages that nobody came for."""
        self._begin_named()
        for ahead in self._ahead:
            ahead.tidy()

    def _begin_named(self) -> None:
        while self._named:
            with suppress(IndexError):  # another thread was faster
                line, keys, chains, pages = self._named.popleft()
                for shard, ahead, chain in zip(self._shards, self._ahead, chains, strict=True):
                    shard.remember(keys, chain)
                    ahead.name(line, chain[:pages])

    def _get(
        self,
        line: Line,
        ahead: ReadAhead,
        keys: KeyArray,
        slots: SlotArray,
        copier: Copier,
        until_s: float,
    ) -> Mask:
        landed = np.zeros(len(keys), np.bool_)
        try:
            for taken in ahead.take(line, keys):
                mine, ours = keys[taken.ours], slots[taken.ours]
                good, bad = self._land(taken, mine, ours, copier, until_s)
                landed[taken.ours] = good
                ahead.done(taken, bad)
        except NodeError:
            pass  # what has come, has
        return landed

    def _land(
        self, taken: Taken, keys: KeyArray, slots: SlotArray, copier: Copier, until_s: float
    ) -> tuple[Mask, SlotArray]:
        """Copy a run as its pages come; which came, and which had other bytes than were stored."""
        _, incoming, theirs, _ = taken
        good, bad = np.zeros(len(keys), np.bool_), []
        for first in range(0, len(keys), STEP_PAGES):
            step = slice(theirs.start + first, min(theirs.start + first + STEP_PAGES, theirs.stop))
            taken.batch.line.wait(incoming, step, until_s)
            is_final = incoming.is_final[step].copy()  # the last that is set of a page
            came = step.start + np.flatnonzero(is_final & (incoming.slots[step] != NOWHERE))
            mine = came - theirs.start
            moved = copier.from_rows(incoming.slots[came], slots[mine])
            right = (digest.seeded(moved, keys[mine]) == incoming.digests[came]).all(axis=1)
            good[mine[right]] = True
            bad.append(came[~right])
        return good, np.concatenate(bad)

    def _set(
        self,
        line: Line,
        shard: ShardPages,
        chain: Keys,
        supplied: int,
        slots: SlotArray,
        copier: Copier,
    ) -> bool:
        keys = shard.keys(chain)
        said = said_to_json(Said.with_request(None, None, self._options.tenant))

        def fill(positions: SlotArray, rows: SlotArray) -> NDArray[np.uint64]:
            return digest.seeded(copier.to_rows(slots[positions - supplied], rows), keys[positions])

        try:
            line.store(keys, supplied, said, fill, within_s=self._options.write_deadline_s)
        except NodeError:
            return False
        return True
