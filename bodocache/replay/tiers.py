# SPDX-License-Identifier: Apache-2.0
"""What a disk below the host keeps of the hits, and how many pages are written to it for that.

The host holds ``capacity_pages``, the least recent leaf leaving; the disk never fills. A request
hits its leading pages that lie in either, and brings its pages into the host. An admission rule
gives each touch a *worth*; a page is written, once, when its worth reaches a threshold:

* ``When.STORE``: as soon as the request that touched it was served. What a crash then loses is
  nothing, and a page need not wait for its write to make room. The worth is that of this touch.
* ``When.LEAVE``: when it leaves the host, by the worth of its last touch. Pages that are used again
  soon or never, and that is known by then, cost no write; but leaving waits for the disk.

What is written stays reachable: at a store a page weighs as much as the pages behind it in its
request, and where a page behind it was written a leaving page is written, too.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan.records import Int
from bodocache.replay.policies import leaves as tree
from bodocache.replay.policies.model import TOUCHES, Floats, Ids, Touches


class When(IntEnum):
    """When it is decided whether a page is written."""

    STORE = 0
    LEAVE = 1


class Kept(NamedTuple):
    """What was hit, per request, and written."""

    host_hits: Ids
    disk_hits: Ids  # leading pages that lay on disk alone
    written: int  # pages

    @property
    def hits(self) -> int:
        """Pages hit in host or disk."""
        return int(self.host_hits.sum() + self.disk_hits.sum())


class _Tiers(NamedTuple):
    leaves: tree.Leaves  # the host's
    last: NDArray[np.int64]  # [D] the request that touched the page last
    wanted: NDArray[np.bool_]  # [D] to be written when it leaves the host
    needed: NDArray[np.bool_]  # [D] a page behind it lies on disk
    on_disk: NDArray[np.bool_]  # [D]


def keep(
    touches: Touches, capacity_pages: int, worth: Floats, threshold: float, when: When
) -> Kept:
    """Serve ``touches`` (checked), ``worth`` having one value a touch.

    Raises:
        ValueError: ``worth`` has another length, or there is no room for a page.
    """
    if len(worth) != len(touches.ids) or capacity_pages < 1:
        raise ValueError(
            f"worth has {len(worth)} values, expected {len(touches.ids)}, one a touch;"
            f" capacity_pages={capacity_pages}, expected at least 1"
        )
    pages = len(touches.parents)
    leaves = tree.open_leaves(pages, min(capacity_pages, pages), 1)
    tiers = _Tiers(leaves, np.zeros(pages, np.int64), *np.zeros((3, pages), np.bool_))
    host, disk = np.zeros((2, len(touches.timestamps_s)), np.int64)
    values = np.ascontiguousarray(worth, np.float64)
    _replay(touches, values, threshold, int(when), capacity_pages, tiers, host, disk)
    return Kept(host, disk, int(tiers.on_disk.sum()))


_STORE = int(When.STORE)
_TIERS = jit.named(_Tiers, tree.LEAVES, jit.array("i8"), *[jit.array("?")] * 3)
_IDS, _FLOATS = jit.array("i8"), jit.array("f8")


@jit.kernel(TOUCHES, _FLOATS, jit.f8, jit.i8, jit.i8, _TIERS, _IDS, _IDS)
def _replay(
    touches: Touches,
    worth: Floats,
    threshold: float,
    when: Int,
    capacity_pages: Int,
    tiers: _Tiers,
    host_hits: Ids,
    disk_hits: Ids,
) -> None:
    leaves = tiers.leaves
    used: Int = 0
    for request in range(len(host_hits)):
        begin = touches.offsets[request]
        at = tree.end_of_hits(leaves, touches, request)
        stop = min(touches.offsets[request + 1], begin + capacity_pages)
        host_hits[request] = at - begin
        disk_hits[request] = _on_disk_from(touches, tiers, at, request)
        held = touches.ids[at - 1] if at > begin else np.int64(-1)
        if held >= 0:  # of its own pages, only the deepest can be a leaf
            tree.drop(leaves, 0, held)
        gone = max(used + stop - at - capacity_pages, 0)
        for _ in range(gone):
            _leave(touches, tiers, held)
        for touch in range(at, stop):
            tree.arrive(leaves, touches, touches.ids[touch])
        for touch in range(begin, stop):
            tiers.last[touches.ids[touch]] = request
        _weigh(touches, worth, threshold, when, tiers, begin, stop)
        if stop > begin:
            _queue(touches, tiers, touches.ids[stop - 1])
        used += stop - at - gone


@jit.kernel(TOUCHES, _TIERS, jit.i8, jit.i8)
def _on_disk_from(touches: Touches, tiers: _Tiers, at: Int, request: Int) -> Int:
    """Pages from touch ``at`` on, without a gap, that lie on disk."""
    end = at
    while end < touches.offsets[request + 1] and tiers.on_disk[touches.ids[end]]:
        end += 1
    return end - at


@jit.kernel(TOUCHES, _FLOATS, jit.f8, jit.i8, _TIERS, jit.i8, jit.i8)
def _weigh(
    touches: Touches,
    worth: Floats,
    threshold: float,
    when: Int,
    tiers: _Tiers,
    begin: Int,
    stop: Int,
) -> None:
    """Write, or note for when they leave, the pages of touches ``begin`` to ``stop``."""
    most = -np.inf
    for touch in range(stop - 1, begin - 1, -1):
        most = max(most, worth[touch])
        page = touches.ids[touch]
        if when == _STORE:
            tiers.on_disk[page] |= most >= threshold
        else:
            tiers.wanted[page] = worth[touch] >= threshold


@jit.kernel(TOUCHES, _TIERS, jit.i8)
def _leave(touches: Touches, tiers: _Tiers, held: Int) -> None:
    """The least recent leaf leaves the host; ``held`` is the deepest page being served."""
    page = tree.first(tiers.leaves, 0)
    parent = tree.depart(tiers.leaves, touches, page)
    tiers.on_disk[page] |= tiers.wanted[page] or tiers.needed[page]
    if touches.parents[page] >= 0:
        tiers.needed[touches.parents[page]] |= tiers.on_disk[page]
    if parent < 0 or parent == held:
        tree.drop(tiers.leaves, 0, page)
    else:
        tree.hand_over(tiers.leaves, 0, page, parent)
        _queue(touches, tiers, parent)


@jit.kernel(TOUCHES, _TIERS, jit.i8)
def _queue(touches: Touches, tiers: _Tiers, page: Int) -> None:
    if tiers.leaves.children[page] == 0:
        tree.put(tiers.leaves, 0, page, tiers.last[page], touches.depths[page])
