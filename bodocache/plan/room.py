# SPDX-License-Identifier: Apache-2.0
"""Room for what a window moves: which pages are to leave the tiers it goes to, as EVICT ops.

A tier is short by the pages that ops bring to it beyond ``capacity_pages`` (0: not known, nothing
leaves). Ops that start first have the free places; the victims of the others are the coldest pages
(victims.py) that may go for them (shares.py: each page an op brings is for the tenant that asks for
it most urgently, whoever else the op serves), none that the window demands,
as many as the churn guard lets go. Tier after tier, each as if those before had left, so who
executes the ops in their order orphans no page. Nothing leaves here: the queues are put back as
they were. An op that finds no room waits. A page on its way from the disk to the device takes no
room on the host here.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.pages import Tier
from bodocache.plan import check, coalesce, evict, pairing, shares, victims
from bodocache.plan.records import OP, TIERS, Int, OpKind

Records = NDArray[np.void]
Rows = NDArray[np.int64]

# What the ops to one tier come to, for each account.
ACCOUNT = np.dtype(
    [
        ("op", "<i8"),  # the first with a page that has no place
        ("tenant", "<i8"),  # who asks for that page most urgently
        ("placed", "<i8"),  # pages with a place
        ("without", "<i8"),  # and those without
    ]
)


class Leaving(NamedTuple):
    """Who is to leave: memory for A accounts (shares.py) and n rows."""

    ops: Records  # OP[TIERS * A]
    rows: Rows  # [n]
    counts: Rows  # [2]: ops, rows
    accounts: Records  # ACCOUNT[A]
    short: Rows  # [A]: those who lack room, the most urgent first
    churned: NDArray[np.float64]  # [TIERS, 2]: as it was


_OPS, _I8, _CHURNED = jit.array(OP), jit.array("i8"), jit.array("f8", 2)
LEAVING = jit.named(Leaving, _OPS, _I8, _I8, jit.array(ACCOUNT), _I8, _CHURNED)
_EVICT, _ABORT, _DISK = int(OpKind.EVICT), int(OpKind.ABORT), int(Tier.DISK)
_TABLES = evict.PAGES, evict.QUEUES, evict.POLICIES


def leaving_for(rows: int, accounts: int) -> Leaving:
    """Memory for a plan that moves ``rows`` pages."""
    return Leaving(
        np.zeros(TIERS * accounts, OP),
        np.empty(rows, np.int64),
        np.zeros(2, np.int64),
        np.zeros(accounts, ACCOUNT),
        np.empty(accounts, np.int64),
        np.empty((TIERS, 2)),
    )


@jit.kernel(check.DEMANDS, *_TABLES, coalesce.ROOM, jit.i8, victims.MARKS, LEAVING)
def make(
    demands: Records,
    pages: Records,
    queues: evict.Queues,
    policy: Records,
    made: coalesce.Room,
    free_frames: Int,
    marks: victims.Marks,
    leaving: Leaving,
) -> Int:
    """Put EVICT ops before all others of ``made``; -1, or the code of a bad page (check.py).

    ``marks`` (zeros, one a page) are zeros again, and the queues as they were, whatever comes out.
    """
    _copy(queues.churned, leaving.churned)
    is_marked = False
    wrong: Int = -1
    for tier in range(_DISK + 1):
        free = _free_pages(queues, policy, tier, free_frames)
        short = _share_out(demands, queues.tally, made, tier, free, leaving)
        if short == 0 or wrong >= 0:
            continue
        if not is_marked:
            _mark(demands, marks)
            is_marked = True
        wrong = _leave(pages, queues, policy, made, tier, short, marks, leaving)
    _bring_back(pages, queues, policy, leaving)
    if is_marked:
        _unmark(demands, pages, queues, policy, marks)
    if wrong < 0:
        _put_first(leaving, made)
    return wrong


@jit.kernel(evict.QUEUES, evict.POLICIES, jit.i8, jit.i8)
def _free_pages(queues: evict.Queues, policy: Records, tier: Int, free_frames: Int) -> Int:
    capacity = np.int64(policy[0]["capacity_pages"][tier])
    if capacity == 0:
        return np.int64(1) << 62
    used: Int = 0
    for account in range(len(queues.tally.parts)):
        used += queues.tally.used[tier, account]
    free = max(capacity - used, np.int64(0))
    return min(free, free_frames) if tier == _DISK else free


@jit.kernel(check.DEMANDS, shares.TALLY, coalesce.ROOM, jit.i8, jit.i8, LEAVING)
def _share_out(
    demands: Records,
    tally: shares.Tally,
    made: coalesce.Room,
    tier: Int,
    free: Int,
    leaving: Leaving,
) -> Int:
    """Hand out the free places of ``tier``; return how many accounts lack any (``short``)."""
    for i in range(len(leaving.accounts)):
        leaving.accounts[i]["placed"] = 0
        leaving.accounts[i]["without"] = 0
    short: Int = 0
    for at in range(made.counts[0]):
        op = made.ops[at]
        if op["destination"] != tier or op["kind"] == _ABORT:
            continue
        place, end = op["first"], op["first"] + np.int64(op["count"])
        while place < end:
            tenant = _asker(demands, made, place)
            which = shares.account_of(tally, tenant)
            begin, place = place, _run_end(demands, tally, made, place, end, which)
            fits = min(free, place - begin)
            free -= fits
            account = leaving.accounts[which]
            account["placed"] += fits
            if fits == place - begin:
                continue
            if account["without"] == 0:
                account["op"], account["tenant"] = at, _asker(demands, made, begin + fits)
                leaving.short[short] = which
                short += 1
            account["without"] += place - begin - fits
    return short


@jit.kernel(check.DEMANDS, coalesce.ROOM, jit.i8)
def _asker(demands: Records, made: coalesce.Room, place: Int) -> Int:
    """The tenant that asks most urgently for the page at ``place``."""
    return np.int64(demands[made.demands[made.answers[place]]]["tenant"])


@jit.kernel(check.DEMANDS, shares.TALLY, coalesce.ROOM, jit.i8, jit.i8, jit.i8)
def _run_end(
    demands: Records, tally: shares.Tally, made: coalesce.Room, place: Int, end: Int, account: Int
) -> Int:
    """Where the run of pages for ``account`` ends that begins at ``place``: at most at ``end``."""
    if len(tally.parts) == 1:
        return end
    place += 1
    while place < end and shares.account_of(tally, _asker(demands, made, place)) == account:
        place += 1
    return place


@jit.kernel(check.DEMANDS, victims.MARKS)
def _mark(demands: Records, marks: victims.Marks) -> None:
    for i in range(len(demands)):
        marks[demands[i]["page"]] = victims.SPARED


@jit.kernel(*_TABLES, coalesce.ROOM, jit.i8, jit.i8, victims.MARKS, LEAVING)
def _leave(
    pages: Records,
    queues: evict.Queues,
    policy: Records,
    made: coalesce.Room,
    tier: Int,
    short: Int,
    marks: victims.Marks,
    leaving: Leaving,
) -> Int:
    """One op for each account that lacks room, of what the churn guard lets go; -1, or a code."""
    left = victims.begin(pages, queues, policy, tier, queues.clock_s[0])
    wrong: Int = -1
    for k in range(short):
        which = leaving.short[k]
        account, begin = leaving.accounts[which], leaving.counts[1]
        taker = victims.Taker(which, account["tenant"], account["placed"], marks)
        count = min(left, account["without"])
        wrong = _take(pages, queues, policy, tier, count, taker, leaving)
        left -= leaving.counts[1] - begin
        _note(made.ops[account["op"]], pages, tier, begin, leaving)
        if wrong >= 0:
            break
    return wrong


@jit.kernel(*_TABLES, jit.i8, jit.i8, victims.TAKER, LEAVING)
def _take(
    pages: Records,
    queues: evict.Queues,
    policy: Records,
    tier: Int,
    count: Int,
    taker: victims.Taker,
    leaving: Leaving,
) -> Int:
    """As victims.coldest_for, each page looked at before it goes; -1, or a code."""
    taken, floor = np.int64(0), -np.inf
    while taken < count:
        lane = victims.next_lane(pages, queues, policy, tier, taker, taker.promised + taken)
        if lane < 0:
            break
        wrong = check.in_victim(pairing.first(queues.roots[tier], lane), pages, tier)
        if wrong >= 0:
            return wrong
        floor = max(floor, queues.fronts[lane])
        row = victims.evict_first(pages, queues, policy, tier, lane, floor)
        leaving.rows[leaving.counts[1]] = row
        leaving.counts[1] += 1
        taken += 1
    return np.int64(-1)


@jit.kernel(jit.record(OP), evict.PAGES, jit.i8, jit.i8, LEAVING)
def _note(need: Records, pages: Records, tier: Int, begin: Int, leaving: Leaving) -> None:
    """One EVICT op of ``leaving.rows`` from ``begin`` on, for the op ``need``."""
    end, nbytes = leaving.counts[1], np.int64(0)
    if begin == end:
        return
    for k in range(begin, end):
        nbytes += np.int64(pages[leaving.rows[k]]["nbytes"])
    op = leaving.ops[leaving.counts[0]]
    leaving.counts[0] += 1
    op["kind"], op["node"], op["cluster"] = _EVICT, need["node"], -1
    op["source"], op["destination"], op["stream"] = tier, tier, tier * TIERS + tier
    op["first"], op["count"], op["nbytes"] = begin, end - begin, nbytes
    op["request"], op["deadline_s"] = need["request"], need["deadline_s"]
    op["predicted_finish_s"], op["keep_until_s"] = np.inf, np.inf


@jit.kernel(*_TABLES, LEAVING)
def _bring_back(pages: Records, queues: evict.Queues, policy: Records, leaving: Leaving) -> None:
    """Undo all departures, the last one first, and what the churn guard counted."""
    for at in range(leaving.counts[0] - 1, -1, -1):
        op = leaving.ops[at]
        first, tier = op["first"], np.int64(op["source"])
        for k in range(first + np.int64(op["count"]) - 1, first - 1, -1):
            evict.bring_back(pages, queues, policy, leaving.rows[k], tier)
    _copy(leaving.churned, queues.churned)


@jit.kernel(_CHURNED, _CHURNED)
def _copy(source: NDArray[np.float64], target: NDArray[np.float64]) -> None:
    for tier in range(TIERS):
        for i in range(2):
            target[tier, i] = source[tier, i]


@jit.kernel(check.DEMANDS, *_TABLES, victims.MARKS)
def _unmark(
    demands: Records,
    pages: Records,
    queues: evict.Queues,
    policy: Records,
    marks: victims.Marks,
) -> None:
    """Queue again what was set aside; few are, so that most pages are not looked at."""
    for i in range(len(demands)):
        row = demands[i]["page"]
        if marks[row] == victims.SET_ASIDE:
            evict.weigh_everywhere(pages, queues, policy, row)
        marks[row] = 0


@jit.kernel(LEAVING, coalesce.ROOM)
def _put_first(leaving: Leaving, made: coalesce.Room) -> None:
    """Moving their rows answers no demand."""
    more_ops, more_rows = leaving.counts[0], leaving.counts[1]
    if more_ops == 0:
        return
    for at in range(made.counts[0] - 1, -1, -1):
        made.ops[at]["first"] += more_rows
        made.ops[at + more_ops] = made.ops[at]
    for k in range(made.counts[1] - 1, -1, -1):
        made.rows[k + more_rows] = made.rows[k]
    for k in range(made.counts[1], -1, -1):
        made.answers[k + more_rows] = made.answers[k]
    for at in range(more_ops):
        made.ops[at] = leaving.ops[at]
    for k in range(more_rows):
        made.rows[k] = leaving.rows[k]
        made.answers[k] = 0
    made.counts[0] += more_ops
    made.counts[1] += more_rows
