# SPDX-License-Identifier: Apache-2.0
"""Lists a load under way for plan/late.py: where it may be cut, and the bytes that are left.

Compiled, and apart from outlook.py, so that only a change of this is compiled again.
"""

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.pages import Tier
from bodocache.plan import loads

DISK, HOST, NONE = 0, 1, 2  # rows of the links
MAX_BOUNDARIES = 256  # of one load: a longer one is cut at every so many pages
_DISK, _HOST = int(Tier.DISK), int(Tier.HOST)


@jit.compiled(
    *(jit.array(loads.LOAD), jit.i8, jit.array(loads.LOAD), jit.f8, jit.f8),
    *(jit.boolean, jit.i8, jit.array("i8"), jit.array("i8"), jit.i8),
    *(jit.array("i8"), jit.array("?"), jit.array("i8"), jit.array("i8", 2), jit.array("i8")),
    jit.i8,
)
def list_load(  # noqa: PLR0913, PLR0917 -- one call for each load of a look
    window: NDArray[np.void],
    k: int,
    template: NDArray[np.void],
    due_s: float,
    now_s: float,
    is_begun: bool,  # noqa: FBT001
    cut_at: int,
    whole_layers: NDArray[np.int64],
    sources: NDArray[np.int64],
    wanted: int,
    sizes: NDArray[np.int64],
    is_known: NDArray[np.bool_],
    bounds: NDArray[np.int64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    end: int,
) -> int:
    """Write load k of ``window`` and its boundaries from ``end`` on; return how many.

    ``sizes``: bytes and tokens of a page, its layers. ``sources``: of each page, the tier it comes
    from. 0 where nothing of the load is to come, or a link that it needs was never measured.
    """
    page_nbytes, page_tokens, layers = sizes[0], sizes[1], sizes[2]
    landed = 0
    while landed < wanted and whole_layers[landed] == layers:
        landed += 1
    if landed == wanted:
        return 0
    stride = (wanted - landed + MAX_BOUNDARIES - 1) // MAX_BOUNDARIES
    from_disk = from_host = np.int64(0)
    at, needs_disk, needs_host = end, False, False
    for page in range(landed, wanted + 1):
        if (page - landed) % stride == 0 or page == wanted:
            bounds[at] = page * page_tokens
            first[at, 0] = first[at, 1] = from_disk
            second[at] = from_host + (1 if from_disk > 0 else 0)
            at += 1
        if page < wanted and whole_layers[page] < layers:
            if sources[page] == _DISK:
                needs_disk, from_disk = True, from_disk + page_nbytes
            elif sources[page] == _HOST:
                needs_host, from_host = True, from_host + page_nbytes
    if (needs_disk and not is_known[DISK]) or (needs_host and not is_known[HOST]):
        return 0
    window[k] = template[0]
    load = window[k]
    load["deadline_s"], load["wait_s"] = due_s, max(0.0, template[0]["wait_s"] - now_s)
    load["first"], load["count"] = end, at - end
    load["second"] = HOST if needs_host else NONE
    load["copy"], load["cut_at"] = 0 if is_begun else -1, cut_at
    return at - end
