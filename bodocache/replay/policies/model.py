# SPDX-License-Identifier: Apache-2.0
"""What every policy is given and returns, and what a tier does whatever the policy.

A request hits its leading pages that are present; present pages are closed under prefixes, so these
are all of its pages that are. Then the others are inserted, shallow to deep, and while the tier is
full a *leaf*, a page with no present page behind it, leaves first. The request's own pages stay
while it is served: when nothing else is present, insertion stops. So a request keeps its first
``capacity_pages`` pages, however the leaves are chosen.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

HALF_LIFE_S = 120.0  # best of 10 to 3,600 for 3,000 pages of the conversation trace


class Recompute(NamedTuple):
    """Seconds to compute a page: ``page_tokens * (token_s + slope_s * position)`` (DESIGN.md).

    The defaults are an 8B model's at 10,000 tokens/s, half of that at position 32,768, in the pages
    of 512 tokens of Mooncake's traces.
    """

    page_tokens: int = 512
    token_s: float = 1e-4
    slope_s: float = 1e-4 / 32768

    def seconds(self, depths: Ids) -> Floats:
        """Seconds of each page, by depth."""
        position = depths.astype(np.float64) * self.page_tokens
        return self.page_tokens * (self.token_s + self.slope_s * position)


class Setting(NamedTuple):
    """What some policies weigh pages by."""

    recompute: Recompute = Recompute()  # gdsf and heat
    half_life_s: float = HALF_LIFE_S  # heat
    hints: Floats | None = None  # learned: [R] chance that the request goes on, NaN: nothing said


class Touches(NamedTuple):
    """A trace's columns (``replay.trace.Trace`` holds them): R requests, T touches, D pages."""

    ids: Ids  # [T] page of each touch: a request's own together, shallow to deep
    offsets: Ids  # [R + 1] request r touches ids[offsets[r]:offsets[r + 1]]
    parents: Ids  # [D] the page before it, -1 for a first page
    depths: Ids  # [D] pages before it
    timestamps_s: Floats  # [R] never decreasing
    tenants: Ids = np.zeros(0, np.int64)  # [R], or none: all are of tenant 0


class Simulation(NamedTuple):
    """What a policy did with a trace."""

    hits: Ids  # leading pages present, per request
    inserted: int  # pages, MIN's without those it let pass
    evicted: int


_READ = jit.readonly("i8")
TOUCHES = jit.named(Touches, *[_READ] * 4, jit.readonly("f8"), _READ)


def checked(touches: Touches) -> Touches:
    """The same columns, read-only, as compiled code takes them.

    Raises:
        ValueError: they do not fit together.
    """
    ids, offsets, parents, depths = (_read_only(column, np.int64) for column in touches[:4])
    timestamps_s = _read_only(touches.timestamps_s, np.float64)
    tenants = touches.tenants if len(touches.tenants) else np.zeros(len(timestamps_s), np.int64)
    tenants = _read_only(tenants, np.int64)
    touches = Touches(ids, offsets, parents, depths, timestamps_s, tenants)
    lengths = np.diff(offsets)
    if len(lengths) == 0 or offsets[0] != 0 or offsets[-1] != len(ids) or lengths.min() < 0:
        raise ValueError(f"offsets: must rise from 0 to {len(ids)}, the number of touches")
    if len(timestamps_s) != len(lengths) or len(depths) != len(parents):
        raise ValueError("timestamps_s: one a request; depths: one a page, as parents")
    if len(tenants) != len(lengths) or tenants.min() < 0:
        raise ValueError("tenants: one a request, none below 0")
    if not (np.diff(timestamps_s, prepend=timestamps_s[0]) >= 0).all():
        raise ValueError("timestamps_s: must be numbers that never decrease")
    if len(ids) and not (ids.min() >= 0 and ids.max() < len(parents)):
        raise ValueError(f"ids: must be in [0, {len(parents)})")
    wrong = _first_broken_chain(touches)
    if wrong >= 0:
        raise ValueError(f"ids: request {wrong} does not follow parents and depths")
    return touches


def _read_only(column: NDArray[Any], dtype: type) -> NDArray[Any]:
    view: NDArray[Any] = np.ascontiguousarray(column, dtype).view()
    view.flags.writeable = False  # compiled code takes a tuple of such only
    return view


@jit.kernel(TOUCHES)
def _first_broken_chain(touches: Touches) -> int:
    """The first request that does not go from a first page to its child, and so on; or -1."""
    for request in range(len(touches.timestamps_s)):
        begin = touches.offsets[request]
        before = np.int64(-1)
        for touch in range(begin, touches.offsets[request + 1]):
            page = touches.ids[touch]
            if touches.parents[page] != before or touches.depths[page] != touch - begin:
                return request
            before = page
    return -1
