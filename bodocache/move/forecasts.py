# SPDX-License-Identifier: Apache-2.0
"""What hints said of the next use, waiting for it to come or not: how right each tenant is.

Each request of a tenant that hints waits for one horizon, under the row of its last page. It *came*
if a later request uses that page. Outcomes are counted in the order in which they were said, when
their horizon has passed: counting each use at once and each silence later would favour uses.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bodocache.hints.stats import Reliability
from bodocache.move.residency import Residency, RowArray
from bodocache.plan import trust

KEPT_PENDING = 65_536  # requests that wait; beyond, the oldest are dropped and count for nothing
KEPT_TENANTS = 1024  # of whom hints are counted; the least recently heard of is forgotten


@dataclass(slots=True, eq=False)
class _Pending:
    request: int
    tenant: int
    bucket: int
    row: int
    word: int  # first of the page's key
    until_s: float
    pages: int
    came: bool = False


class Forecasts:
    """Counts hints against what came, by tenant."""

    def __init__(
        self, residency: Residency, *, horizon_s: float, now_s: Callable[[], float]
    ) -> None:
        self._residency = residency
        self._horizon_s = horizon_s
        self._now_s = now_s
        self._trusts = np.zeros(KEPT_TENANTS, trust.TRUST)
        self._rows: OrderedDict[int, int] = OrderedDict()  # tenant -> its record
        self._pending: deque[_Pending] = deque()
        self._by_row: dict[int, _Pending] = {}
        self._by_request: dict[int, _Pending] = {}

    @property
    def is_idle(self) -> bool:
        """Whether nobody has hinted yet."""
        return not self._rows

    def say(self, request: int, tenant: int, chance: float, rows: RowArray) -> float:
        """The last of ``rows``, the request's, is used again with a ``chance``; NaN: nobody said.

        Returns log2 of what that multiplies the value of the request's pages by; -inf: nothing
        of them is needed any more. Where the model of reuse learns from the chance, that is all:
        the odds of what it knows already would count twice.
        """
        self._settle()
        if math.isnan(chance) and tenant not in self._rows:
            return 0.0
        record, bucket = self._record_of(tenant), trust.bucket_of(chance)
        self._wait_for(request, tenant, bucket, rows)
        return self._favour(record, bucket)

    def favour(self, tenant: int, chance: float) -> float:
        """What :meth:`say` would answer; nothing is counted."""
        if tenant not in self._rows:
            return -math.inf if chance == 0.0 else 0.0  # a first "it has ended" is heeded
        return self._favour(self._rows[tenant], trust.bucket_of(chance))

    def _favour(self, record: int, bucket: int) -> float:
        if bucket == trust.END and trust.heeds_end(self._trusts, record):
            return -math.inf
        return 0.0 if self._residency.learns else trust.favour(self._trusts, record, bucket)

    def note_use(self, request: int, rows: RowArray) -> None:
        """``request`` uses ``rows``: what waited for one of them came."""
        if not self._by_row:
            return
        self._settle()
        for row in self._by_row.keys() & set(rows.tolist()):
            pending = self._by_row[row]
            is_same = int(self._residency.words(np.array([row]))[0]) == pending.word
            if pending.request != request and is_same:
                pending.came = True
                del self._by_row[row]

    def reliability(self) -> dict[int, Reliability]:
        """How right each tenant's hints were."""
        self._settle()
        trusts = self._trusts
        return {
            tenant: Reliability(
                int(trusts["outcomes"][row]),
                trust.base_rate(trusts, row),
                float(trusts["gain_bits"][row]),
                trust.weight(trusts, row),
            )
            for tenant, row in self._rows.items()
        }

    def _wait_for(self, request: int, tenant: int, bucket: int, rows: RowArray) -> None:
        """A request that stores after it loaded waits for the last page it stores instead."""
        row, word = int(rows[-1]), int(self._residency.words(rows[-1:])[0])
        pending = self._by_request.get(request)
        if pending is None:
            until_s = self._now_s() + self._horizon_s
            pending = _Pending(request, tenant, bucket, row, word, until_s, len(rows))
            self._pending.append(pending)
            self._by_request[request] = pending
        elif pending.came:
            return
        self._drop_row(pending)
        pending.row, pending.word, pending.bucket = row, word, bucket
        pending.pages = max(pending.pages, len(rows))
        self._by_row[row] = pending
        if len(self._pending) > KEPT_PENDING:
            self._drop(self._pending.popleft())

    def _settle(self) -> None:
        """Count what has waited for its horizon."""
        now_s = self._now_s()
        while self._pending and self._pending[0].until_s <= now_s:
            pending = self._pending.popleft()
            self._drop(pending)
            record = self._rows.get(pending.tenant)
            if record is not None:
                trust.count(self._trusts, record, pending.bucket, pending.came, pending.pages)

    def _drop(self, pending: _Pending) -> None:
        del self._by_request[pending.request]
        self._drop_row(pending)

    def _drop_row(self, pending: _Pending) -> None:
        if self._by_row.get(pending.row) is pending:
            del self._by_row[pending.row]

    def _record_of(self, tenant: int) -> int:
        if tenant not in self._rows:
            if len(self._rows) < KEPT_TENANTS:
                self._rows[tenant] = len(self._rows)
            else:
                self._rows[tenant] = self._rows.popitem(last=False)[1]
                self._trusts[self._rows[tenant]] = np.zeros((), trust.TRUST)
        self._rows.move_to_end(tenant)
        return self._rows[tenant]
