# SPDX-License-Identifier: Apache-2.0
"""An engine's waiting queue, as plan/advise.py sees it: seconds instead of matches."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bodocache.match import Match
from bodocache.plan.advise import Waiting


class Queued(NamedTuple):
    """One request that waits at an engine."""

    match: Match
    arrival_s: float  # on any clock, the same for all
    compute_s: float  # of all its tokens that the match did not find
    deadline_s: float = math.inf  # from now, of its first token
    passed: int = 0  # requests that arrived later and were begun before it


def described(queue: Sequence[Queued]) -> list[Waiting]:
    """Each as seconds. Those whose first missing page is the same lack what they have in common."""
    leaders: dict[bytes, Match] = {}
    return [_described(one, leaders) for one in queue]


def _described(one: Queued, leaders: dict[bytes, Match]) -> Waiting:
    match, forecast = one.match, one.match.forecast
    load_s, compute_s = (0.0 if forecast is None else forecast.mean_s), one.compute_s
    if forecast is not None and forecast.recompute_s < load_s:  # the cache would not load it
        load_s, compute_s = 0.0, compute_s + forecast.recompute_s
    missing, prefix, others = len(match.keys) - match.pages, None, match.announced
    if missing:
        prefix = match.keys[match.pages].tobytes()
        leader = leaders.setdefault(prefix, match)
        others = max(others, missing if leader is match else _in_common(match, leader))
    delayed_s = one.compute_s * others / missing if missing else 0.0
    return Waiting(
        arrival_s=one.arrival_s,
        compute_s=compute_s - delayed_s,
        load_s=load_s,
        delayed_s=delayed_s,
        ready_s=match.announced_s,
        prefix=prefix,
        deadline_s=one.deadline_s,
        tenant=match.said.tenant,
        passed=one.passed,
    )


def _in_common(match: Match, leader: Match) -> int:
    """How many pages, from the first that is missing on, both lack."""
    pages = min(len(match.keys), len(leader.keys))
    same = (match.keys[match.pages : pages] == leader.keys[match.pages : pages]).all(axis=1)
    return len(same) if same.all() else int(np.argmin(same))
