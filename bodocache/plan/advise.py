# SPDX-License-Identifier: Apache-2.0
"""In which order an engine should take what waits: a cache-aware order of its queue.

Strata's three ideas (arXiv 2508.18572), with deadlines and tenants: *delay hits* wait for pages
that another request computes rather than compute them twice; batches take from what is mostly
loaded and what is mostly computed, so that the link and the GPU are both busy; decode steps are
named for what bubble is left. A step lasts as long as the longer of its loads and its compute.

Nobody starves: a request is passed over by at most ``max_passed`` that arrived later. Plain NumPy:
``steps * batch`` rounds over the queue.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache.errors import ConfigError

WINDOW = 8  # how far down the order a batch looks for what balances it
SHORTEST_S = 1e-6  # of a decode step


class Waiting(NamedTuple):
    """One request of the queue. Seconds."""

    arrival_s: float  # on any clock, the same for all
    compute_s: float  # of what it computes in any case
    load_s: float = 0.0  # of what lies in the cache
    delayed_s: float = 0.0  # to compute what another brings, if it does not wait for that
    ready_s: float = 0.0  # from now: when another has brought it; 0: nobody has announced it
    prefix: Hashable = None  # requests of one prefix lack the same pages; None: no other does
    deadline_s: float = math.inf  # from now, of its first token
    tenant: int = 0
    passed: int = 0  # requests that arrived later and were begun before it


@dataclass(frozen=True, slots=True)
class QueueRules:
    """What an engine does in a step, and which parts of the advice are on."""

    step_s: float = 0.25  # of compute, that a step is filled with
    batch: int = 16  # requests that begin in one step
    steps: int = 8  # to look ahead; what is behind comes in order of arrival
    max_passed: int = 16
    decode_s: float = 0.0  # one decode step of those that run; 0: none is named
    defers: bool = True
    balances: bool = True
    fills: bool = True
    heeds_deadlines: bool = True
    is_fair: bool = True  # among tenants

    def __post_init__(self) -> None:
        numbers = (self.step_s, self.batch, self.steps)
        if not all(0 < one < math.inf for one in numbers) or self.max_passed < 0:
            raise ConfigError(
                f"advise: step_s, batch and steps are {numbers}, max_passed {self.max_passed}:"
                " expected positive numbers, and one >= 0"
            )
        if self.decode_s and not SHORTEST_S <= self.decode_s < math.inf:
            raise ConfigError(
                f"advise: decode_s = {self.decode_s}: expected 0, or seconds >= {SHORTEST_S}"
            )


class Why(StrEnum):
    """Why a request stands where it does."""

    TURN = "turn"  # by arrival, its tenant having had least
    PASSED = "passed"  # over often enough: nothing that came later goes before it
    DUE = "due"  # its deadline is near, and can be met
    BALANCE = "balance"  # it loads while others compute, or computes while they load
    DEFERRED = "deferred"  # it waited for pages that another brings
    LATE = "late"  # it misses its deadline in any case: behind those that can meet theirs


class Advice(NamedTuple):
    """The next request to begin."""

    request: int  # its place in the queue as given
    step: int  # requests of one step begin together
    why: Why
    start_s: float = 0.0  # of its step, from now: what all wait for is not there before
    decode_steps: int = 0  # that fit beside the loads of its step


_STARVED, _DUE, _NORMAL, _LATE = range(4)
_WHY = (Why.PASSED, Why.DUE, Why.TURN, Why.LATE)


def advise(queue: Sequence[Waiting], rules: QueueRules | None = None) -> tuple[Advice, ...]:
    """The order in which to begin the requests of ``queue``: each of them once.

    Raises:
        ConfigError: seconds that cannot be.
    """
    plan = _Plan(queue, rules or QueueRules())
    plan.make()
    return tuple(plan.advice)


class _Plan:
    def __init__(self, queue: Sequence[Waiting], rules: QueueRules) -> None:
        self.advice: list[Advice] = []
        self._rules = rules
        numbers = np.array(
            [(w.arrival_s, w.compute_s, w.load_s, w.delayed_s, w.ready_s) for w in queue],
            np.float64,
        ).reshape(len(queue), 5)
        self._deadlines_s = np.array([w.deadline_s for w in queue], np.float64)
        if not (np.isfinite(numbers).all() and (numbers[:, 1:] >= 0).all()) or (
            np.isnan(self._deadlines_s).any()
        ):
            raise ConfigError("advise: a time of the queue is no number, or seconds are below 0")
        arrivals_s, self._compute_s, self._load_s, self._delayed_s, self._ready_s = numbers.T
        self._ranks = np.empty(len(queue), np.int64)
        self._ranks[np.argsort(arrivals_s, kind="stable")] = np.arange(len(queue))
        self._passed = np.array([w.passed for w in queue], np.int64)
        self._tenants = _numbered([w.tenant for w in queue])
        self._served_s = np.zeros(len(queue) + 1)  # by tenant
        prefixes = [i if w.prefix is None else (w.prefix,) for i, w in enumerate(queue)]
        self._prefixes = _numbered(prefixes)
        self._has_prefix = np.array([w.prefix is not None for w in queue], np.bool_)
        self._is_computed = np.zeros(len(queue) + 1, np.bool_)  # by prefix
        self._in_batch = np.zeros(len(queue) + 1, np.bool_)  # by prefix
        self._is_open = np.ones(len(queue), np.bool_)
        self._was_deferred = np.zeros(len(queue), np.bool_)
        self._now_s = 0.0
        self._batch_load_s = self._batch_compute_s = 0.0

    def make(self) -> None:
        for step in range(self._rules.steps):
            if not self._is_open.any():
                return
            self._make_step(step)
        rest = np.flatnonzero(self._is_open)
        for i in rest[np.argsort(self._ranks[rest])].tolist():
            why = Why.DEFERRED if self._was_deferred[i] else Why.TURN
            self.advice.append(Advice(i, self._rules.steps, why, self._now_s))

    def _make_step(self, step: int) -> None:
        rules, batch = self._rules, [self._take(*self._first())]
        start_s = self._now_s
        while len(batch) < rules.batch and (found := self._another()) is not None:
            batch.append(self._take(*found))
        bubble_s = max(0.0, self._batch_load_s - self._batch_compute_s)
        decodes = int(bubble_s / rules.decode_s) if rules.fills and rules.decode_s else 0
        self.advice += [Advice(i, step, why, start_s, decodes) for i, why in batch]
        self._now_s += max(self._batch_load_s, self._batch_compute_s)
        self._batch_load_s = self._batch_compute_s = 0.0
        self._is_computed |= self._in_batch
        self._in_batch[:] = False

    def _first(self) -> tuple[int, Why]:
        """What begins a step: the head of the order; if all wait, the one that is there first."""
        allowed, compute_s = self._allowed(), self._costs_s()
        order, classes = self._ordered(allowed & ~self._waits(allowed, compute_s), compute_s)
        if len(order):
            return order[0], self._why(order[0], classes[0])
        waiting = np.flatnonzero(allowed)
        wait_s = np.maximum(0.0, self._ready_s - self._now_s)
        least_s = np.minimum(wait_s, self._delayed_s) + self._compute_s + self._load_s
        i = int(waiting[np.argmin(least_s[waiting])])
        if wait_s[i] >= self._delayed_s[i]:
            return i, Why.TURN
        self._now_s += float(wait_s[i])
        return i, Why.DEFERRED

    def _another(self) -> tuple[int, Why] | None:
        """What else goes with what has begun in this step."""
        rules, allowed, compute_s = self._rules, self._allowed(), self._costs_s()
        able = allowed & ~self._waits(allowed, compute_s)
        able &= self._batch_compute_s + compute_s <= rules.step_s
        order, classes = self._ordered(able, compute_s)
        if not len(order):
            return None
        if rules.balances and classes[0] >= _NORMAL:
            return self._balancing(order[classes >= _NORMAL][:WINDOW], compute_s)
        return int(order[0]), self._why(order[0], classes[0])

    def _balancing(
        self, order: NDArray[np.int64], compute_s: NDArray[np.float64]
    ) -> tuple[int, Why] | None:
        """Of the first that could go, the one that leaves load and compute nearest to each other.

        None: all of them would have a step load yet longer that already waits for its loads.
        """
        head, gap_s = order[0], self._batch_load_s - self._batch_compute_s
        gaps_s = gap_s + self._load_s[order] - compute_s[order]
        if gap_s > 0:
            helps = gaps_s <= gap_s
            order, gaps_s = order[helps], gaps_s[helps]
        if not len(order):
            return None
        i = int(order[np.argmin(np.abs(gaps_s))])
        if self._was_deferred[i]:
            return i, Why.DEFERRED
        return i, Why.TURN if i == head else Why.BALANCE

    def _take(self, i: int, why: Why) -> tuple[int, Why]:
        load_s, compute_s = float(self._load_s[i]), float(self._costs_s()[i])
        self._batch_load_s += load_s
        self._batch_compute_s += compute_s
        self._served_s[self._tenants[i]] += load_s + compute_s
        self._in_batch[self._prefixes[i]] = True
        self._is_open[i] = False
        self._passed[self._is_open & (self._ranks < self._ranks[i])] += 1
        return i, why

    def _allowed(self) -> NDArray[np.bool_]:
        """Who may be next: none that came after one which was passed over often enough."""
        starved = self._is_open & (self._passed >= self._rules.max_passed)
        if not starved.any():
            return self._is_open
        allowed: NDArray[np.bool_] = self._is_open & (self._ranks <= self._ranks[starved].min())
        return allowed

    def _costs_s(self) -> NDArray[np.float64]:
        """What each would compute if it began now."""
        is_there = self._is_computed[self._prefixes] & self._has_prefix
        is_there |= (self._ready_s > 0) & (self._ready_s <= self._now_s)
        return self._compute_s + np.where(is_there, 0.0, self._delayed_s)

    def _waits(
        self, allowed: NDArray[np.bool_], compute_s: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Delay hits that had better wait: not where a deadline can only be met at once."""
        if not self._rules.defers:
            return np.zeros(len(allowed), np.bool_)
        lacks = compute_s > self._compute_s
        beside = self._in_batch[self._prefixes] & self._has_prefix
        waits: NDArray[np.bool_] = lacks & (beside | (self._ready_s > self._now_s))
        if self._rules.heeds_deadlines:
            step_s = max(self._batch_load_s, self._batch_compute_s)
            until_s = np.where(beside, self._now_s + step_s, self._ready_s)
            cost_s = self._load_s + compute_s
            can = self._now_s + cost_s <= self._deadlines_s
            waits &= ~(can & (until_s + self._load_s + self._compute_s > self._deadlines_s))
        waits &= self._passed < self._rules.max_passed
        self._was_deferred |= waits & allowed
        return waits

    def _ordered(
        self, able: NDArray[np.bool_], compute_s: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Those who are ``able``, most urgent first, and the class of each."""
        rules, which = self._rules, np.flatnonzero(able)
        deadlines_s = self._deadlines_s[which]
        classes = np.full(len(which), _NORMAL)
        if rules.heeds_deadlines:
            slack_s = deadlines_s - self._now_s - self._load_s[which] - compute_s[which]
            classes[slack_s < 2 * rules.step_s] = _DUE
            classes[slack_s < 0] = _LATE
        classes[self._passed[which] >= rules.max_passed] = _STARVED
        served_s = self._served_s[self._tenants[which]] * rules.is_fair
        served_s[classes == _DUE] = deadlines_s[classes == _DUE]
        served_s[classes == _STARVED] = 0.0
        order = np.lexsort((self._ranks[which], served_s, classes))
        return which[order], classes[order]

    def _why(self, i: np.int64, of_class: np.int64) -> Why:
        if self._was_deferred[i] and of_class == _NORMAL:
            return Why.DEFERRED
        return _WHY[of_class]


def _numbered(names: Sequence[Hashable]) -> NDArray[np.int64]:
    """A small number for each name."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)
