# SPDX-License-Identifier: Apache-2.0
"""The figures of a simulated run."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bodocache.pages import Tier
from bodocache.replay.simulate.run import Run


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run comes to. Times in seconds of virtual time."""

    requests: int
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    slo_attainment: float  # share of requests whose first token came when it was due
    matched_share: float  # of all prompt tokens, those that the cache held
    brought_share: float  # of all prompt tokens, those that it brought
    recompute_s: float  # of the engines, on tokens that the cache held and did not bring
    busy_share: float  # of the time, an engine's
    stalled_s: float  # of the engines, waiting for layers
    cuts: int  # requests whose load was cut, or not begun, for lack of time
    moved_nbytes: int  # from below the device, for loads
    wasted_nbytes: int  # of those, of pages that no request used
    wrong_pages: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def figures(run: Run) -> Figures:
    """What ``run`` comes to."""
    jobs = run.jobs
    ttft_s = np.array([job.ttft_s for job in jobs])
    p50, p90, p99 = np.percentile(ttft_s, [50, 90, 99]).tolist()
    tokens = sum(job.tokens for job in jobs)
    hits = run.stats.traffic.hits
    used = (hits[Tier.HOST] + hits[Tier.DISK]) * run.page_nbytes
    links = run.stats.traffic.links
    moved = sum(links[name].nbytes for name in ("host->device", "disk->device"))
    return Figures(
        requests=len(jobs),
        ttft_mean_s=float(ttft_s.mean()),
        ttft_p50_s=p50,
        ttft_p90_s=p90,
        ttft_p99_s=p99,
        slo_attainment=float(np.mean([job.on_time for job in jobs])),
        matched_share=sum(job.matched for job in jobs) / tokens,
        brought_share=sum(min(job.have, job.matched) for job in jobs) / tokens,
        recompute_s=sum(job.recompute_s for job in jobs),
        busy_share=run.busy_s / run.engines / run.seconds,
        stalled_s=run.stalled_s,
        cuts=sum(job.cut for job in jobs),
        moved_nbytes=moved,
        wasted_nbytes=max(0, moved - used),
        wrong_pages=run.wrong_pages,
    )
