# SPDX-License-Identifier: Apache-2.0
"""Planning windows: what is read from disk while the disk is busy is planned together.

A part is planned when its link first asks it for a chunk: at once where the link is idle, so a load
that comes alone waits for nobody. Beside others, all that has come by then is planned in one
window, after ``window_s`` at the latest. Nothing runs here while nothing waits. The plan says in
which order pages are read, what is paid for first, and which loads are not worth their bytes beside
the others: those are cut before their first one.

A window that fails, or takes longer than ``window_s``, leaves pages in the order of their prompts
and loads in that of their deadlines (queue.py); after a long one nothing is planned for RESTS
times as long as it took, so that planning never takes more than a tenth of the loop.
"""

import asyncio
import logging
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache.move.known import Inputs, Known, Waiting
from bodocache.plan.records import Fate, Plan

_log = logging.getLogger(__name__)

RESTS = 10


class Unplanned(StrEnum):
    """Why a window was not planned."""

    FAILED = "failed"  # the planner raised
    OVERLONG = "overlong"  # it took longer than the window; its plan is used
    RESTING = "resting"  # a long one came before


class Windows:
    """Collects what waits for the disk and has it planned."""

    def __init__(
        self,
        plan: Callable[[Inputs], Plan],
        known: Known,
        *,
        window_s: float,
        now_s: Callable[[], float],
    ) -> None:
        """``plan``: inputs to ops, in the order they should start."""
        self.unplanned = dict.fromkeys(Unplanned, 0)
        self._plan = plan
        self._known = known
        self._window_s = window_s
        self._now_s = now_s
        self._loop = asyncio.get_running_loop()
        self._parts: list[Waiting] = []
        self._timer: asyncio.TimerHandle | None = None
        self._rests_until_s = -np.inf
        self._said: set[Unplanned] = set()

    def add(self, part: Waiting) -> None:
        """``part`` is about to wait for its turn; it is planned when that comes."""
        part.before_first = self.close
        self._parts.append(part)

    def wait(self) -> None:
        """Plan what has not had its turn when the window is over."""
        if self._parts and self._timer is None:
            self._timer = self._loop.call_later(self._window_s, self.close)

    def close(self) -> None:
        """Plan all that has come: the window is over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        parts, self._parts = self._parts, []
        for part in parts:
            part.before_first = None
        parts = [part for part in parts if not part.is_over]
        if not parts:
            return
        made = self._make(parts)
        if made is None:
            return
        first = 0
        for part in parts:
            mine = slice(first, first + len(part.rows))
            first = mine.stop
            late = np.flatnonzero(made.fates[mine] == Fate.CUT)
            if len(late):
                part.keep(int(late[0]))
            part.arrange(_within(made.demands, mine))

    def _make(self, parts: list[Waiting]) -> "_Made | None":
        """What is planned; None: they go as they are."""
        begun_s = self._now_s()
        if begun_s < self._rests_until_s:
            self._note(Unplanned.RESTING)
            return None
        try:
            plan = self._plan(self._known.inputs(parts, begun_s))
            made = _Made(plan.demands.copy(), plan.fates.copy())
        except Exception as error:  # noqa: BLE001 -- without a plan loads go by their deadlines
            self._note(Unplanned.FAILED, error)
            return None
        took_s = self._now_s() - begun_s
        if took_s > self._window_s:
            self._rests_until_s = begun_s + took_s + RESTS * took_s
            self._note(Unplanned.OVERLONG)
        return made

    def _note(self, why: Unplanned, error: Exception | None = None) -> None:
        self.unplanned[why] += 1
        if why not in self._said:
            self._said.add(why)
            _log.warning(
                "planner: a window was %s; loads go by their deadlines alone (said once)",
                *(why,),
                exc_info=error,
            )


class _Made(NamedTuple):
    """Of a plan: which demands go, in order, and what was decided of each."""

    demands: NDArray[np.int64]
    fates: NDArray[np.uint8]


def _within(order: NDArray[np.int64], mine: slice) -> NDArray[np.int64]:
    """The order of the demands ``mine``; what the plan leaves out goes last."""
    count = mine.stop - mine.start
    planned: NDArray[np.int64] = order[(order >= mine.start) & (order < mine.stop)] - mine.start
    if len(planned) == count:
        return planned
    left_out = np.ones(count, np.bool_)
    left_out[planned] = False
    return np.concatenate((planned, np.flatnonzero(left_out)))
