# SPDX-License-Identifier: Apache-2.0
"""The loads of one window, as late.py decides them and demote.py orders them: records and memory.

A load is cut at boundaries its request can be restored at; what each moves is beside them.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan import heap
from bodocache.plan.records import LINK
from bodocache.plan.tardiness import CUT

COPIES = 2  # a load's choices: the nearest copy and the next


class Verdict(IntEnum):
    """What becomes of a load."""

    WHOLE = 0
    CUT = 1
    DROPPED = 2  # nothing more of it is loaded


# One load. Loads stand in EDF order.
LOAD = np.dtype(
    [
        ("deadline_s", "<f8"),  # when its last byte is due; inf: never
        ("first", "<i8"),  # its boundaries: boundaries[first : first + count], ascending:
        ("count", "<i8"),  # from what has landed already to the whole; 1: it is not to be cut
        ("wait_s", "<f8"),  # these five as in tardiness.CUT
        ("new_compute_s", "<f8"),
        ("token_s", "<f8"),
        ("slope_s", "<f8"),
        ("n_waiting", "<f8"),
        ("layers", "<i4"),  # streamed by layer on the second link; 0: in series
        ("second", "<i4"),  # link to the device
        ("links", "<i4", (COPIES,)),  # by copy: link to the host; -1: its bytes are there
        ("copies", "<i4"),  # how many there are
        ("copy", "<i4"),  # the one it has begun with; -1: it has not begun
        ("cut_at", "<i8"),  # tokens at which the last window would have cut it; -1: nowhere
    ],
    align=True,
)

DECISION = np.dtype(
    [
        ("verdict", "<u4"),  # Verdict
        ("copy", "<i4"),
        ("cut", "<i8"),  # which of the load's boundaries
        ("cut_at", "<i8"),  # for the next window's LOAD
        ("finish_s", "<f8"),  # F: when its last byte lands, at 90 %
        ("late_s", "<f8"),
        ("step_s", "<f8"),  # T, from now: when its step has computed
        ("demoted", "<u4"),  # 1: it goes after all that are not
        ("head_layers", "<u2"),  # N: whole before its step starts (overlap.py)
        ("layers_ahead", "<u2"),  # N+, at the 90 % low rate
    ],
    align=True,
)


class Loads(NamedTuple):
    """The loads of a window, in EDF order, and what each of their boundaries moves."""

    records: NDArray[np.void]  # LOAD[n]
    boundaries: NDArray[np.int64]  # [m]: tokens
    first_nbytes: NDArray[np.int64]  # [m, COPIES]: over the copy's link to the host
    second_nbytes: NDArray[np.int64]  # [m]: over the link to the device


class Scratch(NamedTuple):
    """Memory for one call over n loads and some links."""

    cut: NDArray[np.void]  # CUT[1]
    free_s: NDArray[np.float64]  # [links]: from now, when it has served what is decided
    ahead: NDArray[np.float64]  # [links]: bytes
    members: NDArray[np.int64]  # [n]: loads by link
    starts: NDArray[np.int64]  # [links + 2]
    link_s: NDArray[np.float64]  # [n], as are:
    due_s: NDArray[np.float64]
    caused_s: NDArray[np.float64]
    kept: NDArray[np.bool_]
    nodes: NDArray[np.void]  # heap.NODE
    places: NDArray[np.int32]  # [n, 1]


_F, _I = jit.array("f8"), jit.array("i8")
LOADS = jit.named(Loads, jit.array(LOAD), _I, jit.array("i8", 2), _I)
SCRATCH = jit.named(
    Scratch,
    *(jit.array(CUT), _F, _F, _I, _I, _F, _F, _F),
    *(jit.array("?"), heap.NODES, heap.PLACES),
)
LINKS, DECISIONS = jit.readonly(LINK), jit.array(DECISION)


def scratch_for(loads: int, links: int) -> Scratch:
    """Scratch of :func:`decide`."""
    return Scratch(
        np.zeros(1, CUT),
        np.empty(links),
        np.empty(links),
        np.empty(loads, np.int64),
        np.empty(links + 2, np.int64),
        np.empty(loads),
        np.empty(loads),
        np.empty(loads),
        np.empty(loads, np.bool_),
        np.empty(loads, heap.NODE),
        np.empty((loads, 1), np.int32),
    )
