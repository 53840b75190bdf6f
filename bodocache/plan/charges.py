# SPDX-License-Identifier: Apache-2.0
"""Charges: which demands of a window their tenants' credits pay for, and when those of the rest do.

Demands for one copy of a page form a group: it is charged once, its bytes and one I/O, in equal
parts to each demand (a tenant that asks twice pays twice the part), exactly. Where a tenant cannot
pay, the others pay for it, who would pay no less alone; a group that nobody can pay for waits.

A tenant's demands are paid in the order given (earliest deadline first), none overtaking, so a
large page waits for no stream of small ones. But once its oldest has waited ``patience_s`` (0: no
end) that goes first. So a tenant's oldest demand, of b bytes, whatever the others do, goes at most
``patience_s + (b - held + owed) / rate`` after it came, the same for its I/O, plus one window.
After all have paid with their own credits, those who lack some borrow (credits.py).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.credits import POLICIES, TENANTS, Tenants, lend, lendable, scale_to_link
from bodocache.plan.records import BUCKETS, DEMAND, IO, Int, OpKind

LANES = 3  # len(Purpose); lane = 3 * tenant + purpose
_WRITE, _LOAD = int(OpKind.WRITE), int(OpKind.LOAD)

Indices = NDArray[np.int64]


class Asked(NamedTuple):
    """What a window asks for; nothing of it is written."""

    demands: NDArray[np.void]  # DEMAND[n], a read-only array
    nbytes: Indices  # [n], of the page
    order: Indices  # [n]: a permutation of the demands, earliest deadline first
    leaders: Indices  # [n]: the demand whose copy this one shares; its own index where none
    wanted: NDArray[np.bool_]  # [n]: the others are neither paid for nor answered


class Scratch(NamedTuple):
    """Memory for one window; what was paid stays in it for :func:`give_back`."""

    heads: Indices  # [n]: by leader, the first demand of its group; -1: none
    nexts: Indices  # [n]: the next demand of the group, or -1
    sizes: Indices  # [n]: by leader
    served: NDArray[np.bool_]  # [n]: by leader
    paid: Indices  # [n, 2]: bytes, I/Os
    loaned: Indices  # [n, 2]: of it
    oldest: Indices  # [lanes]: the demand that came first, or -1
    short: Indices  # [lanes]: the leader of the last group it could not pay for
    blocked: NDArray[np.bool_]  # [lanes]
    backlog: Indices  # [BUCKETS * tenants]: credits that waiting demands need
    offers: Indices  # [BUCKETS * tenants]
    pools: Indices  # [BUCKETS]: what may still be borrowed
    drawn: Indices  # [BUCKETS]
    scales: NDArray[np.float64]  # [BUCKETS]: of the rates, to the link's


class Answer(NamedTuple):
    """What came of the wanted demands."""

    granted: NDArray[np.bool_]  # [n]
    ready_s: NDArray[np.float64]  # [n]: now, or when the tenant's credits suffice; inf: never


_I, _B = jit.array("i8"), jit.array("?")
ASKED = jit.named(Asked, jit.readonly(DEMAND), _I, _I, _I, _B)  # numba converts none in a tuple
_PAIRS, _F = jit.array("i8", 2), jit.array("f8")
SCRATCH = jit.named(
    Scratch, *(_I, _I, _I, _B, _PAIRS, _PAIRS), *(_I, _I, _B), *(_I, _I, _I, _I, _F)
)
ANSWER = jit.named(Answer, _B, _F)


def scratch_for(demands: int, tenants: int) -> Scratch:
    """Scratch of :func:`grant`."""
    lanes, buckets = LANES * tenants, BUCKETS * tenants
    return Scratch(
        np.empty(demands, np.int64),
        np.empty(demands, np.int64),
        np.empty(demands, np.int64),
        np.empty(demands, np.bool_),
        np.empty((demands, 2), np.int64),
        np.empty((demands, 2), np.int64),
        np.empty(lanes, np.int64),
        np.empty(lanes, np.int64),
        np.empty(lanes, np.bool_),
        np.empty(buckets, np.int64),
        np.empty(buckets, np.int64),
        np.empty(BUCKETS, np.int64),
        np.empty(BUCKETS, np.int64),
        np.empty(BUCKETS),
    )


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
            _credit(tenants, np.int64(asked.demands[i]["tenant"]), _bucket(asked, i, unit), back)
            place += 1
        i = scratch.nexts[i]


@jit.kernel(jit.i8, jit.i8, jit.i8)
def part(whole: Int, parts: Int, place: Int) -> Int:
    """The size of part ``place`` of ``whole`` in equal parts: they sum to it exactly."""
    return whole // parts + (1 if place < whole % parts else 0)


@jit.kernel(jit.i8)
def purpose(kind: Int) -> Int:
    """The Purpose of an OpKind."""
    if kind == _LOAD:
        return 0
    return 2 if kind == _WRITE else 1


@jit.kernel(ASKED, jit.i8)
def _lane(asked: Asked, i: Int) -> Int:
    demand = asked.demands[i]
    return LANES * np.int64(demand["tenant"]) + purpose(np.int64(demand["kind"]))


@jit.kernel(ASKED, jit.i8, jit.i8)
def _bucket(asked: Asked, i: Int, unit: Int) -> Int:
    return 2 * purpose(np.int64(asked.demands[i]["kind"])) + unit


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
        lane = _lane(asked, i)
        oldest = scratch.oldest[lane]
        if oldest < 0 or asked.demands[i]["arrival_s"] <= asked.demands[oldest]["arrival_s"]:
            scratch.oldest[lane] = i


@jit.kernel(TENANTS, POLICIES, ASKED, jit.f8, SCRATCH)
def _serve_all(
    tenants: Tenants, policy: NDArray[np.void], asked: Asked, now_s: float, scratch: Scratch
) -> None:
    """The oldest that have waited too long, then all in their order."""
    patience_s = policy[0]["patience_s"]
    for lane in range(len(scratch.oldest) if patience_s > 0.0 else 0):
        i: Int = scratch.oldest[lane]
        if i >= 0 and now_s - asked.demands[i]["arrival_s"] > patience_s:
            _serve(tenants, asked, i, scratch)
    for i in asked.order:
        if asked.wanted[i]:
            _serve(tenants, asked, i, scratch)


@jit.kernel(TENANTS, ASKED, jit.i8, SCRATCH)
def _serve(tenants: Tenants, asked: Asked, i: Int, scratch: Scratch) -> None:
    """Charge the group of ``i``; where nobody can pay, what its tenant asks for later waits too."""
    leader, lane = asked.leaders[i], _lane(asked, i)
    if scratch.served[leader] or scratch.blocked[lane]:
        return
    while True:  # each turn fewer pay, or it is the last
        payers = _count_payers(asked, leader, scratch)
        if payers == 0:
            break
        if _charge(tenants, asked, leader, payers, scratch):
            scratch.served[leader] = True
            break
    member: Int = scratch.heads[leader]
    while member >= 0:  # another group, or the same with loans, is another matter
        scratch.short[_lane(asked, member)] = -1
        member = scratch.nexts[member]
    scratch.blocked[lane] = not scratch.served[leader]


@jit.kernel(ASKED, jit.i8, jit.i8, SCRATCH)
def _pays(asked: Asked, i: Int, leader: Int, scratch: Scratch) -> bool:
    lane = _lane(asked, i)
    return bool(not scratch.blocked[lane] and scratch.short[lane] != leader)


@jit.kernel(ASKED, jit.i8, SCRATCH)
def _count_payers(asked: Asked, leader: Int, scratch: Scratch) -> Int:
    count = np.int64(0)
    i: Int = scratch.heads[leader]
    while i >= 0:
        count += _pays(asked, i, leader, scratch)
        i = scratch.nexts[i]
    return count


@jit.kernel(TENANTS, ASKED, jit.i8, jit.i8, SCRATCH)
def _charge(tenants: Tenants, asked: Asked, leader: Int, payers: Int, scratch: Scratch) -> bool:
    """Charge each payer its part, or none: then who was short of it pays no more."""
    place: Int = 0
    whole = True
    i: Int = scratch.heads[leader]
    while i >= 0:
        if _pays(asked, i, leader, scratch):
            nbytes, ios = part(asked.nbytes[leader], payers, place), part(IO, payers, place)
            if _can_pay(tenants, asked, i, nbytes, ios, scratch):
                _pay(tenants, asked, i, 0, nbytes, scratch)
                _pay(tenants, asked, i, 1, ios, scratch)
            else:
                scratch.short[_lane(asked, i)] = leader
                whole = False
            place += 1
        i = scratch.nexts[i]
    if not whole:
        _undo(tenants, asked, leader, scratch)
    return whole


@jit.kernel(TENANTS, ASKED, jit.i8, jit.i8, jit.i8, SCRATCH)
def _can_pay(
    tenants: Tenants, asked: Asked, i: Int, nbytes: Int, ios: Int, scratch: Scratch
) -> bool:
    tenant = np.int64(asked.demands[i]["tenant"])
    bucket = _bucket(asked, i, 0)
    enough = nbytes <= _available(tenants, tenant, bucket, scratch)
    return bool(enough and ios <= _available(tenants, tenant, bucket + 1, scratch))


@jit.kernel(TENANTS, jit.i8, jit.i8, SCRATCH)
def _available(tenants: Tenants, row: Int, bucket: Int, scratch: Scratch) -> Int:
    tenant = tenants[row]
    loan = min(tenant["borrow"][bucket] - tenant["owed"][bucket], scratch.pools[bucket])
    return np.int64(tenant["held"][bucket] + loan)


@jit.kernel(TENANTS, ASKED, jit.i8, jit.i8, jit.i8, SCRATCH)
def _pay(tenants: Tenants, asked: Asked, i: Int, unit: Int, amount: Int, scratch: Scratch) -> None:
    """Pay from what is held, then from the pool."""
    tenant, bucket = tenants[np.int64(asked.demands[i]["tenant"])], _bucket(asked, i, unit)
    tenant["spent"][bucket] += amount
    scratch.paid[i, unit] += amount
    loan = max(np.int64(0), amount - tenant["held"][bucket])
    tenant["held"][bucket] -= amount - loan
    tenant["owed"][bucket] += loan
    scratch.loaned[i, unit] += loan
    scratch.pools[bucket] -= loan
    scratch.drawn[bucket] += loan


@jit.kernel(TENANTS, ASKED, jit.i8, SCRATCH)
def _undo(tenants: Tenants, asked: Asked, leader: Int, scratch: Scratch) -> None:
    """Return to each of the group, and to the pools, what it has just been charged."""
    i: Int = scratch.heads[leader]
    while i >= 0:
        tenant = tenants[np.int64(asked.demands[i]["tenant"])]
        for unit in range(2):
            bucket, loan = _bucket(asked, i, unit), scratch.loaned[i, unit]
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
        bucket = _bucket(asked, i, unit)
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
        bucket = _bucket(asked, i, 0)
        waits = asked.wanted[i] and tenants[row]["rate"][bucket] > 0
        if waits and asked.nbytes[i] > tenants[row]["cap"][bucket]:
            return i
    return -1
