# SPDX-License-Identifier: Apache-2.0
"""The hits of policies at all capacities, beside the optimum: ``replay --policy-only --curve``.

Where a larger tier always holds what a smaller one does (lru, second-sight-lru and min), one pass
gives the hits at every capacity, exactly. Others are simulated at capacities of a geometric grid,
in threads: compiled code runs without the GIL.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np

from bodocache.replay.policies.lru import seen_before
from bodocache.replay.policies.model import Ids, Touches, checked
from bodocache.replay.policy import CURVES, Policy, serve
from bodocache.replay.trace import Trace

LEAST_PAGES = 10
STEPS = (1.0, 1.25, 1.6, 2.0, 2.5, 3.0, 4.0, 5.0, 6.3, 8.0)  # of a decade
FINE_STEPS = tuple(sorted({*STEPS, *(10 ** (i / 100) for i in range(100))}))  # from one pass


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Hits of one policy."""

    one_pass: bool  # exact at all capacities in between, too
    capacity_pages: Ids  # rising
    page_hits: Ids

    def at(self, capacity_pages: int) -> int:
        """Hits at a capacity of the grid."""
        place = int(np.searchsorted(self.capacity_pages, capacity_pages))
        assert self.capacity_pages[place] == capacity_pages
        return int(self.page_hits[place])


@dataclass(frozen=True, slots=True)
class Curves:
    """What every policy hits on one trace; MIN is always among them."""

    trace: str
    requests: int
    touches: int
    distinct: int
    infinite_hits: int  # where nothing is ever evicted
    of: dict[Policy, Curve]


def grid(distinct: int, steps: Sequence[float] = STEPS) -> list[int]:
    """Capacities from 10 pages on, ``steps`` a decade, and the distinct pages, which all fit."""
    decades = range(1, len(str(distinct)))
    pages = {int(step * 10**decade) for decade in decades for step in steps}
    return sorted({n for n in pages if LEAST_PAGES <= n < distinct} | {distinct})


def measure(
    trace: Trace, policies: Sequence[Policy], progress: Callable[[int, int], None] | None = None
) -> Curves:
    """Serve ``trace`` under each policy and under MIN, at all capacities.

    ``progress`` is told how many passes and simulations are done, and of how many.
    """
    touches = checked(
        Touches(trace.pages, trace.offsets, trace.parent, trace.depth, trace.timestamps_s)
    )
    chosen = [policy for policy in Policy if policy in policies or policy is Policy.MIN]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        try:
            jobs = dict(_start(threads, touches, chosen))
            for done, job in enumerate(as_completed(jobs.values()), 1):
                job.result()
                if progress is not None:
                    progress(done, len(jobs))
        finally:  # interrupted: what has not begun never does
            threads.shutdown(cancel_futures=True)
    found = {task: job.result() for task, job in jobs.items()}
    return Curves(
        trace=trace.name,
        requests=trace.num_requests,
        touches=trace.touches,
        distinct=trace.distinct,
        infinite_hits=int(seen_before(touches).sum()),
        of={policy: _curve(policy, trace.distinct, found) for policy in chosen},
    )


_Task = tuple[Policy, int | None]  # None: all capacities


def _start(
    threads: ThreadPoolExecutor, touches: Touches, chosen: Sequence[Policy]
) -> Iterator[tuple[_Task, "Future[Ids]"]]:
    for policy in chosen:
        if policy in CURVES:
            yield (policy, None), threads.submit(CURVES[policy], touches)
            continue
        for pages in grid(len(touches.parents)):
            yield (policy, pages), threads.submit(_hits, policy, touches, pages)


def _hits(policy: Policy, touches: Touches, capacity_pages: int) -> Ids:
    return np.array([serve(policy, touches, capacity_pages).hits.sum()])


def _curve(policy: Policy, distinct: int, found: dict[_Task, Ids]) -> Curve:
    if policy in CURVES:
        capacities = np.array(grid(distinct, FINE_STEPS))
        return Curve(
            one_pass=True, capacity_pages=capacities, page_hits=found[policy, None][capacities]
        )
    capacities = np.array(grid(distinct))
    hits = np.concatenate([found[policy, pages] for pages in capacities.tolist()])
    return Curve(one_pass=False, capacity_pages=capacities, page_hits=hits)
