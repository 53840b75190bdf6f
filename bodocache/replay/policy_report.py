# SPDX-License-Identifier: Apache-2.0
"""``replay --policy-only``: one policy on one trace, beside the optimum, as a table and as JSON.

The names of the JSON are stable; docs/replay.md lists them.
"""

import time
from dataclasses import dataclass

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from bodocache import jit
from bodocache.plan.optimum import infinite_hits
from bodocache.replay.policy import Policy, Touches, simulate
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


def replay_policy(trace: Trace, policy: Policy, capacity_pages: int) -> PolicyOutcome:
    """Serve ``trace`` from ``capacity_pages`` pages under ``policy``, and under MIN."""
    jit.warm()
    touches = Touches(trace.pages, trace.offsets, trace.parent, trace.depth, trace.timestamps_s)
    begun_s = time.perf_counter()
    hits = int(simulate(policy, touches, capacity_pages).hits.sum())
    seconds = time.perf_counter() - begun_s
    optimum = simulate(Policy.MIN, touches, capacity_pages)
    return PolicyOutcome(
        trace=trace.name,
        requests=trace.num_requests,
        touches=trace.touches,
        policy=policy,
        capacity_pages=capacity_pages,
        hits=hits,
        optimum_hits=int(optimum.hits.sum()),
        infinite_hits=int(infinite_hits(trace.pages, trace.offsets, trace.distinct).sum()),
        seconds=seconds,
    )


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
        "touches_per_s": outcome.touches_per_s,
    }


def render(outcome: PolicyOutcome) -> RenderableType:
    """The table a person reads."""
    title = f"{outcome.policy.value} on {escape(outcome.trace)}"
    table = Table(title=title, show_header=False, title_justify="left")
    for label, value in (
        ("requests", f"{outcome.requests:,}"),
        ("pages touched", f"{outcome.touches:,}"),
        ("capacity", f"{outcome.capacity_pages:,} pages"),
        ("hits", f"{outcome.hits:,} pages"),
        ("hit ratio", f"{outcome.hit_ratio:.4f}"),
        ("optimum at that capacity", f"{outcome.optimum_hits:,} pages"),
        ("regret", f"{outcome.regret:.1%} of the optimum's hits"),
        ("infinite-cache hits", f"{outcome.infinite_hits:,} pages"),
        ("simulated", f"{outcome.touches_per_s:,.0f} touches/s"),
    ):
        table.add_row(label, value)
    return table
