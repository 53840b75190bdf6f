# SPDX-License-Identifier: Apache-2.0
"""What became of the loads of all engines, as they tell it: kept and counted as in-process.

An engine that dies tells nothing more: what it was loading counts as cancelled.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bodocache.errors import WireError
from bodocache.hints.reuse import Said
from bodocache.move.choice import Why
from bodocache.move.requests import Request, Requests
from bodocache.move.residency import KeyArray, RowArray
from bodocache.move.worth import Worth
from bodocache.node.messages import Fetch, Settled
from bodocache.pages import Reason, Tier


@dataclass(slots=True, eq=False)
class Entry:
    """One load of an engine."""

    request: Request
    begun_s: float
    pages: int  # that were matched
    is_settled: bool = False


class Ledger:
    """Follows loads. Used from the node's loop only."""

    def __init__(self, requests: Requests, worth: Worth, now_s: Callable[[], float]) -> None:
        self.requests = requests
        self.cuts = dict.fromkeys(Why, 0)
        self.failed_checks = 0
        self._hits = np.zeros(len(Tier), np.int64)
        self._misses = np.zeros(len(Reason), np.int64)
        self._worth = worth
        self._now_s = now_s

    @property
    def hits(self) -> dict[Tier, int]:
        """Pages that loads delivered, by the tier they came from."""
        return {tier: int(self._hits[tier]) for tier in (Tier.DEVICE, Tier.HOST, Tier.DISK)}

    @property
    def misses(self) -> dict[Reason, int]:
        """Pages that were asked for and not delivered."""
        return {reason: int(self._misses[reason]) for reason in Reason if self._misses[reason]}

    def loading(self, asked: Fetch, said: Said, prompt: KeyArray) -> Entry:
        """A load begins; ``prompt``: all its keys, the matched ones first."""
        pages, now_s = len(asked.keys), self._now_s()
        request = self.requests.request(said, prompt)
        request.matched = pages
        request.missing = _checked(asked.missing, Reason)[: len(prompt) - pages]
        self._count(request.missing)
        self.requests.asked(request, now_s + asked.deadline_s)
        return Entry(request, now_s, pages)

    def settled(self, entry: Entry, told: Settled) -> None:
        """The result of a load is final. WireError: it cannot be."""
        if entry.is_settled:
            return
        are_numbers = 0 <= told.waited_s < math.inf and 0 <= told.n_waiting < math.inf
        if len(told.tiers) + len(told.reasons) != entry.pages or not are_numbers:
            raise WireError(f"load {told.load}: a result that cannot be")
        tiers, reasons = _checked(told.tiers, Tier), _checked(told.reasons, Reason)
        if told.was_cut:
            self._count_cut(told.was_cut)
        below = np.flatnonzero(tiers != Tier.DEVICE)
        self._worth.loaded(below, told.waited_s, told.n_waiting)
        self._settle(entry, np.bincount(tiers, minlength=len(Tier)), reasons)

    def end(self, entry: Entry, bad: RowArray) -> None:
        """Nothing is copied for a load any more; ``bad`` pages had other bytes than were stored."""
        self.failed_checks += len(bad)
        if not entry.is_settled:
            given_up = np.full(entry.pages, Reason.CANCELLED, np.uint8)
            self._settle(entry, np.zeros(len(Tier), np.int64), given_up)
        self.requests.released(entry.request)

    def _settle(self, entry: Entry, hits: NDArray[np.int64], reasons: NDArray[np.uint8]) -> None:
        entry.is_settled = True
        self._hits += hits
        self._count(reasons)
        self.requests.settled(entry.request, entry.begun_s, hits, reasons)

    def _count(self, reasons: NDArray[np.uint8]) -> None:
        self._misses += np.bincount(reasons, minlength=len(Reason))

    def _count_cut(self, name: str) -> None:
        try:
            self.cuts[Why(name)] += 1
        except ValueError as error:
            raise WireError(f"cut for {name!r}") from error


def _checked(values: NDArray[np.uint8], kind: type[Tier | Reason]) -> NDArray[np.uint8]:
    if values.max(initial=0) >= len(kind):
        raise WireError(f"{kind.__name__.lower()} {values.max()}: none such")
    return values
