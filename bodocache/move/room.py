# SPDX-License-Identifier: Apache-2.0
"""Which pages leave a tier so that others find room: the coldest that the taker may have.

Nothing is emptied here. What leaves has departed from the queues and is still in its slots, so that
all of it can be brought back where it is not enough; the residency empties the slots.

Shares hold in every tier for every page that leaves. Where nothing else can go, and a page is kept
by pages behind it elsewhere, which nobody could reach without it, these leave first, and count: in
no tier do they leave an owner with less than its share of that tier.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache.move.ghosts import Activity, RowArray
from bodocache.pages import Tier
from bodocache.plan import evict, kept, shares, victims
from bodocache.plan.evict import Queues

_AT_ONCE = 4096  # victims of one call of compiled code
_BEHIND = 256  # pages that keep one: room for most


class Need(NamedTuple):
    """What needs room; ghosts remember it."""

    activity: Activity
    tenant: int


class State(NamedTuple):
    """What eviction works on."""

    records: NDArray[np.void]  # PAGE
    queues: Queues
    policy: NDArray[np.void]


class Departure(NamedTuple):
    """Pages that have left a tier, children before their parents."""

    tier: Tier
    rows: RowArray


def leave(
    state: State, tier: Tier, count: int, taker: victims.Taker, now_s: float
) -> list[Departure]:
    """Let the coldest pages leave ``tier`` until it has ``count`` places more, or as many as can.

    ``taker.promised``: as victims.Taker, before this call.
    """
    gone: list[Departure] = []
    step: list[Departure] = []  # pages that keep the next one, and no place yet
    made = tried_pages = 0  # places of ``gone`` and of ``step``
    while (left := count - made - tried_pages) > 0:
        out = np.empty(min(left, _AT_ONCE), np.int64)
        with_step = _with(taker, made + tried_pages)
        # An enum costs compiled code 40 us to look at.
        found = int(victims.coldest_for(*state, int(tier), len(out), now_s, with_step, out))
        if found:
            gone += [*step, Departure(tier, out[:found])]
            made += tried_pages + found
            step, tried_pages = [], 0
            continue
        undo(state, step)
        tried, step = bool(step), []
        if not tried:
            step = _unblock(state, tier, _with(taker, made), now_s)
        tried_pages = pages_in(step, tier)
        if not step:
            break
    return gone + step


def leave_below(
    state: State,
    tier: Tier,
    rows: RowArray,
    free_pages: int,
    favour: float,
    taker: victims.Taker,
    now_s: float,
) -> tuple[int, int, list[Departure]]:
    """The same for the leading ``rows`` that are worth it: see victims.coldest_below.

    ``free_pages``: those that ``taker`` has already. How many have room, why no more, what left.
    """
    gone: list[Departure] = []
    step: list[Departure] = []  # pages that keep the next one
    worth, out = np.empty(len(rows)), np.empty(len(rows), np.int64)
    kept = made = 0  # made: places of ``gone``
    while True:
        room = made + pages_in(step, tier)
        free, before, behind = free_pages + room, kept, _with(taker, room)
        kept, why = victims.coldest_below(
            *(*state, rows, int(tier), free, favour, now_s, behind, worth, out)
        )
        if step and kept <= before:
            undo(state, step)
            break
        gone += [*step, Departure(tier, out[: max(0, kept - free)].copy())]
        made = room + max(0, kept - free)
        if why != victims.NONE_LEFT:
            break
        step = _unblock(state, tier, _with(taker, made), now_s, below=float(worth[kept]))
        if not step:
            break
    return kept, why, gone


def _unblock(
    state: State, tier: Tier, taker: victims.Taker, now_s: float, *, below: float = np.inf
) -> list[Departure]:
    """Let those leave that keep the coldest page whose last copy is in ``tier``: it is the next.

    Nothing leaves where plan/kept.py finds none, or where they are worth more than ``below``: log2
    of a density.
    """
    count, out = _BEHIND, np.empty(0, np.int64)
    while count > len(out):
        out = np.empty(count, np.int64)
        count = int(kept.behind_next(*state, int(tier), now_s, taker, below, out))
    if not count:
        return []
    steps = [_depart(state, out[:count][::-1], held) for held in Tier]
    return [step for step in steps if len(step.rows)]


def undo(state: State, gone: list[Departure]) -> None:
    """They have not left after all."""
    for tier, rows in reversed(gone):
        for row in rows[::-1].tolist():  # rarely: a taker that gets less than it asked for
            evict.bring_back(*state, row, int(tier))
        state.queues.churned[tier, 0] -= len(rows)


def pages_in(gone: list[Departure], tier: Tier) -> int:
    """How many places of ``tier`` they leave."""
    return sum(len(rows) for left, rows in gone if left is tier)


def may_churn(state: State, tier: Tier, now_s: float) -> bool:
    """Whether the churn guard lets any page go."""
    return int(victims.allowance(state.queues, state.policy, int(tier), now_s)) > 0


def account_of(state: State, tenant: int) -> int:
    """The account (plan/shares.py) of ``tenant``; ANYBODY is of every one."""
    tally = state.queues.tally
    if tenant == shares.ANYBODY:
        return tenant
    return int(shares.account_of(tally, tenant)) if len(tally.tenants) > 1 else 0


def _with(taker: victims.Taker, pages: int) -> victims.Taker:
    return taker._replace(promised=taker.promised + pages)


def _depart(state: State, rows: RowArray, tier: Tier) -> Departure:
    leaving = rows[(state.records["tiers"][rows] & tier.bit) != 0]
    evict.depart(*state, leaving, int(tier))
    state.queues.churned[tier, 0] += len(leaving)
    return Departure(tier, leaving)
