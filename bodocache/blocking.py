# SPDX-License-Identifier: Apache-2.0
"""A cache for engines without an event loop: the same methods, callable from any thread.

The cache lives on a loop in a thread of its own, in-process or attached to a node. A caller that
waits holds no Python lock; what it gets back may be used from every thread.
"""

import asyncio
import concurrent.futures
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from bodocache.cache import Cache, CacheStats, SlotArray
from bodocache.errors import CacheClosed
from bodocache.hints.actions import Action, Outcome
from bodocache.hints.reuse import Reuse
from bodocache.kernels.lane import Stream
from bodocache.match import Match
from bodocache.move.load import Load, Loaded
from bodocache.move.store import Store, Stored

T = TypeVar("T")
C = TypeVar("C", bound=Cache)


class BlockingLoad:
    """A load on its way, as :class:`bodocache.move.load.Load`."""

    def __init__(self, loop: "_Loop", load: Load) -> None:
        """Made by :meth:`BlockingCache.load`."""
        self._loop = loop
        self._load = load

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self, timeout_s: float | None = None) -> Loaded:
        """What the load delivered. TimeoutError: it is not done in ``timeout_s``; it goes on."""
        return self._loop.run(_awaited(self._load), timeout_s)

    def wait_released(self, timeout_s: float | None = None) -> None:
        """Wait until nothing writes to the load's slots. TimeoutError: as for :meth:`wait`."""
        self._loop.run(_awaited(self._load.released), timeout_s)

    @property
    def done(self) -> bool:
        """Whether the result is final."""
        return self._load.done

    @property
    def landed(self) -> int:
        """Whole pages, from the first on, that are in their slots and verified."""
        return self._loop.call(lambda: self._load.landed)

    @property
    def recompute(self) -> range:
        """The tokens that the engine must compute; final from the commit on."""
        return self._loop.call(lambda: self._load.recompute)

    def commit(self, pages: int | None = None) -> range:
        """Fix the tokens that are loaded, and return them; see :meth:`Load.commit`."""
        return self._loop.call(lambda: self._load.commit(pages))

    def expect(self, *, start_s: float, n_waiting: float) -> None:
        """Say anew when the engine is free; see :meth:`Load.expect`."""
        self._loop.call(lambda: self._load.expect(start_s=start_s, n_waiting=n_waiting))

    def cut(self, pages: int) -> None:
        """Load no more than the first ``pages``; see :meth:`Load.cut`."""
        self._loop.call(lambda: self._load.cut(pages))

    def wait_layer(
        self, index: int, stream: object | None = None, *, timeout_s: float | None = None
    ) -> None:
        """Wait for a layer of the committed pages; see :meth:`Load.wait_layer`."""
        self._load.wait_layer(index, stream, timeout_s=timeout_s)

    def cancel(self) -> None:
        """Begin nothing more; what has landed is the result."""
        self._loop.call(self._load.cancel)

    def close(self) -> None:
        """The engine no longer needs the pages. Harmless when the cache is closed."""
        self._loop.call_if_open(self._load.close)


class BlockingStore:
    """A store on its way, as :class:`bodocache.move.store.Store`."""

    def __init__(self, loop: "_Loop", store: Store) -> None:
        """Made by :meth:`BlockingCache.store`."""
        self._loop = loop
        self._store = store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._loop.call_if_open(self._store.abandon)  # layers that are not computed by now
        try:
            if kind is None:
                self.wait()
        finally:
            self.close()

    def layer_ready(self, index: int, stream: Stream | None = None) -> None:
        """Layer ``index`` of a store by layer is computed; see :meth:`Store.layer_ready`."""
        event = None if stream is None else stream.record_event()  # where the caller is by now
        self._loop.call(lambda: self._store.follow(index, event))

    def wait(self, timeout_s: float | None = None) -> Stored:
        """Wait until the pages can be found. TimeoutError: not in ``timeout_s``; it goes on."""
        return self._loop.run(_awaited(self._store), timeout_s)

    def wait_written(self, timeout_s: float | None = None) -> int:
        """How many of the pages reached the disk, once that is decided."""
        return self._loop.run(_awaited(self._store.written), timeout_s)

    def close(self) -> None:
        """The engine no longer uses the slots. Harmless when the cache is closed."""
        self._loop.call_if_open(self._store.close)


class BlockingCache(Generic[C]):
    """A cache that any thread may call; see :class:`bodocache.cache.Cache` for each method."""

    def __init__(self, opener: Callable[[], Awaitable[C]]) -> None:
        """Open a cache by ``opener``, called on the cache's own loop.

        ``BlockingCache(lambda: Cache.open(config, pool))``, or ``NodeCache.attach(...)`` for a
        cache on a node. Raises what ``opener`` raises. The pool's slots are the cache's business:
        no other thread touches the pool itself.
        """
        self._loop = _Loop()
        try:
            self._cache = self._loop.run(_awaited_by(opener), None)
        except BaseException:
            self._loop.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def match(
        self,
        tokens: NDArray[np.uint32],
        *,
        extras: Mapping[int, bytes] | None = None,
        reuse: Reuse | None = None,
        session: str | None = None,
        tenant: int = 0,
    ) -> Match:
        """What can be restored of a prompt."""
        asked = self._cache.match(
            tokens, extras=extras, reuse=reuse, session=session, tenant=tenant
        )
        return self._loop.run(asked, None)

    def match_engine_keys(
        self,
        engine_keys: Sequence[bytes],
        *,
        reuse: Reuse | None = None,
        session: str | None = None,
        tenant: int = 0,
    ) -> Match:
        """As :meth:`match`, for an engine that has keys of its own."""
        asked = self._cache.match_engine_keys(
            engine_keys, reuse=reuse, session=session, tenant=tenant
        )
        return self._loop.run(asked, None)

    def holds_engine_keys(self, engine_keys: Sequence[bytes]) -> NDArray[np.bool_]:
        """Whether the page of each engine key lies in some tier."""
        return self._loop.run(self._cache.holds_engine_keys(engine_keys), None)

    def load(self, match: Match, slots: SlotArray | None = None, **when: Any) -> BlockingLoad:
        """Begin at once to bring the pages of ``match`` to the device."""
        load = self._loop.call(lambda: self._cache.load(match, slots, **when))
        return BlockingLoad(self._loop, load)

    def acquire(self, count: int) -> SlotArray:
        """``count`` device slots to compute new pages in."""
        return self._loop.call(lambda: self._cache.acquire(count))

    def release(self, slots: SlotArray) -> None:
        """Give back slots that were not stored."""
        self._loop.call(lambda: self._cache.release(slots))

    def store(
        self,
        match: Match,
        slots: SlotArray,
        *,
        tenant: int | None = None,
        reuse: Reuse | None = None,
        session: str | None = None,
        layers: bool = False,
    ) -> BlockingStore:
        """Begin at once to store the last pages of a prompt."""
        store = self._loop.call(
            lambda: self._cache.store(
                match, slots, tenant=tenant, reuse=reuse, session=session, layers=layers
            )
        )
        return BlockingStore(self._loop, store)

    def hint(self, actions: Sequence[Action]) -> tuple[Outcome, ...]:
        """Carry out actions; their operations can be cancelled and awaited on no loop but ours."""
        return self._loop.run(self._cache.hint(actions), None)

    def rotate(self, weights_version: str) -> None:
        """The weights changed."""
        self._loop.call(lambda: self._cache.rotate(weights_version))

    def stats(self) -> CacheStats:
        """Everything counted since the cache was opened."""
        return self._loop.call(self._cache.stats)

    def run(self, ask: Callable[[C], Coroutine[Any, Any, T]]) -> T:
        """The result of a coroutine of the cache that has no door here: ``NodeCache.node_stats``.

        It runs on the cache's loop.
        """
        return self._loop.run(ask(self._cache), None)

    def close(self) -> None:
        """Close the cache and end its thread. Waits that are under way fail; twice is harmless."""
        if self._loop.is_open:
            try:
                self._loop.run(self._cache.close(), None)
            finally:
                self._loop.close()


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._turn, name="bodocache-loop", daemon=True)
        self._lock = threading.Lock()
        self._waiting: set[concurrent.futures.Future[Any]] = set()
        self.is_open = True
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float | None) -> T:
        """The result of ``work``; on a timeout it is cancelled.

        Raises:
            CacheClosed: the loop has ended, or ends before the result is there.
        """
        future = self._begin(work)
        try:
            return future.result(timeout_s)
        except concurrent.futures.CancelledError:
            raise CacheClosed("the cache was closed while this call waited") from None
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise
        finally:
            with self._lock:
                self._waiting.discard(future)

    def call(self, function: Callable[[], T]) -> T:
        """What ``function`` returns on the loop. CacheClosed: as for :meth:`run`."""
        return self.run(_called(function), None)

    def call_if_open(self, function: Callable[[], None]) -> None:
        """The same; nothing is called on a loop that has ended."""
        try:
            self.call(function)
        except CacheClosed:
            return

    def close(self) -> None:
        """End the loop and its thread; calls that wait fail."""
        with self._lock:
            if not self.is_open:
                return
            self.is_open = False
            waiting = list(self._waiting)
        for future in waiting:
            future.cancel()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _begin(self, work: Coroutine[Any, Any, T]) -> "concurrent.futures.Future[T]":
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("a blocking call on the cache's own loop would wait for ever")
        with self._lock:
            if not self.is_open:
                work.close()
                raise CacheClosed("the cache was closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._waiting.add(future)
        return future

    def _turn(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()


async def _awaited(it: Awaitable[T]) -> T:
    return await it


async def _awaited_by(opener: Callable[[], Awaitable[T]]) -> T:
    return await opener()


async def _called(function: Callable[[], T]) -> T:
    return function()
