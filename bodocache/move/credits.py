# SPDX-License-Identifier: Apache-2.0
"""What each tenant may move over the disk's queue: its buckets, filled as the planner fills them.

Owns the TENANT records. Formulas: plan/credits.py and plan/charges.py. Row 0 is everybody whose
tenant has no rate: its buckets are never empty. What several tenants wait for is charged in equal
parts. Used from the orchestrator's loop only.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bodocache.config import TenantsConfig
from bodocache.plan import asked, charges
from bodocache.plan import credits as buckets
from bodocache.plan.records import DEMAND, IO, TENANT, Feature, OpKind, Purpose, Unit

ENDLESS = 1 << 53  # credits of who has no limit; up to here a float counts every one

_KIND = {
    Purpose.READ: OpKind.LOAD,
    Purpose.PREFETCH: OpKind.PREFETCH,
    Purpose.WRITE: OpKind.WRITE,
}


class Credits:
    """The buckets of one cache's tenants."""

    def __init__(
        self,
        config: TenantsConfig,
        *,
        policy: NDArray[np.void],
        page_nbytes: int,
        now_s: Callable[[], float],
    ) -> None:
        self.waits = 0  # chunks that had to
        self._now_s = now_s
        self._policy = policy
        self.page_nbytes = page_nbytes
        limits = config.limits()
        self._rows = {tenant: row for row, tenant in enumerate(limits, 1)}
        self._tenants = np.zeros(1 + len(limits), TENANT)
        self._tenants["refilled_s"] = now_s()
        for purpose in Purpose:
            self._fill(0, purpose, (ENDLESS, ENDLESS), ENDLESS)
            for tenant, limit in limits.items():
                ios = limit.ios_per_s * IO if limit.ios_per_s else ENDLESS
                rates = (limit.bytes_per_s or ENDLESS, ios)
                self._fill(self._rows[tenant], purpose, rates, config.burst_s)
        self._tenants["lend"][1:] = config.lend
        self._tenants["held"] = self._tenants["cap"]
        self._tenants["borrow"][1:] = self._tenants["cap"][1:] if config.lend else 0
        buckets.check(self._tenants, policy, now_s())

    @classmethod
    def of(
        cls,
        config: TenantsConfig,
        *,
        policy: NDArray[np.void],
        page_nbytes: int,
        now_s: Callable[[], float],
    ) -> "Credits | None":
        """Those of ``config``; None where nobody has a rate, or features.credits is off."""
        if not config.limits() or int(policy["features_off"][0]) & Feature.CREDITS:
            return None
        return cls(config, policy=policy, page_nbytes=page_nbytes, now_s=now_s)

    def _fill(self, row: int, purpose: Purpose, rates: tuple[float, float], burst_s: float) -> None:
        """A bucket holds what ``burst_s`` brings: at least a page, and one I/O."""
        for unit, least in ((Unit.NBYTES, self.page_nbytes), (Unit.IOS, IO)):
            bucket = 2 * purpose + unit
            self._tenants["rate"][row, bucket] = rates[unit]
            most = min(float(ENDLESS), rates[unit] * burst_s)
            self._tenants["cap"][row, bucket] = max(least, int(most))

    def is_limited(self, payers: Sequence[int]) -> bool:
        """Whether any of these tenants has a rate."""
        return any(tenant in self._rows for tenant in payers)

    @property
    def limited(self) -> int:
        """How many tenants have a rate."""
        return len(self._rows)

    def save_up(
        self, payers: Sequence[int], purpose: Purpose, nbytes: int, paid: int
    ) -> tuple[int, float | None]:
        """Pay for ``nbytes`` beyond the ``paid`` of them; what is paid now, and when to ask again.

        None: all is paid. What is more than a bucket holds is paid in parts, an I/O each.
        """
        rows, bucket = self._rows_of(payers), 2 * purpose + Unit.NBYTES
        most = len(rows) * int(self._tenants["cap"][rows, bucket].min())
        while paid < nbytes:
            part = min(most, nbytes - paid)
            ready_s = self._pay(payers, purpose, part)
            if ready_s is not None:
                return paid, ready_s
            paid += part
        return paid, None

    def _pay(self, payers: Sequence[int], purpose: Purpose, nbytes: int) -> float | None:
        """Charge ``nbytes`` and one I/O, or nothing: then when to ask again."""
        now_s, bill = self._now_s(), self._bill(payers, purpose, nbytes)
        count = len(bill.demands)
        buckets.refill(self._tenants, self._policy, now_s)
        scratch = asked.scratch_for(count, len(self._tenants))
        answer = asked.Answer(np.empty(count, np.bool_), np.empty(count))
        charges.grant(self._tenants, self._policy, bill, now_s, scratch, answer)
        if answer.granted[0]:
            return None
        self.waits += 1
        return float(answer.ready_s.max())

    def held_nbytes(self, payers: Sequence[int], purpose: Purpose, *, until_s: float) -> int:
        """What these tenants can pay for by then, if all of it is theirs."""
        rows, bucket = self._rows_of(payers), 2 * purpose + Unit.NBYTES
        of = self._tenants[rows]
        ahead_s = np.maximum(0.0, until_s - of["refilled_s"])
        earned = np.minimum(ENDLESS, of["rate"][:, bucket] * ahead_s)
        held = np.minimum(ENDLESS, of["held"][:, bucket] - of["owed"][:, bucket] + earned)
        return len(rows) * max(0, int(held.min()))

    def row_of(self, tenant: int) -> int:
        """Its row in :meth:`table`; 0 of one without a rate."""
        return self._rows.get(tenant, 0)

    def table(self) -> NDArray[np.void]:
        """TENANT records of all, to be charged for what may never be."""
        return self._tenants.copy()

    def rate_of(self, tenant: int, purpose: Purpose) -> float:
        """Bytes a second that ``tenant`` earns."""
        return float(self._tenants["rate"][self.row_of(tenant), 2 * purpose + Unit.NBYTES])

    def spent(self, tenant: int) -> dict[Purpose, int]:
        """Bytes that ``tenant`` was charged, by purpose; of one without a rate, all such."""
        row = self.row_of(tenant)
        return {it: int(self._tenants["spent"][row, 2 * it + Unit.NBYTES]) for it in Purpose}

    def _rows_of(self, payers: Sequence[int]) -> list[int]:
        return [self.row_of(tenant) for tenant in payers]

    def _bill(self, payers: Sequence[int], purpose: Purpose, nbytes: int) -> asked.Asked:
        demands = np.zeros(len(payers), DEMAND)
        demands["tenant"] = self._rows_of(payers)
        demands["kind"] = _KIND[purpose]
        demands["arrival_s"] = self._now_s()
        demands.flags.writeable = False
        count = len(payers)
        return asked.Asked(
            demands,
            np.full(count, nbytes),
            np.arange(count),
            np.zeros(count, np.int64),
            np.ones(count, np.bool_),
        )
