# SPDX-License-Identifier: Apache-2.0
"""Carries out actions on pages that are known to lie in some tier, and answers each.

An action is decided in one go; what moves bytes goes on in the background. Nothing here touches
bytes that a load could return.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from bodocache.config import HintsConfig
from bodocache.hints.actions import (
    Action,
    Demote,
    Leave,
    Pin,
    Prefetch,
    Release,
    Retain,
    Status,
    Unpin,
)
from bodocache.move import marks
from bodocache.move.answer import Answer
from bodocache.move.demoter import Demoter
from bodocache.move.holds import KEEPING, Hold, Holds, Kind, Owner
from bodocache.move.leaving import remove
from bodocache.move.operation import Operation
from bodocache.move.prefetcher import Prefetcher
from bodocache.move.residency import Residency, RowArray
from bodocache.move.scopes import Scope
from bodocache.move.sessions import Sessions
from bodocache.pages import Tier

KEPT_AFTER_S = 60.0  # prefetched pages are not evicted for so long after they were to be there
RELEASED = (*KEEPING, Kind.COMING, Kind.RAISED)  # what a release ends


class Executor:
    """Retains, pins, prefetches, demotes and releases."""

    def __init__(
        self,
        residency: Residency,
        holds: Holds,
        sessions: Sessions,
        *,
        config: HintsConfig,
        demoter: Demoter,
        prefetcher: Prefetcher | None,
        now_s: Callable[[], float],
    ) -> None:
        self._residency = residency
        self._holds = holds
        self._sessions = sessions
        self._config = config
        self._demoter = demoter
        self._prefetcher = prefetcher
        self._now_s = now_s
        self._operations: dict[Owner, set[Operation]] = {}

    def execute(self, action: Action, scope: Scope) -> Answer:
        """Carry out ``action`` on the pages of ``scope``."""
        return _EXECUTE[type(action)](self, action, scope)

    def cancel_all(self) -> None:
        """Cancel what is under way."""
        for operations in list(self._operations.values()):
            for operation in list(operations):
                operation.cancel()

    # Holding

    def _retain(self, action: Retain, scope: Scope) -> Answer:
        return self._hold(Kind.RETAIN, action.keep_s, scope)

    def _pin(self, action: Pin, scope: Scope) -> Answer:
        return self._hold(Kind.PIN, action.keep_s, scope)

    def _hold(self, kind: Kind, keep_s: float, scope: Scope) -> Answer:
        lasts_s = min(keep_s, self._config.max_hold_s)
        until_s = np.full(len(scope.rows), self._now_s() + lasts_s)
        hold = self._holds.take(scope.owner, kind, scope.rows, until_s)
        held = 0 if hold is None else max(0, len(hold.rows) - scope.first)
        if held == 0:
            self._holds.end(scope.owner, kind)
            return self._no_room(scope, marks.keeping_tiers(self._residency, scope.rows))
        answer = Answer.of(held, scope, until_s=lasts_s)
        if lasts_s < keep_s and not (kind is Kind.PIN and math.isinf(keep_s)):
            answer = answer.clipped(f"hints.max_hold_s allows {lasts_s:g} s")
        if held < scope.pages:
            answer = answer.clipped("the tenant's part of the tier is full")
        return answer

    def _no_room(self, scope: Scope, tiers: NDArray[np.int64]) -> Answer:
        """Nothing can be held: not now, or never."""
        tier, end_s = Tier(int(tiers[0])), self._holds.next_end_s(scope.owner.tenant)
        words = f"the tenant's part of tier {tier.name.lower()}, {self._holds.part(tier)} pages"
        if end_s is None:
            why = f"{words}, has no room for them; raise hints.max_held_share, or enlarge the tier"
            return Answer(Status.REJECTED, why, asked_pages=scope.asked_pages)
        wait_s = max(0.0, end_s - self._now_s())
        why = f"{words}, is held; ask again when one of its holds has ended"
        return Answer(Status.DEFERRED, why, asked_pages=scope.asked_pages, until_s=wait_s)

    def _unpin(self, action: Unpin, scope: Scope) -> Answer:  # noqa: ARG002 -- one signature
        if not self._holds.end(scope.owner, Kind.PIN):
            return Answer(Status.MISSING, "the tenant has no pin on it", 0, scope.asked_pages)
        return Answer.of(scope.pages, scope)

    # Moving

    def _prefetch(self, action: Prefetch, scope: Scope) -> Answer:
        residency = self._residency
        rows = scope.rows[marks.keeping_tiers(residency, scope.rows) != Tier.DEVICE]
        if residency.lies_in(rows, Tier.HOST).all():
            return Answer.of(scope.pages, scope, "its pages lie in a faster tier already")
        assert self._prefetcher is not None, "pages lie on disk only where there is a disk tier"
        deadline_s = min(action.deadline_s, self._config.max_hold_s)
        kept_s = (0.0 if math.isinf(action.deadline_s) else deadline_s) + KEPT_AFTER_S
        until_s = np.full(len(rows), self._now_s() + kept_s)
        tiers = np.full(len(rows), int(Tier.HOST))
        hold = self._holds.take(scope.owner, Kind.COMING, rows, until_s, tiers)
        if hold is None:
            return self._no_room(scope, tiers)
        wanted = hold.rows[~residency.lies_in(hold.rows, Tier.HOST)]
        if not len(wanted):
            return self._no_room(scope, tiers)
        due_s = self._now_s() + action.deadline_s
        operation = self._prefetcher.begin(wanted, due_s, tenant=scope.owner.tenant)
        self._remember(scope.owner, operation)
        operation.on_end(lambda: self._end_if_absent(hold))
        beyond = len(rows) - len(hold.rows)
        answer = Answer.of(max(0, scope.pages - beyond), scope, operation=operation)
        return answer.clipped("the tenant's part of tier host is full") if beyond else answer

    def _end_if_absent(self, hold: Hold) -> None:
        """A prefetch that brought nothing holds nothing."""
        is_last = self._holds.find(hold.owner, hold.kind) is hold
        if is_last and not self._residency.lies_in(hold.rows, Tier.HOST).any():
            self._holds.end(hold.owner, hold.kind)

    def _demote(self, action: Demote, scope: Scope) -> Answer:
        if self._residency.capacity(action.to) == 0:
            why = f"there is no {action.to.name.lower()} tier"
            return Answer(Status.REJECTED, why, asked_pages=scope.asked_pages)
        own = self._own(scope)
        if not len(own):
            why = "others use its pages, or pages behind them need them"
            return Answer(Status.REJECTED, why, asked_pages=scope.asked_pages)
        used = np.flatnonzero(self._residency.table.records["pins"][own] > 0)
        free = own[used[-1] + 1 :] if len(used) else own
        if not len(free):
            why = "a load or store uses its pages; ask again when it is closed"
            return Answer(Status.DEFERRED, why, asked_pages=scope.asked_pages)
        refusal = self._charge_writes(free, action.to, scope)
        if refusal is not None:
            return refusal
        operation = self._demoter.begin(free, action.to, lambda: self._moving(scope.owner))
        self._remember(scope.owner, operation)
        answer = Answer.of(len(free), scope, operation=operation)
        if len(own) < scope.pages:
            answer = answer.clipped("others use the pages before them")
        return answer.clipped("a load or store uses some") if len(used) else answer

    def _charge_writes(self, rows: RowArray, to: Tier, scope: Scope) -> Answer | None:
        """Why ``rows`` cannot be written now, or None: then what they displace is charged."""
        residency, backend = self._residency, self._residency.backend
        if to is not Tier.DISK or backend is None:
            return None
        new, usage = rows[~residency.lies_in(rows, Tier.DISK)], backend.usage
        if usage.budget_frames is not None and usage.budget_frames < len(new):
            why = f"{len(new)} frames to write, {usage.budget_frames} left of today's budget"
            return Answer(Status.DEFERRED, why, asked_pages=scope.asked_pages)
        beyond = len(new) - usage.free_frames
        if beyond <= 0:
            return None
        until_s = np.full(beyond, self._now_s() + self._config.horizon_s)
        tiers = np.full(beyond, int(Tier.DISK))
        hold = self._holds.take(scope.owner, Kind.WRITTEN, new[:beyond], until_s, tiers)
        if hold is not None and len(hold.rows) == beyond:
            return None
        self._holds.end(scope.owner, Kind.WRITTEN)
        return self._no_room(scope, tiers)

    @contextmanager
    def _moving(self, owner: Owner) -> Iterator[None]:
        """Inside, the owner's holds let go of copies that leave; afterwards they hold others."""
        held = [self._holds.find(owner, kind) for kind in KEEPING]
        self._holds.end(owner, *KEEPING, Kind.COMING)
        try:
            yield
        finally:
            for hold in held:
                if hold is not None:
                    same = self._residency.words(hold.rows) == hold.words
                    rows, until_s = hold.rows[same], hold.until_s[same]
                    self._holds.take(owner, hold.kind, rows, until_s)

    # Letting go

    def _release(self, action: Release, scope: Scope) -> Answer:
        for operation in list(self._operations.get(scope.owner, ())):
            operation.cancel()
        self._holds.end(scope.owner, *RELEASED)
        own = self._own(scope)
        marks.forecast(self._residency, own, -math.inf)
        shared = "others use some of its pages: those stay by their own worth"
        if action.leave is Leave.WHEN_NEEDED:
            answer = Answer.of(len(own), scope)
            return answer if len(own) == scope.pages else answer.clipped(shared)
        gone = remove(self._residency, own)
        if own.size and not gone:
            why = "a load, a store or a hold uses its pages; they go first when it has ended"
            return Answer(Status.DEFERRED, why, asked_pages=scope.asked_pages)
        answer = Answer.of(gone, scope)
        if len(own) < scope.pages:
            answer = answer.clipped(shared)
        return answer if gone == len(own) else answer.clipped("some are in use: they go first")

    def _own(self, scope: Scope) -> RowArray:
        """The rows of the target that nobody else uses."""
        tenant = scope.owner.tenant
        first = self._sessions.private_from(scope.rows, tenant, scope.session)
        return scope.rows[max(first, scope.first) :]

    def _remember(self, owner: Owner, operation: Operation) -> None:
        """Until it is over, so that a release can cancel it."""
        operations = self._operations.setdefault(owner, set())
        operations.add(operation)

        def forget() -> None:
            operations.discard(operation)
            if not operations and self._operations.get(owner) is operations:
                del self._operations[owner]

        operation.on_end(forget)


_EXECUTE: dict[type, Callable[..., Answer]] = {
    Retain: Executor._retain,  # noqa: SLF001 -- its own table
    Pin: Executor._pin,  # noqa: SLF001
    Unpin: Executor._unpin,  # noqa: SLF001
    Prefetch: Executor._prefetch,  # noqa: SLF001
    Demote: Executor._demote,  # noqa: SLF001
    Release: Executor._release,  # noqa: SLF001
}
