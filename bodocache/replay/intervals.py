# SPDX-License-Identifier: Apache-2.0
"""A trace as intervals: from one touch of a page to its next, what holding the page then saves.

The pages that request b touches and request a touched last are a *run* of b's chain: the deeper a
page, the longer ago its last use. A cache that holds one of them over a..b holds those before it,
too; so it holds the run's first pages, and what n bytes of it save is at most the concave hull of
its prefixes. A *segment* is one edge of that hull: pages of a run, kept in any share of 0..1, and
filled in order by whoever wants the most, as their density (seconds a byte) falls.
"""

from typing import NamedTuple

import numpy as np

from bodocache import jit
from bodocache.plan.records import Int
from bodocache.replay.policies.model import TOUCHES, Floats, Ids, Touches

SLACK = 1e-6  # of a share: what a solver leaves over


class Segments(NamedTuple):
    """K segments in the order of their last request, and where the T touches lie in them."""

    start: Ids  # [K] request after which its pages are held ...
    end: Ids  # [K] ... and the one that touches them next
    pages: Ids  # [K]
    nbytes: Floats  # [K]
    saved_s: Floats  # [K] if all of it is held
    lead: Ids  # [K] touch of the page before its run in request ``end``, -1: none, or inside a run
    segment: Ids  # [T] the one that ends with this touch, -1: the page's first touch
    share: Floats  # [T] of that segment, up to and with this page
    earlier: Ids  # [T] touch of the same page before this one, -1: none
    request: Ids  # [T]


def cut(touches: Touches, seconds: Floats, nbytes: Floats) -> Segments:
    """Segments of a trace whose page p saves ``seconds[p]`` a hit and takes ``nbytes[p]``."""
    count = len(touches.ids)
    start, end, pages, lead, segment, earlier, request = np.full((7, count), -1)
    size, saved_s, share = np.zeros((3, count))
    found = Segments(start, end, pages, size, saved_s, lead, segment, share, earlier, request)
    _link(touches, np.full(len(touches.parents), -1), earlier, request)
    used = int(_cut(touches, seconds, nbytes, found))
    _locate(touches, nbytes, found)
    return found._replace(
        start=start[:used],
        end=end[:used],
        pages=pages[:used],
        nbytes=size[:used],
        saved_s=saved_s[:used],
        lead=lead[:used],
    )


_INTS, _FLOATS = jit.array("i8"), jit.array("f8")
SEGMENTS = jit.named(Segments, *[_INTS] * 3, _FLOATS, _FLOATS, _INTS, _INTS, _FLOATS, _INTS, _INTS)


@jit.kernel(TOUCHES, _INTS, _INTS, _INTS)
def _link(touches: Touches, last: Ids, earlier: Ids, requests: Ids) -> None:
    for request in range(len(touches.timestamps_s)):
        for touch in range(touches.offsets[request], touches.offsets[request + 1]):
            page = touches.ids[touch]
            earlier[touch], last[page] = last[page], touch
            requests[touch] = request


@jit.kernel(TOUCHES, _FLOATS, _FLOATS, SEGMENTS)
def _cut(touches: Touches, seconds: Floats, nbytes: Floats, out: Segments) -> Int:
    """Fill ``out``; return how many segments there are."""
    count: Int = 0
    run: Int = 0  # where the present run's segments begin
    for touch in range(len(touches.ids)):
        before, request = out.earlier[touch], out.request[touch]
        if before < 0:
            continue
        start = out.request[before]
        if count == 0 or out.start[count - 1] != start or out.end[count - 1] != request:
            run = count
        _append(out, run, count, touch)
        page = touches.ids[touch]
        out.nbytes[count], out.saved_s[count] = nbytes[page], seconds[page]
        count = _merge(out, run, count + 1)
    return count


@jit.kernel(SEGMENTS, jit.i8, jit.i8, jit.i8)
def _append(out: Segments, run: Int, at: Int, touch: Int) -> None:
    request = out.request[touch]
    out.start[at], out.end[at], out.pages[at] = out.request[out.earlier[touch]], request, 1
    first_page = touch == 0 or out.request[touch - 1] != request
    out.lead[at] = -1 if at > run or first_page else touch - 1


@jit.kernel(SEGMENTS, jit.i8, jit.i8)
def _merge(out: Segments, run: Int, count: Int) -> Int:
    """While the last segment of a run is as dense as the one before, make them one."""
    while count - run > 1:
        last, before = count - 1, count - 2
        if out.saved_s[last] * out.nbytes[before] < out.saved_s[before] * out.nbytes[last]:
            break
        out.pages[before] += out.pages[last]
        out.nbytes[before] += out.nbytes[last]
        out.saved_s[before] += out.saved_s[last]
        count -= 1
    return count


@jit.kernel(TOUCHES, _FLOATS, SEGMENTS)
def _locate(touches: Touches, nbytes: Floats, out: Segments) -> None:
    """Note where each touch that ends an interval lies in its segment."""
    at, pages, filled = 0, 0, 0.0
    for touch in range(len(touches.ids)):
        if out.earlier[touch] < 0:
            continue
        pages += 1
        filled += nbytes[touches.ids[touch]]
        out.segment[touch] = at
        out.share[touch] = min(1.0, filled / out.nbytes[at])
        if pages == out.pages[at]:
            at, pages, filled = at + 1, 0, 0.0


@jit.kernel(SEGMENTS, jit.i8, jit.i8, _FLOATS, _INTS, _INTS)
def broken(segments: Segments, first: Int, begin: Int, held: Floats, above: Ids, below: Ids) -> Int:
    """Where segments are held although a page before them is not; return how many were found.

    ``held`` are the shares of segments ``first``, ... that end with request ``begin`` or later.
    ``above`` gets the touch at which a page before leaves too early, ``below`` the segment.
    """
    count: Int = 0
    for at in range(len(held)):
        below_at, touch = first + at, segments.lead[first + at]
        if touch < 0 or held[at] <= SLACK:
            continue
        since = max(segments.start[below_at], begin - 1)
        while segments.request[touch] > since:
            missing = segments.share[touch] * held[at] - held[segments.segment[touch] - first]
            if missing > SLACK and count < len(above):
                above[count], below[count] = touch, below_at
                count += 1
            touch = segments.earlier[touch]
    return count
