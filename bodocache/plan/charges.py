# SPDX-License-Identifier: Apache-2.0
"""Charges: which demands of a window their tenants' credits pay for, and when those of the rest do.

Demands for one copy of a page form a group: it is charged once, its bytes and one I/O, in equal
parts to each demand (a tenant that asks twice pays twice the part), exactly. Where a tenant cannot
pay, the others pay for it, who would pay no less alone; a group that nobody can pay for waits. If
even after TURNS turns some of those left cannot pay, who asks most urgently is left to pay alone.

A tenant's demands are paid in the order given (earliest deadline first), none overtaking, so a
large page waits for no stream of small ones. But once its oldest has waited ``patience_s`` (0: no
end) that goes first. So a tenant's oldest demand, of b bytes, whatever the others do, goes at most
``patience_s + (b - held + owed) / rate`` after it came, the same for its I/O, plus one window.
After all have paid with their own credits, those who lack some borrow (credits.py).
"""

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.asked import (
    ANSWER,
    ASKED,
    LANES,
    SCRATCH,
    Answer,
    Asked,
    Indices,
    Scratch,
    bucket_of,
    lane_of,
    scratch_for,
)
from bodocache.plan.credits import POLICIES, TENANTS, Tenants, lend, lendable, scale_to_link
from bodocache.plan.records import BUCKETS, IO, Int

__all__ = [
    "ANSWER",
    "ASKED",
    "SCRATCH",
    "Answer",
    "Asked",
    "Scratch",
    "check",
    "give_back",
    "grant",
    "part",
    "scratch_for",
]

TURNS = 8  # of finding who pays: each costs a walk over the group, and a thousand tenants with just
# the wrong balances would make it a thousand walks

_I, _B = jit.array("i8"), jit.array("?")


def check(tenants: Tenants, asked: Asked) -> None:
    """Raise ValueError, naming field and row, where :func:`grant` would never answer or fail."""
    row = _first_wrong(tenants, asked)
    if row < 0:
        return
    tenant = asked.demands["tenant"][row]
    if tenant >= len(tenants):
        raise ValueError(f"demands.tenant: row {row}: {tenant}: expected one of {len(tenants)}")
    raise ValueError(
        f"tenants.cap: row {tenant}: {asked.nbytes[row]} bytes of demand {row} exceed it: they "
        "would wait for ever; raise it to hold a page"
    )


@jit.kernel(TENANTS, POLICIES, ASKED, jit.f8, SCRATCH, ANSWER)
def grant(
    tenants: Tenants,
    policy: NDArray[np.void],
    asked: Asked,
    now_s: float,
    scratch: Scratch,
    answer: Answer,
) -> None:
    """Charge for as many of the wanted demands as there are credits for, and answer each.

    The tenants' buckets have been refilled to ``now_s``.
    """
    _reset(scratch)
    _group(asked, scratch)
    _serve_all(tenants, policy, asked, now_s, scratch)
    if _open_pools(tenants, scratch):
        _serve_all(tenants, policy, asked, now_s, scratch)
        _close_pools(tenants, scratch)
    for bucket in range(BUCKETS):
        scratch.scales[bucket] = scale_to_link(tenants, policy, bucket)
    _answer(tenants, asked, now_s, scratch, answer)


@jit.kernel(TENANTS, ASKED, jit.i8, jit.i8, jit.i8, SCRATCH)
def give_back(
    tenants: Tenants, asked: Asked, leader: Int, unit: Int, unused: Int, scratch: Scratch
) -> None:
    """Return ``unused`` of the group's charge, to those who paid, in equal parts.

    For what turned out cheaper than charged: I/Os of pages that were merged into one op (of an op
    of k groups each keeps ``part(IO, k, its place)``), pages that were not moved after all.
    """
    payers = np.int64(0)
    i: Int = scratch.heads[leader]
    while i >= 0:
        payers += scratch.paid[i, unit] > 0
        i = scratch.nexts[i]
    place: Int = 0
    i = scratch.heads[leader]
    while i >= 0:
        if scratch.paid[i, unit] > 0:
            back = min(part(unused, payers, place), scratch.paid[i, unit])
            scratch.paid[i, unit] -= back
            _credit(
                tenants,
                np.int64(asked.demands[i]["tenant"]),
                bucket_of(asked.demands, i, unit),
                back,
            )
            place += 1
        i = scratch.nexts[i]


@jit.kernel(jit.i8, jit.i8, jit.i8)
def part(whole: Int, parts: Int, place: Int) -> Int:
    """The size of part ``place`` of ``whole`` in equal parts: they sum to it exactly."""
    return whole // parts + (1 if place < whole % parts else 0)


@jit.kernel(TENANTS, jit.i8, jit.i8, jit.i8)
def _credit(tenants: Tenants, row: Int, bucket: Int, back: Int) -> None:
    tenant = tenants[row]
    tenant["spent"][bucket] -= back
    kept = min(back, tenant["cap"][bucket] - tenant["held"][bucket])
    tenant["held"][bucket] += kept
    tenant["wasted"][bucket] += back - kept  # only what was borrowed on top of a full bucket


@jit.kernel(SCRATCH)
def _reset(scratch: Scratch) -> None:
    scratch.heads[:] = -1
    scratch.sizes[:] = 0
    scratch.served[:] = False
    scratch.paid[:, :] = 0
    scratch.loaned[:, :] = 0
    scratch.oldest[:] = -1
    scratch.short[:] = -1
    scratch.blocked[:] = False
    scratch.pools[:] = 0
    scratch.drawn[:] = 0


@jit.kernel(ASKED, SCRATCH)
def _group(asked: Asked, scratch: Scratch) -> None:
    """Link the demands of each group, in their order, and find every lane's oldest."""
    for at in range(len(asked.order) - 1, -1, -1):
        i = asked.order[at]
        if not asked.wanted[i]:
            continue
        scratch.nexts[i] = scratch.heads[asked.leaders[i]]
        scratch.heads[asked.leaders[i]] = i
        scratch.sizes[asked.leaders[i]] += 1
        lane = lane_of(asked.demands, i)
        oldest = scratch.oldest[lane]
        if oldest < 0 or asked.demands[i]["arrival_s"] <= asked.demands[oldest]["arrival_s"]:
            scratch.oldest[lane] = i


@jit.kernel(TENANTS, POLICIES, ASKED, jit.f8, SCRATCH)
def _serve_all(
    tenants: Tenants, policy: NDArray[np.void], asked: Asked, now_s: float, scratch: Scratch
) -> None:
    """The oldest that have waited too long, then all in their order."""
    patience_s = policy[0]["patience_s"]
    for which in range(len(scratch.oldest) if patience_s > 0.0 else 0):
        i: Int = scratch.oldest[which]
        if i >= 0 and now_s - asked.demands[i]["arrival_s"] > patience_s:
            _serve(tenants, asked, i, scratch)
    for i in asked.order:
        leader, lane = asked.leaders[i], lane_of(asked.demands, i)
        if not asked.wanted[i] or scratch.served[leader] or scratch.blocked[lane]:
            continue
        row, bucket, nbytes = lane // LANES, 2 * (lane % LANES), asked.nbytes[leader]
        if scratch.sizes[leader] == 1 and _pay_alone(tenants, row, bucket, nbytes):
            scratch.paid[i, 0], scratch.paid[i, 1] = nbytes, IO
            scratch.served[leader] = True
        else:
            _serve(tenants, asked, i, scratch)


@jit.kernel(TENANTS, jit.i8, jit.i8, jit.i8)
def _pay_alone(tenants: Tenants, row: Int, bucket: Int, nbytes: Int) -> bool:
    """Charge a page to one tenant's own credits, if they suffice.

    Most demands are alone; the general way, which hands many arrays on, costs them several times
    as much (bench/credits.py, "shared").
    """
    tenant = tenants[row]
    if tenant["held"][bucket] < nbytes or tenant["held"][bucket + 1] < IO:
        return False
    tenant["held"][bucket] -= nbytes
    tenant["held"][bucket + 1] -= IO
    tenant["spent"][bucket] += nbytes
    tenant["spent"][bucket + 1] += IO
    return True


@jit.kernel(TENANTS, ASKED, jit.i8, SCRATCH)
def _serve(tenants: Tenants, asked: Asked, i: Int, scratch: Scratch) -> None:
    """Charge the group of ``i``; where nobody can pay, what its tenant asks for later waits too."""
    leader, lane = asked.leaders[i], lane_of(asked.demands, i)
    if scratch.served[leader] or scratch.blocked[lane]:
        return
    turn: Int = 0
    payers: Int = _count_payers(asked, leader, scratch)
    while payers > 0 and not scratch.served[leader]:
        scratch.served[leader] = _charge(tenants, asked, leader, payers, scratch)
        turn += 1
        if turn == TURNS:
            _leave_to(asked, leader, lane, scratch)
        payers = _count_payers(asked, leader, scratch)  # fewer each turn
    member: Int = scratch.heads[leader]
    while member >= 0:  # another group, or the same with loans, is another matter
        scratch.short[lane_of(asked.demands, member)] = -1
        member = scratch.nexts[member]
    scratch.blocked[lane] = not scratch.served[leader]


@jit.kernel(ASKED, jit.i8, SCRATCH)
def _count_payers(asked: Asked, leader: Int, scratch: Scratch) -> Int:
    count = np.int64(0)
    i: Int = scratch.heads[leader]
    while i >= 0:
        count += _pays(scratch.blocked, scratch.short, lane_of(asked.demands, i), leader)
        i = scratch.nexts[i]
    return count


@jit.kernel(ASKED, jit.i8, jit.i8, SCRATCH)
def _leave_to(asked: Asked, leader: Int, lane: Int, scratch: Scratch) -> None:
    """Of the group, only demands of ``lane`` pay from now on."""
    i: Int = scratch.heads[leader]
    while i >= 0:
        if lane_of(asked.demands, i) != lane:
            scratch.short[lane_of(asked.demands, i)] = leader
        i = scratch.nexts[i]


@jit.kernel(_B, _I, jit.i8, jit.i8)
def _pays(blocked: NDArray[np.bool_], short: Indices, lane: Int, leader: Int) -> bool:
    return bool(not blocked[lane] and short[lane] != leader)


@jit.kernel(TENANTS, ASKED, jit.i8, jit.i8, SCRATCH)
def _charge(tenants: Tenants, asked: Asked, leader: Int, payers: Int, scratch: Scratch) -> bool:
    """Charge each payer its part, or none: then who was short of it pays no more."""
    each_nbytes, each_ios = asked.nbytes[leader] // payers, IO // payers
    more_nbytes, more_ios = asked.nbytes[leader] - each_nbytes * payers, IO - each_ios * payers
    place: Int = 0
    whole = True
    i: Int = scratch.heads[leader]
    while i >= 0:
        lane = lane_of(asked.demands, i)
        if _pays(scratch.blocked, scratch.short, lane, leader):
            row, bucket = lane // LANES, 2 * (lane % LANES)
            nbytes, ios = each_nbytes + (place < more_nbytes), each_ios + (place < more_ios)
            if _can_pay(tenants, row, bucket, nbytes, scratch.pools) and _can_pay(
                tenants, row, bucket + 1, ios, scratch.pools
            ):
                pools, drawn = scratch.pools, scratch.drawn
                scratch.paid[i, 0], scratch.paid[i, 1] = nbytes, ios
                scratch.loaned[i, 0] = _pay(tenants, row, bucket, nbytes, pools, drawn)
                scratch.loaned[i, 1] = _pay(tenants, row, bucket + 1, ios, pools, drawn)
            else:
                scratch.short[lane] = leader
                whole = False
            place += 1
        i = scratch.nexts[i]
    if not whole:
        _undo(tenants, asked, leader, scratch)
    return whole


@jit.kernel(TENANTS, jit.i8, jit.i8, jit.i8, _I)
def _can_pay(tenants: Tenants, row: Int, bucket: Int, amount: Int, pools: Indices) -> bool:
    tenant = tenants[row]
    loan = min(tenant["borrow"][bucket] - tenant["owed"][bucket], pools[bucket])
    return bool(amount <= tenant["held"][bucket] + loan)


@jit.kernel(TENANTS, jit.i8, jit.i8, jit.i8, _I, _I)
def _pay(
    tenants: Tenants, row: Int, bucket: Int, amount: Int, pools: Indices, drawn: Indices
) -> Int:
    """Pay from what is held, then from the pool; return how much from the pool."""
    tenant = tenants[row]
    loan = max(np.int64(0), amount - tenant["held"][bucket])
    tenant["spent"][bucket] += amount
    tenant["held"][bucket] -= amount - loan
    tenant["owed"][bucket] += loan
    pools[bucket] -= loan
    drawn[bucket] += loan
    return np.int64(loan)


@jit.kernel(TENANTS, ASKED, jit.i8, SCRATCH)
def _undo(tenants: Tenants, asked: Asked, leader: Int, scratch: Scratch) -> None:
    """Return to each of the group, and to the pools, what it has just been charged."""
    i: Int = scratch.heads[leader]
    while i >= 0:
        tenant = tenants[np.int64(asked.demands[i]["tenant"])]
        for unit in range(2):
            bucket, loan = bucket_of(asked.demands, i, unit), scratch.loaned[i, unit]
            tenant["spent"][bucket] -= scratch.paid[i, unit]
            tenant["held"][bucket] += scratch.paid[i, unit] - loan
            tenant["owed"][bucket] -= loan
            scratch.pools[bucket] += loan
            scratch.drawn[bucket] -= loan
            scratch.paid[i, unit] = scratch.loaned[i, unit] = 0
        i = scratch.nexts[i]


@jit.kernel(TENANTS, SCRATCH)
def _open_pools(tenants: Tenants, scratch: Scratch) -> bool:
    """Pool what those lend who have all they asked for; whether there is anything to borrow for."""
    short, pooled = False, np.int64(0)
    for lane in range(len(scratch.blocked)):
        row, bucket = lane // LANES, 2 * (lane % LANES)
        for b in range(bucket, bucket + 2):
            offer = 0 if scratch.blocked[lane] else lendable(tenants, row, b)
            scratch.offers[b * len(tenants) + row] = offer
            scratch.pools[b] += offer
            pooled += offer
        short = short or scratch.blocked[lane]
        scratch.blocked[lane] = False
    return bool(short and pooled > 0)


@jit.kernel(TENANTS, SCRATCH)
def _close_pools(tenants: Tenants, scratch: Scratch) -> None:
    """Take what was borrowed from those who offered it."""
    for b in range(BUCKETS):
        if scratch.drawn[b] > 0:
            begin = b * len(tenants)
            lend(tenants, b, scratch.offers[begin : begin + len(tenants)], scratch.drawn[b])


@jit.kernel(TENANTS, ASKED, jit.f8, SCRATCH, ANSWER)
def _answer(
    tenants: Tenants,
    asked: Asked,
    now_s: float,
    scratch: Scratch,
    answer: Answer,
) -> None:
    scratch.backlog[:] = 0
    for i in range(len(asked.demands)):
        answer.granted[i] = asked.wanted[i] and scratch.served[asked.leaders[i]]
        answer.ready_s[i] = now_s if answer.granted[i] else np.inf
    for i in asked.order:
        if asked.wanted[i] and not answer.granted[i]:
            answer.ready_s[i] = _ready_s(tenants, asked, i, now_s, scratch)


@jit.kernel(TENANTS, ASKED, jit.i8, jit.f8, SCRATCH)
def _ready_s(
    tenants: Tenants,
    asked: Asked,
    i: Int,
    now_s: float,
    scratch: Scratch,
) -> float:
    """When the tenant has earned its part of this group, after those of its earlier demands."""
    row, leader = np.int64(asked.demands[i]["tenant"]), asked.leaders[i]
    ready_s = now_s
    for unit in range(2):
        bucket = bucket_of(asked.demands, i, unit)
        at = bucket * len(tenants) + row
        whole = asked.nbytes[leader] if unit == 0 else np.int64(IO)
        scratch.backlog[at] += part(whole, scratch.sizes[leader], 0)
        lacking = scratch.backlog[at] + tenants[row]["owed"][bucket] - tenants[row]["held"][bucket]
        if lacking > 0:
            rate = tenants[row]["rate"][bucket] * scratch.scales[bucket]
            ready_s = max(ready_s, now_s + (lacking + 1) / rate)  # +1: rounding; / 0 is inf
    return ready_s


@jit.kernel(TENANTS, ASKED)
def _first_wrong(tenants: Tenants, asked: Asked) -> Int:
    for i in range(len(asked.demands)):
        row = np.int64(asked.demands[i]["tenant"])
        if row >= len(tenants):
            return i
        bucket = bucket_of(asked.demands, i, 0)
        waits = asked.wanted[i] and tenants[row]["rate"][bucket] > 0
        if waits and asked.nbytes[i] > tenants[row]["cap"][bucket]:
            return i
    return -1
