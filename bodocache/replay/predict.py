# SPDX-License-Identifier: Apache-2.0
"""What the learning model (plan/reuse.py) says of each page of a trace, as it is touched."""

import numpy as np

from bodocache import jit
from bodocache.plan import hazards, reuse
from bodocache.replay.policies.model import TOUCHES, Floats, Touches


def reuse_chances(touches: Touches, hints: Floats | None = None) -> Floats:
    """The probability that its page is touched again, for each touch (checked), known by then.

    ``hints`` are what callers say of each request; NaN or None: nothing. No page is forgotten.
    """
    said = np.full(len(touches.timestamps_s), np.nan) if hints is None else hints
    memories = np.zeros(len(touches.parents), reuse.MEMORY)
    chances = np.empty(len(touches.ids))
    _predict(touches, np.ascontiguousarray(said, np.float64), reuse.open_model(), memories, chances)
    return chances


_FLOATS = jit.array("f8")


@jit.kernel(TOUCHES, _FLOATS, reuse.MODEL, reuse.MEMORIES, _FLOATS)
def _predict(
    touches: Touches, hints: Floats, model: reuse.Model, memories: reuse.Memories, chances: Floats
) -> None:
    for request in range(len(hints)):
        begin, end = touches.offsets[request], touches.offsets[request + 1]
        rows = touches.ids[begin:end]
        now_s, tenant = touches.timestamps_s[request], touches.tenants[request]
        reuse.observe(model, memories, rows, now_s, reuse.Asked(-1, 0, tenant, hints[request]))
        for touch in range(begin, end):
            kind = np.int64(memories[touches.ids[touch]]["kind"])
            chances[touch] = hazards.chance(model.hazards, kind)
