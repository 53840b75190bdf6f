# SPDX-License-Identifier: Apache-2.0
"""What a window is told beside its demands: who can pay, how fast the disk is, what is recomputed.

Its credits are a copy: a plan says what is paid for now, chunks are charged as they begin
(queue.py). What comes from disk goes on to the device from the threads that read: for a plan the
second link takes no time. A load that comes alone was decided when it came (decide.py); only of
those that wait together a plan says which is not worth its bytes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from bodocache.move.credits import Credits
from bodocache.move.effort import Effort
from bodocache.move.link import Link
from bodocache.move.residency import RowArray
from bodocache.move.terms import Terms
from bodocache.move.ticket import Ticket
from bodocache.pages import Tier
from bodocache.plan.records import DEMAND, LINK, REQUEST, OpKind
from bodocache.plan.window import NO_LINKS, NO_REQUESTS, NO_TENANTS

Records = NDArray[np.void]


class Waiting(Protocol):
    """What waits for the disk and is planned: a part of a load, or what a node reads for one."""

    before_first: Callable[[], None] | None  # called before its first chunk; None: it is planned

    @property
    def ticket(self) -> Ticket | None:
        """Its place in the disk's queue."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is wanted any more."""
        ...

    @property
    def rows(self) -> RowArray:
        """Its pages, in the order in which they should start."""
        ...

    @property
    def tenant(self) -> int:
        """Who pays."""
        ...

    @property
    def begun_s(self) -> float:
        """When its load came."""
        ...

    @property
    def due_s(self) -> float:
        """When the first who wants it needs it."""
        ...

    @property
    def terms(self) -> Terms | None:
        """What its engine said; None where the load is decided elsewhere."""
        ...

    def arrange(self, order: NDArray[np.int64]) -> None:
        """Let page ``order[i]`` be the i-th; nothing has begun."""
        ...

    def keep(self, pages: int) -> None:
        """Pages after the first ``pages`` are computed sooner than they come."""
        ...


class Inputs(NamedTuple):
    """The records of one window."""

    demands: Records  # DEMAND
    tenants: Records = NO_TENANTS  # TENANT
    links: Records = NO_LINKS  # LINK
    requests: Records = NO_REQUESTS  # REQUEST


@dataclass(frozen=True, slots=True)
class Known:
    """What is known when a window ends. ``effort``: None where engines decide by themselves."""

    disk: Link
    credits: Credits | None
    effort: Effort | None
    page_tokens: int
    layers: int

    def inputs(self, parts: Sequence[Waiting], now_s: float) -> Inputs:
        """The window of ``parts``, one behind the other."""
        demands = np.zeros(sum(len(part.rows) for part in parts), DEMAND)
        demands["kind"] = OpKind.LOAD
        first = 0
        for number, part in enumerate(parts):
            mine = demands[first : first + len(part.rows)]
            mine["page"], mine["request"] = part.rows, number
            mine["deadline_s"], mine["arrival_s"] = part.due_s, part.begun_s
            first += len(part.rows)
        links, requests = NO_LINKS, NO_REQUESTS
        if self.effort is not None and len(parts) > 1:
            links = self._links(parts)
            requests = self._requests(parts, self.effort, now_s) if len(links) else NO_REQUESTS
        return Inputs(demands, self._tenants(parts, demands), links, requests)

    def _tenants(self, parts: Sequence[Waiting], demands: Records) -> Records:
        """What everybody's credits hold, if any of ``parts`` is charged for."""
        purse = self.credits
        if purse is None or not purse.is_limited([part.tenant for part in parts]):
            return NO_TENANTS
        rows = [purse.row_of(part.tenant) for part in parts]
        demands["tenant"] = np.repeat(rows, [len(part.rows) for part in parts])
        return purse.table()

    def _links(self, parts: Sequence[Waiting]) -> Records:
        """Disk to host as measured, behind what others have queued; none before it was."""
        mine = {part.ticket for part in parts}
        first_s = min(part.due_s for part in parts)
        record = self.disk.record(self.disk.queue.ahead_of(first_s, without=mine))
        if record is None:
            return NO_LINKS
        links = np.zeros(2, LINK)
        links[0] = record[0]
        links[0]["source"], links[0]["destination"] = int(Tier.DISK), int(Tier.HOST)
        links[1]["rate"] = 1e15
        links[1]["source"], links[1]["destination"] = int(Tier.HOST), int(Tier.DEVICE)
        return links

    def _requests(self, parts: Sequence[Waiting], effort: Effort, now_s: float) -> Records:
        """Of those whose engines said when they need them."""
        requests, count, first = np.zeros(len(parts), REQUEST), 0, 0
        for number, part in enumerate(parts):
            terms = part.terms
            if terms is not None and terms.may_be_cut:
                one = requests[count]
                one["request"], one["first"], one["count"] = number, first, len(part.rows)
                one["wait_s"] = 0.0 if terms.start_s is None else max(0.0, terms.start_s - now_s)
                one["new_compute_s"], one["n_waiting"] = terms.compute_s.sum(), terms.n_waiting
                one["token_s"], one["slope_s"] = effort.token_s, effort.slope_s
                one["page_tokens"], one["cut_at"] = self.page_tokens, -1
                one["layers"] = self.layers if terms.is_layered else 0
                count += 1
            first += len(part.rows)
        return requests[:count]
