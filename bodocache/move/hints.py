# SPDX-License-Identifier: Apache-2.0
"""What callers say, with requests and as actions: who is told, and what is answered and counted.

Used from the orchestrator's loop only.
"""

from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bodocache.config import HintsConfig
from bodocache.hints.actions import (
    Action,
    Outcome,
    Release,
    Session,
    Status,
    Unknown,
    Unpin,
)
from bodocache.hints.reuse import Said
from bodocache.hints.stats import HintStats
from bodocache.move.answer import Answer
from bodocache.move.demoter import Demoter
from bodocache.move.executor import RELEASED, Executor
from bodocache.move.forecasts import Forecasts
from bodocache.move.holds import Holds, Kind, Owner
from bodocache.move.prefetcher import Prefetcher
from bodocache.move.residency import Residency, RowArray
from bodocache.move.reuse import Reuses
from bodocache.move.scopes import Scope, of_session, of_span
from bodocache.move.sessions import Sessions

KeyArray = NDArray[np.uint8]


class Hints:
    """What callers say, carried out."""

    def __init__(
        self,
        residency: Residency,
        *,
        config: HintsConfig,
        page_tokens: int,
        demoter: Demoter,
        prefetcher: Prefetcher | None,
        now_s: Callable[[], float],
    ) -> None:
        self._residency = residency
        self._page_tokens = page_tokens
        self._version = 0  # counts changes of the weights
        self._counts: Counter[tuple[str, str]] = Counter()
        self._holds = Holds(residency, max_held_share=config.max_held_share, now_s=now_s)
        self._sessions = Sessions(
            residency.table, kept=config.max_sessions, ttl_s=config.session_ttl_s, now_s=now_s
        )
        self._forecasts = Forecasts(residency, horizon_s=config.horizon_s, now_s=now_s)
        self._reuses = Reuses(
            residency,
            self._holds,
            self._sessions,
            self._forecasts,
            page_tokens=page_tokens,
            horizon_s=config.horizon_s,
            max_hold_s=config.max_hold_s,
            now_s=now_s,
        )
        self._executor = Executor(
            residency,
            self._holds,
            self._sessions,
            config=config,
            demoter=demoter,
            prefetcher=prefetcher,
            now_s=now_s,
        )
        residency.before_eviction = self._holds.expire

    def loaded(self, keys: KeyArray, rows: RowArray, said: Said) -> None:
        """See :meth:`bodocache.move.reuse.Reuses.loaded`."""
        self._reuses.loaded(keys, rows, said)

    def told(self, said: Said) -> tuple[float, float]:
        """See :meth:`bodocache.move.reuse.Reuses.told`."""
        return self._reuses.told(said)

    def storing(self, said: Said) -> Callable[[RowArray, RowArray], None]:
        """What to call when a store that begins now has its pages: see ``Reuses.stored``.

        Nothing is noted of pages whose weights have changed by then.
        """
        begun_in = self._version

        def stored(chain: RowArray, shown: RowArray) -> None:
            if self._version == begun_in:
                self._reuses.stored(chain, shown, said)

        return stored

    def execute(self, action: Action, keys: KeyArray | None) -> Outcome:
        """Carry out ``action``; ``keys`` of a span's prompt, None if they are of other weights."""
        answer = self._answer(action, keys)
        name = action.name if isinstance(action, Unknown) else type(action).__name__.lower()
        counted = "unknown" if isinstance(action, Unknown) else name
        self._counts[counted, answer.status.value] += 1
        return answer.outcome(action.action_id, name)

    def forget_all(self) -> None:
        """The weights changed: sessions and holds are of pages that nobody will ask for."""
        self._executor.cancel_all()
        self._version += 1
        self._holds.end_all()
        self._sessions.forget_all()

    def stats(self) -> HintStats:
        """Everything counted, and what is held."""
        return HintStats(
            dict(self._counts),
            self._forecasts.reliability(),
            self._holds.held_pages(),
            len(self._sessions),
        )

    def _answer(self, action: Action, keys: KeyArray | None) -> Answer:
        if isinstance(action, Unknown):
            return Answer(Status.REJECTED, action.why)
        scope = self._scope(action, keys)
        if isinstance(scope, Answer):
            return self._let_go_unseen(action, scope)
        return self._executor.execute(action, scope)

    def _let_go_unseen(self, action: Action, answer: Answer) -> Answer:
        """Holds of a session end when their owner says so, though its pages are not known."""
        if isinstance(action, Unpin | Release) and isinstance(action.on, Session):
            kinds = (Kind.PIN,) if isinstance(action, Unpin) else RELEASED
            ended = self._holds.end(Owner(action.on.tenant, action.on.name), *kinds)
            if ended:
                return Answer(Status.ACCEPTED, "its holds have ended", ended, ended)
        return answer

    def _scope(self, action: Action, keys: KeyArray | None) -> Scope | Answer:
        assert not isinstance(action, Unknown), "it has no target"
        if isinstance(action.on, Session):
            scope = of_session(action.on, self._sessions, self._residency)
            why = "the session is not known: name it with match or store, or it has expired"
        elif keys is None:
            scope, why = None, "the match was made before the weights changed"
        else:
            scope = of_span(action.on, keys, self._page_tokens, self._residency)
            why = "no whole page of the prompt lies in the span"
        if scope is None:
            return Answer(Status.MISSING, why)
        if scope.pages == 0 and scope.is_coming:
            why = "a store of its pages is under way; ask again when it is done"
            return Answer(Status.DEFERRED, why, asked_pages=scope.asked_pages)
        if scope.pages == 0:
            why = "its pages lie in no tier"
            return Answer(Status.MISSING, why, asked_pages=scope.asked_pages)
        return scope
