# SPDX-License-Identifier: Apache-2.0
"""What is decided about each demand before any op is formed; who may move what.

A demand is idle where nothing can be moved, and has joined where an op of an earlier window moves
its page already. Of the others, writes are refused that are not worth their room (admit.py), and
those wait that nobody's credits pay for (charges.py).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.pages import Tier
from bodocache.plan import admit, asked, charges, evict, order
from bodocache.plan.check import PAGES, POLICIES, TENANTS
from bodocache.plan.coalesce import ROOM, WORK, Room, Work
from bodocache.plan.credits import refill
from bodocache.plan.facts import WANTS, Wants
from bodocache.plan.records import IO, Fate, Int, OpKind, Unit

Records = NDArray[np.void]
Indices = NDArray[np.int32]

PLANNED, IDLE, JOINED = int(Fate.PLANNED), int(Fate.IDLE), int(Fate.JOINED)
REFUSED, DEFERRED, CUT = int(Fate.REFUSED), int(Fate.DEFERRED), int(Fate.CUT)
_WRITE, _ABORT, _DISK = int(OpKind.WRITE), int(OpKind.ABORT), int(Tier.DISK)
_IOS, _NBYTES = int(Unit.IOS), int(Unit.NBYTES)


class Writes(NamedTuple):
    """Memory for n writes."""

    rows: NDArray[np.int64]
    demands: NDArray[np.int64]
    weighed: Records  # admit.WEIGHED
    admitted: NDArray[np.bool_]


class Payments(NamedTuple):
    """Memory for n demands of tenants."""

    nbytes: NDArray[np.int64]
    order: NDArray[np.int64]
    leaders: NDArray[np.int64]
    wanted: NDArray[np.bool_]
    granted: NDArray[np.bool_]
    scratch: asked.Scratch


_I, _B, _I4 = jit.array("i8"), jit.array("?"), jit.array("i4")
WRITES = jit.named(Writes, _I, _I, jit.array(admit.WEIGHED), _B)
PAYMENTS = jit.named(Payments, _I, _I, _I, _B, _B, asked.SCRATCH)


def writes_for(demands: int) -> Writes:
    """Memory for as many writes."""
    return Writes(
        np.empty(demands, np.int64),
        np.empty(demands, np.int64),
        np.empty(demands, admit.WEIGHED),
        np.empty(demands, np.bool_),
    )


def payments_for(demands: int, tenants: int) -> Payments:
    """Memory for ``demands`` of ``tenants``."""
    return Payments(
        np.empty(demands, np.int64),
        np.empty(demands, np.int64),
        np.empty(demands, np.int64),
        np.empty(demands, np.bool_),
        np.empty(demands, np.bool_),
        asked.scratch_for(demands, tenants),
    )


@jit.kernel(WANTS)
def begin(wants: Wants) -> None:
    """Tell what is idle, and what has joined an op that is under way."""
    demands, facts, leads, fates = wants
    joins = False
    for i in range(len(demands)):
        fates[i] = IDLE if facts[i]["lane"] < 0 else PLANNED
        if demands[i]["under_way"] and fates[i] == PLANNED:
            fates[leads[i]] = JOINED
            joins = True
            fates[i] = JOINED
    if joins:
        for i in range(len(demands)):
            if fates[i] == PLANNED:
                fates[i] = fates[leads[i]]


@jit.kernel(WANTS, PAGES, evict.QUEUES, POLICIES, jit.i8, WRITES)
def admit_writes(
    wants: Wants,
    pages: Records,
    queues: evict.Queues,
    policy: Records,
    free_frames: Int,
    writes: Writes,
) -> None:
    """Refuse the writes that are not worth their room; those of one page are one write."""
    demands, fates, leads, count = wants.demands, wants.fates, wants.leads, 0
    for i in range(len(demands)):
        if demands[i]["kind"] == _WRITE and fates[i] == PLANNED and leads[i] == i:
            writes.rows[count], writes.demands[count] = demands[i]["page"], i
            count += 1
    if count == 0:
        return
    rows, weighed, admitted = writes.rows[:count], writes.weighed, writes.admitted
    admit.admit(pages, queues, policy, rows, _DISK, free_frames, weighed, admitted)
    for i in range(count):
        if not admitted[i]:
            fates[writes.demands[i]] = REFUSED
    for i in range(len(demands)):
        if demands[i]["kind"] == _WRITE and fates[i] == PLANNED:
            fates[i] = fates[leads[i]]


@jit.kernel(WANTS, PAYMENTS)
def bill(wants: Wants, payments: Payments) -> asked.Asked:
    """What the tenants are asked to pay for."""
    demands, facts, leads, fates = wants
    for i in range(len(demands)):
        payments.nbytes[i], payments.leaders[i] = facts[i]["nbytes"], leads[i]
        payments.wanted[i], payments.order[i] = fates[i] == PLANNED, i
    return _as_billed(wants, payments)


@jit.kernel(WANTS, PAYMENTS)
def _as_billed(wants: Wants, payments: Payments) -> asked.Asked:
    n = len(wants.demands)
    return asked.Asked(
        wants.demands,
        payments.nbytes[:n],
        payments.order[:n],
        payments.leaders[:n],
        payments.wanted[:n],
    )


@jit.kernel(PAYMENTS, jit.i8)
def _scratch(payments: Payments, n: Int) -> asked.Scratch:
    """As much of the memory as n demands take: all of it is cleared in each window."""
    whole = payments.scratch
    return asked.Scratch(
        whole.heads[:n],
        whole.nexts[:n],
        whole.sizes[:n],
        whole.served[:n],
        whole.paid[:n],
        whole.loaned[:n],
        whole.oldest,
        whole.short,
        whole.blocked,
        whole.backlog,
        whole.offers,
        whole.pools,
        whole.drawn,
        whole.scales,
    )


@jit.kernel(WANTS, TENANTS, POLICIES, jit.f8, PAYMENTS, order.PAIRS, jit.array("f8"))
def charge(
    wants: Wants,
    tenants: Records,
    policy: Records,
    now_s: float,
    payments: Payments,
    pairs: order.Pairs,
    ready_s: NDArray[np.float64],
) -> None:
    """Let the tenants' credits pay, earliest deadline first; who cannot be paid for waits."""
    bills = bill(wants, payments)
    demands, fates = wants.demands, wants.fates
    for i in range(len(demands)):
        pairs.keys[0, i], pairs.carried[0, i] = order.sortable(wants.facts[i]["due_s"]), i
    order.sort(pairs, 0, len(demands))
    for i in range(len(demands)):
        bills.order[i] = pairs.carried[0, i]
    refill(tenants, policy, now_s)
    answer = asked.Answer(payments.granted, ready_s)
    scratch = _scratch(payments, len(demands))
    charges.grant(tenants, policy, bills, now_s, scratch, answer)
    for i in range(len(demands)):
        if fates[i] == PLANNED and not payments.granted[i]:
            fates[i] = DEFERRED


@jit.kernel(WANTS, TENANTS, PAYMENTS, WORK, ROOM)
def settle(wants: Wants, tenants: Records, payments: Payments, work: Work, room: Room) -> None:
    """Give back what ops cost less than was charged: I/Os that merged, pages that were cut."""
    bills, leads, scratch = _as_billed(wants, payments), wants.leads, payments.scratch
    for leader in range(len(wants.demands)):
        cut = leads[leader] == leader and work.item_of[leader] < 0
        if cut and scratch.heads[leader] >= 0 and scratch.served[leader]:
            charges.give_back(tenants, bills, leader, _NBYTES, bills.nbytes[leader], scratch)
            charges.give_back(tenants, bills, leader, _IOS, IO, scratch)
    for k in range(room.counts[0]):
        op = room.ops[k]
        count = np.int64(op["count"])
        for place in range(count if op["kind"] != _ABORT and count > 1 else 0):
            lead = np.int64(leads[room.demands[room.answers[op["first"] + place]]])
            unused = IO - charges.part(IO, count, place)
            charges.give_back(tenants, bills, lead, _IOS, unused, scratch)
