# SPDX-License-Identifier: Apache-2.0
"""Each op's place in its copy stream, and when it will be done.

A stream is one direction on one node: its ops run one after the other, in the plan's order (EDF).
Where a link is given for it, an op's finish is predicted from all bytes ahead of it, as tardiness.py
says. A destination should keep what it gets for as long as the policy lets nothing leave, and until
the deadline of those who asked.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bodocache import jit
from bodocache.plan import tardiness
from bodocache.plan.check import LINKS, POLICIES
from bodocache.plan.records import OP, TIERS, Feature, Int

Records = NDArray[np.void]

STREAMS = TIERS * TIERS  # of a node
NODES = 1 << 16  # a demand's node is a u2

STREAM = np.dtype([("ahead_nbytes", "<f8"), ("link", "<i4"), ("ops", "<u4")])


class Streams(NamedTuple):
    """Scratch: the streams of the nodes that a window meets. Memory of others is never touched."""

    numbers: NDArray[np.int32]  # [NODES]: 1 + a node's number in this window; 0 between windows
    met: NDArray[np.int32]  # [NODES]: the nodes by number
    streams: Records  # STREAM[NODES * STREAMS]


TYPE = jit.named(Streams, jit.array("i4"), jit.array("i4"), jit.array(STREAM))
_OFF = int(Feature.TARDINESS)


def streams() -> Streams:
    """Scratch for any window."""
    return Streams(
        np.zeros(NODES, np.int32), np.zeros(NODES, np.int32), np.zeros(NODES * STREAMS, STREAM)
    )


@jit.kernel(jit.array(OP), LINKS, POLICIES, jit.f8, TYPE)
def assign(ops: Records, links: Records, policy: Records, now_s: float, scratch: Streams) -> None:
    """Set order, predicted_finish_s and keep_until_s of ``ops``, which stand in EDF order."""
    count = 0
    for i in range(len(ops)):
        count = _meet(np.int64(ops[i]["node"]), count, scratch)
    if not np.int64(policy[0]["features_off"]) & _OFF:
        for k in range(len(links)):
            number = np.int64(scratch.numbers[links[k]["node"]]) - 1
            if number >= 0:
                way = np.int64(links[k]["source"]) * TIERS + np.int64(links[k]["destination"])
                scratch.streams[number * STREAMS + way]["link"] = k
    for i in range(len(ops)):
        number = np.int64(scratch.numbers[ops[i]["node"]]) - 1
        stream = scratch.streams[number * STREAMS + np.int64(ops[i]["stream"])]
        _place(ops[i], stream, links, now_s)
        residence_s = now_s + policy[0]["min_residence_s"]
        ops[i]["keep_until_s"] = max(residence_s, ops[i]["deadline_s"])
    for number in range(count):
        scratch.numbers[scratch.met[number]] = 0


@jit.kernel(jit.i8, jit.i8, TYPE)
def _meet(node: Int, count: Int, scratch: Streams) -> int:
    """Number the node if it is new; return how many there are."""
    if scratch.numbers[node] > 0:
        return count
    scratch.met[count] = node
    scratch.numbers[node] = count + 1
    for way in range(STREAMS):
        stream = scratch.streams[count * STREAMS + way]
        stream["ahead_nbytes"], stream["link"], stream["ops"] = 0.0, -1, 0
    return count + 1


@jit.kernel(jit.record(OP), jit.record(STREAM), LINKS, jit.f8)
def _place(op: Any, stream: Any, links: Records, now_s: float) -> None:
    op["order"] = stream["ops"]
    stream["ops"] += 1
    stream["ahead_nbytes"] += np.float64(op["nbytes"])
    if stream["link"] >= 0:
        link = links[stream["link"] : stream["link"] + 1]
        ahead_nbytes = stream["ahead_nbytes"]
        op["predicted_finish_s"] = tardiness.predicted_finish_s(
            link, ahead_nbytes, now_s, tardiness.Z90
        )
