# SPDX-License-Identifier: Apache-2.0
"""The cache an engine holds: match, load, store, rotate, stats, close.

It owns host memory, the disk tier and every background task; the device pool belongs to the caller.
All methods are called from the event loop that opened it.
"""

import asyncio
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.clock import Clock, RealClock
from bodocache.config import CacheConfig, load_config
from bodocache.errors import CacheClosed, ConfigError, LayoutError
from bodocache.identity import KeyChain, Root, Shard
from bodocache.io import SlabBackend, SlabConfig
from bodocache.io.backend import Backend
from bodocache.layout import Layout, LayoutKind
from bodocache.move.load import Load
from bodocache.move.orchestrator import Orchestrator, Traffic
from bodocache.move.store import Store
from bodocache.move.storer import Origin, RecomputeModel
from bodocache.pages import Reason, Tier
from bodocache.plan.records import POLICY
from bodocache.pools import OwnedPool

KeyArray = NDArray[np.uint8]
SlotArray = NDArray[np.int64]

HASH_INLINE_PAGES = 32  # up to here hashing is shorter than the hop to another thread (~60 us)


@dataclass(frozen=True, slots=True)
class Match:
    """What the cache holds of one prompt, as it was when asked."""

    keys: KeyArray  # of every whole page of the prompt
    pages: int  # leading pages that can be restored
    tiers: NDArray[np.uint8]  # fastest Tier of each restorable page
    reasons: NDArray[np.uint8]  # Reason of each page behind them


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Everything counted since the cache was opened."""

    traffic: Traffic
    hits: int  # pages that loads delivered
    misses: dict[Reason, int]  # pages that were asked for and not delivered


class Cache:
    """A hierarchical KV cache over one device pool."""

    def __init__(self, orchestrator: Orchestrator, chain: KeyChain, device: OwnedPool) -> None:
        """Use :meth:`open`."""
        self._orchestrator = orchestrator
        self._chain = chain
        self._older: KeyChain | None = None
        self._device = device
        self._version = 0
        self._misses: Counter[Reason] = Counter()
        self._closed = False
        self.recovered_pages = 0

    @classmethod
    async def open(
        cls, config: CacheConfig | Path, pool: OwnedPool, *, clock: Clock | None = None
    ) -> "Cache":
        """Open a cache that serves the device pool ``pool``.

        Planner code is compiled here if no compiled copy is on disk (seconds, once a version).

        Raises:
            ConfigError: a tier is too small for one page, or a field is out of range.
            BackendLocked: another process writes to the disk tier's directory.
        """
        if isinstance(config, Path):
            config = load_config(config)
        clock = clock or RealClock()
        await asyncio.get_running_loop().run_in_executor(None, jit.warm)
        root = _root_of(config, pool)
        host = _host_pool(config, pool)
        backend = await _open_disk(config, pool, root, clock)
        orchestrator = Orchestrator(
            device=pool,
            host=host,
            backend=backend,
            policy=_policy_of(config),
            clock=clock,
            recompute=RecomputeModel(
                pool.layout.page_tokens,
                config.planner.recompute_s_per_token,
                config.planner.recompute_slope_s,
            ),
            admits=config.features.admit,
        )
        cache = cls(orchestrator, KeyChain(config.identity.tenant_domain, root), pool)
        cache.recovered_pages = await orchestrator.open()
        return cache

    async def __aenter__(self) -> "Cache":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def match(
        self, tokens: NDArray[np.uint32], *, extras: Mapping[int, bytes] | None = None
    ) -> Match:
        """What can be restored of a prompt of ``tokens`` (u32[T]); only whole pages count.

        ``extras``: see :meth:`bodocache.identity.KeyChain.page_keys`.
        """
        self._check_open()
        pages = len(tokens) // self._chain.root.page_tokens
        keys = await self._hashed(pages, self._chain.page_keys, tokens, extras)
        return await self._match(keys, self._chain.page_keys, tokens, extras)

    async def match_engine_keys(self, engine_keys: Sequence[bytes]) -> Match:
        """As :meth:`match`, for an engine that has chained keys of its own, one per page."""
        self._check_open()
        keys = await self._hashed(len(engine_keys), self._chain.engine_keys, engine_keys)
        return await self._match(keys)

    def load(
        self,
        match: Match,
        slots: SlotArray | None = None,
        *,
        deadline_s: float = math.inf,
    ) -> Load:
        """Begin at once to bring the pages of ``match`` to the device.

        The pool's own slots are used, or ``slots`` (one per page of ``match.pages``) of a borrowed
        pool. ``deadline_s`` counts from now. ``await load`` gives the pages that landed: exactly the
        stored bytes; ``load.recompute`` is the rest. Close the load when the pages are no longer
        used.
        """
        self._check_open()
        now_s = self._orchestrator.now_s()
        load = self._orchestrator.load(match.keys[: match.pages], slots, now_s + deadline_s)
        self._count(match.reasons)
        load.on_settled(lambda: self._count_undelivered(load, match.pages))
        return load

    def acquire(self, count: int) -> SlotArray:
        """``count`` device slots to compute new pages in; the coldest pages make room.

        Raises:
            TierFull: loads and stores under way hold too many.
        """
        self._check_open()
        return self._orchestrator.residency.take(Tier.DEVICE, count)

    def release(self, slots: SlotArray) -> None:
        """Give back slots from :meth:`acquire` that were not stored."""
        self._orchestrator.residency.give_back(slots, Tier.DEVICE)

    def store(self, match: Match, slots: SlotArray, *, tenant: int = 0) -> Store:
        """Begin at once to store the last ``len(slots)`` pages of ``match``'s prompt.

        ``await store`` returns when they can be found; disk follows in the background as admission
        decides. Close the store when the slots are no longer used.

        Raises:
            LayoutError: more slots than pages.
        """
        self._check_open()
        if len(slots) > len(match.keys):
            raise LayoutError(f"store: {len(slots)} slots for {len(match.keys)} pages")
        return self._orchestrator.store(match.keys, slots, Origin(self._version, tenant))

    def rotate(self, weights_version: str) -> None:
        """The weights changed: from now on only pages stored under ``weights_version`` are found.

        Nothing is flushed; pages of older versions go first. Matches made before are worth nothing.
        """
        self._check_open()
        self._older = self._chain
        self._chain = self._chain.with_weights(weights_version)
        self._version += 1
        self._orchestrator.residency.retire_older_than(self._version)

    def stats(self) -> CacheStats:
        """Everything counted since the cache was opened."""
        traffic = self._orchestrator.traffic()
        return CacheStats(traffic, sum(traffic.hits.values()), dict(self._misses))

    async def close(self) -> None:
        """Cancel loads, write what was admitted, and let go of everything. Twice is harmless."""
        if not self._closed:
            self._closed = True
            await self._orchestrator.close()
