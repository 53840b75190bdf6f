# SPDX-License-Identifier: Apache-2.0
"""Each op's place in its copy stream, and when it will be done.

A stream is one direction on one node: its ops run one after the other, in the plan's order (EDF).
With x bytes ahead of an op and its own, it is done at ``F = now + end + z * sqrt(sum over its links
of spread^2 x + (drift x / rate)^2)`` for 90 % of such ops (tardiness.py). A link of the op's own
direction is taken; where there is none, a load from below the host goes over one to the host, which
it leaves after ``x1 / rate1``, then over one to the device: ``end = max(that, free) + nbytes /
rate``. A destination should keep what it gets as long as nothing may leave it, and until the
deadline of those who asked.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.pages import Tier
from bodocache.plan.check import LINKS, POLICIES
from bodocache.plan.records import OP, TIERS, Feature, Int, OpKind
from bodocache.plan.tardiness import Z90

Records = NDArray[np.void]

NODES = 1 << 16  # a demand's node is a u2
WAYS = TIERS * TIERS  # of a node

# One direction on one node.
WAY = np.dtype(
    [
        ("ahead_nbytes", "<f8"),  # on its link
        ("free_s", "<f8"),  # from now, when its link has moved them
        ("link", "<i4"),  # row of the links' table; -1: none was given
        ("ops", "<u4"),
    ]
)


class Streams(NamedTuple):
    """The nodes that a window meets. Memory of others is never touched."""

    numbers: NDArray[np.int32]  # [NODES]: 1 + a node's number in this window; 0 between windows
    met: NDArray[np.int32]  # [NODES]: the nodes by number
    ways: Records  # WAY[NODES * WAYS]
    nodes: NDArray[np.int64]  # [1]: how many were met


STREAMS = jit.named(Streams, jit.array("i4"), jit.array("i4"), jit.array(WAY), jit.array("i8"))
_ABORT, _HOST, _DEVICE = int(OpKind.ABORT), int(Tier.HOST), int(Tier.DEVICE)
_TARDINESS = int(Feature.TARDINESS)


def streams() -> Streams:
    """Scratch for any window."""
    return Streams(
        np.zeros(NODES, np.int32),
        np.zeros(NODES, np.int32),
        np.zeros(NODES * WAYS, WAY),
        np.zeros(1, np.int64),
    )


@jit.kernel(STREAMS, LINKS)
def begin(streams: Streams, links: Records) -> None:
    """Begin a window over ``links``."""
    for number in range(streams.nodes[0]):
        streams.numbers[streams.met[number]] = 0
    streams.nodes[0] = 0
    for k in range(len(links)):
        link = links[k]
        at = _first_way(streams, np.int64(link["node"]))
        way = streams.ways[at + np.int64(link["source"]) * TIERS + np.int64(link["destination"])]
        way["link"], way["ahead_nbytes"] = k, np.float64(link["queued_nbytes"])
        way["free_s"] = way["ahead_nbytes"] / link["rate"]


@jit.kernel(STREAMS, jit.i8, jit.i8, jit.i8)
def link_of(streams: Streams, node: Int, source: Int, destination: Int) -> Int:
    """Row of the link from tier to tier on a node, or -1."""
    number = np.int64(streams.numbers[node]) - 1
    if number < 0:
        return -1
    return np.int64(streams.ways[number * WAYS + source * TIERS + destination]["link"])


@jit.kernel(STREAMS, jit.array(OP), LINKS, POLICIES, jit.f8)
def assign(streams: Streams, ops: Records, links: Records, policy: Records, now_s: float) -> None:
    """Set order, predicted_finish_s and keep_until_s of ``ops``, which stand in EDF order."""
    residence_s = now_s + policy[0]["min_residence_s"]
    predicts = (np.int64(policy[0]["features_off"]) & _TARDINESS) == 0 and len(links) > 0
    for i in range(len(ops)):
        op = ops[i]
        first = _first_way(streams, np.int64(op["node"]))
        way = streams.ways[first + np.int64(op["stream"])]
        op["order"] = way["ops"]
        way["ops"] += 1
        op["keep_until_s"] = max(residence_s, op["deadline_s"])
        if predicts and op["kind"] != _ABORT:
            _predict(streams, op, first, links, now_s)


@jit.kernel(STREAMS, jit.record(OP), jit.i8, LINKS, jit.f8)
def _predict(streams: Streams, op: Any, first: Int, links: Records, now_s: float) -> None:
    ways, source, nbytes = streams.ways, np.int64(op["source"]), np.float64(op["nbytes"])
    last: Int = first + np.int64(op["stream"])
    before = first + source * TIERS + _HOST
    at_s = variance = 0.0
    if ways[last]["link"] < 0:  # by way of the host?
        last = first + _HOST * TIERS + _DEVICE
        if op["destination"] != _DEVICE or source <= _HOST or ways[before]["link"] < 0:
            return
        if ways[last]["link"] < 0:
            return
        at_s = _serve(ways[before], links, nbytes, 0.0)
        variance = _variance(ways[before], links)
    end_s = _serve(ways[last], links, nbytes, at_s)
    variance += _variance(ways[last], links)
    op["predicted_finish_s"] = now_s + end_s + Z90 * np.sqrt(variance)


@jit.kernel(jit.record(WAY), LINKS, jit.f8, jit.f8)
def _serve(way: Any, links: Records, nbytes: float, at_s: float) -> float:
    """Put ``nbytes`` that come ``at_s`` seconds from now on the link; return when they are over."""
    way["ahead_nbytes"] += nbytes
    way["free_s"] = max(way["free_s"], at_s) + nbytes / links[way["link"]]["rate"]
    return float(way["free_s"])


@jit.kernel(jit.record(WAY), LINKS)
def _variance(way: Any, links: Records) -> float:
    """Of when the link has moved all that is ahead, in s^2."""
    link, x = links[way["link"]], way["ahead_nbytes"]
    return float(link["spread"] ** 2 * x + (link["drift"] * x / link["rate"]) ** 2)


@jit.kernel(STREAMS, jit.i8)
def _first_way(streams: Streams, node: Int) -> Int:
    """The first of the node's ways; a node that was not met yet is given a number."""
    if streams.numbers[node] > 0:
        return (np.int64(streams.numbers[node]) - 1) * WAYS
    number = np.int64(streams.nodes[0])
    streams.nodes[0] = number + 1
    streams.met[number] = node
    streams.numbers[node] = number + 1
    for way in range(number * WAYS, (number + 1) * WAYS):
        streams.ways[way]["ahead_nbytes"] = streams.ways[way]["free_s"] = 0.0
        streams.ways[way]["link"], streams.ways[way]["ops"] = -1, 0
    return number * WAYS
