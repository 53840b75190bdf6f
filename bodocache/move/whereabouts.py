# SPDX-License-Identifier: Apache-2.0
"""What is known of a page: the tiers it lies in, or how it left the last one. Changes nothing."""

import numpy as np
from numpy.typing import NDArray

from bodocache.move.ghosts import DEPARTURE
from bodocache.move.residency import KeyArray, Residency
from bodocache.pages import NOWHERE

WHEREABOUTS = np.dtype(
    [
        ("departure", DEPARTURE),  # its last
        ("depth", "<u4"),
        ("pins", "<u4"),
        ("tiers", "u1"),  # bits
        ("reason", "u1"),  # Reason of its last miss
        ("is_ghost", "?"),
        ("is_known", "?"),  # else nothing is
    ],
    align=True,
)


def whereabouts(residency: Residency, keys: KeyArray) -> NDArray[np.void]:
    """WHEREABOUTS of each of ``keys`` (u8[N, 32])."""
    rows = residency.index.find(keys)
    found = np.zeros(len(keys), WHEREABOUTS)
    there = found["is_known"] = rows != NOWHERE
    for name in ("tiers", "reason", "depth", "pins"):
        found[name][there] = residency.table.records[name][rows[there]]
    found["is_ghost"][there] = residency.ghosts.are_ghosts(rows[there])
    found["departure"][there] = residency.ghosts.departures(rows[there])
    return found


def known_keys(residency: Residency, prefix: bytes) -> KeyArray:
    """The keys in the index that begin with ``prefix``: a scan, for who asks by hand."""
    keys = residency.table.keys
    begins = (keys[:, : len(prefix)] == np.frombuffer(prefix, np.uint8)).all(axis=1)
    found: KeyArray = keys[begins]
    known: KeyArray = found[residency.index.find(found) != NOWHERE]
    return known
