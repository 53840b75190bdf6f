# SPDX-License-Identifier: Apache-2.0
"""MIN, the exact optimum (plan/optimum.py), and its hits at every capacity in one pass.

What MIN keeps in C pages are the C of least (next use, depth) among what it kept before and the
pages just used; so a larger tier holds all that a smaller one does, plus one page a *level*. A page
enters at level 1; each level keeps the lesser of its page and the one that comes, and hands the
other down, until a level was empty (Mattson et al., 1970, for OPT). Every capacity at once takes
O(touches used again * pages alive at once), a second for 10^5 * 10^4; one capacity is far cheaper.
"""

import numpy as np

from bodocache import jit
from bodocache.plan import optimum
from bodocache.plan.records import Int
from bodocache.replay.policies.model import TOUCHES, Ids, Setting, Simulation, Touches

_EMPTY = np.iinfo(np.int64).max
_DEPTH_BITS = 24  # of a level's key; a request has fewer pages, a trace fewer than 2^39 requests


def minimum(touches: Touches, capacity_pages: int, _: Setting) -> Simulation:
    """Serve ``touches``."""
    pages = len(touches.parents)
    return Simulation(*optimum.min_hits(touches.ids, touches.offsets, pages, capacity_pages))


def minimum_curve(touches: Touches) -> Ids:
    """Hits at every capacity: element c is those of c pages, c = 0 .. D."""
    pages = len(touches.parents)
    at_level = np.zeros(pages + 1, np.int64)
    next_use, uses = np.empty(len(touches.ids), np.int64), np.full(pages, _EMPTY)
    _count_levels(touches, next_use, uses, np.full(pages, _EMPTY), at_level)
    return np.cumsum(at_level)


_IDS = jit.array("i8")


@jit.kernel(TOUCHES, _IDS, _IDS, _IDS, _IDS)
def _count_levels(touches: Touches, next_use: Ids, uses: Ids, levels: Ids, at_level: Ids) -> None:
    """Count hits by the capacity from which on they hit; ``levels`` holds next use and depth."""
    requests, ids, offsets = len(touches.timestamps_s), touches.ids, touches.offsets
    for request in range(requests - 1, -1, -1):
        for touch in range(offsets[request], offsets[request + 1]):
            next_use[touch] = uses[ids[touch]]
            uses[ids[touch]] = request
    count: Int = 0
    for request in range(requests):
        for level in range(count):
            if levels[level] >> _DEPTH_BITS == request:
                at_level[level + 1] += 1
                levels[level] = _EMPTY
        for touch in range(offsets[request], offsets[request + 1]):
            if next_use[touch] != _EMPTY:
                key = (next_use[touch] << _DEPTH_BITS) + touch - offsets[request]
                count = max(count, _hand_down(levels, key))


@jit.kernel(_IDS, jit.i8)
def _hand_down(levels: Ids, key: Int) -> Int:
    """Enter ``key`` at the first level; return how many levels it and those it moved went down."""
    level: Int = 0
    while key != _EMPTY:
        here = levels[level]
        levels[level] = min(key, here)
        key = max(key, here)
        level += 1
    return level
