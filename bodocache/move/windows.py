# SPDX-License-Identifier: Apache-2.0
"""Planning windows: what is read from disk while the disk is busy is planned together.

A part is planned when its link first asks it for a chunk: at once where the link is idle, so a load
that comes alone waits for nobody. Beside others, all that has come by then is planned in one
window, after ``window_s`` at the latest. Nothing runs here while nothing waits.

A window that fails, or takes longer than ``window_s``, leaves pages in the order of their prompts
and loads in that of their deadlines (queue.py); after a long one nothing is planned for RESTS
times as long as it took, so that planning never takes more than a tenth of the loop.
"""

import asyncio
import logging
from collections.abc import Callable
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from bodocache.move.part import Part
from bodocache.plan.records import DEMAND, OpKind, Plan

_log = logging.getLogger(__name__)

RESTS = 10


class Unplanned(StrEnum):
    """Why a window was not planned."""

    FAILED = "failed"  # the planner raised
    OVERLONG = "overlong"  # it took longer than the window; its plan is used
    RESTING = "resting"  # a long one came before


class Windows:
    """Collects parts of loads and has them planned."""

    def __init__(
        self,
        plan: Callable[[NDArray[np.void]], Plan],
        *,
        window_s: float,
        now_s: Callable[[], float],
    ) -> None:
        """``plan``: DEMAND records to ops, in the order they should start."""
        self.unplanned = dict.fromkeys(Unplanned, 0)
        self._plan = plan
        self._window_s = window_s
        self._now_s = now_s
        self._loop = asyncio.get_running_loop()
        self._parts: list[Part] = []
        self._timer: asyncio.TimerHandle | None = None
        self._rests_until_s = -np.inf
        self._said: set[Unplanned] = set()

    def add(self, part: Part) -> None:
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
        demands, firsts = _demands_of(parts)
        order = self._order(demands)
        if order is not None:
            for part, first in zip(parts, firsts, strict=True):
                part.arrange(_within(order, int(first), len(part.rows)))

    def _order(self, demands: NDArray[np.void]) -> NDArray[np.int64] | None:
        """Demands in the order in which they should start; None: as they are."""
        begun_s = self._now_s()
        if begun_s < self._rests_until_s:
            self._note(Unplanned.RESTING)
            return None
        try:
            order = self._plan(demands).demands.copy()
        except Exception as error:  # noqa: BLE001 -- without a plan loads go by their deadlines
            self._note(Unplanned.FAILED, error)
            return None
        took_s = self._now_s() - begun_s
        if took_s > self._window_s:
            self._rests_until_s = begun_s + took_s + RESTS * took_s
            self._note(Unplanned.OVERLONG)
        return order

    def _note(self, why: Unplanned, error: Exception | None = None) -> None:
        self.unplanned[why] += 1
        if why not in self._said:
            self._said.add(why)
            _log.warning(
                "planner: a window was %s; loads go by their deadlines alone (said once)",
                *(why,),
                exc_info=error,
            )


def _demands_of(parts: list[Part]) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    """The demands of all parts, one behind the other, and where each begins."""
    sizes = [len(part.rows) for part in parts]
    firsts = np.cumsum([0, *sizes])[:-1]
    demands = np.zeros(sum(sizes), DEMAND)
    demands["kind"] = OpKind.LOAD
    for number, (part, first, size) in enumerate(zip(parts, firsts, sizes, strict=True)):
        mine = demands[first : first + size]
        mine["page"] = part.rows
        mine["request"] = number
        mine["deadline_s"] = part.load.deadline_s
        mine["arrival_s"] = part.load.begun_s
    return demands, firsts


def _within(order: NDArray[np.int64], first: int, count: int) -> NDArray[np.int64]:
    """The order of demands ``first`` and on; what the plan leaves out goes last."""
    mine = order[(order >= first) & (order < first + count)] - first
    if len(mine) == count:
        return mine
    left_out = np.ones(count, np.bool_)
    left_out[mine] = False
    return np.concatenate((mine, np.flatnonzero(left_out)))
