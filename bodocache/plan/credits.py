# SPDX-License-Identifier: Apache-2.0
"""Credits: a token bucket per tenant, purpose (read, prefetch, write) and unit (bytes, I/Os).

A bucket earns ``rate`` credits a second and holds at most ``cap``; where the rates of all tenants
exceed what the link gives, they are scaled to it. Unused credits are lent: of what a tenant holds,
whatever exceeds ``(1 - lend) * cap``. So a tenant that keeps to its rate with bursts of up to
that never waits, whatever the others ask for (it holds at least what a bucket of that cap would).
A loan is at most ``borrow``, is paid back before the borrower holds anything again, and lapses as
far as the lender has become full without it: its credits would have been wasted.

All counts are integers, so for every bucket, exactly: the sum of ``earned`` is the sum of ``spent +
held + wasted``, the sum of ``lent`` that of ``owed``, held >= 0, and owed <= borrow: a tenant's
net, held - owed, is never below -borrow. The caller owns the records; nothing is allocated.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.records import BUCKETS, IO, POLICY, TENANT, Int

Tenants = NDArray[np.void]  # TENANT[tenants]
Policy = NDArray[np.void]  # POLICY[1]
Weights = NDArray[np.int64]

TENANTS, WEIGHTS, POLICIES = jit.array(TENANT), jit.array("i8"), jit.array(POLICY)
MOST = float(1 << 53)  # credits earned at once: up to here a float counts every one

_COMPLAINTS = (
    "tenants.refilled_s: row {row}: {refilled_s}: time ran backwards; must be finite, <= {now_s}",
    "tenants.rate: row {row}: {rate}: must be finite and >= 0",
    "tenants.cap: row {row}: {cap}: must be >= 0, and of I/Os >= records.IO where any are earned",
    "tenants.borrow: row {row}: {borrow}: must be >= 0",
    "tenants.held: row {row}: {held}: must be from 0 to cap",
    "tenants.owed: row {row}: {owed}: must be from 0 to borrow",
    "tenants.share: row {row}: {share}: must be >= 0, and all shares together <= 1",
    "tenants.lend: row {row}: {lend}: must be from 0 to 1",
    "tenants.fraction: row {row}: {fraction}: must be from 0 to 1",
    "tenants.lent: row {row}: {lent}: must be >= 0",
    "tenants.lent: row {row}: {lent}: up to this row, all that is lent must be all that is owed",
    "policy.credits_per_s: bucket {row}: must be >= 0 (0: no limit)",
)


class Shared(NamedTuple):
    """What was shared out so far."""

    amount_left: Int
    weights_left: Int


def check(tenants: Tenants, policy: Policy, now_s: float) -> None:
    """Raise ValueError, naming field and row, where :func:`refill` would not be exact."""
    if tenants.dtype != TENANT or tenants.ndim != 1 or not tenants.flags.c_contiguous:
        raise ValueError(f"tenants: expected one contiguous TENANT[n], got {tenants.dtype}")
    if not np.isfinite(now_s):
        raise ValueError(f"now_s: {now_s}: must be a finite number")
    wrong = _first_wrong(tenants, policy, now_s)
    if wrong < 0:
        return
    row, which = divmod(wrong, len(_COMPLAINTS))
    said = {name: tenants[name][row] for name in TENANT.names or ()} if which < 11 else {}
    raise ValueError(_COMPLAINTS[which].format(row=row, now_s=now_s, **said))


@jit.kernel(TENANTS, POLICIES, jit.f8)
def refill(tenants: Tenants, policy: Policy, now_s: float) -> None:
    """Bring all buckets to ``now_s``."""
    for bucket in range(BUCKETS):
        scale = scale_to_link(tenants, policy, bucket)
        lapsed, repaid = np.int64(0), np.int64(0)
        for i in range(len(tenants)):
            earned = _earn(tenants, i, bucket, scale, now_s)
            if tenants[i]["owed"][bucket] == 0:
                _hold(tenants, i, bucket, earned)
                lapsed += _lapse(tenants, i, bucket)
            else:
                tenants[i]["held"][bucket] += earned  # to pay with: a borrower's cap comes after
        _forgive(tenants, bucket, lapsed)
        for i in range(len(tenants)):
            repaid += _repay(tenants, i, bucket)
        _return(tenants, bucket, repaid)
    for i in range(len(tenants)):
        tenants[i]["refilled_s"] = now_s


@jit.kernel(TENANTS, POLICIES, jit.i8)
def scale_to_link(tenants: Tenants, policy: Policy, bucket: Int) -> float:
    """What every rate is multiplied by, so that all together are at most the link's."""
    total = 0.0
    for i in range(len(tenants)):
        total += tenants[i]["rate"][bucket]
    link = policy[0]["credits_per_s"][bucket]
    return float(link / total) if 0.0 < link < total else 1.0


@jit.kernel(TENANTS, jit.i8, jit.i8)
def lendable(tenants: Tenants, row: Int, bucket: Int) -> Int:
    """Credits of ``row`` that others may borrow: what it holds above ``(1 - lend) * cap``."""
    tenant = tenants[row]
    if tenant["owed"][bucket] > 0:
        return 0
    reserve = np.int64(np.ceil((1.0 - tenant["lend"]) * tenant["cap"][bucket]))
    return np.int64(max(np.int64(0), tenant["held"][bucket] - reserve))


@jit.kernel(TENANTS, jit.i8, WEIGHTS, jit.i8)
def lend(tenants: Tenants, bucket: Int, offers: Weights, borrowed: Int) -> None:
    """Take ``borrowed`` credits from the tenants, in proportion to their ``offers`` (i8[n])."""
    left = Shared(borrowed, offers.sum())
    for i in range(len(tenants)):
        taken = next_share(left, offers[i])
        tenants[i]["held"][bucket] -= taken
        tenants[i]["lent"][bucket] += taken
        net = min(tenants[i]["lent"][bucket], tenants[i]["owed"][bucket])
        tenants[i]["lent"][bucket] -= net  # who is owed and owes is even as far as both go
        tenants[i]["owed"][bucket] -= net
        left = Shared(left.amount_left - taken, left.weights_left - offers[i])


_SHARED = jit.named(Shared, jit.i8, jit.i8)


@jit.kernel(_SHARED, jit.i8)
def next_share(left: Shared, weight: Int) -> Int:
    """The part of the next of several, in proportion to its weight, rounded up.

    Parts sum to the whole exactly, and none exceeds its weight where the whole is at most the sum
    of the weights.
    """
    if left.weights_left <= 0:
        return 0
    part = np.int64(np.ceil(np.float64(left.amount_left) * weight / left.weights_left))
    after = left.weights_left - weight
    return max(min(part, weight, left.amount_left), left.amount_left - after)


@jit.kernel(TENANTS, jit.i8, jit.i8, jit.f8, jit.f8)
def _earn(tenants: Tenants, row: Int, bucket: Int, scale: float, now_s: float) -> Int:
    """Whole credits earned since the last refill; what is left of one is kept for the next."""
    tenant = tenants[row]
    exact = tenant["rate"][bucket] * scale * (now_s - tenant["refilled_s"])
    exact = min(MOST, exact + tenant["fraction"][bucket])
    whole = np.int64(exact)
    tenant["fraction"][bucket] = exact - whole
    tenant["earned"][bucket] += whole
    return whole


@jit.kernel(TENANTS, jit.i8, jit.i8, jit.i8)
def _hold(tenants: Tenants, row: Int, bucket: Int, more: Int) -> None:
    """Add ``more`` to what is held, up to the cap; the rest is wasted."""
    tenant = tenants[row]
    kept = min(more, tenant["cap"][bucket] - tenant["held"][bucket])
    tenant["held"][bucket] += kept
    tenant["wasted"][bucket] += more - kept


@jit.kernel(TENANTS, jit.i8, jit.i8)
def _lapse(tenants: Tenants, row: Int, bucket: Int) -> Int:
    """Give up what a lender is owed beyond what its bucket can take; return how much."""
    tenant = tenants[row]
    room = tenant["cap"][bucket] - tenant["held"][bucket]
    lapsed = max(np.int64(0), tenant["lent"][bucket] - room)
    tenant["lent"][bucket] -= lapsed
    return np.int64(lapsed)


@jit.kernel(TENANTS, jit.i8, jit.i8)
def _forgive(tenants: Tenants, bucket: Int, lapsed: Int) -> None:
    """Lower the debts by ``lapsed`` in all, in proportion."""
    left = Shared(lapsed, _sum_owed(tenants, bucket))
    for i in range(len(tenants)):
        owed = tenants[i]["owed"][bucket]
        part = next_share(left, owed)
        tenants[i]["owed"][bucket] -= part
        left = Shared(left.amount_left - part, left.weights_left - owed)


@jit.kernel(TENANTS, jit.i8)
def _sum_owed(tenants: Tenants, bucket: Int) -> Int:
    total = np.int64(0)
    for i in range(len(tenants)):
        total += tenants[i]["owed"][bucket]
    return total


@jit.kernel(TENANTS, jit.i8, jit.i8)
def _repay(tenants: Tenants, row: Int, bucket: Int) -> Int:
    """Pay debts from what is held, and cap what is left of it; return how much was paid."""
    tenant = tenants[row]
    paid = min(tenant["owed"][bucket], tenant["held"][bucket])
    tenant["owed"][bucket] -= paid
    rest = tenant["held"][bucket] - paid
    tenant["held"][bucket] = 0
    _hold(tenants, row, bucket, rest)
    return np.int64(paid)


@jit.kernel(TENANTS, jit.i8, jit.i8)
def _return(tenants: Tenants, bucket: Int, repaid: Int) -> None:
    """Hand ``repaid`` credits to the lenders, in proportion to what they are owed."""
    total = np.int64(0)
    for i in range(len(tenants)):
        total += tenants[i]["lent"][bucket]
    left = Shared(repaid, total)
    for i in range(len(tenants)):
        lent = tenants[i]["lent"][bucket]
        part = next_share(left, lent)
        tenants[i]["lent"][bucket] -= part
        tenants[i]["held"][bucket] += part
        left = Shared(left.amount_left - part, left.weights_left - lent)


@jit.kernel(TENANTS, POLICIES, jit.f8)
def _first_wrong(tenants: Tenants, policy: Policy, now_s: float) -> Int:
    """-1, or which complaint + complaints * row."""
    shares = 0.0
    for i in range(len(tenants)):
        shares += tenants[i]["share"]
        which = _wrong_in(tenants, i, now_s, shares)
        if which >= 0:
            return which + len(_COMPLAINTS) * i
    for bucket in range(BUCKETS):
        if not policy[0]["credits_per_s"][bucket] >= 0.0:
            return 11 + len(_COMPLAINTS) * bucket
        lent, last = np.int64(0), np.int64(0)
        for i in range(len(tenants)):
            lent += tenants[i]["lent"][bucket]
            if tenants[i]["lent"][bucket] + tenants[i]["owed"][bucket] > 0:
                last = np.int64(i)
        if lent != _sum_owed(tenants, bucket):
            return 10 + len(_COMPLAINTS) * last
    return -1


@jit.kernel(TENANTS, jit.i8, jit.f8, jit.f8)
def _wrong_in(tenants: Tenants, row: Int, now_s: float, shares: float) -> Int:
    tenant = tenants[row]
    if not -np.inf < tenant["refilled_s"] <= now_s:
        return 0
    for bucket in range(BUCKETS):
        which = _wrong_in_bucket(tenants, row, bucket)
        if which < 0 and tenant["lent"][bucket] < 0:
            which = np.int64(9)
        if which >= 0:
            return which
    if not (tenant["share"] >= 0.0 and shares <= 1.0 + 1e-9):
        return 6
    return -1 if 0.0 <= tenant["lend"] <= 1.0 else 7


@jit.kernel(TENANTS, jit.i8, jit.i8)
def _wrong_in_bucket(tenants: Tenants, row: Int, bucket: Int) -> Int:
    tenant = tenants[row]
    if not 0.0 <= tenant["rate"][bucket] < np.inf:
        return 1
    least = IO if bucket % 2 == 1 and tenant["rate"][bucket] > 0 else 0
    if tenant["cap"][bucket] < least:
        return 2
    if tenant["borrow"][bucket] < 0:
        return 3
    if not 0 <= tenant["held"][bucket] <= tenant["cap"][bucket]:
        return 4
    if not 0 <= tenant["owed"][bucket] <= tenant["borrow"][bucket]:
        return 5
    return -1 if 0.0 <= tenant["fraction"][bucket] <= 1.0 else 8
