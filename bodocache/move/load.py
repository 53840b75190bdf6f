# SPDX-License-Identifier: Apache-2.0
"""One load, from the call until its pages landed; the handle an engine holds.

Until its commit it may be cut at any page. The commit fixes the range of tokens: then it completes,
or fails whole and says which pages are whole. The handle owns a pin on every page it delivered
until ``close``. Its slots belong to the I/O until ``released``, whether the load finished, was cut,
late or cancelled.
"""

import asyncio
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from bodocache.errors import BodoCacheError, LoadFailed
from bodocache.move.arrivals import Arrivals
from bodocache.move.choice import Choice, Why  # noqa: TC001 -- as the others
from bodocache.move.layers import Layers
from bodocache.move.terms import Terms, check_expected
from bodocache.move.timeline import Event, Note, no_note
from bodocache.pages import Reason, Tier

RowArray = NDArray[np.int64]

_LANDED, _COMMITTED = int(Event.LANDED), int(Event.COMMITTED)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load delivered: ``slots[i]`` of the device pool holds page i, verified."""

    pages: int
    slots: NDArray[np.int64]
    recompute: range  # tokens, of those matched, that the engine must compute itself
    reasons: NDArray[np.uint8]  # Reason of each matched page that was not delivered


class Source(Protocol):
    """What moves pages of a load, as the load sees it."""

    def trim(self) -> None:
        """Begin nothing that the load no longer wants: pages from ``load.wanted`` on."""
        ...

    def hurry(self) -> None:
        """The load was committed: what is left goes as the engine needs it."""
        ...


class Load:
    """A load on its way. ``await load`` gives what it delivered, at the latest at its deadline."""

    def __init__(
        self,
        *,
        rows: RowArray,
        slots: NDArray[np.int64],
        page_tokens: int,
        layers: int,
        begun_s: float,
        terms: Terms,
        on_close: Callable[["Load"], None],
    ) -> None:
        self.rows = rows
        self.slots = slots
        self.begun_s = begun_s
        self.terms = terms
        self.note: Note = no_note  # of the timeline
        self.parts = 0  # parts that may still write to our slots
        self.wanted = len(rows)  # pages that are still to come or have come: all before a cut
        self.outlook: Choice | None = None  # as last looked at, of a load that may be cut
        self.was_cut: Why | None = None  # by its decider, the last time
        self.before_commit: Callable[[Load], None] = lambda _: None  # the last chance to cut
        self.on_expected: Callable[[Load, float, float], None] = lambda _load, _start_s, _n: None
        self._page_tokens = page_tokens
        self.arrivals = Arrivals(len(rows), layers)
        self.layers = Layers()
        self._committed: int | None = None
        self._on_close = on_close
        self._sources: list[Source] = []
        self._on_settled: list[Callable[[], None]] = []
        self._on_released: list[Callable[[], None]] = []
        loop = asyncio.get_running_loop()
        self._result: asyncio.Future[Loaded] = loop.create_future()
        self._released: asyncio.Future[None] = loop.create_future()
        self._closed = False

    def __await__(self) -> Generator[object, None, Loaded]:
        """Wait for the result; cancelling the wait leaves the load as it is.

        Raises:
            LoadFailed: it was committed, and not all of the range came.
        """
        return self._get().__await__()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def done(self) -> bool:
        """Whether the result is final."""
        return self._result.done()

    @property
    def deadline_s(self) -> float:
        """When it ends, on the cache's clock."""
        return self.terms.deadline_s

    @property
    def landed(self) -> int:
        """Whole pages, from the first on, that are in their slots and verified."""
        if self._result.done():
            return self._result.result().pages
        return self.arrivals.leading(self.wanted)

    @property
    def committed(self) -> range | None:
        """The tokens that :meth:`commit` fixed; None before it."""
        return None if self._committed is None else self._tokens(0, self._committed)

    @property
    def recompute(self) -> range:
        """The tokens, of those matched, that the engine must compute; final from the commit on."""
        kept = self.landed if self._committed is None else self._committed
        return self._tokens(kept, len(self.rows))

    @property
    def hits(self) -> NDArray[np.int64]:
        """Pages delivered, by the Tier they came from; final once the load is done."""
        return self.arrivals.hits(self.landed)

    @property
    def sources(self) -> NDArray[np.uint8]:
        """The Tier that each page delivered came from."""
        return self.arrivals.sources(self.landed)

    @property
    def from_below(self) -> NDArray[np.int64]:
        """The pages delivered that the device did not hold."""
        return self.arrivals.from_below(self.landed)

    def waited_s(self, now_s: float) -> float:
        """How long its engine waits for it by now: one that said when it is free, not before."""
        since_s = self.begun_s if self.terms.start_s is None else self.terms.start_s
        return max(0.0, now_s - max(since_s, self.begun_s))

    @property
    def reasons(self) -> NDArray[np.uint8]:
        """Reason of each page that did not land; final once the load is done."""
        return self.arrivals.reasons[self.landed :]

    @property
    def released(self) -> asyncio.Future[None]:
        """Awaitable: from then on nothing writes to the load's slots."""
        return asyncio.shield(self._released)

    def cut(self, pages: int) -> None:
        """Load no more than the first ``pages``: the engine computes the rest sooner.

        What has landed is kept. Harmless where no more was wanted.

        Raises:
            BodoCacheError: it was committed; then nothing but a cancel ends it.
        """
        if self._committed is not None:
            raise BodoCacheError(
                f"load: cut at page {pages} after the commit of {self._committed} pages"
            )
        if not self.done:
            self._keep(max(pages, self.landed))
            self._settle_if_whole()

    def expect(self, *, start_s: float, n_waiting: float) -> None:
        """Say anew when the engine is free, in seconds from now, and how many wait behind this.

        What may be cut is looked at again by that. The deadline stays.

        Raises:
            ConfigError: seconds or a number that cannot be.
        """
        check_expected(start_s, n_waiting)
        if not self.done and self._committed is None:
            self.on_expected(self, start_s, n_waiting)

    def commit(self, pages: int | None = None) -> range:
        """Fix the tokens that are loaded, and return them: the step begins. Twice is harmless.

        They are the pages that have landed and those still on their way, but for what a cut that is
        due now takes away. ``pages``: what another rank has committed; where this one cannot bring
        as many, the load fails.

        Raises:
            BodoCacheError: ``pages`` is not what was committed before, or more than were matched.
        """
        self._check_commit(pages)
        if self._committed is None:
            if not self.done and pages is None:
                self.before_commit(self)
            self._commit(self._possible() if pages is None else pages)
        committed = self.committed
        assert committed is not None
        return committed

    async def layer(self, index: int, stream: object | None = None) -> None:
        """Wait until layer ``index`` of every committed page is in its slot.

        The bytes of a layer were verified when they came to the host; whole pages are verified once
        more where they lie on the device, and only then is the last layer there. So a step computes
        on no other bytes than those stored, or learns it here before it has a token.

        ``stream`` is the engine's CUDA stream (torch.cuda.Stream): then this returns as soon as the
        layer's copies stand in a stream of the device, and ``stream`` waits for them there; what it
        was given before goes on meanwhile. The last layer is waited for here in any case.

        Raises:
            LoadFailed: it will not come.
            BodoCacheError: nothing was committed, or there is no such layer.
        """
        given = self._is_given_enough(index, stream)
        await self.layers.wait(index, given=given)
        if given:
            self.layers.make_wait(index, stream)

    def wait_layer(
        self, index: int, stream: object | None = None, *, timeout_s: float | None = None
    ) -> None:
        """The same for a thread that is not the loop's, which waits without Python's lock.

        Raises:
            TimeoutError: the layer did not come within ``timeout_s``.
            LoadFailed, BodoCacheError: as :meth:`layer`; or the loop's own thread would wait.
        """
        given, layers = self._is_given_enough(index, stream), self.layers
        if layers.is_loops_thread and not layers.is_decided(index, given=given) and not self.done:
            raise BodoCacheError(
                f"load: wait_layer({index}) in the event loop's thread would wait for itself;"
                f" there it is `await load.layer({index})`"
            )
        layers.wait_here(index, timeout_s, given=given)
        if given:
            layers.make_wait(index, stream)

    def cancel(self) -> None:
        """Begin nothing more; what has landed is the result. Harmless when done."""
        if not self.done:
            self.arrivals.cancel(self.wanted)
            self.settle()
        self.abandon()

    def close(self) -> None:
        """The engine no longer needs the pages: they may be evicted. Cancels a load under way."""
        if not self._closed:
            self._closed = True
            self.cancel()
            self._on_close(self)

    # What follows is the orchestrator's side.

    def add_source(self, source: Source) -> None:
        """``source`` moves pages of this load, and is told of cuts and of the commit."""
        self._sources.append(source)

    def on_settled(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when the result is final: at once if it is."""
        if self.done:
            callback()
        else:
            self._on_settled.append(callback)

    def on_released(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when nothing can write to the slots any more: at once if so."""
        if self._released.done():
            callback()
        else:
            self._on_released.append(callback)

    def abandon(self) -> None:
        """Nothing more is wanted of what has not arrived."""
        self.wanted = 0
        self.look_over()

    def look_over(self) -> None:
        """Let sources begin nothing that is not wanted any more of them."""
        for source in list(self._sources):
            source.trim()

    def is_wanted(self, positions: RowArray) -> NDArray[np.bool_]:
        """Whether each page is still to come."""
        wanted: NDArray[np.bool_] = positions < self.wanted
        return wanted

    def arrive(self, positions: RowArray, source: Tier) -> None:
        """The pages at ``positions`` are in their slots and verified; they came from ``source``."""
        if self.done:
            return
        self.arrivals.come(positions, source)
        if len(positions):
            self.note(_LANDED, source, len(positions))
        self._tell_layers()
        self._settle_if_whole()

    def arrive_by_layer(self, positions: RowArray, layers: int) -> None:
        """The first ``layers`` layers of the pages at ``positions`` are in their slots."""
        if self.done:
            return
        self.arrivals.come_by_layer(positions, layers)
        self._tell_layers()
        self._settle_if_whole()

    def give_by_layer(self, positions: RowArray, layers: int) -> None:
        """The first ``layers`` layers of these pages stand in a stream of the device, or are there.

        The last layer of a page is given when it is there.
        """
        self.arrivals.give(positions, layers)
        if not self.done:
            self._tell_layers()

    def fail(self, positions: RowArray, reasons: NDArray[np.uint8]) -> None:
        """The pages at ``positions`` will not come: nor is what lies behind them waited for."""
        if self.done or not len(positions):
            return
        self.arrivals.fail(positions, reasons)
        if self._committed is None:
            self._keep(int(positions.min()), Reason.UNREACHABLE)
            self._settle_if_whole()
        elif (positions < self._committed).any():
            self.settle()
            self.abandon()

    def begin_part(self) -> None:
        """One more part of the load may write to its slots."""
        self.parts += 1

    def end_part(self, source: Source | None = None) -> None:
        """A part has drained; with the last one the load is settled and its slots are free."""
        if source is not None:
            self._sources.remove(source)
        self.parts -= 1
        if self.parts == 0:
            self.settle()
            self._released.set_result(None)
            for callback in self._on_released:
                callback()

    def settle(self) -> None:
        """Fix the result: the leading pages that are there now."""
        if self.done:
            return
        pages = self.arrivals.settle(self.wanted)
        self._result.set_result(
            Loaded(
                pages=pages,
                slots=self.slots[:pages],
                recompute=self._tokens(pages, len(self.rows)),
                reasons=self.arrivals.reasons[pages:].copy(),
            )
        )
        if self._committed is not None:
            self._end_layers()
        for callback in self._on_settled:
            callback()

    def _commit(self, pages: int) -> None:
        possible, self._committed = self._possible(), pages
        self.note(_COMMITTED, 0, pages)
        if self.done or pages > possible:
            self.settle()
            self._end_layers()
            self.abandon()
            return
        self._keep(pages)
        self._tell_layers()
        self._settle_if_whole()
        for source in list(self._sources):
            source.hurry()

    def _possible(self) -> int:
        """How many leading pages have landed or may still come."""
        if self.done:
            return self.landed
        return self.arrivals.possible(self.wanted)

    def _keep(self, pages: int, reason: Reason = Reason.CUT) -> None:
        """Want no more than the first ``pages``; the others are missing for ``reason``."""
        if pages >= self.wanted:
            return
        self.wanted = pages
        self.arrivals.cut(pages, reason)
        self.look_over()

    def _settle_if_whole(self) -> None:
        """A load that is cut or committed is done with its last page, whatever still drains."""
        is_short = self._committed is not None or self.wanted < len(self.rows)
        if is_short and not self.done and self.landed == self.wanted:
            self.settle()

    def _tell_layers(self) -> None:
        """Whoever waits for layers of a committed load learns how many there are."""
        if self._committed is not None:
            self.layers.advance(self.arrivals.layers_whole(self._committed))
            self.layers.give(self.arrivals.layers_given(self._committed))

    def _end_layers(self) -> None:
        failure = self._failure()
        if failure is None:
            self.layers.advance(self.arrivals.layers)
        else:
            self.layers.fail(failure)

    def _failure(self) -> LoadFailed | None:
        """Why the commit could not be kept; None where it was, or where there was none."""
        loaded = self._result.result()
        if self._committed is None or loaded.pages >= self._committed:
            return None
        why = self.arrivals.why_not(self._committed, loaded.pages)
        return LoadFailed(loaded.pages, self._committed, why.name)

    async def _get(self) -> Loaded:
        loaded = await asyncio.shield(self._result)
        if (failure := self._failure()) is not None:
            raise failure
        return loaded

    def _tokens(self, first: int, end: int) -> range:
        return range(first * self._page_tokens, end * self._page_tokens)

    def _check_commit(self, pages: int | None) -> None:
        if pages is None:
            return
        if not 0 <= pages <= len(self.rows):
            raise BodoCacheError(f"load: commit of {pages} pages; {len(self.rows)} were found")
        if self._committed is not None and pages != self._committed:
            raise BodoCacheError(
                f"load: commit of {pages} pages after that of {self._committed}; it is final"
            )

    def _is_given_enough(self, index: int, stream: object | None) -> bool:
        """Whether who waits for layer ``index`` goes on when it is given to the device."""
        self._check_layer(index)
        return stream is not None and index < self.arrivals.layers - 1

    def _check_layer(self, index: int) -> None:
        if self._committed is None or not 0 <= index < self.arrivals.layers:
            raise BodoCacheError(
                f"load: layer {index} of {self.arrivals.layers}; commit first, then 0 to"
                f" {self.arrivals.layers - 1}"
            )
