# SPDX-License-Identifier: Apache-2.0
"""Room for what a window moves: which pages are to leave the tiers it goes to, as EVICT ops.

A tier is short by the pages that ops bring to it beyond ``capacity_pages`` (0: not known, nothing
leaves). Those that ask most urgently have the free places; the victims of the others are the
coldest pages (victims.py) that their tenants may evict (shares.py), none that the window demands,
as many as the churn guard lets go. Nothing leaves here: who executes the ops evicts, and an op that
finds no room waits. A page on its way from the disk to the device takes no room on the host here.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bodocache.pages import Tier
from bodocache.plan import evict, shares, victims
from bodocache.plan.records import OP, OpKind, Plan

Records = NDArray[np.void]
Rows = NDArray[np.int64]

_TIERS = (Tier.DEVICE, Tier.HOST, Tier.DISK)


def with_room(
    made: Plan,
    demands: Records,
    pages: Records,
    queues: evict.Queues,
    policy: Records,
    free_frames: int,
) -> Plan:
    """``made`` with the EVICT ops that it needs, before all others; itself where it needs none."""
    moves = made.ops[made.ops["kind"] != OpKind.ABORT]
    short = {}
    for tier in _TIERS:
        ops = moves[moves["destination"] == tier]
        free = _free(queues, policy, tier, free_frames)
        if int(ops["count"].sum()) > free:
            short[tier] = ops, free
    if not short:
        return made
    spared = np.unique(demands["page"]).astype(np.int64)
    evictions = [
        op
        for tier, (ops, free) in short.items()
        for op in _evictions(made, demands, pages, queues, policy, tier, ops, free, spared)
    ]
    return _before(made, evictions)


def _free(queues: evict.Queues, policy: Records, tier: Tier, free_frames: int) -> int:
    capacity = int(policy["capacity_pages"][0, tier])
    if capacity == 0:
        return 1 << 62
    free = max(0, capacity - int(queues.tally.used[tier].sum()))
    return min(free, free_frames) if tier is Tier.DISK else free


def _evictions(  # noqa: PLR0913, PLR0917 -- one tier of one window
    made: Plan,
    demands: Records,
    pages: Records,
    queues: evict.Queues,
    policy: Records,
    tier: Tier,
    ops: Records,
    free: int,
    spared: Rows,
) -> list[tuple[Records, Rows]]:
    """An op and its rows for each account that lacks room in ``tier``."""
    churned, now_s = queues.churned.copy(), float(queues.clock_s[0])
    found, gone = [], np.empty(0, np.int64)
    victims.spare(pages, spared)
    for op, tenant, count, has in _wanting(made, demands, queues, ops, free):
        out = np.empty(count, np.int64)
        account = int(shares.account_of(queues.tally, tenant))
        taker = victims.Taker(account, tenant, has)
        leave = victims.coldest_for(pages, queues, policy, int(tier), count, now_s, taker, out)
        if leave:
            gone = np.concatenate((gone, out[:leave]))
            found.append((_op(op, tier, pages, out[:leave]), out[:leave]))
    victims.restore(pages, queues, policy, spared, gone, int(tier))
    queues.churned[:] = churned
    return found


def _wanting(
    made: Plan, demands: Records, queues: evict.Queues, ops: Records, free: int
) -> Iterator[tuple[np.void, int, int, int]]:
    """Per account: its first op that has no place, a tenant, pages without and with a place."""
    lack: dict[int, tuple[np.void, int, int]] = {}
    has: dict[int, int] = {}
    for op in ops:
        tenant = int(demands["tenant"][made.demands[made.answers[op["first"]]]])
        account = int(shares.account_of(queues.tally, tenant))
        fits = min(free, int(op["count"]))
        free -= fits
        has[account] = has.get(account, 0) + fits
        if fits < op["count"]:
            first, whose, before = lack.get(account, (op, tenant, 0))
            lack[account] = first, whose, before + int(op["count"]) - fits
    for account, (op, tenant, count) in lack.items():
        yield op, tenant, count, has[account]


def _op(need: np.void, tier: Tier, pages: Records, rows: Rows) -> Records:
    """One EVICT op of ``rows``, for the op ``need``."""
    op = np.zeros(1, OP)
    op["kind"], op["node"], op["cluster"] = OpKind.EVICT, need["node"], -1
    op["source"] = op["destination"] = tier
    op["stream"], op["count"] = int(tier) * len(Tier) + int(tier), len(rows)
    op["request"], op["deadline_s"] = need["request"], need["deadline_s"]
    op["nbytes"] = int(pages["nbytes"][rows].astype(np.int64).sum())
    op["predicted_finish_s"] = op["keep_until_s"] = np.inf
    return op


def _before(made: Plan, evictions: list[tuple[Records, Rows]]) -> Plan:
    """The plan with ``evictions`` first; moving their rows answers no demand."""
    if not evictions:
        return made
    first, ops = 0, []
    for op, rows in evictions:
        op["first"] = first
        first += len(rows)
        ops.append(op)
    moves = made.ops.copy()
    moves["first"] += first
    return made._replace(
        ops=np.concatenate((*ops, moves)),
        rows=np.concatenate((*(rows for _, rows in evictions), made.rows)),
        answers=np.concatenate((np.zeros(first, np.int64), made.answers)),
    )
