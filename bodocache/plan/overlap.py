# SPDX-License-Identifier: Apache-2.0
"""Loading layer by layer while the engine computes: when it may start, how far ahead copies run.

Layer i takes l_i seconds to load and c_i to compute; loads go in order on one link, and so do the
layers of a step. With a head start of

    h = max(0, max_i (sum_{j<=i} l_j - sum_{j<i} c_j))        (papers.md 4.2, formula 5)

seconds after the copies begin no layer waits for its load, and starting later gains nothing: the
step ends no later than one that started at once. All arrays are f8[layers], in layer order.
"""

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.records import Int

Seconds = NDArray[np.float64]

_LAYERS = jit.readonly("f8")


@jit.kernel(_LAYERS, _LAYERS)
def head_start_s(load_s: Seconds, compute_s: Seconds) -> float:
    """Seconds after the copies begin at which the step should start: h above."""
    loaded_s = computed_s = head_s = 0.0
    for i in range(len(load_s)):
        loaded_s += load_s[i]
        head_s = max(head_s, loaded_s - computed_s)
        computed_s += compute_s[i]
    return head_s


@jit.kernel(_LAYERS, jit.f8)
def whole_layers(load_s: Seconds, head_s: float) -> int:
    """N: how many layers are whole ``head_s`` after the copies began; at least 1.

    An engine that can only count layers waits for one more where h lies between two.
    """
    loaded_s, whole = 0.0, 0
    for i in range(len(load_s)):
        loaded_s += load_s[i]
        if loaded_s > head_s * (1 + 1e-12):
            break
        whole += 1
    return max(1, whole)


@jit.kernel(_LAYERS, jit.f8, jit.array("f8"))
def layer_deadlines_s(compute_s: Seconds, start_s: float, deadlines_s: Seconds) -> None:
    """Set ``deadlines_s[i]``: when layer i is needed by a step that starts at ``start_s``."""
    at_s = start_s
    for i in range(len(compute_s)):
        deadlines_s[i] = at_s
        at_s += compute_s[i]


@jit.kernel(_LAYERS, _LAYERS)
def layers_ahead(load_s: Seconds, compute_s: Seconds) -> int:
    """N+: the fewest layers that copies may run ahead of the engine without stalling it.

    The copy of layer i begins only when the engine has computed layer i - N+, so that the link is
    free for others in between. ``load_s`` is at the rate's 90 % low quantile: a link that does
    better needs no more. More layers ahead never stall more, so the fewest are found by halving.
    """
    low, high = 1, max(1, len(load_s))
    while low < high:
        middle = (low + high) // 2
        if _stalls(load_s, compute_s, middle):
            low = middle + 1
        else:
            high = middle
    return low


@jit.kernel(_LAYERS, _LAYERS, jit.i8)
def _stalls(load_s: Seconds, compute_s: Seconds, ahead: Int) -> bool:
    """Whether some layer waits for its load when copies run at most ``ahead`` layers ahead."""
    head_s = head_start_s(load_s, compute_s)
    slack_s = 1e-9 * (head_s + 1e-9)  # sums in another order differ in their last bits
    loaded_s, needed_s, freed_s = 0.0, head_s, head_s
    for i in range(len(load_s)):
        if i >= ahead:
            freed_s += compute_s[i - ahead]  # the engine's end of layer i - ahead
            loaded_s = max(loaded_s, freed_s)
        loaded_s += load_s[i]
        if loaded_s > needed_s + slack_s:
            return True
        needed_s += compute_s[i]
    return False


@jit.kernel(jit.f8, jit.f8, jit.f8)
def equal_whole_layers(load_s: float, compute_s: float, layers: float) -> Int:
    """:func:`whole_layers` of :func:`head_start_s`, in closed form, for equal layers."""
    head_s = max(load_s, layers * load_s - (layers - 1.0) * compute_s)
    return np.int64(max(1.0, np.floor(head_s / load_s * (1.0 + 1e-12))))


@jit.kernel(jit.f8, jit.f8, jit.f8)
def equal_layers_ahead(load_s: float, compute_s: float, layers: float) -> Int:
    """:func:`layers_ahead` for equal layers: ``L - (L - 2) c / l``, rounded up, from 2 to L.

    While layer i is computed, layer i + 1 is copied: two, if a copy is no slower than a layer. Else
    copies lag by l - c a layer, and must have k l >= h + c behind them when they first have to wait
    for the engine.
    """
    if layers <= 2.0:
        return np.int64(layers)
    ahead = np.ceil((layers - (layers - 2.0) * compute_s / load_s) * (1.0 - 1e-12))
    return np.int64(min(layers, max(2.0, ahead)))
