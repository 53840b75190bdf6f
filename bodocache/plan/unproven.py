# SPDX-License-Identifier: Apache-2.0
"""How many pages of a tier a tenant may fill with what was used once: its *unproven* pages.

Whether such pages are used again is learned of classes that all tenants share, so who streams pages
that nobody uses again has turned a tier over before that is known. Hence, of a full tier,

    unproven pages of a tenant <= capacity * max(LEAST_SHARE, FAVOUR * share),
    share = (pages the tenant used again + 1) / (pages used again by anybody + 1),

both fading by ``FADE`` every ``hazards.FIT_REQUESTS`` requests. A tenant alone has share 1 and no
limit. Pages count that are remembered, present or not, so who is short of pages still gains share.

A stream of ten times the capacity costs the others at worst 2.7 % of their hits in bench/unseen.py,
11 % without the rule, and 4.9 % among hundreds of tenants (bench/scans.py). Who comes late to a
full tier has at worst 0.7 % fewer hits than under the better of LRU and GDSF. A larger
``LEAST_SHARE`` lets a stream cost more; a ``FADE`` or a ``FAVOUR`` nearer to 1 costs those who come
late.
"""

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.records import Int

LEAST_SHARE = 0.1
FAVOUR = 3.0
FADE = 0.9

Floats = NDArray[np.float64]


@jit.kernel(jit.array("f8"), jit.i8, jit.i8)
def allowance(reused: Floats, tenant: Int, capacity_pages: Int) -> float:
    """Unproven pages that the tenant may have in a full tier; ``reused``: pages, by tenant."""
    share = (reused[tenant] + 1) / (reused.sum() + 1)
    return float(capacity_pages * max(LEAST_SHARE, FAVOUR * share))


@jit.kernel(jit.array("f8"))
def fade(reused: Floats) -> None:
    """Another ``hazards.FIT_REQUESTS`` requests have come."""
    for tenant in range(len(reused)):
        reused[tenant] *= FADE
