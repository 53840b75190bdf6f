# SPDX-License-Identifier: Apache-2.0
"""The cache an engine holds: match, load, store, rotate, stats, close.

It owns host memory, the disk tier and every background task; the device pool belongs to the caller.
All methods are called from the event loop that opened it.
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bodocache import jit
from bodocache.clock import Clock, RealClock
from bodocache.config import CacheConfig, load_config
from bodocache.errors import (
    CacheClosed,
    ConfigError,
    HintError,
    LayoutError,
    LeaseError,
)
from bodocache.hints.actions import Action, Outcome, Span, Unknown
from bodocache.hints.reuse import Reuse, Said, checked_tenant
from bodocache.hints.stats import HintStats
from bodocache.identity import Domain, KeyChain, Root
from bodocache.io.backend import Backend, Extent
from bodocache.kernels.host import compiled as host_path
from bodocache.layout import Group
from bodocache.match import Expected, Finding, Match
from bodocache.move.announced import GRACE_S, Announcement, Announcements
from bodocache.move.copies import HostSide
from bodocache.move.decide import Decide
from bodocache.move.ghosts import Activity
from bodocache.move.load import Load
from bodocache.move.mover import Mover
from bodocache.move.orchestrator import Orchestrator, Traffic
from bodocache.move.queued import Queued, described
from bodocache.move.regret import Accesses, Regret
from bodocache.move.room import Need
from bodocache.move.store import Store
from bodocache.move.storer import Origin
from bodocache.move.terms import Terms
from bodocache.pages import KEY_NBYTES, NOWHERE, Reason, Tier
from bodocache.plan.advise import Advice, QueueRules, advise
from bodocache.pools import BorrowedPool, OwnedPool
from bodocache.wiring import (
    disk_tier,
    host_pool,
    layout_of,
    policy_of,
    recompute_of,
    root_of,
    rules_of,
)

if TYPE_CHECKING:
    from bodocache.watch.exporter import Exporter
    from bodocache.watch.recording import Recording

KeyArray = NDArray[np.uint8]
SlotArray = NDArray[np.int64]

HASH_INLINE_PAGES = 32  # up to here hashing is shorter than the hop to another thread (~60 us)


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Everything counted since the cache was opened."""

    traffic: Traffic
    hits: int  # pages that loads delivered
    misses: dict[Reason, int]  # pages that were asked for and not delivered
    hints: HintStats
    accesses: Accesses  # what loads asked for lately, sampled

    @property
    def regret(self) -> Regret:
        """How far from the exact optimum that was; computed here, in milliseconds."""
        return self.accesses.regret()

    @property
    def ghost_hits(self) -> int:
        """Of the misses, pages that had been here and left too early: their ghosts were found."""
        return sum(self.misses.get(reason, 0) for reason in (Reason.EVICTED, Reason.NOT_ADMITTED))


class Cache:
    """A hierarchical KV cache over one device pool."""

    def __init__(self, orchestrator: Mover, domain: Domain, root: Root) -> None:
        """Use :meth:`open`."""
        self._orchestrator = orchestrator
        self._domain = domain
        self._chain = KeyChain(domain, root)
        self._older: KeyChain | None = None
        self._announcements = Announcements(orchestrator.now_s)
        self._version = 0
        self._misses = np.zeros(len(Reason), np.int64)
        self._closed = False
        self._closing: asyncio.Future[None] | None = None
        self._exporter: Exporter | None = None
        self.recovered_pages = 0

    @classmethod
    async def open(
        cls,
        config: CacheConfig | Path,
        pool: BorrowedPool,
        *,
        group: Group | None = None,
        backend: Backend | None = None,
        clock: Clock | None = None,
        on_extent: Callable[[Extent], None] | None = None,
        host: HostSide | None = None,
        decide: Decide | None = None,
    ) -> "Cache":
        """Open a cache that serves the device pool ``pool``.

        Planner code is compiled here if no compiled copy is on disk (seconds, once a version).
        ``group`` is what the pages of a borrowed pool hold; an owned pool knows. ``backend`` takes
        the place of ``tiers.disk``; it is closed with the cache. ``on_extent`` is told of every
        read and write of the disk tier, on the loop. ``host`` takes the place of ``tiers.host``,
        with what moves pages between it and the device: a simulation's. ``decide``: of an engine
        whose ranks must do the same; told of every cut that this rank's clock proposes
        (docs/loads.md).

        Raises:
            ConfigError: a tier is too small for one page, or a field is out of range.
            LayoutError: ``group`` is missing, or not what the pool's memory holds.
            BackendLocked: another process writes to the disk tier's directory.
        """
        if isinstance(config, Path):
            config = load_config(config)
        clock = clock or RealClock()
        await asyncio.get_running_loop().run_in_executor(None, warm)
        layout = layout_of(pool, group)
        root = root_of(config, layout)
        host = host or HostSide.of(host_pool(config, layout), pool)
        if backend is None:
            backend = await disk_tier(config, layout, root, clock)
        if backend is not None and backend.page_nbytes != layout.page_nbytes:
            raise LayoutError(
                f"{backend.name}: pages of {backend.page_nbytes} bytes; the pool's have"
                f" {layout.page_nbytes}"
            )
        if backend is not None and on_extent is not None:
            backend.observer = on_extent
        orchestrator = Orchestrator(
            device=pool,
            host=host,
            backend=backend,
            policy=policy_of(config),
            clock=clock,
            recompute=recompute_of(config, layout),
            rules=rules_of(config),
            hints=config.hints,
            tenants=config.tenants,
            metrics=config.metrics,
            window_s=config.planner.window_s,
            steps_aside=config.features.aside,
        )
        if decide is not None:
            orchestrator.decider.consult(decide)
        cache = cls(orchestrator, config.identity.tenant_domain, root)
        try:
            cache.recovered_pages = await orchestrator.open()
            await cache._export(config.metrics.port)
        except BaseException:
            await cache.close()
            raise
        return cache

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def match(
        self,
        tokens: NDArray[np.uint32],
        *,
        extras: Mapping[int, bytes] | None = None,
        reuse: Reuse | None = None,
        session: str | None = None,
        tenant: int = 0,
    ) -> Match:
        """What can be restored of a prompt of ``tokens`` (u32[T]); only whole pages count.

        ``extras``: see :meth:`bodocache.identity.KeyChain.page_keys`. ``reuse`` and ``session`` are
        remembered for the load and the store of this match (docs/hints.md).

        Raises:
            LayoutError: tokens or extras are not what a prompt is made of.
            HintError: ``reuse`` or ``session`` is none.
        """
        self._check_open()
        said = Said.with_request(reuse, session, tenant)
        pages = len(tokens) // self._chain.root.page_tokens
        return await self._match(pages, lambda chain: chain.page_keys(tokens, extras), said)

    async def match_engine_keys(
        self,
        engine_keys: Sequence[bytes],
        *,
        reuse: Reuse | None = None,
        session: str | None = None,
        tenant: int = 0,
    ) -> Match:
        """As :meth:`match`, for an engine that has chained keys of its own, one per page.

        Raises:
            LayoutError: a key stands twice: these are not chained.
        """
        self._check_open()
        if len(set(engine_keys)) != len(engine_keys):
            raise LayoutError("engine keys: one stands twice in a chain; chained keys differ")
        said = Said.with_request(reuse, session, tenant)
        pages = len(engine_keys)
        return await self._match(pages, lambda chain: chain.engine_keys(engine_keys), said)

    async def holds_engine_keys(self, engine_keys: Sequence[bytes]) -> NDArray[np.bool_]:
        """Whether the page of each engine key lies in some tier; nothing is counted or touched."""
        self._check_open()
        keys = await self._hashed(
            len(engine_keys), lambda chain: chain.engine_keys(engine_keys), self._chain
        )
        return await self._holds(keys)

    def load(
        self,
        match: Match,
        slots: SlotArray | None = None,
        *,
        start_s: float | None = None,
        compute_s: ArrayLike | None = None,
        n_waiting: float = 0.0,
        deadline_s: float = math.inf,
    ) -> Load:
        """Begin at once to bring the pages of ``match`` to the device.

        The pool's own slots are used, or ``slots`` (one per page of ``match.pages``) of a borrowed
        pool. ``await load`` gives the pages that landed, exactly the bytes that were stored;
        ``load.recompute`` is the rest. ``load.commit()`` fixes what is loaded before all of it is
        there. Close the load when the pages are no longer used. On a CUDA device nothing that was
        launched before, but for what stands in the default stream, uses their slots any more.

        Args:
            match: what to load.
            slots: of a borrowed pool.
            start_s: when the engine is free to begin the step, in seconds from now.
            compute_s: seconds of each layer of the step, of the tokens that are new in any case;
                with it, layers come one after the other from the commit on.
            n_waiting: requests that wait at the engine behind this one, or are expected to.
            deadline_s: seconds from now; what has not landed by then is not delivered.

        With a ``start_s`` or a deadline, pages that are predicted to come later than the engine
        computes them are not loaded, or cut off; without either, all are.

        Raises:
            LayoutError: ``slots`` of an owned pool, or not one per page of a borrowed one.
            ConfigError: seconds or a number that cannot be.
        """
        self._check_open()
        orchestrator = self._orchestrator
        terms = Terms.said(
            orchestrator.now_s(),
            deadline_s=deadline_s,
            start_s=start_s,
            compute_s=compute_s,
            n_waiting=n_waiting,
            layers=orchestrator.num_layers,
            tenant=match.said.tenant,
        )
        slots = self._checked(slots, match.pages)
        pages = match.pages if match.version == self._version else 0
        load = orchestrator.load(match, match.keys[:pages], slots, terms)
        if match.version == self._version:
            accesses = self._orchestrator.residency.accesses
            accesses.record(match.keys, match.tiers[: len(load.rows)])
            self._orchestrator.hints.loaded(match.keys, load.rows, match.said)
        self._count(match.reasons)
        self._misses[Reason.OTHER_VERSION] += match.pages - pages
        load.on_settled(lambda: self._count_undelivered(load, pages))
        return load

    def announce(
        self, match: Match, *, ready_s: float, limit_s: float | None = None
    ) -> Announcement:
        """Tell others that the pages which ``match`` did not find are being computed.

        They are meant to be stored in ``ready_s`` seconds. The announcement ends with their store,
        when it is closed, or after ``limit_s`` (twice ``ready_s`` and a second, if left out): close
        it where the request is aborted. Later matches report it, and :meth:`follow` waits for it.

        Raises:
            ConfigError: seconds that cannot be.
        """
        self._check_open()
        limit_s = 2 * ready_s + GRACE_S if limit_s is None else limit_s
        if not (0 <= ready_s < math.inf and 0 <= limit_s < math.inf):
            raise ConfigError(
                f"announce: ready_s = {ready_s}, limit_s = {limit_s}: expected seconds, >= 0"
            )
        pages = match.pages if match.version == self._version else len(match.keys)
        return self._announcements.add(match.keys[pages:], ready_s, limit_s)

    async def follow(self, match: Match, *, deadline_s: float = math.inf) -> Match:
        """Wait for pages of ``match`` that another request computes, where that saves time.

        Returns what can be restored then: at once, unless they are announced for sooner than this
        request would compute them (planner.recompute_s_per_token) and than ``deadline_s``, in
        seconds from now. It waits no longer than the computing would have taken, and not for an
        announcement that ended.
        """
        self._check_open()
        orchestrator, begun_s = self._orchestrator, self._orchestrator.now_s()
        saved_s = orchestrator.saved_by_waiting_s(match.pages, match.announced)
        until_s = begun_s + min(saved_s, deadline_s)
        while not self._closed and match.version == self._version:
            if not await self._announcements.awaited(match.keys[match.pages :], until_s):
                break
            found = await self._find(match.keys, match.said)
            match = self._described(match.version, match.keys, match.said, found)
        return match

    def advise(
        self, queue: Sequence[Queued], rules: QueueRules | None = None
    ) -> tuple[Advice, ...]:
        """In which order to begin the requests of ``queue``, and why (docs/orchestrator.md).

        Nobody is passed over by more than ``rules.max_passed`` that came later, if the engine
        counts them in :attr:`Queued.passed`.

        Raises:
            ConfigError: seconds that cannot be.
        """
        self._check_open()
        return advise(described(queue), rules)

    def acquire(self, count: int, *, tenant: int = 0) -> SlotArray:
        """``count`` device slots to compute new pages in; the coldest pages make room.

        They are for pages of ``tenant``: with shares (``[tenants]``) others' make room only as far
        as it has less than its share and they have more.

        Raises:
            TierFull: loads and stores under way hold too many, or shares leave too few.
            HintError: ``tenant`` is none.
        """
        self._check_open()
        whose = checked_tenant(tenant)
        residency = self._orchestrator.residency
        return residency.take(Tier.DEVICE, count, Need(Activity.ACQUIRE, whose))

    def release(self, slots: SlotArray) -> None:
        """Give back slots from :meth:`acquire` that were not stored.

        Raises:
            LeaseError: a slot holds a page of the cache, or is not taken; none is given back.
        """
        residency = self._orchestrator.residency
        if (residency.owners(slots) != NOWHERE).any():
            raise LeaseError(f"release: of slots {slots.tolist()}, some hold pages of the cache")
        residency.give_back(slots, Tier.DEVICE)

    def store(
        self,
        match: Match,
        slots: SlotArray,
        *,
        tenant: int | None = None,
        reuse: Reuse | None = None,
        session: str | None = None,
        layers: bool = False,
    ) -> Store:
        """Begin at once to store the last ``len(slots)`` pages of ``match``'s prompt.

        ``await store`` returns when they can be found; disk follows in the background as admission
        decides. Close the store when the slots are no longer used.

        ``tenant``, ``reuse`` and ``session``: what was said with the match, if left out.

        With ``layers`` the slots are still to be computed: ``store.layer_ready(i)`` says that layer
        ``i`` of all of them is, and it leaves the device without waiting for the rest. The pages
        can be found when they are whole; a store that is closed before that has stored nothing.

        The slot of a page that was loaded may be among them. On a CUDA device the caller has
        synchronised with the kernels that wrote the slots, or names their stream to
        ``layer_ready``.

        Raises:
            LayoutError: more slots than pages, a slot that is not taken or stands twice, or one
                that holds another page of the cache.
            HintError: ``reuse`` or ``session`` is none.
        """
        self._check_open()
        said = match.said.overridden(reuse, session, tenant)
        if len(slots) > len(match.keys):
            raise LayoutError(f"store: {len(slots)} slots for {len(match.keys)} pages")
        slots = self._ours(slots)
        self._check_stored(slots, match.keys[len(match.keys) - len(slots) :])
        if match.version != self._version:
            return self._orchestrator.refuse(slots, by_layer=layers)
        origin = Origin(self._version, said.tenant)
        store = self._orchestrator.store(match.keys, slots, origin, said, by_layer=layers)
        stored = match.keys[len(match.keys) - len(slots) :]
        store.on_visible(lambda _: self._announcements.decided(stored))
        return store

    async def hint(self, actions: Sequence[Action]) -> tuple[Outcome, ...]:
        """Carry out what a caller asks for, in order; one answer each (docs/hints.md).

        What moves bytes goes on in the background: see :attr:`Outcome.operation`. No action loses
        or changes a byte, or touches what other sessions and tenants use.

        Raises:
            HintError: one of ``actions`` is none; then nothing is carried out.
            LayoutError: the tokens of a span are not what a prompt is made of; idem.
        """
        self._check_open()
        matches = [await self._match_of(action) for action in actions]
        self._check_open()
        hints = self._orchestrator.hints
        return tuple(
            hints.execute(action, match.keys if match and match.version == self._version else None)
            for action, match in zip(actions, matches, strict=True)
        )

    def rotate(self, weights_version: str) -> None:
        """The weights changed: from now on only pages stored under ``weights_version`` are found.

        Nothing is flushed; pages of older versions go first. Matches made before are worth nothing.
        """
        self._check_open()
        self._older = self._chain
        self._chain = KeyChain(self._domain, self._chain.root.with_weights(weights_version))
        self._version += 1
        self._orchestrator.residency.retire_older_than(self._version)
        self._orchestrator.hints.forget_all()

    def hold_writes(self) -> AbstractContextManager[None]:
        """``with``: no write to disk begins inside; for who measures the disk. Reads go on."""
        self._check_open()
        return self._orchestrator.hold_writes()

    def stats(self) -> CacheStats:
        """Everything counted since the cache was opened."""
        traffic, hints = self._orchestrator.traffic(), self._orchestrator.hints.stats()
        accesses = self._orchestrator.residency.accesses.snapshot()
        hits = sum(traffic.hits.values())
        return CacheStats(traffic, hits, self._misses_by_reason(), hints, accesses)

    def timeline(self) -> "Recording":
        """What the newest requests asked for and got, and when, to be written to a file."""
        from bodocache.watch.recording import Recording

        return Recording.of(self._orchestrator)

    async def close(self) -> None:
        """Cancel loads, write what was admitted, and let go of everything. Twice is harmless."""
        self._closed = True
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)  # a cancelled close goes on, and can be awaited again

    async def _close(self) -> None:
        self._announcements.close()
        if self._exporter is not None:
            await self._exporter.close()
        await self._orchestrator.close()

    async def _export(self, port: int) -> None:
        if not port:
            return
        from bodocache.watch.exporter import Exporter
        from bodocache.watch.metrics import Watched

        watched = Watched(self._orchestrator, self._misses_by_reason)
        self._exporter = await Exporter.open(watched, port)

    def _check_open(self) -> None:
        if self._closed:
            raise CacheClosed("the cache was closed")

    def _checked(self, slots: SlotArray | None, pages: int) -> SlotArray | None:
        if isinstance(self._orchestrator.residency.device, OwnedPool):
            if slots is not None:
                raise LayoutError("load: slots were given; an owned pool gives out its own")
            return None
        if slots is None or len(slots) != pages:
            given = "no" if slots is None else len(slots)
            raise LayoutError(f"load: {given} slots of a borrowed pool for {pages} pages")
        return self._ours(slots)

    def _ours(self, slots: SlotArray) -> SlotArray:
        """A copy: the engine may use its array again. LayoutError for slots that are no slots."""
        given, pool = np.asarray(slots), self._orchestrator.residency.device
        if given.ndim != 1 or (len(given) and given.dtype.kind not in "iu"):
            raise LayoutError(f"slots: {given.dtype}{list(given.shape)}; expected integers [n]")
        ours = given.astype(np.int64)  # a copy
        if not pool.is_taken(ours).all() or len(set(ours.tolist())) != len(ours):
            raise LayoutError(
                f"slots {ours.tolist()}: expected distinct slots of the pool's {pool.num_pages},"
                " in use by the engine"
            )
        return ours

    def _check_stored(self, slots: SlotArray, keys: KeyArray) -> None:
        residency = self._orchestrator.residency
        owners = residency.owners(slots)
        differs = (residency.table.keys[owners] != keys).any(axis=1)
        others = (owners != NOWHERE) & ((owners < 0) | differs)
        if others.any():
            raise LayoutError(f"store: slot {slots[others][0]} holds another page of the cache")

    async def _hashed(
        self, pages: int, hasher: Callable[[KeyChain], KeyArray], chain: KeyChain
    ) -> KeyArray:
        if pages <= HASH_INLINE_PAGES:
            return hasher(chain)
        return await asyncio.get_running_loop().run_in_executor(None, hasher, chain)

    async def _match_of(self, action: Action) -> Match | None:
        """The prompt that a span is of; None where the target is no span."""
        if not isinstance(action, Action):
            raise HintError(f"hint: {type(action).__name__}; expected an action of bodocache.hints")
        if isinstance(action, Unknown) or not isinstance(action.on, Span):
            return None
        prompt = action.on.prompt
        return prompt if isinstance(prompt, Match) else await self.match(prompt)

    async def _match(self, pages: int, hasher: Callable[[KeyChain], KeyArray], said: Said) -> Match:
        begun_s = self._orchestrator.now_s()
        version, keys = -1, np.empty((0, KEY_NBYTES), np.uint8)
        while version != self._version:  # the weights may change while a long prompt is hashed
            version = self._version
            keys = await self._hashed(pages, hasher, self._chain)
        found = await self._find(keys, said)
        tiers, reasons = found.tiers, found.reasons
        if self._orchestrator.stands_aside(keys) and (tiers != Tier.DEVICE).any():
            kept = int(np.flatnonzero(tiers != Tier.DEVICE)[0])
            aside = np.full(len(tiers) - kept, Reason.ASIDE, np.uint8)
            reasons, tiers = np.append(aside, reasons), tiers[:kept]
            found = Finding(tiers, reasons, Expected(0, 0.0))
        if self._older is not None and (reasons == Reason.NEVER_STORED).any():
            before = await self._hashed(pages, hasher, self._older)
            stored = await self._holds(before[len(tiers) :])
            reasons[stored & (reasons == Reason.NEVER_STORED)] = Reason.OTHER_VERSION
        self._orchestrator.spent(self._orchestrator.now_s() - begun_s)
        return self._described(version, keys, said, found)

    def _described(self, version: int, keys: KeyArray, said: Said, found: Finding) -> Match:
        """What was found of ``keys``, as it is told."""
        (tiers, reasons, expected), orchestrator = found, self._orchestrator
        pages = len(tiers)
        in_s = max(0.0, expected.due_s - orchestrator.now_s()) if expected.pages else 0.0
        return Match(
            *(version, keys, pages, tiers, reasons, said, expected.pages, in_s),
            predict=orchestrator.forecast,
        )

    # What a cache on a node asks its node (node/client.py)

    async def _find(self, keys: KeyArray, said: Said) -> Finding:
        """What there is of ``keys``."""
        del said  # it is said again with the load
        residency = self._orchestrator.residency
        rows = residency.leading(keys)
        tiers = residency.fastest(rows).astype(np.uint8)
        expected = self._announcements.expected(keys[len(rows) :])
        return Finding(tiers, residency.why_missing(keys, len(rows)), expected)

    async def _holds(self, keys: KeyArray) -> NDArray[np.bool_]:
        """Whether each of ``keys`` lies in some tier, reachable or not."""
        return self._orchestrator.residency.holds(keys)

    def _misses_by_reason(self) -> dict[Reason, int]:
        return {reason: int(self._misses[reason]) for reason in Reason if self._misses[reason]}

    def _count(self, reasons: NDArray[np.uint8]) -> None:
        self._misses += np.bincount(reasons, minlength=len(Reason))

    def _count_undelivered(self, load: Load, matched: int) -> None:
        self._count(load.reasons)
        vanished = matched - len(load.rows)  # evicted between match and load
        if vanished:
            self._misses[Reason.EVICTED] += vanished


def warm() -> None:
    """Compile what loads and stores run, the CPU path of the kernels included."""
    host_path()
    jit.warm()
