# SPDX-License-Identifier: Apache-2.0
"""``replay --policy-only``: one policy on one trace, beside the optimum, as a table and as JSON.

The names of the JSON are stable; docs/replay.md lists them.
"""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from bodocache import jit
from bodocache.plan.optimum import infinite_hits
from bodocache.replay.bounds import bound_saved_s
from bodocache.replay.policy import Policy, Recompute, Touches, simulate
from bodocache.replay.trace import Trace


@dataclass(frozen=True, slots=True)
class PolicyOutcome:
    """What one policy hit, and what could be hit."""

    trace: str
    requests: int
    touches: int
    policy: Policy
    capacity_pages: int
    hits: int
    optimum_hits: int  # MIN's, at the same capacity
    infinite_hits: int  # where nothing is ever evicted
    saved_s: float  # recompute seconds (policies.model.Recompute) of the pages that hit
    bound_saved_s: float | None  # no policy saves more at that capacity; None: not asked for
    seconds: float  # of the simulation, without compiling or reading the trace

    @property
    def hit_ratio(self) -> float:
        """Share of the page touches that hit."""
        return self.hits / max(1, self.touches)

    @property
    def regret(self) -> float:
        """Share of the optimum's hits that were missed."""
        return 1 - self.hits / self.optimum_hits if self.optimum_hits else 0.0

    @property
    def touches_per_s(self) -> float:
        """Speed of the simulation."""
        return self.touches / self.seconds if self.seconds > 0 else 0.0


def replay_policy(
    trace: Trace, policy: Policy, capacity_pages: int, *, with_bound: bool = False
) -> PolicyOutcome:
    """Serve ``trace`` from ``capacity_pages`` pages under ``policy``, and under MIN.

    ``with_bound``: say, too, how many recompute seconds any policy can save (needs scipy).
    """
    jit.warm()
    touches = Touches(trace.pages, trace.offsets, trace.parent, trace.depth, trace.timestamps_s)
    begun_s = time.perf_counter()
    hits = simulate(policy, touches, capacity_pages).hits
    seconds = time.perf_counter() - begun_s
    optimum = simulate(Policy.MIN, touches, capacity_pages)
    bound_s = None
    if with_bound:
        worth_s = Recompute().seconds(trace.depth)
        bound_s = bound_saved_s(touches, capacity_pages, worth_s).saved_s
    return PolicyOutcome(
        trace=trace.name,
        requests=trace.num_requests,
        touches=trace.touches,
        policy=policy,
        capacity_pages=capacity_pages,
        hits=int(hits.sum()),
        optimum_hits=int(optimum.hits.sum()),
        infinite_hits=int(infinite_hits(trace.pages, trace.offsets, trace.distinct).sum()),
        saved_s=saved_s(hits),
        bound_saved_s=bound_s,
        seconds=seconds,
    )


def saved_s(hits: NDArray[np.int64]) -> float:
    """Recompute seconds of the leading ``hits[r]`` pages of each request."""
    a_page_s = Recompute().seconds(np.arange(hits.max(initial=0)))
    return float(np.concatenate(([0.0], np.cumsum(a_page_s)))[hits].sum())


def as_json(outcome: PolicyOutcome) -> dict[str, object]:
    """The figures under their documented names."""
    return {
        "trace": outcome.trace,
        "requests": outcome.requests,
        "pages_touched": outcome.touches,
        "policy": outcome.policy.value,
        "capacity_pages": outcome.capacity_pages,
        "page_hits": outcome.hits,
        "hit_ratio": outcome.hit_ratio,
        "optimum_hits": outcome.optimum_hits,
        "regret": outcome.regret,
        "infinite_hits": outcome.infinite_hits,
        "saved_s": outcome.saved_s,
        "bound_saved_s": outcome.bound_saved_s,
        "touches_per_s": outcome.touches_per_s,
    }


def render(outcome: PolicyOutcome) -> RenderableType:
    """The table a person reads."""
    title = f"{outcome.policy.value} on {escape(outcome.trace)}"
    table = Table(title=title, show_header=False, title_justify="left")
    saved = f"{outcome.saved_s:,.1f} s"
    if outcome.bound_saved_s:
        share = outcome.saved_s / outcome.bound_saved_s
        saved += f" of at most {outcome.bound_saved_s:,.1f} s, {share:.1%}"
    for label, value in (
        ("requests", f"{outcome.requests:,}"),
        ("pages touched", f"{outcome.touches:,}"),
        ("capacity", f"{outcome.capacity_pages:,} pages"),
        ("hits", f"{outcome.hits:,} pages"),
        ("hit ratio", f"{outcome.hit_ratio:.4f}"),
        ("optimum at that capacity", f"{outcome.optimum_hits:,} pages"),
        ("regret", f"{outcome.regret:.1%} of the optimum's hits"),
        ("infinite-cache hits", f"{outcome.infinite_hits:,} pages"),
        ("recompute saved", saved),
        ("simulated", f"{outcome.touches_per_s:,.0f} touches/s"),
    ):
        table.add_row(label, value)
    return table
